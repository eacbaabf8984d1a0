"""Which samples a rank takes in each step, as index tensors; the one place where shares are worked out.

Indices are made for a block of steps at a time: one vectorised call per block costs a step less than a microsecond per
hundred samples, where a call per step would cost tens.
"""

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpctrain.data.order import block_order, micro_batch, order

_BLOCK_SAMPLES = 16_384  # indices made at once: 128 KiB, whatever the size of the dataset


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank does in one step."""

    epoch: int
    """Pass over the training set, from 0."""
    samples: int
    """Samples of the step over all ranks; less than the global batch only in an epoch's last step."""
    mine: int
    """Samples of the step on this rank."""
    passes: tuple[Tensor, ...]
    """Indices of the samples of each pass, int64 `(B,)`; never empty, see `stand_in`."""
    stand_in: tuple[bool, ...]
    """Passes whose micro-batch is empty: their one sample keeps the ranks in step and must be weighted by zero."""

    def ids(self) -> list[int]:
        """Return the samples of this rank in the step, those of all passes, in their order."""
        taken = (index.tolist() for index, empty in zip(self.passes, self.stand_in, strict=True) if not empty)
        return [sample for passed in taken for sample in passed]


class Batches:
    """The shares of one rank, by step.

    Args:
        samples: of the training set.
        global_batch: samples of a step over all ranks.
        steps_per_epoch: with the last, smaller batch, or without it.
        accumulate: passes of each rank in a step.
        rank: of `ranks`.
        ranks: in all.
        seed: of the order.
        block: length of the runs of neighbours for `data.shuffle: blocks`; None: any sample may follow any.
    """

    def __init__(
        self,
        *,
        samples: int,
        global_batch: int,
        steps_per_epoch: int,
        accumulate: int,
        rank: int,
        ranks: int,
        seed: int,
        block: int | None = None,
    ) -> None:
        self.samples, self.global_batch, self.steps_per_epoch = samples, global_batch, steps_per_epoch
        self.accumulate, self.rank, self.ranks = accumulate, rank, ranks
        self.seed, self.block = seed, block
        self._block_steps = max(_BLOCK_SAMPLES * ranks // global_batch, 1)
        self._first = 0
        self._block: list[Share] = []

    def __getitem__(self, step: int) -> Share:
        """Return this rank's share of a step, from 0; a pure function of the step, quickest for steps in sequence."""
        place = step - self._first
        if not 0 <= place < len(self._block):
            self._block = self._make(step)
            self._first, place = step, 0
        return self._block[place]

    def _make(self, step: int) -> list[Share]:
        """Work out the shares from `step` to the end of the block or of the epoch, whichever comes first."""
        epoch, begin = divmod(step, self.steps_per_epoch)
        end = min(begin + self._block_steps, self.steps_per_epoch)
        parts = self.accumulate * self.ranks
        cuts: list[tuple[int, int]] = []
        totals: list[int] = []
        for index in range(begin, end):
            first = index * self.global_batch
            total = min(self.global_batch, self.samples - first)
            totals.append(total)
            for number in range(self.accumulate):
                low, high = micro_batch(total, parts, number * self.ranks + self.rank)
                cuts.append((first + low, first + high))
        # An empty micro-batch asks for one sample, the first of its own global batch, so that every model can run.
        spans = [np.arange(low, high) if high > low else np.array([low // self.global_batch * self.global_batch])
                 for low, high in cuts]  # fmt: skip
        indices = torch.from_numpy(self._order(epoch, np.concatenate(spans)))
        passes = torch.split(indices, [len(span) for span in spans])
        shares = []
        for place, total in enumerate(totals):
            window = slice(place * self.accumulate, (place + 1) * self.accumulate)
            mine = sum(high - low for low, high in cuts[window])
            empty = tuple(low == high for low, high in cuts[window])
            shares.append(Share(epoch=epoch, samples=total, mine=mine, passes=passes[window], stand_in=empty))
        return shares

    def _order(self, epoch: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self.block is None:
            return order(self.samples, self.seed, epoch, positions)
        return block_order(self.samples, self.seed, epoch, positions, self.block)
