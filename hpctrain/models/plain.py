"""Small nets of dense layers and convolutions; by default without batch norm and dropout.

Then any split of a batch gives the same gradient.
"""

import math
from itertools import pairwise

from torch import nn

from hpctrain.config.models import AffineArgs, CnnArgs, LenetArgs, MlpArgs
from hpctrain.errors import UsageError
from hpctrain.models.layers import ACTIVATIONS, Shape, channels_last, dense, image, initialise

_POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
_MONOTONE = {"relu", "tanh", "sigmoid", "hardtanh", "leaky", "elu", "selu", "softplus"}
"""Activations that never fall, so that the largest value is the largest before and after."""


def affine(args: AffineArgs, shape: Shape, outputs: int) -> nn.Module:
    """Build one dense layer: `(B, C, H, W)` or `(B, F)` -> `(B, outputs)`.

    The sigmoid of `logistic` and the step of `perceptron` belong to the loss and the score
    (`hpctrain.train.objective`): the first is exact from what is before the sigmoid, the second has no gradient.
    """
    return initialise(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs)), args)


def mlp(args: MlpArgs, shape: Shape, outputs: int) -> nn.Module:
    """Build dense layers with an activation between them: `(B, C, H, W)` or `(B, F)` -> `(B, outputs)`."""
    widths = (math.prod(shape), *args.hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    layers += [nn.Dropout(args.dropout_input)] if args.dropout_input else []
    layers += dense(widths, args.activation, args.dropout, norm=args.batch_norm)
    return initialise(nn.Sequential(*layers, nn.Linear(widths[-1], outputs)), args)


def cnn(args: CnnArgs, shape: Shape, outputs: int) -> nn.Module:
    """Build blocks of convolution, pooling and activation, then dense layers: `(B, C, H, W)` -> `(B, outputs)`.

    Raises:
        UsageError: the inputs are no images, or too small to be halved by each block.
    """
    channels, *sides = image("cnn", shape)
    if refusal := args.refusal(min(sides)):
        raise UsageError(f"model.args.channels: {refusal[0]}", refusal[1])
    left = [args.side_after(len(args.channels), side) for side in sides]
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise((channels, *args.channels)), 1):
        layers += _block(args, before, after, normed=number in (args.norm_blocks or [number]))
    widths = (args.channels[-1] * math.prod(left), args.hidden, *args.dense)
    head = [nn.Flatten(), *dense(widths, args.activation, args.dropout), nn.Linear(widths[-1], outputs)]
    return channels_last(initialise(nn.Sequential(*layers, *head), args))


def _block(args: CnnArgs, before: int, after: int, *, normed: bool) -> list[nn.Module]:
    pool = [] if args.pool == "none" else [_POOLS[args.pool](2)]
    layers: list[nn.Module] = [nn.Conv2d(before, after, args.kernel, padding=args.margin)]
    if args.norm == "before" and normed:
        layers.append(nn.BatchNorm2d(after))
    activation = ACTIVATIONS[args.activation]()
    # Pooling before the activation gives the same values and gradients, for a quarter of the activation's work.
    pool_first = args.pool == "max" and args.activation in _MONOTONE
    layers += [*pool, activation] if pool_first else [activation, *pool]
    if args.norm == "after" and normed:
        layers.append(nn.BatchNorm2d(after))
    return layers + ([nn.Dropout(args.dropout_blocks)] if args.dropout_blocks else [])


def lenet(args: LenetArgs, shape: Shape, outputs: int) -> nn.Module:
    """Build LeNet-5: `(B, C, H, W)` -> `(B, outputs)`; 61,706 weights for 28 x 28 or 32 x 32 grey values, 10 classes.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B, as it is taught
    today: the third layer sees all six maps, pooling has no weights, and the last layer is an affine one. Images
    below 32 pixels get a margin of 2, as the paper's digits of 28 have it.

    Raises:
        UsageError: the inputs are no images, or smaller than 12 pixels.
    """
    channels, height, width = image("lenet", shape)
    margin = 2 if min(height, width) < 32 else 0
    sides = [((side + 2 * margin - 4) // 2 - 4) // 2 for side in (height, width)]
    if min(sides) < 1:
        raise UsageError(
            f"model.name: lenet leaves nothing of {height} x {width} pixels",
            "use images of at least 12 x 12, or model.name=cnn",
        )
    layers: list[nn.Module] = []
    for before, after, edge in ((channels, 6, margin), (6, 16, 0)):
        layers += [nn.Conv2d(before, after, 5, padding=edge), ACTIVATIONS[args.activation](), _POOLS[args.pool](2)]
    widths = (16 * math.prod(sides), 120, 84)
    head = [nn.Flatten(), *dense(widths, args.activation, 0.0), nn.Linear(84, outputs)]
    return channels_last(nn.Sequential(*layers, *head))
