import json
import os
import time
from pathlib import Path

import pytest

from hpctrain.errors import UsageError
from hpctrain.launch import status as statuses
from hpctrain.launch.cancel import cancel
from hpctrain.launch.status import find, listing, recent, status, table
from hpctrain.processes import start_time
from hpctrain.rundir import RunDir, publish

KEYS = ["run", "name", "job_id", "state", "reason", "attempt", "step", "total_steps", "cause", "nodes", "slow"]


def put(path: Path, record: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, json.dumps(record).encode())


@pytest.fixture
def new(tmp_path):
    """Make a run with a job and attempts, each given by its outcome or None."""
    made: list[RunDir] = []

    def make(job=None, attempts=(), name="net", job_id="7", root=tmp_path / "runs"):
        run = RunDir.create(root, name)
        put(run.config, {})
        os.utime(run.config, (time.time() + len(made) - 50,) * 2)
        put(run.plan, {"name": name, "total_steps": 100})
        put(run.job, {"scheduler": "slurm", "job_id": job_id, "submitted": 10} if job is None else job)
        for number, outcome in enumerate(attempts, 1):
            put(run.begin(number), {"job_id": job_id, "scheduler": "slurm", "hosts": ["n1", "n2"], "started": 10})
            if outcome:
                put(run.outcome(number), outcome)
        made.append(run)
        return run

    return make


@pytest.fixture
def squeue(fake):
    def answers(*jobs):
        lines = "".join("\\x1f".join([*job, "2", "n[1-2]", "0", "0"]) + "\\n" for job in jobs)
        fake("sacct", "exit 1")
        return fake("squeue", f"printf '{lines}'")

    return answers


COMPLETED = {"verdict": "completed"}
EARLY = {"verdict": "completed", "message": "stopped early at step 320: 5 evaluations did not lower the loss"}
STOPPED = {"verdict": "stopped", "cause": "time_limit"}
PREEMPTED = {"verdict": "stopped", "cause": "preempted"}
ERROR = {"verdict": "failed", "cause": "error", "message": "ValueError: mine\nmore"}
KILLED = {"verdict": "failed", "cause": "rank_killed", "message": "a rank was killed"}
CASES = {
    "queued": ("PENDING", "Priority", [], "PENDING", "jobs of higher priority are before it (Priority)"),
    "nodes boot": ("CONFIGURING", "None", [], "PENDING", "its nodes are being made ready"),
    "runs": ("RUNNING", "None", [None], "RUNNING", ""),
    "requeued": (
        "PENDING",
        "BeginTime",
        [STOPPED],
        "REQUEUED",
        "attempt 1 ended: the time limit was near; now: its earl",
    ),
    "requeued after a kill": (
        "PENDING",
        "BeginTime",
        [KILLED],
        "REQUEUED",
        "attempt 1 ended: a rank was killed; now: ",
    ),
    "requeued without a word": ("PENDING", "BeginTime", [None], "REQUEUED", "attempt 1 ended: a node was lost; now: "),
    "runs again": ("RUNNING", "None", [STOPPED, None], "RUNNING", ""),
    "verdict before Slurm's": ("RUNNING", "None", [COMPLETED], "COMPLETED", ""),
    "verdict over Slurm's": ("FAILED", "NonZeroExitCode", [COMPLETED], "COMPLETED", ""),
    "completed": ("COMPLETED", "None", [STOPPED, COMPLETED], "COMPLETED", ""),
    "completed before its last step": ("COMPLETED", "None", [EARLY], "COMPLETED", "stopped early at step 320"),
    "stopped is not completed": ("COMPLETED", "None", [STOPPED], "FAILED", "the time limit was near, and it was not"),
    "a site's own script": ("COMPLETED", "None", [None], "COMPLETED", ""),
    "user error": ("FAILED", "NonZeroExitCode", [ERROR], "FAILED", "ValueError: mine"),
    "failed before any attempt": ("FAILED", "NonZeroExitCode", [], "FAILED", "the batch script ended with an error"),
    "time limit": ("TIMEOUT", "TimeLimit", [None], "FAILED", "the time limit was reached (TimeLimit)"),
    "cancelled": ("CANCELLED", "None", [PREEMPTED], "CANCELLED", "it was cancelled"),
    "forgotten": (None, None, [None], "FAILED", "Slurm no longer knows this job and it left no outcome"),
    "forgotten with an outcome": (None, None, [ERROR], "FAILED", "ValueError: mine"),
    "forgotten, completed": (None, None, [COMPLETED], "COMPLETED", ""),
}


