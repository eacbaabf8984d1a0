"""Horovod over Gloo on this machine: the same as DDP, and none of its silent traps. MPI is for tests/cluster."""

import ast
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hpctrain.config.schema import Dist, Horovod

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("horovod")]

HVD = Dist(strategy="horovod")


def values(ranks, body, size, dist, **options):
    from tests.train.ranks import make_config

    name = f"{body}-{len(ranks.jobs)}"
    job = ranks.start(make_config(dist=dist), size, run=ranks.run_dir(name), body=body, options=options)
    reports = job.wait()
    assert all("value" in report for report in reports), (reports, read_logs(job))
    return [report["value"] for report in reports]


def read_logs(job):
    return [path.read_text()[-2000:] for path in (job.run.attempt(job.attempt) / "logs").glob("*.err")]


def train(ranks, size, dist=HVD, *, run=None, until=None, **changes):
    """Train a tiny net; return the job and its final weights."""
    from tests.train.ranks import make_config

    config = make_config(dist=dist, train={"steps": 50}, **changes)
    run = run or ranks.run_dir(f"train-{len(ranks.jobs)}")
    job = ranks.start(config, size, run=run, until=until)
    outcome = job.outcome()
    assert (outcome["verdict"], outcome["step"]) == (("stopped", until) if until else ("completed", 50))
    from safetensors.torch import load_file

    return job, load_file(run.checkpoint(outcome["step"]) / "model.safetensors")


def furthest(one, other):
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def test_collectives_give_every_rank_the_same(ranks):
    assert values(ranks, "collectives", 3, HVD) == values(ranks, "collectives", 3, Dist())


def test_wrapping_leaves_weights_buffers_and_random_state_alone(ranks):
    assert values(ranks, "wrap", 2, HVD) == [{"same": True, "random": True, "gradients": 0}] * 2


@pytest.mark.parametrize("strategy", ["ddp", "horovod"])
def test_an_overflow_on_one_rank_makes_all_skip(ranks, strategy):
    first, second = values(ranks, "overflow", 2, Dist(strategy=strategy))
    assert first == second
    assert first["applied"] == [False, True, False, True]
    weights = first["weights"]
    assert [one == other for one, other in zip(weights, weights[1:], strict=False)] == [True, False, True, False]
    assert all(abs(value) < 2 for step in weights for value in step), "momentum of memory that nobody has written"
    assert first["scale"] == 4


@pytest.mark.parametrize("strategy", ["ddp", "horovod"])
def test_a_gradient_that_is_no_number_on_one_rank_is_applied_by_none(ranks, strategy):
    first, second = values(ranks, "no_number", 2, Dist(strategy=strategy))
    assert first == second
    assert first["applied"] == [True, False, True, False]
    weights = first["weights"]
    assert [one == other for one, other in zip(weights, weights[1:], strict=False)] == [False, True, False, True]


def test_parameters_and_buffers_that_change_by_pass_are_treated_as_by_ddp(ranks):
    ddp, horovod = (values(ranks, "moody", 2, Dist(strategy=strategy)) for strategy in ("ddp", "horovod"))
    assert horovod[0] == horovod[1]
    assert horovod == ddp


def test_what_gets_no_gradient_is_left_alone_and_all_ranks_get_rank_0s_state(ranks):
    dist = [values(ranks, "unused", 2, Dist(strategy=strategy)) for strategy in ("ddp", "horovod")]
    assert dist[0] == dist[1]
    assert dist[1] == [
        {"used": [-1.25] * 3, "unused": [1] * 3, "frozen": [1] * 3, "halves": [1.5] * 2, "count": [7]}
    ] * 2  # fmt: skip


