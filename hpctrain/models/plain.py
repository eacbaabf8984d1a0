"""Two small nets without batch norm and dropout, so that any split of a batch gives the same gradient."""

import math
from itertools import pairwise

import torch
from torch import nn

from hpctrain.config.schema import CnnArgs, MlpArgs
from hpctrain.errors import UsageError

Shape = tuple[int, ...]


def mlp(args: MlpArgs, shape: Shape, classes: int) -> nn.Module:
    """Build dense layers with an activation between them: `(B, C, H, W)` or `(B, F)` -> `(B, classes)`."""
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[args.activation]
    layers: list[nn.Module] = [nn.Flatten()]
    widths = (math.prod(shape), *args.hidden)
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def cnn(args: CnnArgs, shape: Shape, classes: int) -> nn.Module:
    """Build blocks of convolution, pooling and ReLU, then a dense layer: `(B, C, H, W)` -> `(B, classes)`.

    Raises:
        UsageError: the images are too small to be halved by each block.
    """
    channels, height, width = shape
    blocks = len(args.channels)
    if min(height, width) >> blocks == 0:
        raise UsageError(
            f"model.args.channels: {blocks} blocks halve the image {blocks} times, and it is {height} x {width}",
            f"give at most {min(height, width).bit_length() - 1} channels",
        )
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *args.channels)):
        # Pooling before ReLU gives the same values and gradients, for a quarter of the ReLU's work.
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    flat = args.channels[-1] * (height >> blocks) * (width >> blocks)
    dense = [nn.Flatten(), nn.Linear(flat, args.hidden), nn.ReLU(), nn.Linear(args.hidden, classes)]
    # Channels last: convolutions take half the time on CPUs, and use tensor cores without copies on GPUs.
    net: nn.Module = nn.Sequential(*layers, *dense)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
