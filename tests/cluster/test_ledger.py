"""The restart ledger, the owner of a run and going on by hand, on a real Slurm."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hpctrain.launch import slurm
from hpctrain.launch.ledger import read
from hpctrain.launch.states import FINAL
from hpctrain.rundir import RunDir, read_json
from tests.cluster.runs import until
from tests.cluster.stand_in import await_ranks, await_state, exit_code, log, outcomes
from tests.cluster.test_runs import DIGITS, assert_each_sample_once_per_epoch, ended, submitted

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def why(cluster, run, folder):
    argv = [sys.executable, "-m", "hpctrain", "why", str(run.path), "--json"]
    return json.loads(cluster.run(argv, cwd=folder).stdout)


def test_a_crash_loop_that_gains_steps_ends_within_its_budget(stand_in, cluster, tmp_path):
    run = stand_in("gain-killed", "restart.rank_killed=2")
    row = await_state(run, *FINAL)
    assert (row["state"], row["cause"], exit_code(run)) == ("FAILED", "rank_killed", 4), log(run)
    assert outcomes(run) == [("failed", "rank_killed")] * 3
    assert [entry.steps_gained for entry in read(run)] == [1, 1, 1]
    assert {entry.rank for entry in read(run)} == {1}
    found = why(cluster, run, tmp_path)
    assert (found["cause"], found["attempt"], found["rank"]) == ("rank_killed", 3, 1)
    assert "restart.rank_killed allows 2" in found["reason"]
    shown = cluster.run(["scontrol", "-o", "show", "job", read_json(run.job)["job_id"]]).stdout
    assert "Comment=hpctrain: ended by rank_killed 3 times" in shown


def test_a_crash_loop_that_gains_nothing_ends_after_two(stand_in, cluster, tmp_path):
    run = stand_in("killed", "restart.rank_killed=9")
    row = await_state(run, *FINAL)
    assert (row["state"], row["cause"], row["attempt"]) == ("FAILED", "no_progress", 2), log(run)
    assert "gained no step" in why(cluster, run, tmp_path)["reason"]


def test_a_node_that_is_blamed_twice_is_left_out(stand_in, cluster, tmp_path):
    """Rank 1 is on the first node, which two attempts blame; the third one runs elsewhere."""
    run = stand_in("gain-killed gain-killed complete", "restart.rank_killed=5")
    row = await_state(run, *FINAL)
    assert (row["state"], row["attempt"]) == ("COMPLETED", 3), log(run)
    attempts = read(run)
    blamed = {entry.host for entry in attempts[:2]}
    assert blamed == {attempts[0].nodes[0]}
    assert read_json(run.verdict(2))["exclude"] == sorted(blamed)
    assert not blamed & set(attempts[2].nodes)
    assert why(cluster, run, tmp_path)["state"] == "COMPLETED"


def test_a_second_submission_of_a_run_is_refused_while_the_first_one_runs(stand_in, cluster, tmp_path):
    run = stand_in("wait")
    await_ranks(run)
    second = cluster.run(["sbatch", "--parsable", run.script]).stdout.strip()
    job = until(lambda: (j := slurm.jobs([second])[second]).state == "FAILED" and j)
    assert job.exit_code == 3, log(run)
    said = (run.path / f"slurm-{second}.out").read_text()
    assert f"{run.path} belongs to job {read_json(run.job)['job_id']} since" in said
    assert run.attempt_numbers() == [1]
    argv = [sys.executable, "-m", "hpctrain", "resume", str(run.path), "train.epochs=2"]
    assert cluster.run(argv, cwd=tmp_path).returncode == 3
    local = cluster.run([sys.executable, "-m", "hpctrain.launch.local", str(run.path)], cwd=tmp_path)
    assert (local.returncode, run.attempt_numbers()) == (3, [1]), local.stderr
    assert why(cluster, run, tmp_path)["state"] == "RUNNING"


def test_a_requeue_by_hand_is_no_cancellation(stand_in, cluster):
    run = stand_in("wait complete")
    await_ranks(run)
    cluster.run(["scontrol", "requeue", read_json(run.job)["job_id"]])
    row = await_state(run, *FINAL)
    assert (row["state"], row["attempt"]) == ("COMPLETED", 2), log(run)
    assert outcomes(run)[0] == ("stopped", "preempted"), log(run)


def test_why_tells_what_a_run_waits_for(stand_in, cluster, tmp_path):
    before = read_json(stand_in("wait").job)["job_id"]
    run = stand_in("complete", f"slurm.dependency=afterok:{before}")
    found = why(cluster, run, tmp_path)
    assert (found["state"], found["attempt"], found["cause"]) == ("PENDING", None, None)
    assert "(Dependency)" in found["reason"]
    assert "nothing to do: it waits" in found["advice"]


@pytest.fixture
def hpctrain(cluster, tmp_path):
    """Call hpctrain in an empty project; every job that it left behind is cancelled afterwards."""

    def call(*arguments, check=True):
        argv = [sys.executable, "-m", "hpctrain", *map(str, arguments)]
        done: subprocess.CompletedProcess[str] = cluster.run(argv, cwd=tmp_path, timeout=240)
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    (tmp_path / "digits.yaml").write_text(DIGITS)
    yield call
    cluster.run(["scancel", "--me"])
    until(lambda: not cluster.run(["squeue", "-h"]).stdout.strip(), 30)


@pytest.mark.torch
def test_a_completed_run_goes_on_for_longer_on_other_ranks(hpctrain):
    """Two nodes of two ranks for two epochs, then one node for a third one: each sample once per epoch."""
    first, path = submitted(hpctrain("submit", "digits.yaml"))
    assert ended(hpctrain, path)["state"] == "COMPLETED"
    second, again = submitted(hpctrain("resume", path, "train.epochs=3", "dist.ranks=2"))
    assert (again, second != first) == (Path(path), True)
    row = ended(hpctrain, path)
    assert (row["state"], row["attempt"], row["step"], row["job_id"]) == ("COMPLETED", 2, 75, second)
    assert len(row["nodes"]) == 1
    assert_each_sample_once_per_epoch(path, epochs=3)
    run = RunDir(path)
    assert [(entry.first_step, entry.steps_gained) for entry in read(run)] == [(0, 50), (50, 25)]
    assert Counter(entry.job_id for entry in read(run)) == {first: 1, second: 1}
    assert "resume" in hpctrain("why", path).stdout
    assert hpctrain("resume", path, check=False).returncode == 2
