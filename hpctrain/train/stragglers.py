"""How long each rank of a node takes for its own work, written now and then for `hpctrain status`.

A slow rank makes all others wait for it in the sum of the gradients, so that all steps take equally long. What tells
them apart is the time outside of it: for data, and in the forward pass.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hpctrain.rundir import publish
from hpctrain.train.heartbeat import Phase, Pulse

OWN = (Phase.DATA, Phase.FORWARD)
"""Phases in which a rank waits for no other."""


class RankSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """One rank over a window."""

    rank: int
    step: int
    """Optimizer steps done."""
    step_s: float
    """Mean seconds of a step, everything included."""
    own_s: dict[str, float]
    """Mean seconds of a step in each phase of its own work."""


class Speed:
    """Writes `attempts/N/ranks/HOST.json`.

    Args:
        path: the file.
        host: name of this node.
    """

    def __init__(self, path: Path, host: str) -> None:
        self._path, self._host = path, host
        self._before: dict[int, tuple[float, Pulse]] = {}

    def note(self, rank: int, pulse: Pulse) -> None:
        """Let the first window of a rank begin as soon as its first step, which is never like the others, is over."""
        if rank not in self._before and pulse.phase is not Phase.START and pulse.step > pulse.first:
            self._before[rank] = time.monotonic(), pulse

    def write(self, pulses: Sequence[tuple[int, Pulse]]) -> None:
        """Write what each rank did since the last call; ranks that finished no step are left out."""
        now, speeds = time.monotonic(), []
        for rank, pulse in pulses:
            began, before = self._before.get(rank, (now, pulse))
            steps = pulse.step - before.step
            if steps > 0:
                own = {phase.name.lower(): (pulse.seconds[phase] - before.seconds[phase]) / steps for phase in OWN}
                speeds.append(RankSpeed(rank=rank, step=pulse.step, step_s=(now - began) / steps, own_s=own))
                self._before[rank] = now, pulse
        if speeds:
            record = {"host": self._host, "time": time.time(), "ranks": speeds}
            with contextlib.suppress(OSError):  # a full disk stops the next save, which says so
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                publish(self._path, msgspec.json.encode(record))
