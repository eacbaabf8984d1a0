"""The batch script on a real Slurm, with a stand-in for the ranks that ends as each test asks."""

import os
import stat
import sys
import time
from pathlib import Path

import msgspec
import pytest

from hpctrain import plan as planning
from hpctrain.config.load import load
from hpctrain.errors import ClusterError
from hpctrain.launch import slurm
from hpctrain.launch.status import FINAL, find, status
from hpctrain.rundir import RunDir, read_json
from tests.cluster.stand_in import CONFIG, RANK, await_ranks, await_state, exit_code, log, outcomes, put_package

pytestmark = pytest.mark.slurm


def test_a_completed_attempt_leaves_what_was_promised(stand_in):
    os.environ["RANK"] = "17"  # as in the shell of one who submits from inside torchrun
    try:
        run = stand_in("complete")
    finally:
        del os.environ["RANK"]
    row = await_state(run, *FINAL)
    assert (row["state"], row["reason"], row["cause"]) == ("COMPLETED", "", None), log(run)
    assert (row["attempt"], len(row["nodes"])) == (1, 2)
    job_id = row["job_id"]
    begin = read_json(run.begin(1))
    assert (begin["job_id"], begin["scheduler"], begin["hosts"]) == (job_id, "slurm", row["nodes"])
    assert abs(begin["started"] - time.time()) < 60
    assert len(run.secret(1).read_text()) == 64
    assert stat.S_IMODE(run.secret(1).stat().st_mode) == 0o600
    assert stat.S_IMODE(run.attempt(1).stat().st_mode) == 0o700
    assert (run.attempt(1) / "logs").is_dir()
    facts = read_json(run.attempt(1) / "facts.json")
    assert (facts["HPCTRAIN_RUN"], facts["cwd"]) == (str(run.path), str(run.code))
    assert facts["HPCTRAIN_HOSTS"].split() == begin["hosts"]
    assert facts["PYTHONPATH"].split(":")[0] == str(run.code)
    assert facts["RANK"] is None
    assert (run.path / f"slurm-{job_id}.out").exists()
    assert exit_code(run) == 0
    assert slurm.jobs([job_id])[job_id].state == "COMPLETED"
    assert find(job_id, [run.path.parent]).path == run.path


@pytest.mark.parametrize("options", [["--signal=USR2"], ["--batch", "--signal=USR2"]], ids=["ranks", "script alone"])
def test_an_agreed_stop_is_requeued_and_goes_on(stand_in, cluster, options):
    run = stand_in("wait complete")
    await_ranks(run)
    cluster.run(["scancel", *options, read_json(run.job)["job_id"]])
    row = await_state(run, "REQUEUED", *FINAL)
    assert row["state"] == "REQUEUED", log(run)
    assert "time limit was near" in row["reason"]
    row = await_state(run, *FINAL)
    assert (row["state"], row["attempt"]) == ("COMPLETED", 2), log(run)
    assert outcomes(run) == [("stopped", "time_limit"), ("completed", None)]


def test_a_killed_rank_is_tried_again_within_its_budget(stand_in):
    run = stand_in("killed", "restart.rank_killed=1")
    row = await_state(run, *FINAL)
    assert (row["state"], row["cause"]) == ("FAILED", "rank_killed"), log(run)
    assert outcomes(run) == [("failed", "rank_killed")] * 2
    assert exit_code(run) == 4
    assert "restart.rank_killed allows 1" in log(run)


@pytest.mark.parametrize(("act", "message"), [("error", "ValueError: mine"), ("mute-error", "exit code 7")])
def test_a_users_error_is_never_tried_again(stand_in, act, message):
    run = stand_in(act)
    row = await_state(run, *FINAL)
    assert (row["state"], row["cause"]) == ("FAILED", "error"), log(run)
    assert message in row["reason"]
    assert (outcomes(run), exit_code(run)) == ([("failed", "error")], 4)


def test_a_cancelled_run_stays_cancelled(stand_in):
    # the ranks take scancel for preemption; to requeue now would bring the job back to life
    run = stand_in("wait complete")
    await_ranks(run)
    slurm.cancel(read_json(run.job)["job_id"])
    assert await_state(run, *FINAL)["state"] == "CANCELLED"
    time.sleep(8)
    assert (status([run])[0]["state"], run.attempt_numbers()) == ("CANCELLED", [1]), log(run)


