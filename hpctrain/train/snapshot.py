"""The state of a run at a step boundary, copied to host memory, so that it can be written while training goes on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hpctrain.config import schema
from hpctrain.dist.comm import Step
from hpctrain.manifest import EMA, MODEL, OPTIM, RNG
from hpctrain.train import optim, state
from hpctrain.train.average import Average
from hpctrain.train.image import Image, file_bytes


class Snapshot(NamedTuple):
    """What a checkpoint is made of; it holds until the buffers take the next one."""

    step: int
    """Optimizer steps done."""
    files: Mapping[str, memoryview]
    """Content of each file of tensors."""
    optimizer: state.Scalars
    scaler: dict[str, Any] | None
    arrived: Callable[[], None]
    """Wait until a GPU has copied everything."""


class Buffers:
    """Host memory that is kept from save to save: fresh memory costs several times the copy (docs/log.md).

    Args:
        device: where the state lives.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images: dict[str, Image] = {}

    def take(
        self, done: int, model: nn.Module, step: Step, average: Average | None, rng: dict[str, Tensor]
    ) -> Snapshot:
        """Copy the state after `done` steps; what the last snapshot held is overwritten.

        From a GPU the copies are only asked for. Its stream does them before the next step, so they see no later state.

        Raises:
            CheckpointError: a model or an optimizer that keeps more than tensors and plain numbers.
        """
        cuda = self._device.type == "cuda"
        optimizer, scalars = state.optimizer_tensors(step.optimizer)
        files = {MODEL: state.model_tensors(model), OPTIM: optimizer, RNG: rng}
        if average is not None:
            with average.in_use():
                files[EMA] = state.model_tensors(model)
        for name, tensors in files.items():
            if name not in self._images or not self._images[name].fits(tensors):
                self._images[name] = Image(tensors, pinned=cuda)
            self._images[name].fill(tensors)
        arrived = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        if arrived is not None:
            arrived.record()
        return Snapshot(
            done,
            {name: self._images[name].content for name in files},
            scalars,
            None if step.scaler is None else step.scaler.state_dict(),
            (lambda: None) if arrived is None else arrived.synchronize,
        )


def checkpoint_bytes(
    config: schema.Config, model: nn.Module, rng: dict[str, Tensor], *, manifest_bytes: int = 1 << 16
) -> int:
    """Return the size of a checkpoint before there is a first one: that of its tensors, and about that of its JSON.

    An optimizer makes its state in its first step; so one is made over parameters without memory.
    """
    if config.optim is None or config.train is None:
        raise AssertionError("a config that trains has these sections")
    shapes = [nn.Parameter(torch.empty_like(part, device="meta"), part.requires_grad) for part in model.parameters()]
    for part in shapes:
        part.grad = torch.empty_like(part) if part.requires_grad else None
    optimizer = optim.build(config.optim, shapes, scaled=True)  # the fused kernels have no such mode
    optimizer.step()
    weights = file_bytes(state.model_tensors(model)) * (1 if config.train.ema is None else 2)
    return weights + file_bytes(state.optimizer_tensors(optimizer)[0]) + file_bytes(rng) + manifest_bytes
