"""The steps of Horovod: it sums gradients, or joins updates."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from hpctrain.dist.comm import Outputs
from hpctrain.dist.patience import Patience
from hpctrain.dist.single import SingleStep
from hpctrain.errors import JobError, UsageError

if TYPE_CHECKING:
    from hpctrain.dist.hvd import Horovod


class HorovodStep(SingleStep):
    """The step of a model whose gradient Horovod sums while the last backward pass still runs.

    Two things are done as DistributedDataParallel does them. Buffers are rank 0's when a step begins. And where a first
    pass has left out parameters, the ranks ask each other in every step which of them got a gradient on any rank; where
    it has not, a parameter that is left out later is an error.
    """

    def __init__(
        self, comm: "Horovod", model: nn.Module, optimizer: Any, scaler: GradScaler | None, *, some_unused: bool
    ) -> None:
        super().__init__(model, optimizer, scaler)
        self._comm, self._horovods, self._some_unused = comm, optimizer, some_unused
        self._trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
        self._buffers = dict(model.named_buffers())
        self._begun = self._summed = False

    def forward(self, images: Tensor, *, last: bool) -> Outputs:
        """Run the model; first give all ranks rank 0's buffers, if this is the first pass of the step."""
        if self._buffers and not self._begun:
            self._comm.share(self._buffers, "buffer")
        self._begun = True
        return super().forward(images, last=last)

    def unscale_and_clip(self, max_norm: float | None, max_value: float | None = None) -> None:
        """Wait for the sums first: what a scaler sees must be the same on all ranks."""
        self._wait()
        super().unscale_and_clip(max_norm, max_value)

    def gradient_norm(self) -> Tensor:
        """Wait for the sums first."""
        self._wait()
        return super().gradient_norm()

    def apply(self, *, only_finite: bool = False) -> bool:
        """Wait for the sums; update; drop the gradient."""
        self._wait()
        self._begun = self._summed = self._unscaled = False
        with self._horovods.skip_synchronize():
            updated = self._update(only_finite=only_finite)
        self.optimizer.zero_grad()
        return updated

    def _wait(self) -> None:
        if self._summed:  # a second time would sum the sums
            return
        here = [part.grad is not None for part in self._trained.values()]
        if self._some_unused:
            anywhere = self._comm.sum(torch.tensor(here, dtype=torch.int32)).tolist()
            for part in self._trained.values():
                if part.grad is None:  # Horovod's zeros would lie otherwise than the gradients of other ranks
                    part.grad = torch.zeros_like(part)
        elif not all(here):
            left_out = next(name for name, found in zip(self._trained, here, strict=True) if not found)
            raise JobError(
                f"the model's parameter {left_out} got no gradient in this step, but it did in the first pass",
                "let the forward pass use the same parameters in every step, on every rank",
            )
        with self._comm.patience.waiting():
            self._horovods.synchronize()
        if self._some_unused:
            for part, count in zip(self._trained.values(), anywhere, strict=True):
                if count == 0:
                    part.grad = None
        self._summed = True


class AdasumStep(SingleStep):
    """The step of a model where each rank updates by its own gradient, and Adasum joins the updates."""

    def __init__(self, model: nn.Module, optimizer: Any, ranks: int, patience: Patience) -> None:
        super().__init__(model, optimizer)
        self._ranks, self._patience = ranks, patience

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ranks times this rank's share: for even shares the mean over its own samples."""
        super().backward(loss * self._ranks, last=last)

    def apply(self, *, only_finite: bool = False) -> bool:
        """Join the updates of all ranks; drop the gradient. Each rank has its own, so none can be left out alone."""
        if only_finite:
            raise AssertionError("the config is checked for this")
        with self._patience.waiting():
            return super().apply()

    def unscale_and_clip(self, max_norm: float | None, max_value: float | None = None) -> None:
        """Refuse: the optimizer has seen the gradient by now.

        Raises:
            UsageError: clipping is asked for.
        """
        if max_norm is not None or max_value is not None:
            raise UsageError("gradients cannot be clipped with dist.horovod.op: adasum", "use op: average")
