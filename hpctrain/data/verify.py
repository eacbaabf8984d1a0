"""`hpctrain pack --verify OUT`: hold the shards against index.json; a process of its own, as it may take hours."""

import hashlib
import os
import sys
from array import array
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hpctrain.data import packed
from hpctrain.data.pool import pool
from hpctrain.data.progress import Progress
from hpctrain.data.samples import rows
from hpctrain.errors import DataError, HpctrainError, UsageError

_CHUNK = 2**22


class Checked(NamedTuple):
    """What one shard turned out to be."""

    problem: str
    """Empty if all is well."""
    per_class: dict[int, int]


def verify(directory: Path, workers: int | None = None) -> list[str]:
    """Return what is wrong with packed shards: missing, foreign, other bytes, other samples or counts.

    Raises:
        UsageError: there is no index.json of `hpctrain pack`.
        DataError: that is damaged.
    """
    contents = packed.read(directory) if directory.is_dir() else None
    if contents is None:
        raise UsageError(f"{directory} holds no {packed.NAME} of hpctrain pack", "give the OUT of a finished pack")
    problems = []
    shards = [(name, shard) for name, split in contents.splits.items() for shard in split.shards]
    counts: dict[str, Counter[int]] = {name: Counter() for name in contents.splits}
    with pool(workers or len(os.sched_getaffinity(0)), "fork") as processes:
        progress = Progress("verifying", "shards")
        checked = processes.map(_check, [directory / shard.name for _, shard in shards], [shard for _, shard in shards])
        for number, (found, (name, _)) in enumerate(zip(checked, shards, strict=True)):
            problems += [found.problem] * bool(found.problem)
            counts[name].update(found.per_class)
            progress(number + 1, len(shards))
    for name, split in contents.splits.items():
        listed = {shard.name for shard in split.shards}
        problems += [
            f"{other}: {packed.NAME} does not name it, but training would read it"
            for other in sorted(directory.glob(f"{name}-*.tar"))
            if other.name not in listed
        ]
        counted = tuple(counts[name][label] for label in range(len(contents.names)))
        if not problems and counted != split.per_class:
            problems.append(f"{directory / packed.NAME}: {name} holds other numbers of samples in the classes")
    return problems


def _check(path: Path, expected: packed.Shard) -> Checked:
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != expected.sha256:
            return Checked(f"{path}: its SHA-256 is not the one of {packed.NAME}: it changed, or was cut", {})
        found = rows(path)
    except OSError as error:
        return Checked(f"{path} cannot be read: {error.strerror}", {})
    except DataError as error:
        return Checked(error.message, {})
    if (found.samples, found.size) != (expected.samples, expected.bytes):
        return Checked(f"{path} holds {found.samples} samples; {packed.NAME} says {expected.samples}", {})
    return Checked("", dict(Counter(array("i", found.labels))))


def main() -> None:
    """Verify the directory that is the one argument."""
    directory = Path(sys.argv[1]).absolute()
    try:
        if problems := verify(directory):
            raise DataError("\n".join(problems), "pack it again into another directory, or get these shards again")
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"hpctrain: {directory}: all shards are what {packed.NAME} says", file=sys.stderr)


if __name__ == "__main__":
    main()
