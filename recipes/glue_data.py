"""What a run of recipes/glue.py starts from: tokenized data, a pretrained encoder, a teacher's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from glue_config import Config
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from croppable.text.batching import Encoded, collate, encode, length_limit
from croppable.text.encoder import croppable_encoder, with_layers
from croppable.text.evaluation import predict
from croppable.text.glue import Task, load_splits
from croppable.text.reorder import reordered


@dataclass(frozen=True)
class Data:
    """A task, its tokenizer and its tokenized splits."""

    task: Task
    tokenizer: Any
    splits: dict[str, Encoded]

    @property
    def train(self) -> Encoded:
        """The training split."""
        return self.splits["train"]

    @property
    def validation(self) -> dict[str, Encoded]:
        """All other splits, the one that counts first."""
        return {name: split for name, split in self.splits.items() if name != "train"}


def load_data(config: Config, accelerator: Accelerator) -> Data:
    """Load and tokenize the task that the flags name; say what was cut or is empty."""
    task, splits = load_splits(
        config.task_name,
        train_file=config.train_file,
        validation_file=config.validation_file,
        data_dir=config.data_dir,
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
        model_config = AutoConfig.from_pretrained(config.model_name_or_path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"cannot load the model {config.model_name_or_path}: --model_name_or_path must be a folder in "
            f"the transformers layout, or a name on the Hub when it can be reached ({reason})"
        ) from error
    limit = length_limit(tokenizer, model_config, config.max_length)
    encoded = {}
    for name, examples in splits.items():
        kept = examples.head(config.max_train_samples if name == "train" else config.max_eval_samples)
        encoded[name] = encode(kept, tokenizer, limit)
        notes = [f"{len(kept):,} examples", f"{encoded[name].lengths.float().mean():.0f} tokens on average"]
        if encoded[name].truncated:
            notes.append(f"{encoded[name].truncated:,} longer than --max_length {limit} were cut")
        if kept.empty:
            notes.append(f"{kept.empty:,} texts are empty")
        accelerator.print(f"{task.name}/{name}: {', '.join(notes)}")
    return Data(task, tokenizer, encoded)


def load_model(config: Config, data: Data, device: torch.device) -> Any:
    """Load the pretrained encoder with a classifier for the task, croppable."""
    names = data.task.labels or ("score",)
    before = AutoConfig.from_pretrained(config.model_name_or_path)
    if type(before) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise TypeError(
            f"{config.model_name_or_path} is no encoder: '{before.model_type}' models cannot classify texts"
        )
    classifies = any("ForSequenceClassification" in name for name in before.architectures or ())
    if classifies and before.num_labels != len(names) and not config.ignore_mismatched_sizes:
        raise ValueError(
            f"{config.model_name_or_path} classifies into {before.num_labels}, but {data.task.name} needs "
            f"{len(names)}: pass --ignore_mismatched_sizes to start the classifier afresh"
        )
    model = AutoModelForSequenceClassification.from_pretrained(
        config.model_name_or_path,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type=data.task.problem_type,
        dtype=torch.float32,  # a bf16 checkpoint would be trained in bf16
        ignore_mismatched_sizes=config.ignore_mismatched_sizes,
    )
    if config.layers:
        model = with_layers(model, config.layers)
    return by_importance(config, data, croppable_encoder(model.to(device)), device)


def by_importance(config: Config, data: Data, model: Any, device: torch.device) -> Any:
    """Put the units first that the loss depends on most as the model stands, if the flags ask for it."""
    if not config.reorder:
        return model
    rows = min(config.reorder_examples, len(data.train))
    batch_size = config.per_device_train_batch_size
    starts = range(0, rows, batch_size)
    batches = (collate(data.train, range(i, min(i + batch_size, rows)), device) for i in starts)
    return reordered(model, batches)


def with_teacher(config: Config, data: Data, accelerator: Accelerator) -> Data:
    """Compute the outputs of the teacher on the training examples, once."""
    teacher, info = AutoModelForSequenceClassification.from_pretrained(
        config.teacher_name_or_path, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(
            f"the teacher {config.teacher_name_or_path} is not fine-tuned: "
            f"it lacks {sorted(info['missing_keys'])}"
        )
    classes = max(1, len(data.task.labels))
    if teacher.config.num_labels != classes:
        raise ValueError(
            f"the teacher {config.teacher_name_or_path} has {teacher.config.num_labels} outputs, "
            f"but {data.task.name} needs {classes}"
        )
    outputs = predict(
        teacher.to(accelerator.device), data.train,
        batch_size=config.per_device_eval_batch_size, accelerator=accelerator,
    )  # fmt: skip
    splits = {**data.splits, "train": data.train.with_teacher(outputs[0])}
    return Data(data.task, data.tokenizer, splits)
