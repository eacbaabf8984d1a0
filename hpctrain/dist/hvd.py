"""Many ranks with Horovod: they agree by MPI or Gloo, and sum by the same, on GPUs by NCCL.

Traps that this module is built around (Horovod 0.28.1):

- Gloo needs a rendezvous; a Horovod that finds neither its variables nor MPI forms a world of one, silently.
- Wrapping an optimizer makes another one, with empty state: load into `Step.optimizer`, after `wrap`.
- `broadcast_optimizer_state` takes a step, and `broadcast_object` unpickles: state travels through `Comm.broadcast`.
- Collectives without a name get one from a counter per process, and wait forever after unequal counts.
- A scaler must see the summed gradient: `synchronize` before `unscale_`, `skip_synchronize` around the step.
- A parameter without a gradient gets one of zeros, which weight decay and momentum then act on.
- There are no bfloat16 tensors, and a tensor whose channels come last is refused.
"""

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from hpctrain.config.schema import Dist as Settings
from hpctrain.dist import horovod_build, rendezvous
from hpctrain.dist.compression import InMemoryOrder
from hpctrain.dist.hvd_step import AdasumStep, HorovodStep
from hpctrain.dist.patience import Patience
from hpctrain.dist.single import discard
from hpctrain.errors import UsageError, WorldError
from hpctrain.plan import Plan
from hpctrain.world import World


def connect(
    plan: Plan,
    world: World,
    settings: Settings,
    *,
    store: tuple[str, int],
    listen_fd: int | None,
    device: torch.device,
    timeout_s: float,
) -> "Horovod":
    """Form Horovod's world; every rank calls this once. The arguments are those of `dist.connect.connect`.

    Raises:
        UsageError: Horovod is missing, or lacks what the plan needs.
        WorldError: it formed another world than the planned one.
    """
    hvd = _load(plan.backend)
    _require(hvd, plan, device)
    os.environ.update(rendezvous.environment(plan, world, settings.horovod, store=store, timeout_s=timeout_s))
    if plan.backend == "gloo":
        with rendezvous.meeting(plan, world, store=store, listen_fd=listen_fd, timeout_s=timeout_s):
            return _join(hvd, plan, world, settings, device, timeout_s)
    if listen_fd is not None:
        os.close(listen_fd)
    return _join(hvd, plan, world, settings, device, timeout_s)


def _join(
    hvd: ModuleType, plan: Plan, world: World, settings: Settings, device: torch.device, timeout_s: float
) -> "Horovod":
    try:
        hvd.init()
    except (RuntimeError, ValueError) as error:
        raise WorldError(
            f"{world} could not join the others by Horovod over {plan.backend}: {error}",
            "look at the other ranks' logs",
        ) from error
    if (hvd.size(), hvd.rank()) != (plan.ranks, world.rank):
        raise WorldError(
            f"{world.launcher} started {world}, but Horovod formed a world of {hvd.size()} in which this is rank "
            f"{hvd.rank()}; {plan.ranks} ranks are planned",
            f"if its MPI is not the one of {world.launcher}, build it again: {horovod_build.BUILD}; or let it agree by "
            "Gloo: dist.backend=gloo",
        )
    comm = Horovod(hvd, settings, device, timeout_s)
    comm.barrier()  # every rank has found every other, and needs the server no more
    return comm


def _load(backend: str) -> ModuleType:
    if found := horovod_build.problem(backend):
        raise UsageError(f"dist.strategy: horovod, but {found[0]}", found[1])
    try:
        hvd = importlib.import_module("horovod.torch")
    except (ImportError, OSError) as error:
        raise UsageError(
            f"Horovod cannot be loaded in {sys.executable}: {error}",
            "if a library of MPI is missing, load the module that it was built with (env.modules), else build it "
            f"again: {horovod_build.BUILD}",
        ) from error
    if not hasattr(hvd, "init"):  # it only prints that its extension is not there
        raise UsageError("this Horovod was built without PyTorch", f"build it again: {horovod_build.BUILD}")
    return hvd


def _require(hvd: ModuleType, plan: Plan, device: torch.device) -> None:
    if plan.backend == "gloo" and not hvd.gloo_built():
        raise UsageError(
            "this Horovod was built without Gloo, and its ranks shall agree by Gloo",
            "let them agree by MPI with dist.backend=mpi, under mpirun or srun",
        )
    if device.type == "cuda" and not hvd.nccl_built():
        raise UsageError(
            "this Horovod was built without NCCL: sums on GPUs would go through the memory of the host",
            f"build it where nvcc and NCCL are found: {horovod_build.BUILD}",
        )


