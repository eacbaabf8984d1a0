"""Pictures in one directory for each class, such as n01440764/n01440764_10026.JPEG; see `hpctrain.data.listing`."""

import bisect
import itertools
import os
import stat
from pathlib import Path

import numpy as np

from hpctrain.config import schema
from hpctrain.data import listing
from hpctrain.data.locate import combined
from hpctrain.data.sizes import LARGEST
from hpctrain.errors import DataError, UsageError


class Folder:
    """A `hpctrain.data.source.Source` of the files of a listing.

    Args:
        found: the listing.
        names: of the classes, by label; those of the listing unless given.

    Raises:
        UsageError: the listing has a class that `names` has not.
    """

    def __init__(self, found: listing.Listing, names: tuple[str, ...] | None = None) -> None:
        classes = found.summary.classes
        self.root = os.fsencode(found.summary.root)
        self.names = names or tuple(part.name for part in classes)
        number = {name: label for label, name in enumerate(self.names)}
        for part in classes:
            if part.name not in number:
                raise UsageError(
                    f"{found.summary.root}: there is a class {part.name} that the training pictures do not have",
                    "remove its directory, or add it to the training pictures",
                )
        self._labels = [number[part.name] for part in classes]
        self._directories = [part.name.encode() for part in classes]
        self._first = [0, *itertools.accumulate(part.files for part in classes)]
        self._text = found.names
        self._ends = np.flatnonzero(np.frombuffer(found.names, np.uint8) == 0)  # 8 bytes for each file, no strings

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int) -> tuple[bytes, int]:
        """Return an encoded picture and its label, see `hpctrain.data.source.Source`."""
        place, path = self._find(index)
        try:
            # without O_NONBLOCK a named pipe that took the place of a file would be waited for
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                about = os.fstat(descriptor)
                if not stat.S_ISREG(about.st_mode):
                    raise DataError(f"{self.where(index)} is no regular file")
                if not 0 < about.st_size <= LARGEST:
                    raise DataError(
                        f"{self.where(index)} has {about.st_size} bytes; a picture has 1 to {LARGEST}",
                        "get it again, or move it away",
                    )
                content = os.read(descriptor, about.st_size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"{self.where(index)} cannot be read: {error.strerror}") from None
        if len(content) != about.st_size:
            raise DataError(f"{self.where(index)} ends after {len(content)} of {about.st_size} bytes")
        return content, self._labels[place]

    def where(self, index: int) -> str:
        """Return the path of a file, for messages."""
        return os.fsdecode(self._find(index)[1]).encode(errors="surrogateescape").decode(errors="backslashreplace")

    def label(self, index: int) -> int:
        """Return the label of a file, which is not read."""
        return self._labels[self._find(index)[0]]

    def stem(self, index: int) -> str:
        """Return the name of a file without its directory and suffix, as far as it is text."""
        name = os.path.basename(self._find(index)[1])  # noqa: PTH119 - of bytes
        return os.path.splitext(name)[0].decode(errors="replace")  # noqa: PTH122 - of bytes

    def size(self, index: int) -> int:
        """Return the size of a file in bytes.

        Raises:
            DataError: it is gone.
        """
        try:
            return os.stat(self._find(index)[1]).st_size  # noqa: PTH116 - of bytes
        except OSError as error:
            raise DataError(f"{self.where(index)} cannot be read: {error.strerror}") from None

    def _find(self, index: int) -> tuple[int, bytes]:
        """Return which directory of the listing a sample is in, and its path."""
        if not 0 <= index < len(self._ends):
            raise IndexError(f"sample {index} of {len(self._ends)}")
        place = bisect.bisect_right(self._first, index) - 1
        begin = int(self._ends[index - 1]) + 1 if index else 0
        return place, b"/".join((self.root, self._directories[place], self._text[begin : int(self._ends[index])]))


def open_sources(data: schema.Data, path: str, digest: str | None = None) -> tuple[Folder, Folder | None]:
    """Open the training and the test pictures of `dataset: folder`.

    Args:
        data: the config's section.
        path: its directory as the plan has it.
        digest: of the files as the plan has it.

    Returns:
        Training and test pictures, the latter with the labels of the former; None where `data.args.test` is null.

    Raises:
        DataError: they are not there, or others than when the job was planned.
    """
    args: schema.FolderArgs = schema.arguments(schema.FolderArgs, data.args)
    try:
        train = listing.load(Path(path, args.train))
        test = None if args.test is None else listing.load(Path(path, args.test))
        training = Folder(train)
        testing = None if test is None else Folder(test, training.names)
    except UsageError as error:  # they were there when the job was submitted
        raise DataError(error.message, error.hint) from None
    found = combined(train.summary.digest, None if test is None else test.summary.digest)
    if digest not in {None, found}:
        raise DataError(f"{path}: files were added, removed or renamed after the run was submitted", "submit it again")
    return training, testing
