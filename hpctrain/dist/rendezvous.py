"""Where Horovod's ranks meet when they agree by Gloo, and the variables that tell them; no torch.

Horovod's own launcher serves an HTTP store for that. Here rank 0 serves it on the socket that was bound before the
world proof, so its port is neither guessed nor raced for, and it listens on the job's interface alone.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import Any

from hpctrain.config.schema import Horovod as Settings
from hpctrain.dist import interface
from hpctrain.errors import RendezvousError, WorldError
from hpctrain.plan import Plan
from hpctrain.world import World

_WARN_S = 60.0  # Horovod's default
_REMIND_S = 5.0
_HERE = "hpctrain"  # below it are our own addresses, beside those of Horovod


def environment(
    plan: Plan, world: World, settings: Settings, *, store: tuple[str, int], timeout_s: float
) -> dict[str, str]:
    """Return the variables from which `hvd.init()` learns how to find the others; the interface is set already.

    Args:
        plan: names the backend, gloo or mpi.
        world: this process.
        settings: of the config.
        store: host and port at which rank 0 serves the meeting.
        timeout_s: how long ranks wait for each other.
    """
    warn_s = max(min(_WARN_S, timeout_s / 2), 1)  # must be less than the other, and 0 would mean always
    given = {
        "HOROVOD_CONTROLLER": plan.backend,
        "HOROVOD_CPU_OPERATIONS": plan.backend,
        "HOROVOD_GLOO_TIMEOUT_SECONDS": f"{timeout_s:.0f}",
        "HOROVOD_STALL_CHECK_TIME_SECONDS": f"{warn_s:.0f}",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": f"{timeout_s:.0f}",
    }
    if settings.fusion_mb is not None:
        given["HOROVOD_FUSION_THRESHOLD"] = str(settings.fusion_mb << 20)
    if settings.cycle_ms is not None:
        given["HOROVOD_CYCLE_TIME"] = f"{settings.cycle_ms:g}"
    if plan.backend == "mpi" and world.local_size > len(os.sched_getaffinity(0)):
        given["OMPI_MCA_mpi_yield_when_idle"] = "1"  # a rank that waits burns the core that another one needs
    if plan.backend == "gloo":
        host, port = store
        given |= {
            "HOROVOD_HOSTNAME": _node(world.node),
            "HOROVOD_RANK": str(world.rank),
            "HOROVOD_SIZE": str(world.size),
            "HOROVOD_LOCAL_RANK": str(world.local_rank),
            "HOROVOD_LOCAL_SIZE": str(world.local_size),
            "HOROVOD_CROSS_RANK": str(world.node),
            "HOROVOD_CROSS_SIZE": str(plan.nodes),
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": host,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        }
    return given


@contextmanager
def meeting(
    plan: Plan, world: World, *, store: tuple[str, int], listen_fd: int | None, timeout_s: float
) -> Iterator[None]:
    """Serve the meeting on rank 0, and begin when all ranks are about to join it.

    Inside of `hvd.init()` a rank that has gone, or an interface that is not there, ends the others by `std::terminate`.
    So whatever can fail before is over on all ranks by then.

    Args:
        plan: says how many ranks there are.
        world: this process.
        store: host and port at which rank 0 listens.
        listen_fd: on rank 0 the descriptor of that socket; taken over here.
        timeout_s: how long ranks wait for each other.

    Raises:
        WorldError: a rank did not come, rank 0 has gone, or there is no such interface.
    """
    arrivals = _Arrivals()
    server = None
    if listen_fd is not None:
        server = serve(listen_fd, nodes=plan.nodes, ranks_per_node=plan.ranks_per_node, arrivals=arrivals)
    try:
        named = os.environ.get("HOROVOD_GLOO_IFACE")
        if named is not None and named not in (known := interface.addresses()):
            raise WorldError(
                f"HOROVOD_GLOO_IFACE names {named!r}, and {world.host} has no such interface with an IPv4 address",
                f"unset it where the site or env.setup sets it, or choose one of {', '.join(known)} by "
                "dist.interface=NAME",
            )
        if server is not None:
            arrivals.await_all(plan.ranks, timeout_s)
        else:
            _arrive(store, world.rank, timeout_s + _REMIND_S)  # rank 0 gives up first, and says why
        yield
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


class _Arrivals:
    """The ranks that have asked rank 0 whether all are here, each on a thread of its own, and the answer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asking: set[int] = set()
        self._answer: str | None = None

    @contextmanager
    def ask(self, rank: int) -> Iterator[str]:
        """Wait for the answer, and tell inside what it is: what is wrong, or nothing."""
        with self._changed:
            self._asking.add(rank)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._answer is not None)
        try:
            yield self._answer or ""
        finally:
            with self._changed:
                self._asking.discard(rank)
                self._changed.notify_all()

    def await_all(self, ranks: int, timeout_s: float) -> None:
        """Wait until ranks 1 and up ask, and answer them."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while missing := [rank for rank in range(1, ranks) if rank not in self._asking]:
                named = ", ".join(f"rank {rank}" for rank in missing[:8]) + (", ..." if len(missing) > 8 else "")
                left = deadline - time.monotonic()
                if left <= 0:
                    self._answer = f"after {timeout_s:g} s {named} had not loaded Horovod, after the world was proven"
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: not self._asking, 1)
                    hint = f"see attempts/N/logs/rank_{missing[0]}.err"
                    raise RendezvousError(self._answer, hint, rank=missing[0])
                if not self._changed.wait(min(left, _REMIND_S)):
                    print(f"hpctrain: waiting for {named} to load Horovod", file=sys.stderr, flush=True)
            self._answer = ""
            self._changed.notify_all()


def _arrive(store: tuple[str, int], rank: int, timeout_s: float) -> None:
    """Ask rank 0 whether all are here; it answers when they are."""
    import http.client  # here, because every rank imports this module, and few meet so

    connection = http.client.HTTPConnection(*store, timeout=timeout_s)
    try:
        connection.request("GET", f"/{_HERE}/{rank}")
        answer = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise RendezvousError(
            f"rank 0 at {store[0]}:{store[1]} went away before Horovod's world was complete: {error}",
            "see attempts/N/logs/rank_0.err",
            rank=0,
        ) from None
    finally:
        connection.close()
    if answer:
        raise RendezvousError(answer)


def serve(listen_fd: int, *, nodes: int, ranks_per_node: int, arrivals: _Arrivals | None = None) -> BaseServer:
    """Serve the meeting on a socket that listens already, in a thread, until `shutdown()` and `server_close()`."""
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    listener = socket.socket(fileno=listen_fd)

    class Server(RendezvousHTTPServer):  # type: ignore[misc] # Horovod has no types
        """Horovod's, on a given socket."""

        daemon_threads = True

        def server_bind(self) -> None:
            self.socket.close()
            self.socket: socket.socket = listener
            self.server_address = listener.getsockname()

        def server_activate(self) -> None:
            """It listens already."""

    class Handler(RendezvousHandler):  # type: ignore[misc]
        """Horovod's, which inherits a way to ask for files of this directory."""

        def do_HEAD(self) -> None:  # noqa: N802 - the name is http.server's
            self.send_error(404)

        def do_GET(self) -> None:  # noqa: N802
            scope, _, rank = self.path.lstrip("/").partition("/")
            if arrivals is None or scope != _HERE or not rank.isdigit():
                super().do_GET()
                return
            with arrivals.ask(int(rank)) as answer:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer.encode())))
                self.end_headers()
                self.wfile.write(answer.encode())

    server = Server(listener.getsockname(), Handler, False)
    ranks, per_node = nodes * ranks_per_node, ranks_per_node
    server.init([
        SlotInfo(_node(rank // per_node), rank, rank % per_node, rank // per_node, ranks, per_node, nodes)
        for rank in range(ranks)
    ])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def _node(number: int) -> str:
    """Name a node for Horovod, which only compares these names."""
    return f"node{number}"
