"""What can happen to a job, done to real jobs on a real Slurm: each ends like its undisturbed twin.

Where harm comes from outside, the ranks are held at step 9 until it has come; checkpoints are made every 4 steps.
"""

import os
import signal
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from hpctrain.rundir import RunDir
from tests.chaos import oracle
from tests.chaos.runs import SAMPLES, address, marker
from tests.chaos.slurm_runs import Controller, Job, batch_scripts, parent, until

pytestmark = [pytest.mark.slurm, pytest.mark.torch, pytest.mark.timeout(600)]

HELD, SAVED = 9, 8
HOLD = address("hold", 0, HELD)
NODES = ("slurm.nodes=2", "slurm.ranks_per_node=1", "checkpoint.every=4 steps", "log.every=2 steps")


@pytest.fixture
def submit(cluster, chaos):
    """Submit a run that does harm, or is held; afterwards the cluster is as it was."""

    def call(*addresses, limit="00:30:00", overrides=()):
        project = chaos(addresses)
        argv = [sys.executable, "-m", "hpctrain", "submit", "chaos.yaml", *NODES, f"slurm.time={limit}", *overrides]
        done = cluster.run(argv, cwd=project.project)
        assert done.returncode == 0, done.stderr
        printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        return Job(cluster, project, RunDir.open(Path(printed["run"])), printed["job"])

    yield call
    cluster.run(["scancel", "--me"])
    until(lambda: not cluster.run(["squeue", "-h"]).stdout.strip(), lambda: cluster.run(["squeue"]).stdout, 60)
    cluster.run(["scontrol", "update", f"nodename={','.join(cluster.nodes)}", "state=resume"])
    idle = ["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"]
    everyone = sorted(cluster.nodes)
    until(lambda: sorted(cluster.run(idle).stdout.split()) == everyone, lambda: cluster.run(["sinfo", "-N"]).stdout, 60)


@pytest.fixture
def held(submit):
    """Submit a run and wait until it is held in its first attempt."""

    def call(*addresses, limit="00:30:00"):
        job = submit(HOLD, *addresses, limit=limit)
        job.await_marker(marker(HOLD))
        until(lambda: SAVED in job.run.checkpoints(), job.report)
        return job

    return call


@pytest.fixture
def assert_nothing_lost(twin):
    def check(job, *causes):
        """The run is complete and like its twin, its attempts ended so, and all that was to be injected was."""
        assert oracle.causes(job.run) == [*causes, None], job.report()
        assert {marker(one) for one in job.project.addresses} <= job.project.done()
        oracle.assert_like(job.run, twin(2), samples=SAMPLES)

    return check


def resumed_from(job, attempt=2):
    """Return the step from which an attempt went on."""
    text = job.run.log(attempt, 0, "out").read_text()
    return int(text.split("going on from step ")[1].split(",")[0])


def test_a_rank_is_killed(submit, assert_nothing_lost):
    job = submit(address("sigkill", 1, HELD))
    job.ended("COMPLETED")
    assert_nothing_lost(job, "rank_killed")
    assert resumed_from(job) == SAVED


def test_a_user_error_ends_the_job_and_is_not_tried_again(submit, assert_nothing_lost):
    job = submit(address("raise", 1, HELD))
    row = job.ended("FAILED")
    assert (row["attempt"], row["cause"]) == (1, "error")
    assert "ValueError: injected" in row["reason"]
    assert "ExitCode=4:0" in job.slurm("scontrol", "-o", "show", "job", job.job_id)
    job.slurm("sbatch", str(job.run.script))
    job.await_outcome(2)
    assert_nothing_lost(job, "error")


def test_a_rank_that_waits_for_nobody_is_ended_with_the_one_that_failed(submit, assert_nothing_lost):
    """It is in no collective, which would fail: only its launcher can end it."""
    job = submit(HOLD, address("sigkill", 1, HELD))
    job.ended("COMPLETED")
    assert_nothing_lost(job, "rank_killed")
    assert "in vain" not in job.run.log(1, 0, "err").read_text()


