"""A trunk of nested sizes and branches above it: which models can have one, and how a size reads its parts.

Sizes up to the trunk are trained as nested ones, every segment above as a model by itself. The score of a
larger size is the mean of trunk and branches, weighed by their dims (docs/med.md, "A trunk and branches").
Which rows a branch is trained with stands in `KGEModel.rows_at`, its scale in `KGEModel.calibrate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from croppable.kge.model import KGEModel
from croppable.kge.scores import Score

__all__ = ["NEEDED", "check_trunk", "fits", "join", "parts"]


NEEDED = (
    "a product (ComplEx, DistMult, SimplE) with relations of each size's own, or a plain sum of distances "
    "(TransE-L1, RotatE) with a fixed calibration"
)


def fits(function: Score, relations: str, calibration: str) -> bool:
    """Whether a size can be the mean of its parts by dims, as `NEEDED` says in words."""
    return relations == "own" if function.product else function.is_sum and calibration == "fixed"


def check_trunk(trunk: int, model: KGEModel) -> None:
    """Raise ValueError where the mean of trunk and branches would not be a score of the model itself."""
    if trunk not in model.sizes[:-1]:
        raise ValueError(f"trunk must be one of the sizes but the last, {model.sizes}, got {trunk}")
    if not fits(model.function, model.relations, model.calibration):
        raise ValueError(
            f"a trunk needs {NEEDED}: got {model.score!r} with relations={model.relations!r} and "
            f"calibration={model.calibration!r}"
        )


def parts(sizes: Sequence[int], trunk: int) -> list[tuple[int, ...]]:
    """Return the sizes of the trunk, and for every branch the number of its dims."""
    above = list(sizes).index(trunk) + 1
    widths = [b - a for a, b in zip(sizes[above - 1 :], sizes[above:], strict=False)]
    return [tuple(sizes[:above]), *((width,) for width in widths)]


@torch.no_grad()
def join(model: KGEModel, trunk: int) -> None:
    """Write the relations with which sizes above the trunk read the dims of trunk and branches below.

    Size k reads its own branch as it is trained and a part of w dims below with the relations that this part
    was trained with: for a product times w over the dims of its branch, which makes the sum of the parts the
    mean of their scores by dims; for a distance the fixed scale of the size does. Relations that sizes share
    are read so already.
    """
    if model.relations == "shared":
        return
    table, sizes = model.relation, model.sizes
    first = sizes.index(trunk)
    ends = sizes[first:]  # of the parts; the trunk is the first
    for place in range(first + 1, len(sizes)):
        width = sizes[place] - sizes[place - 1]
        for part, (start, end) in enumerate(zip((0, *ends), ends[: place - first], strict=False)):
            factor = (end - start) / width if model.function.product else 1.0
            table[place, :, start:end] = table[first + part, :, start:end] * factor
