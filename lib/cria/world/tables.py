"""Reading the village's tables: every error names the file, the line and the column."""

import csv
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


class WorldError(ValueError):
    """A table or template of the village is broken; the message says where."""


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error: "; did you mean 'hen'?", or a full stop if none is near."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def read_csv(
    folder: Path,
    name: str,
    columns: tuple[str, ...],
    may_be_empty: tuple[str, ...] = (),
) -> list[dict[str, str]]:
    """The rows of ``folder/name``; each also holds ``"at"``: "people.csv, line 3".

    Raises WorldError if the file, a column or a cell is missing, or if the first
    of ``columns`` holds the same name twice.
    """
    path = folder / name
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{**row, "at": f"{name}, line {reader.line_num}"} for row in reader]
            header = reader.fieldnames or []
    except FileNotFoundError:
        raise WorldError(f"The village in {folder} has no {name}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise WorldError(f"{name} is not a CSV table in UTF-8: {error}.") from None
    for column in columns:
        if column not in header:
            raise WorldError(
                f"{name}, line 1 has no column {column!r}{nearest(column, header)}"
            )
    for row in rows:
        if None in row:
            raise WorldError(f"{row['at']} has more cells than the header has columns.")
        for column in columns:
            row[column] = (row[column] or "").strip()
            if not row[column] and column not in may_be_empty:
                raise WorldError(f"{row['at']}, column {column!r} is empty.")
    if not rows:
        raise WorldError(f"{name} has no rows.")
    return rows


def one_of(row: dict[str, str], column: str, names) -> str:
    """The cell, which must be one of ``names``."""
    if row[column] not in names:
        raise WorldError(
            f"{row['at']}, column {column!r}: {row[column]!r} is not known"
            f"{nearest(row[column], names)}"
        )
    return row[column]


def no_twins(rows: list[dict[str, str]], *columns: str) -> None:
    """Refuse two rows that agree in all of ``columns``."""
    seen: dict[tuple[str, ...], str] = {}
    for row in rows:
        key = tuple(row[c] for c in columns)
        if key in seen:
            raise WorldError(
                f"{row['at']}, column {columns[0]!r}: {', '.join(key)!r} stands "
                f"already in {seen[key]}."
            )
        seen[key] = row["at"]


def read_yaml(folder: Path, name: str, needs: tuple[str, ...]) -> dict[str, Any]:
    """The mapping in ``folder/name``; ``needs`` are dotted keys that must be there.

    A ``*`` in a key stands for every key at that place: ``risks.*.topics``.
    """
    try:
        text = (folder / name).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise WorldError(f"The village in {folder} has no {name}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise WorldError(f"{name}{place}: {error.problem}.") from None
    if not isinstance(content, dict):
        raise WorldError(
            f"{name} should hold keys and values, as in 'sums: {{low: 1}}'."
        )
    for need in needs:
        _demand(content, need.split("."), name, "")
    return content


def _demand(node: Any, keys: list[str], name: str, path: str) -> None:
    if not keys:
        if node is None or node == [] or node == {}:
            raise WorldError(f"{name}, key {path!r} is empty.")
        return
    if not isinstance(node, dict):
        raise WorldError(f"{name}, key {path!r} should hold keys and values.")
    if keys[0] == "*":
        for key, child in node.items():
            _demand(child, keys[1:], name, f"{path}.{key}".lstrip("."))
        return
    here = f"{path}.{keys[0]}".lstrip(".")
    if keys[0] not in node:
        raise WorldError(f"{name} has no key {here!r}{nearest(keys[0], node)}")
    _demand(node[keys[0]], keys[1:], name, here)
