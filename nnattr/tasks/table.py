"""Tables of other people: CSV, JSON, JSONL, data frames and data sets, read into columns.

Every message names the line (or row) and the column, so that a table can be put right.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from nnattr.errors import TaskError

AnswerMap: TypeAlias = Mapping[str, Sequence[str]]
#: The method by which a table gives its rows: of `datasets`, polars and pyarrow.
LISTED = ("to_list", "to_dicts", "to_pylist")


class _Row(NamedTuple):
    """A row and how people find it."""

    place: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns of a table under the names that a task has for them.

    Attributes:
        found: the cells of each column.
        names: what the table calls the columns.
        places: how people find each row.
        name: of the table.
    """

    found: Mapping[str, list[Any]]
    names: Mapping[str, str]
    places: Sequence[str]
    name: str

    def where(self, what: str, i: int) -> str:
        """The place of a cell, for messages."""
        return _cell(self.places[i], self.names.get(what, what))

    def __getitem__(self, what: str) -> list[Any]:
        return self.found[what]

    def get(self, what: str, default: Any = None) -> Any:
        """The column, or ``default`` if the table was not asked for it."""
        return self.found.get(what, default)


def columns(
    source: Any, wanted: Mapping[str, str | None], answer_map: AnswerMap | None, encoding: str
) -> Columns:
    """The ``wanted`` columns of a table, answers put through the map.

    Args:
        source: a path, a data frame, a `datasets.Dataset` or a list of dictionaries.
        wanted: task's name of a column -> the table's, or None to go without.
        answer_map: label -> the words that it stands for.
        encoding: of a file.

    Raises:
        TaskError: see `Task.from_table`.
    """
    name, rows = _rows(source, encoding)
    names = {what: column for what, column in wanted.items() if column is not None}
    found = {what: [_value(row, column, name) for row in rows] for what, column in names.items()}
    table = Columns(found, names, [row.place for row in rows], name)
    return table if answer_map is None else _mapped(table, answer_map)


def _cell(place: str, column: str) -> str:
    return f"{place}, column {column!r}"


def _value(row: _Row, column: str, table: str) -> Any:
    if column not in row.cells:
        known = ", ".join(map(repr, row.cells)) or "none"
        raise TaskError(
            f"{row.place} of {table} has no column {column!r}; it has {known}. Name the columns "
            "with clean=, corrupted=, answer= and wrong_answer= (None for one that is not there)."
        )
    value = _own(row.cells[column])
    if _is_empty(value):
        raise TaskError(f"{_cell(row.place, column)} of {table} is empty.")
    return value


def _own(value: Any) -> Any:
    """A cell as Python's own values: data frames keep lists and numbers in types of their own."""
    listed = getattr(value, "tolist", None) or getattr(value, "to_list", None)
    value = listed() if listed else value
    return list(map(_own, value)) if isinstance(value, list) else value


def _is_empty(value: Any) -> bool:
    """Whether a cell is empty, however a file or a data frame says so."""
    if isinstance(value, float):
        return value != value
    return value is None or value == "" or type(value).__name__ in ("NAType", "NaTType")


def _mapped(table: Columns, answer_map: AnswerMap) -> Columns:
    """The table with words in place of labels."""
    _check_map(answer_map)
    groups = {str(label): list(words) for label, words in answer_map.items()}

    def label(what: str, i: int) -> str:
        text = str(table[what][i]).strip()
        if text not in groups:
            known = ", ".join(map(repr, groups))
            raise TaskError(f"{table.where(what, i)} is {text!r}; the answer_map has {known}.")
        return text

    rows = range(len(table.places))
    right = [label("answers", i) for i in rows]
    if "wrong_answers" in table.found:
        wrong = [groups[label("wrong_answers", i)] for i in rows]
    else:
        others = {
            one: [word for other, words in groups.items() if other != one for word in words]
            for one in groups
        }
        wrong = [others[one] for one in right]
    answers = {"answers": [groups[one] for one in right], "wrong_answers": wrong}
    names = {"wrong_answers": table.names["answers"], **table.names}
    return Columns({**table.found, **answers}, names, table.places, table.name)


def _check_map(answer_map: AnswerMap) -> None:
    owner: dict[str, str] = {}
    if len(answer_map) < 2:
        raise TaskError(f"answer_map has the groups {list(answer_map)}; expected at least two.")
    for label, words in answer_map.items():
        if isinstance(words, str) or not words:
            raise TaskError(f"answer_map[{label!r}] is {words!r}; expected a list of words.")
        for word in words:
            if word in owner:
                raise TaskError(
                    f"answer_map has {word!r} twice, in {owner[word]!r} and {label!r}; a word "
                    "belongs to one group, once."
                )
            owner[word] = label