def test_slurmd_is_killed_and_the_ranks_that_live_on_publish_nothing(held, cluster, assert_nothing_lost):
    second = address("hold", 0, HELD + 4)
    job = held(second)
    lost = job.hosts(1)
    for name in lost:
        cluster.node("kill-slurmd", name)
    try:
        job.await_marker(marker(second))
        stale = job.processes(1)
        assert len(stale) == 2, "they live on"
        assert not set(job.hosts(2)) & set(lost)
        job.let_go(1)
        until(lambda: not job.processes(1) and not batch_scripts(job)[False], job.report)
        assert job.state_in_slurm() == "RUNNING", "the stale script has taken the job away from the next attempt"
        assert not (job.run.attempt(2) / "verdict.json").exists(), "it has judged the next attempt"
        job.let_go(2)
        job.ended("COMPLETED")
    finally:
        for name in lost:
            cluster.node("start-slurmd", name)
    assert_nothing_lost(job, "node_failure")
    assert f"attempt 1 was shut out by a newer attempt of {job.run.path}" in job.run.log(1, 0, "err").read_text()
    published = [one["step"] for one in oracle.publications(job.project.folder) if one["attempt"] == 1 and one["there"]]
    assert published == [4, 8]


def test_slurmctld_is_killed_and_started_again(held, cluster, assert_nothing_lost):
    job, controller = held(), Controller(cluster)
    until(lambda: job.state_in_slurm() == "RUNNING", job.report)
    controller.kill()
    try:
        job.let_go(1)
        job.await_outcome(1)
    finally:
        controller.start()
    until(lambda: cluster.run(["scontrol", "ping"]).stdout.count("UP"), job.report)
    job.ended("COMPLETED")
    assert_nothing_lost(job)


@pytest.mark.parametrize("which", [0, 1], ids=["of the batch script", "of the other rank"])
def test_the_network_of_a_node_is_cut(held, cluster, assert_nothing_lost, which):
    job = held()
    lost = job.hosts(1)[which]
    cluster.node("cut", lost)
    try:
        job.await_attempt(2)
        job.let_go(1)
        assert lost not in job.hosts(2)
        job.ended("COMPLETED")
    finally:
        cluster.node("join", lost)
    assert_nothing_lost(job, "node_failure")
    assert resumed_from(job) == SAVED


def test_a_node_loses_its_power(held, cluster, assert_nothing_lost):
    job = held()
    lost = job.hosts(1)[0]
    cluster.node("crash", lost)
    try:
        job.await_attempt(2)
        assert lost not in job.hosts(2)
        job.ended("COMPLETED")
    finally:
        cluster.node("up", lost)
    assert_nothing_lost(job, "node_failure")


def test_a_node_is_set_down(held, assert_nothing_lost):
    job = held()
    job.slurm("scontrol", "update", f"nodename={job.hosts(1)[1]}", "state=down", "reason=test")
    job.ended("COMPLETED")
    assert_nothing_lost(job, "node_failure")


def test_a_drained_node_is_left_when_the_run_starts_again(held, assert_nothing_lost):
    job = held(address("sigkill", 1, HELD + 4))
    drained = job.hosts(1)[1]
    job.slurm("scontrol", "update", f"nodename={drained}", "state=drain", "reason=test")
    job.let_go(1)
    job.ended("COMPLETED")
    assert_nothing_lost(job, "rank_killed")
    assert drained not in job.hosts(2)
    assert resumed_from(job) == SAVED + 4, "a drained node goes on with what runs there"


def test_a_job_is_requeued_by_hand(held, assert_nothing_lost):
    job = held()
    job.slurm("scontrol", "requeue", job.job_id)
    job.let_go(1)
    job.ended("COMPLETED")
    assert_nothing_lost(job, "preempted")


def test_a_job_is_preempted_by_a_higher_partition(held, cluster, assert_nothing_lost):
    job = held()
    urgent = ["--partition=urgent", f"--nodes={len(cluster.nodes)}", "--exclusive", "--output=/dev/null", "--parsable"]
    other = job.slurm("sbatch", *urgent, "--wrap=sleep 1").strip()
    until(lambda: job.state_in_slurm() != "RUNNING", job.report)
    job.let_go(1)
    job.ended("COMPLETED")
    assert_nothing_lost(job, "preempted")
    assert not cluster.run(["squeue", "-h", "-j", other]).stdout.strip(), "the other one has run"


def test_the_time_limit_comes(held, assert_nothing_lost):
    """At once for a run that stops when it is told to and for one that does not, because Slurm counts in minutes."""
    stopping, deaf = held(limit="00:01:00"), held(limit="00:01:00")
    time.sleep(max(_end_s(stopping) - 9 - time.time(), 0))
    stopping.let_go(1)
    for job in (stopping, deaf):
        job.ended("COMPLETED")
        assert_nothing_lost(job, "time_limit")
    assert resumed_from(stopping) > HELD, "a warned run loses nothing"
    assert resumed_from(deaf) == SAVED
    outcome = oracle.outcomes(deaf.run)[0]
    assert outcome["message"].endswith(f"rank 0 on {deaf.hosts(1)[0]} has not stopped: forward at step {HELD}"), outcome


