"""The commands. Each imports what it needs inside, so that none pays for another's start.

What a machine reads goes to standard output, everything else to standard error.
Exit codes: 0 ok, 2 config or usage, 3 the cluster refused, 4 the job failed.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

import click

from hpctrain import __version__
from hpctrain.errors import ClusterError, HpctrainError, UsageError

if TYPE_CHECKING:
    from hpctrain.config.load import Loaded
    from hpctrain.rundir import RunDir

Scheduler = Literal["slurm", "local"]
_Row = TypeVar("_Row")

_config = click.argument("config", type=click.Path(path_type=Path, readable=False))
_overrides = click.argument("overrides", nargs=-1, metavar="[key=value]...")
_scheduler = click.option(
    "--scheduler", type=click.Choice(["slurm", "local"]), help="Default: slurm if sbatch is there, else local."
)
_ref = click.argument("run", metavar="RUN")


class _Commands(click.Group):
    """The commands here, and the groups, whose own commands are made only for those who type them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "ckpt", "sandbox"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "ckpt":
            from hpctrain.launch.ckpt import ckpt

            return ckpt
        if cmd_name == "sandbox":
            from hpctrain.sandbox.commands import sandbox

            return sandbox
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hpctrain")
def cli() -> None:
    """Data-parallel training on Slurm clusters from one YAML file.

    \b
    hpctrain check config.yaml        what is wrong with it, and what it would run
    hpctrain run config.yaml          here and now, for debugging
    hpctrain submit config.yaml       on the cluster, or in the background
    """


