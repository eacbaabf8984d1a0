"""Runs whose ranks are a small program without torch that ends as a test asks, on a real Slurm."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

import hpctrain
from hpctrain import plan as planning
from hpctrain.config.load import dump, load
from hpctrain.launch import slurm
from hpctrain.launch.preflight import preflight
from hpctrain.launch.render import render
from hpctrain.launch.status import status
from hpctrain.rundir import RunDir, publish, read_json

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


def start(folder: Path, script: str, *overrides: str, rank: str = RANK) -> RunDir:
    """Submit a run below a folder whose attempts do the words of the script."""
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(runs=folder / "runs"))
    loaded = load(file, overrides)
    plan = planning.make(loaded, planning.layout_on_slurm(loaded), planning.Samples(train=1000, test=100))
    assert preflight(loaded, plan) == []
    run = RunDir.create(folder / "runs", "stand-in")
    put_package(run.code, rank)
    (run.path / "script.txt").write_text(script)
    publish(run.config, dump(loaded.config).encode())
    publish(run.plan, msgspec.json.encode(plan))
    publish(run.script, render(loaded, plan, run, python=sys.executable).encode())
    job_id = slurm.submit(run.script)
    job = {"scheduler": "slurm", "job_id": job_id, "submitted": time.time(), "sandbox": slurm.sandbox()}
    publish(run.job, msgspec.json.encode(job))
    return run


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
