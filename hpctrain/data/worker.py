"""`python -m hpctrain.data.worker SOCKET BUFFER...`: a worker of the loader that is a process, see `remote`."""

import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection

import msgspec
import torch
from torch import Tensor

from hpctrain.data.batch import Kind, Task, mapped, views
from hpctrain.data.dataset import Wanted
from hpctrain.data.remote import Answer, Request
from hpctrain.data.user import Recipe, Rows
from hpctrain.errors import HpctrainError
from hpctrain.processes import tie_to_parent


def main(fds: list[int]) -> None:
    """Answer requests until there is nobody who asks."""
    tie_to_parent()()
    torch.set_num_threads(1)
    connection = Connection(fds[0])
    buffers = [_Mapped(fd) for fd in fds[1:]]
    rows: Rows | None = None
    try:
        recipe = msgspec.json.decode(connection.recv_bytes(), type=Recipe)
        while True:
            request = msgspec.msgpack.decode(connection.recv_bytes(), type=Request)
            try:
                if rows is None:
                    rows = Rows(recipe)
                answer = Answer(rows.fill(_task(request, buffers, recipe.kind)))
            except HpctrainError as error:
                answer = Answer(error=(type(error).__name__, error.message, error.hint))
            except Exception:  # noqa: BLE001 - it is raised where the batch is wanted
                answer = Answer(error=("JobError", f"a process of the loader failed\n{traceback.format_exc()}", ""))
            connection.send_bytes(msgspec.msgpack.encode(answer))
    except (EOFError, OSError):
        return


class _Mapped:
    """A buffer of the process that asks, mapped again where it has grown."""

    def __init__(self, fd: int) -> None:
        self._fd, self._bytes = fd, -1

    def views(self, kind: Kind) -> tuple[Tensor, Tensor]:
        size = os.fstat(self._fd).st_size
        if size != self._bytes:
            self._views, self._bytes = views(mapped(self._fd), kind), size
        return self._views


def _task(request: Request, buffers: list[_Mapped], kind: Kind) -> Task:
    end = request.begin + len(request.ids)
    inputs, labels = (part[request.begin : end] for part in buffers[request.buffer].views(kind))
    wanted = Wanted(torch.tensor(request.ids), request.epoch)
    return Task(0, request.buffer, wanted, 0, len(request.ids), inputs, labels, threading.Event())


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
