"""Whole runs on a real Slurm of several nodes, through the command line, as a user types it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.runs import processes_of, rank_of, until

pytestmark = [pytest.mark.slurm, pytest.mark.torch, pytest.mark.timeout(300)]

DIGITS = """
name: digits
slurm: {nodes: 2, ranks_per_node: 2, time: 00:30:00}
data: {dataset: digits}
model: {name: mlp, args: {hidden: [32]}}
batch: {global: 60}
optim: {lr: 0.1, base_batch: 60, momentum: 0.9}
train: {epochs: 2}
log: {every: 5 steps, samples: true}
"""

# pytorch's own style of a DDP script: it has never heard of hpctrain
PLAIN_DDP = """
import os
import time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DDP(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss = model(torch.full((2, 4), float(rank))).mean()
        loss.backward()
        optimizer.step()
    total = torch.tensor([float(rank)])
    dist.all_reduce(total)
    weights = [torch.empty(4) for _ in range(world)]
    dist.all_gather(weights, model.module.weight.detach()[0])
    assert all(torch.equal(weights[0], other) for other in weights)
    print(f"rank {rank} of {world} on {os.environ['SLURMD_NODENAME']} sum {total.item():g}")
    dist.destroy_process_group()
    time.sleep(0.5)  # Gloo's threads may still want the interpreter, and abort a process that ends meanwhile

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def hpctrain(cluster, tmp_path):
    """Call hpctrain in an empty project; every job that it left behind is cancelled afterwards."""

    def call(*arguments, check=True, **env):
        argv = [sys.executable, "-m", "hpctrain", *map(str, arguments)]
        done = cluster.run(argv, cwd=tmp_path, env={**cluster.env, **env}, timeout=240)
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    (tmp_path / "digits.yaml").write_text(DIGITS)
    yield call
    cluster.run(["scancel", "--me"])
    until(lambda: not cluster.run(["squeue", "-h"]).stdout.strip(), 30)


def submitted(done):
    """Job id and run directory that `submit` printed."""
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(("job ", "run ")))
    return lines["job"], Path(lines["run"])


def row(hpctrain, run):
    [found] = json.loads(hpctrain("status", "--json", run).stdout)
    return found


def ended(hpctrain, run, seconds=120):
    return until(lambda: (r := row(hpctrain, run))["state"] in {"COMPLETED", "FAILED", "CANCELLED"} and r, seconds)


def seen(run):
    """(epoch, step) -> the samples that all ranks saw, from the audit of all attempts, later attempts winning."""
    steps = {}
    for attempt in sorted(run.joinpath("attempts").iterdir(), key=lambda path: int(path.name)):
        mine = {}
        for path in attempt.glob("samples/rank_*.jsonl"):
            for line in path.read_text().splitlines():
                audit = json.loads(line)
                mine.setdefault((audit["epoch"], audit["step"]), []).extend(audit["ids"])
        steps |= mine
    return steps


def assert_each_sample_once_per_epoch(run, epochs, samples=1500):
    steps = seen(run)
    for epoch in range(epochs):
        ids = sorted(i for (e, _), found in steps.items() if e == epoch for i in found)
        assert ids == list(range(samples)), f"epoch {epoch}"


def test_a_run_on_two_nodes_completes_and_tells_of_itself(hpctrain, launcher):
    job_id, run = submitted(hpctrain("submit", "digits.yaml", f"dist.launcher={launcher}"))
    status = ended(hpctrain, run)
    assert status["state"] == "COMPLETED", (run / "attempts/1/launch.log").read_text()
    assert (status["job_id"], status["attempt"], status["step"], status["total_steps"]) == (job_id, 1, 50, 50)
    assert status["name"] == "digits"
    assert_each_sample_once_per_epoch(run, epochs=2)
    rank_3 = hpctrain("logs", run, "--rank", 3).stderr
    assert "rank 3 of 4 (local rank 1 on n" in rank_3
    hosts = {(run / f"attempts/1/logs/rank_{rank}.err").read_text().split(" on ")[1].split(")")[0] for rank in range(4)}
    assert len(hosts) == 2
    assert hpctrain("status", job_id).stdout == hpctrain("status", run).stdout
    assert "digits" in hpctrain("list").stdout


def test_follow_shows_rank_0_and_ends_with_the_run(hpctrain):
    done = hpctrain("submit", "digits.yaml", "--follow")
    assert "rank 0 of 4" in done.stderr
    assert "accuracy" in done.stdout
    assert "60 = 15 per rank x 1 passes x 4 ranks" in done.stderr


