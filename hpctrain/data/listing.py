"""What lies in a directory of class directories, listed once; no torch, no numpy, for the login node as well.

To list a million files takes minutes on a network file system, so a listing is kept in the user's cache directory. It
holds as long as the modification times of the root and of the class directories are the same: these change whenever a
file is added, removed or renamed. The contents of the files are not looked at.
"""

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from hpctrain.data import cache
from hpctrain.errors import UsageError

SUFFIXES = (b".jpg", b".jpeg", b".png")
"""Of pictures, in small or capital letters."""

SMALL = 10_000
"""So many files are listed on the login node at once, without a child process and without a cache."""

_FORMAT = 1
_THREADS = 16  # network file systems answer that many questions as fast as one
_SETTLED_NS = 2_000_000_000  # a change within the same tick of the file system's clock cannot be seen afterwards
_MOST_HEADER = 2**26

Tell = Callable[[int, int], None]
"""Is told how many classes of how many have been listed."""


class Class(msgspec.Struct, frozen=True, array_like=True):
    """A class directory."""

    name: str
    files: int
    modified_ns: int


class Summary(msgspec.Struct, frozen=True):
    """A listing without the names of its files."""

    root: str
    modified_ns: int
    classes: tuple[Class, ...]
    digest: str
    """SHA-256 of the names of classes and files."""
    size: int
    """Bytes of the names of the files."""
    format: int = _FORMAT

    @property
    def count(self) -> int:
        """Number of files."""
        return sum(part.files for part in self.classes)


class Listing(NamedTuple):
    """All files: classes in the order of their names, and in each of them files in the order of theirs."""

    summary: Summary
    names: bytes
    """Of the files, without their directories, each ended by a zero byte."""


class _TooManyError(Exception):
    pass


def known(root: Path) -> Summary | None:
    """Return what a directory holds if that is quick: from the cache, or because there are few files; else None.

    Raises:
        UsageError: it is no directory of class directories with pictures.
    """
    if (stored := _stored(_cache_file(root), root)) is not None:
        return stored[0]
    try:
        return _scan(root, SMALL, None)[0].summary
    except _TooManyError:
        return None


def load(root: Path, tell: Tell | None = None) -> Listing:
    """Return the listing of a directory, from the cache if it has one; one process makes it, the others wait.

    Raises:
        UsageError: it is no directory of class directories with pictures.
    """
    file = _cache_file(root)
    if (found := _read(file, root)) is None:
        with cache.alone(file):
            found = _read(file, root) or _make(file, root, tell)
    return found


def _make(file: Path | None, root: Path, tell: Tell | None) -> Listing:
    found, settled = _scan(root, None, tell)
    if file is not None and settled:
        with contextlib.suppress(OSError):  # a full or read-only home costs time, not the run
            cache.write(file, [msgspec.json.encode(found.summary), b"\n", found.names])
    return found


def _cache_file(root: Path) -> Path | None:
    base = cache.user_directory()
    key = hashlib.sha256(_root(root).encode()).hexdigest()[:32]
    return None if base is None else base / "listings" / key


def _stored(file: Path | None, root: Path) -> tuple[Summary, int] | None:
    """Return a cached summary that still holds, and the length of its line."""
    if file is None:
        return None
    try:
        with file.open("rb") as opened:
            line = opened.readline(_MOST_HEADER)
            rest = os.fstat(opened.fileno()).st_size - len(line)
        summary = msgspec.json.decode(line, type=Summary)
        holds = (
            summary.format == _FORMAT
            and summary.root == _root(root)
            and summary.size == rest
            and all(part.files > 0 for part in summary.classes)
            and root.stat().st_mtime_ns == summary.modified_ns
            and all(_modified(root, part.name) == part.modified_ns for part in summary.classes)
        )
    except (OSError, ValueError):  # none, damaged, or gone: it is made again
        return None
    return (summary, len(line)) if holds else None


def _modified(root: Path, name: str) -> int:
    return os.stat(os.path.join(root, name)).st_mtime_ns  # noqa: PTH116, PTH118 - a Path costs more than the call


def _read(file: Path | None, root: Path) -> Listing | None:
    """Read a cached listing whole; None if there is none that holds."""
    stored = _stored(file, root)
    if file is None or stored is None:
        return None
    summary, begin = stored
    with file.open("rb") as opened:
        opened.seek(begin)
        names = opened.read(summary.size)
    whole = names.count(b"\0") == summary.count and _digest(summary.classes, names) == summary.digest
    return Listing(summary, names) if whole else None


