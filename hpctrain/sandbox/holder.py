"""Process 1 of a sandbox's namespaces: when it ends, however it ends, the kernel ends everything else in there.

Stages: mounts and network -> munge, MariaDB -> slurmctld, nodes in parallel -> all idle -> the command of `run`, if
any -> serve until told to stop -> kill all, remove the directory.

Lifeline, a socket to the process that started it: from there one byte per signal to pass on, 0 for "live on without
me", end of file for "stop"; to there lines of JSON: {"ready": true}, {"exit": code} or {"error": ..., "hint": ...}.
Control, a socket in the directory: one line of JSON {"verb": ..., "node": ...} per connection; {} or an error back.
"""

import contextlib
import json
import os
import pwd
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpctrain.errors import ClusterError, HpctrainError, UsageError
from hpctrain.sandbox import accounting, linux, network, nodes, slurm_conf
from hpctrain.sandbox.root import Root
from hpctrain.sandbox.spec import CLIENTS, Spec, borrowed_devices, tool

STOP = "stop"
LIVE_ON = b"\0"

_START_S = 30
_GRACE_S = 3  # for the command of `run`, between TERM and KILL
_NULL_DEVICE = os.makedev(1, 3)


class _EndedEarlyError(Exception):
    """Whoever started this sandbox went away, or wants it to stop, before it was ready."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class Holder:
    """One sandbox."""

    def __init__(self, root: Root, lifeline: socket.socket) -> None:
        self.root = root
        self.spec = Spec.from_json(root.spec.read_text())
        self.nodes = {name: nodes.Node(root, self.spec, n) for n, name in enumerate(self.spec.node_names, start=1)}
        self._lifeline: socket.socket | None = lifeline
        self._command = 0
        self._exit_code: int | None = None
        self._kill_at = float("inf")
        self._umask = os.umask(0o022)  # jobs of other users read what is written here
        self._wake = linux.wake_on([signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._control = socket.socket(socket.AF_UNIX)

    def start(self) -> None:
        """Start everything; return when all nodes are idle.

        Raises:
            ClusterError: something did not start; says what and the last words of its log.
        """
        user = pwd.getpwuid(os.geteuid()).pw_name
        _mount(self.root, self.spec)
        network.make_bridge(self.spec.network)
        self._write_configuration(user)
        self._start_munge()
        if self.spec.accounting:
            accounting.start(self.root, self.spec, user, self._wait)
        argv = ["slurmctld", "-D", "-f", str(self.root.slurm_conf)]
        slurmctld = linux.start_daemon(argv, self.root.log("slurmctld.out"))
        made = list(self.nodes.values())
        for node in made:  # while slurmctld starts
            node.make()
        nodes.plug_in(made)
        # a slurmd that finds no slurmctld tries again after 1, 2, 4 s
        address = (f"{self.spec.network}.{slurm_conf.LOGIN_ADDRESS}", slurm_conf.SLURMCTLD_PORT)
        self._wait("slurmctld", slurmctld, lambda: linux.answers(address))
        nodes.start_slurmds(made)
        self._wait("slurmd", slurmctld, self._all_idle)
        self._control.bind(str(self.root.control))
        self.root.control.chmod(0o600)
        self._control.listen()

    def serve(self) -> int:
        """Obey until told to stop; return the exit code."""
        while self._exit_code is None:
            watched: list[int | socket.socket] = [self._wake, self._control]
            if self._lifeline:
                watched.append(self._lifeline)
            timeout = None if self._kill_at == float("inf") else max(0.0, self._kill_at - time.monotonic())
            ready, _, _ = select.select(watched, [], [], timeout)
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._note_ended(linux.reap())
            if self._lifeline in ready:
                self._obey_lifeline()
            if self._control in ready:
                self._answer()
            if time.monotonic() >= self._kill_at:
                os.kill(self._command, signal.SIGKILL)
                self._kill_at = float("inf")
        return self._exit_code

    def run(self, command: Sequence[str], output: tuple[int, int]) -> None:
        """Start the command of `run`; its end will end the sandbox."""
        environment = {**os.environ, "PATH": f"{self.root.bin}:{os.environ.get('PATH', os.defpath)}"}
        environment["HPCTRAIN_SANDBOX_ROOT"] = str(self.root.path)
        argv = [*linux.without_capabilities(), *command]
        process = subprocess.Popen(argv, stdout=output[0], stderr=output[1], env=environment, umask=self._umask)
        process.returncode = 0  # `reap` takes its status: no ResourceWarning
        self._command = process.pid
        for descriptor in output:
            os.close(descriptor)

    def stop(self) -> None:
        """Kill everything and remove the directory."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # as process 1: everybody else here
        linux.wait_until(_no_children, seconds=5)
        with contextlib.suppress(OSError):
            linux.unmount(self.root.bin)  # what is mounted on here cannot be removed here
        self.root.remove()

    def report(self, **fields: Any) -> None:
        """Send a line to the process that started this one."""
        if self._lifeline:
            with contextlib.suppress(OSError):
                self._lifeline.sendall(f"{json.dumps(fields)}\n".encode())

    def _write_configuration(self, user: str) -> None:
        spec, root = self.spec, self.root
        devices = _devices(root, spec.gpus_per_node) if spec.gpus_per_node else ()
        root.slurm_conf.write_text(slurm_conf.slurm_conf(spec, root, user))
        root.etc("cgroup.conf").write_text(slurm_conf.cgroup_conf())
        root.etc("mpi.conf").write_text(slurm_conf.mpi_conf())
        if devices:
            root.etc("gres.conf").write_text(slurm_conf.gres_conf(spec, devices))
        os.environ["SLURM_CONF"] = str(root.slurm_conf)

    def _start_munge(self) -> None:
        folder = self.root.munge_socket.parent
        folder.chmod(0o711)  # munged wants others to reach its socket, and nobody to see more
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": key, "socket": self.root.munge_socket, "seed-file": folder / "seed"}
        files |= {"log-file": self.root.log("munged"), "pid-file": self.root.path / "run" / "munged.pid"}
        # in a user namespace the owner of / and /tmp shows as nobody, and munged trusts only root
        trust = [] if os.geteuid() == 0 else ["--force"]
        argv = ["munged", "--foreground", *trust, *(f"--{key}={path}" for key, path in files.items())]
        munged = linux.start_daemon(argv, self.root.log("munged.out"))
        self._wait("munged", munged, lambda: linux.answers(str(self.root.munge_socket)))

    def _all_idle(self) -> bool:
        argv = [tool("sinfo"), "--noheader", "--partition", self.spec.partitions[0], "--states=idle", "--format=%D"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
        return done.stdout.strip() == str(self.spec.nodes)

    def _wait(self, what: str, pid: int, ready: Callable[[], bool]) -> None:
        def ready_or_hopeless() -> bool:
            self._check_lifeline()
            return pid in linux.reap() or ready()

        if not linux.wait_until(ready_or_hopeless, seconds=_START_S) or not Path(f"/proc/{pid}").exists():
            raise ClusterError(f"sandbox: {what} did not start\n{_last_words(self.root, what)}")

    def _check_lifeline(self) -> None:
        if self._lifeline and select.select([self._lifeline], [], [], 0)[0]:
            byte = self._read_lifeline()
            raise _EndedEarlyError(byte[0] if byte else signal.SIGHUP)

    def _note_ended(self, ended: dict[int, int]) -> None:
        if self._command in ended:
            self._exit_code = ended[self._command]
        for node in self.nodes.values():
            if node.init_pid in ended:
                node.gone()

    def _read_lifeline(self) -> bytes:
        try:
            return self._lifeline.recv(1) if self._lifeline else b""
        except ConnectionResetError:  # it died with words of ours unread
            return b""

    def _obey_lifeline(self) -> None:
        byte = self._read_lifeline()
        if byte == LIVE_ON:
            self._lifeline = None
        elif not byte:
            self._exit_code = 128 + signal.SIGHUP
        elif self._command:
            os.kill(self._command, byte[0])
            if byte[0] != signal.SIGINT:  # an interrupt is the command's to take or to leave
                self._kill_at = min(self._kill_at, time.monotonic() + _GRACE_S)

    def _answer(self) -> None:
        connection, _ = self._control.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(2)
            answer: dict[str, str] = {}
            try:
                with connection.makefile() as lines:
                    order = json.loads(lines.readline())
                if order["verb"] == STOP:
                    self._exit_code = 0
                else:
                    self._node(order["node"]).do(order["verb"])
            except HpctrainError as error:
                answer = {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
            except (OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError) as error:
                answer = {"error": repr(error), "hint": "", "kind": ""}  # no order may end the sandbox but `stop`
            connection.sendall(f"{json.dumps(answer)}\n".encode())

    def _node(self, name: str) -> nodes.Node:
        if name not in self.nodes:
            raise UsageError(f"there is no node {name!r}; the nodes are {', '.join(self.nodes)}")
        return self.nodes[name]


def main() -> None:
    """Be process 1: `holder ROOT LIFELINE OUT ERR [COMMAND ...]`, where OUT and ERR are descriptors for COMMAND."""
    path, lifeline, out, err, *command = sys.argv[1:]
    holder = Holder(Root(Path(path)), socket.socket(fileno=int(lifeline)))
    exit_code = 1
    try:
        holder.start()
        if command:
            holder.run(command, (int(out), int(err)))
        else:
            holder.report(ready=True)
        exit_code = holder.serve()
        holder.report(exit=exit_code)
    except HpctrainError as error:
        holder.report(error=error.message, hint=error.hint)
    except _EndedEarlyError as error:
        exit_code = error.exit_code
        holder.report(exit=exit_code)
    except Exception:
        holder.report(error=f"sandbox: its process 1 failed\n{traceback.format_exc()}", hint="")
        raise
    finally:
        holder.stop()
    sys.exit(exit_code)


def _mount(root: Root, spec: Spec) -> None:
    """Give the login node (and so, by inheritance, all nodes) its own view of names and of Slurm's clients."""
    socket.sethostname(slurm_conf.LOGIN)
    switch = Path("/etc/nsswitch.conf")
    files = {"hosts": slurm_conf.hosts(spec), "resolv.conf": ""}
    files["nsswitch.conf"] = slurm_conf.nsswitch_conf(switch.read_text() if switch.exists() else "")
    for name, text in files.items():
        root.etc(name).write_text(text)
        if Path("/etc", name).exists():
            linux.mount(root.etc(name), Path("/etc", name), flags=linux.MS_BIND)
    for name in CLIENTS:
        (root.clients / name).symlink_to(tool(name))
    linux.mount(root.clients, root.bin, flags=linux.MS_BIND)


def _devices(root: Root, count: int) -> Sequence[Path]:
    """Return device nodes that stand for the GPUs of a node: own ones, or borrowed ones where none can be made."""
    own = [root.path / "dev" / f"gpu{index}" for index in range(count)]
    try:
        for path in own:
            os.mknod(path, stat.S_IFCHR | 0o666, _NULL_DEVICE)
    except PermissionError:
        if len(borrowed_devices()) < count:
            raise ClusterError(
                f"sandbox: no device nodes can be made here, and only {len(borrowed_devices())} can stand for GPUs",
                f"--gpus-per-node {len(borrowed_devices())}",
            ) from None
        return borrowed_devices()[:count]
    return own


def _no_children() -> bool:
    linux.reap()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _last_words(root: Root, what: str) -> str:
    texts = {log.name: log.read_text(errors="replace") for log in sorted(root.path.glob(f"log/{what}*.log"))}
    return "\n".join(f"{name}: {line}" for name, text in texts.items() for line in text.splitlines()[-3:])
