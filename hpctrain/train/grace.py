"""How long the ranks need to stop, measured while they train, and when they must begin so that the save is in time.

Slurm is asked once, at submission, for a signal some seconds before the time limit (`slurm.signal_s`); nothing can
change that afterwards, not even for a requeued job. So rank 0 also watches the clock: where stopping takes longer than
what was asked for, it tells the ranks by itself. What it measured is written down, and a later script asks for it.
"""

import contextlib
import sys
import time
from pathlib import Path

import msgspec
from torch import nn

from hpctrain.config.schema import Config
from hpctrain.config.texts import seconds as time_limit_s
from hpctrain.rundir import publish
from hpctrain.schedule import grace_s, signal_s
from hpctrain.world import time_left_s

_WRITES_BYTES_S = 100e6  # for a save that is still to come: a slow file system


class Grace:
    """What rank 0 knows of the time it takes to stop.

    Args:
        path: `attempts/N/timing.json`.
        config: with what is asked of Slurm.
        model: its size gives a guess while nothing was saved yet.
    """

    def __init__(self, path: Path, config: Config, model: nn.Module) -> None:
        self._path = path
        self._asked_s = signal_s(
            config.slurm.signal_s, None if config.slurm.time is None else time_limit_s(config.slurm.time), None
        )
        self._step_s = self._evaluation_s = 0.0
        self._save_s = 2 * sum(part.nbytes for part in model.parameters()) / _WRITES_BYTES_S
        self._warned = False
        self._left_s = time_left_s()
        self._began = time.monotonic()  # a wall clock may jump

    @property
    def seconds(self) -> int:
        """How long before the time limit the ranks must begin to stop."""
        return grace_s(self._step_s, self._save_s, self._evaluation_s)

    def stepped(self, seconds: float) -> None:
        """Take the mean seconds of a step over the last interval."""
        self._step_s = seconds

    def evaluated(self, seconds: float) -> None:
        """Take the seconds of an evaluation, in which nobody asks whether to stop."""
        self._evaluation_s = max(self._evaluation_s, seconds)

    def saved(self, seconds: float) -> None:
        """Take the seconds of a save; write down what is known."""
        self._save_s = seconds
        record = {
            "step_s": self._step_s,
            "save_s": seconds,
            "evaluation_s": self._evaluation_s,
            "grace_s": self.seconds,
        }
        with contextlib.suppress(OSError):  # a full disk has stopped the save before
            publish(self._path, msgspec.json.encode(record))
        if self._asked_s is not None and self.seconds > self._asked_s and not self._warned:
            self._warned = True
            print(
                f"hpctrain: to stop takes up to {self.seconds} s here (a step {self._step_s:.1f}, a save "
                f"{seconds:.1f}, an evaluation {self._evaluation_s:.1f}), and Slurm tells the ranks {self._asked_s} s "
                f"before the time limit; they watch the clock themselves; next time type slurm.signal_s={self.seconds}",
                file=sys.stderr,
            )

    def is_near(self) -> bool:
        """Say whether the time limit is so near that the ranks must stop; never in the first half of the time."""
        if self._left_s is None:
            return False
        return time.monotonic() - self._began >= self._left_s - min(self.seconds, self._left_s / 2)