@pytest.mark.parametrize("some", [False, True], ids=["all", "left out by some"])
def test_weights_whose_channels_come_last_are_trained_as_by_ddp(ranks, some):
    reference = values(ranks, "channels_last", 2, Dist(), some=some)[0]
    for settings in ({}, {"groups": 2}) if not some else ({},):
        found = values(ranks, "channels_last", 2, Dist(strategy="horovod", horovod=Horovod(**settings)), some=some)
        assert found == [reference] * 2
    first, second = values(
        ranks, "channels_last", 2, Dist(strategy="horovod", compression="fp16"), some=some
    )
    assert first == second
    for mine, theirs in zip(first["weights"], reference["weights"], strict=True):
        assert torch.tensor(mine).allclose(torch.tensor(theirs), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"groups": 2}, {"groups": 1}, {"fusion_mb": 0}, {"cycle_ms": 0.5}])
def test_settings_change_nothing_but_speed(ranks, settings):
    reference = values(ranks, "steps", 2, Dist())[0]
    for found in values(ranks, "steps", 2, Dist(strategy="horovod", horovod=Horovod(**settings))):
        assert found == reference


def test_fp16_compression_rounds_and_no_more(ranks):
    reference = torch.tensor(values(ranks, "steps", 2, Dist())[0])
    first, second = values(ranks, "steps", 2, Dist(strategy="horovod", compression="fp16"))
    assert first == second
    assert 1e-9 < (torch.tensor(first) - reference).abs().max() < 1e-3


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "args": {"hidden": [16]}},
        {"name": "mlp", "args": {"hidden": [16], "dropout": 0.5}},
        {"name": "mlp", "args": {"hidden": [16]}, "freeze": ("1.*",)},
        {"name": "cnn", "args": {"channels": [4, 8]}},
        {"name": "tests.train.nets:auxiliary", "args": {}},
    ],
    ids=["mlp", "dropout", "frozen", "cnn", "auxiliary"],
)
def test_two_ranks_end_as_with_ddp_to_the_byte(ranks, model):
    ours, weights = train(ranks, 2, model=model, log={"samples": True})
    theirs, reference = train(ranks, 2, Dist(), model=model, log={"samples": True})
    assert all(weights[name].equal(reference[name]) for name in reference)
    for rank in range(2):
        logs = [job.run.samples(1, rank).read_text() for job in (ours, theirs)]
        assert logs[0] == logs[1]


def test_four_ranks_end_as_with_ddp_in_float64(ranks):
    _, weights = train(ranks, 4, precision="fp64")
    _, reference = train(ranks, 4, Dist(), precision="fp64")
    assert furthest(weights, reference) < 1e-10


@pytest.mark.parametrize(("first", "then"), [(HVD, HVD), (HVD, Dist()), (Dist(), HVD)])
def test_a_checkpoint_of_one_strategy_resumes_under_the_other(ranks, first, then):
    _, reference = train(ranks, 2)
    job, _ = train(ranks, 2, first, until=21)
    _, weights = train(ranks, 2, then, run=job.run)
    assert all(weights[name].equal(reference[name]) for name in reference)


@pytest.mark.parametrize("strategy", ["ddp", "horovod"])
def test_the_scale_of_fp16_survives_a_resume(ranks, strategy):
    dist = Dist(strategy=strategy)
    _, reference = train(ranks, 2, dist, precision="fp16")
    job, _ = train(ranks, 2, dist, until=21, precision="fp16")
    _, weights = train(ranks, 2, dist, run=job.run, precision="fp16")
    assert all(weights[name].equal(reference[name]) for name in reference)


def test_bf16_trains_with_float32_gradients(ranks):
    job, weights = train(ranks, 2, precision="bf16")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert job.metrics("test")[-1]["accuracy"] > 0.5


def test_a_dead_rank_ends_the_others(ranks):
    from tests.train.ranks import make_config

    job = ranks.start(make_config(dist=HVD), 2, run=ranks.run_dir(), body="lonely")
    first, second = job.wait(timeout_s=20)
    assert second == {"exit": -9}
    assert first["error"] == "HorovodInternalError", read_logs(job)


