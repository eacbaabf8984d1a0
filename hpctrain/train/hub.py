"""What mpirun and horovodrun take for ssh: they run on the first node, and what they want on others is started there.

Compute nodes often forbid ssh, and an `srun` inside a step waits for that step's own CPUs and dies of the signals that
are meant for the ranks. But each node has a relay anyway (`hpctrain.train.relay`), a task of the job's one step. So:

1. The first node's relay listens; the others connect and wait for orders (`Hub`, `obey`).
2. mpirun calls `RUN/attempts/N/agent HOST COMMAND`, which is `hpctrain.train.agent`; it connects, too, and its order is
   passed on to the relay of that host.
3. That relay starts the command, in the environment that the batch script has made, and reports how it ended.

All connections prove that they know the attempt's secret (HMAC, multiprocessing.connection), then carry JSON.
"""

import itertools
import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

import msgspec

from hpctrain.errors import RendezvousError
from hpctrain.processes import kill_tree, tie_to_parent
from hpctrain.rundir import RunDir, publish

DEAF_TO = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Signals for the ranks, of which a launcher or its daemon would die."""

_SHELLS = {"sh", "bash", "dash", "ksh", "zsh", "csh", "tcsh"}
_LARGEST = 1 << 24
_HANDSHAKE_S = 10


def start(argv: Sequence[str], env: Mapping[str, str], *, stdout: int | None = None) -> "subprocess.Popen[bytes]":
    """Start a launcher, its daemon or a rank of horovodrun, deaf to the signals that are meant for the ranks.

    They are blocked, because ignoring them would not do: mpirun installs handlers of its own. Open MPI's daemons lift
    that for the ranks, and under the others a rank does it itself (`hpctrain.train.__main__`).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)
    try:
        return subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=None if stdout is None else subprocess.STDOUT,
            preexec_fn=tie_to_parent(),  # noqa: PLW1509 - one system call, and all for it is loaded
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Commands:
    """The commands that run on this node, by their number."""

    def __init__(self, env: Mapping[str, str], report: Callable[[int, int], None]) -> None:
        self._env, self._report = env, report
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int, command: str) -> None:
        """Start one as a login by ssh would, without a login."""
        shell = pwd.getpwuid(os.getuid()).pw_shell  # whose language mpirun has looked up, too
        shell = shell if Path(shell).name in _SHELLS else "/bin/sh"
        running = self._running[number] = start([shell, "-c", command], self._env)
        threading.Thread(target=self._await, args=(number, running), daemon=True).start()

    def _await(self, number: int, running: "subprocess.Popen[bytes]") -> None:
        code = running.wait()
        self._report(number, code if code >= 0 else 128 - code)

    def end(self, number: int) -> None:
        """End one whose caller has gone, with all that it has started."""
        if number in self._running:
            kill_tree(self._running[number].pid)


