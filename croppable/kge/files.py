"""Files of triples and of labels, read in bulk; a bad line is named with its file and number.

Bulk reading is pyarrow's (imported when needed); a plain Python pass runs only to find the line that pyarrow
refused. TSV has no quoting: a field is every character between two tabs. This file knows strings only;
`croppable.kge.triples` turns them into ids.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SLOTS", "find_file", "pick_columns", "read_columns", "read_labels", "validate_column_order"]

SLOTS = {"h": "head", "r": "relation", "t": "tail"}
EXTENSIONS = (".tsv", ".txt", ".csv", ".parquet")
_HEADER = {
    "head": "h", "h": "h", "subject": "h",
    "relation": "r", "r": "r", "predicate": "r",
    "tail": "t", "t": "t", "object": "t",
}  # fmt: skip
_SHOWN = 200  # characters of a bad line that an error shows


@dataclass(frozen=True)
class _Layout:
    """How one text file writes a triple."""

    delimiter: str
    quoted: bool
    skip: int  # lines up to and including the header
    order: str

    @property
    def fields(self) -> str:
        """What an error calls the fields."""
        return {"\t": "tab", ",": "comma", " ": "space"}[self.delimiter] + "-separated fields"


def validate_column_order(column_order: str) -> str:
    """Return ``column_order``.

    Raises:
        ValueError: If it is not a permutation of the letters h, r and t.
    """
    if sorted(column_order) != sorted(SLOTS):
        raise ValueError(
            f"column_order must be a permutation of the letters h, r, t (head, relation, tail) such as "
            f"'hrt' or 'htr', got {column_order!r}"
        )
    return column_order


def find_file(folder: Path, stems: Sequence[str]) -> Path | None:
    """Return the one file in ``folder`` called by one of ``stems``, or None.

    Raises:
        ValueError: If more than one file fits.
    """
    names = [stem + extension + gz for stem in stems for extension in EXTENSIONS for gz in ("", ".gz")]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(
            f"{folder} has more than one file of the same kind: {[path.name for path in found]}; "
            f"keep one of them"
        )
    return found[0] if found else None


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        yield stream


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of every line.

    Raises:
        ValueError: If a line is not UTF-8, or the file does not unpack.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, raw in enumerate(stream, 1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} line {number} is not UTF-8 ({error.object[:_SHOWN]!r}): save it as UTF-8"
        ) from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} does not unpack after line {number} ({error}): fetch it again") from error


def _header_order(fields: Sequence[str]) -> str | None:
    """Return the column order that ``fields`` name, or None where they are no header."""
    order = "".join(_HEADER.get(field.strip().lower(), "?") for field in fields)
    return order if sorted(order) == sorted(SLOTS) else None


def _layout(path: Path, column_order: str) -> _Layout | None:
    """Look at the first line that is not blank; None where there is none."""
    number, first = next(((n, text) for n, text in _lines(path) if text), (0, ""))
    if not first:
        return None
    extension = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    delimiter = "," if extension == ".csv" else "\t"
    if extension == ".txt" and "\t" not in first:
        delimiter = " "
    quoted = extension == ".csv"
    fields = next(csv.reader([first])) if quoted else first.split(delimiter)
    named = _header_order(fields)
    return _Layout(delimiter, quoted, number if named else 0, named or column_order)


def _records(path: Path, layout: _Layout) -> Iterator[tuple[int, list[str], str]]:
    """Yield (line number, fields, text shown in an error) by plain Python."""
    if layout.quoted:
        reader = csv.reader(text + "\n" for _, text in _lines(path))
        for fields in reader:
            if fields and reader.line_num > layout.skip:
                yield reader.line_num, fields, layout.delimiter.join(fields)
        return
    for number, text in _lines(path):
        if text and number > layout.skip:
            yield number, text.split(layout.delimiter), text


def _raise_bad_line(path: Path, layout: _Layout, reason: str) -> None:
    """Find and report the first line that is not a triple.

    Raises:
        ValueError: Always; with ``reason`` where every line looks right.
    """
    for number, fields, text in _records(path, layout):
        if len(fields) != 3:
            raise ValueError(
                f"no triple in {path} line {number}: expected 3 {layout.fields}, got {len(fields)} "
                f"({text[:_SHOWN]!r})"
            )
        if not all(fields):
            slot = SLOTS[layout.order[fields.index("")]]
            raise ValueError(f"no triple in {path} line {number}: the {slot} is empty ({text[:_SHOWN]!r})")
    raise ValueError(f"{path} cannot be read: {reason}")


def _read_text(path: Path, column_order: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as pa_csv

    layout = _layout(path, column_order)
    names = [SLOTS[letter] for letter in (layout.order if layout else column_order)]
    if layout is None:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    quote = '"' if layout.quoted else False
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(column_names=names, skip_rows=layout.skip),
            parse_options=pa_csv.ParseOptions(
                delimiter=layout.delimiter, quote_char=quote, newlines_in_values=layout.quoted
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        # A header without triples is an empty file to pyarrow, and no error of the lines.
        if next(_records(path, layout), None) is None:
            return pa.table({name: pa.array([], pa.string()) for name in names})
        _raise_bad_line(path, layout, str(error))
    if any(pc.any(pc.equal(column, "")).as_py() for column in table.columns):
        _raise_bad_line(path, layout, "a field is empty")
    return table


def pick_columns(table: Any, column_order: str, where: object) -> Any:
    """Return the string columns head, relation and tail of a pyarrow table.

    Columns that are named as the slots are taken by name; else three columns are taken in ``column_order``,
    and a single text column is cut at its tabs.

    Args:
        table: A pyarrow table.
        column_order: A permutation of "hrt".
        where: What an error calls the table.

    Raises:
        ValueError: If the columns do not hold triples, or a row has an empty field.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    named = {_HEADER[name.lower()]: name for name in table.column_names if name.lower() in _HEADER}
    if len(named) == 3:
        columns = {SLOTS[letter]: table[name] for letter, name in named.items()}
    elif table.num_columns == 3:
        columns = {SLOTS[letter]: table.column(i) for i, letter in enumerate(column_order)}
    elif table.num_columns == 1:
        parts = pc.split_pattern(table.column(0).cast(pa.string()), "\t").combine_chunks()
        wrong = pc.index(pc.equal(pc.list_value_length(parts), 3), False).as_py()
        if wrong >= 0:
            text = table.column(0)[wrong].as_py()
            raise ValueError(
                f"no triple in {where} row {wrong + 1}: expected 3 tab-separated fields ({text[:_SHOWN]!r})"
            )
        columns = {SLOTS[letter]: pc.list_element(parts, i) for i, letter in enumerate(column_order)}
    else:
        raise ValueError(
            f"{where} has the columns {table.column_names}: expected head, relation and tail, or just three "
            f"columns"
        )
    for name, column in columns.items():
        columns[name] = column = column.cast(pa.string())
        empty = pc.fill_null(pc.equal(column, ""), True)
        if (row := pc.index(empty, True).as_py()) >= 0:
            raise ValueError(f"no triple in {where} row {row + 1}: the {name} is empty")
    return pa.table({name: columns[name] for name in SLOTS.values()})


