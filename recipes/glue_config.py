"""Flags of recipes/glue.py, named as in Hugging Face's run_glue_no_trainer where it has them.

Defaults are that script's unless the help text names another source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from croppable.text.glue import TASKS

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
POSITIVE = (
    "learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "reorder_examples", "temperature", "max_train_samples", "max_eval_samples",
)  # fmt: skip
NOT_NEGATIVE = (
    "max_train_steps", "eval_epochs", "early_stopping_patience", "checkpointing_steps", "latency_repeats",
    "weight_decay", "mutual", "distill", "hidden_distill", "teacher_weight",
)  # fmt: skip
OBJECTIVES = ("med", "nested", "separate", "random")


def flag(default: Any, text: str, choices: tuple[str, ...] = (), bare: Any = None) -> Any:
    """Declare one flag; ``bare`` is its value when it is given without one."""
    metadata: dict[str, Any] = {"help": text}
    if bare is not None:
        metadata |= {"nargs": "?", "const": bare}
    if choices:
        metadata["choices"] = list(choices)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run; written to training_config.json."""

    # model and data
    model_name_or_path: str = flag("google-bert/bert-base-uncased", "Pretrained encoder, folder or Hub name.")
    task_name: str | None = flag(None, f"One of {', '.join(TASKS)}; leave out for a task of your own.")
    train_file: str | None = flag(None, "Local training file: parquet, TSV, CSV or JSON.")
    validation_file: str | None = flag(None, "Local validation file.")
    data_dir: str | None = flag(None, "Folder with <task>/train.* and the validation split.")
    max_train_samples: int | None = flag(None, "Only the first so many training examples.")
    max_eval_samples: int | None = flag(None, "Only the first so many validation examples.")
    max_length: int = flag(128, "Longer texts are cut, counted and reported.")
    ignore_mismatched_sizes: bool = flag(False, "Start a classifier afresh that was made for other labels.")
    # sizes
    sizes: list[int] = flag([], "Heads, ascending; the last is the whole model. Default: quarters.")
    layers: list[int] = flag([], "Keep only these layers, from 0; default all. All sizes share the depth.")
    reorder: bool = flag(True, "Put important channels, heads and neurons first (docs/bert.md).")
    reorder_examples: int = flag(512, "Training examples that importance is measured on.")
    # objective
    objective: str = flag(
        "med", "med; nested: plain mean over sizes; separate: one run per size; random: one size a step.",
        OBJECTIVES,
    )  # fmt: skip
    mutual: float = flag(0.1, "Weight of mutual learning between neighbouring sizes; 0 is off (paper: 1).")
    mutual_form: str = flag(
        "kl", "Distance between neighbours; regression uses huber.", ("kl", "huber", "huber-sigmoid")
    )
    teach_down: bool = flag(True, "Only the smaller of two neighbours learns from the pair.")
    w1: float = flag(1.0, "Weight of what the next smaller size got wrong; 0 is off (paper: starts at 1).")
    w3: float = flag(0.0, "Dynamic loss weights exp(w3 d/D); 0 is off (paper: starts at 1).")
    learnable_weights: bool = flag(False, "Train w1 and w3 (paper: yes; their loss gradient has one sign).")
    size_weights: list[float] = flag(
        [], "A constant weight per size; default all 1. Few steps: larger for small sizes (docs/bert.md)."
    )
    distill: float = flag(
        0.0,
        "Weight of in-place distillation from the largest size; 0 is off, --distill alone is 1.",
        bare=1.0,
    )
    hidden_distill: float = flag(
        0.0, "Weight of hidden-state distillation from the largest; 0 is off, alone it is 1.", bare=1.0
    )
    teacher_name_or_path: str | None = flag(None, "A fine-tuned teacher; its outputs are computed once.")
    teacher_weight: float = flag(1.0, "Weight of the distance to the teacher, if there is one.")
    temperature: float = flag(1.0, "Temperature of the teacher's softmax.")
    schedule: str = flag(
        "auto", "Sizes per step; auto: all up to four, else the largest and a random pair.",
        ("auto", "all", "pair"),
    )  # fmt: skip
    largest_first: float = flag(
        0.0, "Share of the steps in which the largest size trains alone, before all do (docs/bert.md)."
    )
    # optimisation
    learning_rate: float = flag(5e-5, "Peak learning rate of AdamW.")
    weight_decay: float = flag(0.0, "Not applied to biases and LayerNorms.")
    num_train_epochs: int = flag(3, "Epochs.")
    max_train_steps: int = flag(0, "Optimizer steps in all; 0: by epochs.")
    per_device_train_batch_size: int = flag(
        32, "Rows per process and micro-batch (BERT, appendix A.3: 16, 32)."
    )
    per_device_eval_batch_size: int = flag(64, "Rows per process in evaluation.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches per optimizer step.")
    warmup_ratio: float = flag(
        0.1, "Share of the steps with a rising rate (BERT, appendix A.2); then linear decay."
    )
    max_grad_norm: float | None = flag(1.0, "Clip the global gradient norm (BERT: 1).")
    mixed_precision: str = flag("no", "bf16 needs a device with bf16 units.", ("no", "bf16", "fp16"))
    seed: int = flag(0, "Seed of the classifier, dropout and the order of the examples.")
    # evaluation
    eval_epochs: int = flag(0, "Epochs between evaluations, the best is kept; 0: only at the end, as it is.")
    early_stopping_patience: int = flag(0, "Evaluations without a better mean over sizes before stopping.")
    latency_repeats: int = flag(10, "Timed forwards per size and batch; 0 measures no latency.")
    # output
    output_dir: str = flag("runs/glue", "Where everything is written.")
    overwrite_output_dir: bool = flag(False, "Write into a folder that holds something already.")
    save_crops: bool = flag(True, "Write a subfolder width-* per size, each a plain model.")
    export_onnx: bool = flag(False, "Write every crop as ONNX and int8 ONNX too (extra onnx).")
    checkpointing_steps: int = flag(0, "Steps between training states; 0: none but when interrupted.")
    checkpoints_total_limit: int = flag(2, "Training states kept, at least 2.")
    resume_from_checkpoint: str | None = flag(None, "'latest', or a folder of training states to go on from.")
    report_to: str = flag("none", "Tracker for Accelerate.", ("none", "tensorboard", "wandb"))
    push_to_hub: bool = flag(False, "Upload the finished folder.")
    hub_model_id: str | None = flag(None, "Repository, name/model; needed to upload.")
    hub_private_repo: bool = flag(False, "Make the repository private.")
    license: str | None = flag(None, "Licence of the result for its card, as the Hub knows licences.")