class Hub:
    """The first node's end."""

    def __init__(self, run: RunDir, attempt: int, hosts: Sequence[str], env: Mapping[str, str]) -> None:
        self._run, self._attempt, self._hosts = run, attempt, hosts
        self._secret = run.secret(attempt).read_bytes()
        self._numbers = itertools.count(1)
        self._commands = _Commands(env, self._ended)
        self._changed = threading.Condition()
        self._nodes: dict[str, Connection] = {}
        self.addresses: set[str] = set()
        """Where the other nodes' relays came from."""
        self._waiting: dict[int, Connection] = {}
        self._door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def open(self, address: str) -> None:
        """Listen at an address of this node, and publish it."""
        self._door.bind((address, 0))
        self._door.listen(max(len(self._hosts), 128))
        threading.Thread(target=self._let_in, daemon=True).start()
        publish(self._run.agents(self._attempt), f"{address}:{self._door.getsockname()[1]}".encode())
        agent = self._run.agent(self._attempt)
        # Open MPI lifts what is blocked for its ssh, which then would die of a signal that Slurm sends to all processes
        script = f"""#!/bin/sh\ntrap '' INT TERM USR2\nexec "{sys.executable}" -m hpctrain.train.agent "$@"\n"""
        publish(agent, script.encode())
        agent.chmod(0o700)

    def await_nodes(self, timeout_s: float) -> None:
        """Wait for the relays of all other nodes.

        Raises:
            RendezvousError: some did not come.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while missing := [host for host in self._hosts[1:] if host not in self._nodes]:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise RendezvousError(
                        f"after {timeout_s:g} s nothing has started on {', '.join(missing[:8])}",
                        "see launch.log; does every node see the run directory, and can it reach this one?",
                        host=missing[0],
                    )

    def close(self) -> None:
        """Let the other relays go: all is over."""
        for node in self._nodes.values():
            send(node, {"bye": True})

    def _let_in(self) -> None:
        while True:
            peer, (address, _) = self._door.accept()
            threading.Thread(target=self._receive, args=(peer, address), daemon=True).start()

    def _receive(self, peer: socket.socket, address: str) -> None:
        # a peer that connects and then says nothing must not stay for ever
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _HANDSHAKE_S, 0))
        connection = Connection(peer.detach())
        try:
            deliver_challenge(connection, self._secret)
            answer_challenge(connection, self._secret)
            hello = receive(connection)
        except (AuthenticationError, EOFError, OSError, msgspec.DecodeError):
            print(f"hpctrain: turned away a stranger from {address}", file=sys.stderr, flush=True)
            connection.close()
            return
        with socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
        if "node" in hello:
            self.addresses.add(address)
            self._serve_node(connection, hello["node"])
        else:
            self._serve_agent(connection, hello["host"], hello["command"])

    def _serve_node(self, connection: Connection, host: str) -> None:
        with self._changed:
            self._nodes[host] = connection
            self._changed.notify()
        try:
            while True:
                report = receive(connection)
                self._ended(report["number"], report["code"])
        except (EOFError, OSError):  # the node is lost: srun tells, and ends the step
            return

    def _serve_agent(self, connection: Connection, host: str, command: str) -> None:
        number = next(self._numbers)
        self._waiting[number] = connection
        node = self._nodes.get(self._named(host))
        if node is not None:
            send(node, {"number": number, "command": command})
        elif self._named(host) == self._hosts[0]:
            self._commands.start(number, command)
        else:
            print(f"hpctrain: {host} is none of the job's nodes {' '.join(self._hosts)}", file=sys.stderr, flush=True)
            self._ended(number, 255)
        try:
            connection.poll(None)  # an agent says no more: readable means that it is gone, or has been answered
        except OSError:
            return
        if self._waiting.pop(number, None) is None:
            return
        if node is None:
            self._commands.end(number)
        else:
            send(node, {"number": number, "end": True})

    def _named(self, host: str) -> str:
        """Return Slurm's name of a node; a launcher may have cut or lengthened it."""
        short = host.partition(".")[0]
        return next((name for name in self._hosts if host == name), None) or next(
            (name for name in self._hosts if name.partition(".")[0] == short), host
        )

    def _ended(self, number: int, code: int) -> None:
        agent = self._waiting.pop(number, None)
        if agent is not None:
            send(agent, {"code": code})


def obey(
    run: RunDir, attempt: int, host: str, env: Mapping[str, str], *, timeout_s: float, look: Callable[[], None]
) -> int:
    """Be another node's relay until the first one says that all is over; return the exit code.

    Args:
        run: the run directory.
        attempt: number of this attempt.
        host: Slurm's name of this node.
        env: the environment of the commands.
        timeout_s: how long to wait for the first node's relay.
        look: called some times a second.
    """
    connection = connect(run, attempt, timeout_s)
    lock = threading.Lock()

    def report(number: int, code: int) -> None:
        with lock:
            send(connection, {"number": number, "code": code})

    commands = _Commands(env, report)
    send(connection, {"node": host})
    try:
        while True:
            if connection.poll(0.05):
                order = receive(connection)
                if "bye" in order:
                    return 0
                if "end" in order:
                    commands.end(order["number"])
                else:
                    commands.start(order["number"], order["command"])
            look()
    except (EOFError, OSError):
        return 1


def connect(run: RunDir, attempt: int, timeout_s: float) -> Connection:
    """Connect with the first node's relay; both prove that they know the attempt's secret.

    Raises:
        RendezvousError: it did not publish its address in time, or does not answer there.
    """
    path, deadline = run.agents(attempt), time.monotonic() + timeout_s
    while True:
        os.listdir(path.parent)  # noqa: PTH208 - makes a network file system look again instead of remembering a miss
        try:
            address, _, port = path.read_text().rpartition(":")
            return Client((address, int(port)), authkey=run.secret(attempt).read_bytes())
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise RendezvousError(
                    f"after {timeout_s:g} s the first node has not published where the relays meet, in {path}"
                ) from None
            time.sleep(0.02)
        except (OSError, EOFError, AuthenticationError) as error:
            raise RendezvousError(f"no connection to the first node's relay at {address}:{port}: {error}") from None


def send(connection: Connection, message: Mapping[str, Any]) -> None:
    """Send a message; one to a peer that is gone is lost."""
    try:
        connection.send_bytes(msgspec.json.encode(message))
    except OSError:  # the peer is gone, which whoever reads from it sees
        return


def receive(connection: Connection) -> dict[str, Any]:
    """Wait for a message.

    Raises:
        EOFError: the peer is gone.
    """
    return msgspec.json.decode(connection.recv_bytes(_LARGEST), type=dict[str, Any])
