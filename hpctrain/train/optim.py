"""Name -> optimizer. The learning rate is not its business: the loop assigns it in every step."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpctrain.config import schema
from hpctrain.config.optim import BY_NAME, Settings, asked, spares
from hpctrain.train.layerwise import Lamb, Lars

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # noqa: SLF001 - of all batch and instance norms

BUILDERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "amsgrad": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "lars": Lars,
    "lamb": Lamb,
}
"""The optimizers; a test holds the names equal to those of the config."""

_FUSED = {"sgd", "adagrad", "adam", "amsgrad", "adamw"}
"""What torch updates by one kernel for all parameters, on CPUs, too: in a third to two thirds of the time."""

_FOREACH = {"nadam", "radam"}
"""What is quicker by one kernel for each operation on CPUs, too; others have that on GPUs alone (docs/log.md)."""


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are weights: of more than one dimension, as biases are not, and of no norm."""
    of_norms = {id(part) for module in model.modules() if isinstance(module, _NORMS) for part in module.parameters()}
    return [part for part in model.parameters() if part.ndim > 1 and id(part) not in of_norms]


def groups(optim: schema.Optim, model: nn.Module, name: str) -> list[dict[str, Any]]:
    """Return the parameters of a model by what the optimizer does with them: one group, or weights and all others.

    Args:
        optim: of the config.
        model: on its device.
        name: of the model in the config.
    """
    if not spares(optim, name):
        return [{"params": list(model.parameters())}]
    first = weights(model)
    known = {id(part) for part in first}
    others = {"params": [part for part in model.parameters() if id(part) not in known], "weight_decay": 0.0}
    if optim.name in {"lars", "lamb"}:
        others["adapt"] = False
    return [group for group in ({"params": first}, others) if group["params"]]


def build(
    optim: schema.Optim,
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
    *,
    scaled: bool,
    used: Settings | None = None,
) -> Optimizer:
    """Build the optimizer over parameters, or groups of them, with the learning rate still at zero.

    It updates all parameters by one kernel where torch has one, but not where a scaler may skip steps: a fused kernel
    of torch 2.13 that is told to skip the very first step leaves the momentum of SGD as memory that nobody has written.
    (`fused` is then not given at all: where it is false, torch does not use its kernels for many parameters on GPUs.)

    Args:
        optim: of the config.
        parameters: of the model.
        scaled: a scaler may skip steps.
        used: what the plan has made of what the config asks for; as it asks, if None.
    """
    used = used or asked(optim)
    options: dict[str, Any] = {"lr": 0.0, "weight_decay": optim.weight_decay}  # until the loop assigns the first
    if optim.name in BY_NAME["momentum"]:
        options["momentum"] = optim.momentum if optim.cycle_momentum is None else optim.cycle_momentum[1]
    for key in ("betas", "alpha", "eps"):
        if optim.name in BY_NAME[key]:
            options[key] = getattr(used, key)
    for key in ("nesterov", "dampening", "rho", "centered", "trust"):
        if optim.name in BY_NAME[key] and getattr(optim, key) is not None:
            options[key] = getattr(optim, key)
    if optim.name == "amsgrad":
        options["amsgrad"] = True
    if optim.name in _FUSED and not scaled:
        options["fused"] = True
    if optim.name in _FOREACH:
        options["foreach"] = True
    return BUILDERS[optim.name](parameters, **options)
