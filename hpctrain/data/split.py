"""Which samples are for training, validation and testing: ranges of one permutation, which the seed gives."""

import msgspec
import numpy as np
import numpy.typing as npt

from hpctrain.config.datasets import Split
from hpctrain.data.order import order
from hpctrain.data.sizes import cuts
from hpctrain.errors import DataError

_EPOCH = -1  # whose order no epoch has


class Chosen(msgspec.Struct, frozen=True):
    """Samples of a set: positions in its permutation from `begin` to `end`, those of a gap left out."""

    total: int
    """Samples of the set."""
    seed: int
    begin: int
    end: int
    gap: tuple[int, int] = (0, 0)
    permuted: bool = True

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.end - self.begin - (self.gap[1] - self.gap[0])

    def ids(self, numbers: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the samples of the set, by their numbers from 0 to `count` - 1 among the chosen ones."""
        positions = np.asarray(numbers, np.int64) + self.begin
        positions += np.where(positions >= self.gap[0], self.gap[1] - self.gap[0], 0)
        return order(self.total, self.seed, _EPOCH, positions) if self.permuted else positions


def choose(total: int, split: Split, seed: int) -> dict[str, Chosen]:
    """Return the samples for `train`, `validation` and `test`; a set of which nothing is set apart keeps its order."""
    test, gap = cuts(total, split)
    permuted = bool(test or gap[1] - gap[0])
    return {
        "train": Chosen(total, seed, test, total, gap, permuted),
        "validation": Chosen(total, seed, *gap),
        "test": Chosen(total, seed, 0, test),
    }


def planned(chosen: dict[str, Chosen], samples: int | None, what: str) -> int:
    """Return how many training samples are used.

    Args:
        chosen: what `choose` returned.
        samples: of the plan, which uses the first so many; None: all there are.
        what: was split, for the message.

    Raises:
        DataError: there are fewer.
    """
    found = chosen["train"].count
    if samples is None:
        return found
    if samples > found:
        raise DataError(
            f"{what} has {found} training samples, the plan has {samples}",
            "it changed after the run was submitted; submit it again",
        )
    return samples
