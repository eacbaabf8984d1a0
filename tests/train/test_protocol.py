"""Train, validation and test: what is read when, by a dataset that writes down every read."""

from collections import Counter

import pytest

from hpctrain.config.datasets import Split
from hpctrain.config.duration import Duration
from hpctrain.plan import Samples
from tests.train.noted import TEST, TRAIN
from tests.train.ranks import Ranks, make_config, make_plan

pytestmark = pytest.mark.torch

APART = 24


@pytest.mark.parametrize("size", [1, 2])
def test_the_test_set_is_read_once_and_after_all_training(ranks: Ranks, tmp_path, size):
    notes = tmp_path / "notes"
    config = make_config(
        data={
            "dataset": "tests.train.noted:rows",
            "args": {"notes": str(notes)},
            "split": Split(validation=APART / TRAIN),
        },
        model={"name": "mlp", "args": {"hidden": [8]}},
        batch={"global_": 12},
        train={"epochs": 4, "eval_every": Duration(1, "epochs")},
        checkpoint={"every": Duration(1, "epochs"), "keep_best": True},
    )
    plan = make_plan(config, size, Samples(train=TRAIN - APART, validation=APART, test=TEST))
    job = ranks.start(config, size, run=ranks.run_dir(), plan=plan)
    assert job.outcome()["verdict"] == "completed"
    reads = [line.split() for line in notes.read_text().splitlines()]
    opened = 1 * size  # each rank looks at one sample of each split to learn its shape, and throws it away
    of_test = [place for place, (split, _) in enumerate(reads) if split == "test"]
    of_train = [place for place, (split, _) in enumerate(reads) if split == "train"]
    looked = [place for place in of_test if place < of_train[-1]]
    assert len(looked) <= opened
    assert {reads[place][1] for place in looked} <= {"0"}
    assert Counter(reads[place][1] for place in of_test[len(looked) :]) == {str(number): 1 for number in range(TEST)}
    # the validation samples come from the training set and are never trained on: 4 times each, once per evaluation
    counts = Counter(number for split, number in reads if split == "train")
    assert len(counts) == TRAIN
