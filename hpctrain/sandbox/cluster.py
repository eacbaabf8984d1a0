"""Start, ask, break and end a private Slurm."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpctrain.errors import ClusterError, UsageError
from hpctrain.sandbox import holder, launch, linux, state
from hpctrain.sandbox.nodes import VERBS
from hpctrain.sandbox.root import Root, sweep
from hpctrain.sandbox.spec import Spec, require_packages
from hpctrain.sandbox.state import Sandbox, current

_ROOT_VARIABLE = "HPCTRAIN_SANDBOX_ROOT"
_ANSWER_S = 30
_END_S = 10


def up(
    *,
    nodes: int,
    gpus_per_node: int,
    cpus_per_node: int = 8,
    accounting: bool = False,
    network: str = "10.231.7",
    private_tmp: bool = False,
    partitions: Sequence[str] = ("main",),
) -> Sandbox:
    """Start a sandbox that lives until `down`; return when all its nodes are idle.

    Args:
        nodes: how many, called n1, n2, ...
        gpus_per_node: fake ones, which Slurm hands out as if they were there.
        cpus_per_node: as many as a job shall see; the machine's own number is no matter.
        accounting: start slurmdbd and MariaDB too, so that sacct works; about 2 s more.
        network: first three numbers of the nodes' addresses.
        private_tmp: every node has a /tmp of its own instead of the machine's.
        partitions: names, the first is the default; `urgent`, which preempts them, is always there.

    Raises:
        UsageError: one is up already, an argument is out of range, or packages are missing.
        ClusterError: it did not start, or namespaces are refused.
    """
    spec = Spec(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        accounting=accounting,
        network=network,
        private_tmp=private_tmp,
        partitions=tuple(partitions),
    )
    spec.check()
    require_packages(spec)
    with _locked_state():
        if (old := state.load()) is not None:
            root = Root(old.root)
            # one that was killed a moment ago may still be dying
            if old.is_running() or not linux.wait_until(lambda: not root.is_alive(), seconds=_END_S):
                raise UsageError(f"sandbox: one is up already, in {old.root}", "hpctrain sandbox down")
            root.remove()
        sweep()
        started = launch.Launch(spec)
        try:
            started.wait_until_ready()
            sandbox = _describe(spec, started)
            launch.write_clients(started.root, sandbox.holder_pid)
            _write_state(sandbox)
            started.let_go()
        except BaseException:
            state.state_file().unlink(missing_ok=True)
            started.end()
            raise
    return sandbox


def down() -> bool:
    """End the sandbox that is up and remove all that it wrote; return False if none was up."""
    if not state.state_file().exists():
        sweep()
        return False
    with _locked_state():
        old = state.load()
        alive = old is not None and _end(old)
        state.state_file().unlink(missing_ok=True)
        sweep()
    return alive


def status() -> dict[str, Any]:
    """Return what is up, with each node's state and the jobs; JSON-able."""
    if (root := _own_root()) is None:
        return {"up": False, "nodes": [], "jobs": []}
    nodes = _table(root, "sinfo", "--Node", name="%N", state="%T", cpus="%c", gres="%G")
    jobs = _table(root, "squeue", id="%i", name="%j", state="%T", user="%u", partition="%P", nodes="%N", reason="%r")
    by_name = {node["name"]: node for node in nodes}  # sinfo names a node once per partition
    return {"up": True, "root": str(root.path), "nodes": list(by_name.values()), "jobs": jobs}


def run(
    command: Sequence[str],
    *,
    nodes: int,
    gpus_per_node: int,
    cpus_per_node: int = 8,
    accounting: bool = False,
    network: str = "10.231.7",
    private_tmp: bool = False,
    partitions: Sequence[str] = ("main",),
) -> int:
    """Start a sandbox, run `command` as on its login node, remove the sandbox; return the command's exit code.

    The command has this process's directory, standard streams and terminal. A signal n that kills it gives 128 + n.
    INT, TERM and HUP are passed on to it. See `up` for the arguments.

    Raises:
        UsageError: there is no such command, an argument is out of range, or packages are missing.
        ClusterError: the sandbox did not start, or was killed.
    """
    spec = Spec(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        accounting=accounting,
        network=network,
        private_tmp=private_tmp,
        partitions=tuple(partitions),
    )
    spec.check()
    require_packages(spec)
    if not command or shutil.which(command[0]) is None:
        raise UsageError(
            f"sandbox: no such command: {command[0]}" if command else "sandbox: nothing to run",
            "hpctrain sandbox run -- COMMAND [ARGUMENT ...]",
        )
    sweep()
    started = launch.Launch(spec, command)
    try:
        return started.wait()
    finally:
        started.end()


