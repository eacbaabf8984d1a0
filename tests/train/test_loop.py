import json
import signal
import time
from typing import Any

import pytest

from hpctrain.config.duration import Duration
from hpctrain.plan import Samples
from tests.train.ranks import Job, Ranks, make_config, make_plan

pytestmark = pytest.mark.torch

CNN = {"name": "cnn", "args": {"channels": [4, 8], "hidden": 16}}


def state(job: Job, step: int) -> tuple[bytes, bytes]:
    """Return weights and optimizer state after a step, as files."""
    path = job.run.checkpoint(step)
    return (path / "model.safetensors").read_bytes(), (path / "optim.safetensors").read_bytes()


def weights(job: Job, step: int):
    from safetensors.torch import load

    return load(state(job, step)[0])


def samples(job: Job) -> list[dict[str, Any]]:
    """Return what the ranks logged of their samples, all ranks of a step together in the order of ranks."""
    steps: dict[int, dict[str, Any]] = {}
    for rank in range(len(job.processes)):
        for line in map(json.loads, job.run.samples(job.attempt, rank).read_text().splitlines()):
            step = steps.setdefault(line["step"], {"epoch": line["epoch"], "ids": []})
            assert step["epoch"] == line["epoch"]
            step["ids"] += line["ids"]
    return [{"step": number, **steps[number]} for number in sorted(steps)]


def logged(**changes):
    """Return a config whose epochs end in a batch of 28, and which logs its samples."""
    changes = {"batch": {"global_": 64}, "log": {"samples": True}, **changes}
    return make_config(**changes)


def test_a_run_leaves_its_whole_record(ranks: Ranks):
    run = ranks.run_dir()
    job = ranks.start(make_config(), 2, run=run)
    outcome = job.outcome()
    assert outcome["verdict"] == "completed"
    assert outcome["cause"] is None
    assert (outcome["step"], outcome["total_steps"], outcome["epoch"]) == (50, 50, 2.0)
    assert outcome["accuracy"] > 0.8
    raw = run.outcome(1).read_bytes()
    assert raw.startswith(b'{"verdict":"completed","cause":null,')
    assert json.loads(raw) == outcome
    train, test = job.metrics("train"), job.metrics("test")
    assert [line["step"] for line in train] == [10, 20, 30, 40, 50]
    assert [line["step"] for line in test] == [25, 50]
    assert [line["samples"] for line in train] == [600] * 5
    assert test[-1]["accuracy"] == outcome["accuracy"]
    assert train[0]["loss"] > train[-1]["loss"]
    assert train[0]["lr"] == pytest.approx(0.1, rel=0.2)
    assert {"time", "epoch", "step", "split", "loss", "accuracy", "lr", "samples_per_s"} <= train[0].keys()
    assert run.checkpoints() == [25, 50]
    assert run.metrics(1).stat().st_mode & 0o777 == 0o600
    out = run.log(1, 0, "out").read_text().splitlines()
    assert out[-1].startswith(f"completed: step 50/50, accuracy {outcome['accuracy']:.4f}, ")
    assert run.log(1, 1, "out").read_text() == ""


@pytest.mark.parametrize("model", [{}, CNN], ids=["mlp", "cnn"])
def test_two_ranks_equal_one_rank_with_accumulation_to_the_byte(ranks: Ranks, model):
    jobs = [
        ranks.start(
            logged(model=model, train={"steps": 100}, batch={"global_": 64, "accumulate": accumulate}),
            size,
            run=ranks.run_dir(f"{size}"),
        )
        for size, accumulate in [(1, 2), (2, 1)]
    ]
    one, two = (job.outcome() for job in jobs)
    assert state(jobs[0], 100) == state(jobs[1], 100)
    assert one["accuracy"] == two["accuracy"]
    assert samples(jobs[0]) == samples(jobs[1])


