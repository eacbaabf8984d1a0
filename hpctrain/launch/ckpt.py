"""`hpctrain ckpt ...`: the commands; each imports what it needs inside."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hpctrain.launch.checkpoints import Row
    from hpctrain.rundir import RunDir


@click.group()
def ckpt() -> None:
    """The checkpoints of a run: list, verify, export."""


_run = click.argument("run", metavar="RUN")
_json = click.option("--json", "as_json", is_flag=True, help="A list of objects on standard output.")


@ckpt.command("list")
@_run
@_json
def list_(run: str, as_json: bool) -> None:
    """Show the checkpoints of RUN, by their manifests alone."""
    from hpctrain.launch import checkpoints

    _print(checkpoints.listing(_find(run)), as_json=as_json)


@ckpt.command()
@_run
@click.argument("step", type=click.IntRange(min=0), required=False)
@_json
def verify(run: str, step: int | None, as_json: bool) -> None:
    """Read every byte of RUN's checkpoints, or of that of STEP; the exit code is 4 if one is damaged."""
    from hpctrain.launch import checkpoints

    rows = checkpoints.verified(_find(run), step)
    _print(rows, as_json=as_json)
    if any(row.problem for row in rows):
        sys.exit(4)


@ckpt.command()
@_run
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--step", metavar="N|best", help="Default: the newest that verifies.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def export(run: str, out: Path, step: str | None, force: bool) -> None:
    """Copy the weights of RUN to OUT.safetensors, and what they are to OUT.json.

    With train.ema these are the averaged ones.
    """
    from hpctrain.launch import checkpoints

    for path in checkpoints.export(_find(run), out, step, force=force):
        print(path)


def _find(ref: str) -> "RunDir":
    from hpctrain.launch.status import find
    from hpctrain.rundir import known_roots

    return find(ref, known_roots())


def _print(rows: "list[Row]", *, as_json: bool) -> None:
    import msgspec

    from hpctrain.launch.checkpoints import table

    print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() if as_json else table(rows))
