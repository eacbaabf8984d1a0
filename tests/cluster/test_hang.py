"""A rank that hangs on another node than rank 0's is named, and the whole step ends, on a real Slurm."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.cluster.runs import processes_of, until

pytestmark = [pytest.mark.slurm, pytest.mark.torch, pytest.mark.timeout(300)]

FAULTY = Path(__file__).parents[1] / "train" / "faulty.py"
CONFIG = """
name: hang
slurm: {nodes: 2, ranks_per_node: 2, time: 00:30:00}
data: {dataset: "faulty:rows"}
model: {name: "faulty:build"}
batch: {global: 32}
optim: {lr: 0.01}
train: {steps: 4000, eval_every: 4000 steps}
checkpoint: {every: 4000 steps}
dist: {hang: 4}
"""


@pytest.fixture
def submit(cluster, tmp_path):
    """Submit the config; returns the job id and the directory of the first attempt."""

    def call(*overrides):
        shutil.copy(FAULTY, tmp_path)
        (tmp_path / "hang.yaml").write_text(CONFIG)
        done = cluster.run([sys.executable, "-m", "hpctrain", "submit", "hang.yaml", *overrides], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        return printed["job"], Path(printed["run"]) / "attempts/1"

    yield call
    cluster.run(["scancel", "--me"])
    until(lambda: not cluster.run(["squeue", "-h"]).stdout.strip(), 60)


def logs(attempt):
    return "\n".join(path.read_text()[-2000:] for path in [attempt / "launch.log", *attempt.glob("logs/*.err")])


@pytest.mark.parametrize(("fault", "guilty"), [("spin", 3), ("stop", 2)])
def test_a_rank_that_hangs_on_the_second_node_is_named_and_the_step_ends(submit, launcher, fault, guilty):
    _, attempt = submit(f"model.args={{fault: {fault}, rank: {guilty}}}", f"dist.launcher={launcher}")
    until((attempt / "outcome.json").exists, 120)
    record = json.loads((attempt / "outcome.json").read_text())
    begin = json.loads((attempt / "begin.json").read_text())
    assert (record["verdict"], record["cause"], record["phase"]) == ("failed", "hang", "forward"), logs(attempt)
    assert (record["rank"], record["host"]) == (guilty, begin["hosts"][1])
    others = {3: "0-2", 2: "0-1, 3"}[guilty]
    assert re.search(rf"; ranks {others} wait for it in backward$", record["message"]), record["message"]
    until((attempt / ".exit_code").exists, 30)
    assert (attempt / ".exit_code").read_text() != "0"
    until(lambda: not [pid for pid in processes_of(attempt.parents[1]) if of_attempt(pid, 1)], 30)


def of_attempt(pid, number):
    """Say whether a process belongs to an attempt; the job may have begun the next one."""
    try:
        return f"HPCTRAIN_ATTEMPT={number}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
