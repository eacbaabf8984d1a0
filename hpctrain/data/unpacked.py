"""What `hpctrain pack` reads: class directories, or IDX files under MNIST's names."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hpctrain.data import idx, listing
from hpctrain.data.folder import Folder
from hpctrain.data.locate import MNIST, idx_file
from hpctrain.data.source import Source
from hpctrain.errors import DataError, UsageError


class Unpacked(Source, Protocol):
    """A source that also knows its samples without reading them."""

    def label(self, index: int) -> int:
        """Return the label of a sample."""

    def stem(self, index: int) -> str:
        """Return the name of a sample, for its key."""

    def size(self, index: int) -> int:
        """Return its bytes in the source."""


class Splits(NamedTuple):
    """All that a directory holds."""

    sources: dict[str, Unpacked]
    """By the name that the shards get: train, val."""
    digest: str
    """SHA-256 of what tells this source from others."""


class Idx:
    """Images and labels of IDX files."""

    def __init__(self, images: Path, labels: Path, classes: int | None = None) -> None:
        self.path, self._images, self._labels = images, idx.read(images), idx.read(labels)
        if self._images.ndim != 3 or self._labels.ndim != 1 or not 0 < len(self._images) == len(self._labels):
            raise DataError(f"{images} {self._images.shape} and {labels} {self._labels.shape} do not match")
        most = int(self._labels.max()) + 1
        if classes is not None and most > classes:
            raise DataError(f"{labels} holds the label {most - 1}, and the training labels have {classes} classes")
        self.names = tuple(map(str, range(classes or most)))

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Return pixels `(1, H, W)` and the label."""
        return self._images[index][None], self.label(index)

    def where(self, index: int) -> str:
        """Return the file and the image's number."""
        return f"{self.path}: image {index}"

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self._labels[index])

    def stem(self, index: int) -> str:
        """Return the image's number; the files have no names."""
        return str(index)

    def size(self, index: int) -> int:
        """Return the bytes of one image."""
        return int(self._images[index].size)

    def digest(self) -> bytes:
        """Return the SHA-256 of all bytes."""
        return hashlib.sha256(self._images.data).digest() + hashlib.sha256(self._labels.data).digest()


def open_splits(directory: Path, tell: Callable[[int, int], None] | None = None) -> Splits:
    """Open a directory: of IDX files, of `train` and `val` (or `test`) with class directories, or of those alone.

    Raises:
        UsageError: it is none of these.
        DataError: a file is damaged.
    """
    try:
        train_files, test_files = (_pair(directory, name) for name in ("train", "test"))
    except UsageError as error:
        if any(directory.glob("*-idx?-ubyte*")):  # some of the four files are there
            raise UsageError(error.message, "put the missing file there") from None
    else:
        train = Idx(*train_files)
        test = Idx(*test_files, classes=len(train.names))
        return Splits({"train": train, "val": test}, hashlib.sha256(train.digest() + test.digest()).hexdigest())
    parts = _class_trees(directory)
    sources: dict[str, Unpacked] = {}
    digest = hashlib.sha256()
    names = None
    for name, path in parts.items():
        found = listing.load(path, tell)
        sources[name] = Folder(found, names)
        names = sources[name].names
        digest.update(f"{name} {found.summary.digest}\n".encode())
    return Splits(sources, digest.hexdigest())


def _pair(directory: Path, split: str) -> tuple[Path, Path]:
    images, labels = MNIST[split]
    return idx_file(directory, images), idx_file(directory, labels)


def _class_trees(directory: Path) -> dict[str, Path]:
    """Return the directories whose directories are classes, by the names of the splits."""
    train = directory / "train"
    if not train.is_dir() or not any(entry.is_dir() for entry in train.iterdir()):
        return {"train": directory}
    for name in ("val", "test"):
        if (directory / name).is_dir():
            return {"train": train, "val": directory / name}
    return {"train": train}
