"""Ranks of this machine that are forked from one process which has imported torch, while the run directory is made.

Importing torch takes most of the start of a small run; so it is done once and early. Only for programs that cannot tell
the difference, see `can_fork`; the others are started as processes of their own.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import hpctrain
from hpctrain.config.schema import Config
from hpctrain.launch.own_code import script_of
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.world import threads_per_rank

_IMPORTS_TORCH = re.compile(r"^\s*(import|from)\s+torch\b", re.MULTILINE)
_ENVIRONMENT = re.compile(r"\benviron|(?:put|unset)env\b")
_ENVIRONMENT_READ = re.compile(
    r"(?<!del os\.)(?<!del )\benviron(?:\.get\(|\[[^][]*\](?!\s*(?:,|\|?=(?!=))))|\bin os\.environ\b"
)


def can_fork(config: Config) -> bool:
    """Say whether the ranks may start with torch imported already.

    hpctrain's own ranks may. Of other programs those that run by this interpreter as `python script.py ...`, import
    torch, and do not touch the environment: libraries read it when they are imported, and a script that sets
    OMP_NUM_THREADS before it imports torch would find that done.
    """
    if sys.platform != "linux" or not config.dist.fork or config.env.python is not None:
        return False
    if config.command is None:
        return True
    script = script_of(config.command)
    # an option of the interpreter would come too late
    if script is None or script != config.command[1] or not _is_this_python(config.command[0]):
        return False
    try:
        text = Path(script).read_text()
    except (OSError, ValueError):
        return False
    only_reads = len(_ENVIRONMENT_READ.findall(text)) == len(_ENVIRONMENT.findall(text))
    return only_reads and _IMPORTS_TORCH.search(text) is not None


def _is_this_python(program: str) -> bool:
    import shutil

    if program in {"python", "python3"} and "VIRTUAL_ENV" not in os.environ and "CONDA_PREFIX" not in os.environ:
        return True  # what train.script makes of it
    found = shutil.which(program)
    return found is not None and Path(found).parent == Path(sys.executable).parent and "python" in Path(found).name


def server_for(config: Config, plan: Plan) -> "ForkServer | None":
    """Start importing torch for the ranks of the first attempt, if they may be forked."""
    return ForkServer(config, plan.ranks) if plan.launcher == "local" and can_fork(config) else None


class Forked:
    """A rank that this process has adopted; what the supervisor needs of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """A process that imports torch from now on, and forks the ranks of one attempt when it is told to."""

    def __init__(self, config: Config, ranks: int) -> None:
        env = dict(os.environ)
        if config.command is not None:  # read when torch is imported
            env.setdefault("OMP_NUM_THREADS", str(threads_per_rank(ranks)))
        self._in_place = config.command is not None
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(Path(hpctrain.__file__).parent / "train" / "forkserver.py"),
                str(os.getpid()),
                *(config.command or (config.name,)),  # read by nobody but those who look at `ps`
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            process_group=0,
        )

    def fork(
        self, run: RunDir, log: Path, envs: Sequence[Mapping[str, str]], is_told_to_stop: Callable[[], bool]
    ) -> list[Forked]:
        """Fork the ranks; none if the server has failed, or was ended because the run is to stop.

        Args:
            run: the frozen run directory.
            log: file for what ranks print before they have a log of their own.
            envs: the environment of each rank.
            is_told_to_stop: asked while torch is being imported.
        """
        order = {"code": run.code, "run": run.path, "log": log, "in_place": self._in_place, "ranks": list(envs)}
        with self._process as server:
            if server.stdin is None or server.stdout is None:
                raise AssertionError("both are pipes")
            try:
                server.stdin.write(json.dumps(order, default=str).encode() + b"\n")
                server.stdin.flush()
            except BrokenPipeError:
                return []
            while not select.select([server.stdout], [], [], 0.1)[0]:
                if is_told_to_stop():
                    server.send_signal(signal.SIGKILL)
            line = server.stdout.readline()
        return [Forked(pid) for pid in json.loads(line)] if line else []
