"""How gradients travel: as 16-bit numbers if wanted; and for Horovod in the order in which they lie in memory."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

Hook = Callable[[object, GradBucket], torch.futures.Future[Tensor]]
"""What DistributedDataParallel calls for each bucket of gradients, instead of summing it."""


def summing(compression: Literal["bf16", "fp16"]) -> Hook:
    """Return a hook that sums the buckets of all ranks in 16-bit numbers.

    torch has hooks like this, which divide by the ranks after they have rounded, so that float16 would overflow sooner;
    its bfloat16 one refuses Gloo. Here nothing is divided: the loss of each rank is its share of the mean, and so are
    the gradients that travel.
    """
    sent_as = {"bf16": torch.bfloat16, "fp16": torch.float16}[compression]

    def sum_bucket(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        gradients = bucket.buffer()
        summed: torch.futures.Future[list[Tensor]] = dist.all_reduce(gradients.to(sent_as), async_op=True).get_future()
        return summed.then(lambda done: gradients.copy_(done.value()[0]))

    return sum_bucket


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
