"""train.on_nan: stop, skip, rollback. Rows that are no numbers come from the dataset, so every replay meets them."""

import json

import pytest

from hpctrain.config.duration import Duration
from hpctrain.plan import Samples
from tests.train.ranks import Job, Ranks, make_config, make_plan

pytestmark = pytest.mark.torch

SAMPLES = Samples(train=600, test=40)
STEPS = 30  # two epochs less some; 20 steps each


def poisoned(on_nan, rows=(137, 311), **changes):
    """Return a config of rows, some of which hold NaN, for a net with batch norm and dropout."""
    changes = {
        "data": {"dataset": "tests.train.faulty:rows", "args": {"poison": list(rows)}},
        "model": {"name": "tests.train.nets:normed", "args": {}},
        "batch": {"global_": 30},
        "checkpoint": {"every": Duration(7, "steps"), "keep": 100},
        "log": {"every": Duration(5, "steps"), "samples": True},
        **changes,
    }
    return make_config(**{**changes, "train": {"steps": STEPS, "on_nan": on_nan} | changes.get("train", {})})


def start(ranks: Ranks, config, size, name, **options) -> Job:
    return ranks.start(config, size, run=ranks.run_dir(name), plan=make_plan(config, size, SAMPLES), **options)


def state(job: Job, step: int) -> tuple[bytes, bytes]:
    path = job.run.checkpoint(step)
    return (path / "model.safetensors").read_bytes(), (path / "optim.safetensors").read_bytes()


def audit(job: Job, rank=0):
    return [json.loads(line) for line in job.run.samples(job.attempt, rank).read_text().splitlines()]


def bad_steps(job: Job, rows=(137, 311)):
    """Return the steps in which a rank saw a row that is no number."""
    lines = [line for rank in range(len(job.processes)) for line in audit(job, rank) if "ids" in line]
    return sorted({line["step"] for line in lines if set(rows) & set(line["ids"])})


def test_stop_ends_the_run_and_saves_nothing_of_it(ranks: Ranks):
    job = start(ranks, poisoned("stop"), 2, "run")
    reports = job.wait()
    assert [report["error"] for report in reports] == ["JobError"] * 2
    first = bad_steps(job)[0]
    assert reports[0]["message"].startswith(f"the loss is nan at step {-(-first // 5) * 5} ")
    assert all(step < first for step in job.run.checkpoints())


@pytest.mark.parametrize("size", [1, 2])
def test_a_skipped_step_changes_nothing_on_any_rank(ranks: Ranks, size):
    config = poisoned("skip", checkpoint={"every": Duration(1, "steps"), "keep": 100})
    job = start(ranks, config, size, "run")
    outcome = job.outcome()
    bad = bad_steps(job)
    assert len(bad) >= 2
    for step in range(2, STEPS + 1):
        assert (state(job, step) == state(job, step - 1)) == (step in bad), step
    assert outcome["loss"] < 100  # a number
    for rank in range(size):
        assert [line["step"] for line in audit(job, rank) if line.get("applied") is False] == bad
    lines = job.metrics()
    assert lines[-1]["skipped"] == len(bad)
    assert sum(line["samples"] for line in lines) == 30 * (STEPS - len(bad))
    out = job.run.log(1, 0, "out").read_text()
    for step in bad:
        assert f"step {step} is left out: its gradient is infinite or no number" in out


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_rollback_ends_with_the_bytes_of_skip(ranks: Ranks, size, precision):
    jobs = {name: start(ranks, poisoned(name, precision=precision), size, name) for name in ("skip", "rollback")}
    outcomes = {name: job.outcome() for name, job in jobs.items()}
    assert outcomes["skip"]["loss"] == outcomes["rollback"]["loss"]
    for step in (7, 14, 21, 28, STEPS):
        assert state(jobs["skip"], step) == state(jobs["rollback"], step), step
    marks = [line["rolled_back"] for line in audit(jobs["rollback"]) if "rolled_back" in line]
    assert marks
    assert all(mark["to"] < mark["from"] for mark in marks)
    assert last_of_each_step(jobs["rollback"]) == last_of_each_step(jobs["skip"])
    assert f"rollback {len(marks)} of 3" in jobs["rollback"].run.log(1, 0, "out").read_text()


def last_of_each_step(job):
    return {line["step"]: line for line in audit(job) if "ids" in line}


def test_a_rollback_before_the_first_checkpoint_goes_back_to_the_start(ranks: Ranks):
    config = poisoned("rollback", checkpoint={"every": Duration(STEPS, "steps"), "keep": 2})
    job = start(ranks, config, 2, "rollback")
    job.outcome()
    twin = start(ranks, poisoned("skip"), 2, "skip")
    twin.outcome()
    assert {line["rolled_back"]["to"] for line in audit(job) if "rolled_back" in line} == {0}
    assert state(job, STEPS) == state(twin, STEPS)


def test_a_run_that_stops_and_resumes_between_rollbacks_ends_the_same(ranks: Ranks):
    calm = start(ranks, poisoned("rollback"), 2, "calm")
    calm.outcome()
    cut = start(ranks, poisoned("rollback"), 2, "cut", until=16)
    assert cut.outcome()["verdict"] == "stopped"
    again = start(ranks, poisoned("rollback"), 2, "cut")
    again.outcome()
    assert state(again, STEPS) == state(calm, STEPS)


@pytest.mark.parametrize(("policy", "rows", "message"), [
    ("skip", range(600), "the gradient of 11 steps in a row is infinite or no number, up to step 11"),
    ("rollback", range(90, 600), "once more after 3 rollbacks"),
])  # fmt: skip
def test_a_run_that_only_makes_nan_ends(ranks: Ranks, policy, rows, message):
    reports = start(ranks, poisoned(policy, rows), 2, "run").wait()
    assert [report["error"] for report in reports] == ["JobError"] * 2
    assert message in reports[0]["message"]


def test_weights_that_are_no_numbers_are_never_saved(ranks: Ranks):
    config = poisoned(
        "stop", rows=(), optim={"lr": 1e38, "warmup": Duration(0, "steps"), "schedule": "constant"},
        model={"name": "tests.train.nets:dense", "args": {}}, checkpoint={"every": Duration(1, "steps"), "keep": 100},
    )  # fmt: skip
    job = start(ranks, config, 2, "run")
    reports = job.wait()
    assert [report["error"] for report in reports] == ["JobError"] * 2
    from safetensors.torch import load

    for step in job.run.checkpoints():
        assert all(part.isfinite().all() for part in load(state(job, step)[0]).values())
