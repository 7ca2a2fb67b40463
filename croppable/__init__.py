"""Train once, crop anywhere."""

from croppable.core import Croppable, Nested, corner, crop

__all__ = ["Croppable", "Nested", "corner", "crop"]
