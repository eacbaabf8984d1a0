"""Name -> optimizer. The learning rate is not its business: the loop assigns it in every step."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from hpctrain.config import schema


def _sgd(optim: schema.Optim, parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=0.0,  # until the loop assigns the first
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        fused=True,  # one kernel for all parameters
    )


BUILDERS: dict[str, Callable[[schema.Optim, Iterable[nn.Parameter]], Optimizer]] = {"sgd": _sgd}
"""The optimizers; a test holds the names equal to those of the config."""


def build(optim: schema.Optim, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build the optimizer over a model's parameters, with the learning rate still at zero."""
    return BUILDERS[optim.name](optim, parameters)
