"""MPI's bootstrap with real MPI processes: of this machine's mpirun, or of none at all."""

import importlib.util
import os
import subprocess
import sys

import pytest

from hpctrain.dist import mpirun

RANK = """
import os, sys
from hpctrain.dist.mpi import bootstrap
from hpctrain.errors import HpctrainError
from hpctrain.world import World
rank, size = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0)), int(os.environ["PLANNED"])
world = World(rank=rank, size=size, local_rank=rank, local_size=size, launcher="openmpi", host="n1")
try:
    mpi = bootstrap(world)
    for content in (b"", b"\\0\\xff{}", b"ab" * 100_000):
        assert mpi.broadcast(content if rank == 0 else b"mine") == content
    print("rank", rank, "got all")
except HpctrainError as error:
    print(type(error).__name__, error)
"""
HVD = """
import torch
from hpctrain import plan as planning
from hpctrain.config.schema import Dist
from hpctrain.dist.hvd import connect
from hpctrain.errors import HpctrainError
from hpctrain.world import World
world = World(rank=0, size=2, local_rank=0, local_size=2, launcher="openmpi", host="n1")
plan = planning.Plan(name="p", seed=0, nodes=1, ranks_per_node=2, ranks=2, device="cpu", strategy="horovod",
                     backend="mpi", launcher="mpirun", precision="fp32")
try:
    connect(plan, world, Dist(), store=("", 0), listen_fd=None, device=torch.device("cpu"), timeout_s=10)
except HpctrainError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def start():
    """Run a program, under mpirun if ranks are given; returns what it printed."""
    lacks = None
    if mpirun.find("mpirun") is None:
        lacks = f"no mpirun: {mpirun.GET_MPIRUN}"
    elif importlib.util.find_spec("mpi4py") is None:
        lacks = "no mpi4py: pip install 'hpctrain[mpi]'"
    if lacks:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacks)

    def call(program, *, ranks=0, planned=2, **env):
        argv = [sys.executable, "-c", program]
        if ranks:
            root = ["--allow-run-as-root"] if os.getuid() == 0 else []
            argv = ["mpirun", *root, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *argv]
        env = {**os.environ, "PLANNED": str(planned), **env}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_rank_0s_bytes_reach_every_rank(start):
    assert sorted(start(RANK, ranks=3, planned=3).splitlines()) == [f"rank {rank} got all" for rank in range(3)]


def test_another_world_than_the_launchers_is_refused(start):
    """As with an mpi4py that loads another MPI than the one of mpirun: each rank is a world of its own."""
    said = start(RANK)
    assert said.startswith("WorldError openmpi started rank 0 of 2 (local rank 0 on n1), but MPI formed a world of 1")
    assert "mpi4py loaded Open MPI" in said
    assert "MPI4PY_LIBMPI" in said


def test_a_library_that_is_not_there_is_named(start):
    said = start(RANK, MPI4PY_LIBMPI="/nowhere/libmpi.so")
    assert "mpi4py finds no MPI" in said
    assert "load the module of the MPI that starts the ranks" in said


def test_without_mpi4py_it_says_what_to_install(start):
    said = start("import sys; sys.modules['mpi4py'] = None\n" + RANK)
    assert "mpi4py is not installed" in said
    assert "pip install 'hpctrain[mpi]' in the job's Python; or use dist.launcher=srun" in said


@pytest.mark.torch
def test_horovods_worlds_of_one_are_refused(start, horovod):
    said = start(HVD)
    assert "but Horovod formed a world of 1 in which this is rank 0; 2 ranks are planned" in said
    assert "dist.backend=gloo" in said
