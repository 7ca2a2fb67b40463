"""Flags of recipes/kge.py. Sources of defaults are named in each help text; presets are in kge_presets.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from croppable.kge.files import validate_column_order
from croppable.kge.sampling import RUN
from croppable.kge.scores import SCORES

STATES = "training_states"  # inside the output folder
EXTRACTED = ("ext", "ext-l", "ext-v", "pca")  # one model of the largest size, made smaller
DISTILLED = ("bkd", "ta", "dualde")  # one model per size, taught by a larger one
PER_SIZE = ("separate", *DISTILLED)
TAUGHT = ("med", "nested")  # one run of all sizes, which may have a teacher
# The smallest value of every whole number but the seed.
LEAST = {
    "num_negatives": 1,
    "pool_queries": 0,
    "per_device_train_batch_size": 1,
    "num_train_epochs": 1,
    "max_train_steps": 0,
    "eval_epochs": 0,
    "early_stopping_patience": 0,
    "checkpointing_steps": 0,
    "checkpoints_total_limit": 2,
}


def flag(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """Declare one flag."""
    metadata: dict[str, Any] = {"help": text}
    if choices:
        metadata["choices"] = list(choices)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run; written to training_config.json."""

    preset: str | None = flag(None, "Start from a named preset; other flags override it.")
    # data
    data_dir: str | None = flag(
        None, "Folder with train, valid and test (.tsv, .txt, .csv, .parquet, also .gz)."
    )
    dataset_name: str | None = flag(
        None,
        "Hub dataset, loaded by `datasets`. Without it and without data_dir: the embedded Unicode graph.",
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub dataset.")
    column_order: str = flag("hrt", "Order of the columns: h head, r relation, t tail.")
    # model
    model: str = flag("complex", "Score function.", tuple(SCORES))
    sizes: list[int] = flag([10, 20, 40, 80, 160], "Sizes in dims, ascending; the last is the full model.")
    margin: float = flag(0.0, "Constant added to minus a distance (gamma of RotatE; 0 for products).")
    reciprocal: bool = flag(True, "A second set of relations answers head queries (kbc: on).")
    relations: str = flag(
        "shared", "own: a relation table per size over shared entities; a step then costs the sum of sizes.",
        ("shared", "own"),
    )  # fmt: skip
    calibration: str = flag("none", "Numbers per size; scale and affine are learnt.",
                            ("none", "fixed", "scale", "affine"))  # fmt: skip
    alone_scale: str = flag(
        "among", "Scale of a distance of a size trained alone: the one it has among all sizes, or 1.",
        ("among", "one"),
    )  # fmt: skip
    init_scale: float | None = flag(
        None, "Spread of the initial tables; default: kbc 1e-3, RotatE (margin+2)/dims."
    )
    # objective
    objective: str = flag(
        "med",
        "med; nested: plain sum over sizes (Matryoshka); separate: one training run per size; baselines "
        "(docs/baselines.md): ext, ext-l, ext-v, pca cut the largest size, bkd, ta, dualde distil it.",
        ("med", "nested", *PER_SIZE, *EXTRACTED),
    )  # fmt: skip
    teacher: str | None = flag(
        None,
        "Checkpoint of the largest size or more. Baselines train one first where none is given; to med and "
        "nested it adds soft labels for all sizes.",
    )
    distill_weight: float = flag(1.0, "Weight of the teacher's soft labels (DualDE: 1).")
    distill_temperature: float = flag(1.0, "Temperature of the soft labels (DualDE: 1).")
    rotate_anyway: bool = flag(False, "Let pca rotate dims under a score that this changes.")
    loss: str = flag("softmax", "softmax over the candidates, or binary cross-entropy.", ("bce", "softmax"))
    mutual: float = flag(0.1, "Weight of mutual learning between neighbouring sizes; 0 is off (paper: 1).")
    mutual_form: str = flag("kl", "Distance between neighbours.", ("huber", "huber-sigmoid", "kl"))
    mutual_reduction: str = flag("mean", "Paper: sum, as its formula is written.", ("mean", "sum"))
    teach_down: bool = flag(False, "Detach the larger neighbour: only the smaller one learns from the pair.")
    w1: float = flag(
        1.0, "Evolutionary improvement, positives or whole queries; 0 is off (paper: starts at 1)."
    )
    w2: float = flag(1.0, "Evolutionary improvement, negatives of bce; 0 is off (paper: starts at 1).")
    w3: float = flag(1.0, "Dynamic loss weights exp(w3 d/D); 0 is off (paper: starts at 1).")
    learnable_weights: bool = flag(
        False, "Train w1, w2 and w3, or the weights of dualde (papers: yes; the gradient has one sign)."
    )
    evolution_form: str = flag(
        "linear", "Weights softmax(w error), or exp(w1/sigma(s)) as in the paper.", ("linear", "reciprocal")
    )
    reduction: str = flag(
        "mean", "Over sizes: mean keeps learning rates comparable; paper: sum.", ("mean", "sum")
    )
    size_weights: list[float] = flag([], "Weight of every size's loss, taught or not, N3 apart; empty: 1.")
    adversarial_temperature: float = flag(0.0, "Self-adversarial negatives (RotatE: 0.5 to 1); 0 is off.")
    distill: float = flag(0.0, "Weight of in-place distillation (KL); 0 is off.")
    distill_from: str = flag(
        "largest", "Its detached teacher: the largest size, or the mean of all.", ("largest", "ensemble")
    )
    n3: float = flag(0.03, "Weight of N3 (kbc: 5e-3 to 1e-1; ours tuned on CoDEx-S validation).")
    n3_balance: float = flag(2.0, "Power of the share of sizes that reach a segment, in its N3; 0: even.")
    n3_sizes: list[float] = flag([], "Weight of N3 for every size, in place of n3 and n3_balance.")
    reach: float = flag(
        1.0, "Factor on the gradient of a size per segment that it goes down; 1: the plain sum (docs/med.md)."
    )
    trunk: int = flag(
        0, "Largest size trained as a nested one; segments above are models of their own (docs/med.md)."
    )
    # sampling
    negatives: str = flag(
        "all", "uniform per query, pools shared by queries, or every entity.", ("uniform", "shared", "all")
    )
    num_negatives: int = flag(64, "Negatives per query, or the size of a pool (paper: 64).")
    pool_queries: int = flag(0, "Queries that share one pool, at least 8; 0: the whole batch.")
    logq_correction: bool = flag(
        False, "Let the softmax over sampled negatives stand for the one over all entities (docs/med.md)."
    )
    filter_negatives: bool = flag(False, "Never draw a known true answer as a negative (uniform only).")
    # optimisation
    optimizer: str = flag("adagrad", "adam is fused; kbc uses adagrad.", ("adam", "adagrad"))
    learning_rate: float = flag(0.1, "kbc: 0.1 with adagrad; RotatE: 5e-5 to 1e-4 with adam.")
    lr_scheduler_type: str = flag("constant", "Paper: linear decay.", ("constant", "linear"))
    per_device_train_batch_size: int = flag(
        512, "Queries per process and step (kbc: 100 to 1000; paper: 1024)."
    )
    num_train_epochs: int = flag(20, "An epoch asks each triple for its tail and for its head.")
    max_train_steps: int = flag(0, "Stop after so many steps; 0: by epochs.")
    max_grad_norm: float | None = flag(None, "Clip the global gradient norm.")
    mixed_precision: str = flag("no", "bf16 pays on GPUs only.", ("no", "bf16"))
    compile: str = flag(
        "auto",
        "auto: kernels on CPUs, torch.compile elsewhere; loss: torch.compile.",
        ("auto", "loss", "none"),
    )
    sparse_gradient: str = flag(
        "auto",
        "Gradient of the entity table as touched rows, for adagrad; auto: where that is faster "
        "(docs/performance.md).",
        ("auto", "on", "off"),
    )
    seed: int = flag(0, "Seed of weights, permutations and negatives.")
    # evaluation
    eval_split: str = flag("test", "Split of the final table.", ("valid", "test"))
    eval_epochs: int = flag(5, "Epochs between validations; 0: only at the end.")
    early_stopping_patience: int = flag(
        0, "Validations without a better mean MRR over sizes before stopping; 0: off."
    )
    # output
    output_dir: str = flag("runs/kge", "Where everything is written.")
    overwrite_output_dir: bool = flag(False, "Write into a folder that holds something already.")
    checkpointing_steps: int = flag(0, "Steps between training states; 0: none but when interrupted.")
    checkpoints_total_limit: int = flag(2, "Training states kept, at least 2.")
    resume_from_checkpoint: str | None = flag(None, "'latest', or a folder of training states to go on from.")
    report_to: str = flag("none", "Tracker for Accelerate.", ("none", "tensorboard", "wandb"))
    push_to_hub: bool = flag(False, "Upload the finished checkpoint.")
    hub_model_id: str | None = flag(None, "Repository, name/model; needed to upload.")
    hub_private_repo: bool = flag(False, "Make the repository private.")


def contradictions(config: Config) -> list[str]:
    """Return what is wrong with the flags themselves, all of it at once."""
    wrong = []
    if sorted(set(config.sizes)) != config.sizes or min(config.sizes, default=0) < 1:
        wrong.append(f"--sizes must be positive and strictly increasing, got {config.sizes}")
    wrong += [
        f"--{name} must have one weight for each of {config.sizes}, got {given}"
        for name in ("n3_sizes", "size_weights")
        if (given := getattr(config, name)) and len(given) != len(config.sizes)
    ]
    if config.trunk and not (
        config.trunk in config.sizes[:-1]
        and config.relations == "own"
        and SCORES[config.model].product
        and config.objective in TAUGHT
    ):
        wrong.append(
            f"--trunk must be one of the sizes but the last, with --relations own, a product for --model and "
            f"--objective med or nested: got {config.trunk} of {config.sizes}, {config.relations}, "
            f"{config.model}, {config.objective}"
        )
    if config.data_dir and config.dataset_name:
        wrong.append("give --data_dir or --dataset_name, not both")
    try:
        validate_column_order(config.column_order)
    except ValueError as error:
        wrong.append(f"--{error}")
    if config.filter_negatives and config.negatives != "uniform":
        wrong.append(f"--filter_negatives needs --negatives uniform, got {config.negatives}")
    if config.pool_queries and (config.negatives != "shared" or config.pool_queries < RUN):
        wrong.append(
            f"--pool_queries needs --negatives shared and at least {RUN} queries, got {config.negatives} and "
            f"{config.pool_queries}"
        )
    if config.logq_correction and (config.negatives == "all" or config.loss != "softmax"):
        wrong.append(
            f"--logq_correction needs --loss softmax and --negatives uniform or shared, got {config.loss} "
            f"and {config.negatives}"
        )
    if config.push_to_hub and not config.hub_model_id:
        wrong.append("--push_to_hub needs --hub_model_id name/model")
    if config.push_to_hub and config.objective in PER_SIZE:
        wrong.append(f"--push_to_hub publishes one model: --objective {config.objective} makes one per size")
    for name, least in LEAST.items():
        if getattr(config, name) < least:
            wrong.append(f"--{name} must be at least {least}, got {getattr(config, name)}")
    if config.sparse_gradient == "on" and config.optimizer == "adam":
        wrong.append("--sparse_gradient on needs --optimizer adagrad: adam moves every row at every step")
    wrong += contradictions_of_baselines(config)
    if config.learning_rate <= 0:
        wrong.append(f"--learning_rate must be positive, got {config.learning_rate}")
    if config.max_grad_norm is not None and config.max_grad_norm <= 0:
        wrong.append(
            f"--max_grad_norm must be positive, got {config.max_grad_norm}; leave it out not to clip"
        )
    return wrong


def contradictions_of_baselines(config: Config) -> list[str]:
    """Return what is wrong with the flags of the baselines."""
    wrong = []
    allowed = (*EXTRACTED, *DISTILLED, *TAUGHT)
    if config.teacher and config.objective not in allowed:
        wrong.append(f"--teacher is for --objective {', '.join(allowed)}, got {config.objective}")
    if config.distill_weight < 0:
        wrong.append(f"--distill_weight must not be negative, got {config.distill_weight}")
    if config.distill_temperature <= 0:
        wrong.append(f"--distill_temperature must be positive, got {config.distill_temperature}")
    rotatable = [name for name, score in SCORES.items() if score.rotatable]
    if config.objective == "pca" and config.model not in rotatable and not config.rotate_anyway:
        wrong.append(
            f"--objective pca changes the scores of --model {config.model}, and only those of "
            f"{', '.join(rotatable)} stay: take one of these, or --rotate_anyway to see what it does"
        )
    return wrong


def conflicts_on_disk(config: Config) -> list[str]:
    """Return why this run may not use the folders that it names."""
    output, resume = Path(config.output_dir), config.resume_from_checkpoint
    if output.exists() and not output.is_dir():
        return [f"--output_dir {output} is a file: name a folder"]
    if config.teacher and not Path(config.teacher, "config.json").is_file():
        return [f"--teacher {config.teacher} is no folder with a checkpoint (it has no config.json)"]
    if config.teacher and output.resolve() in (
        Path(config.teacher).resolve(),
        *Path(config.teacher).resolve().parents,
    ):
        return [f"--teacher {config.teacher} lies in --output_dir {output}, which is written anew"]
    if resume is None:
        if output.exists() and any(output.iterdir()) and not config.overwrite_output_dir:
            return [f"{output} is not empty: pass --overwrite_output_dir, or another --output_dir"]
        return []
    states = output / STATES if resume == "latest" else Path(resume)
    finished = config.objective in PER_SIZE and any(output.glob("size-*/config.json"))
    if not (finished or any(states.rglob("step-*"))):
        return [f"--resume_from_checkpoint {resume}: {states} holds no training states; start without it"]
    return []
