"""Horovod and torch started by this machine's mpirun, through the command line; and Horovod's two kinds of wheel."""

import os
import subprocess
import sys

import pytest

from hpctrain.dist import mpirun

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("horovod")]

TRAINING = """
name: t
data: {dataset: digits}
model: {name: mlp, args: {hidden: [16]}}
batch: {global: 60}
optim: {lr: 0.1, momentum: 0.9}
train: {steps: 30}
precision: fp64
dist: {strategy: horovod}
"""

# One step by Adasum, against its formula (Maleki et al. 2020, section 3) of what each rank would have done alone
ADASUM = """
import torch, horovod.torch as hvd
from hpctrain.config import schema
from hpctrain.dist.hvd import Horovod
hvd.init()
comm = Horovod(hvd, schema.Dist(horovod=schema.Horovod(op="adasum")), torch.device("cpu"), 30)
model = torch.nn.Linear(5, 1, bias=False).double()
with torch.no_grad():
    model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0]]))
images = torch.tensor([[1.0, 2, 1, 1, 5], [3.0, 1, 1, 0, -2]]).double()
alone = [-0.1 * torch.autograd.grad(model(one[None]).square().sum(), model.weight)[0] for one in images]
before = model.weight.detach().clone()
step = comm.wrap(model, torch.optim.SGD(model.parameters(), lr=0.1), example=images, passes=1, scaler=None)
loss = step.forward(images[comm.rank][None], last=True).square().sum() / comm.size
step.backward(loss, last=True)
assert step.apply()
a, b = alone
dot = (a * b).sum()
joined = a * (1 - dot / (2 * a.square().sum())) + b * (1 - dot / (2 * b.square().sum()))
print("rank", comm.rank, "of", comm.size, torch.allclose(model.weight - before, joined, rtol=1e-9), dot.item() != 0)
"""

STOPS = """
import os, signal
from torch import nn

class Stops(nn.Linear):
    passes = 0

    def forward(self, x):
        self.passes += 1
        if self.passes == 9 and os.environ["OMPI_COMM_WORLD_RANK"] == "0":
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().forward(x.flatten(1))

def build():
    return Stops(64, 10)
"""

