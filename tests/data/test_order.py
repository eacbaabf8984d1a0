import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrain.data.order import block_order, micro_batch, order


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


def _blocks(n, block, seed=0, epoch=0):
    return block_order(n, seed, epoch, np.arange(n), block)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(2, 400), st.integers(0, 2**63), st.integers(0, 10**6))
def test_an_epoch_of_runs_shows_each_sample_once(n, block, seed, epoch):
    assert (np.sort(_blocks(n, block, seed, epoch)) == np.arange(n)).all()


def test_every_small_set_is_cut_into_runs_without_loss():
    for n in range(1, 100):
        for block in (2, 3, 8):
            assert (np.sort(_blocks(n, block, n)) == np.arange(n)).all(), (n, block)


def test_a_position_alone_gives_the_same_sample_as_the_whole_epoch_of_runs():
    whole = _blocks(1003, 8, 7, 3)
    for position in (0, 1, 499, 1002):
        assert block_order(1003, 7, 3, [position], 8) == whole[position]
    assert (block_order(1003, 7, 3, [[5, 2], [2, 5]], 8) == whole[[[5, 2], [2, 5]]]).all()
    with pytest.raises(IndexError, match="of 10 samples"):
        block_order(10, 0, 0, [10], 4)


@pytest.mark.parametrize(("n", "block"), [(100_000, 256), (100_003, 100), (65_536, 64)])
def test_whoever_reads_ahead_meets_few_runs_at_a_time(n, block):
    """Any stretch of the epoch touches the 16 to 32 runs of its window, twice as many where two windows meet."""
    found = _blocks(n, block) // block
    for begin in range(0, n - 64 * block, 5 * block):
        assert len(np.unique(found[begin : begin + block])) <= 64
    # and a run is read within one window, of the last ones at most 64 runs
    first, last = np.full(found.max() + 1, n), np.zeros(found.max() + 1, int)
    np.minimum.at(first, found, np.arange(n))
    np.maximum.at(last, found, np.arange(n))
    assert (last - first).max() < 64 * block
    assert np.median(last - first) < 32 * block
    # it is no sequence either: the next sample is the next position's once in a window, as by chance
    assert (np.diff(_blocks(n, block)) == 1).mean() < 3 / (16 * block)


def test_the_short_run_stands_anywhere():
    """Its samples come early in some epochs and late in others."""
    places = [np.flatnonzero(_blocks(1001, 4, 0, epoch) == 1000)[0] for epoch in range(200)]
    counts, _ = np.histogram(places, bins=5, range=(0, 1001))
    assert abs(_deviations(counts, 40, 4)) < 5


@pytest.mark.parametrize(("n", "block"), [(48, 2), (201, 4)])
def test_every_sample_of_the_runs_stands_at_every_position_equally_often(n, block):
    epochs = 400
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), _blocks(n, block, 1, epoch)] += 1
    # neighbours move together, which widens the statistic by the samples of a run at most
    assert abs(_deviations(counts, epochs / n, (n - 1) ** 2)) < 5 * math.sqrt(block)


def test_windows_are_shuffled_each_in_its_own_way():
    n, block = 2**17, 256  # 32 windows of 4096
    places = _blocks(n, block) % block
    windows = places.reshape(-1, 4096).astype(float)
    correlations = np.corrcoef(windows)[np.triu_indices(32, 1)]
    assert np.abs(correlations).max() < 5 / 64
    for epoch in (1, 2):
        assert abs(np.corrcoef(places, _blocks(n, block, 0, epoch) % block)[0, 1]) < 5 / math.sqrt(n)


def test_huge_datasets_of_runs_need_memory_for_the_batch_alone():
    n = 2**50 - 87
    for begin in (0, n // 3, n - 100_000):
        found = block_order(n, 1, 2, np.arange(begin, begin + 100_000), 1000)
        assert 0 <= found.min() <= found.max() < n
        assert len(np.unique(found)) == 100_000
        assert len(np.unique(found // 1000)) < 100 + 2 * 64


def test_the_order_of_runs_of_this_version_is_that_of_every_version():
    assert _blocks(11, 4).tolist() == [4, 7, 5, 6, 0, 1, 2, 9, 10, 3, 8]
    assert block_order(60_000, 0, 1, np.arange(5), 256).tolist() == [29440, 24050, 6863, 16679, 29552]
