"""The commands that start a run, or say how one would start."""

import sys
from pathlib import Path

import click

from hpctrain.cli import parts
from hpctrain.errors import ClusterError, UsageError


@click.command()
@parts.config
@parts.overrides
@parts.scheduler
@click.option("--ranks", type=click.IntRange(min=1), help="Plan for so many ranks on this machine.")
def check(config: Path, overrides: tuple[str, ...], scheduler: parts.Scheduler | None, ranks: int | None) -> None:
    """Say what is wrong with CONFIG, all at once, or show the plan."""
    from hpctrain.launch import folds, ready
    from hpctrain.launch.describe import describe

    if ranks and scheduler == "slurm":
        raise UsageError("--ranks is for this machine, not for Slurm", "slurm.nodes=N slurm.ranks_per_node=M")
    loaded = folds.one(parts.load(config, overrides), 1)
    where: parts.Scheduler = "local" if ranks else parts.choose(scheduler)
    plan = ready.make_plan(loaded, where, ranks, count=False)
    try:
        ready.refuse_unfit(loaded, plan, where)
    except ClusterError as error:
        print(f"hpctrain: not held against Slurm: {error}", file=sys.stderr)
    print(f"{config}: no problem found; on {'Slurm' if where == 'slurm' else 'this machine'} it runs as")
    print(describe(plan, loaded.config))


@click.command()
@parts.config
@parts.overrides
@parts.scheduler
@parts.dry_run
@parts.follow
def submit(
    config: Path, overrides: tuple[str, ...], scheduler: parts.Scheduler | None, dry_run: bool, follow: bool
) -> None:
    """Submit CONFIG to Slurm, or to the background of this machine; print job id and run directory."""
    if dry_run and (follow or scheduler == "local"):
        other = "--follow" if follow else "--scheduler local"
        raise UsageError(
            f"--dry-run prints Slurm's batch script and submits nothing, {other} needs a run", "leave one of them out"
        )
    from hpctrain.launch import folds, ready

    loaded = parts.load(config, overrides)
    folds.refuse(loaded)
    where: parts.Scheduler = "slurm" if dry_run else parts.choose(scheduler)
    plan = ready.make_plan(loaded, where, count=not dry_run)
    if dry_run:
        from hpctrain.launch.render import render
        from hpctrain.rundir import RunDir

        placeholder = RunDir(RunDir.root(loaded.config.runs) / f"{loaded.config.name}-ID")
        sys.stdout.write(render(loaded, plan, placeholder, python=sys.executable))
        return
    from hpctrain.launch import slurm
    from hpctrain.launch import submit as submission

    ready.refuse_unfit(loaded, plan, where)
    run = submission.freeze(loaded, plan, argv=sys.argv)
    ready.show(loaded, plan, where)
    if where == "slurm" and slurm.sandbox():
        print("hpctrain: Slurm is the sandbox that is up; hpctrain sandbox down ends it", file=sys.stderr)
    job_id = submission.to_slurm(run) if where == "slurm" else submission.to_background(run)
    parts.started(run, job_id, follow=follow)


@click.command()
@parts.config
@parts.overrides
@click.option("--ranks", type=click.IntRange(min=1), help="Ranks to start; default dist.ranks, else those of one node.")
@click.option(
    "--debug", is_flag=True, help="One process on this terminal: deterministic, anomaly detection, pdb on an error."
)
@click.option("--overfit", type=click.IntRange(min=1), metavar="N",
              help="Learn N batches by heart, as a test of the wiring; nothing is kept.")  # fmt: skip
@click.option("--overfit-steps", type=click.IntRange(min=1), metavar="STEPS", help="At most; default 100 x N, or 300.")
def run(
    config: Path,
    overrides: tuple[str, ...],
    ranks: int | None,
    debug: bool,
    overfit: int | None,
    overfit_steps: int | None,
) -> None:
    """Run CONFIG here, in the foreground."""
    if debug and ranks not in {None, 1}:
        raise UsageError(f"--debug runs one process, not {ranks}", "leave --ranks out")
    if overfit_steps is not None and overfit is None:
        raise UsageError("--overfit-steps is for --overfit", "give --overfit N as well")
    if overfit is not None:
        if debug:
            raise UsageError("--debug and --overfit exclude each other", "leave one of them out")
        from hpctrain.launch import practice

        verdict = practice.overfit(parts.load(config, overrides), overfit, ranks=ranks, steps=overfit_steps)
        print(verdict, file=sys.stderr)
        return
    from hpctrain.launch import folds, here

    loaded = parts.load(config, overrides)
    if loaded.config.folds is not None and not debug:
        sys.exit(folds.run_all(loaded, ranks=ranks))
    if loaded.config.folds is not None:
        print(f"hpctrain: --debug runs fold 1 of {loaded.config.folds} alone", file=sys.stderr, flush=True)
    code, _ = here.run(folds.one(loaded, 1), ranks=ranks, debug=debug)
    sys.exit(code)


@click.command()
@parts.ref
@parts.overrides
@parts.scheduler
@click.option("--code", is_flag=True, help="Take a new snapshot of the code, of this directory.")
@parts.dry_run
@parts.follow
def resume(
    run: str, overrides: tuple[str, ...], scheduler: parts.Scheduler | None, code: bool, dry_run: bool, follow: bool
) -> None:
    """Go on with RUN, which has ended: for longer, on other ranks, or with mended code.

    \b
    hpctrain resume RUN train.epochs=120 slurm.time=24:00:00
    hpctrain resume RUN dist.ranks=8        the same global batch on other ranks
    hpctrain resume RUN --code              after an error was mended
    """
    from hpctrain.launch import resume as resumption

    parts.use_sandbox()
    directory = parts.find(run)
    where = scheduler or resumption.scheduler_of(directory)
    if where == "slurm" and not dry_run:
        where = parts.choose("slurm")
    ready_to_go = resumption.prepare(directory, overrides, where, code=code)
    if dry_run:
        sys.stdout.write(resumption.script(ready_to_go))
        return
    job_id = resumption.start(ready_to_go, argv=sys.argv)
    parts.started(directory, job_id, follow=follow)


@click.command()
@parts.config
@parts.overrides
def eject(config: Path, overrides: tuple[str, ...]) -> None:
    """Print a batch script for CONFIG that needs no hpctrain on the login node."""
    from hpctrain.launch.eject import eject as eject_script
    from hpctrain.launch.folds import refuse
    from hpctrain.launch.ready import make_plan

    loaded = parts.load(config, overrides)
    refuse(loaded)
    sys.stdout.write(eject_script(loaded, make_plan(loaded, "slurm"), python=sys.executable))
