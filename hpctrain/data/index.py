"""Where each sample lies in tar shards: one compact file for all shards of a pattern; no torch, no numpy.

It is made by reading the headers of the shards, several shards at a time, and holds as long as each shard has the same
size and modification time. It lies beside the shards if that directory can be written, else in the user's cache.

Layout: a line of JSON (`Header`), padded by blanks to a multiple of 8 bytes; then, for all samples in the order of
shards and members, the offsets (unsigned 64 bits, little-endian), the sizes (unsigned 32) and the labels (signed 32).
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from hpctrain.data import cache
from hpctrain.data.samples import Rows, rows
from hpctrain.errors import UsageError

_FORMAT = 1
_MOST_HEADER = 2**26
_BYTES = 16  # of each sample
_MOST_PROCESSES = 16
_WORTH_BYTES = 2**30  # of all shards: with less, starting processes takes longer than reading

Tell = Callable[[int, int], None]
"""Is told how many shards of how many have been read."""


class Shard(msgspec.Struct, frozen=True):
    """One tar file."""

    name: str
    size: int
    modified_ns: int
    samples: int


class Header(msgspec.Struct, frozen=True):
    """What an index knows of the shards."""

    pattern: str
    shards: tuple[Shard, ...]
    classes: int
    """The largest label + 1."""
    digest: str
    """SHA-256 of all but the times of change."""
    format: int = _FORMAT

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(shard.samples for shard in self.shards)


class Index(NamedTuple):
    """A whole index."""

    header: Header
    rows: bytes
    """Offsets, sizes and labels, as in the file."""


def known(directory: Path, pattern: str) -> Header | None:
    """Return what the index of some shards says, if there is one that holds.

    Raises:
        UsageError: there are no such shards.
    """
    for file in _places(directory, pattern):
        if (found := _stored(file, directory, pattern)) is not None:
            return found[0]
    return None


def load(directory: Path, pattern: str, tell: Tell | None = None) -> Index:
    """Return the index of some shards; one process makes it where there is none, the others wait.

    Raises:
        UsageError: there are no such shards.
        DataError: one of them is damaged, or holds what is no sample.
    """
    places = _places(directory, pattern)
    if (found := _first(places, directory, pattern)) is None:
        with cache.alone(_lock(directory, pattern)):
            found = _first(places, directory, pattern) or make(directory, pattern, tell)
    return found


def make(directory: Path, pattern: str, tell: Tell | None = None) -> Index:
    """Read the headers of all shards, and keep the index where there is a place for it."""
    paths = [directory / name for name in shard_names(directory, pattern)]
    shards, parts = [], []
    for number, part in enumerate(_read_all(paths)):
        shards.append(Shard(paths[number].name, part.size, part.modified_ns, part.samples))
        parts.append(part)
        if tell is not None:
            tell(number + 1, len(paths))
    columns = [b"".join(column) for column in zip(*((p.offsets, p.sizes, p.labels) for p in parts), strict=True)]
    content = b"".join(columns)
    classes = max(part.classes for part in parts)
    header = Header(pattern, tuple(shards), classes, _digest(shards, classes, content))
    for file in _places(directory, pattern):
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            cache.write(file, [_padded(header), content])
            break
    return Index(header, content)


def shard_names(directory: Path, pattern: str) -> list[str]:
    """Return the names of the shards, sorted.

    Raises:
        UsageError: there are none, or they are compressed.
    """
    if "/" in pattern:
        raise UsageError(f"{pattern}: the pattern of shards holds a '/'", "name their directory by data.path")
    import fnmatch

    try:
        listed = sorted(os.listdir(directory))  # noqa: PTH208 - names are wanted
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}", "give the directory of the shards: data.path=DIR") from None
    names = [name for name in fnmatch.filter(listed, pattern) if not name.startswith(".")]
    if not names:
        raise UsageError(f"{directory}: no shards are named {pattern}", _other_names(listed))
    packed = [name for name in names if not name.endswith(".tar")]
    if packed:
        raise UsageError(
            f"{directory / packed[0]} is no .tar: in a compressed file no sample can be found by its offset",
            f"unpack the shards, such as gunzip {directory}/*.tar.gz",
        )
    return names


def _other_names(listed: list[str]) -> str:
    tars = [name for name in listed if ".tar" in name]
    seen = f"there are {', '.join(tars[:3])}; " if tars else ""
    return f"{seen}data.args.train and data.args.test are their patterns, such as train-*.tar; test may be null"


def _places(directory: Path, pattern: str) -> list[Path]:
    """Return where the index may lie, the best place first."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", pattern.removesuffix(".tar")) + ".index"
    base, key = cache.user_directory(), hashlib.sha256(os.fsencode(directory)).hexdigest()[:32]
    beside = [directory / name]
    return beside if base is None else [*beside, base / "indexes" / key / name]


def _lock(directory: Path, pattern: str) -> Path | None:
    return next((file for file in _places(directory, pattern) if os.access(file.parent, os.W_OK)), None)


def _first(places: Iterable[Path], directory: Path, pattern: str) -> Index | None:
    for file in places:
        if (found := _stored(file, directory, pattern)) is not None:
            header, begin = found
            with file.open("rb") as opened:
                opened.seek(begin)
                content = opened.read(_BYTES * header.count)
            if _digest(header.shards, header.classes, content) == header.digest:
                return Index(header, content)
    return None


def _stored(file: Path, directory: Path, pattern: str) -> tuple[Header, int] | None:
    """Return the header of an index that still holds, and where its rows begin."""
    names = shard_names(directory, pattern)
    try:
        with file.open("rb") as opened:
            line = opened.readline(_MOST_HEADER)
            size = os.fstat(opened.fileno()).st_size
        header = msgspec.json.decode(line, type=Header)
    except (OSError, ValueError):  # none, or damaged: it is made again
        return None
    holds = (
        header.format == _FORMAT
        and header.pattern == pattern
        and [shard.name for shard in header.shards] == names
        and all(shard.samples > 0 and _unchanged(directory, shard) for shard in header.shards)
        and header.classes > 0
        and size == len(line) + _BYTES * header.count
    )
    return (header, len(line)) if holds else None


def _unchanged(directory: Path, shard: Shard) -> bool:
    try:
        about = os.stat(os.path.join(directory, shard.name))  # noqa: PTH116, PTH118 - thousands of them
    except OSError:
        return False
    return (about.st_size, about.st_mtime_ns) == (shard.size, shard.modified_ns)


def _padded(header: Header) -> bytes:
    line = msgspec.json.encode(header)
    return line + b" " * (-(len(line) + 1) % 8) + b"\n"


def _digest(shards: Iterable[Shard], classes: int, content: bytes) -> str:
    table = msgspec.json.encode([classes, [(shard.name, shard.size, shard.samples) for shard in shards]])
    return hashlib.sha256(table + b"\n" + content).hexdigest()


def _read_all(paths: list[Path]) -> Iterator[Rows]:
    """Read the headers of shards, in their order; by several processes where that saves more than they cost."""
    processes = min(len(os.sched_getaffinity(0)), len(paths) // 2, _MOST_PROCESSES)
    if processes < 2 or sum(path.stat().st_size for path in paths) < _WORTH_BYTES:
        yield from map(rows, paths)
        return
    from hpctrain.data.pool import pool

    # spawned: a rank has threads, which do not survive a fork
    with pool(processes, "spawn") as workers:
        yield from workers.map(rows, paths)
