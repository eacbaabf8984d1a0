"""Read IDX files of bytes, the format of MNIST and its successors, gzipped or not."""

import gzip
import math
import mmap
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from hpctrain.data.locate import header_length, parse_header
from hpctrain.errors import DataError

_MAPPED = 64 * 2**20
"""Bytes from which on a file is mapped: the ranks of a node then share one copy; small ones are quicker to read."""

_EXPANSION = 1032
"""The most bytes that one byte of deflate can stand for (M. Adler, "zlib technical details")."""

_AGAIN = "download it again"


def read(path: Path) -> npt.NDArray[np.uint8]:
    """Return the content of a file as a writable uint8 array of the shape that its header names.

    Memory is bounded by what the header says, and that by what a file of this size can hold. Large files that are not
    compressed are mapped; writing to the array never changes the file.

    Raises:
        DataError: the file cannot be read, or holds fewer or more bytes than its header says.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            compressed = path.suffix == ".gz"
            content: IO[bytes] = gzip.GzipFile(fileobj=file) if compressed else file  # type: ignore[assignment]
            head = content.read(4)
            head += content.read(header_length(min(head[3], 4)) - 4) if len(head) == 4 else b""
            shape = parse_header(head)
            expected, begin = math.prod(shape), len(head)
            if compressed and expected > size * _EXPANSION:
                raise _other(path, shape, f"no file of {size} bytes can hold that many")
            if not compressed and size - begin != expected:
                raise _other(path, shape, f"but {size - begin} follow")
            if not compressed and size >= _MAPPED:
                mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE)
                mapped.madvise(mmap.MADV_WILLNEED)
                return np.frombuffer(mapped, np.uint8, offset=begin).reshape(shape)
            array = np.empty(expected, np.uint8)
            found = _fill(content, array)
            if found != expected or content.read(1):
                raise _other(path, shape, f"but {found if found != expected else 'more'} follow")
            return array.reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}", _AGAIN) from None


def _fill(content: IO[bytes], array: npt.NDArray[np.uint8]) -> int:
    """Read as many bytes as the array has; return how many there were."""
    view, done = memoryview(array.data), 0
    while done < len(view) and (count := content.readinto(view[done : done + 2**20])):  # type: ignore[attr-defined]
        done += count
    return done


def _other(path: Path, shape: tuple[int, ...], found: str) -> DataError:
    return DataError(
        f"{path}: its header says {' x '.join(map(str, shape))} = {math.prod(shape)} bytes, {found}", _AGAIN
    )
