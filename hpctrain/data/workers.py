"""The threads that fill batches: how they are started, and how many there are."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple

import torch

from hpctrain.data.batch import Filler, Skipped, Task
from hpctrain.errors import JobError

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}
_WINDOW_S = 0.5
_WINDOW_BATCHES = 4
_WORTH_WAITING = 0.05  # part of the time that training waits for batches
_WORTH_GROWING = 1.03  # batches come faster by this factor, or more workers are not worth it


class Done(NamedTuple):
    """A task that has ended."""

    task: Task
    skipped: list[Skipped]
    error: BaseException | None


class Crew:
    """Threads that take tasks in turn.

    Args:
        make: makes the filler of one thread; called in it.
        count: threads to begin with; with 0 tasks are done where they are given.
    """

    def __init__(self, make: Callable[[], Filler], count: int) -> None:
        self._make = make
        self.stopping = threading.Event()
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._done: SimpleQueue[Done | BaseException] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._fillers: list[Filler] = []
        self._lock = threading.Lock()
        self._own = make() if count == 0 else None
        self._count = 0
        self.resize(count)

    def resize(self, count: int) -> None:
        """Start threads, or let some end once they have done what was given before."""
        for _ in range(count, self._count):
            self._tasks.put(None)
        if count > self._count:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads += [start(self._work) for _ in range(self._count, count)]
        self._count = count

    def give(self, task: Task) -> None:
        """Hand a task out."""
        own = self._own
        if own is None:
            self._tasks.put(task)
        else:
            self._do(task, lambda: own)

    def next_done(self) -> Done:
        """Wait for the next task to end.

        Raises:
            JobError: a thread has ended that should not, and its task with it.
        """
        done = self._done.get()
        if isinstance(done, BaseException):
            raise JobError(f"a thread that makes batches ended: {type(done).__name__}: {done}".rstrip(": ")) from done
        return done

    def close(self) -> None:
        """End all threads after the sample at which they are, and wait for that."""
        self.stopping.set()
        with self._lock:
            fillers = list(self._fillers)
        for filler in fillers:
            filler.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        if self._own is not None:
            self._own.close()

    def _work(self) -> None:
        try:
            self._take_tasks()
        except BaseException as error:  # noqa: BLE001 - else whoever waits for its task would wait for ever
            self._done.put(error)

    def _take_tasks(self) -> None:
        filler: Filler | None = None

        def mine() -> Filler:
            nonlocal filler
            if filler is None:
                filler = self._make()
                with self._lock:
                    self._fillers.append(filler)
            return filler

        while (task := self._tasks.get()) is not None and not self.stopping.is_set():
            self._do(task, mine)
        if filler is not None:
            filler.close()

    def _do(self, task: Task, filler: Callable[[], Filler]) -> None:
        try:
            done = Done(task, filler().fill(task), None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the batch is wanted
            done = Done(task, [], error)
        self._done.put(done)


def start(work: Callable[[], None]) -> threading.Thread:
    """Start a thread that gets no signals meant for the process, and whose torch operations use it alone."""
    ready = threading.Event()

    def run() -> None:
        torch.get_num_threads()  # takes the default now, which else it would do at the first operation
        torch.set_num_threads(1)  # of this thread, and the default of those to come, which is undone below
        ready.set()
        work()

    threads = torch.get_num_threads()
    thread = threading.Thread(target=run, name="hpctrain loader", daemon=True)
    with blocked_signals():
        thread.start()
    ready.wait()
    torch.set_num_threads(threads)
    return thread


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Let threads and processes that are started in here inherit that no signal reaches them, crashes excepted."""
    before = block_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def block_signals() -> set[signal.Signals]:
    """Let no signal reach this thread, crashes excepted: they are for the main thread; return the mask before."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _CRASHES)  # type: ignore[return-value]


def cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


class Pace:
    """How many workers there should be, by measurement: one, and twice as many as long as that helps.

    Over windows of at least half a second and four batches: if training waited for batches for more than 5 % of the
    time, workers are doubled. If after that batches do not come faster by 3 % (because the disk is the limit, or
    workers take the CPUs from training), the number before is kept for good.

    Args:
        most: never more than this.
    """

    def __init__(self, most: int) -> None:
        self.workers = 1
        self._most = most
        self._before: tuple[int, float] | None = None  # workers and batches a second before the last growth
        self._settled = most == 1
        self._skip = False
        self._batches, self._waited, self._passed = 0, 0.0, 0.0

    def note(self, waited_s: float, passed_s: float) -> int:
        """Take the times of one batch: how long it was waited for, and since the one before; return the workers."""
        if self._settled:
            return self.workers
        self._batches, self._waited, self._passed = self._batches + 1, self._waited + waited_s, self._passed + passed_s
        if self._batches < _WINDOW_BATCHES or self._passed < _WINDOW_S:
            return self.workers
        rate, waiting = self._batches / self._passed, self._waited / self._passed
        self._batches, self._waited, self._passed = 0, 0.0, 0.0
        if self._skip:  # of a window in which workers were added, a part was made by fewer
            self._skip = False
        elif self._before is not None and rate < _WORTH_GROWING * self._before[1]:
            self.workers, self._settled = self._before[0], True
        elif waiting > _WORTH_WAITING and self.workers < self._most:
            self._before, self._skip = (self.workers, rate), True
            self.workers = min(2 * self.workers, self._most)
        else:
            self._before = None
        return self.workers