def _end_s(job):
    end = job.slurm("scontrol", "-o", "show", "job", job.job_id).split("EndTime=")[1].split()[0]
    return datetime.fromisoformat(end).timestamp()


def test_a_cancelled_run_stays_ended_until_it_is_started_by_hand(held, assert_nothing_lost):
    job = held()
    job.slurm("scancel", job.job_id)
    job.let_go(1)
    row = job.ended("CANCELLED")
    assert row["attempt"] == 1
    cause = job.await_outcome(1)["cause"]
    assert cause in {"cancelled", "preempted"}, "the ranks cannot tell who sent TERM"
    job.slurm("sbatch", str(job.run.script))
    job.await_outcome(2)
    assert_nothing_lost(job, cause)


def test_a_crash_loop_ends_within_its_budget_and_says_so(submit):
    job = submit(address("sigkill", 1, HELD, always=True), overrides=["restart.rank_killed=2"])
    row = job.ended("FAILED")
    attempts = job.run.attempt_numbers()
    assert 2 <= len(attempts) <= 3
    assert job.project.done() == {f"sigkill-forward-r1-s{HELD}-{number}" for number in attempts}
    assert set(oracle.causes(job.run)) <= {"rank_killed", "no_progress"}
    assert row["reason"]
    assert job.run.checkpoints() == [4, 8], "what was saved stays"
    log = "".join(path.read_text() for path in job.run.path.glob("slurm-*.out"))
    assert "restart.rank_killed allows 2" in log or "progress" in log


def test_the_shell_of_the_batch_script_is_killed(held, assert_nothing_lost):
    job = held()
    os.kill(batch_scripts(job)[False][0], signal.SIGKILL)  # its subshell has the same command line
    row = job.ended("FAILED", "COMPLETED")
    until(lambda: not job.processes(1), job.report)
    if row["state"] == "FAILED":
        job.slurm("sbatch", str(job.run.script))
        job.await_attempt(2)
        job.ended("COMPLETED")
    causes = oracle.causes(job.run)
    assert causes[0] in {None, "node_failure"}, "nobody was left to see why"
    assert_nothing_lost(job, *causes[:-1])


def test_the_step_daemon_of_a_rank_is_killed(held, assert_nothing_lost):
    job = held()
    [rank_1] = [pid for pid in job.processes(1) if _procid(pid) == 1]
    os.kill(parent(rank_1), signal.SIGKILL)
    job.let_go(1)
    job.ended("COMPLETED")
    causes = oracle.causes(job.run)
    assert set(causes[:-1]) <= {"rank_killed", "node_failure"}
    assert_nothing_lost(job, *causes[:-1])


def test_a_job_is_suspended_and_goes_on(held, assert_nothing_lost):
    job = held()
    job.slurm("scontrol", "suspend", job.job_id)
    until(lambda: job.state_in_slurm() == "SUSPENDED", job.report)
    job.let_go(1)
    job.slurm("scontrol", "resume", job.job_id)
    job.ended("COMPLETED")
    assert_nothing_lost(job)


def test_of_two_submissions_of_one_run_the_second_is_refused(held, assert_nothing_lost):
    job = held()
    other = job.slurm("sbatch", "--parsable", str(job.run.script)).strip()
    ended = until(lambda: (text := job.slurm("scontrol", "-o", "show", "job", other)).count("JobState=FAILED") and text,
                  job.report)  # fmt: skip
    assert "ExitCode=3:0" in ended
    assert job.job_id in (job.run.path / f"slurm-{other}.out").read_text()
    job.let_go(1)
    until(lambda: job.run.outcome(1).exists(), job.report)
    until(lambda: not job.processes(1), job.report)
    assert_nothing_lost(job)


def test_a_node_on_which_ranks_were_killed_twice_is_left_out(submit, assert_nothing_lost):
    job = submit(address("sigkill", 1, HELD), address("sigkill", 1, HELD + 4))
    job.ended("COMPLETED")
    assert_nothing_lost(job, "rank_killed", "rank_killed")
    blamed = [job.hosts(attempt)[1] for attempt in (1, 2)]
    assert blamed[0] == blamed[1], "Slurm takes the same nodes again"
    assert blamed[0] not in job.hosts(3)


def _procid(pid):
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return int(next(word for word in words if word.startswith(b"SLURM_PROCID="))[13:])
