"""The losses on the validation set so far: all that a plateau and an early stop depend on, besides the step."""

import math
from collections.abc import Sequence

from hpctrain import schedule
from hpctrain.config.schema import Config


class History:
    """The evaluations of a run; a checkpoint has them, so that a resumed run goes on as it would have.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        self.losses: list[tuple[int, float | None]] = []
        """After which step, and the mean loss on the validation set; None: it was no number."""
        self.reductions = 0
        """How often the rate was reduced on a plateau."""
        self._optim = config.optim
        self._stop_early = None if config.train is None else config.train.stop_early

    def add(self, step: int, loss: float) -> None:
        """Take an evaluation in; one of the same step is replaced."""
        before = [entry for entry in self.losses if entry[0] < step]
        self.restore([*before, (step, loss if math.isfinite(loss) else None)])

    def restore(self, losses: Sequence[tuple[int, float | None]]) -> None:
        """Take the evaluations of a checkpoint for all that there were."""
        self.losses = list(losses)
        if self._optim is not None and self._optim.schedule == "plateau":
            self.reductions = schedule.reductions(
                [loss for _, loss in self.losses],
                patience=self._optim.patience,
                threshold=self._optim.threshold,
                cooldown=self._optim.cooldown,
            )

    def over(self) -> str | None:
        """Return why the run ends early, or None."""
        stop = self._stop_early
        if stop is None or not self.losses:
            return None
        losses = [loss for _, loss in self.losses]
        waited = schedule.evaluations_without_gain(losses, min_delta=stop.min_delta)
        if waited < stop.patience:
            return None
        lowest = self.losses[-1 - waited] if waited < len(losses) else None
        best = "" if lowest is None else f", {lowest[1]:.4f} at step {lowest[0]}"
        step = self.losses[-1][0]
        return f"stopped early at step {step}: {waited} evaluations did not lower the loss on the validation set{best}"
