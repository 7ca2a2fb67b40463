"""The command line: ``croppable info | crop | predict | evaluate | export | push``.

A MODEL is a folder or a Hub repository. What a command prints is for people, or with --json for programs;
errors are one line on stderr. Exit status: 0 done, 1 failed, 2 wrong usage. Every command is a few calls of
the library, which is where the work is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

import croppable
from croppable.card import headline_rows
from croppable.kge.evaluate import at_sizes, evaluate, learn
from croppable.kge.export import FORMATS, export
from croppable.kge.metrics import write_metrics
from croppable.kge.model import KGEModel
from croppable.kge.predict import Answer, nearest, predict
from croppable.kge.triples import read_graph
from croppable.manifest import Manifest
from croppable.reader import read_metrics

__all__ = ["app", "main"]

app = typer.Typer(
    help="Take any size out of a croppable model, and use it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or a Hub repository 'name/model'.")]
Size = Annotated[int | None, typer.Option(help="Size to take; default the full one.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Data = Annotated[
    Path | None, typer.Option("--data-dir", "--data_dir", help="Folder with train, valid and test triples.")
]

Format = StrEnum("Format", list(FORMATS))  # type: ignore[misc]
Kind = Literal["entity", "relation"]
Dtype = Literal["float32", "float16", "bfloat16"]


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: words to the left, numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    words = [name in ("known", "name", "text") for name in header]
    for row in (header, *rows):
        cells = zip(row, widths, words, strict=True)
        typer.echo("  ".join(c.ljust(n) if word else c.rjust(n) for c, n, word in cells).rstrip())


def _print_sizes(table: Mapping[int, Mapping[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in table.values() for name in row))

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    rows = [[str(size), *(cell(row.get(name)) for name in columns)] for size, row in table.items()]
    _print_table(["size", *columns], rows)


def _folder(model: str, revision: str | None) -> Path:
    """Return the local folder of what describes a model; weights stay where they are."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from croppable.hub import pull

    return pull(model, revision=revision, weights=False)


def _load(model: str, size: int | None, revision: str | None) -> KGEModel:
    loaded = croppable.load(model, size=size, revision=revision)
    if not isinstance(loaded, KGEModel):
        raise ValueError(f"'{model}' is a {type(loaded).__name__}: this command takes a KGEModel")
    return loaded


def _values(rows: Sequence[Any]) -> dict[int, dict[str, float]]:
    values: dict[int, dict[str, float]] = {}
    for row in headline_rows(rows):
        values.setdefault(row["size"], {})[row["metric"]] = row["value"]
    return values


@app.command()
def info(
    model: Model,
    revision: Revision = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also load it and compare every sha256.")] = False,
    as_json: Json = False,
) -> None:
    """Show sizes, bytes and metrics of a model, without loading its weights."""
    folder = _folder(model, revision)
    manifest = Manifest.read(folder)
    metrics = _values(read_metrics(folder))
    if verify:
        croppable.load(model, revision=revision, verify=True)
    cost = {
        size: {"read_bytes": manifest.read_bytes(size), "download_bytes": manifest.download_bytes(size)}
        for size in manifest.sizes
    }
    if as_json:
        sizes = [{"size": s, **cost[s], "metrics": metrics.get(s, {})} for s in manifest.sizes]
        return _print_json({**manifest.config(), "sizes": sizes})
    shapes = ", ".join(f"{spec.name} {spec.shapes[-1]}" for spec in manifest.tensors)
    typer.echo(f"{manifest.kind} of size {manifest.size}: {shapes}")
    return _print_sizes({size: {**cost[size], **metrics.get(size, {})} for size in manifest.sizes})