def test_a_failing_run_ends_with_4_and_names_the_rank(hpctrain, tmp_path, launcher):
    (tmp_path / "broken.py").write_text("def build():\n    raise KeyError('no such layer')\n")
    options = ("model={name: broken:build}", f"dist.launcher={launcher}", "--follow")
    done = hpctrain("submit", "digits.yaml", *options, check=False)
    assert done.returncode == 4
    assert "KeyError" in done.stderr
    assert "hpctrain: failed on rank" in done.stderr


def test_a_stop_near_the_time_limit_saves_and_a_requeued_job_goes_on(hpctrain, cluster, launcher):
    job_id, run = submitted(
        hpctrain("submit", "digits.yaml", f"dist.launcher={launcher}", "train.epochs=40", "checkpoint.every=500 epochs")
    )
    until((run / "attempts/1/metrics.jsonl").exists)
    cluster.run(["scancel", "--signal=USR2", job_id])  # what --signal=USR2@120 does near the limit
    first = until(lambda: (p := run / "attempts/1/outcome.json").exists() and json.loads(p.read_text()))
    assert (first["verdict"], first["cause"]) == ("stopped", "time_limit")
    assert 0 < first["step"] < 1000
    status = ended(hpctrain, run)
    assert (status["state"], status["attempt"], status["step"]) == ("COMPLETED", 2, 1000)
    assert status["job_id"] == job_id
    assert_each_sample_once_per_epoch(run, epochs=40)
    resumed = json.loads((run / "attempts/2/metrics.jsonl").read_text().splitlines()[0])
    assert resumed["step"] > first["step"]


def test_a_requeued_run_ends_like_an_undisturbed_one(hpctrain, cluster):
    undisturbed = submitted(hpctrain("submit", "digits.yaml", "train.epochs=20"))[1]
    assert ended(hpctrain, undisturbed)["state"] == "COMPLETED"
    job_id, run = submitted(hpctrain("submit", "digits.yaml", "train.epochs=20"))
    until((run / "attempts/1/metrics.jsonl").exists)
    cluster.run(["scancel", "--signal=USR2", job_id])
    assert ended(hpctrain, run)["attempt"] == 2
    name = "ckpt/step_00000500/model.safetensors"
    assert (run / name).read_bytes() == (undisturbed / name).read_bytes()


def test_cancel_ends_all_processes(hpctrain, launcher):
    _, run = submitted(hpctrain("submit", "digits.yaml", f"dist.launcher={launcher}", "train.epochs=100000"))
    until((run / "attempts/1/metrics.jsonl").exists)
    hpctrain("cancel", run)
    assert row(hpctrain, run)["state"] == "CANCELLED"
    until(lambda: not processes_of(run), 15)


def test_a_killed_rank_ends_the_attempt_and_the_next_goes_on(hpctrain, launcher):
    options = (f"dist.launcher={launcher}", "train.epochs=40", "checkpoint.every=10 steps")
    _, run = submitted(hpctrain("submit", "digits.yaml", *options))
    until(lambda: list((run / "ckpt").glob("step_*")))
    os.kill(rank_of(run, 3, launcher), signal.SIGKILL)
    until((run / "attempts/1/outcome.json").exists, 10)
    status = ended(hpctrain, run)
    first = json.loads((run / "attempts/1/outcome.json").read_text())
    assert (status["state"], status["attempt"]) == ("COMPLETED", 2), first
    assert first["cause"] == "rank_killed"
    assert_each_sample_once_per_epoch(run, epochs=40)


def test_a_plain_script_runs_on_all_ranks(hpctrain, tmp_path, launcher):
    (tmp_path / "train.py").write_text(PLAIN_DDP)
    (tmp_path / "plain.yaml").write_text(
        "name: plain\nslurm: {nodes: 2, ranks_per_node: 2, time: 00:10:00}\ncommand: [python, train.py]\n"
    )
    done = hpctrain("submit", "plain.yaml", f"dist.launcher={launcher}", "--follow")
    _, run = submitted(done)
    lines = [hpctrain("logs", run, "--rank", rank).stdout.splitlines()[-1] for rank in range(4)]
    assert [line.split(" on ")[0] for line in lines] == [f"rank {r} of 4" for r in range(4)]
    assert {line.split(" on ")[1].split()[0] for line in lines} == {"n1", "n2"}
    assert all(line.endswith("sum 6") for line in lines)
    assert row(hpctrain, run)["state"] == "COMPLETED"


def test_a_promised_gpu_that_is_not_there_ends_the_run(hpctrain):
    """The sandbox's GPUs are fake: Slurm grants them, torch sees none; never a silent run on CPUs."""
    done = hpctrain("submit", "digits.yaml", "slurm={nodes: 2, gpus_per_node: 2}", "--follow", check=False)
    assert done.returncode == 4
    assert "was promised a GPU, but torch sees none" in done.stderr