def test_a_rank_that_does_not_come_to_horovods_world_is_named_by_all(ranks):
    from tests.train.ranks import make_config

    options = {"timeout_s": 5, "absent": 1}
    job = ranks.start(make_config(dist=HVD), 3, run=ranks.run_dir(), options=options)
    first, second, third = job.wait(timeout_s=20)
    errors = first["error"], second, third["error"]
    assert errors == ("RendezvousError", {"killed": True}, "RendezvousError"), read_logs(job)
    sentence = "after 5 s rank 1 had not loaded Horovod, after the world was proven"
    assert first["message"].startswith(sentence)
    assert third["message"] == sentence


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_does_not_answer_ends_the_others(ranks, stopped):
    from tests.train.ranks import make_config

    config = make_config(dist=HVD, train={"steps": 10**6})
    job = ranks.start(config, 2, run=ranks.run_dir(), options={"timeout_s": 3})
    deadline = time.monotonic() + 60
    while job.steps() < 10:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.signal(stopped, signal.SIGSTOP)
    job.processes[1 - stopped].join(20)
    assert job.processes[1 - stopped].exitcode in {1, -9}, read_logs(job)


def test_every_collective_has_a_name():
    """Automatic names are counters of each process: after unequal counts ranks would wait for each other forever."""
    import hpctrain.dist.hvd as module

    tree = ast.parse(Path(module.__file__).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    named = {"allreduce", "broadcast", "allreduce_", "broadcast_", "allgather", "broadcast_async"}
    found = [call for call in calls if call.func.attr in named and ast.unparse(call.func.value).endswith("hvd")]
    assert len(found) >= 4
    assert all("name" in {word.arg for word in call.keywords} for call in found)
    forbidden = {"broadcast_object", "allgather_object", "broadcast_optimizer_state", "broadcast_parameters"}
    assert not forbidden & {call.func.attr for call in calls}


def test_nothing_is_unpickled(ranks):
    """Groups make Horovod send names by its own `broadcast_object`, which is replaced."""
    values(ranks, "steps", 2, Dist(strategy="horovod", horovod=Horovod(groups=2)), no_pickle=True)


RECIPES: list[dict[str, Any]] = [
    {"name": "lars", "lr": 5.0, "momentum": 0.9, "weight_decay": 1e-3},
    {"name": "lamb", "lr": 0.02, "momentum": 0.0},
    {"name": "adamw", "lr": 0.003, "momentum": 0.0, "weight_decay": 0.1},
    {"name": "adagrad", "lr": 0.05, "momentum": 0.0},
    {"name": "nadam", "lr": 0.003, "momentum": 0.0, "weight_decay_on": "weights"},
]


@pytest.mark.parametrize("optim", RECIPES, ids=[recipe["name"] for recipe in RECIPES])
def test_every_optimizer_with_limits_is_the_same_under_horovod_and_ddp_to_the_byte(ranks, optim):
    limits = {"l1": 1e-4, "l2": 1e-3, "clip_norm": 0.5, "clip_value": 0.1, "max_norm": 1.0}
    from tests.train.ranks import make_config

    jobs = [
        ranks.start(make_config(dist=dist, optim=optim, train={"steps": 30, **limits}), 2, run=ranks.run_dir(name))
        for name, dist in {"hvd": HVD, "ddp": Dist()}.items()
    ]
    paths = [job.run.checkpoint(job.outcome()["step"]) for job in jobs]
    assert (paths[0] / "model.safetensors").read_bytes() == (paths[1] / "model.safetensors").read_bytes()
    assert (paths[0] / "optim.safetensors").read_bytes() == (paths[1] / "optim.safetensors").read_bytes()
    cut = ranks.run_dir("cut")
    for until in (13, None):
        job = ranks.start(
            make_config(dist=HVD, optim=optim, train={"steps": 30, **limits}), 2, run=cut, until=until
        )
        job.outcome()
    assert (cut.checkpoint(30) / "model.safetensors").read_bytes() == (paths[0] / "model.safetensors").read_bytes()
