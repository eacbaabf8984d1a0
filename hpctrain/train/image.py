"""A safetensors file as it lies in host memory, kept from save to save.

The library's `save` copies a state three times, partly with Python's lock held, and would stall the loop that a
background save leaves free. An image is laid out once; each save copies the tensors to their places, and the file is
written and hashed from there. A test holds the bytes equal to the library's.
"""

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Of the format; large elements come first, so that each tensor lies at a multiple of its own."""
_ALIGN = 8

Kinds = dict[str, tuple[torch.dtype, torch.Size]]
"""Dtype and shape of tensors, by name."""


class Image:
    """One file of tensors.

    Args:
        tensors: what it shall hold, on any device; their values are not read.
        pinned: let the memory be such that a GPU copies into it while the host does something else.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, pinned: bool) -> None:
        self._kinds, self._pinned = _kinds(tensors), pinned
        head = header(tensors)
        self._bytes = torch.empty(file_bytes(tensors), dtype=torch.uint8, pin_memory=pinned)
        self._bytes[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        self._places: dict[str, Tensor] = {}
        begin = len(head)
        for name in _order(tensors):
            dtype, shape = self._kinds[name]
            end = begin + _size(tensors[name])
            self._places[name] = self._bytes[begin:end].view(dtype).view(shape)
            begin = end

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Say whether these tensors have the names, dtypes and shapes of this image."""
        return self._kinds == _kinds(tensors)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors in; from a GPU the copies are only asked for, behind what its stream has to do before."""
        for name, place in self._places.items():
            place.copy_(tensors[name], non_blocking=self._pinned)

    @property
    def content(self) -> memoryview:
        """The file's bytes, without a copy."""
        return self._bytes.numpy().data


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """Return what stands before the tensors: its length in 8 bytes, and JSON, padded to a multiple of 8.

    Raises:
        KeyError: a dtype that the format does not have.
    """
    entries, begin = {}, 0
    for name in _order(tensors):
        end = begin + _size(tensors[name])
        kind, shape = _NAMES[tensors[name].dtype], list(tensors[name].shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the file that holds these tensors."""
    return len(header(tensors)) + sum(map(_size, tensors.values()))


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    ranks = {dtype: number for number, dtype in enumerate(_NAMES)}
    return sorted(tensors, key=lambda name: (ranks[tensors[name].dtype], name.encode()))


def _size(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _kinds(tensors: Mapping[str, Tensor]) -> Kinds:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
