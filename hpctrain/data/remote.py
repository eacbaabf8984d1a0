"""A worker that is a process: for code that holds Python's lock. Seen from here.

The process maps the buffers of the batches, so that nothing but numbers of samples travels. It is started anew, not
forked: this process has threads. It sees none of the job's signals, and ends with the thread that uses it.
"""

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

import msgspec

from hpctrain import errors
from hpctrain.data.batch import Buffer, Skipped, Task
from hpctrain.data.workers import blocked_signals
from hpctrain.errors import DataError, HpctrainError, JobError


class Request(msgspec.Struct, frozen=True, array_like=True):
    """Rows that are to be filled."""

    buffer: int
    begin: int
    ids: list[int]
    epoch: int


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """They are filled; or why not."""

    skipped: list[Skipped] = []
    error: tuple[str, str, str] | None = None
    """Class, message and hint."""


class Remote:
    """Fills rows by a process.

    Args:
        recipe: what `hpctrain.data.worker` makes its rows by, as JSON.
        buffers: of the batches.
    """

    def __init__(self, recipe: bytes, buffers: list[Buffer]) -> None:
        ours, theirs = socket.socketpair()
        fds = [buffer.fd for buffer in buffers]
        argv = [sys.executable, "-m", "hpctrain.data.worker", *map(str, (theirs.fileno(), *fds))]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(part or "." for part in sys.path)}
        with theirs, blocked_signals():
            self._process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), *fds))
        self._connection = Connection(ours.detach())
        self._recipe: bytes | None = recipe

    def fill(self, task: Task) -> list[Skipped]:
        """Fill the rows of a task, see `hpctrain.data.batch.Filler`."""
        ids = task.wanted.ids[task.begin : task.end].tolist()
        try:
            if self._recipe is not None:
                self._connection.send_bytes(self._recipe)
                self._recipe = None
            request = Request(task.buffer, task.begin, ids, task.wanted.epoch)
            self._connection.send_bytes(msgspec.msgpack.encode(request))
            answer = msgspec.msgpack.decode(self._connection.recv_bytes(), type=Answer)
        except (EOFError, OSError):
            if task.stopping.is_set():
                return []
            raise DataError(
                f"a process of the loader died with code {self._process.wait()} while it read the samples {ids}",
                "see the rank's log; data.loader=threads shows more, and uses less memory",
            ) from None
        if answer.error is not None:
            kind, message, hint = answer.error
            known = getattr(errors, kind, JobError)
            raise (known if issubclass(known, HpctrainError) and kind != "ConfigError" else JobError)(message, hint)
        return answer.skipped

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
