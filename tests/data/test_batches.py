import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def batches(n, global_batch, accumulate, rank, ranks, *, drop=False, seed=3):
    from hpctrain.data.batches import Batches

    per_epoch = n // global_batch if drop else -(-n // global_batch)
    return per_epoch, Batches(
        samples=n,
        global_batch=global_batch,
        steps_per_epoch=per_epoch,
        accumulate=accumulate,
        rank=rank,
        ranks=ranks,
        seed=seed,
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 5), st.integers(1, 3))
def test_every_sample_is_trained_on_once_per_epoch(n, per_pass, ranks, accumulate):
    global_batch = per_pass * ranks * accumulate
    seen = []
    for rank in range(ranks):
        per_epoch, mine = batches(n, global_batch, accumulate, rank, ranks)
        seen += [sample for step in range(per_epoch, 2 * per_epoch) for sample in mine[step].ids()]
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 4), (2, 2), (4, 1), (2, 1), (3, 1)])
def test_the_order_of_samples_does_not_depend_on_the_ranks(ranks, accumulate):
    _, reference = batches(100, 12, 1, 0, 1)
    shares = [batches(100, 12, accumulate, rank, ranks)[1] for rank in range(ranks)]
    for step in (0, 7, 8, 9, 26):  # step 8 is an epoch's last, with 4 samples
        taken = []
        for number in range(accumulate):
            for share in shares:
                if not share[step].stand_in[number]:
                    taken += share[step].passes[number].tolist()
        assert taken == reference[step].ids()
        assert {share[step].samples for share in shares} == {len(taken)}
        assert sum(share[step].mine for share in shares) == len(taken)


def test_an_empty_share_stands_in_with_a_sample_that_is_not_counted():
    per_epoch, last = batches(9, 4, 1, 0, 4)  # the last step has one sample for four ranks
    share = last[per_epoch - 1]
    assert (share.samples, share.mine, share.stand_in, share.ids()) == (1, 0, (True,), [])
    assert len(share.passes[0]) == 1


def test_a_dropped_tail_is_another_one_in_each_epoch():
    seen = []
    for epoch in range(8):
        per_epoch, mine = batches(10, 4, 1, 0, 1, drop=True)
        assert per_epoch == 2
        taken = [sample for step in range(2 * epoch, 2 * epoch + 2) for sample in mine[step].ids()]
        assert len(set(taken)) == 8
        seen.append(frozenset(range(10)) - set(taken))
    assert len(set(seen)) > 3


def test_any_step_can_be_asked_for_at_any_time():
    _, one = batches(50_000, 64, 1, 0, 2)
    _, two = batches(50_000, 64, 1, 0, 2)
    expected = {step: one[step].ids() for step in range(1200)}
    for step in (1199, 0, 600, 781, 782, 599):
        assert two[step].ids() == expected[step]
