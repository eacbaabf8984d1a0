"""The training loop.

1. Check that what is here is what was planned; build data, model and optimizer (`prepare`).
2. Shut out older attempts; go on from the newest checkpoint that verifies.
3. Steps: learning rate, passes, update; now and then agree whether to stop, report, evaluate, save.
4. Wait for the last save, write the outcome, wait until all ranks are here.

The step is the only state of the learning rate and of the order of samples.
"""

import time

import torch

from hpctrain.config.schema import Config
from hpctrain.dist.comm import Comm
from hpctrain.errors import JobError
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.schedule import is_due
from hpctrain.train import outcome, prepare, rng, weights
from hpctrain.train.evaluate import Result
from hpctrain.train.evaluations import Evaluations
from hpctrain.train.grace import Grace
from hpctrain.train.guard import Guard
from hpctrain.train.heartbeat import Heart, Phase
from hpctrain.train.history import History
from hpctrain.train.interval import Interval
from hpctrain.train.keeper import Keeper
from hpctrain.train.limits import limits
from hpctrain.train.metrics import Lines, Meter, Report, Timer
from hpctrain.train.noise import NoiseScale
from hpctrain.train.outcome import Outcome
from hpctrain.train.passes import Passes
from hpctrain.train.prepare import Numbers, Parts
from hpctrain.train.progress import Progress
from hpctrain.train.rates import Rates
from hpctrain.train.stop import Cause, Stop
from hpctrain.world import World


def train(  # noqa: C901, PLR0912, PLR0915 - one loop, read from top to bottom
    run: RunDir,
    attempt: int,
    config: Config,
    plan: Plan,
    world: World,
    comm: Comm,
    device: torch.device,
    stop: Stop,
    *,
    heart: Heart | None = None,
    debug: bool = False,
) -> Outcome:
    """Train from where the run stands to its end, or until told to stop.

    Every rank calls this once, and gets the outcome after rank 0 has saved the last step and written it down.

    Args:
        run: where everything is written.
        attempt: its number; only this attempt's files are appended to.
        config: as frozen in the run directory.
        plan: made from it; what is here is checked against it.
        world: this process.
        comm: all ranks.
        device: of this rank.
        stop: with its handlers installed.
        heart: shows the watchdog what this rank does.
        debug: name the operation that made a NaN, and refuse what is not deterministic.

    Raises:
        WorldError: the ranks, the rate or the batch are not the planned ones.
        DataError: the dataset cannot be read, or is another than planned.
        CheckpointError: a checkpoint cannot be written (raised at a later step), or does not fit the config.
        JobError: the loss is no number any more, or the user's model failed.
    """
    began = time.perf_counter()
    heart = heart or Heart()
    enter = heart.enter
    if debug:
        torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(True)
    numbers = prepare.planned(config, plan, world, comm)
    rng.key(plan.seed, 0, comm.rank, device)
    parts = prepare.parts(config, plan, numbers, comm, device)
    average = prepare.average(config, parts.model)
    history = History(config)
    keeper = Keeper(run, attempt, config, plan, parts, average, history, comm, device)
    found = keeper.resume()
    if found is None and config.model is not None:
        weights.start(config.model, plan, parts.model, average)
    total, start = numbers.total_steps, 0 if found is None else found.step
    if start > total:
        raise JobError(
            f"the newest checkpoint is of step {start}, and the plan ends at step {total}",
            "ask for more: train.epochs or train.steps",
        )
    heart.begin(start)
    grace = stop.grace = Grace(run.timing(attempt), config, parts.model) if comm.rank == 0 else None
    report, meter, timer = _report(run, attempt, numbers, parts, comm), Meter(parts.objective.score), Timer()
    evaluations = Evaluations(parts, average, history, comm, report, timer, grace, enter)
    interval = Interval(meter, report, timer, grace, numbers.global_batch)
    keeper.open(total - start, evaluations, timer, grace, enter, debug=debug)
    progress = Progress(run, attempt, start, comm.rank)
    guard = Guard("stop" if config.train is None else config.train.on_nan, parts.model, parts.step, comm.rank)
    noise = _noise_scale(config, numbers, parts, comm)
    rates = Rates(config, plan, parts.step.optimizer, history)
    bounds = limits(config, parts.model, parts.step)
    sample_log = Lines(run.samples(attempt, comm.rank)) if config.log.samples else None
    passes = Passes(config, numbers, plan.seed, parts, comm, device, meter, enter)
    passes.begin(start)
    cause: Cause | None = None
    done, lr = start, rates.at(max(start - 1, 0))

    if found is not None and not found.evaluated and is_due(start, numbers.eval_every_steps, total):
        evaluations.run(done, lr, ends=done == total)  # the attempt before was stopped before it could
        keeper.evaluated(done)
    if guard.may_go_back() and found is None:  # else there would be nowhere to go back to
        keeper.save(done, evaluated=True)

    over = history.over()
    while done < total and over is None:
        index, lr = done, rates.assign(done)
        guard.begin(index)
        share = passes.run(index)
        if noise is not None:
            noise.measure(share)
        if bounds is not None:
            bounds.gradient()
        applied = guard.apply(index)
        if guard.updated and bounds is not None:
            bounds.weights()
        if guard.updated and average is not None:
            average.update()
        done = index + 1
        progress.done(done)
        keeper.poll()
        interval.count(share, applied=applied)
        if sample_log is not None:
            audit = {"epoch": share.epoch, "step": done, "ids": share.ids()}
            sample_log.write(audit if applied else audit | {"applied": False})
        if index == start or done == total:
            rates.check(share, comm, lr)

        if done >= stop.next_step and done < total:
            enter(Phase.COMM, done)
            cause = stop.agree(done, comm)
        reports = cause is not None or is_due(done, numbers.log_every_steps, total)
        evaluates = is_due(done, numbers.eval_every_steps, total)
        saves = cause is not None or is_due(done, numbers.checkpoint_every_steps, total)
        if reports or evaluates or saves:
            enter(Phase.COMM, done)
            if not interval.sum(comm) or (saves and not guard.is_sound()):  # not worth keeping, nor to go on with
                back = _go_back(keeper, guard, interval.loss, done, lr)
                if sample_log is not None:
                    sample_log.write({"rolled_back": {"from": done, "to": back}})
                done, cause = back, None
                stop.next_step = min(stop.next_step, done + 1)
                interval.forget()
                passes.begin(done)
                continue
        if reports:
            interval.write(done, lr, guard.skipped, {} if noise is None else noise.report())
        if cause is not None:
            keeper.save(done, evaluated=not evaluates)
            break
        if evaluates:
            evaluations.run(done, lr, ends=done == total)
            over = history.over() if done < total and guard.is_sound() else None
            if over is not None:
                rates.check(share, comm, lr)
        if saves or over is not None:
            keeper.save(done, evaluated=True)

    passes.close()
    keeper.finish(done)
    if cause is None and evaluations.result is None:  # the attempt before saved the last step, and no more
        evaluations.run(done, lr, ends=True)
    speed = interval.seen / timer.seconds() if interval.seen else None
    ended = _outcome(cause, over, done, numbers, parts, evaluations.result, speed, time.perf_counter() - began)
    report.close()
    if sample_log is not None:
        sample_log.close()
    if comm.rank == 0:
        print(ended.line(), flush=True)  # first: who follows the log stops at the outcome
        outcome.write(run, attempt, ended)
    enter(Phase.COMM, done)
    comm.barrier()  # no rank may end before rank 0 has saved: the end of one can mean the end of all
    return ended


