"""`hpctrain run --overfit`, with real ranks."""

import pytest

from hpctrain.train.overfit import reason
from tests.launch.small import ABALONE, hpctrain

pytestmark = pytest.mark.torch


def test_a_net_learns_a_few_batches_by_heart_and_nothing_is_kept(config, tmp_path):
    copy = tmp_path / "c.yaml"
    copy.write_text(config.read_text().replace(str(config.parent), str(tmp_path)))
    done = hpctrain("run", copy, "--overfit", "3", "--ranks", "2")
    assert "learned 3 batches: accuracy" in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_numbers_are_learned_by_heart_too(tmp_path):
    rows = [f"{i % 7},{i % 5},{(i % 7) * 2 - i % 5}" for i in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "c.yaml").write_text(ABALONE.format(runs=tmp_path / "runs", path=tmp_path / "t.csv"))
    assert "learned 2 batches: R^2 " in hpctrain("run", tmp_path / "c.yaml", "--overfit", "2").stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optim.lr=1e-9", "the loss does not fall"),
        ("optim.lr=1e6", "the loss is no number after 11 steps: too high a rate (try optim.lr / 10), or a bad input"),
    ],
)
def test_what_cannot_be_learned_is_told_with_what_to_look_at(config, change, told):
    done = hpctrain("run", config, "--overfit", "2", "--overfit-steps", "60", change, code=4)
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith("hpctrain: did not learn 2 batches: accuracy ")
    assert told in second


def test_more_batches_than_an_epoch_has_are_refused(config):
    said = hpctrain("run", config, "--overfit", "21", code=2).stderr
    assert "--overfit 21: an epoch has 20 batches" in said
    folds = hpctrain("run", config, "--overfit", "14", "folds=2", "data.split.validation=0", code=2).stderr
    assert folds.splitlines()[0] == "hpctrain: --overfit 14: an epoch has 13 batches"
    assert folds.count("--overfit 14:") == 1


def test_curves_are_read_as_the_lectures_do():
    steps = [1.0] * 100
    assert "does not fall" in reason([2.3] * 20, steps)
    assert "fell and then stopped" in reason([2.3, 1.0, *[0.5] * 20], steps)
    assert "still falls" in reason([2.3 * 0.95**n for n in range(40)], steps)
    assert "jumps" in reason([2.3, 1.5, 1.0, 0.4, 1.9, 0.4, 1.9, 0.4, 1.9, 0.5], steps)
    assert "no number" in reason([2.3] * 20, [*steps, float("nan")])
