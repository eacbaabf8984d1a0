import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrain.config.datasets import Split
from hpctrain.data.sizes import sizes
from hpctrain.data.split import choose

TOTALS, SEEDS = st.integers(1, 3000), st.integers(0, 2**63)
FRACTIONS = st.floats(0, 0.5, exclude_max=True)


def ids(total, split, seed):
    return {name: part.ids(np.arange(part.count)).tolist() for name, part in choose(total, split, seed).items()}


@settings(max_examples=150, deadline=None)
@given(TOTALS, SEEDS, FRACTIONS, FRACTIONS)
def test_each_sample_has_one_purpose(total, seed, test, validation):
    split = Split(test=test, validation=validation)
    parts = ids(total, split, seed)
    assert sorted(sample for part in parts.values() for sample in part) == list(range(total))
    assert tuple(map(len, (parts["train"], parts["validation"], parts["test"]))) == sizes(total, split)
    assert abs(len(parts["test"]) - test * total) <= 0.5
    assert abs(len(parts["validation"]) - validation * total) <= 0.5


@settings(max_examples=60, deadline=None)
@given(TOTALS, SEEDS, FRACTIONS, st.integers(2, 12))
def test_folds_partition_what_is_not_for_testing(total, seed, test, parts):
    folds = [ids(total, Split(test=test, fold=f"{part}/{parts}"), seed) for part in range(1, parts + 1)]
    kept = sorted(set(range(total)) - set(folds[0]["test"]))
    assert sorted(sample for fold in folds for sample in fold["validation"]) == kept
    for fold in folds:
        assert fold["test"] == folds[0]["test"]
        assert sorted(fold["train"] + fold["validation"]) == kept
    lengths = [len(fold["validation"]) for fold in folds]
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=60, deadline=None)
@given(TOTALS, SEEDS, FRACTIONS, FRACTIONS, st.integers(1, 8))
def test_ranks_that_ask_for_their_shares_get_what_one_rank_gets(total, seed, test, validation, ranks):
    chosen = choose(total, Split(test=test, validation=validation), seed)
    for part in chosen.values():
        whole = part.ids(np.arange(part.count)).tolist()
        shares = [part.ids(np.arange(rank, part.count, ranks)).tolist() for rank in range(ranks)]
        assert [shares[place % ranks][place // ranks] for place in range(part.count)] == whole


def test_another_seed_sets_others_apart_and_nothing_apart_leaves_all_in_place():
    split = Split(test=0.2)
    assert ids(100, split, 0) == ids(100, split, 0)
    assert sorted(ids(100, split, 0)["test"]) != sorted(ids(100, split, 1)["test"])
    assert ids(100, Split(), 5) == {"train": list(range(100)), "validation": [], "test": []}
