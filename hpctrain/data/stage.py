"""Copy shards to a disk of the node, once for each node; whoever cannot reads the original, and says so."""

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from hpctrain.data import cache, index, packed, workers
from hpctrain.errors import DataError

_CHUNK = 2**22
_THREADS = 4  # a parallel file system gives several streams more than one
_RESERVE = 2**26  # bytes that stay free for others


def staged(where: str, directory: Path, headers: Sequence[index.Header], contents: packed.Contents | None) -> Path:
    """Return the directory to read shards from: a copy on the node, or the original.

    The first process of a node copies, under a lock that the others wait for. A copy that is whole is used again by
    later jobs of the same user. Files have the checksum of index.json where there is one, else their size is checked.

    Args:
        where: a directory on the node; variables of the environment are put in here, on the node.
        directory: of the shards.
        headers: of their indexes.
        contents: of index.json.

    Raises:
        DataError: a shard is not the one that index.json describes.
    """
    base = os.path.expandvars(where)
    if "$" in base or not base:
        return _stay(directory, f"{where} names a variable that is not set on this node")
    if not Path(base).is_dir():
        return _stay(directory, f"there is no directory {base} on this node")
    shards = {shard.name: shard for header in headers for shard in header.shards}
    splits = () if contents is None else contents.splits.values()
    sums = {shard.name: shard.sha256 for split in splits for shard in split.shards}
    try:
        place = _private(Path(base)) / _key(headers, sums)
        with cache.alone(place) as held:
            if not held:
                return _stay(directory, f"{place.parent} cannot be locked")
            return place if _fill(place, directory, list(shards.values()), sums) else directory
    except OSError as error:
        return _stay(directory, f"{error.filename or base}: {error.strerror}")


def _stay(directory: Path, reason: str) -> Path:
    _say(f"data.stage: {reason}; shards are read from {directory}")
    return directory


def _say(text: str) -> None:
    print(f"hpctrain: {text}", file=sys.stderr, flush=True)


def _private(base: Path) -> Path:
    """Make this user's directory; in a shared place, another user's by that name is not trusted.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    made = base / f"hpctrain-{os.getuid()}"
    made.mkdir(mode=0o700, exist_ok=True)
    about = made.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "is not this user's alone", str(made))
    return made


def _key(headers: Sequence[index.Header], sums: dict[str, str]) -> str:
    """Name a copy by what is in it: checksums, or where there are none, times of change."""
    text = "".join(
        f"{header.digest} {[sums.get(shard.name, shard.modified_ns) for shard in header.shards]}\n"
        for header in headers
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _fill(place: Path, directory: Path, shards: list[index.Shard], sums: dict[str, str]) -> bool:
    """Copy what is missing; say whether the copy is whole now."""
    place.mkdir(mode=0o700, exist_ok=True)
    for left in place.glob(".*"):  # of a process that was killed; whoever holds the lock is alone here
        left.unlink()
    missing = [shard for shard in shards if not _is_whole(place / shard.name, shard.size)]
    if not missing:
        return True
    needed, free = sum(shard.size for shard in missing), shutil.disk_usage(place).free
    if free < needed + _RESERVE:
        _stay(directory, f"{place} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")
        return False
    _say(f"data.stage: copying {len(missing)} shards, {needed / 1e9:.1f} GB, to {place}")
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(_THREADS, initializer=workers.block_signals)
    try:
        list(pool.map(lambda shard: _copy(directory, place, shard, sums.get(shard.name)), missing))
    except BaseException as error:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(place, ignore_errors=True)  # half a copy would keep a full disk full
        if not isinstance(error, OSError):
            raise
        _stay(directory, f"{place}: {error.strerror}")
        return False
    pool.shutdown()
    return True


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _copy(directory: Path, place: Path, shard: index.Shard, expected: str | None) -> None:
    """Copy a shard, and give it its name when all of it has been written.

    Raises:
        DataError: it has another checksum or size than it should.
    """
    digest, size, source = hashlib.sha256(), 0, directory / shard.name
    temporary = place / f".{shard.name}"
    with source.open("rb") as read, temporary.open("wb") as write:
        while chunk := read.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            write.write(chunk)
        write.flush()
        os.fsync(write.fileno())
    if size != shard.size or expected not in {None, digest.hexdigest()}:
        raise DataError(
            f"{source}: what was read is not what {packed.NAME} says" if expected else f"{source} changed its size",
            f"hpctrain pack --verify {directory} says which shards are damaged",
        )
    temporary.replace(place / shard.name)