def _report(run: RunDir, attempt: int, numbers: Numbers, parts: Parts, comm: Comm) -> Report:
    return Report(
        run.metrics(attempt) if comm.rank == 0 else None,
        steps_per_epoch=numbers.steps_per_epoch,
        total_steps=numbers.total_steps,
        score_name=parts.objective.score_name,
    )


def _noise_scale(config: Config, numbers: Numbers, parts: Parts, comm: Comm) -> NoiseScale | None:
    if not config.log.noise_scale:
        return None
    batch, accumulate = numbers.global_batch, numbers.accumulate
    return NoiseScale(parts.model, parts.step, global_batch=batch, accumulate=accumulate, comm=comm)


def _go_back(keeper: Keeper, guard: Guard, loss: float, done: int, lr: float) -> int:
    """Restore the newest checkpoint after the loss or a weight became no number; return its step.

    Raises:
        JobError: the run shall not, or cannot, go back.
    """
    keeper.wait()  # for what may be gone back to
    back = keeper.restore() if guard.may_go_back() else None
    if back is None:
        raise guard.error(loss, done, lr)
    guard.went_back(done, back.step)
    return back.step


def _outcome(
    cause: Cause | None,
    over: str | None,
    done: int,
    numbers: Numbers,
    parts: Parts,
    result: Result | None,
    speed: float | None,
    seconds: float,
) -> Outcome:
    score = None if result is None else result.score / result.samples
    name = parts.objective.score_name
    return Outcome(
        verdict="completed" if cause is None else "stopped",
        cause=cause,
        message=(over or "") if cause is None else f"told to stop, saved at step {done}",
        step=done,
        total_steps=numbers.total_steps,
        epoch=done / numbers.steps_per_epoch,
        accuracy=score if name == "accuracy" else None,
        error=score if name == "error" else None,
        loss=None if result is None else result.loss,
        metrics={} if result is None else result.metrics,
        samples_per_s=speed,
        time_s=seconds,
    )
