"""Check a picture by decoding it, and make it smaller if that is asked for: what `hpctrain pack` does to each."""

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from hpctrain.data.sizes import MOST_PIXELS

Pixels = npt.NDArray[np.uint8]


def recode(content: bytes | Pixels, *, resize: int | None, quality: int) -> tuple[bytes, str]:
    """Return an encoded picture and its suffix, `jpg` or `png`, by its content.

    The bytes stay as they are unless the shorter side is longer than `resize`; pixels `(C, H, W)` become a PNG.

    Args:
        content: JPEG, PNG or pixels.
        resize: length of the shorter side, in pixels; None keeps all.
        quality: of the JPEG that a smaller picture becomes, 1 to 100.

    Raises:
        ValueError: it cannot be decoded, or is neither JPEG nor PNG.
    """
    if not isinstance(content, bytes):
        return _png(content), "png"
    suffix = "jpg" if content.startswith(b"\xff\xd8") else "png" if content.startswith(b"\x89PNG\r\n\x1a\n") else None
    if suffix is None:
        raise ValueError(f"is neither JPEG nor PNG: it starts with {content[:4].hex(' ') or 'nothing'}")
    try:
        picture = _decoded(content, suffix)
    except Exception as error:  # noqa: BLE001 - decoders raise what they like when the bytes are bad
        raise ValueError(f"cannot be decoded: {str(error) or type(error).__name__}") from None
    if resize is None or min(picture.size) <= resize:
        return content, suffix
    return _smaller(picture, resize, quality), "jpg"


def _decoded(content: bytes, suffix: str) -> Image.Image:
    if suffix == "jpg":
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        _check_size(width, height)
        if colours not in {"CMYK", "YCCK"}:  # which Pillow knows how to convert
            grey = colours.lower() == "gray"
            pixels = simplejpeg.decode_jpeg(content, "GRAY" if grey else "RGB")
            return Image.fromarray(pixels[..., 0] if grey else pixels)
    with Image.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as picture:
        _check_size(*picture.size)
        picture.load()
        return picture.convert("L" if picture.mode in {"1", "L", "LA"} else "RGB")


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"its header says {width} x {height} pixels; at most {MOST_PIXELS} are decoded")


def _smaller(picture: Image.Image, resize: int, quality: int) -> bytes:
    factor = resize / min(picture.size)
    width, height = (max(round(side * factor), resize) for side in picture.size)
    pixels = np.ascontiguousarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    if pixels.ndim == 2:
        return bytes(simplejpeg.encode_jpeg(pixels[..., None], quality, "GRAY", "Gray"))
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "420"))


def _png(pixels: Pixels) -> bytes:
    if pixels.ndim != 3 or pixels.shape[0] not in {1, 3}:
        raise ValueError(f"pixels of shape {pixels.shape} make no PNG; 1 or 3 channels do")
    written = io.BytesIO()
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture.save(written, "PNG", optimize=True)
    return written.getvalue()
