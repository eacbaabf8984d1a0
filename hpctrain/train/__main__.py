"""The entry point of every rank: `python -m hpctrain.train RUN`, however it was started.

1. Who am I? (`world.from_env`)  2. Log to the files of this rank.  3. Does the frozen config give the frozen plan?
4. World proof.  5. Train, or become the user's program.  6. Leave: 0 after the agreed end, else diagnostics and out.

Nothing here imports torch before the world is proven: a wrong world ends in milliseconds.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from hpctrain import plan as planning
from hpctrain import task as tasks
from hpctrain.config.load import Loaded, load
from hpctrain.config.schema import Config
from hpctrain.dist import interface, mpi
from hpctrain.errors import JobError, UsageError, WorldError
from hpctrain.plan import Plan
from hpctrain.processes import tie_to_parent
from hpctrain.rundir import RunDir
from hpctrain.train import claims, network, proof, script
from hpctrain.train.leave import leave
from hpctrain.train.lifeline import Lifeline
from hpctrain.train.stop import CAUSES, Stop
from hpctrain.world import World, from_env


def main(*, in_place: bool = False) -> NoReturn:
    """Run one rank.

    Args:
        in_place: a command is a Python script that this interpreter shall run itself.
    """
    debug = os.environ.get("HPCTRAIN_DEBUG") == "1"
    world: World | None = None
    run: RunDir | None = None
    attempt = 0
    command: Sequence[str] | None = None
    try:
        run = RunDir.open(Path(_argument()))
        attempt = int(os.environ["HPCTRAIN_ATTEMPT"])
        world = from_env()
        if not debug:
            _log_to_files(run, attempt, world.rank)
        _die_with_launcher(world)
        command = _run_rank(run, attempt, world, debug=debug)
        sys.stdout.flush()
        sys.stderr.flush()
        if command is not None and not in_place:
            script.become(command)
        # Not `return`: now and then a thread of torch's native code outlives the interpreter and aborts the process,
        # which a launcher would take for a failure.
        if command is None:
            os._exit(0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must be recorded before the process ends
        leave(error, run, attempt, world, debug=debug)
    script.run_in_place(command)


def _argument() -> str:
    if len(sys.argv) != 2 or "HPCTRAIN_ATTEMPT" not in os.environ:
        raise UsageError(
            "python -m hpctrain.train RUN is started by the batch script or the local supervisor",
            "type hpctrain run CONFIG or hpctrain submit CONFIG",
        )
    return sys.argv[1]


def _run_rank(run: RunDir, attempt: int, world: World, *, debug: bool) -> Sequence[str] | None:
    """Prove the world and train; return the command that this rank shall become instead, if there is one."""
    loaded = load(run.config)
    stop = Stop()
    if loaded.config.command is None and not debug:
        stop.install()  # before torch is imported: a signal that comes in these seconds must not kill the rank
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUSES)  # blocked for the launcher's sake, see hpctrain.train.hub
    plan = _asserted_plan(run, loaded)
    expected = claims.Expectation(
        plan=plan,
        hosts=tuple(network.hosts(world)),
        cpus_per_task=loaded.config.slurm.cpus_per_task if "SLURM_JOB_ID" in os.environ else None,
        timeout_s=loaded.config.dist.timeout,
    )
    claims.check_size(world, expected)
    config = loaded.config
    if plan.launcher == "srun" and _started_by_mpi(config, plan):  # mpirun has been told already
        os.environ.update(network.open_mpis_by_name(config, plan, world))
    address = network.address(config, plan, world) if world.rank == 0 else None
    group = mpi.bootstrap(world) if _joins_mpi(config, plan) else None
    watched = config.command is None and config.dist.hang > 0 and not debug
    lifeline = Lifeline(run, attempt, config, plan, world) if watched else None
    joined = proof.join(claims.claim(run, attempt, world, plan), expected, run, address, group)
    named = interface.towards(joined.host, interface=config.dist.interface, host=world.host, nodes=plan.nodes)
    if config.dist.interface is not None:  # it wins over what the site has set
        os.environ.update(dict.fromkeys(interface.VARIABLES, named))
    print(
        f"hpctrain: {world}, attempt {attempt}, world proven; {named} to {joined.host}:{joined.port}", file=sys.stderr
    )
    if config.command is not None:
        script.prepare(config, plan, world, joined, named)
        return config.command
    heart = lifeline.begin() if lifeline is not None else None
    from hpctrain.train import session

    session.run(run, attempt, config, plan, world, joined, named, stop, heart, debug=debug)
    if group is not None:
        group.close()
    return None


def _started_by_mpi(config: Config, plan: Plan) -> bool:
    by_srun = plan.launcher == "srun" and (plan.backend == "mpi" or config.dist.mpi not in {None, "none"})
    return plan.ranks > 1 and (plan.launcher == "mpirun" or by_srun)


def _joins_mpi(config: Config, plan: Plan) -> bool:
    """Say whether it is for us to join MPI: Horovod does so by itself, and a command may want to."""
    return _started_by_mpi(config, plan) and plan.strategy == "ddp" and config.command is None


def _asserted_plan(run: RunDir, loaded: Loaded) -> Plan:
    """Read the frozen plan and work it out again from the frozen config: what was planned is what runs."""
    try:
        frozen = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise WorldError(f"{run.plan} cannot be read: {error}") from None
    layout = planning.Layout(nodes=frozen.nodes, ranks_per_node=frozen.ranks_per_node, launcher=frozen.launcher)
    samples = planning.Samples(
        train=frozen.train_samples,
        validation=frozen.validation_samples,
        test=frozen.test_samples,
        path=frozen.data_path,
        digest=frozen.data_digest,
    )
    weights = None
    if frozen.weights_path is not None and frozen.weights_sha256 is not None:
        weights = planning.Weights(path=frozen.weights_path, sha256=frozen.weights_sha256)
    trains = not isinstance(tasks.read(run), tasks.Evaluate)
    again = planning.make(loaded, layout, samples, weights, trains=trains)
    differing = [
        f"{field}: {getattr(frozen, field)} planned, {getattr(again, field)} now"
        for field in Plan.__struct_fields__
        if getattr(frozen, field) != getattr(again, field)
    ]
    if differing:
        raise WorldError(
            f"{run.config} no longer gives the plan of {run.plan}:\n  " + "\n  ".join(differing),
            "a run directory is frozen; submit the changed config as a new run",
        )
    return frozen


def _log_to_files(run: RunDir, attempt: int, rank: int) -> None:
    """Send descriptors 1 and 2 to this rank's files, so that native code and children write there too."""
    for descriptor, path in ((1, run.log(attempt, rank, "out")), (2, run.log(attempt, rank, "err"))):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _die_with_launcher(world: World) -> None:
    """Under mpirun, horovodrun or the local supervisor: end this rank when what started it is gone, even by kill -9."""
    supervised = "HPCTRAIN_SUPERVISOR" in os.environ
    if supervised or world.launcher in {"openmpi", "hydra", "horovodrun"}:
        tie_to_parent()()
    if supervised and os.getppid() != int(os.environ["HPCTRAIN_SUPERVISOR"]):
        raise JobError("the supervisor of this rank is gone")


if __name__ == "__main__":
    main()
