"""MNIST under every strategy and launcher: the planned world, the same samples and weights, stopped and resumed.

Each run is told to stop by the signal that Slurm sends before a time limit, is requeued, and goes on. The weights that
it ends with are those of an undisturbed run by DDP on this machine.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.runs import processes_of, rank_of, until

pytestmark = [pytest.mark.slurm, pytest.mark.torch, pytest.mark.timeout(600)]

RUNS = [
    ("ddp", "srun", ""),
    ("ddp", "srun", "dist.mpi=pmix"),
    ("ddp", "torchrun", ""),
    ("ddp", "mpirun", ""),
    ("horovod", "srun", ""),
    ("horovod", "srun", "dist.backend=mpi"),
    ("horovod", "mpirun", ""),
    ("horovod", "mpirun", "dist.backend=gloo"),
    ("horovod", "horovodrun", ""),
    ("horovod", "horovodrun", "dist.backend=mpi"),
]
STEPS, SAMPLES = 50, 2000  # two epochs, the last step of each with a smaller batch
CONFIG = f"""
name: matrix
slurm: {{nodes: 2, ranks_per_node: 2, time: 00:30:00}}
data: {{dataset: mnist, samples: {SAMPLES}, path: DATA}}
model: {{name: "slow:build", args: {{pause_ms: 80}}}}
batch: {{global: 64}}
optim: {{lr: 0.05, base_batch: 64, momentum: 0.9, weight_decay: 1.0e-4, warmup: 10 steps, schedule: cosine}}
train: {{steps: {STEPS}}}
precision: fp64
log: {{every: 1 steps, samples: true}}
"""
SLOW = """
import time
from torch import nn

class Pause(nn.Module):
    def __init__(self, ms):
        super().__init__()
        self.ms = ms

    def forward(self, x):
        if self.training:
            time.sleep(self.ms / 1000)
        return x

def build(pause_ms):
    return nn.Sequential(nn.Flatten(), Pause(pause_ms), nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, 10))
"""


def project(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    data = os.environ.get("HPCTRAIN_DATA")
    if data is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("HPCTRAIN_DATA names no folder with mnist/")
    (folder / "matrix.yaml").write_text(CONFIG.replace("DATA", f"{data}/mnist"))
    (folder / "slow.py").write_text(SLOW)
    return folder


def final(run: Path) -> Path:
    return run / f"ckpt/step_{STEPS:08d}/model.safetensors"


def samples(run: Path) -> dict[int, list[list[int]]]:
    """Step -> what each rank saw in it, from all attempts; what two attempts did both must be the same."""
    steps: dict[int, list[list[int]]] = {}
    for attempt in sorted(run.glob("attempts/*"), key=lambda path: int(path.name)):
        mine: dict[int, list[list[int]]] = {}
        for rank in range(len(list(attempt.glob("samples/rank_*.jsonl")))):
            for line in (attempt / f"samples/rank_{rank}.jsonl").read_text().splitlines():
                record = json.loads(line)
                mine.setdefault(record["step"], []).append(record["ids"])
        assert all(steps[step] == ids for step, ids in mine.items() if step in steps)
        steps |= mine
    return steps


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Runs of DDP here: number of ranks and precision -> run directory."""
    made: dict[tuple[int, str], Path] = {}

    def run(ranks, precision):
        if (ranks, precision) not in made:
            folder = project(tmp_path_factory.mktemp("reference"))
            argv = [sys.executable, "-m", "hpctrain", "run", "matrix.yaml", "--ranks", str(ranks)]
            argv += [f"precision={precision}", "model.args={pause_ms: 0}"]
            subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=120)
            [made[ranks, precision]] = (folder / "runs").iterdir()
        return made[ranks, precision]

    return run


@pytest.fixture
def submit(cluster, tmp_path):
    """Submit the config to the cluster; returns the job id and the run directory."""

    def call(*overrides):
        folder = project(tmp_path)
        argv = [sys.executable, "-m", "hpctrain", "submit", "matrix.yaml", *filter(None, overrides)]
        done = cluster.run(argv, cwd=folder)
        assert done.returncode == 0, done.stderr
        printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        return printed["job"], Path(printed["run"])

    yield call
    cluster.run(["scancel", "--me"])
    until(lambda: not cluster.run(["squeue", "-h"]).stdout.strip(), 30)


