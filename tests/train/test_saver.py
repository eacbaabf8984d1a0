"""Saves beside the training, through real ranks: what they hold, and what goes wrong."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpctrain.config.datasets import Split
from hpctrain.config.duration import Duration
from tests.train.ranks import Ranks, make_config, make_plan

pytestmark = pytest.mark.torch

FILES = ("model", "optim", "ema", "rng")
DRAWING = {"name": "tests.train.nets:drawing", "args": {}}


def files(job, step):
    return {name: (job.run.checkpoint(step) / f"{name}.safetensors").read_bytes() for name in FILES}


def out(job):
    return job.run.log(job.attempt, 0, "out").read_text()


def averaged(**changes):
    return make_config(**{
        "model": DRAWING, "train": {"steps": 30, "ema": 0.9, "eval_every": Duration(4, "steps")},
        "checkpoint": {"every": Duration(4, "steps")}, **changes,
    })  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("cut", [1, 11, 12])
def test_what_user_code_draws_and_the_averages_go_on_to_the_byte(ranks: Ranks, size, cut):
    config = averaged()
    calm = ranks.start(config, size, run=ranks.run_dir("calm"))
    run = ranks.run_dir("cut")
    ranks.start(config, size, run=run, until=cut).outcome()
    second = ranks.start(config, size, run=run)
    found, expected = second.outcome(), calm.outcome()
    assert files(second, 30) == files(calm, 30)
    assert (found["accuracy"], found["loss"]) == (expected["accuracy"], expected["loss"])
    assert "keyed anew" not in out(second)


def test_on_other_ranks_generators_are_keyed_anew_and_that_is_said(ranks: Ranks):
    run = ranks.run_dir()
    config = averaged(batch={"global_": 60, "accumulate": 2})
    ranks.start(config, 1, run=run, until=11).outcome()
    other = averaged()
    jobs = [ranks.start(other, 2, run=run, plan=make_plan(other, 2))]
    assert jobs[0].outcome()["verdict"] == "completed"
    assert (
        "hpctrain: saved by 1 ranks x 2 passes, going on with 2 x 1: the same samples in the same micro-batches; what "
        "your code draws from global generators is keyed anew\n"
    ) in out(jobs[0])


def test_what_changed_in_the_config_is_told_when_a_run_goes_on(ranks: Ranks):
    run = ranks.run_dir()
    ranks.start(make_config(), 1, run=run, until=11).outcome()
    job = ranks.start(make_config(optim={"lr": 0.05}, train={"epochs": 3}), 1, run=run)
    job.outcome()
    assert [line for line in out(job).splitlines() if "changed since" in line] == [
        "hpctrain: changed since: optim.lr 0.1 -> 0.05", "hpctrain: changed since: train.epochs 2 -> 3",
    ]  # fmt: skip


def test_the_averages_are_what_is_evaluated(ranks: Ranks):
    """A slow average lags behind the weights: the loss of the run is that of the file of averages."""
    import torch
    from safetensors.torch import load
    from torch.nn import functional

    from hpctrain.data.load import load as load_data
    from hpctrain.models import build

    config = make_config(train={"steps": 10, "ema": 0.99})
    job = ranks.start(config, 2, run=ranks.run_dir())
    outcome = job.outcome()
    saved = {name: load((job.run.checkpoint(10) / f"{name}.safetensors").read_bytes()) for name in ("model", "ema")}
    plan = make_plan(config, 1)
    assert config.data is not None
    assert config.model is not None
    data = load_data(config.data, plan, device=torch.device("cpu"), dtype=torch.float32)
    losses = {}
    from hpctrain.data.dataset import Wanted

    for name, weights in saved.items():
        net = build.build(config.model, shape=data.shape, outputs=data.outputs, seed=0)
        net.load_state_dict(weights)
        [(images, labels)] = data.test.stream([Wanted(torch.arange(data.test.count))])
        losses[name] = functional.cross_entropy(net(images), labels).item()
    assert outcome["loss"] == pytest.approx(losses["ema"], rel=1e-5)
    assert losses["model"] < losses["ema"] - 0.01


def test_averages_follow_their_formula_and_skip_what_the_scaler_skips():
    import torch

    from hpctrain.train.average import Average

    model = torch.nn.Linear(2, 1, dtype=torch.float64)
    expected = model.weight.detach().clone()
    average = Average(model, 0.75)
    for number in range(3):
        with torch.no_grad():
            model.weight.add_(number + 1)
        average.update()
        expected = 0.75 * expected + 0.25 * model.weight.detach()
    raw = model.weight.detach().clone()
    with average.in_use():
        assert model.weight.allclose(expected, rtol=1e-14)
        assert not model.weight.equal(raw)
    assert model.weight.equal(raw)


def test_a_step_that_the_scaler_skips_leaves_the_averages_alone(ranks: Ranks):
    config = make_config(
        model={"name": "tests.train.nets:steep", "args": {}},
        precision="fp16",
        train={"steps": 12, "ema": 0.5},
        checkpoint={"every": Duration(1, "steps"), "keep": 99},
    )
    job = ranks.start(config, 1, run=ranks.run_dir())
    job.outcome()
    kept = [files(job, step) for step in range(1, 13)]
    skipped = [before["model"] == after["model"] for before, after in itertools.pairwise(kept)]
    assert skipped == [step % 4 == 0 for step in range(2, 13)]
    assert [before["ema"] == after["ema"] for before, after in itertools.pairwise(kept)] == skipped


def test_an_average_can_begin_late_and_end_early(ranks: Ranks):
    run = ranks.run_dir()
    ranks.start(make_config(train={"steps": 4}), 1, run=run).outcome()
    weights = (run.checkpoint(4) / "model.safetensors").read_bytes()
    longer = make_config(train={"steps": 8, "ema": 0.9}, checkpoint={"every": Duration(1, "steps"), "keep": 99})
    assert ranks.start(longer, 1, run=run).outcome()["step"] == 8
    assert (run.checkpoint(8) / "ema.safetensors").exists()
    assert (run.checkpoint(4) / "model.safetensors").read_bytes() == weights
    assert ranks.start(make_config(train={"steps": 10}), 1, run=run).outcome()["step"] == 10
    assert not (run.checkpoint(10) / "ema.safetensors").exists()


@pytest.mark.parametrize("apart", [{}, {"split": Split(validation=0.2)}])
def test_the_best_is_kept_beside_the_newest(ranks: Ranks, apart):
    config = make_config(
        data=apart,
        optim={"lr": 1.5, "momentum": 0.9, "schedule": "constant"},  # too fast: the score goes up and down
        train={"steps": 40, "eval_every": Duration(3, "steps")},
        checkpoint={"every": Duration(3, "steps"), "keep": 1, "keep_best": True},
    )
    run = ranks.run_dir()
    job = ranks.start(config, 1, run=run)
    job.outcome()
    scores = {line["step"]: line["accuracy"] for line in job.metrics("validation" if apart else "test")}
    best = max(scores, key=lambda step: (scores[step], step))
    assert best < 40
    assert run.checkpoints() == [best, 40]


def test_a_save_is_reported_with_its_stall(ranks: Ranks):
    for background in (True, False):
        run = ranks.run_dir(f"{background}")
        job = ranks.start(make_config(checkpoint={"background": background}), 2, run=run)
        job.outcome()
        lines = [line for line in out(job).splitlines() if line.startswith("saved")]
        shape = r"saved +step (25|50)  0\.\d MiB  waited \d+\.\d{3} s  copied \d+\.\d{3} s  written in \d+\.\d{3} s"
        assert len(lines) == 2
        assert all(re.fullmatch(shape, line) for line in lines), lines


def test_a_save_beside_the_training_holds_the_state_of_its_step(ranks: Ranks):
    """Later steps change, while it is written, what was copied."""
    found = []
    for background in (True, False):
        saving = {"every": Duration(1, "steps"), "keep": 99, "background": background}
        job = ranks.start(averaged(checkpoint=saving), 2, run=ranks.run_dir(f"{background}"))
        job.outcome()
        found.append([files(job, step) for step in range(1, 31)])
    assert found[0] == found[1]


def test_a_disk_without_room_is_refused_before_the_first_step(ranks: Ranks, monkeypatch):
    import torch

    from hpctrain.errors import DiskFullError
    from hpctrain.models import build
    from hpctrain.train import rng, space
    from hpctrain.train.snapshot import checkpoint_bytes

    run = ranks.run_dir()
    config = averaged(model={"name": "mlp", "args": {"hidden": [16]}})
    job = ranks.start(config, 1, run=run)
    job.outcome()
    real = sum(file.stat().st_size for file in run.checkpoint(30).iterdir())
    assert config.model is not None
    model = build.build(config.model, shape=(1, 8, 8), outputs=10, seed=0)
    rows = {name: state[None] for name, state in rng.capture(torch.device("cpu")).items()}
    planned = checkpoint_bytes(config, model, rows)
    assert real <= planned < real + (1 << 16)  # the first: never less than is needed
    there = len(run.checkpoints())
    assert there == 2

    def check(free, inodes=10**6, **changes):
        values = {"f_bavail": free // 4096, "f_frsize": 4096, "f_files": 10**7, "f_favail": inodes}
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**values))
        space.check(run, make_config(checkpoint=changes).checkpoint, 50 << 20)

    check(50 << 20)  # two are there, the third is being written
    with pytest.raises(DiskFullError) as caught:
        check(99 << 20, keep=2, keep_best=True)
    assert str(caught.value).replace(str(run.path), "RUN") == (
        "RUN/ckpt has no room for the checkpoints: 4 (2 kept, the best one and one that is being written) x 50.0 MiB, "
        "of which 2 are to come = 100.0 MiB; 99.0 MiB are free\n"
        "  make room, or submit again with checkpoint.keep=1, runs=DIR on another file system"
    )
    with pytest.raises(DiskFullError, match=r"no inodes .* of which 9 are to come = 54; 53 are free"):
        check(1 << 40, inodes=53, keep=10)
    assert caught.value.cause == "disk_full"


def test_only_one_save_is_in_flight_and_its_error_is_raised_at_the_next_step(tmp_path):
    import threading

    import torch

    from hpctrain.dist.single import SingleStep
    from hpctrain.errors import CheckpointError
    from hpctrain.train.leave import SAVING
    from hpctrain.train.saver import Saver
    from hpctrain.train.snapshot import Buffers

    published, took, gate = [], [], threading.Event()

    class Slow:
        """Checkpoints whose disk is slow, and fails in the end."""

        def publish(self, snapshot, **_):
            assert threading.current_thread().name == SAVING
            assert {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT} <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
            assert gate.wait(30)
            published.append((snapshot.step, bytes(snapshot.files["model.safetensors"])))
            if snapshot.step == 2:
                raise CheckpointError("it broke")

    model = torch.nn.Linear(3, 3)
    step = SingleStep(model, torch.optim.SGD(model.parameters(), lr=0.1))
    saver = Saver(Slow(), Buffers(torch.device("cpu")), background=True, on_saved=took.append)
    saver.save(1, model, step, None, {}, evaluated=True)
    with torch.no_grad():
        model.weight.zero_()  # training goes on while the first one is written
    saver.poll()
    assert published == []
    assert took == []
    second = threading.Thread(target=lambda: saver.save(2, model, step, None, {}, evaluated=True))
    second.start()
    time.sleep(0.05)
    assert second.is_alive()  # it waits for the first
    gate.set()
    second.join(30)
    with pytest.raises(CheckpointError, match="it broke"):
        saver.wait()
    assert [number for number, _ in published] == [1, 2]
    assert published[0][1] != published[1][1]  # the first had been copied before the weights changed
    assert len(took) == 1
    saver.wait()  # an error is raised once


LEAVING = """
import sys
from pathlib import Path
import torch
from hpctrain.dist.single import Single, SingleStep
from hpctrain.errors import JobError
from hpctrain.train import rng
from hpctrain.train.leave import leave
from hpctrain.train.saver import Saver
from hpctrain.train.snapshot import Buffers
from tests.chaos import saves
run = saves.run_at(Path(sys.argv[1]))
run.attempt(1).mkdir()
model = torch.nn.Linear(2000, 4000)
step = SingleStep(model, torch.optim.SGD(model.parameters(), lr=0.1))
told = []
saver = Saver(saves.store(run), Buffers(saves.CPU), background=True, on_saved=told.append)
saver.save(4, model, step, None, rng.gather(Single(), saves.CPU), evaluated=True)
assert not told
leave(JobError("user code broke"), run, 1, None, debug=False)
"""


def test_a_rank_that_leaves_after_an_error_finishes_its_save(tmp_path):
    from hpctrain.manifest import verify
    from hpctrain.rundir import RunDir

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, str(tmp_path / "run")], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    run = RunDir(tmp_path / "run")
    assert verify(run.checkpoint(4), 4).files["model.safetensors"].size > 32_000_000
    assert list(run.staging(1).iterdir()) == []
    assert b'"message":"user code broke"' in run.outcome(1).read_bytes()
