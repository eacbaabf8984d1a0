"""Metrics against numpy, on one, two and three ranks."""

import math

import numpy as np
import pytest

from tests.train.ranks import make_config

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

HERE = "tests.train.test_scores"
SAMPLES = 61  # no number of ranks divides it, so that shares differ


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(SAMPLES, 8, generator=generator)
    return logits, torch.randint(8, (SAMPLES,), generator=generator)


def numbers():
    generator = torch.Generator().manual_seed(1)
    truth = 1e6 + torch.randn(SAMPLES, dtype=torch.float64, generator=generator)
    return (truth + 0.3 * torch.randn(SAMPLES, dtype=torch.float64, generator=generator))[:, None], truth


def tally(*given):
    """Be one rank that evaluates its share in small batches."""
    from hpctrain.train.evaluate import share
    from hpctrain.train.objective import Objective
    from hpctrain.train.scores import Tally

    comm, options = given[5], given[8]
    number = options["task"] == "number"
    outputs, targets = numbers() if number else drawn()
    names = ["mse", "mae", "r2"] if number else ["top5", "confusion"]
    counted = Tally(Objective(options["task"], classes=8, metrics=names))
    begin, end = share(SAMPLES, comm.rank, comm.size)
    for first in range(begin, end, 7):
        counted.add(outputs[first : min(first + 7, end)], targets[first : min(first + 7, end)])
    return {"value": counted.result(comm, SAMPLES)}


@pytest.fixture(params=[1, 2, 3])
def found(request, ranks):
    def run(task):
        job = ranks.start(
            make_config(), request.param, run=ranks.run_dir(task), body=f"{HERE}:tally", options={"task": task}
        )
        values = [report["value"] for report in job.wait()]
        assert all(value == values[0] for value in values)
        return values[0]

    return run


def test_classes_are_counted_exactly_on_any_number_of_ranks(found):
    outputs, labels = (part.numpy() for part in drawn())
    matrix = np.zeros((8, 8), int)
    np.add.at(matrix, (labels, outputs.argmax(1)), 1)
    top = np.argsort(-outputs, axis=1)[:, :5]
    assert found("classes") == {"top5": (top == labels[:, None]).any(1).sum() / SAMPLES, "confusion": matrix.tolist()}


def test_numbers_far_from_zero_lose_no_digits_on_any_number_of_ranks(found):
    outputs, truth = (part.numpy().astype(np.longdouble).reshape(-1) for part in numbers())
    errors = outputs - truth
    r2 = 1 - (errors**2).sum() / ((truth - truth.mean()) ** 2).sum()
    value = found("number")
    assert value.keys() == {"mse", "mae", "r2"}
    assert value["mse"] == pytest.approx(float((errors**2).mean()), rel=1e-14)
    assert value["mae"] == pytest.approx(float(np.abs(errors).mean()), rel=1e-14)
    assert value["r2"] == pytest.approx(float(r2), rel=1e-9)  # numbers near 1e6 have ten digits behind the point
    naive = 1 - np.sum(np.float64(errors) ** 2) / (
        np.sum(np.float64(truth) ** 2) - SAMPLES * np.mean(np.float64(truth)) ** 2
    )
    assert abs(naive - float(r2)) > 1e-6  # what a difference of two large sums would have told


def test_equal_targets_have_no_r2_and_nan_is_in_no_top():
    from hpctrain.dist.single import Single
    from hpctrain.train.objective import Objective
    from hpctrain.train.scores import Tally, in_top

    for value in (3.0, 0.1):
        for samples in range(1, 9):  # the mean of three or seven times 0.1 is not 0.1
            counted = Tally(Objective("number", metrics=["r2"]))
            counted.add(torch.ones(samples, 1), torch.full((samples,), value, dtype=torch.float64))
            assert counted.result(Single(), samples) == {"r2": None}
    ties, labels = torch.zeros(8, 8), torch.arange(8)
    assert in_top(ties, labels, 5).tolist() == [True] * 5 + [False] * 3
    assert not in_top(ties + math.nan, labels, 5).any()


def equal(*given):
    """Be one rank that evaluates its share of seven equal targets."""
    from hpctrain.train.evaluate import share
    from hpctrain.train.objective import Objective
    from hpctrain.train.scores import Tally

    comm = given[5]
    counted = Tally(Objective("number", metrics=["mae", "r2"]))
    begin, end = share(7, comm.rank, comm.size)
    counted.add(torch.zeros(end - begin, 1), torch.full((end - begin,), 0.1, dtype=torch.float64))
    return {"value": counted.result(comm, 7)}


@pytest.mark.parametrize("size", [1, 2])
def test_equal_targets_have_no_r2_on_any_number_of_ranks(ranks, size):
    job = ranks.start(make_config(), size, run=ranks.run_dir(), body=f"{HERE}:equal")
    assert [report["value"] for report in job.wait()] == [{"mae": pytest.approx(0.1), "r2": None}] * size


def test_an_evaluation_writes_them_and_the_outcome_has_them(ranks):
    import json

    config = make_config(metrics=("top5", "confusion", "accuracy"), train={"epochs": 1})
    run = ranks.run_dir()
    outcome = ranks.start(config, 2, run=run).outcome()
    matrix, total = np.array(outcome["metrics"]["confusion"]), 297
    assert matrix.shape == (10, 10)
    assert matrix.sum() == total
    assert matrix.trace() / total == outcome["accuracy"] <= outcome["metrics"]["top5"] <= 1
    (line,) = [json.loads(line) for line in run.metrics(1).read_text().splitlines() if '"test"' in line]
    assert {name: line[name] for name in ("top5", "confusion")} == outcome["metrics"]
    assert "  top5 0." in (log := (run.attempt(1) / "logs/rank_0.out").read_text())
    assert "  confusion most often " in log
