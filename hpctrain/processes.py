"""Processes of this machine, from /proc: is it still the same one, what is below it, and what has it left behind?"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie.

    With the process id it names one process for ever: ids are reused, pairs are not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def is_alive(pid: int, started: int | None) -> bool:
    """Say whether the process that started at `started` is still running."""
    return started is not None and start_time(pid) == started


def children(pid: int) -> list[int]:
    """Return the direct children of a process."""
    found = []
    for listed in Path("/proc").glob(f"{pid}/task/*/children"):
        try:
            found += [int(child) for child in listed.read_text().split()]
        except OSError:  # the thread ended while we looked
            continue
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below a process, nearest first."""
    found, layer = [], [pid]
    while layer:
        layer = [child for parent in layer for child in children(parent)]
        found += layer
    return found


def nearest(pid: int, names: Sequence[str]) -> list[int]:
    """Return the processes below a process that have one of these environment variables, but nothing below those."""
    found, layer = [], [pid]
    while layer:
        below = [child for parent in layer for child in children(parent)]
        having = [child for child in below if _has_one_of(child, names)]
        found += having
        layer = [child for child in below if child not in having]
    return found


def _has_one_of(pid: int, names: Sequence[str]) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False
    return any(variable.startswith(tuple(f"{name}=".encode() for name in names)) for variable in variables)


def send(number: int, pids: Iterable[int]) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill_tree(pid: int) -> None:
    """Kill a process and all below it; what it starts meanwhile, too."""
    while running := [one for one in (pid, *descendants(pid)) if start_time(one) is not None]:
        send(signal.SIGKILL, running)
        time.sleep(0.01)


def tie_to_parent() -> Callable[[], None]:
    """Return what asks the kernel to kill the caller when its parent is gone, even by kill -9 (PR_SET_PDEATHSIG).

    Not done at once, because a new process had better not load libraries between fork and exec.
    """
    import ctypes

    pr_set_pdeathsig = 1
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(pr_set_pdeathsig, signal.SIGKILL)

    return tie


def adopt_orphans() -> None:
    """Make this process the parent of all that its descendants leave behind (PR_SET_CHILD_SUBREAPER)."""
    import ctypes

    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def end_children(grace_s: float) -> None:
    """End and reap every child of this process: TERM, and after `grace_s` seconds KILL, until none is left."""
    deadline, number = time.monotonic() + grace_s, signal.SIGTERM
    told: set[int] = set()
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if number is signal.SIGTERM and time.monotonic() >= deadline:
            number, told = signal.SIGKILL, set()
        for pid in children(os.getpid()):
            if pid not in told:
                told.add(pid)
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        time.sleep(0.01)
