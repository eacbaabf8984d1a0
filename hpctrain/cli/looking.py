"""The commands that say where runs stand, or end them."""

import sys

import click

from hpctrain import roots
from hpctrain.cli import parts


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--json", "as_json", is_flag=True, help="A list of objects on standard output.")
def status(runs: tuple[str, ...], as_json: bool) -> None:
    """Show the state of runs, by directory, name or job id; without any: those of the last day."""
    from hpctrain.launch import status as statuses
    from hpctrain.launch.attempts import attempts_table, with_attempts

    parts.use_sandbox()
    found = [parts.find(ref) for ref in runs] if runs else statuses.recent(roots.known())
    rows = statuses.status(found)
    parts.show(with_attempts(found, rows) if as_json else rows, statuses.table, as_json=as_json)
    if not as_json and len(runs) == 1 and (attempts := attempts_table(found[0])):
        print(f"\n{attempts}")


@click.command()
@parts.ref
@click.option("--json", "as_json", is_flag=True, help="An object on standard output.")
def why(run: str, as_json: bool) -> None:
    """Say why RUN ended, or waits: the first cause, the end of that rank's log, what to do."""
    from hpctrain.launch import why as causes

    parts.use_sandbox()
    parts.show([causes.why(parts.find(run))], lambda found: causes.text(found[0]), as_json=as_json, single=True)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A list of objects on standard output.")
def list(as_json: bool) -> None:  # noqa: A001 - the name of the command
    """List all runs, the newest last."""
    from hpctrain.launch import status as statuses

    parts.use_sandbox()
    rows = statuses.status(statuses.listing(roots.known()))
    parts.show(rows, statuses.table, as_json=as_json)


@click.command()
@parts.ref
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--attempt", type=click.IntRange(min=1), help="Default: the newest.")
def logs(run: str, follow: bool, rank: int, attempt: int | None) -> None:
    """Print the log of one rank of RUN."""
    from hpctrain.launch import follow as following

    parts.use_sandbox()
    directory = parts.find(run)
    if follow:
        following.until_end(directory, rank=rank, attempt=attempt)
    else:
        following.show(directory, rank=rank, attempt=attempt)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
def cancel(runs: tuple[str, ...]) -> None:
    """End runs; returns when their processes are gone."""
    from hpctrain.launch.cancel import cancel as cancel_run
    from hpctrain.launch.status import find_live

    parts.use_sandbox()
    for directory in [find_live(ref, roots.known()) for ref in runs]:
        print(cancel_run(directory), file=sys.stderr)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A list of objects on standard output.")
def doctor(as_json: bool) -> None:
    """Say what this machine, its Slurm and this environment have."""
    from hpctrain.launch import doctor as doctors

    parts.use_sandbox()
    findings = doctors.doctor()
    parts.show(findings, doctors.table, as_json=as_json)
