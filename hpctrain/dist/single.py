"""One rank: nothing to agree on."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class SingleStep:
    """The step of a model on one rank."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model, self._optimizer = model, optimizer

    def forward(self, images: Tensor, *, last: bool) -> Tensor:  # noqa: ARG002 - one rank sums nothing
        """Run the model."""
        return self._model(images)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002
        """Add the gradient."""
        loss.backward()  # type: ignore[no-untyped-call]

    def unscale_and_clip(self, max_norm: float | None) -> None:
        """Clip the gradient's 2-norm."""
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm)

    def apply(self) -> bool:
        """Update the weights."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return True


class Single:
    """A world of one rank, without a process group."""

    rank = 0
    size = 1

    def wrap(self, model: nn.Module, optimizer: Optimizer, *, example: Tensor) -> SingleStep:  # noqa: ARG002
        """Take the model as it is."""
        return SingleStep(model, optimizer)

    def sum(self, values: Tensor) -> Tensor:
        """Return a copy."""
        return values.clone()

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