def _rows(source: Any, encoding: str) -> tuple[str, list[_Row]]:
    """The table's name and its rows, at least one."""
    if isinstance(source, str | Path):
        path = Path(source)
        name, rows = path.name, _file_rows(path, encoding)
    elif hasattr(source, "to_dict") and hasattr(source, "index"):
        name, rows = "the data frame", _frame_rows(source)
    else:
        listed = next((getattr(source, how) for how in LISTED if hasattr(source, how)), None)
        name, rows = "the table", _records(listed() if listed else source, "the table")
    if not rows:
        raise TaskError(f"{name} has no rows.")
    return name, rows


def _frame_rows(frame: Any) -> list[_Row]:
    """The rows of a pandas data frame, which people find by their label."""
    _all_different(list(frame.columns), "the data frame")
    records = zip(frame.index, frame.to_dict("records"), strict=True)
    return [_Row(f"row {label}", cells) for label, cells in records]


def _all_different(names: Sequence[Any], place: str) -> None:
    """Refuse two columns of one name: only one of them would be read."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise TaskError(
            f"{place} has {Counter(names)[twice[0]]} columns named {twice[0]!r}, and one is read; "
            "give each a name of its own."
        )


def _file_rows(path: Path, encoding: str) -> list[_Row]:
    readers = {".csv": _csv, ".json": _json, ".jsonl": _jsonl}
    if path.suffix.lower() not in readers:
        raise TaskError(
            f"{path.name} ends in {path.suffix!r}; expected one of {', '.join(readers)}. Read "
            "other files with pandas (pandas.read_parquet, say) and give the data frame."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskError(f"The table {str(path)!r} cannot be read: {error.strerror}.") from error
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise TaskError(
            f"line {line}, byte {column} of {path.name} is {content[error.start]:#x}, which is not "
            f"{encoding}. Save the file as UTF-8, or pass encoding= (for instance 'latin-1')."
        ) from error
    except LookupError as error:
        raise TaskError(f"There is no encoding {encoding!r}; 'utf-8' is the usual one.") from error
    return readers[path.suffix.lower()](text, path.name)


def _csv(text: str, name: str) -> list[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        _all_different(reader.fieldnames or (), f"line 1 of {name}")
        for cells in reader:
            place = f"line {reader.line_num}"
            if None in cells:
                raise TaskError(
                    f"{place} of {name} has more cells than the header has columns. Put a cell "
                    "that contains a comma between double quotes."
                )
            rows.append(_Row(place, cells))
    except csv.Error as error:
        line = reader.reader.line_num
        raise TaskError(f"line {line} of {name} is not CSV: {error}.") from error
    return rows


def _json(text: str, name: str) -> list[_Row]:
    try:
        data = json.loads(text, object_pairs_hook=_object(name))
    except json.JSONDecodeError as error:
        raise TaskError(
            f"line {error.lineno}, column {error.colno} of {name} is not JSON: {error.msg}."
        ) from error
    if not isinstance(data, dict):
        return _records(data, name)
    lengths = {key: len(value) for key, value in data.items() if isinstance(value, list)}
    if len(lengths) < len(data) or len(set(lengths.values())) > 1:
        raise TaskError(f"The object in {name} must hold lists of one length; it has {lengths}.")
    transposed = zip(*data.values(), strict=True)
    return _records([dict(zip(data, cells, strict=True)) for cells in transposed], name)


def _object(place: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """How a JSON object becomes a dictionary: no name in it may stand twice."""

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _all_different([name for name, _ in pairs], f"an object in {place}")
        return dict(pairs)

    return made


def _jsonl(text: str, name: str) -> list[_Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # a text may hold other line separators
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_object(f"line {number} of {name}"))
        except json.JSONDecodeError as error:
            raise TaskError(
                f"line {number}, column {error.colno} of {name} is not JSON: {error.msg}."
            ) from error
        if not isinstance(cells, dict):
            raise TaskError(f"line {number} of {name} is {line[:40]!r}; expected an object.")
        rows.append(_Row(f"line {number}", cells))
    return rows


def _is_parts(data: Any) -> bool:
    """Whether this is a dictionary of tables, as data sets with a training and a test part are."""
    return isinstance(data, Mapping) and all(hasattr(one, "column_names") for one in data.values())


def _records(data: Any, name: str) -> list[_Row]:
    if not isinstance(data, list | tuple):
        parts = f" Give one of its parts, {', '.join(map(repr, data))}." if _is_parts(data) else ""
        raise TaskError(
            f"{name} is a {type(data).__name__}; expected a path, a data frame, a data set or a "
            f"list of dictionaries, one per row.{parts}"
        )
    for i, cells in enumerate(data):
        if not isinstance(cells, Mapping):
            raise TaskError(f"row {i} of {name} is {cells!r}; expected a dictionary.")
    return [_Row(f"row {i}", cells) for i, cells in enumerate(data)]
