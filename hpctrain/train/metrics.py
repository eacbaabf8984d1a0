"""What is measured during training, and where it is written; nothing here waits for the device between intervals."""

import io
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

_HELD_PASSES = 64
_HELD_VALUES = 2**20


class Meter:
    """Loss and score of an interval on this rank.

    Passes are only held, and counted together once in a while: a step is charged with two list entries, not with the
    five small kernels that counting takes. Those of a step may be dropped until it is kept.

    Args:
        score: of outputs and targets, summed over the samples; see `hpctrain.train.objective`.
    """

    def __init__(self, score: Callable[[Tensor, Tensor], float]) -> None:
        self._score_of = score
        self._new: list[tuple[Tensor, Tensor, Tensor]] = []
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._values = 0
        self._loss = 0.0
        self._score = 0.0

    def add(self, outputs: Tensor, targets: Tensor, loss_sum: Tensor) -> None:
        """Take a pass: outputs `(B, K)`, targets `(B,)` or `(B, K)`, and the loss summed over the samples."""
        self._new.append((outputs.detach(), targets, loss_sum.detach()))
        self._values += outputs.numel()

    def keep(self) -> None:
        """Let the passes since the last call count."""
        self._held += self._new
        self._new.clear()
        if len(self._held) >= _HELD_PASSES or self._values > _HELD_VALUES:
            self._count()

    def drop(self) -> None:
        """Forget the passes since the last call of `keep`."""
        self._new.clear()

    def totals(self) -> Tensor:
        """Return this rank's sums of losses and scores so far, float64 `(2,)` on the CPU."""
        self._count()
        return torch.tensor([self._loss, self._score], dtype=torch.float64)

    def reset(self) -> None:
        """Begin a new interval; call it after `totals`."""
        self._loss, self._score = 0.0, 0.0

    def _count(self) -> None:
        if not self._held:
            return
        outputs, targets, losses = zip(*self._held, strict=True)
        self._held, self._values = [], 0
        self._loss += float(torch.stack(losses).double().sum().item())
        self._score += self._score_of(torch.cat(outputs), torch.cat(targets))


def shown(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return metrics for people, by name; of a confusion matrix what is confused most often."""
    return {name: _confused(value) if name == "confusion" else _number(value) for name, value in metrics.items()}


def _confused(matrix: list[list[int]]) -> str:
    pairs = [(count, label, found) for label, row in enumerate(matrix) for found, count in enumerate(row)]
    count, label, found = max(pair for pair in pairs if pair[1] != pair[2])
    if not count:
        return "no class taken for another"
    return f"most often {label} taken for {found}, {count} times"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


class Timer:
    """Seconds of training, with evaluation and saving left out."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._before = 0.0
        self._lap = 0.0

    def pause(self) -> None:
        """Stop counting."""
        self._before = self.seconds()
        self._since = float("inf")  # until `go_on` no time passes

    def go_on(self) -> None:
        """Count again."""
        self._since = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._before + max(time.perf_counter() - self._since, 0.0)

    def lap(self) -> float:
        """Return the seconds since the last call."""
        now = self.seconds()
        lap, self._lap = now - self._lap, now
        return lap


class Lines:
    """A file of one JSON object per line. Every line is handed to the system at once: a killed rank loses none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        self._file = io.FileIO(descriptor, "w")

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; one write call, so that a reader never sees half of it mixed with another's."""
        self._file.write(msgspec.json.encode(record) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Report:
    """What rank 0 writes of the whole run: `metrics.jsonl` for programs, standard output for people.

    Args:
        path: the file; None on all other ranks, which write nothing.
        steps_per_epoch: optimizer steps of one pass.
        total_steps: of the whole training.
        score_name: accuracy, or error (mean absolute error) where numbers are predicted.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        steps_per_epoch: int,
        total_steps: int,
        score_name: Literal["accuracy", "error"] = "accuracy",
    ) -> None:
        self._lines = None if path is None else Lines(path)
        self._score_name = score_name
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps

    def write(
        self,
        split: str,
        *,
        step: int,
        samples: int,
        score: float,
        loss: float,
        lr: float,
        seconds: float,
        skipped: int = 0,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one interval or evaluation.

        Args:
            split: train, validation or test.
            step: optimizer steps done.
            samples: over all ranks since the last such line.
            score: right answers, or absolute errors, summed over these.
            loss: mean over these.
            lr: used in the step just done.
            seconds: that these samples took.
            skipped: steps of this attempt that changed no weight so far.
            metrics: what is told besides.
        """
        if self._lines is None:
            return
        record = {
            "time": time.time(),
            "epoch": step / self._steps_per_epoch,
            "step": step,
            "split": split,
            "loss": loss,
            self._score_name: score / samples,
            "lr": lr,
            "samples_per_s": samples / seconds,
            "samples": samples,
        }
        if skipped:
            record["skipped"] = skipped
        record |= metrics or {}
        self._lines.write(record)
        print(
            f"{split:10}  step {step}/{self._total_steps}  epoch {record['epoch']:.2f}  loss {loss:.4f}  "
            f"{self._score_name} {score / samples:.4f}  lr {lr:.5g}  {samples / seconds:,.0f} samples/s"
            + "".join(f"  {name} {text}" for name, text in shown(metrics or {}).items()),
            flush=True,
        )

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