def main() -> NoReturn:
    """Run the command line; errors of ours become one message and their exit code."""
    try:
        code = cli.main(prog_name="hpctrain", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        from hpctrain.launch import usage

        print(usage.text(error), file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("hpctrain: interrupted; what was submitted goes on, hpctrain status shows it", file=sys.stderr)
        sys.exit(130)


@cli.command()
@_config
@_overrides
@_scheduler
@click.option("--ranks", type=click.IntRange(min=1), help="Plan for so many ranks on this machine.")
def check(config: Path, overrides: tuple[str, ...], scheduler: Scheduler | None, ranks: int | None) -> None:
    """Say what is wrong with CONFIG, all at once, or show the plan."""
    from hpctrain.launch import ready
    from hpctrain.launch.describe import describe

    if ranks and scheduler == "slurm":
        raise UsageError("--ranks is for this machine, not for Slurm", "slurm.nodes=N slurm.ranks_per_node=M")
    loaded = _load(config, overrides)
    where: Scheduler = "local" if ranks else _choose(scheduler)
    plan = ready.make_plan(loaded, where, ranks, count=False)
    try:
        ready.refuse_unfit(loaded, plan, where)
    except ClusterError as error:
        print(f"hpctrain: not held against Slurm: {error}", file=sys.stderr)
    print(f"{config}: no problem found; on {'Slurm' if where == 'slurm' else 'this machine'} it runs as")
    print(describe(plan, loaded.config))


@cli.command()
@_config
@_overrides
@_scheduler
@click.option("--dry-run", is_flag=True, help="Print the batch script and do nothing.")
@click.option("--follow", is_flag=True, help="Stay, show rank 0's log, and end with the run's exit code.")
def submit(config: Path, overrides: tuple[str, ...], scheduler: Scheduler | None, dry_run: bool, follow: bool) -> None:
    """Submit CONFIG to Slurm, or to the background of this machine; print job id and run directory."""
    if dry_run and (follow or scheduler == "local"):
        other = "--follow" if follow else "--scheduler local"
        raise UsageError(
            f"--dry-run prints Slurm's batch script and submits nothing, {other} needs a run", "leave one of them out"
        )
    from hpctrain.launch import ready

    loaded = _load(config, overrides)
    where: Scheduler = "slurm" if dry_run else _choose(scheduler)
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
    print(f"job {job_id}\nrun {run.path}", flush=True)
    if follow:
        from hpctrain.launch.follow import until_end

        until_end(run)


@cli.command()
@_config
@_overrides
@click.option("--ranks", type=click.IntRange(min=1), help="Ranks to start; default dist.ranks, else those of one node.")
@click.option(
    "--debug", is_flag=True, help="One process on this terminal: deterministic, anomaly detection, pdb on an error."
)
def run(config: Path, overrides: tuple[str, ...], ranks: int | None, debug: bool) -> None:
    """Run CONFIG here, in the foreground."""
    if debug and ranks not in {None, 1}:
        raise UsageError(f"--debug runs one process, not {ranks}", "leave --ranks out")
    from hpctrain.launch.here import run_here

    sys.exit(run_here(_load(config, overrides), ranks=ranks, debug=debug))


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--json", "as_json", is_flag=True, help="A list of objects on standard output.")
def status(runs: tuple[str, ...], as_json: bool) -> None:
    """Show the state of runs, by directory, name or job id; without any: those of the last day."""
    from hpctrain.launch import status as statuses
    from hpctrain.launch.attempts import attempts_table, with_attempts

    _use_sandbox()
    found = [_find(ref) for ref in runs] if runs else statuses.recent(_roots())
    rows = statuses.status(found)
    _print(with_attempts(found, rows) if as_json else rows, statuses.table, as_json=as_json)
    if not as_json and len(runs) == 1 and (attempts := attempts_table(found[0])):
        print(f"\n{attempts}")


@cli.command()
@_ref
@click.option("--json", "as_json", is_flag=True, help="An object on standard output.")
def why(run: str, as_json: bool) -> None:
    """Say why RUN ended, or waits: the first cause, the end of that rank's log, what to do."""
    from hpctrain.launch import why as causes

    _use_sandbox()
    _print([causes.why(_find(run))], lambda found: causes.text(found[0]), as_json=as_json, single=True)


@cli.command()
@_ref
@_overrides
@_scheduler
@click.option("--code", is_flag=True, help="Take a new snapshot of the code, of this directory.")
@click.option("--dry-run", is_flag=True, help="Print the batch script and do nothing.")
@click.option("--follow", is_flag=True, help="Stay, show rank 0's log, and end with the run's exit code.")
def resume(
    run: str, overrides: tuple[str, ...], scheduler: Scheduler | None, code: bool, dry_run: bool, follow: bool
) -> None:
    """Go on with RUN, which has ended: for longer, on other ranks, or with mended code.

    \b
    hpctrain resume RUN train.epochs=120 slurm.time=24:00:00
    hpctrain resume RUN dist.ranks=8        the same global batch on other ranks
    hpctrain resume RUN --code              after an error was mended
    """
    from hpctrain.launch import resume as resumption

    _use_sandbox()
    directory = _find(run)
    where = scheduler or resumption.scheduler_of(directory)
    if where == "slurm" and not dry_run:
        where = _choose("slurm")
    ready_to_go = resumption.prepare(directory, overrides, where, code=code)
    if dry_run:
        sys.stdout.write(resumption.script(ready_to_go))
        return
    job_id = resumption.start(ready_to_go, argv=sys.argv)
    print(f"job {job_id}\nrun {directory.path}", flush=True)
    if follow:
        from hpctrain.launch.follow import until_end

        until_end(directory)


@cli.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="A list of objects on standard output.")
def list_runs(as_json: bool) -> None:
    """List all runs, the newest last."""
    from hpctrain.launch import status as statuses

    _use_sandbox()
    rows = statuses.status(statuses.listing(_roots()))
    _print(rows, statuses.table, as_json=as_json)


@cli.command()
@_ref
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--attempt", type=click.IntRange(min=1), help="Default: the newest.")
def logs(run: str, follow: bool, rank: int, attempt: int | None) -> None:
    """Print the log of one rank of RUN."""
    from hpctrain.launch import follow as following

    _use_sandbox()
    directory = _find(run)
    if follow:
        following.until_end(directory, rank=rank, attempt=attempt)
    else:
        following.show(directory, rank=rank, attempt=attempt)


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
def cancel(runs: tuple[str, ...]) -> None:
    """End runs; returns when their processes are gone."""
    from hpctrain.launch.cancel import cancel as cancel_run
    from hpctrain.launch.status import find_live

    _use_sandbox()
    for directory in [find_live(ref, _roots()) for ref in runs]:
        print(cancel_run(directory), file=sys.stderr)


@cli.command()
@_config
@_overrides
def eject(config: Path, overrides: tuple[str, ...]) -> None:
    """Print a batch script for CONFIG that needs no hpctrain on the login node."""
    from hpctrain.launch.eject import eject as eject_script
    from hpctrain.launch.ready import make_plan

    loaded = _load(config, overrides)
    sys.stdout.write(eject_script(loaded, make_plan(loaded, "slurm"), python=sys.executable))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="A list of objects on standard output.")
