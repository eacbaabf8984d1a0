"""`command:` the user's own program as every rank, with the environment that torchrun would give it.

Rank 0 leaves a child behind that holds the store on the socket bound before the proof. So the port can neither be
taken nor raced for, and `TORCHELASTIC_USE_AGENT_STORE=True` makes `init_process_group()` of any script a client of it.
With `strategy: horovod` the child serves Horovod's rendezvous instead, and `hvd.init()` of any script finds it; where
the ranks agree by MPI nobody has to meet.
"""

import os
import platform
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType
from typing import NoReturn

from hpctrain.config.schema import Config
from hpctrain.dist import horovod_build, rendezvous
from hpctrain.dist.interface import VARIABLES
from hpctrain.errors import UsageError
from hpctrain.plan import Plan
from hpctrain.train.proof import Joined
from hpctrain.world import World, threads_per_rank


def environment(config: Config, plan: Plan, world: World, joined: Joined, network: str) -> dict[str, str]:
    """Return the variables that scripts read who were written for torchrun, or Horovod does.

    What the user or site has set of the interfaces stays.
    """
    given = {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
        "GROUP_RANK": str(world.node),
    }
    store = (joined.host, joined.port)
    if plan.strategy == "horovod":
        given |= rendezvous.environment(plan, world, config.dist.horovod, store=store, timeout_s=config.dist.timeout)
    else:
        given |= {
            "MASTER_ADDR": joined.host,
            "MASTER_PORT": str(joined.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
    for name in VARIABLES:
        if name not in os.environ:
            given[name] = network
    if "OMP_NUM_THREADS" not in os.environ:
        given["OMP_NUM_THREADS"] = str(threads_per_rank(world.local_size))
    return given


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by the command, after `prepare`.

    Raises:
        UsageError: there is no such program.
    """
    argv = list(command)
    if argv[0] in {"python", "python3"} and "VIRTUAL_ENV" not in os.environ and "CONDA_PREFIX" not in os.environ:
        argv[0] = sys.executable  # the interpreter that was chosen for the ranks, not whichever PATH finds first
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - a program with its arguments, no shell
    except OSError as error:
        raise UsageError(
            f"command: {argv[0]!r} cannot be started on {platform.node()}: {error.strerror}",
            "give a program that is on PATH in the job, or a path",
        ) from None


class _Main(SourceFileLoader):
    """Loads a script as Python loads its main program: not from a cache, nor into one."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the signature is importlib's
        return self.source_to_code(self.get_data(self.path), self.path)


def run_in_place(command: Sequence[str]) -> NoReturn:
    """Run `python script.py ...` in this interpreter as if it had just been started; torch is imported already."""
    path = os.path.abspath(command[1])  # noqa: PTH100 - as Python itself does it: links stay
    sys.argv = list(command[1:])
    sys.path[0] = os.path.dirname(path)  # noqa: PTH120
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr] # PYTHONUNBUFFERED came too late
    loader = _Main("__main__", path)
    main = ModuleType("__main__")
    main.__dict__.update(__file__=path, __cached__=None, __loader__=loader)
    sys.modules["__main__"] = main
    try:
        loader.exec_module(main)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - printed as Python prints it, without the frames above the script
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != path:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(1)
    sys.exit(0)


def prepare(config: Config, plan: Plan, world: World, joined: Joined, network: str) -> None:
    """Set the environment for the command, and leave a child of rank 0 behind that holds the store.

    Raises:
        UsageError: the command's Horovod would form worlds of one rank.
    """
    if plan.backend == "mpi" and plan.strategy == "horovod" and (found := horovod_build.problem(plan.backend)):
        raise UsageError(f"dist.strategy: horovod, but {found[0]}", found[1])
    if joined.listener is not None and plan.backend != "mpi":
        slots = f"{plan.nodes}x{plan.ranks_per_node}" if plan.strategy == "horovod" else ""
        _leave_store_holder(joined.listener.detach(), joined.port, slots)
    os.environ.update(environment(config, plan, world, joined, network))


def _leave_store_holder(descriptor: int, port: int, slots: str) -> None:
    """Start the holder as a child of this process; it ends when the rank, which keeps this process id, has ended."""
    rank = os.getpid()
    if "torch" in sys.modules:
        if os.fork() == 0:
            from hpctrain.train import store

            try:
                store.hold(descriptor, port, rank, slots)
            finally:
                os._exit(1)  # whatever went wrong, this is no rank
    else:
        import subprocess

        os.set_inheritable(descriptor, True)
        subprocess.Popen(
            [sys.executable, "-m", "hpctrain.train.store", str(descriptor), str(port), str(rank), slots],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
        )
    os.close(descriptor)
