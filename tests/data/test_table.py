import numpy as np
import pytest

from hpctrain.config import schema
from hpctrain.config.datasets import Augment, Split, TableArgs
from hpctrain.data import columns, split
from hpctrain.errors import DataError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
SIZE, WORDS = 200, "abc"
PLAIN = Augment()


@pytest.fixture
def table(tmp_path):
    """A table of two numbers, a constant, a word and a target that follows from them; returned as arrays, too."""
    random = np.random.default_rng(0)
    x, y = random.normal(5, 3, SIZE), random.uniform(-1, 1, SIZE) * 1e-3
    word = random.integers(0, 3, SIZE)
    target = 2 * x - word
    path = tmp_path / "t.csv"
    lines = [f"{x[i]!r},{WORDS[word[i]]},{y[i]!r},0.1,{target[i]!r}" for i in range(SIZE)]
    path.write_text("\n".join(["x,word,y,constant,target", *lines]).replace("np.float64(", "").replace(")", ""))
    return path, x, y, word, target


def load(path, *, train_samples=None, dtype=torch.float64, seed=3, validation=0.1, augment=PLAIN, **args):
    from hpctrain.data import table

    args = {"target": "target", "categories": ("word",)} | args
    apart = Split(test=0.2, validation=validation)
    held = columns.read(path, TableArgs(**args))
    chosen = split.choose(len(held.lines), apart, seed)
    data = schema.Data(
        dataset="table", path=str(path), split=apart, augment=augment or schema.Data(dataset="mnist").augment, args=args
    )
    count = chosen["train"].count if train_samples is None else train_samples
    made = table.load(data, path=str(path), train_samples=count, seed=seed, device=torch.device("cpu"), dtype=dtype)
    return made, {name: part.ids(np.arange(part.count)) for name, part in chosen.items()}


def gather(part):
    from hpctrain.data.dataset import Wanted

    [batch] = part.stream([Wanted(torch.arange(part.count))])
    return batch


def test_inputs_are_standardised_by_the_training_samples_alone(table):
    path, x, y, word, target = table
    data, ids = load(path, offset=1.5)
    assert (data.shape, data.outputs, data.task, data.notes) == ((6,), 1, "number", ())
    train = ids["train"]
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        inputs, targets = gather(part)
        rows = ids[name]
        assert part.count == len(rows)
        for column, values in ((0, x), (1, y)):
            expected = (values[rows] - values[train].mean()) / values[train].std()
            assert np.allclose(inputs[:, column], expected, rtol=0, atol=1e-12)
        assert (inputs[:, 2] == 0).all()
        assert inputs[:, 3:].argmax(1).tolist() == word[rows].tolist()
        assert (inputs[:, 3:].sum(1) == 1).all()
        assert np.allclose(targets, target[rows] + 1.5, rtol=0, atol=1e-12)


def test_test_samples_change_nothing_that_is_trained_on(table):
    path, *_ = table
    before, ids = load(path)
    lines = path.read_text().splitlines()
    for row in (*ids["test"], *ids["validation"]):
        lines[row + 1] = f"7,{'new' if row % 2 else 'b'},-3,0.1,1"
    path.write_text("\n".join(lines))
    after, _ = load(path)
    assert gather(after.train)[0].equal(gather(before.train)[0])
    assert not gather(after.test)[0].equal(gather(before.test)[0])


def test_fewer_training_samples_are_the_first_ones_and_alone_are_fitted(table):
    path, x, *_ = table
    data, ids = load(path, train_samples=50)
    inputs, _ = gather(data.train)
    known = x[ids["train"][:50]]
    assert np.allclose(inputs[:, 0], (known - known.mean()) / known.std(), rtol=0, atol=1e-12)
    assert abs(inputs[:, 0].mean().item()) < 1e-13


