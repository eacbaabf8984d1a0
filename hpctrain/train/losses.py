"""The losses by name: each the sum over the samples of a batch, so that shares of ranks add up.

What torch has is torch's. `outputs` are what the model gives, before any sigmoid; `targets` are as a dataset gives
them, see `hpctrain.data.dataset.Part`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hpctrain import function
from hpctrain.errors import JobError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets; returns a scalar."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax of logits `(B, K)` at the class `(B,)`, or weighted by probabilities `(B, K)`."""
    return functional.cross_entropy(outputs, targets, reduction="sum")


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-y log p - (1 - y) log(1 - p) with p the sigmoid of outputs `(B, 1)`, exact also where p is next to 0 or 1."""
    values, truth = as_numbers(outputs, targets)
    return functional.binary_cross_entropy_with_logits(values, truth, reduction="sum")


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    """max(0, 1 - y z) of outputs `(B, 1)` with y = -1, 1; or the mean over K of max(0, 1 - z[y] + z[k]) for k != y.

    Source: Cortes & Vapnik 1995; Weston & Watkins 1999, as torch.nn.MultiMarginLoss.
    """
    if outputs.shape[1] > 1:
        return functional.multi_margin_loss(outputs, targets, reduction="sum")
    return (1 - _signs(outputs, targets) * outputs.squeeze(1)).clamp(min=0).sum()


def perceptron(outputs: Tensor, targets: Tensor) -> Tensor:
    """max(0, -y z) of outputs `(B, 1)` with y = -1, 1; or max(0, largest z[k] - z[y]) for k != y of `(B, K)`.

    Its gradient is the perceptron rule (Rosenblatt 1958; of several classes Collins 2002): nothing for a sample on the
    right side, else -y x. `clamp` passes the gradient on at 0, so a sample on the border counts as wrong, as the rule
    has it: it learns from weights that are all 0, too.
    """
    if outputs.shape[1] > 1:
        own = outputs.gather(1, targets[:, None])
        others = outputs.scatter(1, targets[:, None], float("-inf"))
        return (others.amax(1) - own.squeeze(1)).clamp(min=0).sum()
    return (-_signs(outputs, targets) * outputs.squeeze(1)).clamp(min=0).sum()


def of_numbers(name: str, *, sigmoid: bool) -> Loss:
    """Return mse, mae or huber, after a sigmoid of the outputs if the model has one.

    mse: (v - y)^2; mae: |v - y|; huber: half the square up to an error of 1, beyond |v - y| - 1/2 (Huber 1964). Of
    classes y is 1 for the sample's and 0 for the others, and the loss of a sample is the sum over the outputs.
    """
    distances: dict[str, Callable[..., Tensor]] = {
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": functional.huber_loss,
    }
    between = distances[name]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        values, truth = as_numbers(outputs.sigmoid() if sigmoid else outputs, targets)
        return between(values, truth, reduction="sum")

    return loss


def users(name: str, *, number: bool) -> Loss:
    """Return the user's own loss, `package.module:function`.

    Raises:
        UsageError: it cannot be found.
        JobError: importing its module raised; when called, it raised, or returned something else than `(B,)`, or
            nothing that has a gradient.
    """
    theirs = function.find(name, "loss")

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            found = theirs(outputs.squeeze(1) if number else outputs, targets)
        except Exception as error:
            raise JobError(
                f"loss: {name} raised {type(error).__name__}: {error}\n{function.frames(error)}",
                "correct the function",
            ) from error
        if not isinstance(found, Tensor) or found.shape != (len(outputs),):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise JobError(
                f"loss: {name} returned {got} for {len(outputs)} samples",
                f"let it return the loss of each sample, of shape (B,), not their mean ({function.where(theirs)})",
            )
        if outputs.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
            raise JobError(
                f"loss: {name} has no gradient",
                f"compute it of the outputs by torch's operations, without .detach(), .item() and argmax "
                f"({function.where(theirs)})",
            )
        return found.sum()

    return loss


BY_NAME: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "hinge": hinge,
    "perceptron": perceptron,
}
"""The losses of classes alone."""


def as_numbers(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and targets as numbers of one shape: `(B,)` for one output, else `(B, K)`."""
    if outputs.shape[1] == 1:
        truth = targets[:, 1] if targets.ndim == 2 else targets  # the probability of "yes"
        return outputs.squeeze(1), truth.to(outputs.dtype)
    if targets.ndim == 1:
        targets = functional.one_hot(targets, outputs.shape[1])
    return outputs, targets.to(outputs.dtype)


def _signs(outputs: Tensor, targets: Tensor) -> Tensor:
    return (2 * targets - 1).to(outputs.dtype)