def _scan(root: Path, limit: int | None, tell: Tell | None) -> tuple[Listing, bool]:
    """List a directory; also say whether a later change would show in the modification times.

    Raises:
        _TooManyError: it holds more than `limit` files.
    """
    began = time.time_ns()
    names = _class_names(root)
    real = os.path.realpath(root)
    files, classes, newest = [], [], 0
    each = functools.partial(_files, root, real)
    for number, (part, listed) in enumerate(_mapped(each, names, threads=limit is None)):
        if limit is not None and (limit := limit - part.files) < 0:
            raise _TooManyError
        classes.append(part)
        files.append(listed)
        newest = max(newest, part.modified_ns)
        if tell is not None:
            tell(number + 1, len(names))
    joined = b"".join(files)
    modified = root.stat().st_mtime_ns
    summary = Summary(_root(root), modified, tuple(classes), _digest(tuple(classes), joined), len(joined))
    return Listing(summary, joined), max(newest, modified) < began - _SETTLED_NS


def _mapped(
    each: Callable[[str], tuple[Class, bytes]], names: list[str], *, threads: bool
) -> Iterator[tuple[Class, bytes]]:
    if not threads:
        yield from map(each, names)
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield from pool.map(each, names)
    finally:
        pool.shutdown(cancel_futures=True)


def _digest(classes: tuple[Class, ...], names: bytes) -> str:
    table = msgspec.json.encode([(part.name, part.files) for part in classes])
    return hashlib.sha256(table + b"\n" + names).hexdigest()


def _class_names(root: Path) -> list[str]:
    """Return the names of the class directories, sorted."""
    names = []
    real = os.path.realpath(root)
    for entry in _entries(root):
        if entry.name.startswith(b"."):
            continue
        path = _text(entry.path)
        if entry.is_symlink():
            _refuse_outside(path, real)
        if entry.is_dir():
            names.append(entry.name)
        elif entry.name.lower().endswith(SUFFIXES):
            raise UsageError(f"{path} lies in no class directory", "put it into one, or name it with a '.' in front")
    if not names:
        raise UsageError(
            f"{root} holds no class directories",
            "pictures lie as CLASS/NAME.jpg; data.args.train and data.args.test name the directories below data.path",
        )
    try:
        return [name.decode() for name in sorted(names)]
    except UnicodeDecodeError:
        raise UsageError(f"{root}: the name of a class is no UTF-8", "rename its directory") from None


def _files(root: Path, real: str, name: str) -> tuple[Class, bytes]:
    """List one class directory: its pictures in the order of their names."""
    directory = root / name
    try:
        modified = directory.stat().st_mtime_ns  # before the listing: what comes in between must show later
    except OSError as error:
        raise _unreadable(directory, error) from None
    found = []
    for entry in _entries(directory):
        if entry.name.startswith(b"."):
            continue
        if entry.is_symlink():
            _refuse_outside(_text(entry.path), real)
        if not entry.is_file():
            what = "a directory inside of a class" if entry.is_dir() else "no regular file"
            raise UsageError(f"{_text(entry.path)} is {what}", "pictures lie as CLASS/NAME.jpg; move it away")
        if not entry.name.lower().endswith(SUFFIXES):
            raise UsageError(
                f"{_text(entry.path)} is no .jpg, .jpeg or .png",
                "convert it, move it away, or name it with a '.' in front, which leaves it out",
            )
        found.append(entry.name)
    if not found:
        raise UsageError(f"{directory}: this class has no pictures", "remove the directory, or fill it")
    found.sort()
    return Class(name, len(found), modified), b"\0".join([*found, b""])


def _entries(directory: Path) -> "Iterator[os.DirEntry[bytes]]":
    try:
        with os.scandir(os.fsencode(directory)) as entries:
            yield from entries
    except OSError as error:
        raise _unreadable(directory, error) from None


def _unreadable(directory: Path, error: OSError) -> UsageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UsageError(
            f"{directory} is no directory",
            "data.path lies above the directories data.args.train (default train) and data.args.test (default val)",
        )
    return UsageError(f"{directory}: {error.strerror}", "give a directory that can be read: data.path=DIR")


def _refuse_outside(path: str, real: str) -> None:
    """Links may lead to other places of the same tree, and nowhere else."""
    target = os.path.realpath(path)
    if os.path.commonpath([target, real]) != real:
        raise UsageError(
            f"{path} is a link out of the directory, to {target}",
            "copy the file, or make a hard link (cp -al); only data.path itself may be a link",
        )


def _root(root: Path) -> str:
    try:
        return os.fsencode(root).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{_text(root)}: this path is no UTF-8", "rename the directory: data.path=DIR") from None


def _text(path: Path | bytes) -> str:
    """Return a path for messages and JSON; what is no UTF-8 in it is written in hexadecimal."""
    return os.fsencode(path).decode(errors="backslashreplace")
