"""Many ranks with torch's DistributedDataParallel, over Gloo or NCCL."""

import contextlib
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hpctrain.dist.comm import Outputs
from hpctrain.dist.compression import summing
from hpctrain.dist.single import SingleStep, discard

_REHEARSALS = 2


class DdpStep(SingleStep):
    """The step of a model whose gradient is summed over all ranks during the last backward pass."""

    def __init__(
        self,
        model: DistributedDataParallel,
        optimizer: Optimizer,
        scaler: GradScaler | None,
        divisor: int,
        device: torch.device,
    ) -> None:
        super().__init__(model, optimizer, scaler)
        self._ddp = model
        self.gain = float(divisor)
        # DDP divides by the ranks, unless a hook sums. This factor takes that back: a power of two exactly, others to
        # the last bit or so, but always in the same way.
        self._divisor = {dtype: torch.tensor(divisor, dtype=dtype, device=device) for dtype in _FLOATS}

    def forward(self, images: Tensor, *, last: bool) -> Outputs:
        """Run the model; before the last pass DDP is told to keep still, which it reads here, not in backward."""
        if last:
            return self._ddp(images)
        with self._ddp.no_sync():
            return self._ddp(images)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient; the last pass sums buckets over the ranks while it still computes others."""
        with contextlib.nullcontext() if last else self._ddp.no_sync():
            # the factor enters as the gradient of the loss, which saves a multiplication on the tape
            self._scaled(loss).backward(self._divisor[loss.dtype])  # type: ignore[no-untyped-call]


_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Ddp:
    """The ranks of an initialised default process group."""

    def __init__(self, device: torch.device, compression: Literal["none", "bf16", "fp16"] = "none") -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device, self._hook = device, None if compression == "none" else summing(compression)
        # NCCL reduces only what lies on its GPU
        self._meeting = device if dist.get_backend() == "nccl" else torch.device("cpu")

    def wrap(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        example: Tensor,
        passes: int,  # noqa: ARG002 - `last` tells the step
        scaler: GradScaler | None,
    ) -> DdpStep:
        """Wrap the model and let DDP settle.

        DDP orders its buckets anew by what the first backward pass shows, when the second forward pass begins. With
        three or more ranks that changes the order in which Gloo sums, so a resumed run would differ in the last bits
        from an undisturbed one: every start therefore begins with two passes that are thrown away.
        `find_unused_parameters=True` would prevent it too, but searches the graph in every step; it is used only where
        parameters really get no gradient.
        """
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            discard(model(example))
            unused = any(part.requires_grad and part.grad is None for part in model.parameters())
            optimizer.zero_grad(set_to_none=True)
            wrapped = DistributedDataParallel(
                model,
                device_ids=[self._device.index] if self._device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                find_unused_parameters=unused,
            )
            if self._hook is not None:
                wrapped.register_comm_hook(None, self._hook)
            for _ in range(_REHEARSALS):
                discard(wrapped(example))
                optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        return DdpStep(wrapped, optimizer, scaler, self.size if self._hook is None else 1, self._device)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks."""
        summed = values.to(self._meeting, copy=True)
        dist.all_reduce(summed)
        return summed.cpu()

    def gather(self, values: Tensor, name: str) -> Tensor:  # noqa: ARG002 - torch goes by the order of calls
        """Gather from the ranks, on the device of the values."""
        rows = values.new_empty(self.size, *values.shape)
        dist.all_gather(list(rows.unbind(0)), values.contiguous())
        return rows

    def any(self, flag: bool) -> bool:
        """Say whether any rank's flag is set."""
        return bool(self.sum(torch.tensor([int(flag)])).item())

    def broadcast(self, content: bytes) -> bytes:
        """Send the length, then the bytes."""
        length = torch.tensor([len(content)], device=self._meeting)
        dist.broadcast(length, src=0)
        count = int(length.item())
        if count == 0:
            return b""
        sent = bytearray(content) if self.rank == 0 else bytearray(count)
        carried = torch.frombuffer(sent, dtype=torch.uint8).to(self._meeting)
        dist.broadcast(carried, src=0)
        return carried.cpu().numpy().tobytes()

    def barrier(self) -> None:
        """Wait for all: a sum of nothing in particular, which works alike on every backend."""
        self.any(False)

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()
