"""Samples by their number, as they are stored: what every format of files offers to the loader and to `pack`."""

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Source(Protocol):
    """One set of samples. Reading keeps no state, so that threads may share it."""

    names: tuple[str, ...]
    """Of the classes, by label."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def read(self, index: int) -> tuple[bytes | npt.NDArray[np.uint8], int]:
        """Return a sample and its label: an encoded picture, or pixels `(C, H, W)`.

        Raises:
            DataError: it cannot be read; names file, member and offset.
        """

    def where(self, index: int) -> str:
        """Say where a sample lies, for messages: the file, and for archives the member and its offset."""
