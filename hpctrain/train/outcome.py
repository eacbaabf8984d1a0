"""How an attempt ended, as the batch script reads it; no torch, so that it can be written whatever went wrong."""

from typing import Any, Literal

import msgspec

from hpctrain.rundir import RunDir, publish_first


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one attempt. The script finds `"verdict":"..."` and `"cause":"..."` by a pattern."""

    verdict: Literal["completed", "stopped", "failed"]
    cause: Literal["time_limit", "preempted", "cancelled", "error"] | None = None
    message: str = ""
    """What happened; of a run that is completed: why it ended before its last step, or nothing."""
    step: int
    """Optimizer steps that are done and saved."""
    total_steps: int
    epoch: float
    """Passes over the training set that are done."""
    accuracy: float | None = None
    """Of the last evaluation of this attempt on the test set; None if it had none, or where numbers are predicted."""
    error: float | None = None
    """Mean absolute error of the same evaluation where numbers are predicted, in the unit of the target."""
    loss: float | None = None
    """Of the same evaluation."""
    metrics: dict[str, Any] = {}
    """Of the same evaluation, what `metrics` of the config asks for."""
    samples_per_s: float | None = None
    """Training samples of this attempt over all ranks per second of training; evaluation and saving left out."""
    time_s: float
    """Seconds from the start of this attempt's loop to its end, everything included."""

    def line(self) -> str:
        """Return the last line of a run, for people."""
        scores = {"accuracy": self.accuracy, "error": self.error}
        score = next((f"{name} {value:.4f}" for name, value in scores.items() if value is not None), "not evaluated")
        speed = "" if self.samples_per_s is None else f", {self.samples_per_s:,.0f} samples/s"
        early = self.message.partition(":")[0] if self.verdict == "completed" else ""
        why = self.cause or early
        how = f"{self.verdict} ({why})" if why else self.verdict
        return f"{how}: step {self.step}/{self.total_steps}, {score}{speed}, {self.time_s:.1f} s"


def write(run: RunDir, attempt: int, outcome: Outcome) -> None:
    """Publish `attempts/N/outcome.json` after the save; a failure that another rank recorded before stays."""
    publish_first(run.outcome(attempt), msgspec.json.encode(outcome))
