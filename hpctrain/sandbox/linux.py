"""The few system calls that Python 3.11 does not offer, and what process 1 of a namespace must do."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hpctrain.sandbox.spec import tool

# sched.h, sys/mount.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
OF_A_HOST = CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
_MNT_DETACH = 2

_LIBC = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names; a new pid namespace begins with the next child."""
    _checked(_LIBC.unshare(flags), "unshare")


def mount(source: Path | str, target: Path | str, *, kind: str = "none", flags: int = 0, options: str = "") -> None:
    """Mount `source` on `target` (mount(2))."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode())
    _checked(_LIBC.mount(*arguments, ctypes.c_ulong(flags), options.encode()), str(target))


def unmount(target: Path) -> None:
    """Take the topmost mount off `target`, busy or not."""
    _checked(_LIBC.umount2(os.fsencode(target), _MNT_DETACH), str(target))


def _checked(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


def start_daemon(argv: Sequence[str], log: Path) -> int:
    """Start a program in a session of its own, with its output in `log`; return its pid.

    In a user namespace it gets none of the namespace's capabilities: with them, a job could write its read-only files.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*without_capabilities(), tool(argv[0]), *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process.returncode = 0  # `reap` takes its status: no ResourceWarning
    return process.pid


def without_capabilities() -> list[str]:
    """Return the beginning of a command line that drops what a user namespace gave."""
    return [] if os.geteuid() == 0 else [tool("setpriv"), "--inh-caps=-all"]


def wake_on(signals: Sequence[signal.Signals]) -> int:
    """Let each of `signals` write its number to a pipe instead of its default action; return the end to read."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:  # what nohup ignores stays ignored
            signal.signal(number, lambda *_: None)
    return read


def reap() -> dict[int, int]:
    """Collect every child that has ended, also orphans; return pid -> exit code, 128 + n for signal n."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = code if code >= 0 else 128 - code


def wait_until(ready: Callable[[], bool], *, seconds: float, every_s: float = 0.005) -> bool:
    """Call `ready` until it says yes; return False after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def answers(address: str | tuple[str, int]) -> bool:
    """Say whether a server listens at a unix socket's path or at (IPv4 address, port)."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1)
        return probe.connect_ex(address) == 0
