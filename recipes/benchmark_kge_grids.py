"""The tables of recipes/benchmark_kge.py as data: graphs, lines, their flags for recipes/kge.py, and seeds.

Nothing here runs or reads anything.
"""

from __future__ import annotations

from itertools import takewhile

from benchmark_kge_lines import CUTS, NAMES, STUDENTS, Grid, line, searched

# Found on the validation split of CoDEx-S (docs/med.md).
OURS = ("--relations", "own", "--reach", "0.25", "--n3_balance", "2.3")
# The whole of the method against sampled negatives, of which the presets leave a part out (docs/med.md).
WHOLE = ("--w1", "1", "--w2", "1", "--calibration", "scale")
DOUBLING = ("10", "20", "40", "80", "160", "320", "640")


def complex_grid(
    graph: str,
    preset: str,
    n3: dict[str, float],
    *flags: str,
    seeds: tuple[int, ...] = (0,),
    baselines: tuple[str, ...] = (),
    name: str = "",
) -> Grid:
    """ComplEx against the softmax: separate training, plain nested sum and ours, each with every N3.

    A rotation changes the scores of ComplEx: the line of PCA shows what it does all the same.
    """
    common = ("--preset", preset, *flags)
    lines = [x for name in ("separate", "nested", "med") for x in searched(name, common, n3)]
    lines += [x for name in ("ours", "taught") for x in searched(name, (*common, *OURS), n3)]
    for other in baselines:
        flags = (*common, "--rotate_anyway", "True") if other == "pca" else common
        lines += [line(other, *flags)] if other in CUTS else searched(other, common, n3)
    title = f"{name or graph}, ComplEx"
    return Grid(name=name or graph, title=title, graph=graph, lines=tuple(lines), seeds=seeds)


def tuned_grid() -> Grid:
    """ComplEx on CoDEx-S at the learning rate and with the N3 of every size that validation chose."""
    common = ("--preset", "codex-s-complex-med", "--learning_rate", "0.2", "--eval_epochs", "2")
    linear = ("--lr_scheduler_type", "linear")
    fast = ("--learning_rate", "0.5", *linear)
    own = ("--n3_sizes", "0.05", "0.03", "0.01", "0.006")
    slow = ("--learning_rate", "0.2", "--lr_scheduler_type", "constant")
    preset = ("--preset", "codex-s-complex-together", *slow, "--eval_epochs", "2")
    strong = ("--n3_sizes", "0.028", "0.03", "0.02", "0.012", "0.006")
    lines = (
        line("separate", *common, *own, "0.006", title=f"{NAMES['separate']}, N3 of every size"),
        line("separate", *common, *linear, *own, "0.01", name="separate-linear",
             title=f"{NAMES['separate']}, N3 of every size, linear decay"),
        *(line(objective, *common, *decay, name=f"{objective}{suffix}", title=f"{NAMES[objective]}{title}")
          for objective in ("nested", "med")
          for suffix, title, decay in (("", "", ()), ("-linear", ", linear decay", linear),
                                       ("-fast", ", rate 0.5, linear decay", fast))),
        line("together", *preset, *linear, "--trunk", "0", "--reach", "0.25",
             "--size_weights", "1", "1", "1", "1", "1",
             "--n3_sizes", "0.04", "0.03", "0.01", "0.006", "0.004",
             title=f"{NAMES['together']}, linear decay"),
        line("trunk", *preset, *linear, *strong, title=f"{NAMES['trunk']}, linear decay"),
        line("trunk", *preset, *strong, name="trunk-constant"),
        line("trunk", *preset, name="trunk-weak", title=f"{NAMES['trunk']}, weaker N3 from 40 dims on"),
        line("separate", *common, *fast, *own, "0.01", name="separate-fast",
             title=f"{NAMES['separate']}, N3 of every size, rate 0.5, linear decay"),
        line("trunk", *preset, *fast, name="trunk-fast",
             title=f"{NAMES['trunk']}, weaker N3 from 40 dims on, rate 0.5, linear decay"),
    )  # fmt: skip
    return Grid(name="codex-s-tuned", title="codex-s, ComplEx, rate and N3 tuned", graph="codex-s",
                lines=lines, seeds=(0, 1, 2, 3))  # fmt: skip


