"""Read IDX files of bytes, the format of MNIST and its successors, gzipped or not."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpctrain.data.locate import header_length, parse_header
from hpctrain.errors import DataError


def read(path: Path) -> npt.NDArray[np.uint8]:
    """Read a whole file into a new, writable uint8 array of the shape that its header names.

    Raises:
        DataError: the file cannot be read, or holds fewer or more bytes than its header says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        shape = parse_header(content[: header_length(4)])
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}", "download it again") from None
    begin = header_length(len(shape))
    expected, found = math.prod(shape), len(content) - begin
    if found != expected:
        raise DataError(
            f"{path}: its header says {' x '.join(map(str, shape))} = {expected} bytes, but {found} follow",
            "download it again",
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape).copy()
