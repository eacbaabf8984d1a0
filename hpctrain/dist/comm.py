"""What the training loop may ask of the other ranks; it knows nothing else of them.

State travels as tensors and as bytes. There are no object collectives: they unpickle what arrives.
"""

from typing import Any, Protocol

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


Outputs = Any
"""What a model gives in training: a tensor `(B, K)`, or a tuple of them where it has auxiliary classifiers."""


class Step(Protocol):
    """One optimizer step of a wrapped model: forward and backward once per pass, then apply."""

    optimizer: Optimizer
    """The one that updates the weights; wrapping may have made another one, with empty state."""
    scaler: GradScaler | None
    """Scales the loss, and skips steps whose gradient overflows; its state belongs to a checkpoint."""

    gain: float
    """What the gradient of a rank's backward pass is, in gradients of its loss, before ranks are summed."""

    def forward(self, images: Tensor, *, last: bool) -> Outputs:
        """Run the model on a pass's images `(B, C, H, W)`; `last` says that gradients are summed after this pass."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's share of the loss, a scalar; after the last pass sum it over all ranks.

        The loss of a rank is its sum over samples divided by the samples of all ranks, so that the sum over ranks and
        passes is the mean over the global batch.
        """

    def unscale_and_clip(self, max_norm: float | None, max_value: float | None = None) -> None:
        """Take the scaler's factor out of the summed gradient, once in a step, and limit the gradient.

        Args:
            max_norm: it is scaled down to this if its 2-norm is larger; None leaves it as it is.
            max_value: before that, each of its numbers is limited to this magnitude; None leaves them as they are.
        """

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm of the summed gradient after the last pass, a scalar on the device; of a scaled loss."""

    def apply(self, *, only_finite: bool = False) -> bool:
        """Update the weights and drop the gradient; False if all ranks agreed to skip this step.

        Args:
            only_finite: skip it if the gradient is infinite or no number, which waits for the device.
        """


class Comm(Protocol):
    """The ranks of a run."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def wrap(
        self, model: nn.Module, optimizer: Optimizer, *, example: Tensor, passes: int, scaler: GradScaler | None
    ) -> Step:
        """Make a model train on all ranks; its weights become those of rank 0.

        Args:
            model: on its device, in the dtype of its weights.
            optimizer: over the model's parameters.
            example: a batch `(B, C, H, W)` as the model will get it; weights, buffers and random state are left alone.
            passes: forward and backward passes in each step.
            scaler: for float16; None: the loss is not scaled.
        """

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a CPU tensor over all ranks, of the same dtype, on the CPU."""

    def gather(self, values: Tensor, name: str) -> Tensor:
        """Return the tensors of all ranks, equal in shape and dtype: `(ranks, ...)`, in their order, on their device.

        Args:
            values: of this rank.
            name: of the exchange, alike on all ranks; others may be under way at the same time.
        """

    def any(self, flag: bool) -> bool:
        """Say whether any rank's flag is set."""

    def broadcast(self, content: bytes) -> bytes:
        """Return rank 0's bytes on every rank."""

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def close(self) -> None:
        """Leave the group in good order; never called after an error, because it can then wait forever."""
