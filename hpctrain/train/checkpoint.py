"""Checkpoints that are whole or absent, and whose every byte is checked before it is trusted.

- Written by rank 0 below `stage/attempt_N`, synced, renamed into `ckpt/`, and the directory synced: after a crash at
  any moment there is the old set or the new one.
- Published only by renaming out of the attempt's own stage directory. A new attempt first makes its own, then renames
  the older ones away, so a stale attempt that still runs somewhere fails with ENOENT at its next save. It need not
  look first whether it is stale, which could change between the look and the save.
- Deleted only after a newer one was read back from the disk and verified.
- "Latest" is what verifies, never what a file says.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from hpctrain.dist.comm import Step
from hpctrain.errors import CheckpointError
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train import state

FORMAT = 1
_MANIFEST, _MODEL, _OPTIM = "manifest.json", "model.safetensors", "optim.safetensors"


class Sum(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`manifest.json`: where the run stood, the numbers that give `step` its meaning, and the sums of the files."""

    format: int
    step: int
    """Optimizer steps done; all that a resumed run needs to know."""
    epoch: int
    """Whole passes over the training set that are done."""
    position: int
    """Samples of the next pass that are done."""
    seed: int
    global_batch: int
    train_samples: int
    steps_per_epoch: int
    ranks: int
    """Ranks that trained it; another number may go on."""
    evaluated: bool
    """An evaluation that was due at this step has been done."""
    config_sha256: str
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    """State of what scales the loss; None where nothing does."""
    files: dict[str, Sum]
    sha256: str = ""
    """Of this file itself with this field empty."""

    def encode(self) -> bytes:
        """Return the file's content."""
        return msgspec.json.encode(self) + b"\n"

    def sealed(self) -> "Manifest":
        """Return the manifest with its own sum."""
        empty = msgspec.structs.replace(self, sha256="")
        return msgspec.structs.replace(empty, sha256=hashlib.sha256(empty.encode()).hexdigest())


