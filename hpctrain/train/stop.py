"""Told to stop: a signal sets a flag, all ranks agree at a step boundary, the loop saves.

A signal reaches ranks at different moments, or only one of them. If each acted on its own, the others would wait
forever in a collective. So the ranks sum their flags now and then, and that same sum carries rank 0's word on how many
steps later to ask again: about half a second, whatever a step takes, which costs nothing that can be measured.
"""

import signal
import time
from collections.abc import Mapping
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch takes a second to import, and signals must be caught before that
    from hpctrain.dist.comm import Comm
    from hpctrain.train.grace import Grace

Cause = Literal["time_limit", "preempted", "cancelled"]

CAUSES: Mapping[signal.Signals, Cause] = MappingProxyType({
    signal.SIGINT: "cancelled",
    signal.SIGUSR2: "time_limit",  # asked for by `#SBATCH --signal`; never USR1, which NCCL catches
    signal.SIGTERM: "preempted",
})  # fmt: skip
"""What each signal means. Where ranks caught different ones, the first in this table counts."""

caught: set[int] = set()
"""Signals that this process has caught, for those who leave without asking the other ranks."""

_EVERY_S = 0.5
_GROWTH = 8  # steps between two agreements grow at most so fast: one quick step is no promise


class Stop:
    """Whether and why to stop. Handlers only set a flag: nothing else is safe inside a signal handler."""

    def __init__(self) -> None:
        self.cause: Cause | None = None
        """The first signal that this rank caught; further ones change nothing."""
        self.next_step = 0
        """After how many steps of the run the ranks agree next; the same on all ranks."""
        self.grace: Grace | None = None
        """On rank 0: knows when the time limit is near."""
        self._interval = 1
        self._checked: tuple[int, float] | None = None

    def install(self) -> None:
        """Catch the signals from now on, in the main thread."""
        for number in CAUSES:
            signal.signal(number, self._catch)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        caught.add(number)
        if self.cause is None:
            self.cause = CAUSES[signal.Signals(number)]

    def agree(self, done: int, comm: "Comm") -> Cause | None:
        """Ask all ranks whether to stop after `done` steps; every rank must call this at `done >= next_step`.

        Returns:
            The cause if any rank caught a signal, the same on all ranks; else None, and `next_step` is later.
        """
        import torch

        if self.cause is None and self.grace is not None and self.grace.is_near():
            self.cause = "time_limit"
        names = list(CAUSES.values())
        now = time.monotonic()
        if self._checked is not None:
            steps, seconds = done - self._checked[0], now - self._checked[1]
            wanted = round(_EVERY_S * steps / seconds) if seconds > 0 else self._interval
            self._interval = min(max(wanted, 1), self._interval * _GROWTH)
        proposal = self._interval if comm.rank == 0 else 0
        flags = [int(self.cause == name) for name in names]
        *caught, interval = comm.sum(torch.tensor([*flags, proposal])).tolist()
        self._interval = interval
        self.next_step = done + interval
        self._checked = (done, now)
        return next((name for name, count in zip(names, caught, strict=True) if count), None)
