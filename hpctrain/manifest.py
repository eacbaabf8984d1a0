"""The manifest of a checkpoint, and what it takes to trust the files beside it. No torch: the launcher verifies, too.

Whatever lies in a run directory may be damaged, or planted: nothing here follows a link, waits for a pipe, or takes
memory by what a file claims of itself.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from hpctrain.errors import CheckpointError

FORMAT = 3
MANIFEST, MODEL, OPTIM, EMA, RNG = (
    "manifest.json", "model.safetensors", "optim.safetensors", "ema.safetensors", "rng.safetensors",
)  # fmt: skip
_NEEDED, _KNOWN = {MODEL, OPTIM, RNG}, {MODEL, OPTIM, RNG, EMA}
_MANIFEST_LIMIT = _HEADER_LIMIT = 64 << 20
_CHUNK = 1 << 20


class Sum(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What besides the seed and the batch decides which samples a step sees: keys of the config, and what they say."""

    dataset: str
    tail: str
    shuffle: str
    block: int
    split: dict[str, Any] | None
    digest: str | None
    """Of the data, as in the plan; None where it has none."""


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
    accumulate: int
    """Passes of each of them per step."""
    policy: Policy
    evaluated: bool
    """An evaluation that was due at this step has been done."""
    score: float | None = None
    """Of the evaluation at this step: on the validation set, where there is none on the test set; None: there was
    none."""
    score_name: Literal["accuracy", "error"] = "accuracy"
    """What `score` is: the best is the largest accuracy, or the smallest error."""
    losses: tuple[tuple[int, float | None], ...] = ()
    """Of the evaluations on the validation set so far, by step: a plateau and an early stop depend on them; null: it
    was no number."""
    config: dict[str, Any]
    """The sections of the config that decide what is trained, and how."""
    config_sha256: str
    """Of the whole config."""
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    """State of what scales the loss; None where nothing does."""
    files: dict[str, Sum] = {}
    sha256: str = ""
    """Of this file itself with this field empty."""

    @property
    def weights(self) -> str:
        """Name of the file of the weights that are evaluated and exported: the averaged ones, where there are any."""
        return EMA if EMA in self.files else MODEL

    def encode(self) -> bytes:
        """Return the file's content."""
        return msgspec.json.encode(self) + b"\n"

    def sealed(self) -> "Manifest":
        """Return the manifest with its own sum."""
        empty = msgspec.structs.replace(self, sha256="")
        return msgspec.structs.replace(empty, sha256=hashlib.sha256(empty.encode()).hexdigest())


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read(path: Path, step: int) -> Manifest:
    """Read the manifest of the checkpoint in directory `path` and check the manifest alone.

    Raises:
        CheckpointError: it is missing, changed, or that of another step.
    """
    file = path / MANIFEST
    with _open(file) as opened:
        raw = opened.read(_MANIFEST_LIMIT + 1)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from None
    if manifest.format != FORMAT:
        raise CheckpointError(
            f"{file}: is of format {manifest.format}, and this hpctrain reads format {FORMAT}",
            "go on with the hpctrain that wrote it, or start a new run",
        )
    if manifest.sealed().encode() != raw:
        raise CheckpointError(f"{file}: damaged: its SHA-256 is another")
    names = manifest.files.keys()
    if manifest.step != step or not _NEEDED <= names <= _KNOWN:
        raise CheckpointError(f"{file}: format {manifest.format} of step {manifest.step} does not belong here")
    return manifest


def verify(path: Path, step: int, *, written: bool = False) -> Manifest:
    """Read every byte of a checkpoint and compare it with its manifest, in constant memory.

    Args:
        path: its directory.
        step: that it must be of.
        written: this process has just written it; then it is read from the disk, not from the memory of the system.

    Raises:
        CheckpointError: a file is missing, shorter, longer or changed, or the manifest is.
    """
    manifest = read(path, step)
    for name, expected in manifest.files.items():
        with _open(path / name) as opened:
            _check_size(path / name, os.fstat(opened.fileno()).st_size, expected)
            if written:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            digest = hashlib.sha256()
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
        _check_sum(path / name, digest.hexdigest(), expected)
    return manifest


def content(path: Path, expected: Sum) -> bytes:
    """Read a file whole and compare it with its sum.

    Raises:
        CheckpointError: it is missing, shorter, longer or changed.
    """
    with _open(path) as opened:
        _check_size(path, os.fstat(opened.fileno()).st_size, expected)
        found = opened.read(expected.size + 1)
    _check_size(path, len(found), expected)
    _check_sum(path, hashlib.sha256(found).hexdigest(), expected)
    return found


def tensors(path: Path) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of each tensor of a safetensors file, by name.

    Raises:
        CheckpointError: it is none.
    """
    with _open(path) as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = opened.read(size) if size <= _HEADER_LIMIT else b""
    try:
        found = msgspec.json.decode(header, type=dict[str, _Tensor])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CheckpointError(f"{path}: no safetensors file") from None
    return {name: {"dtype": tensor.dtype, "shape": list(tensor.shape)} for name, tensor in sorted(found.items())}


def best(manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the one with the best score, of equals the newest; None if none has a score."""
    scored = [
        ((manifest.score if manifest.score_name == "accuracy" else -manifest.score, manifest.step), manifest)
        for manifest in manifests
        if manifest.score is not None
    ]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; neither it nor its directory may be a link, and nothing is waited for."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)
        with os.fdopen(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise CheckpointError(f"{path}: damaged: it is no regular file")
            yield opened
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def _check_size(path: Path, size: int, expected: Sum) -> None:
    if size != expected.size:
        raise CheckpointError(f"{path}: damaged: {size} bytes instead of {expected.size}")


def _check_sum(path: Path, sha256: str, expected: Sum) -> None:
    if sha256 != expected.sha256:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is another")