@pytest.mark.parametrize(("state", "reason", "attempts", "ours", "text"), CASES.values(), ids=CASES.keys())
def test_a_state_is_weighed_from_slurm_and_outcomes(new, squeue, state, reason, attempts, ours, text):
    squeue(*([("7", state, reason)] if state else []))
    (row,) = status([new(attempts=attempts)])
    assert list(row) == KEYS
    assert row["state"] == ours
    assert row["reason"].startswith(text)
    assert text or not row["reason"]
    assert row["cause"] == ((attempts[-1] or {}).get("cause") if attempts else None)


def test_slurm_is_asked_once_and_not_for_what_is_completed(new, squeue):
    calls = squeue(("1", "RUNNING", "None"), ("2", "PENDING", "Priority"))
    runs = [new(job_id="1"), new(job_id="2"), new(job_id="3", attempts=[COMPLETED])]
    assert [row["state"] for row in status(runs)] == ["RUNNING", "PENDING", "COMPLETED"]
    assert calls.read_text().count("\n") == 1
    assert "--jobs=1,2 " in calls.read_text()


def test_an_older_jobs_outcome_says_nothing_of_the_job_that_waits(new, squeue):
    squeue(("8", "PENDING", "Priority"))
    run = new(attempts=[ERROR])
    put(run.job, {"scheduler": "slurm", "job_id": "8", "submitted": 99})
    (row,) = status([run])
    assert (row["state"], row["cause"], row["attempt"]) == ("PENDING", None, 1)


def test_a_script_that_was_queued_by_hand_is_found(new, squeue):
    squeue(("9", "RUNNING", "None"))
    run = new(attempts=[ERROR])
    put(run.begin(2), {"job_id": "9", "scheduler": "slurm", "hosts": ["n7"], "started": 99})
    (row,) = status([run])
    assert (row["job_id"], row["state"], row["nodes"]) == ("9", "RUNNING", ["n7"])


