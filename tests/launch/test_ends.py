"""Real ranks that end badly under the local supervisor: the cause, what follows, and what `why` says of it."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

CONFIG = """
name: bad
data: {dataset: digits}
model: {name: 'net:build'}
batch: {global: 60}
optim: {lr: 0.1}
train: {epochs: 2}
checkpoint: {every: 10 steps}
"""
NET = """
import os, resource, signal, sys
import torch

def build():
    return Net()

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training and torch.is_grad_enabled()
        if self.calls > 1 and os.environ["RANK"] == "1":
            self.end()
        return self.layer(x.flatten(1))

    def end(self):
"""
ENDS = {
    "exception": ("raise ValueError('no such layer')", "error", "ValueError: no such layer"),
    "SystemExit": ("sys.exit(0)", "error", "SystemExit: 0"),
    "memory": (
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 28, -1)); torch.empty(1 << 32)",
        "out_of_memory", "the memory of the host ran out",
    ),
    "memory of Python": ("resource.setrlimit(resource.RLIMIT_AS, (1 << 28, -1)); bytearray(1 << 34)", "out_of_memory",
                         "the memory of the host ran out"),
    "disk full": ("open('/dev/full', 'wb', buffering=0).write(b'x')", "disk_full", "No space left on device"),
}  # fmt: skip


def run_of(project, hpctrain, end, *options):
    (project / "net.py").write_text(f"{NET}        {end}\n")
    (project / "bad.yaml").write_text(CONFIG)
    done = hpctrain("run", "bad.yaml", "--ranks", "2", *options, timeout=240)
    [run] = (project / "runs").iterdir()
    return done, run


def outcomes(run):
    paths = sorted(run.glob("attempts/*/outcome.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


@pytest.fixture
def hpctrain(hpctrain):
    def call(*arguments, timeout=240):
        argv = ["python", "-m", "hpctrain", *map(str, arguments)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)

    return call


@pytest.mark.parametrize(("end", "cause", "message"), ENDS.values(), ids=ENDS.keys())
def test_what_would_happen_again_is_not_tried_again_and_why_names_it(project, hpctrain, end, cause, message):
    done, run = run_of(project, hpctrain, end)
    assert done.returncode == 4, done.stderr
    [outcome] = outcomes(run)
    assert (outcome["verdict"], outcome["cause"], outcome["rank"]) == ("failed", cause, 1)
    assert message in outcome["message"]
    found = json.loads(hpctrain("why", run, "--json").stdout)
    assert (found["state"], found["cause"], found["rank"], found["attempt"]) == ("FAILED", cause, 1, 1)
    assert found["host"] == os.uname().nodename
    assert "Traceback" in "\n".join(found["lines"]) or found["lines"][0] == "..."
    assert not any("Connection closed" in line for line in found["lines"]), "the noise of the teardown"
    text = hpctrain("why", run).stdout
    assert f"first cause: {cause} in attempt 1 on rank 1" in text
    assert "what to do: " in text


def test_a_crash_loop_that_gains_steps_ends_within_its_budget(project, hpctrain):
    """Killed between the first save and the second one: each attempt gains 10 steps and loses some."""
    end = "self.calls > 18 and os.kill(os.getpid(), signal.SIGKILL)"
    done, run = run_of(project, hpctrain, end, "restart.rank_killed=2")
    assert done.returncode == 4
    assert "ended by rank_killed 3 times, restart.rank_killed allows 2" in done.stderr
    [row] = json.loads(hpctrain("status", "--json", run).stdout)
    assert (row["state"], row["cause"], row["attempt"]) == ("FAILED", "rank_killed", 3)
    assert "restart.rank_killed allows 2" in row["reason"]
    ledger = [(entry["first_step"], entry["steps_gained"], entry["decision"]) for entry in row["attempts"]]
    assert ledger == [(0, 10, "again"), (10, 10, "again"), (20, 10, "end")]
    assert all(0 < entry["work_lost"] < 10 for entry in row["attempts"])
    assert {entry["rank"] for entry in row["attempts"]} == {1}
    table = hpctrain("status", run).stdout
    assert "WHAT FOLLOWED" in table
    assert "0 to 1" in table


def test_two_attempts_without_a_saved_step_end_the_run(project, hpctrain):
    done, run = run_of(project, hpctrain, "os.kill(os.getpid(), signal.SIGSEGV)", "restart.rank_killed=9")
    assert done.returncode == 4
    assert len(outcomes(run)) == 2
    assert "two attempts in a row gained no step (ended twice by rank_killed)" in done.stderr
    found = json.loads(hpctrain("why", run, "--json").stdout)
    assert (found["cause"], found["rank"]) == ("rank_killed", 1)
    assert "gained no step" in found["reason"]
    assert "SIGSEGV" in found["message"]
    [row] = json.loads(hpctrain("status", "--json", run).stdout)
    assert row["cause"] == "no_progress"


def test_a_run_that_completed_has_nothing_wrong(project, hpctrain):
    _, run = run_of(project, hpctrain, "pass")
    found = json.loads(hpctrain("why", run, "--json").stdout)
    assert (found["state"], found["cause"], found["attempt"]) == ("COMPLETED", None, None)
    assert "nothing is wrong" in hpctrain("why", Path(run).name).stdout


def test_a_run_that_stopped_early_goes_on_by_more_patience_not_by_more_epochs(project, hpctrain):
    (project / "early.yaml").write_text(
        "name: early\ndata: {dataset: digits, split: {validation: 0.2}}\nmodel: {name: mlp}\nbatch: {global: 300}\n"
        "optim: {lr: 1e-9}\ntrain: {epochs: 9, stop_early: {patience: 1, min_delta: 0.1}}\n"
    )
    assert hpctrain("run", "early.yaml").returncode == 0
    [run] = (project / "runs").iterdir()
    advice = json.loads(hpctrain("why", run, "--json").stdout)["advice"]
    assert advice.startswith("nothing is wrong; it stopped early")
    assert f"hpctrain resume {run} train.stop_early.patience=N" in advice


def test_a_run_that_was_cancelled_is_not_called_preempted(project, hpctrain):
    """The ranks are told to stop by TERM in both cases."""
    (project / "bad.yaml").write_text(CONFIG.replace("{name: 'net:build'}", "{name: mlp}"))
    done = hpctrain("submit", "bad.yaml", "--scheduler", "local", "train.epochs=100000")
    assert done.returncode == 0, done.stderr
    [run] = (project / "runs").iterdir()
    deadline = time.monotonic() + 60
    while not (run / "attempts/1/metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert hpctrain("cancel", run).returncode == 0
    found = json.loads(hpctrain("why", run, "--json").stdout)
    assert (found["state"], found["cause"]) == ("CANCELLED", "cancelled")
    assert "first cause: cancelled in attempt 1: told to stop, saved at step" in hpctrain("why", run).stdout
