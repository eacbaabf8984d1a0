"""Where Horovod's ranks meet when they agree by Gloo, and the variables that tell them; no torch.

Horovod's own launcher serves an HTTP store for that. Here rank 0 serves it on the socket that was bound before the
world proof, so its port is neither guessed nor raced for, and it listens on the job's interface alone.
"""

import os
import socket
from socketserver import BaseServer
from threading import Thread
from typing import Any

from hpctrain.config.schema import Horovod as Settings
from hpctrain.plan import Plan
from hpctrain.world import World

_WARN_S = 60.0  # Horovod's default


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


def serve(listen_fd: int, *, nodes: int, ranks_per_node: int) -> BaseServer:
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

    server = Server(listener.getsockname(), Handler, False)
    ranks, per_node = nodes * ranks_per_node, ranks_per_node
    server.init([
        SlotInfo(_node(rank // per_node), rank, rank % per_node, rank // per_node, ranks, per_node, nodes)
        for rank in range(ranks)
    ])
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def _node(number: int) -> str:
    """Name a node for Horovod, which only compares these names."""
    return f"node{number}"
