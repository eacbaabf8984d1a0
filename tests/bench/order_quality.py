"""How random the order of samples is, for several numbers of rounds of the Feistel network; and by numpy's own shuffle.

    python tests/bench/order_quality.py [--epochs 2000] [--rounds 2 3 4 6 8 10 16 32]

Each number tells how many standard deviations a statistic lies from what chance gives, the largest over all sizes:
beyond 5 fails. `positions`: each sample at each position equally often over the epochs (chi-squared). `pairs`: each
difference between neighbours equally often (chi-squared of 64 classes). `serial`: correlation of neighbours, of samples
two apart and of position and sample. `epochs`: correlation of an epoch and the next. `grid`: tenths of the epoch
against tenths of the samples (chi-squared). `fixed`: samples that keep their place (Poisson with mean 1).
"""

import argparse
import itertools
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from hpctrain.data import order as module

Order = Callable[[int, int], npt.NDArray[np.int64]]
Values = npt.NDArray[np.float64]
NARROW, WIDE = (12, 16, 17, 64, 100, 256), (1000, 1030, 16_384, 60_000)


def chi(observed: Values, expected: Values | float, freedom: float) -> float:
    """Return how far a chi-squared statistic lies from its mean, in standard deviations."""
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def positions(order: Order, n: int, epochs: int) -> float:
    """Each sample stands at each position equally often."""
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), order(n, epoch)] += 1
    return chi(counts, epochs / n, (n - 1) ** 2)


def pairs(order: Order, n: int, epochs: int) -> float:
    """Each difference of neighbours modulo n, 1 to n - 1, comes equally often."""
    bins = min(n - 1, 64)
    counts = np.zeros(n)
    for epoch in range(epochs):
        counts += np.bincount(np.diff(order(n, epoch)) % n, minlength=n)
    classes = np.arange(n - 1) * bins // (n - 1)
    observed = np.asarray(np.bincount(classes, counts[1:], bins), np.float64)
    expected = np.asarray(np.bincount(classes, minlength=bins) * (counts.sum() / (n - 1)), np.float64)
    return chi(observed, expected, bins - 1)


def correlation(couples: Iterable[tuple[Values, Values]], n: int) -> float:
    """Return the mean correlation of couples of `(n,)`, in standard deviations of that mean."""
    found = [np.corrcoef(one, two)[0, 1] for one, two in couples]
    return float(np.mean(found) * np.sqrt(n * len(found)))


def judge(order: Order, epochs: int) -> dict[str, float]:
    """Return the worst deviation of each kind."""
    worst = dict.fromkeys(("positions", "pairs", "serial", "epochs", "grid", "fixed"), 0.0)

    def note(kind: str, deviation: float) -> None:
        worst[kind] = max(worst[kind], abs(deviation))

    for n in (*NARROW, *WIDE):
        few = min(max(epochs * 100 // n, 20), epochs)
        if n in NARROW:
            note("positions", positions(order, n, epochs))
        note("pairs", pairs(order, n, few))
        place = np.arange(n, dtype=np.float64)
        orders = [order(n, epoch).astype(np.float64) for epoch in range(few + 1)]
        # Neighbours of a permutation are slightly anticorrelated by themselves, by -1 / (n - 1).
        bias = np.sqrt(n * len(orders)) / (n - 1)
        for apart in (1, 2):
            note("serial", correlation([(found[:-apart], found[apart:]) for found in orders], n) + bias)
        note("serial", correlation([(place, found) for found in orders], n))
        note("epochs", correlation(itertools.pairwise(orders), n))
        note("fixed", (sum(float((found == place).sum()) for found in orders) - few - 1) / np.sqrt(few + 1))
        if n in WIDE:
            grid = sum(np.histogram2d(place, found, bins=10)[0] for found in orders)
            # A permutation fixes the sums of rows and columns: 81 degrees of freedom.
            note("grid", chi(np.asarray(grid), n * (few + 1) / 100, 81))
    return worst


def main() -> None:
    """Print a table: rounds against kinds of deviation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, nargs="+", default=[2, 3, 4, 6, 8, 10, 16, 32])
    asked = parser.parse_args()
    generator = np.random.default_rng(0)
    chance: Order = lambda n, _: generator.permutation(n)  # noqa: E731

    def ours(n: int, epoch: int) -> npt.NDArray[np.int64]:
        return module.order(n, 1, epoch, np.arange(n))

    found = {"numpy": judge(chance, asked.epochs), "ours": judge(ours, asked.epochs)}
    for rounds in asked.rounds:
        module._ROUNDS = module._ROUNDS_NARROW = rounds
        found[str(rounds)] = judge(ours, asked.epochs)
    print(f"{'rounds':8}" + "".join(f"{kind:>11}" for kind in found["numpy"]))
    for name, deviations in found.items():
        line = "".join(f"{value:10.1f}{'!' if value > 5 else ' '}" for value in deviations.values())
        print(f"{name:8}{line}")


if __name__ == "__main__":
    main()
