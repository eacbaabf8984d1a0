"""`command:` the user's own program as every rank, with the environment that torchrun would give it.

Rank 0 leaves a child behind that holds the store on the socket bound before the proof. So the port can neither be
taken nor raced for, and `TORCHELASTIC_USE_AGENT_STORE=True` makes `init_process_group()` of any script a client of it.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hpctrain.dist.interface import VARIABLES
from hpctrain.errors import UsageError
from hpctrain.train.proof import Joined
from hpctrain.world import World


def environment(world: World, joined: Joined, network: str) -> dict[str, str]:
    """Return the variables that scripts written for torchrun read; what the user set of the interfaces stays."""
    given = {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
        "GROUP_RANK": str(world.node),
        "MASTER_ADDR": joined.host,
        "MASTER_PORT": str(joined.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    for name in VARIABLES:
        if name not in os.environ:
            given[name] = network
    if "OMP_NUM_THREADS" not in os.environ:  # two intra-op pools on the same cores run several times slower than one
        given["OMP_NUM_THREADS"] = str(max(len(os.sched_getaffinity(0)) // world.local_size, 1))
    return given


def become(command: Sequence[str], world: World, joined: Joined, network: str) -> NoReturn:
    """Replace this process by the command.

    Raises:
        UsageError: there is no such program.
    """
    env = {**os.environ, **environment(world, joined, network)}
    if joined.listener is not None:
        _leave_store_holder(joined.listener.fileno(), joined.port)
    argv = list(command)
    if argv[0] in {"python", "python3"} and "VIRTUAL_ENV" not in os.environ and "CONDA_PREFIX" not in os.environ:
        argv[0] = sys.executable  # the interpreter that was chosen for the ranks, not whichever PATH finds first
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(argv[0], argv, env)  # noqa: S606 - a program with its arguments, no shell
    except OSError as error:
        raise UsageError(
            f"command: {argv[0]!r} cannot be started on {world.host}: {error.strerror}",
            "give a program that is on PATH in the job, or a path",
        ) from None


def _leave_store_holder(descriptor: int, port: int) -> None:
    """Start the holder as a child of this process; it ends when the rank, which keeps this process id, has ended."""
    import subprocess

    os.set_inheritable(descriptor, True)
    subprocess.Popen(
        [sys.executable, "-m", "hpctrain.train.store", str(descriptor), str(port)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HPCTRAIN_RANK_PID": str(os.getpid())},
    )
    os.close(descriptor)
