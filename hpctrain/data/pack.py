"""`hpctrain pack`: class directories or IDX files -> tar shards. A process of its own, as it needs numpy.

1. List the source, and work out which samples go into which shard, in which order: a function of source and settings.
2. Worker processes write whole shards into OUT/.pack, and give each its name when it is on the disk.
3. When all are there: index.json, the offset index, and OUT/.pack goes.

Killed at any moment and called again, it goes on with the shards that are missing, and ends with the same bytes.
"""

import functools
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from hpctrain.data import cache, index, packed, unpacked
from hpctrain.data.order import order
from hpctrain.data.pool import pool
from hpctrain.data.progress import Progress
from hpctrain.data.recode import recode
from hpctrain.data.tar import BLOCK
from hpctrain.data.write_shard import Record, finished, write_shard
from hpctrain.errors import DataError, HpctrainError, UsageError

_EPOCH = -2  # whose order no epoch and no split has
_PROBED = 64  # pictures that tell how large resized ones become
_SHOWN = 20  # skipped samples that are printed; index.json has all


class Asked(msgspec.Struct, frozen=True):
    """What the command line says."""

    src: str
    out: str
    shard_mb: int
    resize: int | None
    quality: int
    seed: int
    on_error: Literal["stop", "skip"]
    workers: int | None


class Job(NamedTuple):
    """One shard to write."""

    split: str
    number: int
    of: int
    path: Path

    def samples(self, total: int, seed: int) -> npt.NDArray[np.int64]:
        """Return the samples of this shard: a range of a permutation of the whole split."""
        begin, end = self.number * total // self.of, (self.number + 1) * total // self.of
        return order(total, seed, _EPOCH, np.arange(begin, end))


def pack(asked: Asked) -> packed.Contents:
    """Pack a source, or go on with packing it.

    Raises:
        UsageError: the source is none, or OUT holds something else.
        DataError: a sample cannot be read, and `on_error` is stop.
    """
    source, out = Path(asked.src).absolute(), Path(asked.out).absolute()
    if out.is_relative_to(source):
        raise UsageError(f"{out} lies in {source}, and would be taken for a part of it", "give an OUT beside SRC")
    splits = unpacked.open_splits(source, Progress("listing", "classes"))
    settings = packed.Settings(splits.digest, asked.shard_mb, asked.resize, asked.quality, asked.seed, asked.on_error)
    if (done := _already(out, settings)) is not None:
        return done
    scratch = _scratch(out, settings)
    with cache.alone(scratch / "pack", wait=False) as held:
        if not held:
            raise UsageError(f"{out}: another hpctrain pack is writing there, or it cannot be locked", "wait for it")
        jobs = [job for name in splits.sources for job in _jobs(out, name, splits.sources[name], settings)]
        records = _write_all(jobs, splits.sources, scratch, settings, asked.workers)
        first = next(iter(splits.sources.values()))
        contents = packed.Contents(packed.FORMAT, settings, first.names, {
            name: _split(len(first.names), [records[job] for job in jobs if job.split == name])
            for name in splits.sources
        })  # fmt: skip
        for name in splits.sources:
            index.make(out, f"{name}-*.tar", Progress("indexing", "shards"))
        cache.write(out / packed.NAME, [msgspec.json.format(msgspec.json.encode(contents), indent=1), b"\n"])
        shutil.rmtree(scratch)
    return contents


def _already(out: Path, settings: packed.Settings) -> packed.Contents | None:
    """Return what OUT holds if an earlier call has done all of this."""
    found = packed.read(out) if out.is_dir() else None
    if found is None:
        return None
    if found.settings != settings:
        raise UsageError(f"{out} holds shards of another source, or with other settings", "give another OUT")
    shards = [shard for split in found.splits.values() for shard in split.shards]
    if any(not (out / shard.name).is_file() for shard in shards):
        raise UsageError(
            f"{out}: shards are missing that {packed.NAME} names", f"rm {out / packed.NAME}, and try again"
        )
    shutil.rmtree(out / ".pack", ignore_errors=True)  # killed after the last word was written
    return found


def _scratch(out: Path, settings: packed.Settings) -> Path:
    """Make OUT/.pack, or find it as an earlier call left it."""
    scratch = out / ".pack"
    file, text = scratch / "settings.json", msgspec.json.encode(settings)
    try:
        if out.is_dir() and not scratch.is_dir() and any(out.iterdir()):
            raise UsageError(f"{out} is not empty, and no unfinished pack", "give a new directory as OUT")
        scratch.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            cache.write(file, [text])
        elif file.read_bytes() != text:
            raise UsageError(
                f"{out} holds an unfinished pack of another source, or with other settings",
                f"call it as before, give another OUT, or rm -r {out}",
            )
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}", "give a directory that can be written as OUT") from None
    return scratch


