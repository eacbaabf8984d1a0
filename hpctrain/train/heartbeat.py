"""What a rank shows of itself while it trains: numbers in shared memory, which cost no system call to change.

The rank writes into a memfd, and the watchdog of its node (`hpctrain.train.watchdog`) maps the same pages. So it sees
where a rank stands even while that rank is stopped, or while C code holds the interpreter lock. Nothing lies in a file
system: there is no name to guess, and nothing is left behind by kill -9.
"""

import mmap
import os
import time
from enum import IntEnum
from typing import NamedTuple


class Phase(IntEnum):
    """What a rank is doing, in the order in which it comes to these after the same number of steps.

    `BACKWARD` holds the sum of the gradients, which overlaps with it, and the update. `COMM` is every other collective,
    with what is written right after it.
    """

    START = 0
    EVAL = 1
    CHECKPOINT = 2
    COMM = 3
    DATA = 4
    FORWARD = 5
    BACKWARD = 6


_STEP, _PASS, _PHASE, _SINCE, _FIRST, _SECONDS = range(6)
BYTES = 8 * (_SECONDS + len(Phase))


class Pulse(NamedTuple):
    """What a rank showed at one moment."""

    step: int
    """Optimizer steps of the run that are done."""
    number: int
    """Pass within the step."""
    phase: Phase
    since: float
    """When the phase began, by the monotonic clock of the rank; changes with each beat."""
    first: int
    """The step with which this attempt began."""
    seconds: tuple[float, ...]
    """Spent in each phase since the rank began, the present one left out."""

    @property
    def position(self) -> tuple[int, int, int]:
        """How far the rank has come; of two ranks the lesser one is behind."""
        return (-1, 0, 0) if self.phase is Phase.START else (self.step, self.number, self.phase)


class Heart:
    """The writing end: one per rank, for its main thread alone."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("hpctrain-heartbeat")
        """The memory, to be passed to the watchdog."""
        os.ftruncate(self.fd, BYTES)
        self._cells = memoryview(mmap.mmap(self.fd, BYTES)).cast("d")
        self._phase, self._since = Phase.START, time.monotonic()
        self._cells[_SINCE] = self._since

    def begin(self, step: int) -> None:
        """Say which step of the run will be the first of this attempt."""
        self._cells[_FIRST] = step

    def enter(self, phase: Phase, step: int, number: int = 0) -> None:
        """Say what comes now; again with the same phase: that it goes on. Costs about a microsecond.

        Args:
            phase: what the rank does from now on.
            step: optimizer steps that are done.
            number: of the pass within the step.
        """
        now = time.monotonic()
        cells = self._cells
        cells[_SECONDS + self._phase] += now - self._since
        self._phase, self._since = phase, now
        cells[_STEP] = step
        cells[_PASS] = number
        cells[_PHASE] = phase
        cells[_SINCE] = now


class View:
    """The reading end.

    Args:
        fd: of the memory; it is closed here.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, BYTES, access=mmap.ACCESS_READ)
        os.close(fd)

    def read(self) -> Pulse:
        """Return what the rank shows. Read until two looks agree: it may be writing just now."""
        seen = bytes(self._map)
        while (again := bytes(self._map)) != seen:
            seen = again
        cells = memoryview(seen).cast("d")
        step, number, phase = int(cells[_STEP]), int(cells[_PASS]), Phase(int(cells[_PHASE]))
        return Pulse(step, number, phase, cells[_SINCE], int(cells[_FIRST]), tuple(cells[_SECONDS:]))

    def close(self) -> None:
        """Give the pages back."""
        self._map.close()
