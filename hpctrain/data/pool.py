"""Worker processes that die with whoever started them, and at once when the user interrupts."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Literal

from hpctrain.errors import DataError
from hpctrain.processes import tie_to_parent


@contextmanager
def pool(processes: int, method: Literal["fork", "spawn"]) -> Iterator[ProcessPoolExecutor]:
    """Start processes; `fork` only where this one has no threads.

    Raises:
        DataError: one of them was killed.
    """
    executor = ProcessPoolExecutor(
        processes, multiprocessing.get_context(method), initializer=_begin, initargs=(os.getpid(),)
    )
    try:
        yield executor
    except BrokenProcessPool:
        hint = "if memory was short, try fewer: --workers 1"
        raise DataError("a worker process was killed, or could not be started", hint) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from each of them
    tie_to_parent()()
    if os.getppid() != parent:  # it ended before that was asked for
        os._exit(1)