@app.command()
def crop(
    model: Model,
    size: Annotated[int, typer.Argument(help="The size to take.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    dtype: Annotated[Dtype | None, typer.Option(help="How to store floats; default as they are.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint in OUTPUT.")] = False,
    revision: Revision = None,
) -> None:
    """Save one size of a model as a checkpoint of its own."""
    small = _load(model, size, revision)
    folder = _folder(model, revision)
    rows = [row for row in read_metrics(folder) if row.get("size", 0) <= size]
    full = Manifest.read(folder).size
    stored = None if dtype is None else getattr(torch, dtype)
    croppable.save(
        small, output, metrics=rows or None, dtype=stored, overwrite=overwrite,
        cropped_from=full if size < full else None,
    )  # fmt: skip
    written = sum(path.stat().st_size for path in output.iterdir() if path.is_file())
    _say(f"wrote size {size} of {full} to {output} ({written:,} bytes)")


@app.command("predict")
def predict_command(
    model: Model,
    relation: Annotated[str | None, typer.Option(help="Relation: name, text or id.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="Head entity, to ask for tails. Repeatable.")] = None,
    tail: Annotated[list[str] | None, typer.Option(help="Tail entity, to ask for heads. Repeatable.")] = None,
    near: Annotated[str | None, typer.Option(help="Instead: the entities most like this one.")] = None,
    k: Annotated[int, typer.Option("-k", "--top", help="How many answers.")] = 10,
    data_dir: Data = None,
    mark_known: Annotated[
        bool, typer.Option("--mark-known", help="Mark triples of --data-dir instead of dropping.")
    ] = False,
    size: Size = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Complete triples, or find what is near an entity.

    With --data-dir known triples are dropped (or marked), and validation triples give probabilities.
    """
    loaded = _load(model, size, revision)
    if near is not None:
        answers = nearest(loaded, _key(loaded, near, "entity"), k)
        return _print_json([asdict(a) for a in answers]) if as_json else _print_answers(answers)
    if relation is None or not (head or tail):
        raise typer.BadParameter("give --relation with --head or --tail, or --near")
    known, calibration = (None, None) if data_dir is None else learn(loaded, read_graph(data_dir))
    batches = predict(
        loaded,
        head=[_key(loaded, name, "entity") for name in head] if head else None,
        relation=_key(loaded, relation, "relation"),
        tail=[_key(loaded, name, "entity") for name in tail] if tail else None,
        k=k,
        known=known,
        drop_known=not mark_known,
        calibration=calibration,
    )
    given, questions = ("head", head) if head else ("tail", tail or [])
    asked = list(zip(questions, batches, strict=True))
    if as_json:
        return _print_json(
            [{given: q, "relation": relation, "answers": [asdict(a) for a in batch]} for q, batch in asked]
        )
    for question, batch in asked:
        typer.echo(f"{question} - {relation} -> ?" if head else f"? - {relation} -> {question}")
        _print_answers(batch)
    return None


def _key(model: KGEModel, text: str, kind: Kind) -> str | int:
    """Return digits that are nobody's name as an id."""
    digits = text.isdecimal() and text.isascii()
    return int(text) if digits and (model.labels is None or text not in getattr(model.labels, kind)) else text


def _print_answers(answers: Sequence[Answer]) -> None:
    columns = ["rank", "score", "probability", "known", "name", "text"]
    rows = [
        [
            str(answer.rank),
            f"{answer.score:.4f}",
            "" if answer.probability is None else f"{answer.probability:.3f}",
            "known" if answer.known else "",
            answer.name,
            answer.text or "",
        ]
        for answer in answers
    ]
    used = [
        i for i, name in enumerate(columns) if name in ("rank", "score", "name") or any(r[i] for r in rows)
    ]
    _print_table([columns[i] for i in used], [[row[i] for i in used] for row in rows])


@app.command("evaluate")
def evaluate_command(
    model: Model,
    data_dir: Data = None,
    triples: Annotated[
        Path | None, typer.Option(help="A file of triples to rank instead of a split.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --data-dir to rank: train, valid or test.")] = "test",
    sizes: Annotated[
        list[int] | None, typer.Option("--size", help="A size; repeatable; default all.")
    ] = None,
    column_order: Annotated[str, typer.Option(help="Order of the columns of --triples.")] = "hrt",
    classify: Annotated[bool, typer.Option("--classify", help="Also measure triple classification.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write all rows to this JSON file.")] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Rank triples against all entities at any sizes, in one pass.

    Known triples of --data-dir and the ranked triples themselves are filtered.
    """
    if data_dir is None and triples is None:
        raise typer.BadParameter("give --data-dir, --triples or both")
    wanted = sorted(set(sizes or ()))
    loaded = _load(model, wanted[-1] if wanted else None, revision)
    rows = evaluate(
        at_sizes(loaded, wanted) if wanted else loaded,
        None if data_dir is None else read_graph(data_dir),
        split=split,
        triples=triples,
        column_order=column_order,
        classify=classify,
        progress=sys.stderr.isatty(),
    )
    if output is not None:
        write_metrics(output, rows)
        _say(f"wrote {len(rows)} rows to {output}")
    if as_json:
        return _print_json(rows)
    return _print_sizes(_values(rows))


@app.command("export")
def export_command(
    model: Model,
    output: Annotated[Path, typer.Argument(help="File to write.")],
    format: Annotated[Format, typer.Option(help="File format.")],
    kind: Annotated[Kind, typer.Option(help="Which vectors.")] = "entity",
    size: Size = None,
    revision: Revision = None,
) -> None:
    """Write vectors and names for other programs."""
    for path in export(_load(model, size, revision), output, format.value, kind):
        _say(f"wrote {path} ({path.stat().st_size:,} bytes)")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A saved checkpoint.")],
    repo_id: Annotated[str, typer.Argument(help="'name/model'; created where it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload a croppable model",
    license: Annotated[str | None, typer.Option(help="Licence for the card, such as cc-by-4.0.")] = None,
    data: Annotated[str | None, typer.Option(help="Sentence about the training data for the card.")] = None,
    as_json: Json = False,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub, with a model card."""
    commit = croppable.push_to_hub(
        folder,
        repo_id,
        private=private or None,
        revision=revision,
        message=message,
        license=license,
        data=data,
    )
    if as_json:
        return _print_json({"repo_id": repo_id, "commit": commit})
    return typer.echo(f"pushed to {repo_id}, commit {commit}")


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"croppable {version('croppable')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Take any size out of a croppable model, and use it."""


def main() -> None:
    """Run the command line; what the user can mend is one line, not a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        _say(f"error: {error}")
        sys.exit(1)
