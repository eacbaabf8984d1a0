"""Which process of the job is this? Read from what the launcher left in the environment; no torch, no MPI.

Launchers are tried in this order, because an inner one inherits the variables of an outer one:

1. torchrun and hpctrain's own supervisor: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE
2. horovodrun over Gloo: HOROVOD_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE}; over MPI it is an mpirun
3. Open MPI: OMPI_COMM_WORLD_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE}
4. MPICH and Intel MPI (hydra): PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS
5. a Slurm step: SLURM_STEP_ID with SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID. With `--mpi=pmi2`, asked for or
   the site's MpiDefault, its tasks have PMI_RANK, too, but never hydra's MPI_LOCALRANKID; with pmix they have PMIX_RANK
6. none of them: a single process. An interactive allocation without a step is one, too.
"""

import os
import re
import socket
import time
from collections.abc import Mapping

import msgspec

from hpctrain.errors import WorldError

# name of the launcher -> its variables for rank, size, local rank and ranks on this node
_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    "openmpi": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "hydra": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
_MARKS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE"),
    "openmpi": ("OMPI_COMM_WORLD_SIZE",),
    "hydra": ("PMI_RANK",),
}


RANK_NAMES = tuple(names[0] for names in _LAUNCHERS.values())
"""A process that has one of these in its environment was started as a rank; Slurm's variables do not tell."""

LAUNCHER_NAMES = frozenset(name for names in _LAUNCHERS.values() for name in names)
"""All variables by which a process is a rank; inherited ones would pass for those of the launcher that comes next."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """One process's place in the job."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str
    host: str

    @property
    def node(self) -> int:
        """Index of this rank's node, with ranks laid out block by block."""
        return self.rank // self.local_size

    def __str__(self) -> str:
        """Return `rank 5 of 8 (local rank 1 on n2)`."""
        return f"rank {self.rank} of {self.size} (local rank {self.local_rank} on {self.host})"


def from_env(env: Mapping[str, str] = os.environ) -> World:
    """Read this process's place from its environment.

    Raises:
        WorldError: a launcher's variables are set in part, are no numbers or contradict each other; the message lists
            what is set.
    """
    in_step = env.get("SLURM_STEP_ID", "").isdigit() and "SLURM_PROCID" in env
    for launcher, names in _LAUNCHERS.items():
        if launcher == "hydra" and in_step and "MPI_LOCALRANKID" not in env:
            continue
        if any(mark in env for mark in _MARKS[launcher]):
            return _read(env, launcher, names)
    if in_step:
        tasks = _tasks_here(env)
        return _read({**env, "SLURM_TASKS_HERE": tasks} if tasks else env, "srun", (
            "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_TASKS_HERE",
        ))  # fmt: skip
    return World(rank=0, size=1, local_rank=0, local_size=1, launcher="none", host=_host(env))


def _tasks_here(env: Mapping[str, str]) -> str:
    """Tasks of the step on this node: the SLURM_NODEID-th count of `2(x3),1`."""
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [count] * int(times or 1)
    node = env.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else ""


def _read(env: Mapping[str, str], launcher: str, names: tuple[str, str, str, str]) -> World:
    missing = [name for name in names if name not in env]
    found = ", ".join(f"{name}={env[name]}" for name in names if name in env)
    if missing:
        raise WorldError(
            f"the environment of {launcher} is half set: {', '.join(missing)} missing, {found or 'nothing'} set",
            f"unset {' '.join(name for name in names if name in env)}, or start the program with {launcher} again",
        )
    try:
        rank, size, local_rank, local_size = (int(env[name]) for name in names)
    except ValueError:
        raise WorldError(f"the environment of {launcher} holds no whole numbers: {found}") from None
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise WorldError(f"the environment of {launcher} contradicts itself: {found}")
    return World(rank=rank, size=size, local_rank=local_rank, local_size=local_size, launcher=launcher, host=_host(env))


def _host(env: Mapping[str, str]) -> str:
    return env.get("SLURMD_NODENAME") or socket.gethostname()


def threads_per_rank(ranks: int) -> int:
    """Return how many threads each of some ranks of this node may use: two pools on the same cores run much slower."""
    return max(len(os.sched_getaffinity(0)) // ranks, 1)


def time_left_s() -> float | None:
    """Return the seconds until the job's time limit, as its batch script has asked Slurm; None if there is none."""
    end = os.environ.get("HPCTRAIN_END_S", "")
    return float(end) - time.time() if end.isdigit() else None
