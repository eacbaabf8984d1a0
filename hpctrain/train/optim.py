"""Name -> optimizer. The learning rate is not its business: the loop assigns it in every step."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from hpctrain.config import schema


def _sgd(optim: schema.Optim, parameters: Iterable[nn.Parameter], *, fused: bool) -> Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=0.0,  # until the loop assigns the first
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        fused=fused,
    )


BUILDERS: dict[str, Callable[..., Optimizer]] = {"sgd": _sgd}
"""The optimizers; a test holds the names equal to those of the config."""


def build(optim: schema.Optim, parameters: Iterable[nn.Parameter], *, scaled: bool) -> Optimizer:
    """Build the optimizer over a model's parameters, with the learning rate still at zero.

    It updates all parameters by one kernel, but not where a scaler may skip steps: a fused kernel of torch 2.13 that is
    told to skip the very first step leaves its momentum as memory that nobody has written.
    """
    return BUILDERS[optim.name](optim, parameters, fused=not scaled)