@pytest.mark.parametrize("model", [{}, CNN], ids=["mlp", "cnn"])
def test_in_float64_any_number_of_ranks_gives_the_same_weights(ranks: Ranks, model):
    config = logged(model=model, train={"steps": 60}, precision="fp64", batch={"global_": 60})
    jobs = [ranks.start(config, size, run=ranks.run_dir(f"{size}")) for size in (1, 2, 4)]
    for job in jobs:
        assert job.outcome()["verdict"] == "completed"
    first = weights(jobs[0], 60)
    for job in jobs[1:]:
        assert samples(job) == samples(jobs[0])
        for key, value in weights(job, 60).items():
            assert (value - first[key]).abs().max().item() < 1e-10, key


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_resumed_run_equals_an_undisturbed_one_to_the_byte(ranks: Ranks, size):
    config = make_config(
        model={"args": {"hidden": [64, 32]}}, train={"steps": 40}, checkpoint={"every": Duration(7, "steps")}
    )
    calm = ranks.start(config, size, run=ranks.run_dir("calm"))
    run = ranks.run_dir("cut")
    first = ranks.start(config, size, run=run, until=17)
    assert first.outcome()["verdict"] == "stopped"
    assert run.checkpoints()[-1] == 17
    second = ranks.start(config, size, run=run)
    found, expected = second.outcome(), calm.outcome()
    assert state(second, 40) == state(calm, 40)
    assert (found["accuracy"], found["loss"]) == (expected["accuracy"], expected["loss"])
    # it reported only its own steps, and from where the first had stopped
    assert [line["step"] for line in first.metrics()] == [10, 17]
    assert [(line["step"], line["samples"]) for line in second.metrics()] == [(20, 180), (30, 600), (40, 600)]
    assert "going on from step 17" in run.log(2, 0, "out").read_text()


def test_a_killed_run_goes_on_and_sees_each_sample_once(ranks: Ranks):
    config = logged(train={"epochs": 3}, checkpoint={"every": Duration(5, "steps")})
    run = ranks.run_dir()
    first = ranks.start(config, 2, run=run)
    while not run.checkpoints():
        time.sleep(0.002)
    first.kill()
    second = ranks.start(config, 3, run=run, plan=make_plan(make_config(batch={"global_": 63}, train={"epochs": 3}), 3))
    reports = second.wait()  # another global batch is refused
    assert {report["error"] for report in reports} == {"CheckpointError"}
    third = ranks.start(logged(train={"epochs": 3}, checkpoint={"every": Duration(5, "steps")}), 4, run=run)
    assert third.outcome()["verdict"] == "completed"
    taken: dict[int, dict[str, Any]] = {}
    for job in (first, third):
        taken |= {step["step"]: step for step in samples(job) if len(step["ids"]) or job is third}
    assert sorted(taken) == list(range(1, 73))
    for epoch in range(3):
        seen = [sample for step in taken.values() if step["epoch"] == epoch for sample in step["ids"]]
        assert sorted(seen) == list(range(1500))


def test_a_damaged_checkpoint_is_skipped_and_named(ranks: Ranks):
    config = make_config(checkpoint={"every": Duration(10, "steps"), "keep": 3})
    run = ranks.run_dir()
    assert ranks.start(config, 2, run=run, until=30).outcome()["step"] == 30
    file = run.checkpoint(30) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert ranks.start(config, 2, run=run).outcome()["verdict"] == "completed"
    out = run.log(2, 0, "out").read_text()
    assert f"skipped a checkpoint: {file}: damaged: its SHA-256 is another" in out
    assert "going on from step 20" in out


@pytest.mark.parametrize("who", [0, 2])
def test_all_ranks_stop_together_when_one_gets_the_signal(ranks: Ranks, who):
    config = make_config(train={"epochs": 10_000}, checkpoint={"every": Duration(1000, "epochs")})
    run = ranks.run_dir()
    job = ranks.start(config, 3, run=run)
    while job.steps() < 20:
        time.sleep(0.005)
    began = time.monotonic()
    for _ in range(3):
        job.signal(who, signal.SIGUSR2)
    outcome = job.outcome()
    assert time.monotonic() - began < 5
    assert (outcome["verdict"], outcome["cause"]) == ("stopped", "time_limit")
    assert run.checkpoints() == [outcome["step"]]
    assert [process.exitcode for process in job.processes] == [0, 0, 0]
    raw = run.outcome(1).read_bytes()
    assert b'"verdict":"stopped","cause":"time_limit"' in raw


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(ranks: Ranks):
    run = ranks.run_dir()
    first = ranks.start(make_config(), 1, run=run, until=25)  # an epoch has 25 steps
    assert first.outcome()["accuracy"] is None
    second = ranks.start(make_config(), 1, run=run)
    second.outcome()
    assert first.metrics("test") == []
    assert [line["step"] for line in second.metrics("test")] == [25, 50]


