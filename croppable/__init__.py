"""Train once, crop anywhere."""

from croppable.core import Croppable, Nested, corner, crop
from croppable.reader import load
from croppable.safe import CheckpointError
from croppable.writer import save

__all__ = ["CheckpointError", "Croppable", "Nested", "corner", "crop", "load", "save"]
