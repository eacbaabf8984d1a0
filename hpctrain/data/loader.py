"""Batches that are made ahead of time by workers, in the order in which they are wanted.

1. The consumer takes from the iterator of what is wanted, as far as there are free buffers, and cuts each batch into
   tasks of a few samples; the iterator runs on across epochs, so none of this knows where one ends.
2. Workers fill the rows of uint8 batches that are allocated once.
3. The consumer waits for the batch at the head, starts its copy to the device, and has the rest done there.

All but the filling happens in the consumer's thread, so there is no state to guard.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from hpctrain.data import workers
from hpctrain.data.batch import Buffer, Filler, Kind, Skipped, Task
from hpctrain.data.dataset import Wanted
from hpctrain.data.workers import Crew, Pace
from hpctrain.errors import DataError

BUFFERS = 3
_TASK_SAMPLES = 8  # enough to make a task's own cost vanish, few enough to spread a batch over many workers

Result = TypeVar("Result")


class Loader:
    """Fills batches by workers.

    Args:
        make: makes the filler of a worker from the buffers.
        kind: of the samples.
        count: number of samples of the part.
        device: where batches are wanted.
        workers: how many threads, `auto`: by measurement, see `workers.Pace`; `0`: none, the consumer does it all.
        shared: fillers are processes, which map the buffers.
    """

    def __init__(
        self,
        make: Callable[[list[Buffer]], Filler],
        kind: Kind,
        *,
        count: int,
        device: torch.device,
        workers: str = "auto",
        shared: bool = False,
    ) -> None:
        self._make, self._kind, self._device, self._workers, self._shared = make, kind, device, workers, shared
        self._tolerance = Tolerance(count)

    def stream(
        self, wanted: Iterable[Wanted], finish: Callable[[Wanted, Tensor, Tensor], Result]
    ) -> Generator[Result, None, None]:
        """Give what `finish` makes of each batch that is wanted.

        Args:
            wanted: is asked for up to `BUFFERS` batches ahead, by the thread that consumes.
            finish: gets a batch, its inputs `(B, ...)` and its labels `(B,)` on the device. They are overwritten
                later: what it returns must not be a view of them.

        Raises:
            DataError: a sample cannot be read, or too many cannot.
        """
        pinned = self._device.type == "cuda" and not self._shared
        ahead = 1 if self._workers == "0" else BUFFERS
        buffers = [Buffer(self._kind, pinned=pinned, shared=self._shared) for _ in range(ahead)]
        pace = Pace(workers.cpus()) if self._workers == "auto" else None
        crew = Crew(lambda: self._make(buffers), int(self._workers) if pace is None else pace.workers)
        try:
            line = _Line(iter(wanted), buffers, crew, self._device)
            last = time.perf_counter()
            while True:
                line.give_out()
                if not line.pending:
                    return
                asked = time.perf_counter()
                task = line.wait(self._tolerance)
                now = time.perf_counter()
                if pace is not None:
                    crew.resize(pace.note(now - asked, now - last))
                last = now
                result = finish(task.wanted, *line.take(task))
                line.give_out()
                yield result
        finally:
            crew.close()
            for buffer in buffers:
                buffer.close()


class _Line:
    """The batches under way, first come first served."""

    def __init__(self, wanted: Iterable[Wanted], buffers: list[Buffer], crew: Crew, device: torch.device) -> None:
        self._wanted, self._buffers, self._crew = iter(wanted), buffers, crew
        self._free = deque(range(len(buffers)))
        self._copied: dict[int, torch.cuda.Event] = {}  # per buffer: when its copy to the device has ended
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._begun = 0
        self._left: dict[int, int] = {}  # tasks of each batch that have not ended
        self._skipped: dict[int, list[Skipped]] = {}
        self._failed: dict[int, tuple[int, BaseException]] = {}
        self.pending: deque[Task] = deque()

    def give_out(self) -> None:
        """Start as many batches as there are free buffers."""
        while self._free:
            number = self._free[0]
            copied = self._copied.get(number)
            if copied is not None and not copied.query():  # type: ignore[no-untyped-call]
                if self.pending:
                    return  # there is something else to do than to wait for it
                copied.synchronize()
            wanted = next(self._wanted, None)
            if wanted is None:
                return
            self._free.popleft()
            whole = len(wanted.ids)
            inputs, labels = self._buffers[number].rows(whole)
            cuts = range(0, whole, _TASK_SAMPLES)
            self._left[self._begun] = len(cuts)
            tasks = [
                Task(self._begun, number, wanted, begin, min(begin + _TASK_SAMPLES, whole), inputs, labels,
                     self._crew.stopping)
                for begin in cuts
            ]  # fmt: skip
            self.pending.append(tasks[0])
            self._begun += 1
            for task in tasks:
                self._crew.give(task)

    def wait(self, tolerance: "Tolerance") -> Task:
        """Wait until the first batch is filled."""
        first = self.pending[0]
        while self._left[first.batch]:
            done = self._crew.next_done()
            batch = done.task.batch
            self._left[batch] -= 1
            self._skipped.setdefault(batch, []).extend(done.skipped)
            if done.error is not None:
                place = done.task.begin, done.error
                self._failed[batch] = min(self._failed.get(batch, place), place, key=lambda found: found[0])
        self.pending.popleft()
        del self._left[first.batch]
        tolerance.note(self._skipped.pop(first.batch, []))
        if first.batch in self._failed:
            raise self._failed[first.batch][1]
        return first

    def take(self, task: Task) -> tuple[Tensor, Tensor]:
        """Return a batch that is filled, on the device; its buffer is free as soon as it has been copied."""
        self._free.append(task.buffer)
        if self._side is None:
            return task.inputs, task.labels
        with torch.cuda.stream(self._side):
            inputs = task.inputs.to(self._device, non_blocking=True)
            labels = task.labels.to(self._device, non_blocking=True)
            self._copied[task.buffer] = copied = self._side.record_event()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for tensor in (inputs, labels):  # allocated for one stream, used on another
            tensor.record_stream(current)
        return inputs, labels


class Tolerance:
    """Counts the samples of a part that cannot be read, and says each of them once.

    Args:
        count: of the part's samples; a thousandth of them may be unreadable, and one in any case.
    """

    def __init__(self, count: int) -> None:
        self._count, self.allowed = count, max(count // 1000, 1)
        self._known: set[int] = set()

    def note(self, skipped: Iterable[Skipped]) -> None:
        """Take note of samples that were replaced.

        Raises:
            DataError: there are too many.
        """
        for sample, reason in sorted(skipped):
            if sample in self._known:
                continue
            self._known.add(sample)
            print(f"hpctrain: skipped sample {sample}: {reason}", flush=True)
            if len(self._known) > self.allowed:
                raise too_many(self.allowed, self._count, reason)


def read_or_next(sample: int, count: int, read: Callable[[int], None], *, skip: bool) -> list[Skipped]:
    """Read a sample; one that cannot be read is replaced by the next one by number that can.

    Args:
        sample: its number within the part.
        count: of the part's samples.
        read: reads one into its row.
        skip: else what cannot be read is an error.

    Raises:
        DataError: it cannot be read; with `skip`, nor can more than a thousandth of the part behind it.
    """
    skipped: list[Skipped] = []
    allowed = Tolerance(count).allowed
    while True:
        number = (sample + len(skipped)) % count
        try:
            read(number)
        except DataError as error:
            if not skip:
                raise
            skipped.append(Skipped(number, error.message))
            if len(skipped) > allowed or len(skipped) == count:
                raise too_many(allowed, count, error.message) from None
        else:
            return skipped


def too_many(allowed: int, count: int, reason: str) -> DataError:
    """Return the error of a part of which too many samples cannot be read."""
    return DataError(
        f"more than {allowed} of {count} samples cannot be read, the last one because: {reason}",
        "data.on_error=skip is for single files; mend or remove what the log lists as skipped",
    )