def _jobs(out: Path, split: str, source: unpacked.Unpacked, settings: packed.Settings) -> list[Job]:
    """Cut a split into shards of about the size that was asked for, with about as many samples each."""
    members = 3 * BLOCK  # two headers, and the label
    size = sum(_padded(each) for each in _sizes(source, settings)) + members * len(source)
    shards = min(max(round(size / (settings.shard_mb * 1e6)), 1), len(source))
    return [Job(split, number, shards, out / f"{split}-{number:06d}.tar") for number in range(shards)]


def _sizes(source: unpacked.Unpacked, settings: packed.Settings) -> Iterator[int]:
    """Yield what the pictures take in a shard: as they are, or estimated from some of them."""
    some = order(len(source), settings.seed, _EPOCH, np.arange(min(_PROBED, len(source)))).tolist()
    recoded = settings.resize is not None or not isinstance(source.read(some[0])[0], bytes)
    if not recoded:
        progress = Progress("measuring", "files")
        for number in range(len(source)):
            progress(number + 1, len(source))
            yield source.size(number)
        return
    found = []
    for number in some:
        try:
            picture, _ = recode(source.read(number)[0], resize=settings.resize, quality=settings.quality)
        except (DataError, ValueError):  # it is reported when its turn comes
            continue
        found.append(len(picture))
    mean = math.ceil(sum(found) / max(len(found), 1))
    yield from (mean for _ in range(len(source)))


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


_sources: dict[str, unpacked.Unpacked] = {}  # of a worker: forked, so that a listing is not made or sent again


def _write(job: Job, scratch: Path, settings: packed.Settings) -> Record:
    source = _sources[job.split]
    return write_shard(source, job.samples(len(source), settings.seed), job.path, scratch, settings)


def _write_all(
    jobs: list[Job],
    sources: dict[str, unpacked.Unpacked],
    scratch: Path,
    settings: packed.Settings,
    workers: int | None,
) -> dict[Job, Record]:
    """Write the shards that are missing; return the records of all."""
    records = {job: record for job in jobs if (record := finished(job.path, scratch)) is not None}
    missing = [job for job in jobs if job not in records]
    progress = Progress("packing", "shards")
    if records:
        print(f"hpctrain: going on: {len(records)} of {len(jobs)} shards are there", file=sys.stderr, flush=True)
    _sources.update(sources)
    if not missing:
        return records
    try:
        with pool(min(workers or len(os.sched_getaffinity(0)), len(missing)), "fork") as processes:
            waiting: dict[Future[Record], Job] = {
                processes.submit(_write, job, scratch, settings): job for job in missing
            }
            while waiting:
                progress(len(records), len(jobs))
                done, _ = wait(waiting, return_when=FIRST_COMPLETED, timeout=1)
                for future in done:
                    records[waiting.pop(future)] = future.result()
            progress(len(records), len(jobs))
    except OSError as error:
        raise UsageError(f"{scratch.parent}: {error.strerror}", "make room, and call it again: it goes on") from None
    return records


def _split(classes: int, records: list[Record]) -> packed.Split:
    per_class = functools.reduce(Counter.__add__, (Counter(record.per_class) for record in records), Counter[int]())
    return packed.Split(
        sum(record.shard.samples for record in records),
        tuple(per_class[label] for label in range(classes)),
        tuple(record.shard for record in records),
        tuple(skipped for record in records for skipped in record.skipped),
    )


def report(contents: packed.Contents) -> Iterator[str]:
    """Yield lines for people: how much there is, how even the classes are, and what was left out."""
    for name, split in contents.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        yield f"{name}: {split.samples} samples in {len(split.shards)} shards, {size / 1e6:.1f} MB"
        counts = sorted((count, contents.names[label]) for label, count in enumerate(split.per_class))
        (least, rare), (most, common) = counts[0], counts[-1]
        yield f"{name}: {len(counts)} classes of {least} ({rare}) to {most} ({common}) samples"
        empty = [name for count, name in counts if not count]
        if empty:
            yield f"{name}: no samples of {', '.join(empty[:_SHOWN])}{' ...' if len(empty) > _SHOWN else ''}"
        for skipped in split.skipped[:_SHOWN]:
            yield f"{name}: left out: {skipped.where} {skipped.reason}"
        if len(split.skipped) > _SHOWN:
            yield f"{name}: {len(split.skipped) - _SHOWN} more were left out; {packed.NAME} lists them"


def main() -> None:
    """Pack as `Asked` in JSON, the one argument, says."""
    try:
        contents = pack(msgspec.json.decode(sys.argv[1], type=Asked))
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("hpctrain: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    for line in report(contents):
        print(f"hpctrain: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
