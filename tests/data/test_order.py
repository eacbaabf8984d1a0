import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrain.data.order import micro_batch, order


def _whole(n, seed=0, epoch=0):
    return order(n, seed, epoch, np.arange(n))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**63), st.integers(0, 10**6))
def test_an_epoch_shows_each_sample_once(n, seed, epoch):
    assert (np.sort(_whole(n, seed, epoch)) == np.arange(n)).all()


def test_a_position_alone_gives_the_same_sample_as_the_whole_epoch():
    whole = _whole(1000, 7, 3)
    for position in (0, 1, 499, 999):
        assert order(1000, 7, 3, [position]) == whole[position]
    assert (order(1000, 7, 3, [[5, 2], [2, 5]]) == whole[[[5, 2], [2, 5]]]).all()


def test_huge_datasets_need_memory_for_the_batch_alone():
    n = 2**40 - 87
    samples = order(n, 1, 2, np.arange(n - 100_000, n))
    assert samples.max() < n
    assert samples.min() >= 0
    assert len(np.unique(samples)) == 100_000
    # the mean of 100,000 uniform values stays within 5 deviations
    assert abs(samples.mean() / n - 0.5) < 5 / np.sqrt(12 * 100_000)


@pytest.mark.parametrize("position", [-1, 10])
def test_positions_outside_the_epoch_are_refused(position):
    with pytest.raises(IndexError, match="of 10 samples"):
        order(10, 0, 0, [position])


def test_the_order_of_this_version_is_the_order_of_every_version():
    # A resumed run continues it: a change here breaks running jobs.
    assert order(10, 0, 0, np.arange(10)).tolist() == [4, 8, 2, 6, 9, 0, 1, 5, 7, 3]
    assert order(60_000, 0, 1, np.arange(5)).tolist() == [47368, 42374, 42168, 27440, 32458]


def _deviations(observed, expected, freedom):
    """Return how many standard deviations a chi-squared statistic lies from what chance gives."""
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [3, 5, 16, 17, 100, 1030])
def test_every_sample_stands_at_every_position_equally_often(n):
    epochs = 800
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), _whole(n, 1, epoch)] += 1
    assert abs(_deviations(counts, epochs / n, (n - 1) ** 2)) < 5


def test_all_orders_of_four_samples_are_equally_likely():
    seen = dict.fromkeys(itertools.permutations(range(4)), 0)
    for epoch in range(4_800):
        seen[tuple(_whole(4, 5, epoch).tolist())] += 1
    assert abs(_deviations(np.array(list(seen.values())), 200, 23)) < 5


@pytest.mark.parametrize("n", [1000, 60_000])
def test_neighbours_and_epochs_are_not_correlated(n):
    first, second, other_seed = _whole(n, 0, 0), _whole(n, 0, 1), _whole(n, 1, 0)
    place = np.arange(n)
    for one, two in [(place, first), (first[:-1], first[1:]), (first[:-2], first[2:]), (first, second),
                     (first, other_seed)]:  # fmt: skip
        assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(n)
    # about one sample keeps its place between two random orders (Poisson with mean 1)
    assert (first == second).sum() < 10
    # each tenth of the epoch holds each tenth of the samples equally often
    grid, _, _ = np.histogram2d(place, first, bins=10)
    assert abs(_deviations(grid, n / 100, 81)) < 5


@given(st.integers(0, 500), st.integers(1, 40))
def test_micro_batches_share_out_a_batch_evenly_and_in_order(samples, parts):
    cuts = [micro_batch(samples, parts, part) for part in range(parts)]
    assert [low for low, _ in cuts] == [0, *(high for _, high in cuts[:-1])]
    assert cuts[-1][1] == samples
    sizes = [high - low for low, high in cuts]
    assert max(sizes) - min(sizes) <= 1
