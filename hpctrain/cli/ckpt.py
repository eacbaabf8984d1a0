"""`hpctrain ckpt ...`: the commands; each imports what it needs inside."""

import sys
from pathlib import Path

import click

from hpctrain.cli import parts


@click.group()
def ckpt() -> None:
    """The checkpoints of a run: list, verify, export."""


_json = click.option("--json", "as_json", is_flag=True, help="A list of objects on standard output.")


@ckpt.command("list")
@parts.ref
@_json
def list_(run: str, as_json: bool) -> None:
    """Show the checkpoints of RUN, by their manifests alone."""
    from hpctrain.launch import checkpoints

    parts.show(checkpoints.listing(parts.find(run)), checkpoints.table, as_json=as_json)


@ckpt.command()
@parts.ref
@click.argument("step", type=click.IntRange(min=0), required=False)
@_json
def verify(run: str, step: int | None, as_json: bool) -> None:
    """Read every byte of RUN's checkpoints, or of that of STEP; the exit code is 4 if one is damaged."""
    from hpctrain.launch import checkpoints

    rows = checkpoints.verified(parts.find(run), step)
    parts.show(rows, checkpoints.table, as_json=as_json)
    if any(row.problem for row in rows):
        sys.exit(4)


@ckpt.command()
@parts.ref
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--step", metavar="N|best", help="Default: the newest that verifies.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def export(run: str, out: Path, step: str | None, force: bool) -> None:
    """Copy the weights of RUN to OUT.safetensors, and what they are to OUT.json.

    With train.ema these are the averaged ones.
    """
    from hpctrain.launch import checkpoints

    for path in checkpoints.export(parts.find(run), out, step, force=force):
        print(path)
