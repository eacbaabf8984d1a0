"""Ends a rank that waits for the others longer than it should, where the library that waits cannot be told to give up."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Patience:
    """Watches one thread's waits from another one.

    The rank kills itself: its main thread sits in native code, and what happened is the loss of a peer, which the
    launcher answers as it answers any rank that was killed.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what is done inside as one wait."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(self._timeout_s / 4, 5.0))
            since = self._since
            if since is not None and time.monotonic() - since > self._timeout_s:
                print(
                    f"hpctrain: no answer from the other ranks for {self._timeout_s:g} s (dist.timeout); one of them "
                    "hangs, or its node is gone",
                    file=sys.stderr,
                    flush=True,
                )
                os.kill(os.getpid(), signal.SIGKILL)
