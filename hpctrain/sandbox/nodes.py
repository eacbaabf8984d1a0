"""The fake hosts. Each is a process tree in namespaces of its own, below a process 1 that is forked from the holder.

The holder and a node's process 1 speak over a socket pair: a verb of one byte there, `+` or `-` back.
"""

import os
import select
import signal
import socket
import subprocess
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hpctrain.errors import ClusterError, UsageError
from hpctrain.sandbox import linux, network
from hpctrain.sandbox.root import Root
from hpctrain.sandbox.spec import Spec, tool

VERBS = ("crash", "cut", "join", "up", "kill-slurmd", "start-slurmd")

_BOOT, _START, _KILL = b"b", b"s", b"k"
_DONE, _NOT_SO = b"+", b"-"
_ANSWER_S = 10
_TMP = Path("/tmp")  # noqa: S108 (a mount point)
_SHM = Path("/dev/shm")  # noqa: S108 (a mount point)


class Node:
    """One fake host, as the holder sees it."""

    def __init__(self, root: Root, spec: Spec, number: int) -> None:
        self.root = root
        self.spec = spec
        self.number = number
        self.name = spec.node_names[number - 1]
        self.init_pid = 0
        self.boots = 0
        self._channel: socket.socket | None = None

    @property
    def cable(self) -> str:
        """Name of the bridge's end of its cable; new at each boot, as the kernel may be slow to forget the last."""
        return f"v{self.number}.{self.boots}"

    def do(self, verb: str) -> None:
        """Break or mend this node.

        Raises:
            UsageError: the node is not in a state in which that can be done.
        """
        if verb == "up":
            if self.init_pid:
                raise UsageError(f"{self.name} is up", f"hpctrain sandbox node crash {self.name}")
            self._report_reboot()
            boot([self])
        elif not self.init_pid:
            raise UsageError(f"{self.name} has crashed", f"hpctrain sandbox node up {self.name}")
        elif verb == "crash":
            os.kill(self.init_pid, signal.SIGKILL)  # and the kernel kills all others in its pid namespace
            os.waitpid(self.init_pid, 0)
            self.gone()
        elif verb in ("cut", "join"):
            network.set_cable(self.cable, up=verb == "join")
        elif not self._ask(_KILL if verb == "kill-slurmd" else _START):
            state = "does not run" if verb == "kill-slurmd" else "runs already"
            raise UsageError(f"slurmd of {self.name} {state}")

    def gone(self) -> None:
        """Note that its process 1 has ended."""
        self.init_pid = 0
        if self._channel is not None:
            self._channel.close()

    def make(self) -> None:
        """Start its process 1, which then waits for `boot`."""
        self.boots += 1
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(_ANSWER_S)
        self.root.spool(self.name).mkdir(exist_ok=True)
        self.root.node(self.name).mkdir(exist_ok=True)
        maker = os.fork()
        if maker == 0:
            _make_namespaces(self, theirs)
        theirs.close()
        os.waitpid(maker, 0)
        self.init_pid = int.from_bytes(self._channel.recv(4))
        if not self.init_pid:
            self._fail()

    def ask_to_boot(self) -> None:
        """Let it set its addresses and start slurmd, without waiting."""
        if self._channel is not None:
            self._channel.send(_BOOT)

    def wait_for_boot(self) -> None:
        """Wait until slurmd has been started."""
        if self._channel is None or self._channel.recv(1) != _DONE:
            self._fail()

    def _ask(self, verb: bytes) -> bool:
        if self._channel is None:
            return False
        self._channel.send(verb)
        return self._channel.recv(1) == _DONE

    def _fail(self) -> NoReturn:
        log = self.root.log(self.name)
        last = log.read_text().strip().splitlines()[-1:] if log.exists() else []
        raise ClusterError(f"sandbox: node {self.name} did not start: {' '.join(last)}")

    def _report_reboot(self) -> None:
        # slurmctld overlooks a reboot that is quicker than SlurmdTimeout: jobs of before would hang for minutes
        argv = [tool("scontrol"), "update", f"nodename={self.name}", "state=down", "reason=rebooted"]
        subprocess.run(argv, capture_output=True, check=False, timeout=20)


