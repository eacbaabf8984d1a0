"""Validation sets, and numbers instead of classes, through real ranks."""

from pathlib import Path

import numpy as np
import pytest

from hpctrain.config.datasets import Split
from hpctrain.config.duration import Duration
from hpctrain.plan import Samples
from tests.train.ranks import Ranks, make_config, make_plan

pytestmark = pytest.mark.torch

APART = {"split": Split(validation=0.2)}


def steps(job, split):
    return [line["step"] for line in job.metrics(split)]


def test_a_validation_set_is_evaluated_during_training_and_the_test_set_once(ranks: Ranks):
    job = ranks.start(make_config(data=APART), 2, run=ranks.run_dir())
    outcome = job.outcome()
    assert (steps(job, "validation"), steps(job, "test")) == ([20, 40], [40])
    [test] = job.metrics("test")
    assert [line["samples"] for line in job.metrics("validation")] == [300, 300]
    assert (test["samples"], test["accuracy"], test["loss"]) == (297, outcome["accuracy"], outcome["loss"])
    assert outcome["accuracy"] > 0.8
    assert outcome["error"] is None


def test_a_stopped_run_has_no_result_of_the_test_set_and_goes_on_to_the_byte(ranks: Ranks):
    config = make_config(data={"split": Split(fold="2/5", test=0.1)}, checkpoint={"every": Duration(7, "steps")})
    calm = ranks.start(config, 2, run=ranks.run_dir("calm"))
    run = ranks.run_dir("cut")
    first = ranks.start(config, 2, run=run, until=18)  # an epoch has 18 steps: 1350 samples, a fifth for validation
    assert (first.outcome()["verdict"], first.outcome()["accuracy"]) == ("stopped", None)
    assert steps(first, "validation") == []
    second = ranks.start(config, 2, run=run)
    found, expected = second.outcome(), calm.outcome()
    assert steps(second, "validation") == [18, 36]  # the stop had left out the first
    assert (found["accuracy"], found["loss"]) == (expected["accuracy"], expected["loss"])
    assert [line["samples"] for line in second.metrics("test")] == [150]
    files = [job.run.checkpoint(36) / "model.safetensors" for job in (calm, second)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_that_is_done_evaluates_both_again(ranks: Ranks):
    run = ranks.run_dir()
    first = ranks.start(make_config(data=APART), 1, run=run).outcome()
    again = ranks.start(make_config(data=APART), 1, run=run)
    assert again.outcome()["accuracy"] == first["accuracy"]
    assert (steps(again, "validation"), steps(again, "test")) == ([40], [40])


def test_each_validation_sample_counts_once_on_any_number_of_ranks(ranks: Ranks):
    config = make_config(data=APART, batch={"global_": 60}, train={"steps": 1}, precision="fp64")
    found = []
    for size in (1, 3, 4):
        job = ranks.start(config, size, run=ranks.run_dir(f"{size}"))
        job.outcome()
        [line] = job.metrics("validation")
        found.append((line["samples"], line["accuracy"], round(line["loss"], 11)))
    assert len(set(found)) == 1
    assert found[0][0] == 300


def test_other_validation_samples_than_planned_are_refused(ranks: Ranks):
    config = make_config(data=APART)
    plan = make_plan(config, 1, Samples(train=1200, validation=299, test=297))
    (report,) = ranks.start(config, 1, run=ranks.run_dir(), plan=plan).wait()
    assert report["error"] == "DataError"
    assert report["message"].startswith("digits has 300 validation samples; 299 are planned")


@pytest.fixture
def table(tmp_path):
    """A target that follows from a number and a word, in a table that has few words."""
    random = np.random.default_rng(0)
    drawn = zip(random.normal(0, 2, 400), random.choice(list("abc"), 400), strict=True)
    lines = ["x,kind,y", *(f"{x},{kind},{3 * x + 5 * (kind == 'a') + 10}" for x, kind in drawn)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines))
    return {
        "dataset": "table",
        "path": str(path),
        "args": {"target": "y", "categories": ["kind"]},
        "split": Split(test=0.25, validation=0.1),
    }


def regression(table, **changes):
    given = {"model": {"args": {"hidden": []}}, "train": {"epochs": 30}, "log": {"every": Duration(100, "steps")}}
    return make_config(data=table, batch={"global_": 26}, optim={"lr": 0.05}, **given | changes)


def test_numbers_are_learned_and_judged_by_their_error(ranks: Ranks, table):
    run = ranks.run_dir()
    job = ranks.start(regression(table), 2, run=run)
    outcome = job.outcome()
    [test] = job.metrics("test")
    assert outcome["accuracy"] is None
    assert outcome["error"] == test["error"] < 0.05
    assert job.metrics("validation")[0]["error"] > 1
    assert all("accuracy" not in line for line in job.metrics("train"))
    last = run.log(1, 0, "out").read_text().splitlines()[-1]
    assert last.startswith(f"completed: step 300/300, error {outcome['error']:.4f}, ")


def test_numbers_give_the_same_weights_on_any_number_of_ranks(ranks: Ranks, table):
    from safetensors.torch import load

    config = regression(table, precision="fp64", train={"steps": 25})  # an epoch of ten steps ends in a smaller batch
    found = []
    for size in (1, 2):
        job = ranks.start(config, size, run=ranks.run_dir(f"{size}"))
        assert job.outcome()["verdict"] == "completed"
        found.append((load((job.run.checkpoint(25) / "model.safetensors").read_bytes()), job.outcome()["error"]))
    for key, value in found[0][0].items():
        assert (value - found[1][0][key]).abs().max().item() < 1e-12
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-12)


def test_a_model_that_gives_no_number_is_told_before_the_first_step(ranks: Ranks, table):
    config = regression(table, model={"name": "tests.train.nets:two_numbers", "args": {}})
    (report,) = ranks.start(config, 1, run=ranks.run_dir()).wait()
    assert report["message"] == (
        "model.name: tests.train.nets:two_numbers gives (2, 2) for inputs of shape (2, 4)\n"
        "  it must return numbers of shape (B, 1), what it predicts for each sample"
    )


def test_rank_0_says_what_the_test_samples_have_and_the_training_samples_have_not(ranks: Ranks, table):
    from hpctrain.data.locate import locate
    from hpctrain.data.split import choose

    config, run = regression(table, train={"steps": 1}), ranks.run_dir()
    row = int(choose(400, config.data.split, 0)["test"].ids([0])[0])
    path = Path(table["path"])
    lines = path.read_text().splitlines()
    lines[row + 1] = "0,d,1"
    path.write_text("\n".join(lines))
    assert locate(config.data).test == 100
    ranks.start(config, 2, run=run).outcome()
    said = "column 'kind': 1 of 100 test samples have words that no training sample has"
    assert said in run.log(1, 0, "out").read_text()
    assert run.log(1, 1, "out").read_text() == ""