@pytest.mark.parametrize(("attempts", "state"), [([], "PENDING"), ([None], "RUNNING"), ([COMPLETED], "COMPLETED")])
def test_a_slurm_that_does_not_answer_is_told_and_is_no_error(new, fake, attempts, state):
    fake("squeue", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    (row,) = status([new(attempts=attempts)])
    assert row["state"] == state
    assert ("Slurm cannot be asked" in row["reason"]) == (state != "COMPLETED")


@pytest.mark.parametrize(
    ("pid", "shift", "attempts", "state"),
    [
        (os.getpid(), 0, [None], "RUNNING"),
        (os.getpid(), 1, [None], "FAILED"),  # the id is used again by another process
        (2**22 + 1, 0, [None], "FAILED"),
        (2**22 + 1, 0, [COMPLETED], "COMPLETED"),
        (os.getpid(), 0, [KILLED, None], "RUNNING"),
    ],
)
def test_a_local_run_lives_as_long_as_its_supervisor(new, pid, shift, attempts, state):
    job = {"scheduler": "local", "job_id": "7", "pid": pid, "pid_start": (start_time(os.getpid()) or 0) + shift}
    assert status([new(job=job | {"submitted": 10}, attempts=attempts)])[0]["state"] == state


def test_a_run_cancelled_by_hpctrain_is_cancelled(new):
    job = {"scheduler": "local", "job_id": "7", "pid": 2**22 + 1, "pid_start": 1, "cancelled": "7", "submitted": 10}
    assert status([new(job=job, attempts=[PREEMPTED])])[0]["state"] == "CANCELLED"


def test_a_job_queued_by_hand_after_a_cancelled_one_is_not_cancelled(new, squeue):
    squeue(("9", "FAILED", "NonZeroExitCode"))
    run = new(job={"scheduler": "slurm", "job_id": "7", "cancelled": "7", "submitted": 10}, attempts=[PREEMPTED])
    put(run.begin(2), {"job_id": "9", "scheduler": "slurm", "hosts": ["n7"], "started": 99})
    put(run.outcome(2), ERROR)
    assert status([run])[0]["state"] == "FAILED"


def test_a_local_run_of_another_machine_is_not_called_dead_from_here(new):
    job = {
        "scheduler": "local",
        "job_id": "local-9",
        "pid": 2**22 + 1,
        "pid_start": 1,
        "host": "login2",
        "submitted": 10,
    }
    (row,) = status([new(job=job, job_id="local-9", attempts=[None])])
    assert (row["state"], row["reason"]) == (
        "RUNNING", "it was started on login2; whether it still runs can be seen only there",
    )  # fmt: skip
    with pytest.raises(UsageError, match="runs on login2, not here"):
        cancel(new(job=job, job_id="local-9", attempts=[None]))
    assert status([new(job=job, job_id="local-9", attempts=[ERROR])])[0]["state"] == "FAILED"


@pytest.mark.parametrize(
    ("first", "second", "step"),
    [
        (b"", b"", None),
        (b'{"step":5}\n', b"", 5),
        (b'{"step":5}\n', b'{"step":7}\n{"ste', 7),
        (b'{"step":5}\n', b'{"loss":1}\nnonsense\n\n', 5),
        (b"", b'{"step":1,"pad":"' + b"x" * 300 + b'"}\n' + b'{"step":99}\n' * 5000 + b"\0" * 64, 99),
    ],
)
def test_the_step_is_read_from_the_end_of_the_newest_metrics(new, squeue, first, second, step):
    squeue(("7", "RUNNING", "None"))
    run = new(attempts=[STOPPED, None])
    run.metrics(1).write_bytes(first)
    run.metrics(2).write_bytes(second)
    (row,) = status([run])
    assert (row["step"], row["total_steps"]) == (step, 100)


def test_a_run_is_found_by_path_directory_name_and_job_id(new, tmp_path, monkeypatch):
    old, young = new(job_id="7"), new(job_id="8")
    other = new(name="net-2", job_id="9", attempts=[STOPPED])
    roots = [tmp_path / "runs"]
    for ref, run in [
        (str(old.path), old), (old.name, old), ("net", young), ("net-2", other), ("7", old), ("9", other),
    ]:  # fmt: skip
        assert find(ref, roots).path == run.path
    monkeypatch.chdir(roots[0])
    assert find(old.name, []).path == old.path


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("net-1120-101010-1234", "net"),
        ("net-2-1120-101010-12ab", "net-2"),
        ("net-1234", "net"),
        ("a-1120-101010-12ab-1120-101010-1234", "a-1120-101010-12ab"),
        ("copied", "copied"),
    ],
)
def test_a_name_is_read_from_the_directory(tmp_path, directory, name):
    assert statuses.name_of(RunDir(tmp_path / directory)) == name


