"""What `hpctrain pack` writes beside its shards: index.json."""

import os
from pathlib import Path

import msgspec

from hpctrain.errors import DataError

NAME = "index.json"
_MOST_BYTES = 2**28


class Shard(msgspec.Struct, frozen=True):
    """One tar file."""

    name: str
    samples: int
    bytes: int
    sha256: str


class Skipped(msgspec.Struct, frozen=True):
    """A sample of the source that is in no shard."""

    where: str
    reason: str


class Split(msgspec.Struct, frozen=True):
    """The shards of `train` or `val`."""

    samples: int
    per_class: tuple[int, ...]
    """Samples of each class, by label."""
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...] = ()


class Settings(msgspec.Struct, frozen=True):
    """What the bytes of the shards follow from, besides the source."""

    source: str
    """SHA-256 of the names in the source, or of the files' bytes for IDX."""
    shard_mb: int
    resize: int | None
    quality: int
    seed: int
    on_error: str


class Contents(msgspec.Struct, frozen=True):
    """index.json."""

    format: str
    settings: Settings
    names: tuple[str, ...]
    """Of the classes, by label."""
    splits: dict[str, Split]


FORMAT = "hpctrain-shards-1"


def read(directory: Path) -> Contents | None:
    """Read index.json; None if there is none, or it is another program's.

    Raises:
        DataError: it is damaged.
    """
    path = directory / NAME
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            text = file.read(min(size, _MOST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if msgspec.json.decode(text, type=_Any).format != FORMAT:
            return None
        return msgspec.json.decode(text, type=Contents)
    except ValueError as error:
        hint = "get it again from where the shards come from, or pack them again"
        raise DataError(f"{path} is damaged: {error}", hint) from None


class _Any(msgspec.Struct):
    format: str = ""