class Horovod:
    """The ranks of an initialised Horovod."""

    def __init__(self, hvd: ModuleType, settings: Settings, device: torch.device, timeout_s: float) -> None:
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        self._hvd, self._settings, self._device = hvd, settings.horovod, device
        self._compression = settings.compression
        self.patience = Patience(timeout_s)  # Horovod's own limits do not hold when rank 0 is the one that is silent

    def wrap(
        self, model: nn.Module, optimizer: Optimizer, *, example: Tensor, passes: int, scaler: GradScaler | None
    ) -> HorovodStep | AdasumStep:
        """Give all ranks rank 0's weights, and wrap the optimizer."""
        some_unused = self.any(_leaves_out(model, optimizer, example, self._device))
        self.share(model.state_dict(), "state")
        hvd, settings = self._hvd, self._settings
        adasum = settings.op == "adasum"
        with self._names_as_json():
            wrapped = hvd.DistributedOptimizer(
                optimizer,
                named_parameters=[(f"hpctrain.gradient.{name}", part) for name, part in model.named_parameters()],
                compression=InMemoryOrder(getattr(hvd.Compression, self._compression)),
                backward_passes_per_step=passes,
                op=hvd.Adasum if adasum else hvd.Sum,
                groups=None if adasum else settings.groups,
            )
        wrapped.zero_grad()
        if adasum:
            return AdasumStep(model, wrapped, self.size, self.patience)
        return HorovodStep(self, model, wrapped, scaler, some_unused=some_unused)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks."""
        flat = values.detach().cpu().reshape(-1)
        kind = f"hpctrain.sum.{values.dtype}.{flat.numel()}"
        with self.patience.waiting():
            summed: Tensor = self._hvd.allreduce(flat, op=self._hvd.Sum, name=kind)
        return summed.reshape(values.shape)

    def gather(self, values: Tensor, name: str) -> Tensor:
        """Gather from the ranks, on the device of the values."""
        with self.patience.waiting():
            rows: Tensor = self._hvd.allgather(values.detach()[None].contiguous(), name=f"hpctrain.gather.{name}")
        return rows

    def any(self, flag: bool) -> bool:
        """Say whether any rank's flag is set."""
        return bool(self.sum(torch.tensor([int(flag)])).item())

    def broadcast(self, content: bytes) -> bytes:
        """Send the length, then the bytes."""
        with self.patience.waiting():
            length = self._hvd.broadcast(torch.tensor([len(content)]), 0, name="hpctrain.length")
        count = int(length.item())
        if count == 0:
            return b""
        sent = bytearray(content) if self.rank == 0 else bytearray(count)
        carried = torch.frombuffer(sent, dtype=torch.uint8)
        with self.patience.waiting():
            received: Tensor = self._hvd.broadcast(carried, 0, name=f"hpctrain.bytes.{count}")
        return received.numpy().tobytes()

    def barrier(self) -> None:
        """Wait for all."""
        self.any(False)

    def close(self) -> None:
        """Leave Horovod's world."""
        self._hvd.shutdown()

    def share(self, tensors: Mapping[str, Tensor], kind: str) -> None:
        """Overwrite tensors by rank 0's, all at once."""
        handles = {}
        for name, tensor in sorted(tensors.items()):
            carried = tensor.detach().reshape(-1)  # of no dimension, too
            carried = carried.view(torch.int16) if tensor.dtype is torch.bfloat16 else carried
            handles[name] = self._hvd.broadcast_async(carried, 0, name=f"hpctrain.{kind}.{name}")
        with torch.no_grad(), self.patience.waiting():
            for name, handle in handles.items():
                received = self._hvd.synchronize(handle).view(tensors[name].dtype)
                tensors[name].copy_(received.reshape(tensors[name].shape))

    @contextmanager
    def _names_as_json(self) -> Iterator[None]:
        """While it wraps, Horovod sends a list of names by its `broadcast_object`: let it travel as JSON instead."""

        def broadcast_names(names: list[str], **_: object) -> list[str]:
            return msgspec.json.decode(self.broadcast(msgspec.json.encode(names)), type=list[str])

        module: Any = importlib.import_module("horovod.torch.optimizer")
        theirs = module.broadcast_object
        module.broadcast_object = broadcast_names
        try:
            yield
        finally:
            module.broadcast_object = theirs


def _leaves_out(model: nn.Module, optimizer: Optimizer, example: Tensor, device: torch.device) -> bool:
    """Say whether a backward pass leaves out parameters; weights, buffers and random state are left alone."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        discard(model(example))
    left_out = any(part.requires_grad and part.grad is None for part in model.parameters())
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return left_out
