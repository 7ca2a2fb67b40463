"""Train once, crop anywhere: models whose smaller versions are leading corners of their tensors."""

from croppable.checks import CroppableError, check_croppable
from croppable.core import Croppable, Nested, corner, crop
from croppable.hub import HubError, push_to_hub
from croppable.med import MED
from croppable.reader import from_pretrained, load
from croppable.safe import CheckpointError
from croppable.writer import save

__all__ = [
    "MED",
    "CheckpointError",
    "Croppable",
    "CroppableError",
    "HubError",
    "Nested",
    "check_croppable",
    "corner",
    "crop",
    "from_pretrained",
    "load",
    "push_to_hub",
    "save",
]
