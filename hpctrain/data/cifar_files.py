"""The binary version of CIFAR-10 and CIFAR-100: which files there are, and what they hold; no numpy.

Format (A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009, and its web page): records of one
label (CIFAR-100: coarse label, fine label) and 3 x 32 x 32 bytes, the red plane first, each row by row.
"""

import mmap
from pathlib import Path
from typing import NamedTuple

from hpctrain.errors import UsageError

PIXELS = 3 * 32 * 32
_SOURCE = "https://www.cs.toronto.edu/~kriz/"


class Layout(NamedTuple):
    """Of one of the two datasets."""

    classes: int
    labels: int
    """Bytes before the pixels of a record; the last of them is the label that is used."""
    files: dict[str, tuple[str, ...]]
    """Of training and of test set."""
    names: str
    """The file with the classes' names."""
    archive: str

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return self.labels + PIXELS


LAYOUTS = {
    "cifar10": Layout(
        10,
        1,
        {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
        "batches.meta.txt",
        "cifar-10-binary.tar.gz",
    ),
    "cifar100": Layout(
        100, 2, {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt", "cifar-100-binary.tar.gz"
    ),
}


def kept(directory: Path, layout: Layout, only: tuple[str, ...]) -> tuple[int, ...]:
    """Return the labels of the classes to keep, in the order in which `only` names them; all if it is empty.

    Raises:
        UsageError: the file of names cannot be read, or has no such name.
    """
    if not only:
        return tuple(range(layout.classes))
    path = directory / layout.names
    try:
        with path.open("rb") as file:
            names = file.read(2**16).decode("ascii", "replace").split()
    except OSError as error:
        raise _unreadable(path, error, layout) from None
    if len(names) != layout.classes:
        raise UsageError(f"{path}: has {len(names)} names, {layout.classes} are expected", _again(layout))
    for name in only:
        if name not in names:
            raise UsageError(f"data.args.only: there is no class {name!r}", f"the classes are: {', '.join(names)}")
    return tuple(names.index(name) for name in only)


def records(path: Path, layout: Layout) -> int:
    """Count the records of a file by its size.

    Raises:
        UsageError: it cannot be read, or ends inside a record.
    """
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error, layout) from None
    if not size or size % layout.record:
        raise UsageError(
            f"{path}: has {size} bytes, which is no multiple of the {layout.record} of one image" if size else
            f"{path}: is empty",
            _again(layout),
        )  # fmt: skip
    return size // layout.record


def count(directory: Path, dataset: str, only: tuple[str, ...]) -> dict[str, int]:
    """Count the images of training and test set.

    Only where classes are chosen the labels are looked at, which reads the files.

    Raises:
        UsageError: a file is missing, or not what its name says.
    """
    layout = LAYOUTS[dataset]
    labels = kept(directory, layout, only)
    found = {}
    for split, names in layout.files.items():
        paths = [directory / name for name in names]
        found[split] = sum(records(path, layout) for path in paths)
        if only:
            found[split] = sum(_of_classes(path, layout, labels) for path in paths)
    return found


def _of_classes(path: Path, layout: Layout, labels: tuple[int, ...]) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        there = content[layout.labels - 1 :: layout.record]
    return sum(there.count(label) for label in labels)


def _unreadable(path: Path, error: OSError, layout: Layout) -> UsageError:
    return UsageError(f"{path}: {error.strerror}", _again(layout))


def _again(layout: Layout) -> str:
    return f"unpack {_SOURCE}{layout.archive} and give the directory of its .bin files: data.path=DIR"
