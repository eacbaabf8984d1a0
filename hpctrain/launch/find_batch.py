"""`hpctrain find-batch`: the largest batch of a rank that fits into memory.

Doubling until a try fails, then bisection; each try is two whole steps of all ranks in fresh processes, so that no try
suffers from what another has left in an allocator, and every rank has its say: one that runs out fails the try.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from hpctrain import norms
from hpctrain import task as tasks
from hpctrain.config.load import Loaded
from hpctrain.config.models import has_batch_norm
from hpctrain.config.optim import BY_NAME, BY_SCHEDULE
from hpctrain.config.schema import Batch, Config, Log, Optim
from hpctrain.errors import ConfigError, JobError, UsageError
from hpctrain.launch import ready, trial
from hpctrain.plan import Plan

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_FINE = 16
"""Bisection ends at a sixteenth of what fits: the rest is less than what a step's memory varies by."""


def find_batch(loaded: Loaded, *, ranks: int | None) -> dict[str, Any]:
    """Find the largest batch per rank, and how the global batch of the config is then made.

    Rules that have nothing to do with memory, such as how the rate rises over the steps that are left, do not stop the
    search; `unfit` of what is returned says which of them stand against what was found.

    Raises:
        UsageError: the config has no training of ours, or not even one sample fits.
        JobError: a try failed for another reason than memory.
    """
    loaded = trial.own(loaded)
    plan = ready.make_plan(loaded, "local", ranks)
    if plan.global_batch is None or plan.train_samples is None:
        raise AssertionError("the plan of a config that trains, with counted samples")
    memory, unit = _memory(loaded, plan), _unit(loaded.config)
    taken: dict[int, int] = {}

    def fits(units: int) -> bool:
        per_rank = units * unit
        tried = _with(loaded, per_rank)
        ended = trial.perform(
            tried, ready.make_plan(tried, "local", plan.ranks), tasks.TryBatch(memory=memory), quiet=True
        )
        if ended.result:
            taken[per_rank] = ended.result["taken"]
        elif not _is_memory(ended.outcome):
            raise JobError(f"with {per_rank} samples per rank: {ended.outcome.get('message')}")
        told = f"fits, takes {taken[per_rank] / 2**20:,.0f} MiB" if ended.result else "does not fit"
        print(f"hpctrain: {per_rank} per rank x {plan.ranks} ranks: {told}", file=sys.stderr, flush=True)
        return bool(ended.result)

    most = plan.train_samples // plan.ranks // unit
    if not most:
        raise UsageError(f"{plan.train_samples} samples are fewer than {unit} for each of {plan.ranks} ranks")
    largest = unit * search(fits, most, first=max((plan.batch_per_rank or 1) // unit, 1))
    if not largest:
        given = "the GPU's memory" if memory is None else f"{memory / 2**20:,.0f} MiB"
        count = "one sample" if unit == 1 else f"{unit} samples"
        raise UsageError(f"not even {count} per rank fits into {given}", "use a smaller model, or more memory")
    found = proposal(plan, largest, whole=largest == most * unit, given=_given(loaded.config), unit=unit)
    unfit = {
        told: problem
        for told, batch in (
            (f"batch.per_rank={largest}", {"per_rank": largest, "global_": None, "accumulate": 1}),
            (found["type"], {"accumulate": found["accumulate"]} | _made(found)),
        )
        if (problem := _problem(loaded, plan.ranks, batch))
    }
    return found | {"unfit": unfit, "taken": taken[largest], "memory": memory}


def search(fits: Callable[[int], bool], most: int, *, first: int = 1) -> int:
    """Return the largest number up to `most` that fits, to a sixteenth; 0 if not even 1 does.

    Args:
        fits: is asked for each number once; what is larger than one that does not fit does not fit.
        most: there is no use for more.
        first: is tried first.
    """
    low, high = min(first, most), most + 1
    while not fits(low):
        if low == 1:
            return 0
        low, high = low // 2, low
    while low < most < high:  # nothing has failed yet
        middle = min(2 * low, most)
        low, high = (middle, high) if fits(middle) else (low, middle)
    while high - low > max(low // _FINE, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def proposal(
    plan: Plan, largest: int, *, whole: bool, given: Literal["global", "per_rank"] = "global", unit: int = 1
) -> dict[str, Any]:
    """Say how the global batch is made of what fits, with as few passes as possible.

    Args:
        plan: with the ranks and the global batch.
        largest: batch per rank that fits.
        whole: that is all there are samples for.
        given: what of the batch the config gives.
        unit: of which a pass must be a multiple, where it can be.
    """
    of_rank, rest = divmod(plan.global_batch or 0, plan.ranks)
    if rest or not of_rank:
        raise AssertionError("the plan would have been refused")
    fitting = [n for n in range(1, of_rank + 1) if of_rank % n == 0 and of_rank // n <= largest]
    accumulate = next((n for n in fitting if of_rank // n % unit == 0), fitting[0])
    batch = {"global": plan.global_batch, "per_rank": of_rank // accumulate}[given]
    return {
        "per_rank": largest,
        "all_samples": whole,
        "ranks": plan.ranks,
        "global": plan.global_batch,
        "accumulate": accumulate,
        "type": f"batch.{given}={batch} batch.accumulate={accumulate}",
    }


def _given(config: Config) -> Literal["global", "per_rank"]:
    return "per_rank" if config.batch is not None and config.batch.per_rank is not None else "global"


def _made(found: dict[str, Any]) -> dict[str, int]:
    """Return the batch that is proposed, as fields of the section."""
    if found["type"].startswith("batch.global="):
        return {"global_": found["global"]}
    return {"per_rank": found["global"] // found["ranks"] // found["accumulate"]}


def _problem(loaded: Loaded, ranks: int, batch: dict[str, Any]) -> str:
    """Say why the config's own plan refuses a batch; nothing if it does not."""
    if loaded.config.batch is None:
        raise AssertionError("a config that trains has this section")
    changed = msgspec.structs.replace(loaded.config.batch, **batch)
    try:
        ready.make_plan(loaded.replaced(msgspec.structs.replace(loaded.config, batch=changed)), "local", ranks)
    except ConfigError as error:
        return error.message
    return ""


def _unit(config: Config) -> int:
    """Return how many samples batch norms see together, at least: a pass has a multiple of it."""
    if config.model is None or not has_batch_norm(config.model) or config.model.batch_norm == "sync":
        return 1
    return (config.model.ghost_batch or norms.GHOST_BATCH) if config.model.batch_norm == "ghost" else 2


def _with(loaded: Loaded, per_rank: int) -> Loaded:
    """Return a config that takes as much memory in a step, at a constant rate: no batch is too large for that."""
    config, plain = loaded.config, Optim(lr=1.0)
    if config.optim is None:
        raise AssertionError("a config that trains has this section")
    optim = msgspec.structs.replace(
        config.optim, **{name: getattr(plain, name) for name in (*BY_SCHEDULE, "schedule", "scale", "base_batch")}
    )
    if config.optim.cycle_momentum is not None and optim.name in BY_NAME["momentum"]:
        optim = msgspec.structs.replace(optim, momentum=min(config.optim.cycle_momentum))
    batch = Batch(per_rank=per_rank, tail="drop")
    return loaded.replaced(msgspec.structs.replace(config, batch=batch, optim=optim, log=Log()))


def _memory(loaded: Loaded, plan: Plan) -> int | None:
    """Return the bytes that a rank on CPUs may take: its part of slurm.mem, or of what is free here."""
    if plan.device == "cuda":
        return None
    asked = loaded.config.slurm.mem
    whole = int(asked[:-1]) * _UNITS[asked[-1]] if asked else _available()
    return whole // plan.ranks_per_node


def _available() -> int:
    with open("/proc/meminfo") as file:  # noqa: PTH123 - a path object buys nothing here
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _is_memory(outcome: dict[str, Any]) -> bool:
    """Say whether a rank ran out of memory: it said so, or what it needed was refused to native code, which aborts."""
    if outcome.get("cause") == "out_of_memory":
        return True
    message = str(outcome.get("message"))
    return any(sign in message for sign in ("bad_alloc", "SIGABRT", "could not create a", "Cannot allocate memory"))
