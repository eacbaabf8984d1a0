"""Rows of a table -> numbers and codes of words, by the columns' roles; the standard library alone.

The login node reads the first rows by this, so that a wrong role is told before the queue; the ranks read all.
"""

from array import array
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from hpctrain.config import columns
from hpctrain.config.datasets import TableArgs
from hpctrain.data import csv_rows
from hpctrain.errors import UsageError

_MOST_WORDS = 1000
"""Different words of a column: each becomes an input for every sample, so more are a mistake."""

_MISSING = "remove such lines, or leave the column out: data.args.leave_out"


class Roles(NamedTuple):
    """The columns of a table, by their places from 0."""

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    """Inputs that are numbers; then, for a regression, the target."""
    words: tuple[int, ...]
    """Inputs that are words; then, for a classification, the target."""
    target: int
    header: bool
    """The file's first row has the names."""


class Columns(NamedTuple):
    """What the columns hold, row after row."""

    roles: Roles
    numbers: "array[float]"
    """Row by row, as many for each as there are columns of numbers."""
    words: "tuple[array[int], ...]"
    """Of each column of words, the number of the word in each row."""
    vocabularies: tuple[dict[str, int], ...]
    """Of each column of words: word -> number, from 0 in the order in which they were met."""
    lines: "array[int]"
    """The line of each row."""


def count(path: Path, args: TableArgs, *, tried: int = 1000) -> int:
    """Count the samples, and see whether the first of them are what the config says.

    Raises:
        UsageError: the file cannot be read, or its columns are not what the config says.
    """
    held = read(path, args, most=tried)
    return csv_rows.count(path, args.delimiter) - held.roles.header if len(held.lines) == tried else len(held.lines)


def read(path: Path, args: TableArgs, *, most: int | None = None) -> Columns:
    """Read the rows.

    Args:
        path: the file.
        args: the roles of its columns.
        most: read only so many.

    Raises:
        UsageError: the file cannot be read, or its columns are not what the config says; names file, line and column.
    """
    found = csv_rows.rows(path, args.delimiter)
    line, first = next(found, (0, []))
    if not first:
        raise UsageError(f"{path}: is empty", "give a CSV file: data.path=FILE")
    roles = _roles(f"{path}:{line}", args, tuple(name.strip() for name in first))
    words = len(roles.words)
    codes = tuple(array("q") for _ in range(words))
    held = Columns(roles, array("d"), codes, tuple({} for _ in range(words)), array("q"))
    if not roles.header:
        _add(held, path, line, first)
    for line, fields in islice(found, None if most is None else most - len(held.lines)):
        _add(held, path, line, fields)
    return held


def _roles(where: str, args: TableArgs, first: tuple[str, ...]) -> Roles:
    names = args.columns or first
    if not args.columns:
        for place, name in enumerate(names):
            if not name or names.index(name) != place:
                said = f"{name!r} twice" if name else f"no name for column {place + 1}"
                raise UsageError(f"{where}: the header has {said}", "correct it; each column needs a name of its own")
        if all(_is_number(name) for name in names):
            raise UsageError(
                f"{where}: the first line holds numbers, not the names of columns",
                "name them, in their order: data.args.columns=[...]",
            )
    elif first == names:
        raise UsageError(f"{where}: the first line has the names of the columns", "remove data.args.columns")
    for key, problem in columns.problems(args, names):
        raise UsageError(f"{where}: data.args.{key}: {problem}")
    words = [names.index(name) for name in names if name in args.categories]
    apart = {*words, names.index(args.target), *(names.index(name) for name in args.leave_out)}
    numbers = [place for place in range(len(names)) if place not in apart]
    (numbers if args.task == "regression" else words).append(names.index(args.target))
    return Roles(names, tuple(numbers), tuple(words), names.index(args.target), not args.columns)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _add(held: Columns, path: Path, line: int, fields: list[str]) -> None:
    roles = held.roles
    if len(fields) != len(roles.names):
        raise UsageError(
            f"{path}:{line}: has {len(fields)} columns, {len(roles.names)} are expected",
            "see data.args.columns and data.args.delimiter" if not roles.header else "see data.args.delimiter",
        )
    try:
        values = [float(fields[place]) for place in roles.numbers]
        finite = all(map(isfinite, values))
    except ValueError:
        finite = False
    if not finite:
        raise _no_number(held, path, line, fields)
    held.numbers.extend(values)
    for place, codes, vocabulary in zip(roles.words, held.words, held.vocabularies, strict=True):
        word = fields[place].strip()
        if not word:
            raise UsageError(f"{path}:{line}: column {roles.names[place]!r} is empty", _MISSING)
        if word not in vocabulary:
            if len(vocabulary) == _MOST_WORDS:
                raise UsageError(
                    f"{path}:{line}: column {roles.names[place]!r} has more than {_MOST_WORDS} different words",
                    "leave it out (data.args.leave_out) if it names the sample",
                )
            vocabulary[word] = len(vocabulary)
        codes.append(vocabulary[word])
    held.lines.append(line)


def _no_number(held: Columns, path: Path, line: int, fields: list[str]) -> UsageError:
    roles = held.roles
    place = next(place for place in roles.numbers if not (_is_number(fields[place]) and isfinite(float(fields[place]))))
    text, column = fields[place].strip(), f"{path}:{line}: column {roles.names[place]!r}"
    if not text:
        return UsageError(f"{column} is empty", _MISSING)
    shown = repr(text if len(text) <= 40 else f"{text[:37]}...")
    if _is_number(text):
        return UsageError(f"{column} is {shown}, which is not finite", _MISSING)
    hint = (
        "if it holds the names of classes: data.args.task=classification"
        if place == roles.target
        else f"if it holds words: data.args.categories=[{roles.names[place]}]"
    )
    return UsageError(f"{column} is {shown}, which is no number", f"{hint}; else {_MISSING}")
