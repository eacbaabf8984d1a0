"""Saves beside the training: the loop waits for the copy of the state to host memory, a thread does the rest.

One save is in flight; the next one waits for it. What goes wrong in the thread is raised at the next step boundary. A
crash of the process loses the save that is in flight, which nobody has been told of, and never a published one.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from hpctrain.data.workers import blocked_signals
from hpctrain.dist.comm import Step
from hpctrain.train.average import Average
from hpctrain.train.checkpoint import Checkpoints
from hpctrain.train.leave import SAVING
from hpctrain.train.snapshot import Buffers


class Saver:
    """The saves of one attempt, on rank 0.

    Args:
        checkpoints: where they go; its fence is up.
        buffers: what the state is copied to.
        background: write in a thread; else each save is done when `save` returns.
        on_saved: gets the seconds from the wish to save to a verified checkpoint, in the thread that trains.
    """

    def __init__(
        self, checkpoints: Checkpoints, buffers: Buffers, *, background: bool, on_saved: Callable[[float], None]
    ) -> None:
        self._checkpoints, self._buffers, self._background = checkpoints, buffers, background
        self._on_saved = on_saved
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._report, self._seconds = "", 0.0

    def save(
        self,
        done: int,
        model: nn.Module,
        step: Step,
        average: Average | None,
        rng: dict[str, Tensor],
        *,
        evaluated: bool,
        score: float | None = None,
        score_name: Literal["accuracy", "error"] = "accuracy",
        losses: Sequence[tuple[int, float | None]] = (),
    ) -> None:
        """Take the state after `done` steps, and see that it gets published.

        Raises:
            CheckpointError: the save before, or in the foreground this one, failed.
        """
        began = time.perf_counter()
        self.wait()
        waited_s = time.perf_counter() - began
        snapshot = self._buffers.take(done, model, step, average, rng)
        copied_s = time.perf_counter() - began - waited_s
        publish = partial(self._checkpoints.publish, snapshot, evaluated=evaluated, score=score, score_name=score_name,
                          losses=tuple(losses))  # fmt: skip
        size = sum(map(len, snapshot.files.values()))
        note = f"saved       step {done}  {size / 2**20:,.1f} MiB  waited {waited_s:.3f} s  copied {copied_s:.3f} s"
        self._thread = threading.Thread(target=self._write, args=(publish, began, note), name=SAVING, daemon=True)
        with blocked_signals():  # a handler of ours runs in the main thread, which must be the one that wakes up
            self._thread.start()
        if not self._background:
            self.wait()

    def poll(self) -> None:
        """Say that a save has ended, if one has; costs nothing that can be measured.

        Raises:
            CheckpointError: it failed.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in flight, if there is one.

        Raises:
            CheckpointError: it failed.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        print(self._report, flush=True)
        self._on_saved(self._seconds)

    def _write(self, publish: Callable[[], None], began: float, note: str) -> None:
        started = time.perf_counter()
        try:
            publish()
        except Exception as error:  # noqa: BLE001 - it is raised where the loop next looks
            self._error = error
            return
        ended = time.perf_counter()
        self._report, self._seconds = f"{note}  written in {ended - started:.3f} s", ended - began
