"""Pictures in tar shards, as WebDataset and `hpctrain pack` write them; any of them is one read at a known offset."""

import bisect
import itertools
import os
from pathlib import Path

import numpy as np

from hpctrain.config import schema
from hpctrain.config.datasets import ShardsArgs
from hpctrain.data import index as indexes
from hpctrain.data import packed, stage
from hpctrain.data.index import Index
from hpctrain.data.locate import combined
from hpctrain.data.sizes import LARGEST
from hpctrain.data.tar import BLOCK, shown
from hpctrain.errors import DataError, UsageError

_MOST_OPEN = 512  # shards that stay open; others are opened for each read


class Shards:
    """A `hpctrain.data.source.Source` of the samples of an index.

    Args:
        directory: of the shards; on the node if they are staged.
        found: the index.
        names: of the classes, by label.

    Raises:
        DataError: the index names a sample beyond the end of its shard, or a label that has no name.
    """

    def __init__(self, directory: Path, found: Index, names: tuple[str, ...]) -> None:
        self.directory, self.names = directory, names
        header, count = found.header, found.header.count
        self._shards = header.shards
        self._first = [0, *itertools.accumulate(shard.samples for shard in header.shards)]
        self._offsets = np.frombuffer(found.rows, "<u8", count)
        self._sizes = np.frombuffer(found.rows, "<u4", count, 8 * count)
        self._labels = np.frombuffer(found.rows, "<i4", count, 12 * count)
        self._open: dict[int, int] = {}
        ends = np.repeat(np.array([shard.size for shard in header.shards], np.uint64), np.diff(self._first))
        inside = (self._offsets >= BLOCK) & (self._offsets <= ends) & (self._sizes <= ends - self._offsets)
        if not (inside.all() and 0 < int(self._sizes.min()) <= int(self._sizes.max()) <= LARGEST):
            raise DataError(f"{directory}: the index of {header.pattern} does not fit the shards", "remove the .index")
        if not 0 <= int(self._labels.min()) <= int(self._labels.max()) < len(names):
            raise DataError(
                f"{directory}: {header.pattern} has the label {self._labels.max()}, and there are {len(names)} classes"
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> tuple[bytes, int]:
        """Return an encoded picture and its label, see `hpctrain.data.source.Source`."""
        shard = self._shard(index)
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        try:
            content = self._pread(shard, size, offset)
        except OSError as error:
            raise DataError(f"{self.where(index)} cannot be read: {error.strerror}") from None
        if len(content) != size:
            raise DataError(
                f"{self.where(index)} ends after {len(content)} of {size} bytes",
                "the shard was cut after the run was submitted: get it again",
            )
        return content, int(self._labels[index])

    def where(self, index: int) -> str:
        """Return shard, member and offset of a sample, for messages."""
        shard, offset = self._shard(index), int(self._offsets[index])
        try:
            header = self._pread(shard, 100, offset - BLOCK)
        except OSError:
            header = b""
        name = shown(header.partition(b"\0")[0].decode(errors="surrogateescape"))
        return f"{self.directory / self._shards[shard].name}: member {name}, byte {offset}"

    def close(self) -> None:
        """Close the shards; they are opened again when something is read."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _shard(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return bisect.bisect_right(self._first, index) - 1

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        descriptor = self._open.get(shard)
        if descriptor is not None:
            return os.pread(descriptor, size, offset)
        descriptor = os.open(self.directory / self._shards[shard].name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.pread(descriptor, size, offset)
        except OSError:
            os.close(descriptor)
            raise
        # two threads may open the same shard at once, and one of them keeps it
        if len(self._open) >= _MOST_OPEN or self._open.setdefault(shard, descriptor) != descriptor:
            os.close(descriptor)
        return content


def open_sources(data: schema.Data, path: str, digest: str | None = None) -> tuple[Shards, Shards | None]:
    """Open the training and the test pictures of `dataset: shards`, on the node if `data.stage` says so.

    Args:
        data: the config's section.
        path: the directory of the shards as the plan has it.
        digest: of the shards as the plan has it.

    Returns:
        Training and test pictures; None for the latter where `data.args.test` is null.

    Raises:
        DataError: they are not there, damaged, or others than when the job was planned.
    """
    args: ShardsArgs = schema.arguments(ShardsArgs, data.args)
    directory = Path(path)
    try:
        found = [indexes.load(directory, pattern) for pattern in (args.train, args.test) if pattern is not None]
    except UsageError as error:  # they were there when the job was submitted
        raise DataError(error.message, error.hint) from None
    now = combined(found[0].header.digest, found[1].header.digest if len(found) > 1 else None)
    if digest not in {None, now}:
        raise DataError(f"{path}: the shards changed after the run was submitted", "submit it again")
    contents = packed.read(directory)
    names = tuple(map(str, range(found[0].header.classes))) if contents is None else contents.names
    if data.stage is not None:
        directory = stage.staged(data.stage, directory, [index.header for index in found], contents)
    sources = [Shards(directory, index, names) for index in found]
    return sources[0], sources[1] if len(sources) > 1 else None
