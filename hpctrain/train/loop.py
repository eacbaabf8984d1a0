"""The training loop.

1. Check that what is here is what was planned; build data, model and optimizer (`prepare`).
2. Shut out older attempts; go on from the newest checkpoint that verifies.
3. Steps: learning rate, passes, update; now and then agree whether to stop, report, evaluate, save.
4. Wait for the last save, write the outcome, wait until all ranks are here.

The step is the only state of the learning rate and of the order of samples.
"""

import contextlib
import functools
import hashlib
import math
import time
from collections import deque
from collections.abc import Iterator

import torch

from hpctrain.config.schema import Config
from hpctrain.data.batches import Batches, Share
from hpctrain.data.dataset import Wanted
from hpctrain.dist.comm import Comm
from hpctrain.errors import JobError
from hpctrain.models.build import draws as model_draws
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.schedule import is_due
from hpctrain.train import outcome, prepare, rng, weights
from hpctrain.train.average import Average
from hpctrain.train.checkpoint import Checkpoints
from hpctrain.train.evaluate import Result, evaluate
from hpctrain.train.grace import Grace
from hpctrain.train.guard import Guard
from hpctrain.train.heartbeat import Heart, Phase
from hpctrain.train.metrics import Lines, Meter, Report, Timer
from hpctrain.train.outcome import Outcome
from hpctrain.train.progress import Progress
from hpctrain.train.state import share_buffers
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
    data, model, wrapped, precision, objective = prepare.parts(config, plan, numbers, comm, device)
    decay = None if config.train is None else config.train.ema
    average = None if decay is None else Average(model, decay)
    checkpoints = Checkpoints(run, attempt, plan, config)
    found = prepare.resume(checkpoints, comm, model, wrapped, average, device)
    if found is None and config.model is not None:
        weights.start(config.model, plan, model, average)
    total, start = numbers.total_steps, 0 if found is None else found.step
    if start > total:
        raise JobError(
            f"the newest checkpoint is of step {start}, and the plan ends at step {total}",
            "ask for more: train.epochs or train.steps",
        )
    heart.begin(start)
    grace = stop.grace = Grace(run.timing(attempt), config, model) if comm.rank == 0 else None
    saver = prepare.saver(run, checkpoints, config, model, device, steps=total - start, ranks=comm.size, debug=debug,
                          grace=grace)  # fmt: skip
    progress = Progress(run, attempt, start, comm.rank)
    batches = Batches(
        samples=numbers.train_samples,
        global_batch=numbers.global_batch,
        steps_per_epoch=numbers.steps_per_epoch,
        accumulate=numbers.accumulate,
        rank=comm.rank,
        ranks=comm.size,
        seed=plan.seed,
        block=config.data.block if config.data is not None and config.data.shuffle == "blocks" else None,
    )
    guard = Guard("stop" if config.train is None else config.train.on_nan, model, wrapped, comm.rank)
    rate = prepare.rate_of(config, numbers)
    report = Report(
        run.metrics(attempt) if comm.rank == 0 else None,
        steps_per_epoch=numbers.steps_per_epoch,
        total_steps=total,
        score_name=objective.score_name,
    )
    sample_log = Lines(run.samples(attempt, comm.rank)) if config.log.samples else None
    draws = config.model is not None and model_draws(model, config.model.name)
    shares: deque[Share] = deque()  # of steps whose batches are being made
    coming = data.train.stream(_wanted(batches, start, total, comm, shares))
    meter, timer = Meter(objective.score), Timer()
    cause: Cause | None = None
    result: Result | None = None
    scored: tuple[int, float] | None = None  # after which step, and the score that tells the best checkpoint
    done, seen, reported, lr = start, 0, 0, rate(max(start - 1, 0))

    def evaluate_now() -> Result | None:
        """Evaluate on the validation set if there is one, and on the test set at the end, or if there is none."""
        nonlocal scored
        timer.pause()
        enter(Phase.COMM, done)
        share_buffers(model, comm)
        beat = functools.partial(enter, step=done)
        latest = None
        for split, part in (("validation", data.validation), ("test", data.test)):
            if part is None or (part is data.test and data.validation is not None and done < total):
                continue
            with contextlib.nullcontext() if average is None else average.in_use():
                latest = evaluate(model, part, objective, comm=comm, precision=precision, beat=beat)
            if split == "validation" or data.validation is None:
                scored = (done, latest.score / latest.samples)
            report.write(split, step=done, samples=latest.samples, score=latest.score, loss=latest.loss, lr=lr,
                         seconds=latest.seconds, metrics=latest.metrics)  # fmt: skip
            if grace is not None:
                grace.evaluated(latest.seconds)
        enter(Phase.COMM, done)
        timer.go_on()
        return latest if data.validation is None or done == total else None

    def save(*, evaluated: bool) -> None:
        timer.pause()
        states = rng.gather(comm, device)
        if saver is not None:
            enter(Phase.CHECKPOINT, done)
            score = scored[1] if scored is not None and scored[0] == done else None
            saver.save(done, model, wrapped, average, states, evaluated=evaluated, score=score,
                       score_name=objective.score_name)  # fmt: skip
        timer.go_on()

    if found is not None and not found.evaluated and is_due(start, numbers.eval_every_steps, total):
        result = evaluate_now()  # the attempt before was stopped between the step and its evaluation

    if guard.may_go_back() and found is None:  # else there would be nowhere to go back to
        save(evaluated=True)

    while done < total:
        index, lr = done, rate(done)
        guard.begin(index)
        for group in wrapped.optimizer.param_groups:
            group["lr"] = lr
        for number in range(numbers.accumulate):
            last = number == numbers.accumulate - 1
            enter(Phase.DATA, index, number)
            inputs, targets = next(coming)
            share = shares[0]
            enter(Phase.FORWARD, index, number)
            if draws:
                _seed_draws(plan.seed, index, number * comm.size + comm.rank, device)
            with precision.arithmetic():
                outputs = wrapped.forward(inputs, last=last)
            heads = objective.heads(outputs, precision.dtype)
            loss = objective.total(heads, targets)
            if share.stand_in[number]:  # of a last, smaller batch: it keeps the ranks in step and weighs nothing
                loss = loss * 0.0
            else:
                meter.add(heads[0], targets, loss)
            enter(Phase.BACKWARD, index, number)
            wrapped.backward(loss / share.samples, last=last)
        applied = guard.apply(index)
        if guard.updated and average is not None:
            average.update()
        shares.popleft()
        done = index + 1
        progress.done(done)
        if saver is not None:
            saver.poll()
        if applied:
            meter.keep()
            seen += share.samples
        else:
            meter.drop()
        if sample_log is not None:
            audit = {"epoch": share.epoch, "step": done, "ids": share.ids()}
            sample_log.write(audit if applied else audit | {"applied": False})
        if index == start or done == total:
            prepare.check_step(wrapped.optimizer, rate(index), share.mine, share.samples, comm, plan)

        if done >= stop.next_step and done < total:
            enter(Phase.COMM, done)
            cause = stop.agree(done, comm)
        reports = cause is not None or is_due(done, numbers.log_every_steps, total)
        evaluates = is_due(done, numbers.eval_every_steps, total)
        saves = cause is not None or is_due(done, numbers.checkpoint_every_steps, total)
        if reports or evaluates or saves:
            enter(Phase.COMM, done)
            loss_sum, score = comm.sum(meter.totals()).tolist()
            if not math.isfinite(loss_sum) or (saves and not guard.is_sound()):  # not worth keeping, nor to go on with
                if saver is not None:
                    saver.wait()  # for what may be gone back to
                back = None
                if guard.may_go_back():
                    back = prepare.restore(checkpoints, comm, model, wrapped, average, device)
                if back is None:
                    raise guard.error(loss_sum, done, lr)
                guard.went_back(done, back.step)
                if sample_log is not None:
                    sample_log.write({"rolled_back": {"from": done, "to": back.step}})
                done, reported, cause = back.step, seen, None
                stop.next_step = min(stop.next_step, done + 1)
                meter.reset()
                timer.lap()
                coming.close()
                shares.clear()
                coming = data.train.stream(_wanted(batches, done, total, comm, shares))
                continue
        if reports and seen > reported:
            count, seconds = seen - reported, timer.lap()
            report.write("train", step=done, samples=count, score=score, loss=loss_sum / count, lr=lr,
                         seconds=seconds, skipped=guard.skipped)  # fmt: skip
            if grace is not None:
                grace.stepped(seconds * numbers.global_batch / count)
            meter.reset()
            reported = seen
        if cause is not None:
            save(evaluated=not evaluates)
            break
        if evaluates:
            result = evaluate_now()
        if saves:
            save(evaluated=True)

    coming.close()
    if saver is not None:
        enter(Phase.CHECKPOINT, done)
        saver.wait()
    if cause is None and result is None:  # the attempt before saved the last step, and no more
        result = evaluate_now()
    training_s = timer.seconds()
    score = None if result is None else result.score / result.samples
    ended = Outcome(
        verdict="completed" if cause is None else "stopped",
        cause=cause,
        message="" if cause is None else f"told to stop, saved at step {done}",
        step=done,
        total_steps=total,
        epoch=done / numbers.steps_per_epoch,
        accuracy=score if objective.score_name == "accuracy" else None,
        error=score if objective.score_name == "error" else None,
        loss=None if result is None else result.loss,
        metrics={} if result is None else result.metrics,
        samples_per_s=seen / training_s if seen else None,
        time_s=time.perf_counter() - began,
    )
    report.close()
    if sample_log is not None:
        sample_log.close()
    if comm.rank == 0:
        print(ended.line(), flush=True)  # first: who follows the log stops at the outcome
        outcome.write(run, attempt, ended)
    enter(Phase.COMM, done)
    comm.barrier()  # no rank may end before rank 0 has saved: the end of one can mean the end of all
    return ended


def _wanted(batches: Batches, start: int, total: int, comm: Comm, shares: "deque[Share]") -> Iterator[Wanted]:
    """Say which batches are wanted from a step on, across epochs; their shares go to the queue for the loop."""
    for index in range(start, total):
        share = batches[index]
        shares.append(share)
        for number, ids in enumerate(share.passes):
            yield Wanted(ids, share.epoch, index, number * comm.size + comm.rank)


def _seed_draws(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Key the random numbers of a pass (dropout) by what it computes, not by who computes it or what came before."""
    text = f"hpctrain draws {seed} {step} {micro_batch}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(key)
