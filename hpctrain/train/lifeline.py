"""How a rank comes under the watchdog of its node.

1. The first rank of a node binds a socket before the world proof, so that it is there when the proof is over.
2. After it, that rank starts the watchdog, which inherits the socket; every rank connects and hands over two memory
   files: its heartbeat, and the one into which `faulthandler` writes its stacks when it gets SIGQUIT.

The socket has an abstract name, made from the secret of the attempt: no file, and no other job, user or attempt can
meet it. Both ends check the user of the other.
"""

import faulthandler
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys

import msgspec

from hpctrain.config.schema import Config
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train.heartbeat import Heart
from hpctrain.train.stop import CAUSES
from hpctrain.world import LAUNCHER_NAMES, World

DUMP = signal.SIGQUIT
"""Makes a rank write its Python stacks. Not USR1 (NCCL), not USR2, TERM or INT (told to stop)."""


class Hello(msgspec.Struct, frozen=True):
    """What a rank says when it connects; its process id comes from the kernel."""

    rank: int


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a watchdog is told when it is started."""

    host: str
    parent: int
    """Process id of that rank."""
    ranks: int
    """Of the run, over all nodes."""
    hang_s: float
    """Without a beat for so long a rank hangs."""
    long_s: float
    """The same for the start, the first step and a save, which may take longer and do not beat."""


class Lifeline:
    """One rank's way to the watchdog of its node. A watchdog that cannot be had costs a line in the log, not the run.

    Args:
        run: the run.
        attempt: its number.
        config: with `dist.hang` greater than 0.
        plan: the plan.
        world: this process.
    """

    def __init__(self, run: RunDir, attempt: int, config: Config, plan: Plan, world: World) -> None:
        self._run, self._world = run, world
        self._settings = Settings(
            host=world.host,
            parent=os.getpid(),
            ranks=plan.ranks,
            hang_s=config.dist.hang,
            long_s=max(config.dist.hang, config.dist.timeout),
        )
        secret = run.secret(attempt).read_bytes()
        name = hashlib.blake2b(b"watchdog " + world.host.encode(), key=secret[:64], digest_size=16).hexdigest()
        self._address = f"\0hpctrain-{name}"
        self._listener: socket.socket | None = None
        self._line: socket.socket | None = None
        if world.local_rank == 0:
            try:
                self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._listener.bind(self._address)
                self._listener.listen(world.local_size)
            except OSError as error:
                self._listener = None
                _say_without(error)

    def begin(self) -> Heart:
        """Start the watchdog if that is for this rank to do, and connect; every rank has made its `Lifeline` by now."""
        heart = Heart()
        faulthandler.enable()  # a crash in native code shows where
        try:
            if self._listener is not None:
                self._start(self._listener)
                self._listener.close()
            self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._line.connect(self._address)
            if peer(self._line)[1] != os.getuid():
                raise PermissionError("another user answers there")
            stacks = os.memfd_create("hpctrain-stacks")
            faulthandler.register(DUMP, file=stacks, all_threads=True, chain=False)
            socket.send_fds(self._line, [msgspec.json.encode(Hello(self._world.rank))], [heart.fd, stacks])
        except OSError as error:
            _say_without(error)
        return heart

    def _start(self, listener: socket.socket) -> None:
        argv = [sys.executable, "-m", "hpctrain.train.watchdog", str(self._run.path), str(listener.fileno())]
        # It must outlive what tells the ranks to stop: a mask is inherited and holds from its first moment.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, CAUSES)
        try:
            subprocess.Popen(
                [*argv, msgspec.json.encode(self._settings).decode()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name not in LAUNCHER_NAMES},
                pass_fds=[listener.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def peer(line: socket.socket) -> tuple[int, int]:
    """Return process id and user id of the other end, as the kernel knows them."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def _say_without(error: OSError) -> None:
    print(f"hpctrain: no watchdog looks after this rank: {error}", file=sys.stderr)
