"""The members of a tar file, by its headers alone: ustar, pax and GNU's long names, not compressed.

The standard library's `tarfile` takes the sizes in extended headers on trust and keeps every member in memory; here
whatever the bytes say, memory is bounded, nothing is unpacked, and an error names file, member and offset.

Formats: POSIX.1-2017, "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn, Self

from hpctrain.errors import DataError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_WINDOW = 8192  # read at once, so that small members and their headers cost one read together
_MOST_EXTENSION = 2**20  # bytes of one extended header: a name, or a few records
_MOST_PADDING = 2**20  # zeros after the end; tar itself pads to 10 KiB
_REGULAR = b"0\x007"
_DIRECTORY = b"5"
_EXTENSIONS = b"xgLK"
_REFUSED = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a named pipe",
    b"S": "a sparse file", b"M": "a part of another archive", b"D": "a list of files", b"V": "a volume label",
}  # fmt: skip
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}


class Member(NamedTuple):
    """A regular file of an archive."""

    name: str
    """`./` in front is left out; bytes that are no UTF-8 are surrogates."""
    header: int
    """Where its header begins, in bytes."""
    data: int
    """Where its content begins."""
    size: int


class Archive:
    """An open tar file; only `members` and `content` read from it.

    Raises:
        DataError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            about = os.fstat(self._descriptor)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        self.size, self.modified_ns = about.st_size, about.st_mtime_ns
        self._begin, self._window = 0, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def fail(self, offset: int, what: str, hint: str = "", *, name: str | None = None) -> NoReturn:
        """Raise an error that names file, member and offset."""
        member = "" if name is None else f" member {shown(name)},"
        raise DataError(f"{self.path}:{member} byte {offset}: {what}", hint)

    def content(self, offset: int, length: int) -> bytes:
        """Read some bytes, at most `_MOST_EXTENSION`.

        Raises:
            DataError: the file ends before.
        """
        if not self._begin <= offset <= offset + length <= self._begin + len(self._window):
            try:
                self._window = os.pread(self._descriptor, max(length, _WINDOW), offset)
            except OSError as error:
                self.fail(offset, f"cannot be read: {error.strerror}")
            self._begin = offset
        found = self._window[offset - self._begin : offset - self._begin + length]
        if len(found) < length:
            self.fail(offset, f"the file ends after {len(found)} of {length} bytes", "it is truncated: get it again")
        return found

    def members(self) -> Iterator[Member]:
        """Walk over the headers.

        Raises:
            DataError: it is no tar file, is truncated, or has a member that is no plain file with a plain name.
        """
        offset, records = 0, dict[str, str]()
        while (block := self._block(offset)) != _ZEROS:
            kind, name, size = self._header(block, offset)
            data = offset + BLOCK
            if kind in _EXTENSIONS:
                records |= self._extension(kind, data, size)
            else:
                name = records.get("path", name)
                size = _whole(records["size"]) if "size" in records else size
                self._check(kind, name, size, records, offset)
                if kind in _REGULAR and not name.endswith("/"):
                    yield Member(name.removeprefix("./"), offset, data, size)
                else:
                    size = 0
                records = {}
            offset = data + -(-size // BLOCK) * BLOCK
        self._check_end(offset)

    def _block(self, offset: int) -> bytes:
        if offset == self.size:
            again = "it is truncated, or was not finished: get it again"
            self.fail(offset, "the archive does not end with a block of zeros" if offset else "is empty", again)
        return self.content(offset, BLOCK)

    def _header(self, block: bytes, offset: int) -> tuple[bytes, str, int]:
        """Return kind, name and size."""
        stored = _number(block[148:156])
        rest = block[:148] + block[156:]
        total = sum(rest) + 256  # the field itself counts as blanks; old programs summed signed bytes
        if stored != total and stored != total - 256 * sum(byte > 127 for byte in rest):
            if offset == 0 and (tool := _COMPRESSED.get(block[:2])):
                self.fail(0, "is compressed, so no sample can be found by its offset", f"{tool} it first")
            self.fail(offset, "there is no tar header", "it is damaged, or no tar file: get it again")
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and block[345] != 0:
            name = f"{_text(block[345:500])}/{name}"
        size = _number(block[124:136])
        if size is None:
            self.fail(offset, "its size is no number", name=name)
        return block[156:157], name, size

    def _extension(self, kind: bytes, data: int, size: int) -> dict[str, str]:
        """Return what an extended header says of the next member."""
        if size > _MOST_EXTENSION:
            self.fail(data - BLOCK, f"an extended header of {size} bytes; at most {_MOST_EXTENSION} are read")
        content = self.content(data, size)
        if kind == b"L":
            return {"path": _text(content)}
        if kind == b"K":
            return {"linkpath": _text(content)}
        found = dict(self._records(content, data))
        if kind == b"g" and found.keys() & {"path", "size"}:
            self.fail(data, "a global header names one member; no program writes that")
        return {key: value for key, value in found.items() if key in {"path", "size"} or key.startswith("GNU.sparse")}

    def _records(self, content: bytes, data: int) -> Iterator[tuple[str, str]]:
        """Read pax records, length, blank, key=value and a line feed; the length counts itself."""
        place = 0
        while place < len(content):
            digits, blank, _ = content[place : place + 8].partition(b" ")
            length = _whole(digits.decode(errors="replace"))
            record = content[place : place + length]
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            if not (blank and equals and length == len(record) and record.endswith(b"\n")):
                self.fail(data + place, "a record of an extended header is damaged", "get the file again")
            text = _text(value, whole=True)
            if key == b"size" and _whole(text) < 0:
                self.fail(data + place, f"the size {shown(text)} is no number")
            yield key.decode(errors="replace"), text
            place += length

    def _check(self, kind: bytes, name: str, size: int, records: dict[str, str], offset: int) -> None:
        again = "make the archive anew, of plain files: tar --dereference --hard-dereference"
        if kind not in _REGULAR + _DIRECTORY:
            self.fail(offset, f"is {_REFUSED.get(kind, f'of the unknown kind {kind!r}')}", again, name=name)
        if any(key.startswith("GNU.sparse") for key in records):
            self.fail(offset, "is a sparse file", again, name=name)
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            self.fail(offset, "a member's name may not leave the directory", again, name=name)
        if kind != _DIRECTORY and offset + BLOCK + size > self.size:
            self.fail(
                offset,
                f"its {size} bytes reach beyond the end of the file, which has {self.size}",
                "it is truncated: get it again",
                name=name,
            )

    def _check_end(self, offset: int) -> None:
        rest = self.size - offset
        if rest > _MOST_PADDING or any(self.content(offset, rest)):
            self.fail(
                offset,
                f"the archive ends here, and {rest} more bytes follow",
                "unpack it with tar --ignore-zeros, if two archives were joined, and pack it again",
            )


def shown(name: str) -> str:
    """Return a member's name for a message: of any bytes, on one line and not too long."""
    text = ascii(name)[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."


def _text(field: bytes, *, whole: bool = False) -> str:
    return (field if whole else field.partition(b"\0")[0]).decode(errors="surrogateescape")


def _number(field: bytes) -> int | None:
    """Read a field of octal digits, or in GNU's base 256; None if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits.isdigit() else None if digits else 0
    except ValueError:  # an 8 or a 9
        return None


def _whole(text: str) -> int:
    """Read a whole number of at most 18 digits; -1 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else -1
