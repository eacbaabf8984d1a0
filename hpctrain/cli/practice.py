"""The commands that help to find what to train with, and how well it does."""

import sys
from pathlib import Path
from typing import Literal

import click

from hpctrain.cli import parts

_ranks = click.option("--ranks", type=click.IntRange(min=1), help="Ranks to start; default as hpctrain run.")


@click.command("find-lr")
@parts.config
@parts.overrides
@_ranks
@click.option("--from", "low", type=float, default=1e-6, show_default=True, help="The lowest rate.")
@click.option("--to", "high", type=float, default=10.0, show_default=True, help="The highest rate.")
@click.option(
    "--steps", type=click.IntRange(20, 100_000), default=200, show_default=True, help="From one to the other."
)
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE", help="Draw it: a .svg, .png or .pdf.")
def find_lr(
    config: Path,
    overrides: tuple[str, ...],
    ranks: int | None,
    low: float,
    high: float,
    steps: int,
    picture: Path | None,
) -> None:
    """Find a learning rate for CONFIG: raise it from step to step until the loss diverges.

    With the ranks and the global batch of CONFIG; nothing is kept. The table goes to standard error, a JSON object
    with what to type to standard output; unless that is a terminal, it has all rates and losses, too.
    """
    import msgspec

    from hpctrain.launch import practice

    found = practice.find_lr(
        parts.load(config, overrides), ranks=ranks, low=low, high=high, steps=steps, picture=picture
    )
    print(f"hpctrain: the loss falls fastest here; type {found['type']}", file=sys.stderr)
    shown = {key: value for key, value in found.items() if not (sys.stdout.isatty() and isinstance(value, list))}
    print(msgspec.json.encode(shown).decode())


@click.command("find-batch")
@parts.config
@parts.overrides
@_ranks
def find_batch(config: Path, overrides: tuple[str, ...], ranks: int | None) -> None:
    """Find the largest batch of a rank that fits into memory, and how the global batch is made of it.

    On CPUs the memory is slurm.mem, shared by the ranks of a node, or what is free.
    """
    import msgspec

    from hpctrain.launch.find_batch import find_batch as find

    found = find(parts.load(config, overrides), ranks=ranks)
    all_there_are = ", which are all samples there are" if found["all_samples"] else ""
    print(
        f"hpctrain: {found['per_rank']} per rank fit{all_there_are}; for the global batch of {found['global']} type "
        f"{found['type']}",
        file=sys.stderr,
    )
    for typed, problem in found["unfit"].items():
        print(f"hpctrain: but {typed} is refused by the rest of {config}:\n  {problem}", file=sys.stderr)
    print(msgspec.json.encode(found).decode())


@click.command()
@parts.ref
@parts.overrides
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--ckpt", metavar="newest|best|STEP", default="newest", show_default=True, help="Which checkpoint.")
@_ranks
def eval(  # noqa: A001 - the name of the command
    run: str, overrides: tuple[str, ...], split: Literal["train", "validation", "test"], ckpt: str, ranks: int | None
) -> None:
    """Evaluate a checkpoint of RUN on one of its splits, here; with train.ema the averaged weights.

    \b
    hpctrain eval RUN --split validation --ckpt best
    hpctrain eval RUN device=cpu data.path=DIR     on another machine than it was trained on
    """
    import msgspec

    from hpctrain.launch import evaluation

    found = evaluation.evaluate(
        parts.find(run),
        split=split,
        ckpt=ckpt,
        ranks=ranks,
        overrides=overrides,
    )
    name = "accuracy" if "accuracy" in found else "error"
    print(
        f"{found['split']}: {name} {found[name]:.4f}, loss {found['loss']:.4f} over {found['samples']} samples; "
        f"{found['weights']} weights of step {found['step']}",
        file=sys.stderr,
    )
    print(msgspec.json.encode(found).decode())