def doctor(as_json: bool) -> None:
    """Say what this machine, its Slurm and this environment have."""
    from hpctrain.launch import doctor as doctors

    _use_sandbox()
    findings = doctors.doctor()
    _print(findings, doctors.table, as_json=as_json)


@cli.command()
@click.argument("src", required=False, type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--verify", metavar="OUT", type=click.Path(path_type=Path), help="Check what was packed; pack nothing.")
@click.option("--shard-mb", type=click.IntRange(min=1), default=256, show_default=True, help="About so large.")
@click.option("--resize", type=click.IntRange(min=1), help="Make the shorter side so many pixels if it is longer.")
@click.option(
    "--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="Of JPEGs made by --resize."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the order in shards.")
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
              help="What a picture that cannot be decoded does.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 256), help="Processes; default: the CPUs that are there.")
def pack(src: Path | None, out: Path | None, verify: Path | None, **settings: int | str | None) -> None:
    """Pack SRC, class directories or IDX files, into tar shards in OUT; called again, it goes on.

    \b
    hpctrain pack imagenet shards --resize 256
    hpctrain pack --verify shards
    """
    if verify is not None:
        if src is not None:
            raise UsageError("--verify checks its own OUT and packs nothing", "hpctrain pack --verify OUT")
        _become("hpctrain.data.verify", str(verify))
    if src is None or out is None:
        raise UsageError("pack needs SRC and OUT", "hpctrain pack SRC OUT, or hpctrain pack --verify OUT")
    import msgspec

    _become("hpctrain.data.pack", msgspec.json.encode({"src": str(src), "out": str(out), **settings}).decode())


def _become(module: str, argument: str) -> NoReturn:
    """Go on as another program, which may import what the command line must not."""
    os.execv(sys.executable, [sys.executable, "-m", module, argument])  # noqa: S606 - no shell is wanted


def _load(config: Path, overrides: tuple[str, ...]) -> "Loaded":
    from hpctrain.config.load import load

    return load(config, overrides)


def _print(rows: list[_Row], table: Callable[[list[_Row]], str], *, as_json: bool, single: bool = False) -> None:
    import msgspec

    shown = rows[0] if single else rows
    print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() if as_json else table(rows))


def _use_sandbox() -> None:
    """Put the sandbox's Slurm commands first, if one is up and no real Slurm is configured here."""
    if "SLURM_CONF" in os.environ or Path("/etc/slurm/slurm.conf").exists():
        return
    from hpctrain.sandbox.state import current

    if (box := current()) is not None:
        os.environ["PATH"] = f"{box.bin}{os.pathsep}{os.environ.get('PATH', '')}"
        os.environ["SLURM_CONF"] = str(box.slurm_conf)


def _choose(scheduler: Scheduler | None) -> Scheduler:
    """Take the scheduler that was asked for, else Slurm where `sbatch` is, else this machine."""
    if scheduler == "local":
        return "local"
    from hpctrain.launch import slurm

    _use_sandbox()
    return "slurm" if scheduler == "slurm" or slurm.available() else "local"


def _roots() -> list[Path]:
    from hpctrain.rundir import known_roots

    return known_roots()


def _find(ref: str) -> "RunDir":
    from hpctrain.launch.status import find

    return find(ref, _roots())
