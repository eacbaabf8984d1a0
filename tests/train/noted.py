"""A dataset that writes down every read: which split, and which sample."""

import os

import torch
from torch.utils.data import Dataset

TRAIN, TEST = 120, 30


class Noted(Dataset[tuple[torch.Tensor, int]]):
    """Rows of four numbers whose class is the largest of them."""

    def __init__(self, split: str, notes: str) -> None:
        self.split, self.count = split, TRAIN if split == "train" else TEST
        self.notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.classes = ["a", "b", "c", "d"]
        self.rows = torch.rand(self.count, 4, generator=torch.Generator().manual_seed(self.count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        os.write(self.notes, f"{self.split} {index}\n".encode())
        return self.rows[index], int(self.rows[index].argmax())


def rows(split: str, notes: str) -> Noted:
    """Return a split."""
    return Noted(split, notes)
