"""Progress of long work on standard error: one line that changes on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

_EVERY_TERMINAL_S = 0.2
_EVERY_LINE_S = 10.0


class Progress:
    """Called with how much is done, of how much.

    Args:
        what: is being done, such as `listing`.
        unit: of what is counted, such as `classes`.
        stream: where to.
        clock: seconds.
    """

    def __init__(
        self, what: str, unit: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._unit, self._clock = what, unit, clock
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._began = self._told = clock()
        self._begin_at: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """Tell, unless that was done just before."""
        now = self._clock()
        if self._begin_at is None:
            self._begin_at = done - 1  # what an earlier call did took this one no time
        due = now - self._told >= (_EVERY_TERMINAL_S if self._terminal else _EVERY_LINE_S)
        if not due and (done < total or not self._terminal):
            return
        self._told = now
        per_unit = (now - self._began) / max(done - self._begin_at, 1)
        left = f", {_duration(per_unit * (total - done))} left" if done < total else ""
        text = f"hpctrain: {self._what}: {done} of {total} {self._unit} ({100 * done // max(total, 1)} %){left}"
        if self._terminal:
            text = f"\r\x1b[K{text}" + ("\n" if done >= total else "")
        print(text, end="" if self._terminal else "\n", file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
