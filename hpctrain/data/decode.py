"""Encoded pictures -> rows of a uint8 batch.

JPEG is decoded by libjpeg-turbo (simplejpeg), all else by Pillow: PNG, and those JPEG files that simplejpeg refuses or
shows otherwise than everybody else does (CMYK). What is truncated is refused, whatever decodes it. Dimensions are read
from the header and checked before there is memory for the pixels.

Both libraries and torch's interpolation release Python's lock, so threads decode side by side.
"""

import io
import threading
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hpctrain.data import crop, jpeg
from hpctrain.data.crop import Box
from hpctrain.data.sizes import MOST_PIXELS
from hpctrain.errors import DataError

_own = threading.local()
_KEPT_BYTES = 4 * 2**20  # of which only as much is ever touched as pictures need
_interpolate = torch.ops.aten._upsample_bilinear2d_aa.out  # noqa: SLF001 - see `_scale`
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_SHRINKS = (8, 4, 2)  # libjpeg-turbo has vector code for these scales alone; others cost more than they save
_SPARE_ROWS = 16  # below a part: its colours are interpolated with those of the rows beside it
_WORTH_STOPPING = 0.95  # of the rows; the copy of the file costs as much as decoding the others
_EXPECTED = "extraneous bytes before marker 0xd"  # libjpeg's words for what is left: up to the end, or a restart

Pixels = npt.NDArray[np.uint8]
Channels = Literal["rgb", "grey"]


class Picture(Protocol):
    """A picture whose header has been read. Its pixels are good until the thread decodes another one."""

    height: int
    width: int

    def pixels(self, channels: Channels, *, shrink: int, bottom: int) -> Pixels:
        """Decode to uint8 `(H, W, C)`.

        Args:
            channels: of the pixels.
            shrink: make it 1 / `shrink` as large where the format allows it.
            bottom: number of rows that are looked at; those below may be missing or wrong.

        Raises:
            DataError: it is truncated or damaged.
        """


def random_resized(
    content: bytes,
    row: Tensor,
    draws: Sequence[float],
    *,
    channels: Channels,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    where: str,
) -> None:
    """Decode a picture, cut out a random part (see `crop.random_resized`) and scale it to the size of the row.

    Args:
        content: the encoded picture.
        row: uint8 `(C, S, S)` that lies channels last; is overwritten.
        draws: `crop.DRAWS` numbers in [0, 1).
        channels: of the row.
        scale: smallest and largest part of the area.
        ratio: smallest and largest width / height.
        where: what the picture is called in messages.

    Raises:
        DataError: the picture is damaged, or no picture, or too large.
    """
    picture = read(content, where)
    box = crop.random_resized(picture.height, picture.width, draws, scale=scale, ratio=ratio)
    _scale(picture, box, channels, row)


def central(content: bytes, row: Tensor, *, channels: Channels, resize: int, where: str) -> None:
    """Decode a picture, scale its shorter side to `resize` and cut the middle out; arguments as of `random_resized`.

    Raises:
        DataError: the picture is damaged, or no picture, or too large.
    """
    picture = read(content, where)
    whole = crop.bounded(picture.height, picture.width)
    height, width = crop.resized(whole.height, whole.width, resize)
    scaled = torch.empty(height, width, row.shape[0], dtype=torch.uint8).permute(2, 0, 1)
    _scale(picture, whole, channels, scaled)
    box = crop.centre(height, width, row.shape[1])
    row.copy_(scaled[:, box.top : box.top + box.height, box.left : box.left + box.width])


def _scale(picture: Picture, box: Box, channels: Channels, row: Tensor) -> None:
    """Scale a part of a picture to the height and width of `(C, H, W)`, which lies channels last."""
    _, height, width = row.shape
    shrink = next((by for by in _SHRINKS if box.height >= by * height and box.width >= by * width), 1)
    pixels = picture.pixels(channels, shrink=shrink, bottom=box.top + box.height)
    if pixels.shape[1] != picture.width:  # it was decoded to fewer pixels: the box, in those
        down, right = pixels.shape[0] / picture.height, pixels.shape[1] / picture.width
        top, left = round(box.top * down), round(box.left * right)
        box = Box(top, left, max(round(box.height * down), 1), max(round(box.width * right), 1))
    view = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    part = _memory("part", view.size)[: view.size].reshape(view.shape)
    part[:] = view
    # `interpolate(..., mode="bilinear", antialias=True)` by its inner name, under which it takes `out`. Of what lies
    # channels last it works on bytes, with vectors.
    _interpolate(torch.from_numpy(part)[None].permute(0, 3, 1, 2), [height, width], False, None, None, out=row[None])


