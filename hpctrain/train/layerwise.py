"""Optimizers for large batches that torch lacks: each layer has a rate of its own, by the norm of its weights.

No step waits for the device: norms and rates stay there. A group with `adapt: False` (biases and norms) gets the rate
as it stands, without weight decay if its `weight_decay` is 0.
"""
# ruff: noqa: SLF001 - torch's own optimizers are made of these functions, too

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, "Large batch training of CNNs", algorithm 1).

    For each layer with weights w and gradient g, the local rate is l = trust x |w| / (|g| + decay x |w|), and 1 where
    |w| or |g| is 0. Then u <- momentum x u + l x (g + decay x w) and w <- w - lr x u.

    The paper has the rate inside of its velocity, v = lr x u. As long as the rate stays that is the same. When it
    changes, the paper's velocity still has the old rate, which Goyal et al. 2017 (section 3, remark 2) correct by the
    factor new / old rate; with the rate outside nothing is to be corrected.

    Args:
        params: or groups of them.
        lr: rate.
        momentum: from 0 to less than 1.
        weight_decay: x weights is added to the gradient.
        trust: coefficient.
        adapt: use the local rate; else it is 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        *,
        adapt: bool = True,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        _refuse(closure)
        for group in self.param_groups:
            weights, grads = _with_gradient(group["params"])
            if not weights:
                continue
            decay = group["weight_decay"]
            updates = list(torch._foreach_add(grads, weights, alpha=decay))
            if group["adapt"]:
                sizes, slopes = _norms(weights), _norms(grads)
                rates = group["trust"] * sizes / (slopes + decay * sizes)
                torch._foreach_mul_(updates, _unless_0(rates, sizes, slopes))
            if group["momentum"]:
                velocities = [self._velocity(part) for part in weights]
                torch._foreach_mul_(velocities, group["momentum"])
                torch._foreach_add_(velocities, updates)
                updates = velocities
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _velocity(self, part: Tensor) -> Tensor:
        state = self.state[part]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(part)
        found: Tensor = state["momentum_buffer"]
        return found


class Lamb(Optimizer):
    """Adam with a rate for each layer (You et al. 2020, "Large batch optimization for deep learning", algorithm 2).

    With Adam's averages m and v, without their bias after t steps, the step is r = m / (sqrt(v) + eps) + decay x w, and
    w <- w - lr x |w| / |r| x r; the ratio is 1 where |w| or |r| is 0. The paper's phi is the identity.

    Args:
        params: or groups of them.
        lr: rate.
        betas: smoothing of the gradient and of its squares.
        eps: against a division by 0.
        weight_decay: x weights is added to the step.
        adapt: use the ratio; else it is 1, which is AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        adapt: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        _refuse(closure)
        for group in self.param_groups:
            weights, grads = _with_gradient(group["params"])
            if not weights:
                continue
            states = [self._state(part) for part in weights]
            beta1, beta2 = group["betas"]
            means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
            steps = [int(state["step"].item()) for state in states]  # on the CPU: nothing waits for the device
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            bottoms = torch._foreach_div(squares, [1 - beta2**step for step in steps])
            torch._foreach_sqrt_(bottoms)
            torch._foreach_add_(bottoms, group["eps"])
            updates = list(torch._foreach_div(means, [1 - beta1**step for step in steps]))
            torch._foreach_div_(updates, bottoms)
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            if group["adapt"]:
                sizes, lengths = _norms(weights), _norms(updates)
                torch._foreach_mul_(updates, _unless_0(sizes / lengths, sizes, lengths))
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _state(self, part: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[part]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(part), torch.zeros_like(part)
        state["step"] += 1
        return state


def _refuse(closure: object) -> None:
    if closure is not None:
        raise NotImplementedError("the loss is computed before the step")


def _with_gradient(parts: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    weights = [part for part in parts if part.grad is not None]
    return weights, [part.grad for part in weights if part.grad is not None]


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


def _unless_0(rates: Tensor, *norms: Tensor) -> list[Tensor]:
    """Return the rates one by one; 1 where one of the norms is 0."""
    for norm in norms:
        rates = torch.where(norm > 0, rates, 1.0)
    return list(rates.unbind())
