"""From a config to something that can be started: its plan, what preflight says, and what people are shown."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Literal

from hpctrain import plan as planning
from hpctrain.config.load import Loaded
from hpctrain.errors import ConfigError
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir, read_json

Scheduler = Literal["slurm", "local"]


def make_plan(
    loaded: Loaded,
    where: Scheduler,
    ranks: int | None = None,
    *,
    count: bool = True,
    before: Plan | None = None,
    trains: bool = True,
) -> Plan:
    """Work out the plan of a config.

    Args:
        loaded: the config.
        where: on Slurm, or on this machine.
        ranks: on this machine: other than the config says.
        count: let a child count samples whose number nothing else tells.
        before: of a run that goes on from a checkpoint.
        trains: False for an evaluation.

    Raises:
        ConfigError: the numbers do not fit, or the weights to start from cannot be read.
    """
    layout = planning.layout_on_slurm(loaded) if where == "slurm" else planning.layout_here(loaded, ranks)
    samples = planning.Samples()
    if loaded.config.data is not None:
        from hpctrain.data.locate import locate

        samples = locate(loaded.config.data)
        if samples.train is None and count:
            from hpctrain.launch.count import count as count_in_child

            samples = count_in_child(loaded.config.data)
    weights = None
    if loaded.config.model is not None and loaded.config.model.weights is not None:
        from hpctrain.launch import start_weights

        weights = start_weights.look(loaded, before)
    return planning.make(loaded, layout, samples, weights, trains=trains)


@contextlib.contextmanager
def where_it_was_made(run: RunDir) -> Iterator[None]:
    """Stand where the run was submitted, so that relative paths in its config mean what they meant."""
    made = str(read_json(run.env).get("cwd") or "")
    with contextlib.chdir(made if os.path.isdir(made) else "."):  # noqa: PTH112 - a Path raises where it may not look
        yield


def refuse_unfit(loaded: Loaded, plan: Plan, where: Scheduler, *, own_code: bool = True) -> None:
    """Refuse what can be known to fail; without `own_code` the run's snapshot is not looked at again.

    Raises:
        ConfigError: all of it at once.
        ClusterError: Slurm cannot be asked.
    """
    from hpctrain.launch.preflight import preflight

    if problems := preflight(loaded, plan, on_slurm=where == "slurm", code=own_code):
        raise ConfigError(problems)


def show(loaded: Loaded, plan: Plan, where: Scheduler) -> None:
    """Print the plan to standard error, and what of the config has no effect here."""
    from hpctrain.launch.describe import describe

    print(describe(plan, loaded.config), file=sys.stderr)
    env = loaded.config.env
    unused = [key for key in ("modules", "venv", "container", "setup") if getattr(env, key)]
    if where == "local" and unused:
        keys = ", ".join(f"env.{key}" for key in unused)
        print(f"hpctrain: {keys} set up Slurm jobs; here {env.python or sys.executable} runs as it is", file=sys.stderr)