def test_words_that_no_training_sample_has_are_told(table):
    path, *_ = table
    _, ids = load(path)
    lines = path.read_text().splitlines()
    strange = sorted(ids["test"])[:3]
    for row in strange:
        lines[row + 1] = lines[row + 1].replace(f",{lines[row + 1].split(',')[1]},", ",new,")
    path.write_text("\n".join(lines))
    data, _ = load(path)
    assert data.shape == (6,)
    [note] = data.notes
    assert note == (
        f"{path}: column 'word': 3 of 40 test samples have words that no training sample has (first in line "
        f"{strange[0] + 2}): all its inputs are 0 there"
    )
    inputs, _ = gather(data.test)
    assert sorted(ids["test"][(inputs[:, 3:].sum(1) == 0).numpy()]) == strange


@pytest.mark.parametrize(("words", "order"), [("10 9 -1", "-1 9 10"), ("b c a", "a b c"), ("1.5 b 10", "1.5 10 b")])
def test_classes_are_numbered_in_their_order(table, words, order):
    path, _, _, word, _ = table
    lines = path.read_text().splitlines()
    named = [f"{line},{words.split()[word[row]]}" for row, line in enumerate(lines[1:])]
    path.write_text("\n".join([f"{lines[0]},kind", *named]))
    data, ids = load(path, target="kind", task="classification")
    _, labels = gather(data.train)
    assert (data.task, data.outputs, labels.dtype) == ("classes", 3, torch.int64)
    assert [order.split()[label] for label in labels] == [words.split()[word[row]] for row in ids["train"]]
    assert data.shape == (7,)


def test_classes_are_smoothed_in_training_alone(table):
    data, _ = load(table[0], target="word", categories=(), task="classification", augment=Augment(label_smoothing=0.3))
    assert gather(data.train)[1].sort(dim=1).values[0].tolist() == pytest.approx([0.1, 0.1, 0.8])
    assert gather(data.test)[1].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_have_the_dtype_of_the_arithmetic(table, dtype):
    data, _ = load(table[0], dtype=dtype, validation=0.0)
    assert [part.dtype for part in gather(data.train)] == [dtype, dtype]
    assert data.validation is None


def said(path, row, text, **args):
    lines = path.read_text().splitlines()
    lines[row + 1] = text
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        load(path, **args)
    return str(caught.value).replace(str(path), "t.csv")


def test_a_number_beyond_all_measure_is_told_with_its_line(table):
    path, *_ = table
    _, ids = load(path)
    row = int(ids["test"][4])
    assert said(path, row, "1,a,1e300,0.1,1").startswith(
        f"t.csv:{row + 2}: column 'y' is 1e+300, which is beyond all measure: the training samples have "
    )


def test_numbers_without_a_mean_are_refused(table):
    path, *_ = table
    _, ids = load(path)
    assert said(path, int(ids["train"][0]), "1e308,a,1,0.1,1").startswith("t.csv: column 'x' holds numbers too large")


def test_one_class_is_no_classification(table):
    path, *_ = table
    args = {"target": "constant", "task": "classification", "leave_out": ("target",)}
    with pytest.raises(DataError, match=r"column 'constant' has one class only: '0\.1'"):
        load(path, **args)


def test_a_table_that_changed_is_refused(table):
    path, *_ = table
    with pytest.raises(DataError, match="has 140 training samples, the plan has 141"):
        load(path, train_samples=141)


def test_the_real_abalones(abalone):
    names = ("sex", "length", "diameter", "height", "whole", "shucked", "viscera", "shell", "rings")
    data, _ = load(abalone, columns=names, target="rings", categories=("sex",), offset=1.5)
    assert (data.shape, data.train.count, data.test.count) == ((10,), 2924, 835)
    inputs, ages = gather(data.train)
    assert inputs[:, :7].mean(0).abs().max() < 1e-12
    assert (inputs[:, :7].std(0, correction=0) - 1).abs().max() < 1e-12
    assert 11 < ages.mean() < 12
    assert (ages % 1 == 0.5).all()