def _memory(name: str, size: int) -> Pixels:
    """Return at least so many bytes, the same for each picture of a thread, which so stay in its cache."""
    if size > _KEPT_BYTES:
        return np.empty(size, np.uint8)
    kept: Pixels | None = getattr(_own, name, None)
    if kept is None:
        kept = np.empty(_KEPT_BYTES, np.uint8)
        setattr(_own, name, kept)
    return kept


def read(content: bytes, where: str) -> Picture:
    """Read the header of an encoded picture.

    Raises:
        DataError: it is no picture, or too large.
    """
    picture: Picture
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        picture = _ByPillow(content, where)
    else:
        picture = _Jpeg(content, where, height, width)
        if colours in {"CMYK", "YCCK"}:
            picture = _ByPillow(content, where)
    if not 0 < picture.height * picture.width <= MOST_PIXELS:
        raise _too_large(where, f"{picture.width} x {picture.height} pixels")
    return picture


class _Jpeg:
    def __init__(self, content: bytes, where: str, height: int, width: int) -> None:
        self._content, self._where = content, where
        self.height, self.width = height, width

    def pixels(self, channels: Channels, *, shrink: int, bottom: int) -> Pixels:
        space, depth = ("RGB", 3) if channels == "rgb" else ("GRAY", 1)
        memory = _memory("pixels", self.height * self.width * depth)
        rows = bottom + _SPARE_ROWS
        if shrink == 1 and rows < _WORTH_STOPPING * self.height:
            short = jpeg.shortened(self._content, rows)
            if short is not None and _decoded_to_the_end(short, space, memory):
                return memory[: rows * self.width * depth].reshape(rows, self.width, depth)
        least = {"min_height": -(-self.height // shrink), "min_width": -(-self.width // shrink)} if shrink > 1 else {}
        try:
            return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
                self._content, space, fastdct=True, buffer=memory, **least
            )
        except ValueError as error:
            if "premature end" in str(error).lower():
                raise _damaged(self._where, str(error)) from None
        # Such as bytes between two markers, which harm nothing and are found in the wild.
        return _ByPillow(self._content, self._where).pixels(channels, shrink=1, bottom=self.height)


def _decoded_to_the_end(content: bytearray, space: str, memory: Pixels) -> bool:
    """Decode what has been shortened; false if there is more to say of it than that."""
    try:
        simplejpeg.decode_jpeg(content, space, fastdct=True, buffer=memory)
    except ValueError as error:
        return _EXPECTED in str(error)
    return True


class _ByPillow:
    def __init__(self, content: bytes, where: str) -> None:
        self._where = where
        try:
            self._image = Image.open(io.BytesIO(content), formats=_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(where, str(error)) from None
        except UnidentifiedImageError:
            start = content[:8].hex(" ") or "nothing"
            raise DataError(
                f"{where}: no picture of a known format ({', '.join(_FORMATS)}); it begins with {start}",
                "replace or remove it, or go on without it: data.on_error=skip",
            ) from None
        except (OSError, ValueError, SyntaxError) as error:
            raise _damaged(where, str(error)) from None
        self.width, self.height = self._image.size

    def pixels(self, channels: Channels, *, shrink: int, bottom: int) -> Pixels:  # noqa: ARG002 - as of JPEG alone
        try:
            image: Image.Image = self._image
            if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
                image = Image.fromarray((np.asarray(image, np.int32) >> 8).astype(np.uint8))
            pixels = np.array(image.convert("RGB" if channels == "rgb" else "L"))
        except (OSError, ValueError, SyntaxError) as error:  # as Pillow reports what is truncated or broken
            raise _damaged(self._where, str(error)) from None
        return pixels.reshape(self.height, self.width, -1)


def _damaged(where: str, reason: str) -> DataError:
    return DataError(
        f"{where}: the picture is damaged: {reason}", "replace or remove it, or go on without it: data.on_error=skip"
    )


def _too_large(where: str, found: str) -> DataError:
    return DataError(
        f"{where}: the picture is too large: {found}; at most {MOST_PIXELS:,} pixels are read",
        "make it smaller, or go on without it: data.on_error=skip",
    )