WORLD = """
import torch, horovod.torch as hvd
hvd.init()
print("size", hvd.size(), hvd.allreduce(torch.tensor([1.0]), op=hvd.Sum, name="x").item())
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Call `hpctrain run` on files of the given texts."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(text, *overrides, script="", path=None):
        (tmp_path / "c.yaml").write_text(text or f"name: s\ncommand: [{sys.executable}, s.py]\ndist: {{strategy: horovod}}\n")
        (tmp_path / "s.py").write_text(script)
        found = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
        env = {**os.environ, **({"PYTHONPATH": found} if found else {})}
        argv = [sys.executable, "-m", "hpctrain", "run", "c.yaml", *overrides]
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150, check=False)

    return call


@pytest.fixture
def open_mpi():
    if mpirun.find("mpirun") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no mpirun: {mpirun.GET_MPIRUN}")


@pytest.fixture
def gloo_only():
    """Return the directory where a Horovod without MPI is installed."""
    path = os.environ.get("HPCTRAIN_HOROVOD_GLOO")
    if path is None:
        lacks = "HPCTRAIN_HOROVOD_GLOO names no directory with a Horovod without MPI: see tests/run.sh"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacks)
    return path


def final(tmp_path):
    [path] = tmp_path.glob("runs/*/ckpt/step_00000030/model.safetensors")
    content = path.read_bytes()
    path.rename(path.with_name("seen"))
    return content


def test_all_wheels_and_backends_end_with_the_same_bytes(run, open_mpi, gloo_only, tmp_path):
    ends = []
    for overrides, path in ((["dist.backend=mpi"], None), ([], None), ([], gloo_only), (["dist.strategy=ddp"], None)):
        done = run(TRAINING, "--ranks", "2", *overrides, path=path)
        assert done.returncode == 0, done.stderr
        ends.append(final(tmp_path))
    assert ends == ends[:1] * 4


def test_adasum_joins_what_the_ranks_did(run, open_mpi):
    done = run("", "--ranks", "2", "dist.backend=mpi", "dist.horovod.op=adasum", script=ADASUM)
    assert done.stdout == "rank 0 of 2 True True\n", done.stderr


@pytest.mark.parametrize("model", [[], ["model={name: cnn, args: {channels: [4, 8]}}"]], ids=["mlp", "cnn"])
def test_adasum_trains_and_its_rate_is_scaled_by_the_batch_of_a_rank(run, open_mpi, model):
    overrides = ["dist.horovod.op=adasum", "optim.base_batch=60"]  # which needs MPI, and says so itself
    done = run(TRAINING, "--ranks", "2", *overrides, *model)
    assert done.returncode == 0, done.stderr
    assert "0.1 asked -> 0.05 used" in done.stderr
    assert "horovod over mpi, by mpirun" in done.stderr


@pytest.mark.parametrize("program", ["print('alone')", "from mpi4py import MPI; print(MPI.COMM_WORLD.size)"])
def test_a_commands_mpi_is_its_own(run, open_mpi, program):
    done = run("", "--ranks", "2", "dist.strategy=ddp", "dist.backend=mpi", script=program)
    assert (done.returncode, done.stdout) == (0, "alone\n" if "alone" in program else "2\n"), done.stderr


@pytest.mark.parametrize("override", ["dist.backend=mpi", "dist.mpi=pmix", "dist.launcher=mpirun"])
def test_one_rank_and_a_laptop_need_no_mpi(run, override):
    done = run(TRAINING, "--ranks", "1", override)
    assert done.returncode == 0, done.stderr
    assert "by mpirun" not in done.stderr


def test_what_ends_is_told_from_what_hangs(run, open_mpi, tmp_path):
    """A stopped rank 0 says nothing, and Horovod's own limits are kept by it."""
    done = run(
        TRAINING.replace("name: mlp, args: {hidden: [16]}", 'name: "s:build"'),
        *("--ranks", "2", "dist.backend=mpi", "dist.timeout=3", "restart.rank_killed=0"),
        script=STOPS,
    )
    assert done.returncode == 4
    [log] = tmp_path.glob("runs/*/attempts/1/logs/rank_1.err")
    assert "no answer from the other ranks for 3 s" in log.read_text(), done.stderr


def test_an_interface_that_is_not_there_is_named_before_horovod_aborts(run, monkeypatch):
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "nosuch0")
    done = run(TRAINING, "--ranks", "2", "restart.rank_killed=0")
    assert done.returncode == 4
    assert "HOROVOD_GLOO_IFACE names 'nosuch0'" in done.stderr
    assert "by dist.interface=NAME" in done.stderr


@pytest.mark.parametrize("backend", ["gloo", "mpi"])
def test_a_plain_horovod_script_finds_its_world(run, open_mpi, backend):
    done = run("", "--ranks", "2", f"dist.backend={backend}", script=WORLD)
    assert done.stdout == "size 2 2.0\n", done.stderr


@pytest.mark.parametrize("text", [TRAINING, ""])
def test_a_horovod_without_mpi_never_makes_worlds_of_one(run, open_mpi, gloo_only, tmp_path, text):
    done = run(text, "--ranks", "2", "dist.backend=mpi", script=WORLD, path=gloo_only)
    assert done.returncode == 2
    assert "was built without MPI, so each rank would be a world of its own" in done.stderr
    assert "dist.backend=gloo" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_torchs_own_mpi_backend_is_explained_where_it_is_missing(run, open_mpi):
    done = run(TRAINING, "--ranks", "2", "dist.strategy=ddp", "dist.backend=mpi")
    assert done.returncode == 4
    assert "was built without MPI, as all that PyPI offers" in done.stderr
