"""The caller's side of a sandbox: starts its holder in new namespaces, waits for it, ends it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hpctrain
from hpctrain.errors import ClusterError
from hpctrain.sandbox import holder
from hpctrain.sandbox.root import Root
from hpctrain.sandbox.spec import CLIENTS, Spec, tool

_START_S = 120
_END_S = 10
_SI_KERNEL = 0x80  # sigaction(2): sent by the kernel, as a terminal does, to the whole foreground group
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# -I -S: nothing of the user's Python set-up may decide whether the sandbox starts
_PYTHON = ("-I", "-S", "-B", "-c")
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from hpctrain.sandbox import holder; holder.main()"


class Launch:
    """A sandbox that this process has started; `end` it, or `let_go` of it."""

    def __init__(self, spec: Spec, command: Sequence[str] = ()) -> None:
        # from the first directory on until there is a holder who would remove it; the holder unblocks them
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            self._start(spec, command)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def _start(self, spec: Spec, command: Sequence[str]) -> None:
        self.root = Root.make()
        self._lock = self.root.lock()
        self._channel, theirs = socket.socketpair()
        output = (os.dup(1), os.dup(2)) if command else (-1, -1)
        descriptors = (theirs.fileno(), *output)
        # variables of a real job, if this runs in one, would make srun ask for a step of it
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        try:
            self.root.spec.write_text(spec.to_json())
            python = (sys.executable, *_PYTHON, _BOOT, str(Path(hpctrain.__file__).parent.parent))
            with self.root.log("holder").open("wb") as log:
                self.process = subprocess.Popen(
                    [*_new_namespaces(), *python, str(self.root.path), *map(str, descriptors), *command],
                    stdin=None if command else subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    pass_fds=[self._lock, *(fd for fd in descriptors if fd >= 0)],
                    start_new_session=not command,  # the command of `run` keeps its terminal
                )
        except BaseException:
            self._close()
            self.root.remove()
            raise
        finally:
            theirs.close()
            for descriptor in output:
                if descriptor >= 0:
                    os.close(descriptor)

    def wait_until_ready(self) -> None:
        """Wait until all nodes are idle.

        Raises:
            ClusterError: it did not start.
        """
        self._channel.settimeout(_START_S)
        with self._channel.makefile() as reports:
            self._check(json.loads(reports.readline() or "{}"))

    def wait(self) -> int:
        """Wait for the command to end, passing on signals that ask for it; return its exit code.

        Raises:
            ClusterError: the sandbox did not start, or was killed.
        """
        awaited = {number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, awaited | {signal.SIGCHLD})
        received, kill_at = 0, float("inf")
        try:
            while self.process.poll() is None:
                # the time-out serves callers with several threads, another of which may get the signal
                info = signal.sigtimedwait(awaited | {signal.SIGCHLD}, 0.5)
                if info and info.si_signo in awaited:
                    received = info.si_signo
                    self._pass_on(info)
                    if received != signal.SIGINT:  # an interrupt is the command's to take or to leave
                        kill_at = min(kill_at, time.monotonic() + _END_S)
                if time.monotonic() > kill_at:
                    self.process.kill()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        with self._channel.makefile() as reports:
            report = [json.loads(line) for line in reports]
        if received and not any("exit" in line for line in report):
            return 128 + received
        return self._check(report[-1] if report else {})

    def let_go(self) -> None:
        """Let the sandbox live on without this process."""
        self._channel.send(holder.LIVE_ON)
        self._close()
        self.process.returncode = 0  # it shall outlive this process: no ResourceWarning

    def end(self) -> None:
        """End the sandbox and remove what it wrote."""
        self._close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.root.remove()

    def _pass_on(self, info: signal.struct_siginfo) -> None:
        if (info.si_signo, info.si_code) != (signal.SIGINT, _SI_KERNEL):  # else the command has it from the terminal
            with contextlib.suppress(OSError):
                self._channel.send(bytes([info.si_signo]))

    def _close(self) -> None:
        self._channel.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _check(self, report: dict[str, Any]) -> int:
        if "error" in report:
            raise ClusterError(report["error"], report["hint"])
        if "exit" in report:
            return int(report["exit"])
        if "ready" in report:
            return 0
        log = self.root.log("holder")
        words = log.read_text(errors="replace").strip() if log.exists() else ""
        if words.startswith("unshare: ") and "failed to execute" not in words:
            raise ClusterError(f"sandbox: namespaces are refused here: {words}", _namespaces_hint())
        raise ClusterError(f"sandbox: its process 1 was killed\n{words}".strip())


def write_clients(root: Root, holder_pid: int) -> None:
    """Write Slurm's clients for use from outside: each enters the login node's network and host name, not its files."""
    user = "" if os.geteuid() == 0 else " --user --preserve-credentials"
    for name in CLIENTS:
        path = root.bin / name
        # what is inside already, as below salloc, cannot enter its own user namespace again
        path.write_text(f"""\
#!/bin/sh
SLURM_CONF={root.slurm_conf}
export SLURM_CONF
[ "$HPCTRAIN_SANDBOX_ENTERED" = {holder_pid} ] && exec {tool(name)} "$@"
export HPCTRAIN_SANDBOX_ENTERED={holder_pid}
exec {tool("nsenter")} --target {holder_pid}{user} --net --uts {tool(name)} "$@"
""")
        path.chmod(0o755)


def _new_namespaces() -> list[str]:
    # the same user inside as outside: Slurm's daemons refuse to be a root that cannot set groups
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    kinds = ["--net", "--mount", "--uts", "--ipc", "--pid"]
    return [tool("unshare"), *user, *kinds, "--fork", "--kill-child", "--mount-proc", "--propagation=slave", "--"]


def _namespaces_hint() -> str:
    if os.geteuid() == 0:
        return "in a container, start it with --privileged (or --cap-add=SYS_ADMIN,NET_ADMIN and no seccomp filter)"
    return (
        "run it as root, or let root permit unprivileged user namespaces: sysctl user.max_user_namespaces=15000, "
        "on Debian kernel.unprivileged_userns_clone=1, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0"
    )
