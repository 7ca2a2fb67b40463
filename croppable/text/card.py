"""Model card and upload of a fine-tuned encoder with its crops: the standard transformers layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from croppable.text.glue import Task

__all__ = ["publish", "text_card"]


def text_card(
    *,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    costs: Mapping[int, Mapping[str, Any]],
    folders: Mapping[int, str],
    repo_id: str = "name/model",
    base_model: str | None = None,
    license: str | None = None,
    command: str | None = None,
    length: int = 128,
    picture: str | None = None,
    separate: bool = False,
) -> str:
    """Write the model card.

    Args:
        task: What was learnt.
        rows: Rows of metrics.json, one per size and metric.
        costs: What each size costs, from `croppable.text.costs.size_costs`.
        folders: Subfolder of each size in the repository; "" is the root.
        repo_id: The repository that the card shall show how to load from.
        base_model: Where fine-tuning started, as the Hub names it.
        license: As the Hub knows licences, such as "apache-2.0".
        command: The command that trained the model.
        length: Tokens per sequence that costs were measured with.
        picture: File name of the picture.
        separate: Whether every size was trained by itself, as the baseline is.

    Returns:
        The card as Markdown with YAML front matter.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="nyu-mll/glue",
            dataset_name=f"GLUE {row['dataset']}",
            dataset_config=str(row["dataset"]),
            dataset_split=str(row["split"]),
            metric_type=str(row["metric"]),
            metric_name=f"{row['metric']} at size {row['size']}",
            metric_value=row["value"],
            metric_args={"size": row["size"]},
        )
        for row in rows
    ]
    front = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["croppable", "matryoshka"],
        base_model=base_model,
        model_name=repo_id.rpartition("/")[2],
        eval_results=results or None,
    )
    smallest = min(folders)
    subfolder = f', subfolder="{folders[smallest]}"' if folders[smallest] else ""
    sections = [
        f"---\n{front.to_yaml()}\n---",
        f"# {repo_id.rpartition('/')[2]}",
        f"{_story(task, len(folders), separate)}, and loads without any further library:",
        f"```python\nfrom transformers import AutoModelForSequenceClassification\n\n"
        f'model = AutoModelForSequenceClassification.from_pretrained("{repo_id}"{subfolder})\n```',
        f"## Sizes\n\nSize is the number of attention heads. Costs for sequences of {length} tokens.\n\n"
        f"{markdown_table(rows, costs, folders)}",
        f"![Quality and cost of every size]({picture})" if picture else "",
        f"## Training\n\n```sh\n{command}\n```" if command else "",
        f"## Licence\n\n{license or 'The author has stated none.'}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _story(task: Task, count: int, separate: bool) -> str:
    if separate:
        return f"Fine-tuned on {task.name} at {count} widths, each by itself. Every one is a plain model"
    widths = f"at {count} widths" if count > 1 else "at one width"
    return (
        f"Fine-tuned once on {task.name} {widths}. Every width is a plain transformers model, the leading "
        f"corner of the full one"
    )


def markdown_table(
    rows: Sequence[Mapping[str, Any]],
    costs: Mapping[int, Mapping[str, Any]],
    folders: Mapping[int, str],
) -> str:
    """Return metrics and costs as a Markdown table, one line per size."""
    values = {(row["size"], row["split"], row["metric"]): row["value"] for row in rows}
    metrics = list(dict.fromkeys((row["split"], row["metric"]) for row in rows))
    several = len({split for split, _ in metrics}) > 1
    names = [f"{metric} ({split})" if several else metric for split, metric in metrics]
    columns = list(dict.fromkeys(name for row in costs.values() for name in row))
    lines = ["| " + " | ".join(["size", "subfolder", *names, *columns]) + " |"]
    lines.append("|" + "---:|" * (2 + len(names) + len(columns)))
    for size, folder in folders.items():
        cells = [str(size), folder or "(root)"]
        cells += [f"{values[size, *key]:.4f}" if (size, *key) in values else "" for key in metrics]
        cells += [_number(costs.get(size, {}).get(name)) for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if value is not None else ""


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    message: str = "Upload a croppable encoder",
) -> str:
    """Upload the folder to the Hub in one commit, training states left out; return the commit's id."""
    from huggingface_hub import HfApi

    from croppable.hub import hub_errors

    api = HfApi()
    with hub_errors(repo_id, None, "push to"):
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            commit_message=message,
            ignore_patterns=["training_states/**"],
        )
    return str(commit.oid)