def test_editing_after_submission_changes_nothing(hpctrain, tmp_path, cluster):
    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n    print('the code of the submission')\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    cluster.run(["scontrol", "update", "partitionname=main", "state=down"])
    try:
        _, run = submitted(hpctrain("submit", "digits.yaml", "model={name: net:build}"))
        (tmp_path / "net.py").write_text("raise SystemExit('the edited code')\n")
        assert row(hpctrain, run)["state"] == "PENDING"
    finally:
        cluster.run(["scontrol", "update", "partitionname=main", "state=up"])
    assert ended(hpctrain, run)["state"] == "COMPLETED"
    assert "the code of the submission" in hpctrain("logs", run).stdout


def test_changed_code_in_the_run_directory_is_refused(hpctrain, cluster):
    cluster.run(["scontrol", "update", "partitionname=main", "state=down"])
    try:
        _, run = submitted(hpctrain("submit", "digits.yaml"))
        (run / "code/hpctrain/models/__init__.py").write_text("x = 1\n")
    finally:
        cluster.run(["scontrol", "update", "partitionname=main", "state=up"])
    status = ended(hpctrain, run)
    assert status["state"] == "FAILED"
    assert "is not the code that was submitted" in json.dumps(json.loads((run / "attempts/1/outcome.json").read_text()))


def test_a_run_directory_can_be_submitted_again_by_hand(hpctrain, cluster):
    _, run = submitted(hpctrain("submit", "digits.yaml", "--follow"))
    again = cluster.run(["sbatch", "--parsable", run / "job.sbatch"])
    assert again.returncode == 0, again.stderr
    until((run / "attempts/2/outcome.json").exists)
    status = until(lambda: (r := row(hpctrain, run))["state"] == "COMPLETED" and r)
    assert (status["attempt"], status["job_id"]) == (2, again.stdout.strip())


def test_an_ejected_script_runs_without_hpctrain_on_the_login_node(hpctrain, cluster, tmp_path):
    script = tmp_path / "ejected.sbatch"
    script.write_text(hpctrain("eject", "digits.yaml").stdout)
    queued = cluster.run(["sbatch", "--parsable", script], cwd=tmp_path)
    assert queued.returncode == 0, queued.stderr
    found = until(lambda: list((tmp_path / "runs").glob("digits-*/attempts/1/outcome.json")), 60)
    assert json.loads(found[0].read_text())["verdict"] == "completed"
    run = found[0].parents[2]
    assert cluster.run(["sbatch", run / "job.sbatch"], cwd=tmp_path).returncode == 0
    second = until(lambda: (p := run / "attempts/2/outcome.json").exists() and json.loads(p.read_text()))
    assert (second["verdict"], second["step"]) == ("completed", 50)


def test_a_step_with_one_rank_too_few_names_it(hpctrain, cluster):
    """What the plan has 4 of, srun starts 3 of, because somebody edited the script."""
    _, run = submitted(hpctrain("submit", "digits.yaml", "--follow"))
    script = (run / "job.sbatch").read_text()
    assert "srun --kill-on-bad-exit=1" in script
    (run / "job.sbatch").write_text(script.replace("srun --kill-on-bad-exit=1", "srun --ntasks=3 --kill-on-bad-exit=1"))
    cluster.run(["sbatch", run / "job.sbatch"])
    outcome = until(lambda: (p := run / "attempts/2/outcome.json").exists() and json.loads(p.read_text()), 10)
    assert "started 3 ranks, the plan has 4; missing: rank 3 (n2)" in outcome["message"]


def test_n_worlds_of_one_rank_are_impossible_to_miss(hpctrain):
    """Start the ranks without srun, as a script that forgot it would."""
    _, run = submitted(hpctrain("submit", "digits.yaml", "--follow"))
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    secret = run / "attempts/2"
    secret.mkdir()
    (secret / "logs").mkdir()
    (secret / "secret").write_text("x")
    done = subprocess.run(
        [sys.executable, "-m", "hpctrain.train", str(run)],
        env={**plain, "HPCTRAIN_ATTEMPT": "2", "PYTHONPATH": str(run / "code")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 4
    assert "started 1 ranks, the plan has 4" in (run / "attempts/2/logs/rank_0.err").read_text()


def test_an_unknown_partition_is_refused_before_anything_is_made(hpctrain, tmp_path):
    done = hpctrain("submit", "digits.yaml", "slurm.partition=mian", check=False)
    assert done.returncode in {2, 3}
    assert "main" in done.stderr
    assert not list(tmp_path.glob("runs/*"))
