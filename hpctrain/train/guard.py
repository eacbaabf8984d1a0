"""What to do where a loss or a gradient is no number: stop, leave the step out, or go back and leave it out then.

The gradient is the same on all ranks once it is summed, so each looks at its own and all decide alike, without asking.
That look waits for the device in every step, which is why `rollback` begins with it only after it has gone back: until
then the loss is looked at where it is summed anyway. Going back repeats the same steps with the same samples and draws,
so it ends with the weights of `skip`, to the byte.
"""

import math
import sys
from typing import Literal

import torch
from torch import nn

from hpctrain.dist.comm import Step
from hpctrain.dist.single import is_finite
from hpctrain.errors import JobError

Policy = Literal["stop", "skip", "rollback"]

_IN_A_ROW = 10  # steps that may be left out one after another: more are no bad batch but a run that has diverged
_SCALED = 30  # the same where a scaler halves its scale each time, from 2^16 on
_ROLLBACKS = 3
_HINT = "try a lower optim.lr, a longer optim.warmup, or hpctrain run --debug to see which operation began it"


class Guard:
    """Applies the steps of one rank by the policy of `train.on_nan`.

    Args:
        policy: stop, skip or rollback.
        model: whose buffers (running averages) a step that is left out must not change either.
        step: of the model.
        rank: of this process; 0 says what happens.
    """

    def __init__(self, policy: Policy, model: nn.Module, step: Step, rank: int) -> None:
        self.updated = False
        """The last step has changed the weights: neither was it left out, nor did a scaler skip it."""
        self.skipped = 0
        """Steps of this attempt that changed no weight: left out by the policy, or skipped by a scaler."""
        self._policy, self._step, self._says = policy, step, rank == 0
        self._model = model
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers] if policy != "stop" else []
        self._looks_until = sys.maxsize if policy == "skip" else 0
        self._row = self._rollbacks = 0

    def begin(self, index: int) -> None:
        """Before the first pass of a step: keep what would have to be taken back."""
        if index < self._looks_until and self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def apply(self, index: int) -> bool:
        """Update the weights by the step after `index` others; False: it was left out, on all ranks.

        What a scaler skips while nobody looks is not left out: its loss is reported, or a loss that is no number, at
        which `stop` stops, would be hidden by the scaler.

        Raises:
            JobError: too many were left out, or skipped, one after another.
        """
        looks = index < self._looks_until
        self.updated = self._step.apply(only_finite=looks)
        if self.updated:
            self._row = 0
            return True
        if looks and self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        self.skipped += 1
        self._row += 1
        scaled = self._step.scaler is not None
        if self._row > (_SCALED if scaled else _IN_A_ROW):
            raise JobError(
                f"the gradient of {self._row} steps in a row is infinite or no number, up to step {index + 1}", _HINT
            )
        if self._says and not scaled:
            print(f"hpctrain: step {index + 1} is left out: its gradient is infinite or no number", flush=True)
        return not looks

    def is_sound(self) -> bool:
        """Say whether all weights are numbers; the same on all ranks."""
        return is_finite(self._model.parameters())

    def error(self, loss: float, step: int, lr: float) -> JobError:
        """Return what ends a run that cannot go on.

        Args:
            loss: summed over all ranks since the last report.
            step: steps that are done.
            lr: the learning rate used in the last one.
        """
        what = "weights are infinite or no numbers" if math.isfinite(loss) else f"the loss is {loss}"
        again = f" once more after {self._rollbacks} rollbacks" if self._rollbacks else ""
        return JobError(f"{what} at step {step}{again} (learning rate {lr:g})", _HINT)

    def may_go_back(self) -> bool:
        """Say whether there may be one more rollback."""
        return self._policy == "rollback" and self._rollbacks < _ROLLBACKS

    def went_back(self, before: int, to: int) -> None:
        """Take note of a rollback: until step `before` is reached again, each step is looked at."""
        self._rollbacks += 1
        self._row, self._looks_until = 0, before
        if self._says:
            print(
                f"hpctrain: the loss or a weight is infinite or no number at step {before}: back to step {to} "
                f"(rollback {self._rollbacks} of {_ROLLBACKS}); the steps that made it so are left out now",
                flush=True,
            )
