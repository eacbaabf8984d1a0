"""Processes of this machine, from /proc: is it still the same one, and what has it left behind?"""

import os
import signal
import time
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
