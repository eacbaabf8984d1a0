"""What the config asks of any model: how it lies in memory, and that it is compiled."""

import shutil

import pytest

from hpctrain.config.duration import Duration
from tests.train.ranks import Job, Ranks, make_config

pytestmark = pytest.mark.torch

NET = {"name": "tests.train.nets:normed_images", "args": {}}
EACH = {"every": Duration(1, "steps"), "keep": 99}


def files(job: Job, step: int) -> tuple[bytes, bytes]:
    path = job.run.checkpoint(step)
    return (path / "model.safetensors").read_bytes(), (path / "optim.safetensors").read_bytes()


def weights(job: Job, step: int):
    from safetensors.torch import load

    return load(files(job, step)[0])


def finished(ranks: Ranks, config, size=1, **options) -> Job:
    job = ranks.start(config, size, run=ranks.run_dir(f"{len(ranks.jobs)}"), **options)
    job.outcome()
    return job


@pytest.mark.parametrize("own", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("asked", [None, False, True])
def test_memory_of_a_users_model_lies_as_it_is_asked_to(ranks: Ranks, own, asked):
    model = {**NET, "args": {"channels_last": own}}
    config = make_config(model=model, train={"steps": 3, "channels_last": asked})
    job = ranks.start(config, 2, run=ranks.run_dir(), body="layout")
    last = own if asked is None else asked
    assert [report["value"] for report in job.wait()] == [[last, last]] * 2


def test_layout_changes_nothing_but_rounding(ranks: Ranks):
    jobs = [finished(ranks, make_config(model=NET, precision="fp64", train={"steps": 10, "channels_last": asked}))
            for asked in (False, True)]  # fmt: skip
    first, second = (weights(job, 10) for job in jobs)
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-12


def test_layout_of_a_net_without_convolutions_is_refused(ranks: Ranks):
    [report] = ranks.start(make_config(train={"channels_last": True}), 1, run=ranks.run_dir()).wait()
    assert report["message"] == "train.channels_last: the model has no convolution of images\n  remove it"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compile once for all tests of this module."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.mktemp("inductor"))}


def compiling(**changes):
    changes = {"data": {"samples": 100}, "batch": {"global_": 24}, "train": {"steps": 10, "compile": True}, **changes}
    return make_config(**{"model": NET, "checkpoint": EACH, **changes})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [1, 2])
def test_a_compiled_run_keeps_its_names_and_resumes_to_the_byte(ranks: Ranks, size, cache):
    """Each fifth step has a batch of 4, which is compiled apart: after the others, or before them when resumed."""
    config, options = compiling(), {"env": cache, "timeout_s": 300}
    whole = ranks.start(config, size, run=ranks.run_dir("whole"), options=options)
    assert all("outcome" in report for report in whole.wait(timeout_s=300))
    plain = finished(ranks, compiling(train={"steps": 10}), size)
    one, other = weights(whole, 10), weights(plain, 10)
    assert one.keys() == other.keys()
    assert 0 < max((one[name].double() - other[name].double()).abs().max().item() for name in one) < 1e-3
    run = ranks.run_dir("cut")
    shutil.copytree(whole.run.checkpoint(4), run.checkpoint(4))
    again = ranks.start(config, size, run=run, options=options)
    assert all("outcome" in report for report in again.wait(timeout_s=300))
    assert [files(again, step) == files(whole, step) for step in range(5, 11)] == [True] * 6


def test_where_nothing_can_be_compiled_that_is_said_before_the_first_step(ranks: Ranks, tmp_path):
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "CXX": "no-such-compiler", "PATH": str(tmp_path)}
    [report] = ranks.start(compiling(), 1, run=ranks.run_dir(), options={"env": env}).wait()
    assert report["error"] == "UsageError"
    assert report["message"].startswith("train.compile: torch.compile does not work here for cpu: ")
    assert report["message"].endswith("or train.compile=false")