def boot(nodes: Sequence[Node]) -> None:
    """Start nodes, all at once."""
    for node in nodes:
        node.make()
    plug_in(nodes)
    start_slurmds(nodes)


def plug_in(nodes: Sequence[Node]) -> None:
    """Connect nodes that have been made."""
    network.plug_in(nodes[0].spec.network, [(node.cable, node.number, node.init_pid) for node in nodes])


def start_slurmds(nodes: Sequence[Node]) -> None:
    """Let nodes that have been connected begin their work."""
    for node in nodes:
        node.ask_to_boot()
    for node in nodes:
        node.wait_for_boot()


def _make_namespaces(node: Node, channel: socket.socket) -> NoReturn:
    """In a child of the holder: fork process 1 of the new namespaces, tell the holder its pid, and end."""
    status = 1
    try:
        _leave_holder(node.root.log(node.name), channel.fileno())
        linux.unshare(linux.OF_A_HOST)
        if init := os.fork():
            channel.send(init.to_bytes(4))
        else:
            _Init(node, channel).serve()
        status = 0
    except BaseException:  # noqa: BLE001 (a fork must not return into the holder's code)
        traceback.print_exc()
    finally:
        os._exit(status)


def _leave_holder(log: Path, keep: int) -> None:
    """Let go of everything that the holder has open, so that it closes when the holder closes it."""
    signal.set_wakeup_fd(-1)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


class _Init:
    """Process 1 of a node: sets the host up, reaps orphans, starts and kills slurmd when told."""

    def __init__(self, node: Node, channel: socket.socket) -> None:
        self._node = node
        self._channel = channel
        self._slurmd = 0

    def serve(self) -> None:
        """Obey until the holder is gone."""
        wake = linux.wake_on([signal.SIGCHLD])
        self._mount()
        socket.sethostname(self._node.name)
        watched: list[int | socket.socket] = [wake, self._channel]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if wake in ready:
                os.read(wake, 4096)
                if self._slurmd in linux.reap():
                    self._slurmd = 0
            if self._channel in ready:
                verb = self._channel.recv(1)
                if not verb:
                    return
                self._channel.send(_DONE if self._do(verb) else _NOT_SO)

    def _do(self, verb: bytes) -> bool:
        if (verb == _KILL) != bool(self._slurmd):
            return False
        if verb == _KILL:
            os.kill(self._slurmd, signal.SIGKILL)
            os.waitpid(self._slurmd, 0)
            self._slurmd = 0
            return True
        if verb == _BOOT:
            network.configure_node(self._node.spec.network, self._node.number)
        name, root = self._node.name, self._node.root
        just_booted = ["-b"] if verb == _BOOT else []  # what ran here before is dead
        argv = ["slurmd", "-D", *just_booted, "-f", str(root.slurm_conf), "-N", name]
        self._slurmd = linux.start_daemon(argv, root.log(f"slurmd.{name}.out"))
        return True

    def _mount(self) -> None:
        node, root = self._node, self._node.root
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SLAVE)
        linux.mount("proc", "/proc", kind="proc")
        linux.mount("shm", _SHM, kind="tmpfs", options="mode=1777")
        hosts = root.node(node.name) / "hosts"  # its own: a job may change it
        hosts.write_bytes(root.etc("hosts").read_bytes())
        linux.mount(hosts, "/etc/hosts", flags=linux.MS_BIND)
        if node.spec.private_tmp:
            self._mount_tmp()

    def _mount_tmp(self) -> None:
        root = self._node.root.path
        private = self._node.root.node(self._node.name) / "tmp"
        private.mkdir(exist_ok=True)
        private.chmod(0o1777)
        if root.is_relative_to(_TMP):  # slurmd needs it at the same path
            window = private / root.relative_to(_TMP)
            window.mkdir(parents=True, exist_ok=True)
            linux.mount(root, window, flags=linux.MS_BIND | linux.MS_REC)
        linux.mount(private, _TMP, flags=linux.MS_BIND | linux.MS_REC)
