"""Each sample once per epoch: all small cases, for every way to share out, to cut, to go on; large ones by chance."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrain.data.order import block_order, order

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

EPOCHS = 2
SEED = 3
SIZES = (1, 2, 5, 8, 13, 24, 25, 31, 47, 48, 50, 60)


def shares(n, global_batch, ranks, accumulate, *, drop=False, block=None):
    from hpctrain.data.batches import Batches

    per_epoch = n // global_batch if drop else -(-n // global_batch)
    made = [
        Batches(
            samples=n,
            global_batch=global_batch,
            steps_per_epoch=per_epoch,
            accumulate=accumulate,
            rank=rank,
            ranks=ranks,
            seed=SEED,
            block=block,
        )
        for rank in range(ranks)
    ]
    return per_epoch, made


def taken(ranks, step):
    """Return the samples of a step over all ranks, by micro-batch; checks what the ranks say of it."""
    found = [share[step] for share in ranks]
    ids = [
        share.passes[number].numpy()
        for number in range(len(found[0].passes))
        for share in found
        if not share.stand_in[number]
    ]
    assert {share.samples for share in found} == {sum(map(len, ids))} == {sum(share.mine for share in found)}
    return np.concatenate(ids)


def ways(global_batch):
    """All numbers of ranks up to 8 and of passes that divide a global batch."""
    return [
        (ranks, passes)
        for ranks in range(1, 9)
        for passes in range(1, global_batch + 1)
        if not global_batch % (ranks * passes)
    ]


def counted(n, per_epoch, found):
    """Count how often each sample is seen in each epoch, in steps `{step: samples}`: `(EPOCHS x n,)`."""
    places = [step // per_epoch * n + samples for step, samples in found.items()]
    return np.bincount(np.concatenate(places), minlength=EPOCHS * n) if places else np.zeros(EPOCHS * n, int)


@pytest.fixture
def remembered(monkeypatch):
    """Orders of small sets are looked up: that a position alone gives the same is what test_order shows."""
    from hpctrain.data import batches

    @functools.cache
    def whole(n, epoch, block):
        everything = np.arange(n)
        return order(n, SEED, epoch, everything) if block is None else block_order(n, SEED, epoch, everything, block)

    monkeypatch.setattr(batches, "order", lambda n, _, epoch, positions: whole(n, epoch, None)[positions])
    monkeypatch.setattr(batches, "block_order", lambda n, _, epoch, positions, block: whole(n, epoch, block)[positions])


@pytest.mark.parametrize("block", [None, 3])
def test_every_way_to_cut_and_to_go_on_shows_each_sample_once(remembered, block):
    """Attempt 1 runs in one way up to the cut, attempt 2 in another from there: together each sample once per epoch."""
    cases = 0
    for n, global_batch, drop in itertools.product(SIZES, (1, 2, 6, 8, 24, 48), (False, True)):
        if drop and global_batch > n:
            continue
        per_epoch = n // global_batch if drop else -(-n // global_batch)
        end = EPOCHS * per_epoch
        cuts = range(0, end + 1, max(end // 8, 1))
        before, after = {cut: [] for cut in cuts}, {cut: [] for cut in cuts}
        for way in ways(global_batch):
            _, made = shares(n, global_batch, *way, drop=drop, block=block)
            found = {step: taken(made, step) for step in range(end)}
            for cut in cuts:
                before[cut].append(counted(n, per_epoch, {step: found[step] for step in range(cut)}))
                _, made = shares(n, global_batch, *way, drop=drop, block=block)
                after[cut].append(counted(n, per_epoch, {step: taken(made, step) for step in range(cut, end)}))
        for cut in cuts:
            once = np.stack(before[cut])[:, None] + np.stack(after[cut])  # each way before with each way after
            assert once.max() == 1
            assert (once.reshape(-1, EPOCHS, n).sum(2) == (per_epoch * global_batch if drop else n)).all()
            cases += once.shape[0] * once.shape[1]
    assert cases >= 150_000, cases


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_in_large_sets_ranks_may_change_at_any_step(data):
    """The step is the slice of the order that belongs to it, whoever computes it; slices of an epoch do not overlap."""
    n = data.draw(st.integers(10_000, 2**45), "n")
    block = data.draw(st.none() | st.integers(2, 5000), "block")
    passes = data.draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=2, max_size=3), "ways")
    global_batch = int(np.lcm.reduce([ranks * accumulate for ranks, accumulate in passes]))
    per_epoch = -(-n // global_batch)
    steps = data.draw(st.lists(st.integers(0, 3 * per_epoch - 1), min_size=len(passes), max_size=4), "steps")
    seen = {}
    for step, (ranks, accumulate) in zip(steps, itertools.cycle(passes), strict=False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hpctrain.data.batches._BLOCK_SAMPLES", 1000)
            _, made = shares(n, global_batch, ranks, accumulate, block=block)
            found = taken(made, step)
        epoch, place = divmod(step, per_epoch)
        positions = np.arange(place * global_batch, min((place + 1) * global_batch, n))
        expected = order(n, SEED, epoch, positions) if block is None else block_order(n, SEED, epoch, positions, block)
        assert (found == expected).all()
        seen.setdefault(epoch, {})[place] = found
    for places in seen.values():
        everything = np.concatenate(list(places.values()))
        assert len(np.unique(everything)) == len(everything)


@pytest.mark.parametrize("block", [None, 1000])
def test_a_million_samples_each_once(block):
    n = 1_000_003
    per_epoch, made = shares(n, 4096, 4, 2, block=block)
    seen = np.zeros(n, np.int8)
    for step in range(per_epoch, 2 * per_epoch):
        np.add.at(seen, taken(made, step), 1)
    assert seen.min() == seen.max() == 1


def test_an_evaluation_shares_out_each_sample_once():
    from hpctrain.train.evaluate import share

    for samples, ranks in itertools.product([*range(130), 9_999, 10**9 + 7], range(1, 18)):
        cuts = [share(samples, rank, ranks) for rank in range(ranks)]
        assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
        assert cuts[-1][1] == samples
        assert max(end - begin for begin, end in cuts) - min(end - begin for begin, end in cuts) <= 1