def validate(config: Config) -> None:
    """Refuse contradictions before anything is read or written, all of them at once."""
    wrong = []
    if sorted(set(config.sizes)) != config.sizes or min(config.sizes, default=1) < 1:
        wrong.append(f"--sizes must be positive and strictly increasing, got {config.sizes}")
    if config.push_to_hub and not config.hub_model_id:
        wrong.append("--push_to_hub needs --hub_model_id name/model")
    given = {n: v for n in POSITIVE if (v := getattr(config, n)) is not None}
    wrong += [f"--{name} must be positive, got {value}" for name, value in given.items() if value <= 0]
    counts = {name: getattr(config, name) for name in NOT_NEGATIVE}
    wrong += [f"--{name} must not be negative, got {value}" for name, value in counts.items() if value < 0]
    if not 0 <= config.warmup_ratio < 1:
        wrong.append(f"--warmup_ratio must be from 0 to below 1, got {config.warmup_ratio}")
    if not 0 <= config.largest_first < 1:
        wrong.append(f"--largest_first must be from 0 to below 1, got {config.largest_first}")
    if config.largest_first and config.objective == "separate":
        wrong.append("--objective separate trains every size by itself: there is no --largest_first")
    if config.checkpoints_total_limit < 2:
        wrong.append(f"--checkpoints_total_limit must be at least 2, got {config.checkpoints_total_limit}")
    if config.early_stopping_patience and not config.eval_epochs:
        wrong.append("--early_stopping_patience needs --eval_epochs")
    if config.objective in ("separate", "random") and (config.distill or config.hidden_distill):
        wrong.append(
            f"--objective {config.objective} runs one size a step: it cannot distill from the largest"
        )
    needed = ONNX_PACKAGES if config.export_onnx else ()
    needed += () if config.report_to == "none" else (config.report_to,)
    if absent := [name for name in needed if find_spec(name) is None]:
        wrong.append(f"not installed, but needed for these flags: {', '.join(absent)} (pip install)")
    output = Path(config.output_dir)
    occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if occupied and not (config.overwrite_output_dir or config.resume_from_checkpoint):
        wrong.append(f"{output} is not empty: pass --overwrite_output_dir, or another --output_dir")
    resume = config.resume_from_checkpoint
    if resume not in (None, "latest") and not Path(resume).is_dir():
        wrong.append(f"--resume_from_checkpoint must be 'latest' or a folder, got {resume}")
    if wrong:
        raise ValueError("; ".join(wrong))