@pytest.mark.parametrize(("budget", "end"), [(1, "COMPLETED"), (0, "FAILED")])
def test_a_lost_node_costs_one_restart_of_its_budget(stand_in, cluster, budget, end):
    run = stand_in("wait complete", f"restart.node_failure={budget}")
    await_ranks(run)
    host = status([run])[0]["nodes"][1]
    cluster.run(["scontrol", "update", f"nodename={host}", "state=down", "reason=test"])
    try:
        row = await_state(run, *FINAL)
    finally:
        cluster.run(["scontrol", "update", f"nodename={host}", "state=resume"])
    assert row["state"] == end, log(run)
    assert outcomes(run)[0][1] == "node_failure", log(run)
    assert row["attempt"] == budget + 1


def test_no_line_of_setup_can_end_a_job_as_completed(stand_in):
    run = stand_in("complete", 'env.setup=["exit 0"]')
    row = await_state(run, *FINAL)
    assert (row["state"], exit_code(run)) == ("FAILED", 4)
    assert "ended before the ranks were started" in row["reason"]


@pytest.mark.parametrize(("code", "state"), [(0, "COMPLETED"), (3, "FAILED")])
def test_a_command_is_judged_by_its_exit_code(stand_in, code, state):
    nothing = [f"{key}=null" for key in ("data", "model", "batch", "optim", "train")]
    run = stand_in("", "command=[anything]", *nothing, rank=f"raise SystemExit({code})")
    assert await_state(run, *FINAL)["state"] == state, log(run)
    assert exit_code(run) == (4 if code else 0)


def test_a_killed_rank_of_a_command_is_no_stop_although_the_others_are_told_to(stand_in):
    nothing = [f"{key}=null" for key in ("data", "model", "batch", "optim", "train")]
    rank = "import os, time\nif os.environ['SLURM_PROCID'] == '1': os.kill(os.getpid(), 9)\ntime.sleep(60)\n"
    run = stand_in("", "command=[anything]", "restart.rank_killed=0", *nothing, rank=rank)
    assert await_state(run, *FINAL)["cause"] == "rank_killed", log(run)


def test_an_unknown_partition_is_refused_with_the_likely_one(stand_in, tmp_path):
    name = slurm.partitions()[0].name
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH --partition={name}x\ntrue\n")
    with pytest.raises(ClusterError) as caught:
        slurm.submit(script)
    assert f"did you mean {name!r}?" in str(caught.value)
    assert name in caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--gres=nothing:1", "slurm.gpus_per_node"),
        ("--constraint=nothing", "slurm.constraint"),
        ("--mem=999T", "slurm.mem"),
        ("--reservation=nothing", "slurm.reservation"),
        ("--nodelist=nothing", "slurm.nodelist"),
        ("--gpus-per-node=7", "nodes of the partition"),
        ("--mail-type=NOTHING", "slurm.mail_type"),
    ],
)
def test_what_slurm_refuses_is_said_in_our_words(stand_in, tmp_path, option, word):
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH {option}\ntrue\n")
    with pytest.raises(ClusterError, match=word):
        slurm.submit(script)


def test_options_of_an_outer_job_do_not_leak(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SLURM_NNODES", "99")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH --output={tmp_path}/%j.out\ntrue\n")
    job_id = slurm.submit(script)
    assert slurm.jobs([job_id, "999999"]).keys() == {job_id}
    assert slurm.jobs(["999999"]) == {}


def test_an_ejected_script_makes_its_run_directory(stand_in, cluster, tmp_path, monkeypatch):
    from hpctrain.launch.eject import eject

    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(runs="my runs"))
    loaded = load(file, ["restart.rank_killed=2"])
    plan = planning.make(loaded, planning.layout_on_slurm(loaded), planning.Samples(train=1000, test=100))
    put_package(tmp_path / "lib", RANK.replace('open(f"{run}/script.txt").read()', '"complete"'))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.chdir(tmp_path)
    script = Path("job.sbatch")
    script.write_text(eject(loaded, plan, python=sys.executable))
    job_id = slurm.submit(script)
    path = tmp_path / "my runs" / f"stand-in-{job_id}"
    deadline = time.monotonic() + 30
    while not (path / "attempts" / "1" / "outcome.json").exists():
        assert time.monotonic() < deadline, [p.read_text() for p in tmp_path.glob("slurm-*")]
        time.sleep(0.1)
    run = RunDir.open(path)
    assert await_state(run, *FINAL)["state"] == "COMPLETED"
    assert load(run.config).config == loaded.config
    assert msgspec.json.decode(run.plan.read_bytes(), type=planning.Plan) == plan
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
