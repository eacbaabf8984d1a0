"""One rank: nothing to agree on."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from hpctrain.dist.comm import Outputs


class SingleStep:
    """The step of a model on one rank."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, scaler: GradScaler | None = None) -> None:
        self._model, self.optimizer, self.scaler = model, optimizer, scaler
        self.gain = 1.0
        self._unscaled = False

    def forward(self, images: Tensor, *, last: bool) -> Outputs:  # noqa: ARG002 - one rank sums nothing
        """Run the model."""
        return self._model(images)

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002
        """Add the gradient."""
        self._scaled(loss).backward()  # type: ignore[no-untyped-call]

    def unscale_and_clip(self, max_norm: float | None, max_value: float | None = None) -> None:
        """Clip the gradient's numbers, then its 2-norm."""
        if self.scaler is not None and not self._unscaled:
            self.scaler.unscale_(self.optimizer)
            self._unscaled = True
        if max_value is not None:
            _clip_values([part.grad for part in self._model.parameters() if part.grad is not None], max_value)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm)

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm of the gradient."""
        grads = [part.grad for part in self._model.parameters() if part.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    def apply(self, *, only_finite: bool = False) -> bool:
        """Update the weights."""
        updated = self._update(only_finite=only_finite)
        self._unscaled = False
        self.optimizer.zero_grad()  # Horovod's takes no arguments
        return updated

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _update(self, *, only_finite: bool) -> bool:
        """Let the optimizer step, or skip the step: the gradient is that of all ranks, so all skip."""
        if self.scaler is None:
            if only_finite and not is_finite(part.grad for part in self._model.parameters() if part.grad is not None):
                return False
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before


class Single:
    """A world of one rank, without a process group."""

    rank = 0
    size = 1

    def wrap(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        example: Tensor,  # noqa: ARG002
        passes: int,  # noqa: ARG002
        scaler: GradScaler | None,
    ) -> SingleStep:
        """Take the model as it is."""
        return SingleStep(model, optimizer, scaler)

    def sum(self, values: Tensor) -> Tensor:
        """Return a copy."""
        return values.clone()

    def gather(self, values: Tensor, name: str) -> Tensor:  # noqa: ARG002
        """Return the one."""
        return values[None]

    def any(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def broadcast(self, content: bytes) -> bytes:
        """Return the bytes."""
        return content

    def barrier(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@torch.no_grad()
def _clip_values(grads: list[Tensor], largest: float) -> None:
    """Clip each number; what is infinite becomes none, so that whoever looks for it still finds it."""
    if grads:
        lost = torch._foreach_sub(grads, grads)  # 0, or no number
        torch._foreach_clamp_min_(grads, -largest)
        torch._foreach_clamp_max_(grads, largest)
        torch._foreach_add_(grads, lost)


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Say whether the 2-norm is a number. Of 32 bits it is none beyond 1e19, which nobody wants to go on with either.

    The largest magnitude would do without squares, but takes twenty times as long on CPUs.
    """
    return bool(torch.nn.utils.get_total_norm(part.detach() for part in tensors).isfinite().item())


def discard(outputs: Outputs) -> None:
    """Run a backward pass for the order in which it visits the parameters; its gradient is zero."""
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    (torch.stack([part.float().sum() for part in parts]).sum() * 0).backward()  # type: ignore[no-untyped-call]
