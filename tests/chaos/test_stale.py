"""An attempt that was given up but still runs, while the next one does the work: it publishes nothing."""

import signal
import time

import pytest

from hpctrain.config.duration import Duration
from tests.chaos import oracle
from tests.train.ranks import Ranks, make_config

pytestmark = pytest.mark.torch

SAMPLES = 1500
CONFIG = {"checkpoint": {"every": Duration(1, "steps"), "keep": 3}, "log": {"samples": True}}  # 2 epochs of 25 steps


def published(run):
    """Return what lies in ckpt/ and which directories and files these are: what is written again is another."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(run.ckpt.rglob("*"))}


@pytest.mark.parametrize("saved", [1, 7, 25])
def test_a_stale_attempt_that_wakes_up_after_the_next_one_publishes_nothing(ranks: Ranks, saved):
    config, run = make_config(**CONFIG), ranks.run_dir()
    calm = ranks.start(config, 2, run=ranks.run_dir("calm"))
    stale = ranks.start(config, 2, run=run)
    while not [step for step in run.checkpoints() if step >= saved]:
        time.sleep(0.001)
    for rank in range(2):
        stale.signal(rank, signal.SIGSTOP)
    assert run.checkpoints()[-1] < 50, "it was too quick to be stopped"
    assert ranks.start(config, 2, run=run).outcome()["verdict"] == "completed"
    before = published(run)
    for rank in range(2):
        stale.signal(rank, signal.SIGCONT)
    reports = stale.wait()
    assert reports[0]["error"] == "CheckpointError", reports  # shut out, or what it had just published was deleted
    assert published(run) == before
    assert calm.outcome()["verdict"] == "completed"
    oracle.assert_like(run, calm.run, samples=SAMPLES)


def test_a_stale_attempt_that_runs_beside_the_next_one_publishes_nothing_from_then_on(ranks: Ranks):
    config, run = make_config(**CONFIG), ranks.run_dir()
    calm = ranks.start(config, 2, run=ranks.run_dir("calm"))
    stale = ranks.start(config, 2, run=run)
    while not run.checkpoints():
        time.sleep(0.001)
    fresh = ranks.start(config, 2, run=run)
    reports = stale.wait()
    assert fresh.outcome()["verdict"] == "completed"
    assert "shut out by a newer attempt" in reports[0]["message"], reports
    assert calm.outcome()["verdict"] == "completed"
    oracle.assert_like(run, calm.run, samples=SAMPLES)