def test_a_run_that_is_done_only_says_so_again(ranks: Ranks):
    run = ranks.run_dir()
    first, second = (ranks.start(make_config(), 1, run=run).outcome() for _ in range(2))
    assert second["verdict"] == "completed"
    assert (second["step"], second["accuracy"]) == (50, first["accuracy"])
    longer = ranks.start(make_config(train={"epochs": 3}), 1, run=run).outcome()
    assert longer["step"] == 75


def test_each_test_sample_counts_once_on_any_number_of_ranks(ranks: Ranks):
    config = make_config(batch={"global_": 60}, train={"steps": 1}, precision="fp64")
    jobs = [ranks.start(config, size, run=ranks.run_dir(f"{size}")) for size in (1, 2, 3, 4, 5)]
    found = []
    for job in jobs:
        outcome = job.outcome()
        (line,) = job.metrics("test")
        assert line["samples"] == 297
        found.append((outcome["accuracy"], outcome["loss"]))
    # one step from the same weights: the same right answers and, to rounding, the same loss, whatever the ranks
    assert {accuracy for accuracy, _ in found} == {found[0][0]}
    assert (found[0][0] * 297).is_integer()
    assert [loss for _, loss in found] == pytest.approx([found[0][1]] * 5, abs=1e-12)


def test_ranks_with_nothing_to_do_in_the_tail_keep_in_step(ranks: Ranks):
    # 33 samples in batches of 8 leave one for the last step, for 4 ranks; the model would make NaN of an empty batch
    config = logged(
        data={"samples": 33},
        batch={"global_": 8},
        train={"epochs": 2},
        model={"name": "tests.train.nets:averaging", "args": {"norm": False}},
    )
    job = ranks.start(config, 4, run=ranks.run_dir())
    assert job.outcome()["verdict"] == "completed"
    steps = samples(job)
    assert [len(step["ids"]) for step in steps] == [8, 8, 8, 8, 1] * 2
    for epoch in range(2):
        assert sorted(s for step in steps if step["epoch"] == epoch for s in step["ids"]) == list(range(33))


def test_an_evaluation_uses_the_running_averages_that_are_saved(ranks: Ranks):
    """Each rank's batch norm has seen other samples: the result must be that of the checkpoint, for any ranks."""
    model = {"name": "tests.train.nets:averaging", "args": {}}
    config, run = make_config(model=model, train={"epochs": 1}), ranks.run_dir()
    trained = ranks.start(config, 4, run=run).outcome()
    again = ranks.start(config, 1, run=run, plan=make_plan(config, 1)).outcome()
    assert (again["step"], again["accuracy"]) == (trained["step"], trained["accuracy"])
    assert again["loss"] == pytest.approx(trained["loss"], rel=1e-6)


def test_the_tail_weighs_what_it_holds_on_any_number_of_ranks(ranks: Ranks):
    config = make_config(data={"samples": 33}, batch={"global_": 8}, train={"epochs": 2}, precision="fp64")
    jobs = [ranks.start(config, size, run=ranks.run_dir(f"{size}")) for size in (1, 4)]
    for job in jobs:
        job.outcome()
    first, second = (weights(job, 10) for job in jobs)
    for key, value in first.items():
        assert (value - second[key]).abs().max().item() < 1e-12


def test_dropout_is_drawn_by_micro_batch_and_survives_a_resume(ranks: Ranks):
    model = {"name": "tests.train.nets:dropout", "args": {}}
    one = ranks.start(make_config(model=model, batch={"accumulate": 2}, train={"steps": 30}), 1, run=ranks.run_dir("1"))
    two = ranks.start(make_config(model=model, train={"steps": 30}), 2, run=ranks.run_dir("2"))
    cut = ranks.run_dir("cut")
    ranks.start(make_config(model=model, train={"steps": 30}), 2, run=cut, until=11).outcome()
    rest = ranks.start(make_config(model=model, train={"steps": 30}), 2, run=cut)
    for job in (one, two, rest):
        job.outcome()
    assert state(one, 30) == state(two, 30) == state(rest, 30)


