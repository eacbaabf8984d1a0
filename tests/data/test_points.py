"""Points as the ranks load them: which are for what, by arguments and split."""

from itertools import chain

import pytest

from hpctrain.config.datasets import Augment, Data, PointsArgs, Split
from hpctrain.data.locate import locate
from hpctrain.errors import DataError

pytestmark = pytest.mark.torch
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")


PLAIN, WHOLE = Augment(), Split()


def load(split=WHOLE, *, samples=None, train_samples=None, seed=3, dtype=torch.float64, augment=PLAIN, **args):
    """Load them as a rank does, with the number of training samples that the login node has counted."""
    from hpctrain.data import points

    data = Data(dataset="points", split=split, samples=samples, augment=augment, args={"kind": "clusters"} | args)
    found = locate(data, {})
    count = found.train if train_samples is None else train_samples
    made = points.load(data, path=None, train_samples=count, seed=seed, device=torch.device("cpu"), dtype=dtype)
    counts = [0 if part is None else part.count for part in (made.train, made.validation, made.test)]
    assert counts == [count, found.validation or 0, found.test]
    return made


def rows(part):
    from hpctrain.data.dataset import Wanted

    [(inputs, targets)] = part.stream([Wanted(torch.arange(part.count))])
    return [(*point, target) for point, target in zip(inputs.tolist(), targets.tolist(), strict=True)]


def drawn(count, which="train", **args):
    from hpctrain.data.points import make

    inputs, targets = make(PointsArgs(**{"kind": "clusters"} | args), count, which)
    return [(*point, target) for point, target in zip(inputs.tolist(), targets.tolist(), strict=True)]


def test_without_a_split_training_and_test_points_are_drawn_apart():
    data = load(count=40, test_count=15, noise=0.5)
    assert rows(data.train) == drawn(40, noise=0.5)
    assert rows(data.test) == drawn(15, "test", noise=0.5)
    assert not set(rows(data.train)) & set(rows(data.test))
    assert data.validation is None
    assert (data.shape, data.outputs, data.task) == ((2,), 2, "classes")


def test_a_split_shares_the_points_and_the_seed_of_the_run_says_which():
    apart = Split(test=0.2, validation=0.25)
    data, same, other = (load(apart, seed=seed, count=40, noise=0.5) for seed in (3, 3, 4))
    parts = [rows(part) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [22, 10, 8]
    assert sorted(chain(*parts)) == sorted(drawn(40, noise=0.5))
    assert rows(same.test) == parts[2] != rows(other.test)


def test_folds_are_for_validation_once_each_and_leave_the_test_points_alone():
    folds = [load(Split(fold=f"{part}/4"), count=10, test_count=6, noise=0.5) for part in (1, 2, 3, 4)]
    found = list(chain(*(rows(data.validation) for data in folds)))
    assert sorted(found) == sorted(drawn(10, noise=0.5))
    for data in folds:
        assert rows(data.test) == drawn(6, "test", noise=0.5)
        assert sorted(rows(data.train) + rows(data.validation)) == sorted(found)


@pytest.mark.parametrize("split", [Split(), Split(test=0.2)])
def test_samples_takes_the_first_of_the_training_points_and_leaves_the_others(split):
    whole, few = load(split, count=40, noise=0.5), load(split, samples=7, count=40, noise=0.5)
    assert rows(few.train) == rows(whole.train)[:7]
    assert rows(few.test) == rows(whole.test)


def test_a_line_has_numbers_in_the_dtype_of_the_arithmetic():
    data = load(kind="line", count=20, dtype=torch.float32)
    assert (data.outputs, data.task, data.train.targets.dtype) == (1, "number", torch.float32)
    for x1, x2, y in rows(data.train):
        assert y == pytest.approx(2 * x1 - 3 * x2 + 0.5, abs=1e-5)
    assert load(count=4).train.targets.dtype == torch.int64


def test_only_training_points_are_mixed():
    data = load(count=8, augment=Augment(label_smoothing=0.2))
    assert rows(data.train)[0][2] == pytest.approx([0.9, 0.1])
    assert rows(data.test)[0][2] == 0


def test_more_than_there_are_is_refused():
    with pytest.raises(DataError, match="points has 40 training samples, the plan has 41"):
        load(train_samples=41, count=40)
