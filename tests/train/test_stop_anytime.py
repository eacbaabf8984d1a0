"""A signal that comes in the middle of something, to one rank or all, once or twice: nothing is lost, nothing twice."""

import signal
import time

import pytest

from hpctrain.config.duration import Duration
from hpctrain.plan import Samples
from tests.train.ranks import Job, Ranks, make_config, make_plan

pytestmark = pytest.mark.torch

SAMPLES = Samples(train=600, test=40)
STEPS = 24


def config(slow):
    return make_config(
        data={"dataset": "tests.train.faulty:rows"},
        model={"name": "tests.train.faulty:build", "args": {"slow": slow}},
        batch={"global_": 30},
        train={"steps": STEPS, "eval_every": Duration(8, "steps")},
        checkpoint={"every": Duration(8, "steps"), "keep": 10},
        log={"every": Duration(1, "steps"), "samples": True},
    )


def start(ranks: Ranks, slow, name) -> Job:
    made = config(slow)
    return ranks.start(made, 2, run=ranks.run_dir(name), plan=make_plan(made, 2, SAMPLES))


def wait_for(job: Job, text, rank=0):
    until = time.monotonic() + 60
    while True:
        try:
            if text in job.run.log(job.attempt, rank, "out").read_text():
                return
        except FileNotFoundError:
            pass
        assert time.monotonic() < until, text
        time.sleep(0.02)


def final(job: Job):
    path = job.run.checkpoint(STEPS)
    return (path / "model.safetensors").read_bytes(), (path / "optim.safetensors").read_bytes()


@pytest.mark.parametrize("who", [[1], [0, 1, 0, 1]], ids=["one rank", "both twice"])
@pytest.mark.parametrize(("slow", "marker", "step"), [
    ({"save": 1.0}, "now save", None),
    ({"evaluation": 1.0}, "now evaluation", None),
    ({"building": 1.0}, "now building", 1),
    ({"step": 0.3}, "step 3/", None),
], ids=["save", "evaluation", "start", "step"])  # fmt: skip
def test_a_stop_at_any_moment_saves_and_the_next_attempt_ends_like_an_undisturbed_run(
    ranks: Ranks, who, slow, marker, step
):
    calm = start(ranks, {}, "calm")
    assert calm.outcome()["verdict"] == "completed"
    first = start(ranks, slow, "cut")
    wait_for(first, marker)
    for rank in who:
        first.signal(rank, signal.SIGUSR2)
        time.sleep(0.1)
    outcome = first.outcome()
    assert (outcome["verdict"], outcome["cause"]) == ("stopped", "time_limit")
    assert first.run.checkpoints()[-1] == outcome["step"] < STEPS
    assert step is None or outcome["step"] == step
    second = start(ranks, {}, "cut")
    assert second.outcome()["verdict"] == "completed"
    assert final(second) == final(calm)
    assert [line["step"] for line in first.metrics() + second.metrics()] == list(range(1, STEPS + 1))
