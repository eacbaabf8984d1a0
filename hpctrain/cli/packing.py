"""The command that packs a dataset."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from hpctrain.errors import UsageError


@click.command()
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
