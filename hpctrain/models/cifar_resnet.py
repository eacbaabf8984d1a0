"""Residual networks for pictures of about 32 x 32 (K. He et al. 2016, section 4.2): 20 to 110 layers."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from hpctrain.config.models import CifarResnetArgs
from hpctrain.models.layers import Shape, channels_last, convolution, image

_WIDTHS = (16, 32, 64)


def cifar_resnet(layers: int, args: CifarResnetArgs, shape: Shape, outputs: int) -> nn.Module:
    """Build a residual network: `(B, C, H, W)` -> `(B, outputs)`.

    Three stages of (layers - 2) / 6 blocks with 16, 32 and 64 channels; shortcuts have no weights: where the stage
    changes they take every second pixel and zeros for the further channels (option A).

    Args:
        layers: 6 n + 2, such as 20, 32, 44, 56 or 110.
        args: of the config.
        shape: channels, height and width of an image.
        outputs: of the last layer.
    """
    channels, _, _ = image(f"resnet{layers}", shape)
    net = nn.Sequential(convolution(channels, _WIDTHS[0], 3), nn.BatchNorm2d(_WIDTHS[0]), nn.ReLU(inplace=True))
    for before, after in pairwise((_WIDTHS[0], *_WIDTHS)):
        for number in range((layers - 2) // 6):
            net.append(_Block(after if number else before, after, zero_last=args.zero_init))
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], outputs)])
    return channels_last(net)


class _Block(nn.Module):
    """Two 3 x 3 convolutions, added to what came in."""

    def __init__(self, before: int, after: int, *, zero_last: bool) -> None:
        super().__init__()
        self.stride, self.more = (1, 0) if before == after else (2, after - before)
        last = nn.BatchNorm2d(after)
        self.body = nn.Sequential(
            convolution(before, after, 3, stride=self.stride), nn.BatchNorm2d(after), nn.ReLU(inplace=True),
            convolution(after, after, 3), last,
        )  # fmt: skip
        if zero_last:
            nn.init.zeros_(last.weight)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return `(B, after, H / stride, W / stride)`."""
        shortcut = images[:, :, :: self.stride, :: self.stride]
        if self.more:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        found: Tensor = self.relu(self.body(images) + shortcut)
        return found