def node(verb: str, name: str) -> None:
    """Break or mend a node of the sandbox that is up, or of the one inside which this process runs.

    Args:
        verb: crash (power failure) and up; cut (its cable) and join; kill-slurmd (jobs live on) and start-slurmd.
        name: such as n1.

    Raises:
        UsageError: no such verb, node or sandbox, or the node is not in a state in which that can be done.
    """
    if verb not in VERBS:
        raise UsageError(f"sandbox node: no verb {verb!r}; there are {', '.join(VERBS)}")
    if (root := _own_root()) is None:
        raise UsageError("sandbox node: no sandbox is up", "hpctrain sandbox up --nodes 2")
    answer = _ask(root, verb=verb, node=name)
    if "error" in answer:
        kind = UsageError if answer["kind"] == UsageError.__name__ else ClusterError
        raise kind(f"sandbox node: {answer['error']}", answer["hint"])


def _own_root() -> Root | None:
    if inside := os.environ.get(_ROOT_VARIABLE):
        return Root(Path(inside))
    sandbox = current()
    return Root(sandbox.root) if sandbox else None


def _end(old: Sandbox) -> bool:
    root = Root(old.root)
    alive = root.is_alive()
    if alive:
        with contextlib.suppress(OSError, ClusterError):
            _ask(root, verb=holder.STOP)
        if not linux.wait_until(lambda: not root.is_alive(), seconds=_END_S) and old.is_running():
            os.kill(old.holder_pid, 9)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(old.holder_pid, 0)  # where this process is the one that called `up`
    root.remove()
    return alive


def _describe(spec: Spec, started: launch.Launch) -> Sandbox:
    root, pid = started.root, started.process.pid
    return Sandbox(
        root=root.path,
        holder_pid=pid,
        holder_start=state.start_ticks(pid) or 0,
        pid_namespace=state.own_pid_namespace(),
        nodes=spec.nodes,
        gpus_per_node=spec.gpus_per_node,
        bin=root.bin,
        slurm_conf=root.slurm_conf,
    )


def _write_state(sandbox: Sandbox) -> None:
    path = state.state_file()
    new = path.with_suffix(f".{os.getpid()}")
    new.touch(mode=0o600)
    new.write_text(json.dumps(asdict(sandbox), default=str))
    new.replace(path)


@contextlib.contextmanager
def _locked_state() -> Iterator[None]:
    """Let one `up` or `down` of this user work at a time."""
    folder = state.state_file().parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"sandbox: {folder}: {error.strerror}", "export XDG_STATE_HOME=/a/folder/of/yours") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _ask(root: Root, **order: str) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(str(root.control))
            connection.sendall(f"{json.dumps(order)}\n".encode())
            with connection.makefile() as lines:
                answer: dict[str, str] = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise ClusterError(f"sandbox: {root.path} does not answer: {error}", "hpctrain sandbox down") from error
    return answer


def _table(root: Root, client: str, *options: str, **columns: str) -> list[dict[str, str]]:
    """Ask a client of Slurm for columns that it separates by a byte that no name holds."""
    argv = [str(root.bin / client), "--noheader", *options, "--format", "\x1f".join(columns.values())]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_ANSWER_S)
    if done.returncode != 0:
        raise ClusterError(f"sandbox: {client}: {done.stderr.strip()}", "hpctrain sandbox down")
    rows = (line.split("\x1f") for line in done.stdout.splitlines())
    return [dict(zip(columns, (value.strip() for value in row), strict=True)) for row in rows]
