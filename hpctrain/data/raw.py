"""Images as files have them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Raw(NamedTuple):
    """A dataset of images, whole."""

    train: tuple[Bytes, Bytes]
    """uint8 `(N, C, H, W)` and labels `(N,)`."""
    test: tuple[Bytes, Bytes]
    classes: int
    white: int = 255
    """The largest pixel value."""
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and deviation of each channel, where everyone uses the same; else those of the training samples."""
