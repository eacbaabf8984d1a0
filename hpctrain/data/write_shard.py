"""Write one tar shard: the same samples give the same bytes, whoever writes them and how often he has to begin anew."""

import hashlib
import os
import re
import tarfile
from collections import Counter
from pathlib import Path

import msgspec
import numpy.typing as npt

from hpctrain.data import cache, packed
from hpctrain.data.recode import recode
from hpctrain.data.tar import BLOCK
from hpctrain.data.unpacked import Unpacked
from hpctrain.errors import DataError


class Record(msgspec.Struct, frozen=True):
    """What is known of a finished shard."""

    shard: packed.Shard
    per_class: dict[int, int]
    skipped: tuple[packed.Skipped, ...]


def write_shard(
    source: Unpacked, samples: npt.ArrayLike, path: Path, scratch: Path, settings: packed.Settings
) -> Record:
    """Write samples of a source into a shard, and its record into `scratch` before that gets its name.

    Args:
        source: of the samples.
        samples: their numbers, in the order of the shard.
        path: of the shard.
        scratch: a directory of the same file system.
        settings: how pictures are stored, and what becomes of those that cannot be read.

    Raises:
        DataError: a picture cannot be decoded, and `settings.on_error` is stop.
        OSError: the shard cannot be written.
    """
    temporary, digest, skipped = scratch / path.name, hashlib.sha256(), []
    per_class: Counter[int] = Counter()
    with temporary.open("wb") as file:

        def put(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)  # whose owner, time and mode are constants
            member.size = len(content)
            whole = member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)
            digest.update(whole)
            file.write(whole)

        for number in map(int, samples):  # type: ignore[arg-type]
            try:
                content, label = source.read(number)
                picture, suffix = recode(content, resize=settings.resize, quality=settings.quality)
            except (DataError, ValueError) as error:
                found = _reason(source, number, error)
                if settings.on_error == "stop":
                    hint = "remove the file, or leave out what cannot be read: --on-error skip"
                    raise DataError(f"{found.where} {found.reason}", hint) from None
                skipped.append(found)
                continue
            key = _key(number, source.stem(number))
            put(f"{key}.{suffix}", picture)
            put(f"{key}.cls", str(label).encode())
            per_class[label] += 1
        if not per_class:
            raise DataError(f"{path.name}: of {len(skipped)} samples none can be read, such as {skipped[0].where}")
        end = bytes(tarfile.RECORDSIZE - file.tell() % tarfile.RECORDSIZE)
        end += bytes(tarfile.RECORDSIZE) * (len(end) < 2 * BLOCK)
        digest.update(end)
        file.write(end)
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    shard = packed.Shard(path.name, per_class.total(), size, digest.hexdigest())
    record = Record(shard, dict(sorted(per_class.items())), tuple(skipped))
    cache.write(record_path(scratch, path.name), [msgspec.json.encode(record)])
    cache.publish(temporary, path)
    return record


def record_path(scratch: Path, name: str) -> Path:
    """Return where the record of a shard lies until all shards are there."""
    return scratch / f"{name}.json"


def finished(path: Path, scratch: Path) -> Record | None:
    """Return the record of a shard that an earlier call has finished."""
    try:
        record = msgspec.json.decode(record_path(scratch, path.name).read_bytes(), type=Record)
        return record if path.stat().st_size == record.shard.bytes else None
    except (OSError, ValueError):
        return None


def _reason(source: Unpacked, number: int, error: DataError | ValueError) -> packed.Skipped:
    where = source.where(number)
    text = error.message if isinstance(error, DataError) else str(error)
    return packed.Skipped(where, text.removeprefix(where).lstrip())


def _key(number: int, stem: str) -> str:
    """Return a key that no other sample has, and that says where it comes from."""
    return f"{number:08d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[:60]}"
