"""Presets of recipes/kge.py, and the parsing of its flags.

A preset is a function that returns a complete `Config`; flags on the command line override it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from kge_config import Config, conflicts_on_disk, contradictions
from transformers import HfArgumentParser


def unicode_complex_med() -> Config:
    """The embedded graph, a few minutes on two cores."""
    return Config(sizes=[4, 8, 16, 32, 64, 128], num_train_epochs=6, output_dir="runs/unicode")


def codex_s(model: str, n3: float) -> Config:
    """CoDEx-S with a product, N3 chosen on validation (docs/results/kge.md); its folder is --data_dir."""
    return Config(model=model, n3=n3, num_train_epochs=20, output_dir=f"runs/codex-s-{model}")


def codex_s_together() -> Config:
    """CoDEx-S with ComplEx, sizes teaching each other up to the trunk, one branch above (docs/med.md)."""
    return replace(
        codex_s("complex", 0.03),
        relations="own",
        reach=0.35,
        trunk=80,
        mutual=0.0,
        w1=0.0,
        w3=0.0,
        distill=1.0,
        distill_from="ensemble",
        size_weights=[0.7, 1.0, 2.0, 2.0, 1.0],
        n3_sizes=[0.028, 0.03, 0.012, 0.008, 0.004],
        learning_rate=0.5,
        lr_scheduler_type="linear",
        output_dir="runs/codex-s-together",
    )


def curve(graph: str, n3_sizes: list[float], epochs: int) -> Config:
    """ComplEx at 10 to 200 reals per entity, sizes teaching each other up to 25 dims (docs/med.md).

    Pools of 500, corrected, and a rate of 0.5 with linear decay: docs/med.md, "Few dims against pools".
    """
    return replace(
        codex_s_together(),
        sizes=[5, 16, 25, 50, 100],
        trunk=25,
        size_weights=[],
        n3_sizes=n3_sizes,
        negatives="shared",
        num_negatives=500,
        logq_correction=True,
        per_device_train_batch_size=500,
        num_train_epochs=epochs,
        output_dir=f"runs/{graph}-together",
    )


def curve_on_gpu(graph: str, n3_sizes: list[float], epochs: int) -> Config:
    """The same up to 1,000 reals, with more queries and larger pools; minutes of a GPU."""
    return replace(
        curve(graph, n3_sizes, epochs),
        sizes=[5, 16, 25, 50, 100, 500],
        num_negatives=2000,
        per_device_train_batch_size=1000,
        output_dir=f"runs/{graph}-together-gpu",
    )


def paper(model: str, margin: float, sizes: list[int] | None = None) -> Config:
    """The paper's training: 64 sizes, 64 uniform negatives, bce, Adam, linear decay, learnable weights.

    Learning rates and margins are not in the paper; these are RotatE's (arXiv 1902.10197, Table 13).
    """
    return Config(
        model=model,
        margin=margin,
        sizes=sizes or list(range(10, 641, 10)),
        reciprocal=False,
        loss="bce",
        mutual=1.0,
        mutual_form="huber-sigmoid",
        learnable_weights=True,
        evolution_form="reciprocal",
        reduction="sum",
        n3=0.0,
        negatives="uniform",
        optimizer="adam",
        learning_rate=5e-4,
        lr_scheduler_type="linear",
        per_device_train_batch_size=1024,
        num_train_epochs=1500,
        eval_epochs=50,
        early_stopping_patience=5,
    )


def sampled(model: str, margin: float, **changes: Any) -> Config:
    """Distances trained with self-adversarial negatives, scaled per size, at five sizes.

    Without evolutionary improvement, against which validation chose (docs/results/study.md).
    """
    base = paper(model, margin, [10, 20, 40, 80, 160])
    ours = replace(
        base,
        mutual=0.1,
        w1=0.0,
        w2=0.0,
        learnable_weights=False,
        evolution_form="linear",
        reduction="mean",
        calibration="scale",
        adversarial_temperature=1.0,
        num_negatives=128,
        learning_rate=2e-3,
        per_device_train_batch_size=512,
        num_train_epochs=40,
        eval_epochs=10,
        early_stopping_patience=0,
    )
    return replace(ours, **changes)


def codex_s_distance(model: str) -> Config:
    """CoDEx-S with a distance; margin and rate are what validation chose (docs/results/kge.md)."""
    return sampled(model, 6.0, learning_rate=1e-2, output_dir=f"runs/codex-s-{model}")


def pooled(epochs: int, **changes: Any) -> Config:
    """ComplEx at a scale for two cores: four sizes, softmax against a shared pool of 1,000 entities."""
    base = Config(
        sizes=[8, 16, 32, 64],
        negatives="shared",
        num_negatives=1000,
        per_device_train_batch_size=500,
        num_train_epochs=epochs,
    )
    return replace(base, **changes)


def full(**changes: Any) -> Config:
    """ComplEx-N3 at the ranks of facebookresearch/kbc, softmax against every entity; for a GPU."""
    base = Config(
        sizes=[5, 8, 16, 25, 50, 100, 500],
        per_device_train_batch_size=1000,
        num_train_epochs=50,
        early_stopping_patience=3,
    )
    return replace(base, **changes)


PRESETS: dict[str, Callable[[], Config]] = {
    "unicode-complex-med": unicode_complex_med,
    "codex-s-complex-med": lambda: codex_s("complex", 0.03),
    "codex-s-complex-together": codex_s_together,
    "codex-s-distmult-med": lambda: codex_s("distmult", 0.03),
    "codex-s-simple-med": lambda: codex_s("simple", 0.01),
    "codex-s-transe-med": lambda: codex_s_distance("transe-l1"),
    "codex-s-rotate-med": lambda: codex_s_distance("rotate"),
    "codex-s-pairre-med": lambda: codex_s_distance("pairre"),
    "wn18rr-complex-med": lambda: pooled(15, n3=0.05, output_dir="runs/wn18rr-complex"),
    "fb15k-237-complex-med": lambda: pooled(5, n3=0.05, output_dir="runs/fb15k-237-complex"),
    "wn18rr-complex-together": lambda: curve("wn18rr", [0.02, 0.05, 0.05, 0.1, 0.1], 20),
    "fb15k-237-complex-together": lambda: curve("fb15k-237", [0.02, 0.04, 0.04, 0.05, 0.05], 7),
    "wn18rr-complex-together-gpu": lambda: curve_on_gpu("wn18rr", [0.01, 0.06, 0.08, 0.1, 0.1, 0.1], 40),
    "fb15k-237-complex-together-gpu": lambda: curve_on_gpu(
        "fb15k-237", [0.01, 0.04, 0.04, 0.05, 0.05, 0.05], 20
    ),
    "wn18rr-complex-med-full": lambda: full(n3=0.1, output_dir="runs/wn18rr-complex-full"),
    "fb15k-237-complex-med-full": lambda: full(n3=0.05, output_dir="runs/fb15k-237-complex-full"),
    "wn18rr-rotate-med": lambda: sampled("rotate", 6.0, calibration="fixed", output_dir="runs/wn18rr-rotate"),
    "fb15k-237-rotate-med": lambda: sampled(
        "rotate", 9.0, calibration="fixed", output_dir="runs/fb15k-237-rotate"
    ),
    "wn18rr-transe-med": lambda: sampled("transe-l1", 6.0, output_dir="runs/wn18rr-transe"),
    "fb15k-237-transe-med": lambda: sampled("transe-l1", 9.0, output_dir="runs/fb15k-237-transe"),
    "wn18rr-rotate-paper": lambda: paper("rotate", 6.0),
    "fb15k-237-rotate-paper": lambda: paper("rotate", 9.0),
    "wn18rr-transe-paper": lambda: paper("transe-l1", 6.0),
    "fb15k-237-transe-paper": lambda: paper("transe-l1", 9.0),
    "wn18rr-simple-paper": lambda: paper("simple", 0.0),
    "fb15k-237-simple-paper": lambda: paper("simple", 0.0),
    "wn18rr-pairre-paper": lambda: paper("pairre", 6.0, [10, 20, 40, 80, 160, 320, 640]),
    "fb15k-237-pairre-paper": lambda: paper("pairre", 6.0, [10, 20, 40, 80, 160, 320, 640]),
}


def parse_config(arguments: list[str], description: str) -> Config:
    """Read the flags; a preset replaces the defaults.

    Raises:
        ValueError: If the flags contradict each other or what is in the output folder.
    """
    usage = "%(prog)s [--flag value ...]; --help explains every flag"
    parser = HfArgumentParser(Config, description=description, usage=usage, allow_abbrev=False)
    chosen = parser.parse_known_args(arguments)[0].preset
    if chosen is not None:
        if chosen not in PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {chosen!r}")
        parser.set_defaults(**asdict(PRESETS[chosen]()))
    config: Config = parser.parse_args_into_dataclasses(arguments)[0]
    wrong = [*contradictions(config), *conflicts_on_disk(config)]
    if wrong:
        raise ValueError("; ".join(wrong))
    return config