def needs(request, strategy, launcher, option):
    if strategy == "horovod" and importlib.util.find_spec("horovod") is None:
        lacks = "Horovod: bash jobs/build-horovod.sh builds a wheel"
    elif (
        strategy == "ddp" and ("pmix" in option or launcher == "mpirun") and importlib.util.find_spec("mpi4py") is None
    ):
        lacks = "mpi4py: pip install 'hpctrain[mpi]'"
    elif (launcher == "mpirun" or "mpi" in option) and shutil.which("mpirun") is None:
        lacks = "Open MPI: apt-get install openmpi-bin"
    else:
        return
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {lacks}")


def logs(run):
    texts = [
        path.read_text()[-3000:] for path in sorted(run.glob("attempts/*/**/*")) if path.suffix in {".err", ".log"}
    ]
    return "\n".join(texts)


@pytest.mark.parametrize(("strategy", "launcher", "option"), RUNS)
def test_a_run_stops_resumes_and_ends_as_under_ddp(request, submit, cluster, reference, strategy, launcher, option):
    from safetensors.torch import load_file

    needs(request, strategy, launcher, option)
    job, run = submit(f"dist.strategy={strategy}", f"dist.launcher={launcher}", option)
    metrics, first, second = (
        run / "attempts" / name for name in ("1/metrics.jsonl", "1/outcome.json", "2/outcome.json")
    )
    until(lambda: first.exists() or (metrics.exists() and len(metrics.read_text().splitlines()) > 5), 180)
    cluster.run(["scancel", "--signal=USR2", job])
    until(first.exists, 180)
    assert verdict(first) == ("stopped", "time_limit"), logs(run)
    until(second.exists, 180)
    assert verdict(second) == ("completed", None), logs(run)
    assert "rank 3 of 4" in (run / "attempts/1/logs/rank_3.err").read_text()
    assert "improperly" not in logs(run), "mpirun missed the end of a rank's MPI"
    undisturbed = reference(4, "fp64")
    assert samples(run) == samples(undisturbed)
    ours, theirs = load_file(final(run)), load_file(final(undisturbed))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-10
    until(lambda: not cluster.run(["squeue", "-h", "-j", job]).stdout.strip())


def verdict(path):
    outcome = json.loads(path.read_text())
    return outcome["verdict"], outcome["cause"]


@pytest.mark.parametrize(("strategy", "launcher", "option"), RUNS[4:])
def test_two_ranks_end_with_the_bytes_of_ddp(request, submit, reference, strategy, launcher, option):
    needs(request, strategy, launcher, option)
    _, run = submit(
        f"dist.strategy={strategy}", f"dist.launcher={launcher}", option, "slurm.ranks_per_node=1", "precision=fp32",
        "model.args={pause_ms: 0}",
    )  # fmt: skip
    until((run / "attempts/1/outcome.json").exists, 180)
    assert final(run).exists(), logs(run)
    assert final(run).read_bytes() == final(reference(2, "fp32")).read_bytes()


@pytest.mark.parametrize(("strategy", "launcher", "option"), RUNS[4:])
def test_a_killed_rank_ends_a_horovod_job_in_seconds(request, submit, cluster, strategy, launcher, option):
    needs(request, strategy, launcher, option)
    overrides = (f"dist.strategy={strategy}", f"dist.launcher={launcher}", option, "train.steps=5000")
    job, run = submit(*overrides, "restart.rank_killed=0")
    metrics, outcome = run / "attempts/1/metrics.jsonl", run / "attempts/1/outcome.json"
    until(lambda: outcome.exists() or (metrics.exists() and len(metrics.read_text().splitlines()) > 2), 180)
    os.kill(rank_of(run, 2, launcher), signal.SIGKILL)
    until(lambda: not cluster.run(["squeue", "-h", "-j", job, "-t", "RUNNING,COMPLETING"]).stdout.strip(), 10)
    record = json.loads(outcome.read_text())
    assert (record["verdict"], record["cause"]) == ("failed", "rank_killed"), logs(run)
    until(lambda: not processes_of(run), 10)
