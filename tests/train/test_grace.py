"""How long before a time limit the ranks begin to stop: measured, written down, and watched by rank 0 itself."""

import json
import time

import pytest

from hpctrain.config import schema
from hpctrain.config.duration import Duration
from tests.train.ranks import Ranks, make_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

MODEL = torch.nn.Linear(4, 1)


def grace_of(tmp_path, slurm=None):
    from hpctrain.train.grace import Grace

    return Grace(tmp_path / "timing.json", make_config(slurm=slurm or schema.Slurm()), MODEL)


def limit_in(monkeypatch, seconds):
    monkeypatch.setenv("HPCTRAIN_END_S", str(int(time.time() + seconds)))


def test_the_grace_is_three_times_a_step_and_a_save_and_the_longest_evaluation(tmp_path):
    grace = grace_of(tmp_path)
    assert grace.seconds == 11  # nothing is known yet but that the model is small
    for seconds in (7.0, 20.0, 3.0):
        grace.evaluated(seconds)
    grace.stepped(2.0)
    grace.saved(5.5)
    assert grace.seconds == 53
    assert json.loads((tmp_path / "timing.json").read_text()) == {
        "step_s": 2.0, "save_s": 5.5, "evaluation_s": 20.0, "grace_s": 53,
    }  # fmt: skip


@pytest.mark.parametrize(("left_s", "save_s", "near"), [(3600, 60, False), (150, 60, False), (60, 1, False),
                                                        (-1, 1, True)])  # fmt: skip
def test_the_first_half_of_the_time_is_for_training_whatever_a_save_takes(tmp_path, monkeypatch, left_s, save_s, near):
    limit_in(monkeypatch, left_s)
    grace = grace_of(tmp_path)
    grace.saved(save_s)
    assert grace.is_near() is near


def test_without_a_limit_it_is_never_near(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCTRAIN_END_S", "")
    assert not grace_of(tmp_path).is_near()


def test_a_job_that_asks_for_too_little_is_told_what_to_type_once(tmp_path, capfd):
    grace = grace_of(tmp_path, schema.Slurm(time="01:00:00", signal_s=60))
    grace.saved(2.0)
    assert capfd.readouterr().err == ""
    for _ in range(2):
        grace.saved(30.0)
    assert capfd.readouterr().err == (
        "hpctrain: to stop takes up to 100 s here (a step 0.0, a save 30.0, an evaluation 0.0), and Slurm tells the "
        "ranks 60 s before the time limit; they watch the clock themselves; next time type slurm.signal_s=100\n"
    )


def test_the_ranks_stop_before_the_limit_although_no_signal_comes(ranks: Ranks):
    env = {"HPCTRAIN_END_S": str(int(time.time() + 6))}
    config = make_config(
        train={"steps": 1_000_000, "eval_every": Duration(1_000_000, "steps")},
        checkpoint={"every": Duration(1_000_000, "steps")},
    )
    job = ranks.start(config, 2, run=ranks.run_dir(), options={"env": env})
    outcome = job.outcome()
    assert (outcome["verdict"], outcome["cause"]) == ("stopped", "time_limit")
    assert job.run.checkpoints() == [outcome["step"]]
    timing = json.loads(job.run.timing(1).read_text())
    assert timing["step_s"] > 0
    assert timing["save_s"] > 0
