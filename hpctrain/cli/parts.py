"""What commands share: their arguments, finding runs, choosing a scheduler, printing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from hpctrain import roots

if TYPE_CHECKING:
    from hpctrain.config.load import Loaded
    from hpctrain.rundir import RunDir

Scheduler = Literal["slurm", "local"]
_Row = TypeVar("_Row")

config = click.argument("config", type=click.Path(path_type=Path, readable=False))
overrides = click.argument("overrides", nargs=-1, metavar="[key=value]...")
scheduler = click.option(
    "--scheduler", type=click.Choice(["slurm", "local"]), help="Default: slurm if sbatch is there, else local."
)
ref = click.argument("run", metavar="RUN")
dry_run = click.option("--dry-run", is_flag=True, help="Print the batch script and do nothing.")
follow = click.option("--follow", is_flag=True, help="Stay, show rank 0's log, and end with the run's exit code.")


def load(config: Path, overrides: tuple[str, ...]) -> "Loaded":
    """Read the config with what was typed over it."""
    from hpctrain.config.load import load

    return load(config, overrides)


def show(rows: list[_Row], table: Callable[[list[_Row]], str], *, as_json: bool, single: bool = False) -> None:
    """Print rows as JSON, the only one of them if `single`, or as a table for people."""
    import msgspec

    shown = rows[0] if single else rows
    print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() if as_json else table(rows))


def use_sandbox() -> None:
    """Put the sandbox's Slurm commands first, if one is up and no real Slurm is configured here."""
    if "SLURM_CONF" in os.environ or Path("/etc/slurm/slurm.conf").exists():
        return
    from hpctrain.sandbox.state import current

    if (box := current()) is not None:
        os.environ["PATH"] = f"{box.bin}{os.pathsep}{os.environ.get('PATH', '')}"
        os.environ["SLURM_CONF"] = str(box.slurm_conf)


def choose(scheduler: Scheduler | None) -> Scheduler:
    """Take the scheduler that was asked for, else Slurm where `sbatch` is, else this machine."""
    if scheduler == "local":
        return "local"
    from hpctrain.launch import slurm

    use_sandbox()
    return "slurm" if scheduler == "slurm" or slurm.available() else "local"


def find(ref: str) -> "RunDir":
    """Find a run by its directory, name or job id."""
    from hpctrain.launch.status import find

    return find(ref, roots.known())


def started(run: "RunDir", job_id: str, *, follow: bool) -> None:
    """Print what was started where; stay until it ends, if asked to."""
    print(f"job {job_id}\nrun {run.path}", flush=True)
    if follow:
        from hpctrain.launch.follow import until_end

        until_end(run)
