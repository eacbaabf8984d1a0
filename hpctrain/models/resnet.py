"""Residual networks (K. He et al. 2016, "Deep residual learning for image recognition"), for larger pictures.

As everyone trains them today: a bottleneck has its stride in the 3 x 3 convolution ("v1.5"), convolutions start as in
K. He et al. 2015 by their fan-out, and the last norm of each block starts at zero, so that blocks start as identities
(P. Goyal et al. 2017, section 5.1).
"""

from itertools import pairwise

from torch import Tensor, nn

from hpctrain.config.models import ResnetArgs
from hpctrain.models.layers import Shape, channels_last, convolution, image

_STAGES: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks in each of the four stages, by the number of layers (He et al. 2016, table 1)."""
_WIDTHS = (64, 128, 256, 512)
_BOTTLENECK_FROM = 50
_EXPANSION = 4


def resnet(layers: int, args: ResnetArgs, shape: Shape, outputs: int) -> nn.Module:
    """Build a residual network: `(B, C, H, W)` -> `(B, outputs)`.

    Args:
        layers: 18, 34, 50, 101 or 152.
        args: of the config.
        shape: channels, height and width of an image.
        outputs: of the last layer.
    """
    expansion = _EXPANSION if layers >= _BOTTLENECK_FROM else 1
    channels, _, _ = image(f"resnet{layers}", shape)
    small = args.stem == "small"
    first = convolution(channels, 64, 3) if small else convolution(channels, 64, 7, stride=2)
    net = nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    if not small:
        net.append(nn.MaxPool2d(3, 2, 1))
    inside = (64, *(width * expansion for width in _WIDTHS))
    for stage, (before, after) in enumerate(pairwise(inside)):
        for number in range(_STAGES[layers][stage]):
            stride = 2 if stage and not number else 1
            net.append(_Block(after if number else before, after, expansion, stride, zero_last=args.zero_init))
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside[-1], outputs)])
    return channels_last(net)


class _Block(nn.Module):
    """Two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1, added to what came in."""

    def __init__(self, before: int, after: int, expansion: int, stride: int, *, zero_last: bool) -> None:
        super().__init__()
        width = after // expansion
        if expansion == 1:
            shapes = [(before, width, 3, stride), (width, after, 3, 1)]
        else:
            shapes = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
        body: list[nn.Module] = []
        for ins, outs, kernel, step in shapes:
            body += [convolution(ins, outs, kernel, stride=step), nn.BatchNorm2d(outs), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*body[:-1])
        norm = self.body[-1]
        if zero_last and isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(convolution(before, after, 1, stride=stride), nn.BatchNorm2d(after))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return `(B, after, H / stride, W / stride)`."""
        found: Tensor = self.relu(self.body(images) + self.shortcut(images))
        return found
