"""The training runs of recipes/study_kge.py as data, in the form of recipes/benchmark_kge_grids.py."""

from __future__ import annotations

from benchmark_kge_grids import SMALL, WHOLE
from benchmark_kge_lines import Grid, line

# Half the epochs of the benchmark: what differs between the lines shows by then.
SOFTMAX = ("--preset", "codex-s-complex-med", "--num_train_epochs", "10", "--eval_epochs", "5")
SAMPLED = ("--preset", "wn18rr-rotate-med", *WHOLE, *SMALL["wn18rr", "rotate"])
EIGHT_SIZES = tuple(2**k for k in range(1, 9))

ABLATION = Grid(
    name="ablation",
    title="Ablation: CoDEx-S, ComplEx, softmax over all entities",
    graph="codex-s",
    lines=(
        line("med", *SOFTMAX, title="ours"),
        line("med", *SOFTMAX, "--mutual", "0", name="no-mutual", title="without mutual learning"),
        line("med", *SOFTMAX, "--w1", "0", name="no-evolution", title="without evolutionary improvement"),
        line("med", *SOFTMAX, "--w3", "0", name="no-dynamic", title="without dynamic loss weights"),
        line("med", *SOFTMAX, "--n3_balance", "0", name="even-n3", title="N3 even over segments"),
        line("med", *SOFTMAX, "--learnable_weights", "True", name="learnable", title="w1 and w3 learnable"),
        line("nested", *SOFTMAX),
    ),
    seeds=(0, 1),
)
ABLATION_SAMPLED = Grid(
    name="ablation-sampled",
    title="Ablation: WN18RR, RotatE, sampled negatives",
    graph="wn18rr",
    lines=(
        line("med", *SAMPLED, title="ours"),
        line("med", *SAMPLED, "--mutual", "0", name="no-mutual", title="without mutual learning"),
        line("med", *SAMPLED, "--w1", "0", "--w2", "0", name="no-evolution",
             title="without evolutionary improvement"),
        line("med", *SAMPLED, "--w3", "0", name="no-dynamic", title="without dynamic loss weights"),
        line("med", *SAMPLED, "--calibration", "none", name="no-scale", title="without a scale per size"),
        line("med", *SAMPLED, "--adversarial_temperature", "0", name="no-adversarial",
             title="without self-adversarial negatives"),
        line("med", *SAMPLED, "--learnable_weights", "True", name="learnable",
             title="w1, w2 and w3 learnable"),
        line("med", *SAMPLED, "--learnable_weights", "True", "--evolution_form", "reciprocal",
             name="learnable-reciprocal", title="the same with exp(w1 / s), as in the paper"),
        line("nested", *SAMPLED),
    ),
)  # fmt: skip
GAP = Grid(
    name="gap",
    title="Gap between neighbours",
    graph="codex-s",
    lines=tuple(
        line("med", *SOFTMAX, "--sizes", *map(str, sizes), name=name, title=title)
        for name, title, sizes in (
            ("n64", "n = 64, 4 dims apart", range(4, 257, 4)),
            ("n8", "n = 8, 2 times apart", EIGHT_SIZES),
            ("n4", "n = 4, 4 times apart", EIGHT_SIZES[1::2]),
            ("n3", "n = 3, 8 times apart", EIGHT_SIZES[1::3]),
        )
    ),
    shown=EIGHT_SIZES[1:],
)
_FB13 = ("--preset", "wn18rr-complex-med", "--sizes", "10", "20", "40", "80", "--num_negatives", "512",
         "--per_device_train_batch_size", "1024", "--n3", "0.003", "--num_train_epochs", "3",
         "--eval_epochs", "3")  # fmt: skip
FB13 = Grid(
    name="fb13",
    title="FB13, ComplEx",
    graph="fb13",
    lines=tuple(line(objective, *_FB13) for objective in ("separate", "nested", "med")),
)
STUDY_GRIDS = {grid.name: grid for grid in (ABLATION, ABLATION_SAMPLED, GAP, FB13)}