def test_what_is_not_found_says_what_may_be_meant(new, tmp_path):
    new(name="resnet")
    with pytest.raises(UsageError, match=r"(?s)no run 'restnet' in .*did you mean 'resnet'\?"):
        find("restnet", [tmp_path / "runs", tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="is no directory"):
        find("./nowhere", [])


def test_a_run_here_comes_before_a_newer_one_elsewhere(new, tmp_path):
    here, elsewhere = new(job_id="7"), new(job_id="7", root=tmp_path / "others")
    roots = [tmp_path / "runs", tmp_path / "others"]
    assert [find(ref, roots).path for ref in ("net", "7")] == [here.path] * 2
    assert [find(ref, roots[::-1]).path for ref in ("net", "7")] == [elsewhere.path] * 2


def test_a_job_id_of_several_runs_is_ambiguous(new, tmp_path):
    runs = [new(job_id="7"), new(job_id="7")]
    with pytest.raises(UsageError, match="several runs") as caught:
        find("7", [tmp_path / "runs"])
    assert all(run.name in str(caught.value) for run in runs)


def test_runs_are_listed_newest_last_and_strangers_left_out(new, tmp_path):
    runs = [new(), new(name="b"), new()]
    (tmp_path / "runs" / "stranger").mkdir()
    (tmp_path / "runs" / "file").touch()
    roots = [tmp_path / "runs", tmp_path / "runs", tmp_path / "nowhere"]
    assert [run.path for run in listing(roots)] == [run.path for run in runs]
    os.utime(runs[1].config, (0, 0))
    assert {run.path for run in recent(roots)} == {run.path for run in runs}, "it may still run or wait"
    runs[1].attempt(1).mkdir()
    put(runs[1].outcome(1), COMPLETED)
    assert [run.path for run in recent(roots)] == [runs[0].path, runs[2].path]


def test_a_run_that_was_never_submitted_is_no_crash(new):
    assert status([new(job={})])[0]["reason"] == "it was never handed to a scheduler"


def test_the_table_is_aligned_and_never_wraps(new, squeue):
    squeue(("7", "PENDING", "Priority"))
    rows = status([new(), new(name="a-much-longer-name", attempts=[COMPLETED])])
    head, *lines = table(rows).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line[head.index("STATE") :].startswith(("PENDING", "COMPLETED"))
    assert table([]) == "no runs"


def test_ways_out_are_final():
    assert {"COMPLETED", "FAILED", "CANCELLED"} == statuses.FINAL


def test_a_job_of_another_sandbox_is_never_looked_up_by_its_number(new, squeue, monkeypatch):
    """Every sandbox counts from 1: job 7 of this one is somebody else's."""
    squeue(("7", "RUNNING", "None"))
    mine, other = "/tmp/hpctrain-sandbox-a/etc/slurm.conf", "/tmp/hpctrain-sandbox-b/etc/slurm.conf"
    job = {"scheduler": "slurm", "job_id": "7", "submitted": 10, "sandbox": mine}
    run = new(job=job, attempts=[None])
    put(run.begin(1), {"job_id": "7", "scheduler": "slurm", "started": 10, "sandbox": mine})
    monkeypatch.setenv("SLURM_CONF", mine)
    assert status([run])[0]["state"] == "RUNNING"
    for conf in (other, "/etc/slurm/slurm.conf"):
        monkeypatch.setenv("SLURM_CONF", conf)
        (row,) = status([run])
        assert (row["state"], row["reason"]) == ("FAILED", "the sandbox in which it ran is gone")


@pytest.mark.parametrize(("outcome", "state"), [(ERROR, "FAILED"), (COMPLETED, "COMPLETED"), (KILLED, "RUNNING")])
def test_a_slurm_that_does_not_answer_brings_no_ended_run_back_to_life(new, fake, outcome, state):
    fake("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert status([new(attempts=[outcome])])[0]["state"] == state


def test_by_name_the_run_that_has_not_ended_is_cancelled(new, squeue, tmp_path):
    squeue(("7", "RUNNING", "None"))
    running = new(job_id="7", attempts=[None])
    new(job_id="8", attempts=[COMPLETED])
    roots = [tmp_path / "runs"]
    assert find("net", roots).path != running.path, "that one is the newest"
    assert statuses.find_live("net", roots).path == running.path
    squeue(("7", "RUNNING", "None"), ("9", "PENDING", "Priority"))
    waiting = new(job_id="9")
    with pytest.raises(UsageError, match="2 runs named net have not ended") as caught:
        statuses.find_live("net", roots)
    assert waiting.name in str(caught.value)


def test_an_outcome_that_is_written_while_slurm_is_asked_counts(new, fake):
    run = new(attempts=[None])
    outcome = json.dumps(ERROR)
    fake("sacct", "exit 1")
    line = r"7\x1fFAILED\x1fNonZeroExitCode\x1f2\x1fn[1-2]\x1f0\x1f0"
    fake("squeue", f"printf '%s' '{outcome}' >{run.outcome(1)}; printf '{line}\\n'")
    [row] = status([run])
    assert (row["state"], row["cause"]) == ("FAILED", "error")
    assert "ValueError: mine" in row["reason"]
