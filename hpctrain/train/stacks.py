"""What a process is doing, seen from outside: its Python stacks, its state, and where it waits in the kernel."""

import os
import re
import signal
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
_LOOK_S, _QUIET_S = 0.02, 0.1
_OURS = str(Path(__file__).resolve().parents[1]) + os.sep
_INSTALLED = ("site-packages", "dist-packages")


class Frame(NamedTuple):
    """A line of a Python stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """As `net.py:12 in forward`."""
        return f"{os.path.basename(self.file)}:{self.line} in {self.function}"  # noqa: PTH119 - text in, text out

    @property
    def is_users(self) -> bool:
        """Whether it is code of the user's, not of hpctrain, of the standard library, or installed."""
        library = (_OURS, sysconfig.get_path("stdlib") + os.sep, "<")
        return not self.file.startswith(library) and not any(part in self.file for part in _INSTALLED)


def dump(pid: int, fd: int, number: signal.Signals, patience_s: float) -> str:
    """Let a process write its stacks, and return them; '' if it does not in `patience_s` seconds.

    `faulthandler` answers inside of the signal handler, without the interpreter lock; a stopped process does not.

    Args:
        pid: of the process, which has registered `number` with faulthandler.
        fd: of the memory file into which it writes; both ends share its offset.
        number: the signal.
        patience_s: how long to wait.
    """
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return ""
    until, size, quiet = time.monotonic() + patience_s, 0, 0.0
    while time.monotonic() < until and (not size or quiet < _QUIET_S):
        time.sleep(_LOOK_S)
        now = os.fstat(fd).st_size
        quiet = quiet + _LOOK_S if now == size else 0.0
        size = now
    return os.pread(fd, size, 0).decode(errors="replace")


def threads(text: str) -> list[list[Frame]]:
    """Return the frames of each thread of a dump, innermost first; the main thread, which wrote it, comes first."""
    found: list[list[Frame]] = []
    current: list[Frame] = []
    for line in text.split("\n"):
        if line.startswith("Current thread "):
            current = []
            found.insert(0, current)
        elif line.startswith("Thread "):
            current = []
            found.append(current)
        elif (match := _FRAME.match(line)) is not None:
            current.append(Frame(match["file"], int(match["line"]), match["function"]))
    return found


def telling(stacks: list[list[Frame]], *, others: bool) -> Frame | None:
    """Return the frame that tells the most: the innermost of the user's code, else of hpctrain's, else of any.

    Args:
        stacks: from `threads`.
        others: the user's code may run in another thread than the main one, as when data is read.
    """
    main = stacks[0] if stacks else []
    users = (_users(frames) for frames in (stacks if others else stacks[:1]))
    ours = (frame for frame in main if frame.file.startswith(_OURS))
    return next(filter(None, users), next(ours, next(iter(main), None)))


def _users(frames: list[Frame]) -> Frame | None:
    """Return the innermost frame of what hpctrain has called; beyond hpctrain's own frames is what started it."""
    for frame in frames:
        if frame.is_users or frame.file.startswith(_OURS):
            return frame if frame.is_users else None
    return None


class State(NamedTuple):
    """A process as the kernel knows it."""

    letter: str
    """R, S, D (waits uninterruptibly), T or t (stopped, traced), Z (zombie); X if it is gone."""
    cpu_s: float
    """Processor time that it has used."""
    waits_in: str
    """Function of the kernel in which its main thread waits, if that may be read; else ''."""


def state(pid: int) -> State:
    """Look at a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return State("X", 0.0, "")
    return State(fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), _waits_in(pid))


def _waits_in(pid: int) -> str:
    """Read the top of the kernel's stack, for root alone; else the one function that anyone may see."""
    for name in ("stack", "wchan"):
        try:
            text = Path(f"/proc/{pid}/{name}").read_text().split("\n", 1)[0]
        except OSError:
            continue
        if text not in {"", "0"}:
            return re.sub(r"^\[<.*>\] |\+0x.*$", "", text)
    return ""
