"""Read CIFAR-10 and CIFAR-100 from their binary version, see `cifar_files`."""

from pathlib import Path

import numpy as np

from hpctrain.data.cifar_files import LAYOUTS, Layout, kept, records
from hpctrain.data.raw import Bytes, Raw
from hpctrain.errors import DataError, UsageError


def read(directory: Path, dataset: str, only: tuple[str, ...]) -> Raw:
    """Read training and test set.

    Args:
        directory: of the files.
        dataset: cifar10 or cifar100; of the latter the fine labels are used.
        only: names of the classes to keep, which become classes 0, 1, ... in this order; all if empty.

    Raises:
        DataError: a file is missing, or not what its name says.
    """
    layout = LAYOUTS[dataset]
    try:
        labels = kept(directory, layout, only)
        parts = {split: _read(directory, layout, names, labels) for split, names in layout.files.items()}
    except UsageError as error:  # it was there when the job was submitted
        raise DataError(error.message, error.hint) from None
    return Raw(parts["train"], parts["test"], len(labels))


def _read(directory: Path, layout: Layout, names: tuple[str, ...], labels: tuple[int, ...]) -> tuple[Bytes, Bytes]:
    """Read the files of a split, one after the other; what is not kept is dropped at once."""
    images, classes = [], []
    new = np.full(256, 255, np.uint8)
    new[list(labels)] = np.arange(len(labels), dtype=np.uint8)
    for name in names:
        path = directory / name
        expected = records(path, layout)
        try:
            content = np.fromfile(path, np.uint8, expected * layout.record).reshape(-1, layout.record)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        found = content[:, layout.labels - 1]
        if int(found.max()) >= layout.classes:
            place = int(np.argmax(found >= layout.classes))
            raise DataError(
                f"{path}: image {place} (byte {place * layout.record}) has the label {found[place]}, "
                f"{layout.classes - 1} is the largest",
                "is it the binary version of this dataset? Unpack it again",
            )
        keep = np.isin(found, labels)
        images.append(content[keep, layout.labels :].reshape(-1, 3, 32, 32))
        classes.append(new[found[keep]])
    return np.concatenate(images), np.concatenate(classes)
