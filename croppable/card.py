"""The model card: README.md of a published checkpoint, from its own files.

It says what every size costs and reaches, how to load one, and how the model came about. Hub metadata
(model-index rows, tags, licence) stand in its front matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from croppable.manifest import Manifest
from croppable.reader import read_metrics

__all__ = ["headline_rows", "model_card"]

PICTURE = "sizes.png"
METRICS = ("mrr", "hits@1", "hits@3", "hits@10")
TASKS = {"KGEModel": ("graph-ml", "link-prediction", "Link Prediction", ["knowledge-graph-embedding"])}
CITATION = """@article{med,
  title  = {Croppable Knowledge Graph Embedding},
  note   = {arXiv:2407.02779},
  year   = {2024}
}"""


def headline_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows over both sides and all relations with realistic ties: one per size and metric."""
    wanted = {"side": "both", "relation": None, "category": None, "ties": "realistic"}
    return [row for row in rows if all(row.get(key, value) == value for key, value in wanted.items())]


def model_card(
    folder: str | Path,
    *,
    title: str | None = None,
    repo_id: str = "name/model",
    license: str | None = None,
    command: str | None = None,
    data: str | None = None,
    citation: str = CITATION,
    picture: str = PICTURE,
) -> str:
    """Write the model card of a saved checkpoint.

    Args:
        folder: The checkpoint.
        title: Heading; default the repository's own name.
        repo_id: The repository that the card shall show how to load from.
        license: An SPDX-like identifier as the Hub knows them, such as "cc-by-4.0".
        command: The command that trained the model.
        data: What it was trained on, in words.
        citation: BibTeX of what to cite.
        picture: A picture's file name in the folder; shown if it is there.

    Returns:
        The card as Markdown with YAML front matter.
    """
    from huggingface_hub import EvalResult, ModelCardData

    folder = Path(folder)
    manifest, rows = Manifest.read(folder), headline_rows(read_metrics(folder))
    title = title or repo_id.rpartition("/")[2]
    pipeline, task, task_name, tags = TASKS.get(manifest.kind, (None, "other", "Other", []))
    results = [
        EvalResult(
            task_type=task,
            task_name=task_name,
            dataset_type=str(row.get("dataset")),
            dataset_name=str(row.get("dataset")),
            dataset_split=row.get("split"),
            metric_type=str(row.get("metric")),
            metric_name=f"{row.get('metric')} at size {row.get('size')}",
            metric_value=row.get("value"),
            metric_args={"size": row.get("size")},
        )
        for row in rows
    ]
    front = ModelCardData(
        license=license,
        library_name="croppable",
        pipeline_tag=pipeline,
        tags=["croppable", "matryoshka", *tags],
        model_name=title,
        eval_results=results or None,
        croppable={
            "format_version": 1,
            "kind": manifest.kind,
            "size": manifest.size,
            "sizes": list(manifest.sizes),
            "cropped_from": manifest.cropped_from,
        },
    )
    sections = [
        f"---\n{front.to_yaml()}\n---",
        f"# {title}",
        _summary(manifest),
        f"## Sizes\n\n{_table(manifest, rows)}",
        f"![Quality and cost of every size]({picture})" if (folder / picture).is_file() else "",
        f"## Use\n\n{_usage(manifest, repo_id)}",
        f"## Training\n\n```sh\n{command}\n```" if command else "",
        f"## Data\n\n{data}" if data else "",
        f"## Licence\n\n{license or 'The author has stated none.'}",
        f"## Citation\n\n```bibtex\n{citation}\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(manifest: Manifest) -> str:
    text = (
        f"A croppable {manifest.kind}: one checkpoint that holds {len(manifest.sizes)} trained "
        f"size{'s' if len(manifest.sizes) > 1 else ''}. Every smaller model is the leading corner of the "
        f"full one's tensors, and loading or downloading it takes its own bytes. No pickle, no code."
    )
    if manifest.cropped_from is not None:
        text += f" This one was cropped from a model of size {manifest.cropped_from}."
    return text


def _table(manifest: Manifest, rows: Sequence[Mapping[str, Any]]) -> str:
    values = {(row.get("size"), row.get("metric")): row.get("value") for row in rows}
    names = [name for name in METRICS if any(metric == name for _, metric in values)]
    header = ["size", "download", *names]
    lines = ["| " + " | ".join(header) + " |", "|" + "---:|" * len(header)]
    for size in manifest.sizes:
        cells = [str(size), f"{manifest.download_bytes(size) / 1e6:,.1f} MB"]
        cells += [f"{values[size, name]:.4f}" if (size, name) in values else "" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    described = sorted({f"{row.get('dataset')} ({row.get('split')})" for row in rows})
    note = f"\n\nFiltered ranking, realistic ties: {', '.join(described)}." if described else ""
    return "\n".join(lines) + note


def _usage(manifest: Manifest, repo_id: str) -> str:
    size = manifest.sizes[len(manifest.sizes) // 2]
    if manifest.kind != "KGEModel":
        return (
            f'```python\nimport croppable\n\nmodel = croppable.load("{repo_id}", size={size}, '
            f"model_class={manifest.kind})\n```"
        )
    return (
        f"```python\nimport croppable\nfrom croppable.kge.predict import predict\n\n"
        f'model = croppable.load("{repo_id}", size={size})\n'
        f'predict(model, head="...", relation="...", k=10)\n```\n\n'
        f'```sh\ncroppable info {repo_id}\ncroppable predict {repo_id} --size {size} --head "..." '
        f'--relation "..."\n```'
    )
