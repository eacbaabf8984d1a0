"""Models whose state is of every kind that a checkpoint must bring back."""

from torch import Tensor, nn


class _Varied(nn.Module):
    """Running averages, random numbers in each pass, and parameters of several sizes: more than one bucket's worth of
    order in which ranks could sum."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.seen(images))
        return logits


def varied() -> nn.Module:
    """Return a net with batch norm and two kinds of dropout, for images `(B, 1, 8, 8)`."""
    return _Varied()