@pytest.mark.parametrize("size", [1, 2])
def test_a_loss_that_is_no_number_ends_the_run(ranks: Ranks, size):
    config = make_config(model={"name": "tests.train.nets:exploding", "args": {}}, optim={"lr": 1.0})
    run = ranks.run_dir()
    reports = ranks.start(config, size, run=run).wait()
    assert [report["error"] for report in reports] == ["JobError"] * size
    assert reports[0]["message"].startswith("the loss is nan at step 10 (learning rate ")
    assert "try a lower optim.lr" in reports[0]["message"]
    assert run.checkpoints() == []


@pytest.mark.parametrize(("model", "error", "message"), [
    ("one_logit", "JobError", "tests.train.nets:one_logit gives (2, 1) for images of shape (2, 1, 8, 8)"),
    ("wrong_size", "JobError", "tests.train.nets:wrong_size failed on a batch of shape (2, 1, 8, 8): RuntimeError"),
    ("missing", "UsageError", "'missing' does not exist in"),
])  # fmt: skip
def test_a_model_that_does_not_fit_is_told_before_the_first_step(ranks: Ranks, model, error, message):
    config = make_config(model={"name": f"tests.train.nets:{model}", "args": {}})
    (report,) = ranks.start(config, 1, run=ranks.run_dir()).wait()
    assert report["error"] == error
    assert message in report["message"]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("kind", "got"), [("list", "list"), ("dict", "dict"), ("other", "({0}, 10) and ({0}, 5)"), ("flat", "({0},)")]
)
def test_outputs_that_do_not_fit_in_training_alone_are_told_in_a_sentence(ranks: Ranks, size, kind, got):
    config = make_config(model={"name": "tests.train.nets:in_training", "args": {"kind": kind}}, batch={"global_": 60})
    reports = ranks.start(config, size, run=ranks.run_dir()).wait()
    assert [report["error"] for report in reports] == ["JobError"] * size
    samples = 60 if size == 1 else 2  # two ranks make passes before the first step, with two samples
    assert reports[0]["message"].startswith(
        f"model.name: in training the model gives {got.format(samples)} for {samples} samples"
    )


def test_a_loss_without_gradient_is_told_before_the_first_step(ranks: Ranks):
    config = make_config(loss="tests.train.test_objective:flat")
    (report,) = ranks.start(config, 1, run=ranks.run_dir()).wait()
    assert report["error"] == "JobError"
    assert report["message"].startswith("loss: tests.train.test_objective:flat has no gradient")


def test_other_data_than_planned_is_refused(ranks: Ranks):
    config = make_config()
    plan = make_plan(config, 1, Samples(train=1500, test=298))
    (report,) = ranks.start(config, 1, run=ranks.run_dir(), plan=plan).wait()
    assert report["error"] == "DataError"
    assert report["message"].startswith("digits has 1500 training and 297 test samples; 1500 and 298 are planned")


def test_another_rate_than_planned_is_refused(ranks: Ranks):
    plan = make_plan(make_config(optim={"lr": 0.2}), 1)
    (report,) = ranks.start(make_config(), 1, run=ranks.run_dir(), plan=plan).wait()
    assert (report["error"], report["message"]) == (
        "WorldError", "the config gives the learning rate 0.1, the plan has 0.2",
    )  # fmt: skip


def test_more_ranks_than_planned_are_refused(ranks: Ranks):
    plan = make_plan(make_config(), 1)
    reports = ranks.start(make_config(), 2, run=ranks.run_dir(), plan=plan).wait()
    assert {report["error"] for report in reports} == {"WorldError"}


def test_bfloat16_learns_with_float32_weights(ranks: Ranks):
    job = ranks.start(make_config(precision="bf16", model=CNN, train={"epochs": 4}), 2, run=ranks.run_dir())
    assert job.outcome()["accuracy"] > 0.75
    assert {str(value.dtype) for value in weights(job, 100).values()} == {"torch.float32"}


def test_debug_computes_the_same(ranks: Ranks):
    config = make_config(train={"steps": 10})
    jobs = [ranks.start(config, 1, run=ranks.run_dir(f"{debug}"), options={"debug": debug}) for debug in (False, True)]
    for job in jobs:
        job.outcome()
    assert state(jobs[0], 10) == state(jobs[1], 10)