def read_columns(path: Path, column_order: str) -> Any:
    """Read one file of triples as a pyarrow table with the string columns head, relation and tail.

    Text is UTF-8; blank lines are skipped. ``.tsv`` is cut at tabs without any quoting, ``.txt`` at tabs or,
    where its first line has none, at single spaces, ``.csv`` at commas with quoting. A first line (or parquet
    columns) named head, relation, tail; h, r, t; or subject, predicate, object wins over ``column_order``.

    Raises:
        ValueError: If a line is not a triple, or the file cannot be read; file and line are named.
    """
    if ".parquet" not in path.suffixes:
        return _read_text(path, column_order).select(list(SLOTS.values()))
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _open(path) as stream:
            table = pq.read_table(pa.BufferReader(stream.read()) if path.suffix == ".gz" else path)
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    return pick_columns(table, column_order, path)


def read_labels(path: Path) -> dict[str, str]:
    """Read labels by id from a tab-separated file: id, label, and any further columns, without header.

    An empty label is left out.

    Raises:
        ValueError: If a line has no label column; file and line are named.
    """
    labels: dict[str, str] = {}
    for number, text in _lines(path):
        identifier, tab, rest = text.partition("\t")
        if text and not (tab and identifier):
            raise ValueError(
                f"no label in {path} line {number}: expected an id, a tab and a label ({text[:_SHOWN]!r})"
            )
        if label := rest.partition("\t")[0]:
            labels[identifier] = label
    return labels
