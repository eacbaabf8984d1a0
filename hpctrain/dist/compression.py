"""How Horovod sees a gradient: in the order in which it lies in memory, and if wanted as 16-bit numbers."""

from typing import Any, NamedTuple

from torch import Tensor


class _Context(NamedTuple):
    dims: tuple[int, ...] | None
    """Where each dimension has gone; None: nowhere."""
    inner: Any


class InMemoryOrder:
    """A compressor of Horovod around another one, which lets it sum tensors whose channels come last.

    Horovod takes contiguous tensors alone. What it does is elementwise, so the same memory may be shown to it with the
    dimensions in their order there. All ranks show the same: a gradient lies as its weights do.

    Args:
        inner: Horovod's `Compression.none` or `Compression.fp16`.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def compress(self, tensor: Tensor) -> tuple[Tensor, _Context]:
        """Return what travels, and what `decompress` needs."""
        dims = None
        if not tensor.is_contiguous():
            strides = tensor.stride()
            order = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
            shown = tensor.permute(order)
            if shown.is_contiguous():
                tensor, dims = shown, tuple(order.index(dim) for dim in range(len(order)))
            else:  # it has gaps
                tensor = tensor.contiguous()
        sent, context = self._inner.compress(tensor)
        return sent, _Context(dims, context)

    def decompress(self, tensor: Tensor, context: _Context) -> Tensor:
        """Return what arrived, with the dimensions in their places."""
        tensor = self._inner.decompress(tensor, context.inner)
        return tensor if context.dims is None else tensor.permute(context.dims)
