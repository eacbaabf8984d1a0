"""Inception v1, GoogLeNet (C. Szegedy et al. 2015, "Going deeper with convolutions", table 1 and section 5).

With batch norm after each convolution (Ioffe & Szegedy 2015) instead of local response normalisation: so it trains
from random weights without the paper's care.
"""

import torch
from torch import Tensor, nn

from hpctrain.config.models import InceptionArgs
from hpctrain.models.layers import Shape, channels_last, convolution, image

_MODULES: tuple[tuple[int, int, int, int, int, int], ...] = (
    (64, 96, 128, 16, 32, 32),  # 3a
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),  # 4a
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),  # 5a
    (384, 192, 384, 48, 128, 128),
)
"""Channels of each module: 1 x 1; 3 x 3 reduced, 3 x 3; 5 x 5 reduced, 5 x 5; after pooling."""
_POOL_AFTER = (2, 7)
"""Modules after which height and width are halved."""
_HEADS_AFTER = (3, 6)
"""Modules after which the auxiliary classifiers look: 4a and 4d."""


def inception(args: InceptionArgs, shape: Shape, outputs: int) -> nn.Module:
    """Build Inception v1: `(B, C, H, W)` -> `(B, outputs)`; in training also what the auxiliary classifiers say.

    Args:
        args: of the config.
        shape: channels, height and width of an image, of about 224 x 224.
        outputs: of the last layer, and of the auxiliary ones.
    """
    channels, _, _ = image("inception", shape)
    return channels_last(_Inception(channels, outputs, args))


class _Inception(nn.Module):
    auxiliary_weight = 0.3
    """What the loss of each further output counts (section 5); `hpctrain.train.objective` reads it."""

    def __init__(self, channels: int, outputs: int, args: InceptionArgs) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_normed(channels, 64, 7, stride=2), nn.MaxPool2d(3, 2, ceil_mode=True),
            *_normed(64, 64, 1), *_normed(64, 192, 3), nn.MaxPool2d(3, 2, ceil_mode=True),
        )  # fmt: skip
        self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
        before, stage = 192, nn.Sequential()
        for number, widths in enumerate(_MODULES, 1):
            stage.append(_Module(before, widths))
            before = widths[0] + widths[2] + widths[4] + widths[5]
            if args.auxiliary and number in _HEADS_AFTER:
                self.heads.append(_head(before, outputs))
            if number in _HEADS_AFTER or number == len(_MODULES):
                self.stages.append(stage)
                stage = nn.Sequential()
            if number in _POOL_AFTER:
                stage.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        self.last = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(args.dropout), nn.Linear(before, outputs)
        )

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return `(B, K)`; in training, with auxiliary classifiers, three of them, the last layer's first."""
        found = self.stem(images)
        seen = []
        for stage in self.stages:
            found = stage(found)
            seen.append(found)
        outputs: Tensor = self.last(found)
        if not self.training or not len(self.heads):
            return outputs
        return (outputs, *(head(at) for head, at in zip(self.heads, seen, strict=False)))


class _Module(nn.Module):
    """Convolutions of three sizes and pooling, side by side."""

    def __init__(self, before: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, three_reduced, three, five_reduced, five, pooled = widths
        self.branches = nn.ModuleList([
            nn.Sequential(*_normed(before, one, 1)),
            nn.Sequential(*_normed(before, three_reduced, 1), *_normed(three_reduced, three, 3)),
            nn.Sequential(*_normed(before, five_reduced, 1), *_normed(five_reduced, five, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), *_normed(before, pooled, 1)),
        ])  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Return the channels of all branches, `(B, one + three + five + pooled, H, W)`."""
        return torch.cat([branch(images) for branch in self.branches], 1)


def _head(before: int, outputs: int) -> nn.Module:
    """Return an auxiliary classifier: pooling to 4 x 4 as 5 x 5 with stride 3 makes of 14 x 14, for any size."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4), *_normed(before, 128, 1), nn.Flatten(),
        nn.Linear(2048, 1024), nn.ReLU(inplace=True), nn.Dropout(0.7), nn.Linear(1024, outputs),
    )  # fmt: skip


def _normed(before: int, after: int, kernel: int, *, stride: int = 1) -> list[nn.Module]:
    return [convolution(before, after, kernel, stride=stride), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
