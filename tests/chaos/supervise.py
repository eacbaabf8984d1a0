"""The local supervisor as it is, but its ranks are forked from a process that has imported torch: a start costs
milliseconds instead of seconds, and so a test can have dozens of attempts."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpctrain.config.load import load
from hpctrain.launch import local
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir

_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Fork:
    """What the supervisor needs of `subprocess.Popen`: a rank that begins as `python -m hpctrain.train RUN` would."""

    def __init__(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: Any, **_: Any) -> None:
        self.returncode: int | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        self.pid = os.fork()
        if self.pid == 0:
            _be_rank(argv[-1], cwd, env, stdout.fileno())
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _be_rank(run: str, cwd: Path, env: Mapping[str, str], log: int) -> None:
    """Make this fork what a new process would be, and go the way of every rank."""
    try:
        os.setpgid(0, 0)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.path.insert(0, str(cwd))
        sys.argv = ["hpctrain.train", run]
        from hpctrain.train.__main__ import main

        main()
    except BaseException:  # noqa: BLE001 - a fork must never go back into the test's code
        traceback.print_exc()
    finally:
        os._exit(99)


def _popen(argv: Sequence[str], **options: Any) -> Any:
    is_rank = list(argv[1:3]) == ["-m", "hpctrain.train"]
    return Fork(argv, **options) if is_rank else _real_popen(argv, **options)


_real_popen = subprocess.Popen


def supervise(path: Path, log: Path) -> None:
    """Do what `python -m hpctrain.launch.local RUN` does; the exit code is the same."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.setsid()
    local.subprocess.Popen = _popen  # type: ignore[attr-defined]
    sys.argv = ["hpctrain.launch.local", str(path)]
    run = RunDir.open(path)
    config = load(run.config).config
    plan = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    code = local.Supervisor(run, config, plan, None).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
