"""The batch script on a real Slurm, with a stand-in for the ranks that ends as each test asks."""

import json
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hpctrain
from hpctrain import plan as planning
from hpctrain.config.load import dump, load
from hpctrain.errors import ClusterError
from hpctrain.launch import slurm
from hpctrain.launch.preflight import preflight
from hpctrain.launch.render import render
from hpctrain.launch.status import FINAL, find, status
from hpctrain.rundir import RunDir, publish, read_json

pytestmark = pytest.mark.slurm

CONFIG = """
name: stand-in
runs: {runs}
slurm: {{nodes: 2, ranks_per_node: 2, cpus_per_task: 1, time: 1:00:00}}
data: {{dataset: digits}}
model: {{name: mlp}}
batch: {{global: 32}}
optim: {{lr: 0.1}}
train: {{epochs: 1}}
"""

# What each rank does in attempt N is word N of RUN/script.txt, the last one for all that follow.
RANK = """
import json, os, signal, struct, sys, time
run, number = sys.argv[1], int(os.environ["HPCTRAIN_ATTEMPT"])
rank = int(os.environ["SLURM_PROCID"])
attempt = f"{run}/attempts/{number}"
words = open(f"{run}/script.txt").read().split()
act = words[min(number, len(words)) - 1]
def outcome(**record):
    with open(f"{attempt}/outcome.json", "x") as file:
        file.write(json.dumps(record, separators=(",", ":")))
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append("preempted"))
signal.signal(signal.SIGUSR2, lambda *_: told.append("time_limit"))
open(f"{attempt}/up.{rank}", "x").close()
if rank == 0 and act.startswith("gain-"):  # go on from the last step and save one more
    with open(f"{attempt}/steps", "wb") as file:
        file.write(struct.pack("=qq", number - 1, number))
    os.mkdir(f"{run}/ckpt/step_{number:08d}")
act = act.removeprefix("gain-")
if rank == 0:
    facts = {name: os.environ.get(name) for name in ("HPCTRAIN_RUN", "HPCTRAIN_HOSTS", "PYTHONPATH", "RANK")}
    facts |= {"cpus": len(os.sched_getaffinity(0)), "cwd": os.getcwd()}
    with open(f"{attempt}/facts.json", "w") as file:
        json.dump(facts, file)
while not all(os.path.exists(f"{attempt}/up.{r}") for r in range(int(os.environ["SLURM_NTASKS"]))):
    time.sleep(0.02)
if act == "complete" and rank == 0:
    outcome(verdict="completed")
if act == "wait":
    while not told:
        time.sleep(0.02)
    time.sleep(0.3)
    if rank == 0:
        outcome(verdict="stopped", cause=told[0])
if act == "killed" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if act == "error" and rank == 1:
    outcome(verdict="failed", cause="error", message="ValueError: mine", rank=1)
    sys.exit(4)
if act == "mute-error" and rank == 3:
    sys.exit(7)
if act in {"killed", "error", "mute-error"}:
    time.sleep(0.2 if act == "killed" else 60)
    outcome(verdict="failed", cause="error", message="Connection closed by peer", rank=rank)
    sys.exit(4)
"""


def put_package(folder: Path, rank: str) -> None:
    """Copy hpctrain, with another program in the place of the rank's."""
    shutil.copytree(Path(hpctrain.__file__).parent, folder / "hpctrain")
    (folder / "hpctrain" / "train" / "__main__.py").write_text(rank)


@pytest.fixture
def stand_in(cluster, tmp_path, monkeypatch):
    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, cluster.env[name])
    started = []

    def start(script: str, *overrides: str, rank: str = RANK) -> RunDir:
        file = tmp_path / "config.yaml"
        file.write_text(CONFIG.format(runs=tmp_path / "runs"))
        loaded = load(file, overrides)
        plan = planning.make(loaded, planning.layout_on_slurm(loaded), planning.Samples(train=1000, test=100))
        assert preflight(loaded, plan) == []
        run = RunDir.create(tmp_path / "runs", "stand-in")
        put_package(run.code, rank)
        (run.path / "script.txt").write_text(script)
        publish(run.config, dump(loaded.config).encode())
        publish(run.plan, msgspec.json.encode(plan))
        publish(run.script, render(loaded, plan, run, python=sys.executable).encode())
        job_id = slurm.submit(run.script)
        job = {"scheduler": "slurm", "job_id": job_id, "submitted": time.time(), "sandbox": slurm.sandbox()}
        publish(run.job, json.dumps(job).encode())
        started.append(job_id)
        return run

    yield start
    for job_id in started:
        slurm.cancel(job_id)


def await_state(run: RunDir, *states: str, timeout_s: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while (row := status([run])[0])["state"] not in states:
        assert time.monotonic() < deadline, (row, log(run))
        time.sleep(0.1)
    return row


def await_ranks(run: RunDir, attempt: int = 1, ranks: int = 4) -> None:
    deadline = time.monotonic() + 60
    while not all((run.attempt(attempt) / f"up.{rank}").exists() for rank in range(ranks)):
        assert time.monotonic() < deadline, (status([run]), log(run))
        time.sleep(0.05)
    time.sleep(0.2)


def log(run: RunDir) -> str:
    files = [*run.path.glob("slurm-*.out"), *run.path.glob("attempts/*/launch.log")]
    return "\n".join(path.read_text() for path in files)


def outcomes(run: RunDir) -> list[tuple[str | None, str | None]]:
    read = [read_json(run.outcome(number)) for number in run.attempt_numbers()]
    return [(outcome.get("verdict"), outcome.get("cause")) for outcome in read]


def exit_code(run: RunDir) -> int | None:
    """Exit code of the script; the verdict is there a little before Slurm has done with the job."""
    job_id = read_json(run.job)["job_id"]
    deadline = time.monotonic() + 30
    while (job := slurm.jobs([job_id])[job_id]).state in {"RUNNING", "COMPLETING"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return job.exit_code


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
