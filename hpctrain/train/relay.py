"""A wrapper under which torchrun runs, one per node: `python -m hpctrain.train.relay RUN`.

torchrun dies of USR2 and leaves its ranks behind as orphans, and answers TERM by killing them in the middle of their
save. So it is started deaf to both, and this wrapper passes them on to the ranks, once each; the ranks agree, save and
exit 0, and torchrun ends by itself.

The agents meet at a port that the first node's wrapper keeps reserved (bound, not listening) until its torchrun
listens there, under an id that no other job or attempt has. The ranks then prove their world as under any launcher.
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from hpctrain.config.load import load
from hpctrain.dist import interface
from hpctrain.errors import HpctrainError, WorldError
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir, publish
from hpctrain.world import from_env

_RELAYED = (signal.SIGUSR2, signal.SIGTERM)
_LOOK_S = 0.05


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, nearest first, from /proc."""
    found, layer = [], [pid]
    while layer:
        below = []
        for parent in layer:
            for children in Path("/proc").glob(f"{parent}/task/*/children"):
                try:
                    below += [int(child) for child in children.read_text().split()]
                except OSError:  # it ended while we looked
                    continue
        found += below
        layer = below
    return found


def main() -> None:
    """Run one torchrun agent; exit with its code."""
    try:
        sys.exit(_run(RunDir.open(Path(sys.argv[1])), int(os.environ["HPCTRAIN_ATTEMPT"])))
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _run(run: RunDir, attempt: int) -> int:
    config = load(run.config).config
    plan = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    world = from_env()  # a task per node: the rank is the node's index
    reserved: socket.socket | None = None
    if world.rank == 0:
        hosts = os.environ.get("HPCTRAIN_HOSTS", world.host).split()
        address = interface.publishable_address(
            interface=config.dist.interface,
            host=world.host,
            suffix=config.dist.host_suffix,
            peers=[host for host in hosts if host != world.host],
            nodes=plan.nodes,
        )
        reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((address, 0))
        endpoint = f"{address}:{reserved.getsockname()[1]}"
        publish(run.agents(attempt), endpoint.encode())
    else:
        endpoint = _await(run.agents(attempt), config.dist.timeout)
    secret = run.secret(attempt).read_bytes()
    argv = [
        *(sys.executable, "-m", "torch.distributed.run"),
        f"--nnodes={plan.nodes}",
        f"--nproc-per-node={plan.ranks_per_node}",
        f"--node-rank={world.rank}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={run.name}-{attempt}-{hashlib.sha256(secret).hexdigest()[:16]}",
        f"--rdzv-conf=is_host={int(world.rank == 0)},join_timeout={config.dist.timeout}",
        "--max-restarts=0",
        "--no-python",
        *(sys.executable, "-m", "hpctrain.train", str(run.path)),
    ]
    code = _supervised(argv)
    if code == 1 and config.command is None and not run.outcome(attempt).exists():
        return 128 + signal.SIGKILL  # torchrun says 1 for all; ranks of ours say why, unless killed
    return code


def _await(path: Path, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        os.listdir(path.parent)  # noqa: PTH208 - makes a network file system look again instead of remembering a miss
        try:
            return path.read_text()
        except FileNotFoundError:
            time.sleep(0.02)
    raise WorldError(f"after {timeout_s} s the first node has not published where the agents meet, in {path}")


def _supervised(argv: list[str]) -> int:
    told: set[int] = set()
    passed: set[int] = set()
    for number in _RELAYED:  # ignored signals stay ignored across exec; torchrun is told not to install its own handler
        signal.signal(number, signal.SIG_IGN)
    agent = subprocess.Popen(argv, env={**os.environ, "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"})
    for number in _RELAYED:
        signal.signal(number, lambda number, _frame: told.add(number))
    while True:
        try:
            code = agent.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            ranks = descendants(agent.pid) if told - passed else []
            if ranks:  # a signal that came before there were ranks waits for them
                for caught in told - passed:
                    _send(caught, ranks)
                passed |= told
        else:
            return code if code >= 0 else 128 - code


def _send(number: int, pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has ended already
            continue


if __name__ == "__main__":
    main()
