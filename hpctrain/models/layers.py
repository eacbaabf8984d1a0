"""What the models share: activations and initial weights, which are torch's own, and the shape of their inputs."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from hpctrain.config.models import Activation, Init, Weights
from hpctrain.errors import UsageError

Shape = tuple[int, ...]
"""Channels, height and width of an image; or the number of inputs."""

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardtanh": nn.Hardtanh,
    "leaky": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
}
"""Activations by name; a test holds the names equal to those of the config."""

_INITS: dict[Init, Callable[[torch.Tensor, float], object]] = {
    "constant": nn.init.constant_,
    "normal": lambda weight, value: nn.init.normal_(weight, std=value),
    "glorot": lambda weight, _: nn.init.xavier_uniform_(weight),
    "he": lambda weight, _: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "orthogonal": lambda weight, _: nn.init.orthogonal_(weight),
}


def initialise(model: nn.Module, args: Weights) -> nn.Module:
    """Draw the weights of dense layers and convolutions anew as `args` say; with `default` leave torch's."""
    if args.init == "default":
        return model
    draw, value = _INITS[args.init], 0.01 if args.init_value is None else args.init_value
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            draw(layer.weight, value)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def image(name: str, shape: Shape) -> tuple[int, int, int]:
    """Return channels, height and width.

    Raises:
        UsageError: the inputs are no images.
    """
    if len(shape) != 3:
        raise UsageError(
            f"model.name: {name} needs images (C, H, W), and the inputs have the shape {tuple(shape)}",
            "use model.name=mlp",
        )
    channels, height, width = shape
    return channels, height, width


def channels_last(model: nn.Module) -> nn.Module:
    """Lay the weights channels last: convolutions take half the time on CPUs, and use tensor cores without copies."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def convolution(before: int, after: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """Return a convolution before a norm: no bias, weights by their fan-out as K. He et al. 2015."""
    made = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def dense(widths: tuple[int, ...], activation: Activation, dropout: float, *, norm: bool = False) -> list[nn.Module]:
    """Return dense layers from the first width on: each with an optional batch norm, its activation and dropout."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers.append(nn.Linear(wide, narrow))
        layers += [nn.BatchNorm1d(narrow)] if norm else []
        layers.append(ACTIVATIONS[activation]())
        layers += [nn.Dropout(dropout)] if dropout else []
    return layers
