"""What the tests of whole runs share: waiting for something, and looking at the processes of a run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60) -> T:
    """Wait for something that must come true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def processes_of(run: Path) -> list[str]:
    """Return the ids of all processes whose command line names the run."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run).encode() in cmdline.read_bytes():
                found.append(cmdline.parent.name)
        except OSError:
            continue
    return found


def rank_of(run: Path, number: int, launcher: str) -> int:
    """Return the process id of one rank, by what its launcher has set."""
    mpi = "OMPI_COMM_WORLD_RANK"
    names = {"srun": ["SLURM_PROCID"], "torchrun": ["RANK"], "mpirun": [mpi], "horovodrun": ["HOROVOD_RANK", mpi]}
    wanted = {f"{name}={number}".encode() for name in names[launcher]}
    [pid] = [pid for pid in processes_of(run) if wanted & set(_environ(pid)) and _is_rank(pid)]
    return int(pid)


def _environ(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _is_rank(pid: str) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"hpctrain.train" in words and Path(words[0].decode()).name.startswith("python")