class Checkpoints:
    """The checkpoints of a run, as one attempt reads and writes them. All but `load` is for rank 0 alone."""

    def __init__(self, run: RunDir, attempt: int, plan: Plan, *, keep: int, config_sha256: str) -> None:
        self._run, self._attempt, self._plan = run, attempt, plan
        self._keep, self._config_sha256 = keep, config_sha256
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
            _sync(self._run.stage)
        except OSError as error:
            raise CheckpointError(f"{self._stage}: {error.strerror}", _disk(self._run.path)) from error

    def newest(self) -> tuple[Manifest | None, list[str]]:
        """Find the newest checkpoint that verifies.

        Returns:
            Its manifest, or None if there is none; and what is wrong with each newer one.
        """
        damaged: list[str] = []
        for step in reversed(self._run.checkpoints()):
            try:
                return verify(self._run.checkpoint(step), step), damaged
            except CheckpointError as error:
                damaged.append(error.message)
        return None, damaged

    def load(self, manifest: Manifest, model: nn.Module, step: Step) -> None:
        """Put a checkpoint's state into the model, the optimizer and the scaler; every rank checks what it reads.

        Raises:
            CheckpointError: the plan gives `step` another meaning, the model has another shape, or a byte changed.
        """
        path = self._run.checkpoint(manifest.step)
        self._compare(manifest, path)
        state.load_model(model, _read(path / _MODEL, manifest.files[_MODEL]), str(path / _MODEL))
        content = _read(path / _OPTIM, manifest.files[_OPTIM])
        state.load_optimizer(step.optimizer, content, manifest.optimizer, str(path / _OPTIM))
        if step.scaler is not None and manifest.scaler is not None:
            step.scaler.load_state_dict(manifest.scaler)

    def save(self, done: int, model: nn.Module, step: Step, *, evaluated: bool) -> None:
        """Publish the state after `done` steps, read it back, then delete those that are no longer to be kept.

        Raises:
            CheckpointError: it cannot be written, or a newer attempt has shut this one out.
        """
        optim_content, scalars = state.optimizer_bytes(step.optimizer)
        contents = {_MODEL: state.model_bytes(model), _OPTIM: optim_content}
        steps_per_epoch, global_batch = self._plan.steps_per_epoch or 1, self._plan.global_batch or 0
        manifest = Manifest(
            format=FORMAT,
            step=done,
            epoch=done // steps_per_epoch,
            position=done % steps_per_epoch * global_batch,
            seed=self._plan.seed,
            global_batch=global_batch,
            train_samples=self._plan.train_samples or 0,
            steps_per_epoch=steps_per_epoch,
            ranks=self._plan.ranks,
            evaluated=evaluated,
            config_sha256=self._config_sha256,
            optimizer=scalars,
            scaler=None if step.scaler is None else step.scaler.state_dict(),
            files={name: Sum(len(part), hashlib.sha256(part).hexdigest()) for name, part in contents.items()},
        ).sealed()
        contents[_MANIFEST] = manifest.encode()
        target = self._run.checkpoint(done)
        try:
            self._publish(target, contents)
            if verify(target, done).global_batch != global_batch:
                raise CheckpointError(f"{target}: another run wrote it in the meantime")
            self._delete_old(done)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"step {done} was not saved: attempt {self._attempt} was shut out by a newer attempt of "
                f"{self._run.path} ({error.filename} is gone)",
                "this attempt is stale; the newer one goes on from the last checkpoint",
            ) from error
        except OSError as error:
            size = sum(map(len, contents.values()))
            raise CheckpointError(
                f"step {done} was not saved: {error.strerror} ({size} bytes for {target})", _disk(self._run.path)
            ) from error

    def _publish(self, target: Path, contents: dict[str, bytes]) -> None:
        staged = self._stage / target.name
        if staged.exists():  # an earlier save of this attempt failed half-way
            shutil.rmtree(staged)
        staged.mkdir(mode=0o700)  # not `parents`: a fenced attempt must fail here
        for name, content in contents.items():
            with (staged / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(staged)
        if target.exists():
            # It is damaged, or this attempt would have gone on from it; a directory cannot be renamed onto a full one.
            shutil.rmtree(target.rename(self._stage / f"replaced_{target.name}"))
        staged.rename(target)
        _sync(target.parent)

    def _delete_old(self, step: int) -> None:
        """Keep the newest ones up to `step`; those after it did not verify when this attempt began."""
        present = self._run.checkpoints()
        kept = [other for other in present if other <= step][-self._keep :]
        for other in present:
            if other not in kept:
                # renamed first, so that a crash leaves no half-deleted directory that looks like a checkpoint
                shutil.rmtree(self._run.checkpoint(other).rename(self._stage / f"deleted_step_{other}"))

    def _compare(self, manifest: Manifest, path: Path) -> None:
        plan = self._plan
        seen = f"step {manifest.step} of {path.name} is"
        if manifest.global_batch != plan.global_batch:
            was, would = manifest.step * manifest.global_batch, manifest.step * (plan.global_batch or 0)
            raise CheckpointError(
                f"{seen} {manifest.step} x {manifest.global_batch} = {was} samples into the run with the global batch "
                f"that trained it, but {manifest.step} x {plan.global_batch} = {would} with the one that is asked for: "
                "samples would be repeated or left out",
                f"keep batch.global={manifest.global_batch} (other ranks are fine), or start a new run",
            )
        if manifest.seed != plan.seed:
            raise CheckpointError(
                f"{path} was trained with seed {manifest.seed}; seed {plan.seed} gives another order of samples",
                f"go on with seed={manifest.seed}, or start a new run",
            )
        if (manifest.train_samples, manifest.steps_per_epoch) != (plan.train_samples, plan.steps_per_epoch):
            raise CheckpointError(
                f"{seen} of a run with {manifest.train_samples} samples in {manifest.steps_per_epoch} steps per epoch; "
                f"now there are {plan.train_samples} in {plan.steps_per_epoch}",
                "go on with the same data.samples and batch.tail, or start a new run",
            )


def verify(path: Path, step: int) -> Manifest:
    """Read every byte of a checkpoint and compare it with its manifest.

    Raises:
        CheckpointError: a file is missing, shorter, longer or changed, or the manifest is.
    """
    try:
        raw = (path / _MANIFEST).read_bytes()
        manifest = msgspec.json.decode(raw, type=Manifest)
    except OSError as error:
        raise CheckpointError(f"{path / _MANIFEST}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path / _MANIFEST}: damaged: {error}") from None
    if manifest.sealed().encode() != raw:
        raise CheckpointError(f"{path / _MANIFEST}: damaged: its SHA-256 is another")
    if manifest.format != FORMAT or manifest.step != step or manifest.files.keys() != {_MODEL, _OPTIM}:
        raise CheckpointError(
            f"{path / _MANIFEST}: format {manifest.format} of step {manifest.step} does not belong here"
        )
    for name, expected in manifest.files.items():
        _read(path / name, expected)
    return manifest


def _read(path: Path, expected: Sum) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if len(content) != expected.size:
        raise CheckpointError(f"{path}: damaged: {len(content)} bytes instead of {expected.size}")
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is another")
    return content


def _sync(directory: Path) -> None:
    """Make what was created or renamed in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(stage: Path) -> int | None:
    """Return the attempt of a stage directory, None for what is only left to be deleted."""
    digits = stage.name.removeprefix("attempt_")
    return int(digits) if stage.name.startswith("attempt_") and digits.isdigit() else None


def _disk(path: Path) -> str:
    try:
        free = shutil.disk_usage(path).free / 2**20
    except OSError:
        return f"look at {path}"
    return f"{free:,.0f} MiB are free there; make room; sbatch {path}/job.sbatch goes on from the last checkpoint"