def curve_grid(graph: str, *flags: str, gpu: bool = False) -> Grid:
    """ComplEx from 10 reals per entity on, one run of the preset, corrected; on a CPU also without."""
    scale, reals, where = ("-gpu", "1,000", ", scale of minutes of a GPU") if gpu else ("", "200", "")
    common = ("--preset", f"{graph}-complex-together{scale}", *flags)
    apart = ("--trunk", "0", "--relations", "shared", "--reach", "1")
    suffixes = {True: ("", "")} if gpu else {False: ("", ""), True: ("-logq", ", logQ correction")}
    lines = tuple(
        line(objective, *common, *(() if objective == "trunk" else apart), "--logq_correction", str(logq),
             name=f"{objective}{name}", title=f"{NAMES[objective]}{title}")
        for objective in ("separate", "nested", "trunk")
        for logq, (name, title) in suffixes.items()
    )  # fmt: skip
    title = f"{graph}, ComplEx, 10 to {reals} reals{where}"
    return Grid(name=f"{graph}-curve{scale}", title=title, graph=graph, lines=lines)


def twice(budget: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags for twice the epochs with as many validations.

    n sizes that double, trained separately, take 2 - 2^(1-n) times the operations of the last one, which are
    those of a nested run: with twice the epochs both take about the same.
    """
    flags = ("--num_train_epochs", "--eval_epochs")
    return tuple(x for flag in flags for x in (flag, str(2 * int(budget[budget.index(flag) + 1]))))


def weighed_up(budget: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags for small sizes that count for more; of those tried on FB15k-237 (docs/med.md)."""
    first = budget.index("--sizes") + 1
    others = takewhile(str.isdigit, budget[first + 2 :])
    return ("--size_weights", "3", "1.5", *("1" for _ in others))


def distance_grid(graph: str, score: str, scale: str, budget: tuple[str, ...]) -> Grid:
    """A score of the paper: its training (paper mode) and ours, the other lines with either's settings.

    Ours for scores without a preset of their own is RotatE's with another score and margin.
    """
    model, margin, own = SCORES[score]
    paper = ("--preset", f"{graph}-{score}-paper", *budget)
    ours = ("--preset", f"{graph}-{own}-med", "--model", model, "--margin", margin[graph], *WHOLE,
            *budget)  # fmt: skip
    per_size = ("--sizes", *DOUBLING) if scale == "paper" else ()
    scales = {"paper": "the paper", "paper-gpu": "minutes of a GPU", "paper-small": "a CPU"}
    fixed = (*ours, "--calibration", "fixed")
    rate = float(budget[budget.index("--learning_rate") + 1])
    rates = {"slow": (rate / 4, "rate / 4"), "fast": (rate * 4, "rate x 4")}
    fast, faster = rates["fast"]
    title, nested = NAMES["separate"], NAMES["nested"]
    lines = (
        line("separate", *paper, *per_size, title=f"{title}, settings of the paper"),
        line("separate", *ours, *per_size, name="separate-ours", title=f"{title}, settings of ours"),
        line("separate", *fixed, *per_size, name="separate-fixed", title=f"{title}, ours, fixed scale"),
        line("separate", *ours, *per_size, "--alone_scale", "one", name="separate-unscaled",
             title=f"{title}, ours, scale 1 at first"),
        line("nested", *paper, name="nested-paper", title=f"{nested}, settings of the paper"),
        line("nested", *ours, title=f"{nested}, settings of ours"),
        line("nested", *fixed, name="nested-fixed", title=f"{nested}, fixed scale"),
        line("med", *paper, name="med-paper", title=NAMES["med-paper"], family="med-paper"),
        line("med", *ours),
        line("med", *fixed, "--w1", "0", "--w2", "0", name="med-fixed",
             title=f"{NAMES['med']}, fixed scale, without evolutionary improvement"),
        *(line(objective, *ours, *sizes, "--learning_rate", f"{value:g}", name=f"{objective}-{name}",
               title=f"{called}, ours, {what}")
          for name, (value, what) in rates.items()
          for objective, called, sizes in (("separate", title, per_size), ("nested", nested, ()),
                                           ("med", "MED", ()))),
        *(line(family, *flags, *twice(budget), *weights, name=f"{family}{suffix}",
               title=f"{NAMES[family]}, {what}")
          for family, weights in (("long", ()), ("weighed", weighed_up(budget)))
          for suffix, what, flags in (("", "settings of ours", ours), ("-fixed", "fixed scale", fixed),
                                      ("-fast", faster, (*ours, "--learning_rate", f"{fast:g}")))),
        line("ext", *paper, *per_size),
        line("dualde", *paper, *per_size),
    )  # fmt: skip
    return Grid(
        name=f"{graph}-{score}-{scale}",
        title=f"{graph}, {score}, scale of {scales[scale]}",
        graph=graph,
        lines=lines,
        shown=() if scale == "paper-small" else tuple(map(int, DOUBLING)),
    )


def rotatable_grid() -> Grid:
    """The score whose dims PCA may rotate: TransE with the Euclidean distance."""
    common = ("--preset", "wn18rr-transe-med", "--model", "transe-l2", "--margin", "3", *WHOLE,
              "--num_negatives", "32", "--learning_rate", "1e-2",
              "--num_train_epochs", "20", "--eval_epochs", "4")  # fmt: skip
    lines = tuple(line(objective, *common) for objective in ("separate", "nested", "med", *CUTS))
    return Grid(name="codex-s-transe-l2", title="codex-s, TransE (Euclidean)", graph="codex-s", lines=lines)


def cuts_grid(score: str, margin: str) -> Grid:
    """What every cut of a full model leaves of a score; a rotation keeps the Euclidean distance alone."""
    common = ("--preset", "wn18rr-rotate-med", "--model", score, "--margin", margin, "--calibration", "scale",
              "--sizes", "4", "8", "16", "32", "--num_train_epochs", "30", "--eval_epochs", "10",
              "--learning_rate", "0.01")  # fmt: skip
    rotated = common if score == "transe-l2" else (*common, "--rotate_anyway", "True")
    lines = tuple(
        line(objective, *(rotated if objective == "pca" else common))
        for objective in ("separate", "nested", *CUTS)
    )
    return Grid(name=f"umls-{score}", title=f"umls, {score}", graph="umls", lines=lines, seeds=(0, 1, 2))


def tuning_grid() -> Grid:
    """The settings that decide most, for every score; validation chooses those of the codex-s presets."""
    products = [
        line("med", "--preset", "codex-s-complex-med", "--model", model, "--num_train_epochs", "10",
             "--n3", n3, name=f"{model}-n3-{n3}", title=f"{model}, N3 {n3}", family=model)
        for model in ("complex", "distmult", "simple")
        for n3 in ("0.1", "0.03", "0.01")
    ]  # fmt: skip
    # PairRE has no compiled kernel: a quarter of the negatives and of the epochs.
    quarter = ("--num_negatives", "32", "--num_train_epochs", "5", "--eval_epochs", "5")
    distances = [
        line("med", "--preset", "wn18rr-rotate-med", "--model", model, *WHOLE, "--num_train_epochs", "20",
             "--margin", margin, "--learning_rate", rate, *(quarter if model == "pairre" else ()),
             name=f"{model}-margin-{margin}-rate-{rate}",
             title=f"{model}, margin {margin}, learning rate {rate}", family=model)
        for model in ("transe-l1", "rotate", "pairre")
        for margin in ("6", "12")
        for rate in ("2e-3", "1e-2")
    ]  # fmt: skip
    lines = (*products, *distances)
    return Grid(name="codex-s-tuning", title="codex-s, settings of every score", graph="codex-s", lines=lines)


# Score of the paper: name here, margin per graph (croppable's presets), whose preset ours is made of.
SCORES = {
    "transe": ("transe-l1", {"wn18rr": "6", "fb15k-237": "9"}, "transe"),
    "simple": ("simple", {"wn18rr": "0", "fb15k-237": "0"}, "rotate"),
    "rotate": ("rotate", {"wn18rr": "6", "fb15k-237": "9"}, "rotate"),
    "pairre": ("pairre", {"wn18rr": "6", "fb15k-237": "6"}, "rotate"),
}
# 64 sizes, but for the score that is not additive and would take 64 times as long.
SIXTY_FOUR = tuple(str(size) for size in range(10, 641, 10))
COMMON = ("--per_device_train_batch_size", "1024", "--num_negatives", "64", "--learning_rate", "5e-4",
          "--num_train_epochs", "1500", "--eval_epochs", "50", "--early_stopping_patience", "5")  # fmt: skip
PAPER = {score: ("--sizes", *(DOUBLING if score == "pairre" else SIXTY_FOUR), *COMMON) for score in SCORES}


def small(epochs: int, eval_epochs: int, *sizes: str) -> tuple[str, ...]:
    """Return the budget of a table at the scale of a CPU."""
    return ("--sizes", *sizes, "--per_device_train_batch_size", "512", "--num_negatives", "16",
            "--learning_rate", "1e-2", "--num_train_epochs", str(epochs), "--eval_epochs", str(eval_epochs),
            "--early_stopping_patience", "0")  # fmt: skip


# Two to four minutes for a cell of one run on one thread of a 2-core machine. But PairRE has no compiled
# kernel to be ranked by: fewer sizes and epochs, and a single validation at the end.
SMALL = {
    ("wn18rr", score): small(5, 0, *DOUBLING[:4]) if score == "pairre" else small(15, 5, *DOUBLING[:5])
    for score in SCORES
} | {
    ("fb15k-237", score): small(2, 0, *DOUBLING[:4]) if score == "pairre" else small(8, 4, *DOUBLING[:5])
    for score in SCORES
}

GPU = ("--sizes", *DOUBLING, "--per_device_train_batch_size", "1024", "--num_negatives", "64",
       "--learning_rate", "5e-3", "--num_train_epochs", "40", "--eval_epochs", "20",
       "--early_stopping_patience", "0")  # fmt: skip

ADAGRAD = ("--optimizer", "adagrad", "--learning_rate", "0.1")  # whose steps pools shorten most


def pool_grid(graph: str, name: str = "pool", *optimizer: str) -> Grid:
    """Negatives of each triple against pools that a batch, or runs of its queries, share; the same steps."""
    common = ("--preset", f"{graph}-transe-med", *WHOLE, *SMALL[graph, "transe"], *optimizer, "--negatives")
    kinds = {
        "each-64": ("uniform --num_negatives 64", "64 negatives of each triple"),
        "pool-64": ("shared --num_negatives 64", "a pool of 64"),
        "pools-64": ("shared --num_negatives 64 --pool_queries 128", "pools of 64, each for 128 queries"),
        "pool-256": ("shared --num_negatives 256", "a pool of 256"),
    }
    lines = tuple(
        line("med", *common, *flags.split(), name=name, title=title, family=name)
        for name, (flags, title) in kinds.items()
    )
    title = f"{graph}, TransE: shared negatives" + (", Adagrad" if optimizer else "")
    return Grid(name=f"{graph}-{name}", title=title, graph=graph, lines=lines)


TABLES = [
    complex_grid(
        "codex-s", "codex-s-complex-med", {"": 0.03, "-weak": 0.01, "-weaker": 0.003}, "--eval_epochs", "2",
        seeds=(0, 1), baselines=(*CUTS, *STUDENTS),
    ),
    tuned_grid(),
    rotatable_grid(),
    tuning_grid(),
    *(cuts_grid(score, margin)
      for score, margin in (("transe-l2", "6"), ("transe-l1", "6"), ("rotate", "6"), ("complex", "0"))),
    complex_grid("wn18rr", "wn18rr-complex-med", {"-strong": 0.15, "": 0.05, "-weak": 0.015},
                 "--eval_epochs", "3"),
    complex_grid("fb15k-237", "fb15k-237-complex-med", {"-strong": 0.15, "": 0.05, "-weak": 0.015},
                 "--eval_epochs", "1"),
    *(pool_grid(graph) for graph in ("wn18rr", "fb15k-237")),
    *(pool_grid(graph, "pool-adagrad", *ADAGRAD) for graph in ("wn18rr", "fb15k-237")),
    *(distance_grid(graph, score, "paper-small", budget) for (graph, score), budget in SMALL.items()),
    *(distance_grid(graph, score, "paper-gpu", GPU) for graph, score in SMALL),
    *(distance_grid(graph, score, "paper", PAPER[score]) for graph, score in SMALL),
    curve_grid("wn18rr", "--eval_epochs", "5"),
    curve_grid("fb15k-237", "--eval_epochs", "2"),
    curve_grid("wn18rr", "--eval_epochs", "20", gpu=True),
    curve_grid("fb15k-237", "--eval_epochs", "10", gpu=True),
    # The ranks of facebookresearch/kbc, against every entity; for a GPU.
    complex_grid("wn18rr", "wn18rr-complex-med-full", {"": 0.1, "-weak": 0.05}, name="wn18rr-full"),
    complex_grid("fb15k-237", "fb15k-237-complex-med-full", {"": 0.05, "-weak": 0.02}, name="fb15k-237-full"),
    # Seconds: to try the recipe out, and for its tests.
    complex_grid(
        "umls", "codex-s-complex-med", {"": 0.01, "-weak": 0.001}, "--sizes", "2", "4", "8",
        "--num_train_epochs", "2", "--eval_epochs", "1", "--compile", "none", baselines=("ext", "dualde"),
    ),
]  # fmt: skip
GRIDS = {grid.name: grid for grid in TABLES}
