"""Penalties on weights, clipping of gradients, and the largest norm of a unit's weights."""

import torch
from torch import Tensor, nn

from hpctrain.config.schema import Config, Train
from hpctrain.dist.comm import Step
from hpctrain.train.optim import weights

_UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = _UNITS[4:]


class Limits:
    """Changes the summed gradient before a step, and the weights after it; the same on all ranks, without asking.

    A penalty is a part of the loss, and its gradient, l1 x sign(w) + 2 x l2 x w, is added once to the gradient that is
    summed over ranks and passes; clipping comes after it. Both see the gradient without the factor of a scaler.

    Args:
        train: of the config.
        model: on its device.
        step: of the model.
    """

    def __init__(self, train: Train, model: nn.Module, step: Step) -> None:
        self._step, self._l1, self._l2 = step, train.l1, train.l2
        self._clip = (train.clip_norm, train.clip_value)
        self._max_norm = train.max_norm
        self._weights = [part for part in weights(model) if part.requires_grad]
        layers = [module for module in model.modules() if isinstance(module, _UNITS) and module.weight.requires_grad]
        self._units = {module.weight: 1 if isinstance(module, _TRANSPOSED) else 0 for module in layers}

    def gradient(self) -> None:
        """Add the penalties to the gradient of the step, and clip it."""
        if self._l1 or self._l2:
            self._step.unscale_and_clip(None)
            with torch.no_grad():
                self._penalize()
        if any(limit is not None for limit in self._clip):
            self._step.unscale_and_clip(*self._clip)

    def weights(self) -> None:
        """Scale units' weights down to the largest norm."""
        if self._max_norm is not None:
            with torch.no_grad():
                for part, dim in self._units.items():
                    part.renorm_(2, dim, self._max_norm)

    def _penalize(self) -> None:
        found: list[Tensor] = [part for part in self._weights if part.grad is not None]
        grads = [part.grad for part in found if part.grad is not None]
        if not found:
            return
        if self._l1:
            torch._foreach_add_(grads, torch._foreach_sign(found), alpha=self._l1)  # noqa: SLF001
        if self._l2:
            torch._foreach_add_(grads, found, alpha=2 * self._l2)


def limits(config: Config, model: nn.Module, step: Step) -> Limits | None:
    """Return what limits gradients and weights; None where nothing is asked for."""
    train = config.train
    if train is None or not any((train.clip_norm, train.clip_value, train.max_norm, train.l1, train.l2)):
        return None
    return Limits(train, model, step)
