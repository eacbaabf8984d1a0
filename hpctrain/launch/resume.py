"""`hpctrain resume`: go on with a run that has ended, for longer, on other ranks or with mended code.

1. The frozen config with what is asked laid over it gives a new plan; the global batch stays, by other accumulation.
2. What the newest checkpoint could not go on with is refused here, before the queue.
3. Own the run, keep what was frozen as history (`config.1.yaml`), publish the new files, start, hand the run over.

The step is the whole state of order and rates, so that nothing else needs to be carried over.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from hpctrain import plan as planning
from hpctrain.config.load import Loaded, load
from hpctrain.errors import ClusterError, UsageError
from hpctrain.launch import owner, ready, requeue, slurm, submit
from hpctrain.launch.passes import passes_for
from hpctrain.launch.ready import Scheduler
from hpctrain.launch.render import render
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir, read_json

_TAKEOVER_S = 60.0  # a Python that starts from a busy network file system


class Prepared(NamedTuple):
    """A run that can go on, and how."""

    run: RunDir
    loaded: Loaded
    plan: Plan
    where: Scheduler
    code: bool
    """Take a new snapshot of the code."""


def scheduler_of(run: RunDir) -> Scheduler:
    """Return where a run was started last."""
    return "local" if read_json(run.job).get("scheduler") == "local" else "slurm"


def prepare(run: RunDir, overrides: Sequence[str], where: Scheduler, *, code: bool) -> Prepared:
    """Work out how a run would go on; nothing is changed.

    Args:
        run: the run directory.
        overrides: `key=value`, laid over its frozen config.
        where: on Slurm, or in the background of this machine.
        code: the code of this directory will take the place of the snapshot.

    Raises:
        ConfigError: the config or the plan has problems.
        UsageError: it cannot go on with what is asked, or there is nothing left to do.
        OwnedError: it has not ended.
        ClusterError: Slurm cannot be asked.
    """
    owner.refuse_owned(run)
    try:
        before = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{run.plan} cannot be read: {error}", "start a new run with hpctrain submit") from None
    with ready.where_it_was_made(run):
        ranks = before.ranks if where == scheduler_of(run) == "local" and not _asks_for_ranks(overrides) else None
        loaded = load(run.config, _completed(run, before, overrides, where, ranks))
        plan = ready.make_plan(loaded, where, ranks, before=before if run.checkpoints() else None)
        _compare(run, before, plan)
        _refuse_over(run, loaded)
        ready.refuse_unfit(loaded, plan, where, own_code=False)
    if code:
        ready.refuse_unfit(loaded, plan, where)
    return Prepared(run, loaded, plan, where, code)


def _given(overrides: Sequence[str], key: str) -> bool:
    return any(f"{override.partition('=')[0]}.".startswith(f"{key}.") for override in overrides)


def _asks_for_ranks(overrides: Sequence[str]) -> bool:
    return _given(overrides, "dist.ranks") or any(override.partition("=")[0] == "dist" for override in overrides)


def _completed(run: RunDir, before: Plan, overrides: Sequence[str], where: Scheduler, ranks: int | None) -> list[str]:
    """Return the overrides with what follows from them: nodes for ranks, and passes that keep the global batch."""
    found = list(overrides)
    if where == "slurm":
        found += _nodes_for(run, overrides)
        if not _given(found, "slurm.dependency"):
            found.append("slurm.dependency=null")  # what it waited for is over, and Slurm may not know it any more
    if before.global_batch is None or _given(overrides, "batch.global") or _given(overrides, "batch.per_rank"):
        return found
    if "batch" in {override.partition("=")[0] for override in overrides}:
        return found
    loaded = load(run.config, found)
    layout = planning.layout_on_slurm(loaded) if where == "slurm" else planning.layout_here(loaded, ranks)
    found.append(f"batch.global={before.global_batch}")
    if not _given(overrides, "batch.accumulate"):
        together = loaded.config.model is not None and loaded.config.model.batch_norm == "sync"
        found.append(f"batch.accumulate={passes_for(before, layout.ranks, together=together)}")
    return found


def _nodes_for(run: RunDir, overrides: Sequence[str]) -> list[str]:
    """Turn `dist.ranks=8` into nodes: on Slurm they decide."""
    asked = [override.partition("=")[2] for override in overrides if override.startswith("dist.ranks=")]
    if not asked or not asked[0].isdigit() or _given(overrides, "slurm.nodes"):
        return []
    slurm_config, ranks = load(run.config).config.slurm, int(asked[0])
    per_node = slurm_config.ranks_per_node or slurm_config.gpus_per_node or 1
    return [f"slurm.nodes={ranks // per_node}"] if ranks and ranks % per_node == 0 else []


def _compare(run: RunDir, before: Plan, plan: Plan) -> None:
    """Refuse a plan with which the step of the newest checkpoint would mean something else, or no step is left."""
    step = max(run.checkpoints(), default=0)
    if plan.global_batch != before.global_batch:
        raise UsageError(
            f"{run.name} was trained with a global batch of {before.global_batch}; now {plan.batch_per_rank} per rank "
            f"x {plan.accumulate} passes x {plan.ranks} ranks = {plan.global_batch}, and step {step} would stand for "
            f"{step * (plan.global_batch or 0)} samples instead of {step * (before.global_batch or 0)}",
            f"keep batch.global={before.global_batch} (other ranks are fine), or start a new run",
        )
    if plan.seed != before.seed:
        raise UsageError(
            f"{run.name} was trained with seed {before.seed}; seed {plan.seed} gives another order of samples",
            f"go on with seed={before.seed}, or start a new run",
        )
    samples = ("train_samples", "steps_per_epoch", "data_digest")
    if any(getattr(plan, name) != getattr(before, name) for name in samples):
        other = "; the data have changed" if plan.data_digest != before.data_digest else ""
        raise UsageError(
            f"{run.name} was trained on {before.train_samples} samples in {before.steps_per_epoch} steps per epoch; "
            f"now there are {plan.train_samples} in {plan.steps_per_epoch}{other}",
            "go on with the same data and batch.tail, or start a new run",
        )
    total = plan.total_steps
    if total is None:
        return
    numbers = run.attempt_numbers()
    completed = bool(numbers) and read_json(run.outcome(numbers[-1])).get("verdict") == "completed"
    if step > total or (completed and step >= total):
        done = "is complete" if step == total else "has gone further"
        raise UsageError(
            f"{run.name} {done}: its newest checkpoint is of step {step}, and what is asked ends at step {total}",
            "ask for more: train.epochs=N or train.steps=N",
        )


def _refuse_over(run: RunDir, loaded: Loaded) -> None:
    """Refuse to start a run that has stopped early, and would at once do so again."""
    numbers, train = run.attempt_numbers(), loaded.config.train
    ended = read_json(run.outcome(numbers[-1])) if numbers else {}
    if ended.get("verdict") != "completed" or not ended.get("message") or train is None or train.stop_early is None:
        return
    before = load(run.config).config.train
    if before is not None and before.stop_early == train.stop_early:
        raise UsageError(
            f"{run.name} is complete: it {ended['message']}",
            f"bear more: train.stop_early.patience={2 * train.stop_early.patience}, or train.stop_early=null",
        )


def script(prepared: Prepared) -> str:
    """Return the batch script with which the run would go on."""
    with ready.where_it_was_made(prepared.run):
        return render(prepared.loaded, prepared.plan, prepared.run, python=sys.executable)


def start(prepared: Prepared, *, argv: Sequence[str]) -> str:
    """Freeze the run anew and start it; return its job id.

    Raises:
        OwnedError: somebody else has started it meanwhile.
        UsageError: the run directory cannot be written.
        ClusterError: Slurm refused; all is as it was, then.
    """
    run = prepared.run
    claim = owner.claim(run, owner.of_process())
    number = _next(run)
    try:
        _freeze(prepared, number, argv)
        ready.show(prepared.loaded, prepared.plan, prepared.where)
        if prepared.where == "local":
            return _to_background(run, claim)
        return _to_slurm(run, claim)
    except BaseException:
        newest, holder = owner.newest(run)
        if newest == claim or holder.get("released"):  # nobody runs it
            _restore(run, number)
            owner.release(run, claim)
        raise


def _to_slurm(run: RunDir, claim: int) -> str:
    """Queue the job as held, so that it cannot start before it owns the run."""
    job_id = slurm.submit(run.script, hold=True)
    try:
        submit.record_slurm(run, job_id, handed_over=claim)
    except BaseException:
        slurm.cancel(job_id)
        owner.release(run, claim + 1)
        raise
    requeue.let_go(job_id)
    return job_id


def _to_background(run: RunDir, claim: int) -> str:
    """Start the supervisor, and stay until it owns the run."""
    job_id = submit.to_background(run, handed_over=claim)
    deadline = time.monotonic() + _TAKEOVER_S
    while owner.newest(run)[0] == claim:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job_id.removeprefix("local-")), signal.SIGKILL)
            raise ClusterError(
                "the supervisor was started, but does not take the run over", f"see {run.path}/supervisor.log"
            )
        time.sleep(0.02)
    return job_id


def _next(run: RunDir) -> int:
    number = 1
    while run.former(run.config, number).exists():
        number += 1
    return number


def _frozen(run: RunDir) -> tuple[Path, ...]:
    return (run.config, run.plan, run.script, run.env, run.code_sums)


def _freeze(prepared: Prepared, number: int, argv: Sequence[str]) -> None:
    """Keep what was frozen as history, then publish the new files, each of which replaces the old one at once."""
    run = prepared.run
    try:
        for path in _frozen(run):
            if path.exists() and (prepared.code or path != run.code_sums):
                shutil.copy2(path, run.former(path, number))
        if prepared.code and run.code.exists():
            run.code.rename(run.former(run.code, number))
        with contextlib.nullcontext() if prepared.code else ready.where_it_was_made(run):
            submit.write(run, prepared.loaded, prepared.plan, argv=argv, code=prepared.code)
    except OSError as error:
        raise UsageError(f"{run.path}: {error.strerror or error}", "make room, then try again") from None


def _restore(run: RunDir, number: int) -> None:
    """Put back what was frozen before, as if nothing had been asked."""
    for path in _frozen(run):
        former = run.former(path, number)
        if former.exists():
            former.replace(path)
    former_code = run.former(run.code, number)
    if former_code.exists():
        shutil.rmtree(run.code, ignore_errors=True)
        former_code.rename(run.code)
