"""The usual first MNIST recipe, as a yardstick: two 3 x 3 convolutions, Adadelta, 14 epochs, samples by a DataLoader.

    HPCTRAIN_DATA=DIR python tests/bench/mnist_examples.py [--epochs 14] [--seed 1] [--threads 2]

Net, optimizer, batch and schedule are those of the example `mnist` of pytorch/examples; the code is not. Each sample is
made by a dataset, one by one, as there, but from an array in memory and without PIL, which is quicker. Prints of each
epoch the seconds of training so far, without evaluation, and the accuracy on the test set; at the end the seconds until
it first reached 99.0 %, and those of all epochs.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from hpctrain.data import idx

GOAL = 0.99


class Digits(Dataset[tuple[Tensor, int]]):
    """MNIST from its files; normalises one image at a time."""

    def __init__(self, folder: Path, split: str) -> None:
        found = [idx.read(folder / f"{split}-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1")]
        self.images, self.labels = (np.array(part) for part in found)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[index]).unsqueeze(0).float().div(255)
        return image.sub_(0.1307).div_(0.3081), int(self.labels[index])


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


def train(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], optimizer: torch.optim.Optimizer) -> float:
    """Train for an epoch; return the seconds."""
    model.train()
    began = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    return time.perf_counter() - began


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> float:
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return right / len(loader.dataset)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    folder = Path(os.environ["HPCTRAIN_DATA"]) / "mnist"
    loader = DataLoader(Digits(folder, "train"), batch_size=64, shuffle=True)
    test = DataLoader(Digits(folder, "t10k"), batch_size=1000)
    model = net()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
    seconds, reached = 0.0, None
    for epoch in range(1, args.epochs + 1):
        seconds += train(model, loader, optimizer)
        score = accuracy(model, test)
        schedule.step()
        print(f"epoch {epoch:2}  {seconds:7.1f} s  accuracy {score:.4f}", flush=True)
        if reached is None and score >= GOAL:
            reached = seconds
    print(f"{GOAL:.1%} after {'-' if reached is None else f'{reached:.1f}'} s; all epochs {seconds:.1f} s")


if __name__ == "__main__":
    main()
