"""Which class a checkpoint's ``kind`` means: a plain dict, and the one file that knows the families.

A name in a file is only ever looked up here; it is never resolved to code. Any other module loads by
passing its class.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["KINDS"]


def _kge_model() -> type[nn.Module]:
    from croppable.kge.model import KGEModel

    return KGEModel


# Each value imports its class only when a checkpoint of that kind is loaded.
KINDS: dict[str, Callable[[], type[nn.Module]]] = {"KGEModel": _kge_model}
