"""The learning rate and the momentum of each step, and the proof that they were used."""

from typing import Any

import torch
from torch.optim import Optimizer

from hpctrain.config.schema import Config
from hpctrain.data.batches import Share
from hpctrain.dist.comm import Comm
from hpctrain.errors import WorldError
from hpctrain.plan import Plan, curve
from hpctrain.train.history import History


class Rates:
    """Assigns the rate of each step, which depends on the step alone; on a plateau also on the evaluations so far.

    Args:
        config: of the run.
        plan: of the run.
        optimizer: that gets the rates.
        history: of the evaluations.
    """

    def __init__(self, config: Config, plan: Plan, optimizer: Optimizer, history: History) -> None:
        if config.optim is None or plan.lr_used is None:
            raise AssertionError("a config that trains has an optimizer")
        self._optimizer = optimizer  # not its groups: going back makes new ones
        self._plan, self._history = plan, history
        self._peak, self._curve = plan.lr_used, curve(plan, config.optim)
        self._key = "momentum" if "momentum" in optimizer.param_groups[0] else "betas"

    def at(self, step: int) -> float:
        """Return the rate of a step, from 0."""
        return self._peak * self._curve.part(step, self._history.reductions)

    def assign(self, step: int) -> float:
        """Give the optimizer the rate and the momentum of a step, and return the rate."""
        lr, momentum = self.at(step), self._curve.momentum(step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
            if momentum is not None:
                group[self._key] = momentum if self._key == "momentum" else (momentum, group["betas"][1])
        return lr

    def check(self, share: Share, comm: Comm, lr: float) -> None:
        """In the first and the last step: the ranks together did the planned batch, at the planned rate and settings.

        Args:
            share: of this rank in the step.
            comm: the ranks.
            lr: that the step should have had.

        Raises:
            WorldError: they did not.
        """
        plan, groups = self._plan, self._optimizer.param_groups
        ranks, taken = comm.sum(torch.tensor([1, share.mine])).tolist()
        planned: dict[str, Any] = {"lr": lr, "alpha": plan.alpha_used, "eps": plan.eps_used}
        if plan.betas_used is not None and self._curve.cycle_momentum is None:
            planned["betas"] = plan.betas_used
        used = {name: _of(groups, name) for name, value in planned.items() if value is not None}
        wanted = {name: [value] for name, value in planned.items() if value is not None}
        if (ranks, taken) != (plan.ranks, share.samples) or used != wanted:
            raise WorldError(
                f"a step took {taken} samples on {ranks} ranks with {_shown(used)}; planned are {share.samples} on "
                f"{plan.ranks} with {_shown(wanted)}"
            )


def _of(groups: list[dict[str, Any]], name: str) -> list[Any]:
    """Return the values that groups have for a setting, each once."""
    values = [tuple(group[name]) if name == "betas" else group[name] for group in groups]
    return sorted(set(values))


def _shown(settings: dict[str, list[Any]]) -> str:
    return ", ".join(f"{name} {' and '.join(map(str, values))}" for name, values in settings.items())
