"""Checkpoints that are whole or absent, and whose every byte is checked before it is trusted.

- Written by rank 0 below `stage/attempt_N`, synced, renamed into `ckpt/`, and the directory synced: after a crash at
  any moment there is the old set or the new one.
- Published only by renaming out of the attempt's own stage directory. A new attempt first makes its own, then renames
  the older ones away, so a stale attempt that still runs somewhere fails with ENOENT at its next save. It need not
  look first whether it is stale, which could change between the look and the save.
- Deleted only after a newer one was read back from the disk and verified.
- "Latest" is what verifies, never what a file says.
"""

import contextlib
import errno
import hashlib
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import nn

from hpctrain import manifest as manifests
from hpctrain.config.schema import Config
from hpctrain.data.workers import blocked_signals
from hpctrain.dist.comm import Step
from hpctrain.errors import CheckpointError, DiskFullError
from hpctrain.manifest import EMA, FORMAT, MANIFEST, MODEL, OPTIM, RNG, Manifest, Sum, content
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train import durable, rng, same_run, state
from hpctrain.train.average import Average
from hpctrain.train.snapshot import Snapshot

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Checkpoints:
    """The checkpoints of a run, as one attempt reads and writes them. All but `load` is for rank 0 alone."""

    def __init__(self, run: RunDir, attempt: int, plan: Plan, config: Config) -> None:
        self._run, self._attempt, self._plan, self._config = run, attempt, plan, config
        self._config_sha256 = hashlib.sha256(msgspec.json.encode(config)).hexdigest()
        self._stage = run.staging(attempt)

    def fence(self) -> None:
        """Make this attempt's stage directory and shut out all older attempts.

        Raises:
            CheckpointError: this attempt is itself outdated, or the run directory cannot be written.
        """
        try:
            # First make, then look, then rename: of two attempts at once at least one sees the other.
            self._stage.mkdir(mode=0o700, parents=True)
            others = {path: _number(path) for path in self._run.stage.iterdir() if path != self._stage}
            newer = [number for number in others.values() if number is not None and number > self._attempt]
            if newer:
                raise CheckpointError(f"attempt {max(newer)} of {self._run.path} runs already: this is {self._attempt}")
            for path, number in others.items():
                gone = path if number is None else path.rename(path.with_name(f"shut_{path.name}_by_{self._attempt}"))
                shutil.rmtree(gone, ignore_errors=True)  # what stays, because the old attempt writes, goes next time
            durable.sync(self._run.stage)
        except OSError as error:
            raise self._failed(error, str(self._stage)) from error

    def newest(self) -> tuple[Manifest | None, list[str]]:
        """Find the newest checkpoint that verifies.

        Returns:
            Its manifest, or None if there is none; and what is wrong with each newer one.
        """
        damaged: list[str] = []
        for step in reversed(self._run.checkpoints()):
            try:
                return manifests.verify(self._run.checkpoint(step), step), damaged
            except CheckpointError as error:
                damaged.append(error.message)
        return None, damaged

    def load(
        self,
        manifest: Manifest,
        model: nn.Module,
        step: Step,
        average: Average | None,
        *,
        rank: int,
        device: torch.device,
    ) -> list[str]:
        """Put a checkpoint's state into all that has a state; every rank checks what it reads.

        Returns:
            What is worth telling: what does not go on exactly as it would have without the interruption, and why.

        Raises:
            CheckpointError: the plan gives `step` another meaning, the model has another shape, or a byte changed.
        """
        path = self._run.checkpoint(manifest.step)
        same_run.check(manifest, self._plan, self._config, path)
        notes = [f"changed since: {change}" for change in same_run.changes(manifest, self._config)]
        state.load_model(model, content(path / MODEL, manifest.files[MODEL]), str(path / MODEL))
        found = content(path / OPTIM, manifest.files[OPTIM])
        state.load_optimizer(step.optimizer, found, manifest.optimizer, str(path / OPTIM))
        if step.scaler is not None and manifest.scaler is not None:
            step.scaler.load_state_dict(manifest.scaler)
        if average is not None:  # where the checkpoint has none, it begins with the weights
            with average.in_use():
                name = EMA if EMA in manifest.files else MODEL
                state.load_model(model, content(path / name, manifest.files[name]), str(path / name))
        return notes + self._load_generators(manifest, path, rank, device)

    def _load_generators(self, manifest: Manifest, path: Path, rank: int, device: torch.device) -> list[str]:
        plan = self._plan
        rows = state.tensors(content(path / RNG, manifest.files[RNG]), str(path / RNG))
        if manifest.ranks == plan.ranks and (device.type == "cuda") == ("cuda" in rows):
            try:
                rng.restore({name: row[rank] for name, row in rows.items()}, device)
            except (KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError, struct.error) as error:
                raise CheckpointError(f"{path / RNG}: holds no states of this run's generators: {error}") from error
            return []
        rng.key(plan.seed, manifest.step, rank, device)
        was, now = (manifest.ranks, manifest.accumulate), (plan.ranks, plan.accumulate or 1)
        same = "the same" if was[0] * was[1] == now[0] * now[1] else "other"
        note = (
            f"saved by {was[0]} ranks x {was[1]} passes, going on with {now[0]} x {now[1]}: the same samples in "
            f"{same} micro-batches; what your code draws from global generators is keyed anew"
        )
        return [note]

    def publish(
        self,
        snapshot: Snapshot,
        *,
        evaluated: bool,
        score: float | None = None,
        score_name: Literal["accuracy", "error"] = "accuracy",
        losses: Sequence[tuple[int, float | None]] = (),
    ) -> None:
        """Publish a snapshot, read it back, then delete those that are no longer to be kept.

        Args:
            snapshot: of the state.
            evaluated: an evaluation that was due at its step has been done.
            score: what that gave, to know the best; None: there was none.
            score_name: what the score is.
            losses: on the validation set, by step.

        Raises:
            CheckpointError: it cannot be written, or a newer attempt has shut this one out.
            DiskFullError: there is no room for it.
        """
        done, size = snapshot.step, sum(map(len, snapshot.files.values()))
        manifest = msgspec.structs.replace(
            self._manifest(snapshot, evaluated=evaluated, score=score, score_name=score_name), losses=tuple(losses)
        )
        target = self._run.checkpoint(done)
        try:
            snapshot.arrived()
            published = self._publish(target, snapshot.files, manifest)
            if manifests.verify(target, done, written=True).sha256 != published.sha256:
                raise CheckpointError(f"{target}: another run wrote it in the meantime")
        except FileNotFoundError as error:
            raise self._shut_out(f"step {done} was not saved:", error) from error
        except OSError as error:
            shutil.rmtree(self._stage / target.name, ignore_errors=True)  # room for those who say what happened
            raise self._failed(error, f"step {done} was not saved", f" ({size} bytes for {target})") from error
        try:
            self._delete_old(done)
        except FileNotFoundError as error:
            raise self._shut_out(f"step {done} was saved, and then", error) from error
        except OSError as error:
            raise self._failed(error, f"step {done} is saved, but an older one cannot be deleted") from error

    def amend(self, done: int, *, score: float | None, losses: Sequence[tuple[int, float | None]]) -> None:
        """Note in a published checkpoint what an evaluation gave that was due at its step and is made only now.

        Args:
            done: its step.
            score: of the evaluation.
            losses: on the validation set, by step.

        Raises:
            CheckpointError: it cannot be written, or a newer attempt has shut this one out.
            DiskFullError: there is no room for it.
        """
        target = self._run.checkpoint(done)
        staged = self._stage / f"{target.name}.json"
        finite = score if score is not None and math.isfinite(score) else None
        try:
            before = manifests.read(target, done)
            made = msgspec.structs.replace(before, evaluated=True, score=finite, losses=tuple(losses)).sealed()
            durable.write(staged, made.encode())
            staged.rename(target / MANIFEST)
            durable.sync(target)
        except FileNotFoundError as error:
            raise self._shut_out(f"the evaluation at step {done} was not noted:", error) from error
        except OSError as error:
            staged.unlink(missing_ok=True)
            raise self._failed(error, f"the evaluation at step {done} was not noted in {target}") from error

    def _shut_out(self, what: str, error: FileNotFoundError) -> CheckpointError:
        return CheckpointError(
            f"{what} attempt {self._attempt} was shut out by a newer attempt of {self._run.path} ({error.filename} is "
            "gone)",
            "this attempt is stale; the newer one goes on from the last checkpoint",
        )

    def _publish(self, target: Path, files: Mapping[str, memoryview], manifest: Manifest) -> Manifest:
        staged = self._stage / target.name
        if staged.exists():  # an earlier save of this attempt failed half-way
            shutil.rmtree(staged)
        staged.mkdir(mode=0o700)  # not `parents`: a fenced attempt must fail here
        with ThreadPoolExecutor(1) as beside:  # hashing and writing both leave Python's lock to others
            with blocked_signals():
                digests = {name: beside.submit(hashlib.sha256, part) for name, part in files.items()}
            for name, part in files.items():
                durable.write(staged / name, part)
            sums = {name: Sum(len(files[name]), digest.result().hexdigest()) for name, digest in digests.items()}
        manifest = msgspec.structs.replace(manifest, files=sums).sealed()
        durable.write(staged / MANIFEST, manifest.encode())
        durable.sync(staged)
        if os.path.lexists(target):
            # It is damaged, or this attempt would have gone on from it; a directory cannot be renamed onto a full one.
            durable.discard(target.rename(self._stage / f"replaced_{target.name}"))
        staged.rename(target)
        durable.sync(target.parent)
        return manifest

    def _manifest(
        self, snapshot: Snapshot, *, evaluated: bool, score: float | None, score_name: Literal["accuracy", "error"]
    ) -> Manifest:
        plan, done = self._plan, snapshot.step
        steps_per_epoch, global_batch = plan.steps_per_epoch or 1, plan.global_batch or 0
        return Manifest(
            format=FORMAT,
            step=done,
            epoch=done // steps_per_epoch,
            position=done % steps_per_epoch * global_batch,
            seed=plan.seed,
            global_batch=global_batch,
            train_samples=plan.train_samples or 0,
            steps_per_epoch=steps_per_epoch,
            ranks=plan.ranks,
            accumulate=plan.accumulate or 1,
            policy=same_run.policy_of(self._config, plan),
            evaluated=evaluated,
            score=score if score is not None and math.isfinite(score) else None,
            score_name=score_name,
            config=same_run.sections_of(self._config),
            config_sha256=self._config_sha256,
            optimizer=snapshot.optimizer,
            scaler=snapshot.scaler,
        )

    def _delete_old(self, step: int) -> None:
        """Keep the newest up to `step`, and the best if asked; those after it were damaged when this attempt began."""
        present = self._run.checkpoints()
        upto = [other for other in present if other <= step]
        kept = set(upto[-self._config.checkpoint.keep :])
        if self._config.checkpoint.keep_best and (best := manifests.best(self._readable(upto))) is not None:
            kept.add(best.step)
        for other in present:
            if other not in kept:
                # renamed first, so that a crash leaves no half-deleted directory that looks like a checkpoint
                durable.discard(self._run.checkpoint(other).rename(self._stage / f"deleted_step_{other}"))

    def _readable(self, steps: Iterable[int]) -> Iterator[Manifest]:
        for step in steps:
            with contextlib.suppress(CheckpointError):
                yield manifests.read(self._run.checkpoint(step), step)

    def _failed(self, error: OSError, what: str, size: str = "") -> CheckpointError:
        kind = DiskFullError if error.errno in _FULL else CheckpointError
        return kind(f"{what}: {error.strerror}{size}", _disk(self._run.path))


def _number(stage: Path) -> int | None:
    """Return the attempt of a stage directory, None for what is only left to be deleted."""
    digits = stage.name.removeprefix("attempt_")
    return int(digits) if stage.name.startswith("attempt_") and digits.isdigit() else None


def _disk(path: Path) -> str:
    try:
        free = shutil.disk_usage(path).free / 2**20
    except OSError:
        return f"look at {path}"
    return f"{free:,.0f} MiB are free there; make room; hpctrain resume {path} goes on from the last checkpoint"
