"""Vision transformers (Dosovitskiy et al. 2021, section 3.1) in the small sizes of Touvron et al. 2021, table 1."""

import torch
from torch import Tensor, nn

from hpctrain.config.models import VitArgs
from hpctrain.errors import UsageError
from hpctrain.models.layers import Shape, image

_SIZES = {"vit-tiny": (192, 3), "vit-small": (384, 6)}
"""Width and heads; both have 12 layers, and 4 x the width inside of them."""
_LAYERS = 12
_STD = 0.02


def vit(name: str, args: VitArgs, shape: Shape, outputs: int) -> nn.Module:
    """Build a vision transformer: `(B, C, H, W)` -> `(B, outputs)`.

    Args:
        name: vit-tiny or vit-small.
        args: of the config.
        shape: channels, height and width of an image.
        outputs: of the last layer.

    Raises:
        UsageError: the inputs are no images, or patches do not fill them.
    """
    channels, height, width = image(name, shape)
    if height % args.patch or width % args.patch:
        fitting = [str(n) for n in range(2, min(height, width) + 1) if height % n == 0 and width % n == 0]
        raise UsageError(
            f"model.args.patch: patches of {args.patch} do not fill images of {height} x {width}",
            f"give one of {', '.join(fitting)}" if fitting else "give images of another size",
        )
    patches = (height // args.patch) * (width // args.patch)
    return _Vit(channels, patches, outputs, *_SIZES[name], args)


class _Vit(nn.Module):
    def __init__(self, channels: int, patches: int, outputs: int, width: int, heads: int, args: VitArgs) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, args.patch, stride=args.patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.dropout = nn.Dropout(args.dropout)
        # Not nn.TransformerEncoder: it copies one layer, and all would start alike.
        self.layers = nn.Sequential(*(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, args.dropout, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
            )
            for _ in range(_LAYERS)
        ))  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.last = nn.Linear(width, outputs)
        for part in (self.token, self.position):
            nn.init.trunc_normal_(part, std=_STD)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.MultiheadAttention):
                weight = layer.in_proj_weight if isinstance(layer, nn.MultiheadAttention) else layer.weight
                nn.init.trunc_normal_(weight, std=_STD)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return `(B, outputs)`, from the class token."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1)
        found: Tensor = self.last(self.norm(self.layers(self.dropout(tokens + self.position))[:, 0]))
        return found
