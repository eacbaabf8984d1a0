"""Lines of a CSV file (RFC 4180), as they come, in bounded memory; the standard library alone, for the login node."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from hpctrain.errors import UsageError

_LONGEST = 2**20  # bytes of a line, or of a row of several lines
_BLOCK = 2**20
_READABLE = "give a CSV file that can be read: data.path=FILE"


def rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows: the number of the line, from 1, in which a row ends, and its fields. Empty lines are left out.

    Args:
        path: the file, in UTF-8, with or without a byte-order mark.
        delimiter: one character, or a backslash and `t` for a tab.

    Raises:
        UsageError: the file cannot be read, is no text, or has a line or field of absurd length.
    """
    delimiter = "\t" if delimiter == "\\t" else delimiter
    try:
        with path.open("rb") as file:
            lines = _Lines(path, file.readline)
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != " ", strict=True)
            for fields in reader:
                lines.row_bytes = 0
                if fields:
                    yield reader.line_num, fields
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", _READABLE) from None
    except csv.Error as error:
        text = "a carriage return stands inside of the line" if "new-line" in str(error) else str(error)
        raise UsageError(f"{path}:{reader.line_num}: {text}", "see whether quotes and line ends are whole") from None


class _Lines:
    """The lines of a file as text, each and each row of bounded length."""

    def __init__(self, path: Path, readline: Callable[[int], bytes]) -> None:
        self._path, self._readline, self._number = path, readline, 0
        self.row_bytes = 0
        """Of the row so far; whoever takes a row sets it to 0."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._readline(_LONGEST + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self.row_bytes += len(line)
        if self.row_bytes > _LONGEST:
            raise self._wrong(f"a row is longer than {_LONGEST} bytes", "is this a CSV file in UTF-8? See data.path")
        if b"\0" in line:
            raise self._wrong("holds a NUL byte", "is this a CSV file in UTF-8? See data.path")
        try:
            return line.decode("utf-8-sig" if self._number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            wrong = line[error.start : error.start + 1].hex()
            raise self._wrong(
                f"is not UTF-8 (byte 0x{wrong} at {error.start + 1})", "convert it: iconv -f latin1 -t utf-8 FILE"
            ) from None

    def _wrong(self, what: str, hint: str) -> UsageError:
        return UsageError(f"{self._path}:{self._number}: {what}", hint)


def count(path: Path, delimiter: str) -> int:
    """Count the rows, at the speed of the disk unless there are quotes, inside of which a line may end.

    Raises:
        UsageError: as `rows`, as far as it is seen by counting.
    """
    found, rest = 0, b""
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                if b'"' in block:
                    return sum(1 for _ in rows(path, delimiter))
                *lines, rest = (rest + block).split(b"\n")
                found += len(lines) - lines.count(b"") - lines.count(b"\r")
                if len(rest) > _LONGEST:
                    raise UsageError(
                        f"{path}: a row is longer than {_LONGEST} bytes", "is this a CSV file in UTF-8? See data.path"
                    )
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", _READABLE) from None
    return found + bool(rest.strip(b"\r"))
