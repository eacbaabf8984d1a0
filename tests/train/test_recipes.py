"""The same training whatever the ranks: optimizers, schedules, penalties, plateaus, early stopping."""

import json
import math
from typing import Any

import pytest

from hpctrain.config import schema
from hpctrain.config.datasets import Split
from hpctrain.config.duration import Duration
from hpctrain.manifest import verify
from tests.train.ranks import Job, Ranks, make_config
from tests.train.test_loop import CNN, samples, state, weights

pytestmark = pytest.mark.torch

RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "adam": {"name": "adam", "lr": 0.003, "momentum": 0.0},
    "lars": {"name": "lars", "lr": 5.0, "momentum": 0.9, "weight_decay": 1e-3},
    "lamb": {"name": "lamb", "lr": 0.02, "momentum": 0.0, "weight_decay": 0.01},
}
MODELS = {"mlp": {}, "cnn": CNN}
# epochs of 21 steps, the last of 40 samples
RAGGED: dict[str, dict[str, Any]] = {"data": {"samples": 1000}, "batch": {"global_": 48}}


def learned(job: Job) -> None:
    """Fail if the weights are those of the start, or no numbers: equal bytes would show nothing."""
    lines = job.metrics()
    assert math.isfinite(lines[-1]["loss"])
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_ranks_equal_one_with_accumulation_to_the_byte(ranks: Ranks, recipe, model):
    jobs = []
    for size, accumulate in [(1, 2), (2, 1)]:
        config = make_config(
            optim=RECIPES[recipe], model=MODELS[model], data=RAGGED["data"], train={"steps": 100},
            batch=RAGGED["batch"] | {"accumulate": accumulate},
        )  # fmt: skip
        jobs.append(ranks.start(config, size, run=ranks.run_dir(f"{size}")))
    for job in jobs:
        job.outcome()
        learned(job)
    assert state(jobs[0], 100) == state(jobs[1], 100)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_in_float64_four_ranks_and_a_ragged_tail_agree_to_rounding(ranks: Ranks, recipe, model):
    config = make_config(optim=RECIPES[recipe], model=MODELS[model], train={"steps": 100}, precision="fp64", **RAGGED)
    jobs = [ranks.start(config, size, run=ranks.run_dir(f"{size}")) for size in (1, 4)]
    for job in jobs:
        job.outcome()
        learned(job)
    first, second = (weights(job, 100) for job in jobs)
    for key, value in first.items():
        assert (value - second[key]).abs().max().item() < 1e-10, key


LIMITS = {"l1": 1e-4, "l2": 1e-3, "clip_norm": 0.5, "clip_value": 0.1, "max_norm": 0.8}


def test_penalties_and_clipping_count_once_on_any_number_of_ranks(ranks: Ranks):
    train = {"steps": 60, **LIMITS}
    plain = ranks.start(make_config(train={"steps": 60}, precision="fp64"), 1, run=ranks.run_dir("plain"))
    jobs = [
        ranks.start(
            make_config(train=train, precision="fp64", batch={"accumulate": accumulate}), size,
            run=ranks.run_dir(f"{size}x{accumulate}"),
        )
        for size, accumulate in [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)]
    ]  # fmt: skip
    for job in (plain, *jobs):
        job.outcome()
        learned(job)
    assert state(jobs[1], 60) == state(jobs[2], 60)
    first = weights(jobs[0], 60)
    assert max((value - first[key]).abs().max().item() for key, value in weights(plain, 60).items()) > 0.01
    for job in jobs[1:]:
        for key, value in weights(job, 60).items():
            assert (value - first[key]).abs().max().item() < 1e-10, key
    assert first["1.weight"].norm(dim=1).max().item() <= 0.8 + 1e-6


def test_other_ranks_in_every_attempt_keep_the_trajectory(ranks: Ranks):
    config = make_config(optim=RECIPES["adam"] | {"warmup": Duration(20, "steps")}, train={"steps": 60},
                         precision="fp64", log={"samples": True}, **RAGGED)  # fmt: skip
    calm = ranks.start(config, 1, run=ranks.run_dir("calm"))
    run, jobs = ranks.run_dir("moved"), []
    for size, until in [(2, 13), (4, 37), (1, None)]:
        jobs.append(ranks.start(config, size, run=run, until=until))
        jobs[-1].outcome()
    calm.outcome()
    assert [step for job in jobs for step in samples(job)] == samples(calm)
    for key, value in weights(jobs[-1], 60).items():
        assert (value - weights(calm, 60)[key]).abs().max().item() < 1e-10, key


SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"warmup": Duration(12, "steps"), "schedule": "cosine", "floor": 0.1},
    "step": {"warmup": Duration(5, "steps"), "schedule": "step", "decay_every": Duration(15, "steps"), "decay": 0.5},
    "multistep": {"schedule": "multistep", "milestones": (Duration(10, "steps"), Duration(50, "%"))},
    "linear": {"schedule": "linear", "decay_over": Duration(30, "steps"), "floor": 0.2},
    "polynomial": {"warmup": Duration(10, "steps"), "schedule": "polynomial", "power": 2.0},
    "onecycle": {"schedule": "onecycle", "rise": Duration(15, "steps"), "legs": "linear",
                 "cycle_momentum": (0.85, 0.95), "momentum": 0.0},
    "restarts": {"warmup": Duration(4, "steps"), "schedule": "restarts", "period": Duration(9, "steps")},
}  # fmt: skip


def expected(name: str, step: int, total: int) -> float:
    """Return the part of the full rate by the words of the documentation, written once more."""
    made, warmup = SCHEDULES[name], int(SCHEDULES[name].get("warmup", Duration(0, "steps")).count)
    if step < warmup:
        return (step + 1) / warmup
    if name == "cosine":
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    if name == "step":
        return 0.5 ** (step // 15)
    if name == "multistep":
        return 1.0 if step < 10 else 0.1 if step < total // 2 else 0.01
    if name == "linear":
        return 1 - 0.8 * min(step / 30, 1)
    if name == "polynomial":
        return (1 - (step - warmup) / (total - warmup)) ** 2
    if name == "onecycle":
        up = 0.04 + 0.96 * step / 14
        return up if step <= 14 else 1 - (step - 14) / (total - 1 - 14)
    assert made["period"].count == 9
    return (1 + math.cos(math.pi * ((step - warmup) % 9) / 9)) / 2


@pytest.mark.parametrize(
    ("size", "accumulate", "until"), [(1, 1, 7), (2, 1, None), (4, 1, None), (1, 2, 20), (2, 2, 9)]
)
def test_the_rate_of_every_step_is_that_of_the_plan(ranks: Ranks, size, accumulate, until):
    """Warm-up and each schedule, on any ranks and passes, across a resume, also in the middle of the warm-up."""
    batch = {"global_": 240, "accumulate": accumulate}
    jobs = {}
    for name, asked in SCHEDULES.items():
        optim = {"lr": 0.1, "base_batch": 60, "momentum": 0.9, "warmup": Duration(0, "steps")} | asked
        config = make_config(optim=optim, batch=batch, train={"steps": 40}, log={"every": Duration(1, "steps")})
        run = ranks.run_dir(name)
        jobs[name] = [ranks.start(config, size, run=run, until=until)]
        jobs[name][0].outcome()
        if until is not None:
            jobs[name].append(ranks.start(config, size, run=run))
            jobs[name][1].outcome()
    for name, attempts in jobs.items():
        found = {line["step"]: line["lr"] for job in attempts for line in job.metrics()}
        wanted = {step + 1: 0.4 * expected(name, step, 40) for step in range(40)}
        assert found == pytest.approx(wanted, rel=1e-12, abs=1e-15), name


EARLY: dict[str, dict[str, Any]] = {
    "data": {"split": Split(validation=0.2)},
    "optim": {"name": "adam", "lr": 0.05, "momentum": 0.0, "warmup": Duration(0, "steps"), "schedule": "plateau",
              "patience": 0, "decay": 0.5, "threshold": 0.0},
    "train": {"epochs": 40, "eval_every": Duration(5, "steps"), "stop_early": schema.StopEarly(patience=4)},
    "checkpoint": {"every": Duration(5, "steps"), "keep": 1000},
    "log": {"every": Duration(1, "steps")},
}  # fmt: skip


@pytest.fixture
def calm(ranks: Ranks):
    job = ranks.start(make_config(**EARLY), 2, run=ranks.run_dir("calm"))
    return job, job.outcome()


def test_a_run_that_gains_nothing_ends_early_as_completed(ranks: Ranks, calm):
    job, outcome = calm
    losses = [(line["step"], line["loss"]) for line in job.metrics("validation")]
    best = min(losses, key=lambda pair: pair[1])
    assert losses[-1][0] == best[0] + 4 * 5 == outcome["step"] < outcome["total_steps"]
    assert outcome["verdict"] == "completed"
    assert outcome["message"] == (
        f"stopped early at step {outcome['step']}: 4 evaluations did not lower the loss on the validation set, "
        f"{best[1]:.4f} at step {best[0]}"
    )
    assert [line["step"] for line in job.metrics("test")] == [outcome["step"]]
    assert job.run.checkpoints()[-1] == outcome["step"]
    manifest = json.loads((job.run.checkpoint(outcome["step"]) / "manifest.json").read_text())
    assert [tuple(entry) for entry in manifest["losses"]] == losses
    rates = {line["lr"] for line in job.metrics()}
    assert len(rates) > 2, "the plateau must have reduced the rate"
    again = ranks.start(make_config(**EARLY), 2, run=job.run).outcome()
    assert (again["verdict"], again["step"], again["message"]) == ("completed", outcome["step"], outcome["message"])
    assert again["accuracy"] == outcome["accuracy"]


@pytest.mark.parametrize("until", [3, 5, 22, 25])
def test_plateau_and_early_stop_go_on_after_a_resume_as_without(ranks: Ranks, calm, until):
    job, outcome = calm
    run = ranks.run_dir("cut")
    first = ranks.start(make_config(**EARLY), 2, run=run, until=until)
    assert first.outcome()["verdict"] == "stopped"
    second = ranks.start(make_config(**EARLY), 2, run=run)
    assert second.outcome()["message"] == outcome["message"]
    assert state(second, outcome["step"]) == state(job, outcome["step"])
    lines = [line for attempt in (first, second) for line in attempt.metrics()]
    assert [(line["step"], line["lr"]) for line in lines] == [(line["step"], line["lr"]) for line in job.metrics()]


def test_an_evaluation_that_comes_after_the_checkpoint_is_noted_in_it(ranks: Ranks, calm):
    """Told to stop where one is due, a run saves first; what the next attempt makes up for must not be lost again."""
    run = ranks.run_dir("late")
    ranks.start(make_config(**EARLY), 2, run=run, until=10).outcome()
    assert not verify(run.checkpoint(10), 10).evaluated
    ranks.start(make_config(**EARLY), 2, run=run, until=12).outcome()
    late, early = verify(run.checkpoint(10), 10), verify(calm[0].run.checkpoint(10), 10)
    assert (late.evaluated, late.score, late.losses) == (True, early.score, early.losses)
    assert not list((run.stage / "attempt_2").iterdir())


def test_more_patience_lets_a_run_that_ended_early_go_on(ranks: Ranks, calm):
    job, outcome = calm
    patient = EARLY | {"train": EARLY["train"] | {"stop_early": schema.StopEarly(patience=6)}}
    assert ranks.start(make_config(**patient), 2, run=job.run).outcome()["step"] > outcome["step"]


def test_a_batch_that_grows_with_the_ranks_has_the_settings_of_its_rule(ranks: Ranks):
    from tests.train.ranks import make_plan

    optim = {"name": "adamw", "lr": 0.001, "momentum": 0.0, "base_batch": 30, "scale": "sqrt"}
    config = make_config(optim=optim, batch={"global_": None, "per_rank": 30}, train={"steps": 5},
                         log={"every": Duration(1, "steps")})  # fmt: skip
    plan = make_plan(config, 4)
    assert (plan.global_batch, plan.lr_used) == (120, 0.002)
    assert plan.betas_used == pytest.approx((0.6, 0.996))
    assert plan.eps_used == pytest.approx(5e-9)
    job = ranks.start(config, 4, run=ranks.run_dir(), plan=plan)
    assert job.outcome()["verdict"] == "completed"
