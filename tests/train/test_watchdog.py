"""Ranks that hang are named and ended; ranks that are only slow are not. Whole runs, real faults."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(150)]

FAULTY = Path(__file__).with_name("faulty.py")
CONFIG = """
name: w
data: {dataset: "faulty:rows"}
model: {name: "faulty:build"}
batch: {global: 30}
optim: {lr: 0.01}
train: {steps: 4000, eval_every: 4000 steps}
checkpoint: {every: 4000 steps}
dist: {hang: 3}
"""
HOST = platform.node()


def line_of(text):
    """Return the line of a statement in the user's module."""
    lines = FAULTY.read_text().split("\n")
    [number] = [number for number, line in enumerate(lines, 1) if text in line]
    return number


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copy(FAULTY, tmp_path)
    (tmp_path / "w.yaml").write_text(CONFIG)
    return tmp_path


def start(project, *overrides, ranks=2):
    argv = [sys.executable, "-m", "hpctrain", "run", "w.yaml", "--ranks", str(ranks), *overrides]
    with (project / "out.txt").open("wb") as log:
        return subprocess.Popen(argv, cwd=project, stdout=log, stderr=log, process_group=0)


def processes(project):
    """Ids of what runs below this project, the supervisor included."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str((path / "cwd").readlink()).startswith(str(project)):
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.fixture
def run(project):
    """Run to the end; returns exit code, attempt directory and what was printed. Nothing may be left running."""

    def call(*overrides, ranks=2, meanwhile=lambda project: None):
        supervisor = start(project, *overrides, ranks=ranks)
        started.append(supervisor)
        meanwhile(project)
        code = supervisor.wait(100)
        for _ in range(100):
            if not processes(project):
                break
            time.sleep(0.1)
        assert not processes(project)
        [attempt] = (project / "runs").glob("*/attempts/1")
        return code, attempt, (project / "out.txt").read_text()

    started: list[subprocess.Popen[bytes]] = []
    yield call
    for pid in processes(project):
        os.kill(pid, signal.SIGKILL)
    for supervisor in started:
        supervisor.wait(10)


def outcome(attempt):
    return json.loads((attempt / "outcome.json").read_text())


FORWARD = r"made no progress for \d s in forward at step \d+"


@pytest.mark.parametrize(("fault", "guilty", "message", "line"), [
    ("stop", 1, r"was stopped by a signal \(SIGSTOP\) in forward at step \d+", None),
    ("stop", 0, r"was stopped by a signal \(SIGSTOP\) in forward at step \d+", None),
    ("spin", 1, FORWARD, "while True"),
    ("hold_the_lock", 1, FORWARD, "PyDLL(None).sleep"),
    ("hold_the_lock", 0, FORWARD, "PyDLL(None).sleep"),
    ("meet_alone", 1, FORWARD, "distributed.barrier()"),
])  # fmt: skip
def test_a_rank_that_hangs_is_named_and_all_are_ended(run, fault, guilty, message, line):
    code, attempt, printed = run(f"model.args={{fault: {fault}, rank: {guilty}}}")
    record = outcome(attempt)
    assert (code, record["verdict"], record["cause"], record["exit_code"]) == (4, "failed", "hang", 137), printed
    assert (record["rank"], record["host"], record["phase"]) == (guilty, HOST, "forward")
    lines = {line_of(line), line_of(line) + 1} if line else set()
    where = re.fullmatch(rf"faulty\.py:(\d+) in {fault}", record["where"])
    assert (where is not None and int(where[1]) in lines) if line else record["where"] == ""
    shown = f" ({record['where']})" if line else ""
    waits = rf"; rank {1 - guilty} waits for it in backward"
    assert re.fullmatch(rf"rank {guilty} on {HOST} {message}{re.escape(shown)}{waits}", record["message"])
    assert record["message"] in printed
    [report] = [json.loads(path.read_text()) for path in (attempt / "hang").iterdir()]
    by_rank = {rank["rank"]: rank for rank in report["ranks"]}
    assert "backward" in by_rank[1 - guilty]["stacks"]
    assert by_rank[guilty]["state"] == ("T" if fault == "stop" else by_rank[guilty]["state"])


def test_data_that_never_comes_is_named_by_the_line_that_reads_it(run):
    _, attempt, printed = run("data.args={blocks: true}")
    record = outcome(attempt)
    assert (record["cause"], record["rank"], record["phase"]) == ("hang", 1, "data"), printed
    assert record["where"] == f"faulty.py:{line_of('sigwait')} in wait_for_a_server"
    assert record["message"].endswith("; rank 0 waits for it in backward")


def test_a_single_rank_is_looked_after_too(run):
    _, attempt, _ = run("model.args={fault: spin}", ranks=1)
    assert re.fullmatch(
        rf"rank 0 on {HOST} made no progress for \d s in forward at step \d+ \(faulty\.py:\d+ in spin\)",
        outcome(attempt)["message"],
    )


def test_a_rank_that_ends_the_others_by_its_own_death_is_no_hang(run):
    def kill(project):
        until = time.monotonic() + 60
        while not (found := [pid for pid in processes(project) if rank_of(pid) == "1"]):
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(2)
        os.kill(found[0], signal.SIGKILL)

    _, attempt, _ = run("model.args={slow: {step: 0.1}}", "restart.rank_killed=0", "dist.fork=false", meanwhile=kill)
    assert outcome(attempt)["cause"] == "rank_killed"


def rank_of(pid):
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((word[5:].decode() for word in words if word.startswith(b"RANK=")), None)


@pytest.mark.parametrize(("slow", "overrides"), [
    ("step: 1.4", ["train.steps=5"]),  # longer than the limit, as the first one was
    ("evaluation: 0.7", ["train.steps=4", "data.dataset=synthetic", "data.args={shape: [2, 2, 1]}",
                         "data.samples=1500", "batch.global=300"]),
    ("save: 2", ["train.steps=30", "checkpoint.every=15 steps"]),
], ids=["steps", "evaluation", "save"])  # fmt: skip
def test_what_only_takes_long_is_no_hang(run, slow, overrides):
    code, attempt, printed = run(f"model.args={{slow: {{{slow}}}}}", "dist.hang=1", *overrides)
    assert code == 0, printed
    assert outcome(attempt)["verdict"] == "completed"
    assert not list((attempt / "hang").glob("*.json"))


def test_a_job_that_is_suspended_as_a_whole_goes_on_afterwards(run):
    def suspend(project):
        until = time.monotonic() + 60
        while not list(project.glob("runs/*/attempts/1/metrics.jsonl")):
            assert time.monotonic() < until
            time.sleep(0.1)
        pids = [pid for pid in processes(project) if os.getpgid(pid) != os.getpgrp()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(4)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    code, _, printed = run(
        "dist.hang=2", "train.steps=60", "log.every=1 steps", "model.args={slow: {step: 0.05}}", meanwhile=suspend
    )
    assert code == 0, printed
    assert "completed" in printed


def test_a_slow_rank_is_named_by_status(run):
    found = {}

    def look(project):
        until = time.monotonic() + 90
        while not found.get("slow"):
            assert time.monotonic() < until, found
            time.sleep(0.5)
            for path in project.glob("runs/*/attempts/1/ranks/*.json"):
                argv = [sys.executable, "-m", "hpctrain", "status", "--json", str(path.parents[3])]
                [row] = json.loads(subprocess.run(argv, capture_output=True, check=True, cwd=project.parent).stdout)
                found.update(row)
        os.kill(supervisor_of(project), signal.SIGINT)

    run("model.args={fault: dawdle, rank: 1}", "train.steps=100000", meanwhile=look)
    [slow] = found["slow"]
    assert (slow["rank"], slow["host"], slow["phase"]) == (1, HOST, "forward")
    assert slow["factor"] > 2
    assert found["reason"] == f"rank 1 on {HOST} is {slow['factor']:.1f} x slower than the median (forward)"


def supervisor_of(project):
    [pid] = [pid for pid in processes(project) if b"run" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    return pid


def test_ranks_that_do_not_stop_are_ended_before_the_time_limit(run, monkeypatch):
    """So that the batch script lives to judge them; a dawdling rank would have stopped when the time was near."""
    monkeypatch.setenv("HPCTRAIN_END_S", str(int(time.time() + 30)))
    code, attempt, printed = run("model.args={fault: spin, rank: 1}", "dist.hang=60", "restart.time_limit=0")
    assert code == 4
    assert time.time() < float(os.environ["HPCTRAIN_END_S"])
    outcome = json.loads((attempt / "outcome.json").read_text())
    assert (outcome["verdict"], outcome["cause"], outcome["rank"]) == ("failed", "time_limit", 1), printed
    assert outcome["message"] == f"the time limit is near, and rank 1 on {HOST} has not stopped: forward at step 4"


def test_zero_turns_it_off(run):
    code, attempt, printed = run("dist.hang=0", "train.steps=40", "model.args={slow: {step: 0.05}}")
    assert code == 0, printed
    assert not (attempt / "ranks").exists()
