"""Which part of a picture is cut out, and how large the picture becomes before; whole numbers of pixels.

The definitions are torchvision's: `RandomResizedCrop.get_params`, `Resize` and `CenterCrop`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 2
"""Random numbers that one picture needs for `random_resized`: an area and a shape for each attempt, and a place."""

_LONGEST = 8  # sides of a picture may differ by this factor; of longer ones the middle is taken


class Box(NamedTuple):
    """A part of a picture."""

    top: int
    left: int
    height: int
    width: int


def random_resized(
    height: int, width: int, draws: Sequence[float], *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draw a part of random area and shape (C. Szegedy et al., "Going deeper with convolutions", CVPR 2015).

    The area is uniform within `scale` of the picture's, width / height log-uniform within `ratio`, the place uniform.
    If no attempt fits into the picture, it is the largest part in the middle whose shape is allowed.

    Args:
        height: of the picture.
        width: of the picture.
        draws: `DRAWS` numbers in [0, 1).
        scale: smallest and largest part of the area.
        ratio: smallest and largest width / height.
    """
    area = height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        target = area * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        shape = math.exp(low + (high - low) * draws[2 * attempt + 1])
        wide, tall = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < wide <= width and 0 < tall <= height:
            return Box(int(draws[-2] * (height - tall + 1)), int(draws[-1] * (width - wide + 1)), tall, wide)
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        wide = max(round(height * ratio[1]), 1)
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Return height and width after the shorter side became `shorter`."""
    if width <= height:
        return shorter * height // width, shorter
    return shorter, shorter * width // height


def centre(height: int, width: int, size: int) -> Box:
    """Return the square in the middle; `size` is at most either side."""
    return Box(round((height - size) / 2), round((width - size) / 2), size, size)


def bounded(height: int, width: int) -> Box:
    """Return the whole picture, or the middle of one so long that scaling its shorter side up would fill the memory."""
    tall, wide = min(height, _LONGEST * width), min(width, _LONGEST * height)
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)
