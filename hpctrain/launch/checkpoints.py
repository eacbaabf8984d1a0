"""What `hpctrain ckpt` does: list, verify and export the checkpoints of a run, without torch."""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from hpctrain import manifest as manifests
from hpctrain.errors import CheckpointError, UsageError
from hpctrain.manifest import EMA, Manifest
from hpctrain.rundir import RunDir, publish

_CHUNK = 1 << 20


class Row(msgspec.Struct, kw_only=True):
    """One checkpoint; all but step and path are None where its manifest cannot be trusted."""

    step: int
    path: str
    problem: str | None = None
    """What is wrong with it."""
    epoch: float | None = None
    """Passes over the training set that were done."""
    bytes: int | None = None
    """Of all its files of tensors."""
    ranks: int | None = None
    score: float | None = None
    score_name: str | None = None
    verified: bool = False
    """Every byte of it was read and is right."""
    best: bool = False
    """No other one has a better score."""


def listing(run: RunDir) -> list[Row]:
    """Return a run's checkpoints, the oldest first, by their manifests alone."""
    return _rows(run, run.checkpoints(), whole=False)


def verified(run: RunDir, step: int | None) -> list[Row]:
    """Read every byte of all checkpoints, or of that of `step`.

    Raises:
        UsageError: there is no such checkpoint.
    """
    steps = run.checkpoints() if step is None else [_present(run, step)]
    if not steps:
        raise _none_yet(run)
    return _rows(run, steps, whole=True)


def export(run: RunDir, out: Path, step: str | None, *, force: bool) -> list[Path]:
    """Copy the weights of a checkpoint to `out`, and what they are to a JSON file beside it; return both.

    Raises:
        UsageError: `out` exists or cannot be written, or there is no such checkpoint.
        CheckpointError: it is damaged.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: weights are exported as a safetensors file", f"give {out}.safetensors")
    about = out.with_suffix(".json")
    if not force and (there := [str(path) for path in (out, about) if os.path.lexists(path)]):
        raise UsageError(f"{' and '.join(there)} exists already", "give another name, or --force")
    manifest = choose(run, step)
    name = manifest.weights
    source = run.checkpoint(manifest.step) / name
    described = {
        "run": run.name,
        "step": manifest.step,
        "epoch": manifest.step / manifest.steps_per_epoch,
        "weights": "averaged" if name == EMA else "trained",
        manifest.score_name: manifest.score,
        "sha256": manifest.files[name].sha256,
        "config": manifest.config,
        "tensors": manifests.tensors(source),
    }
    try:
        _copy(source, out, manifest.files[name].sha256)
        publish(about, msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}", "give a place that can be written") from None
    return [out, about]


def choose(run: RunDir, step: str | None, *, option: str = "--step") -> Manifest:
    """Return the manifest of a checkpoint every byte of which was verified.

    Args:
        run: whose.
        step: a number, `best`, or None for the newest that verifies; newer ones that do not are named.
        option: by which the step was given, for messages.

    Raises:
        UsageError: there is no such checkpoint.
        CheckpointError: it is damaged, or all are.
    """
    steps = run.checkpoints()
    if not steps:
        raise _none_yet(run)
    if step is None:
        for number in reversed(steps):
            try:
                return manifests.verify(run.checkpoint(number), number)
            except CheckpointError as error:
                print(f"hpctrain: skipped a checkpoint: {error.message}", file=sys.stderr)
        raise CheckpointError(f"{run.path}: none of its {len(steps)} checkpoints verifies")
    if step == "best":
        best = manifests.best(_readable(run, steps))
        if best is None:
            raise UsageError(f"no checkpoint of {run.path} was saved with an evaluation", f"give {option} N")
        return manifests.verify(run.checkpoint(best.step), best.step)
    if not step.isdecimal():
        wanted = "neither a number nor best" if option == "--step" else "neither newest, best nor a number"
        raise UsageError(f"{option} {step}: {wanted}", f"hpctrain ckpt list {run.name} shows the steps")
    number = _present(run, int(step))
    return manifests.verify(run.checkpoint(number), number)


def table(rows: list[Row]) -> str:
    """Return the rows for people."""
    lines = [f"{'step':>10}  {'epoch':>8}  {'MiB':>10}  {'ranks':>5}  score"]
    for row in rows:
        if row.bytes is None:
            lines.append(f"{row.step:>10}  {row.problem}")
            continue
        score = "" if row.score is None else f"{row.score_name} {row.score:.4f}{' (best)' if row.best else ''}"
        told = row.problem or ("verified" if row.verified else "")
        numbers = f"{row.step:>10}  {row.epoch:>8.2f}  {row.bytes / 2**20:>10,.1f}  {row.ranks:>5}"
        lines.append(f"{numbers}  {score:<24}  {told}".rstrip())
    return "\n".join(lines)


def _rows(run: RunDir, steps: list[int], *, whole: bool) -> list[Row]:
    best = manifests.best(_readable(run, run.checkpoints()))
    return [_row(run, step, whole=whole, best=best is not None and best.step == step) for step in steps]


def _row(run: RunDir, step: int, *, whole: bool, best: bool) -> Row:
    row = Row(step=step, path=str(run.checkpoint(step)))
    try:
        manifest = manifests.read(run.checkpoint(step), step)
    except CheckpointError as error:
        row.problem = error.message
        return row
    row.epoch, row.ranks = step / manifest.steps_per_epoch, manifest.ranks
    row.bytes = sum(file.size for file in manifest.files.values())
    row.score, row.score_name, row.best = manifest.score, manifest.score_name, best
    if whole:
        try:
            manifests.verify(run.checkpoint(step), step)
            row.verified = True
        except CheckpointError as error:
            row.problem = error.message
    return row


def _readable(run: RunDir, steps: Iterable[int]) -> list[Manifest]:
    found = []
    for step in steps:
        try:
            found.append(manifests.read(run.checkpoint(step), step))
        except CheckpointError:  # it is named where it is wanted
            continue
    return found


def _copy(source: Path, out: Path, sha256: str) -> None:
    """Copy a file so that OUT is whole or absent, and hold what was copied against its sum."""
    temporary = out.with_name(f".{out.name}.{os.urandom(6).hex()}")
    try:
        digest = hashlib.sha256()
        with source.open("rb") as reader, temporary.open("xb") as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        if digest.hexdigest() != sha256:
            raise CheckpointError(f"{source}: damaged: its SHA-256 is another")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _present(run: RunDir, step: int) -> int:
    steps = run.checkpoints()
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none yet"
        raise UsageError(f"{run.path} has no checkpoint of step {step}", f"there are: {there}")
    return step


def _none_yet(run: RunDir) -> UsageError:
    return UsageError(f"{run.path} has no checkpoint yet", f"hpctrain status {run.name} shows how far it is")
