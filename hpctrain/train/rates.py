"""The learning rate of each step, and the proof that it was used."""

import functools

import torch
from torch.optim import Optimizer

from hpctrain.config.schema import Config
from hpctrain.data.batches import Share
from hpctrain.dist.comm import Comm
from hpctrain.errors import WorldError
from hpctrain.plan import Plan
from hpctrain.schedule import lr_at
from hpctrain.train.prepare import Numbers


class Rates:
    """Assigns the rate of each step, which depends on the step alone.

    Args:
        config: of the run.
        numbers: of its plan.
        optimizer: that gets the rates.
    """

    def __init__(self, config: Config, numbers: Numbers, optimizer: Optimizer) -> None:
        if config.optim is None:
            raise AssertionError("a config that trains has an optimizer")
        self._optimizer = optimizer  # not its groups: going back makes new ones
        self.at = functools.partial(
            lr_at,
            peak=numbers.lr_used,
            shape=config.optim.schedule,
            warmup_steps=numbers.warmup_steps,
            total_steps=numbers.total_steps,
            decay=config.optim.decay,
            decay_every_steps=numbers.decay_every_steps,
        )
        """Returns the rate of a step, from 0."""

    def assign(self, step: int) -> float:
        """Give the optimizer the rate of a step, and return it."""
        lr = self.at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return lr

    def check(self, step: int, share: Share, comm: Comm, plan: Plan) -> None:
        """In the first and the last step: the ranks together did the planned batch at the planned rate.

        Raises:
            WorldError: they did not.
        """
        lr, used = self.at(step), {group["lr"] for group in self._optimizer.param_groups}
        ranks, taken = comm.sum(torch.tensor([1, share.mine])).tolist()
        if (ranks, taken) != (plan.ranks, share.samples) or used != {lr}:
            raise WorldError(
                f"a step took {taken} samples on {ranks} ranks at the rate {sorted(used)}; planned are "
                f"{share.samples} on {plan.ranks} at {lr}"
            )
