"""Batch norm over other samples than those of one pass on one rank: over those of all ranks, or over small groups.

Both keep the names and the tensors of the batch norm that they replace, so checkpoints fit whatever a run has chosen.
Evaluation uses the running averages, and no other rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from hpctrain.errors import UsageError

_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Gather = Callable[[Tensor, str], Tensor]
"""Gives a tensor of each rank to all, `(N,)` -> `(ranks, N)`; the text names the exchange, alike on all ranks."""


class Attendance:
    """Says of the pass that runs whether its samples count; all synchronised norms of a model share one."""

    stand_in = False
    """The pass has no samples of its own: it takes part in each exchange, and counts for nothing."""


def norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model, torch's own and ours."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def replace(model: nn.Module, make: Callable[[_BatchNorm, str], _BatchNorm]) -> nn.Module:
    """Return the model with another module in the place of each batch norm; one that is used twice stays one.

    Args:
        model: changed in place, unless it is a batch norm itself.
        make: of the old one, and its name.

    Raises:
        UsageError: a batch norm is of a class of somebody's own, which may do anything besides.
    """
    if (own := next((module for module in norms(model) if type(module) not in _REPLACED), None)) is not None:
        name = f"{type(own).__module__}.{type(own).__qualname__}"
        raise UsageError(
            f"the model has batch norms of the class {name}, which do more than torch's: nothing can take their place",
            "use model.batch_norm=local, or build the model with torch.nn.BatchNorm1d, 2d or 3d",
        )
    made: dict[_BatchNorm, _BatchNorm] = {}
    places = [(name, module) for name, module in model.named_modules(remove_duplicate=False)]
    for name, module in places:
        if not isinstance(module, _BatchNorm):
            continue
        new = made.setdefault(module, make(module, name)) if module not in made else made[module]
        if not name:
            return new
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model


class _Instead(_BatchNorm):
    """A batch norm of any number of dimensions, with the tensors of another one."""

    def __init__(self, old: _BatchNorm) -> None:
        super().__init__(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats, device="meta")
        self.weight, self.bias = old.weight, old.bias
        self.running_mean, self.running_var = old.running_mean, old.running_var
        self.num_batches_tracked = old.num_batches_tracked
        self.training = old.training

    def _check_input_dim(self, _: Tensor) -> None:
        """Let the features be the second of any number of dimensions."""


class GhostBatchNorm(_Instead):
    """Normalises each group of samples by itself, as if it were a batch: large batches keep the noise of small ones.

    Source: E. Hoffer et al. 2017, "Train longer, generalize better", algorithm 1. Groups are neighbours in a pass, so
    they are the same on any number of ranks whose passes they divide. Running averages follow one group after the
    other. Where a pass is no whole number of groups, which no plan has, the last group is smaller; a single sample that
    is left joins the group before.

    Args:
        old: what it replaces.
        group: samples of a group, at least 2.
    """

    def __init__(self, old: _BatchNorm, group: int) -> None:
        super().__init__(old)
        self.group = group

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise `(B, C, ...)`."""
        norm = super().forward
        whole, rest = divmod(len(inputs), self.group)
        if not self.training or whole + rest <= 1:
            return norm(inputs)
        sizes = [self.group] * whole
        if rest == 1:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return torch.cat([norm(part) for part in torch.split(inputs, sizes)])


class SyncBatchNorm(_Instead):
    """Normalises by mean and variance of a pass over all ranks.

    torch's own refuses CPUs, counts what only stands in for a sample, and knows no Horovod. Here each rank sends its
    count, mean and sum of squared deviations, once forward; all join them in the same order by the formula of T. Chan,
    G. Golub and R. LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", equation
    2.1, in float64. So ranks may have any number of samples, and all get the same bits. Backward sends two sums.

    Args:
        old: what it replaces.
        name: of the exchanges, in the model.
        gather: gives each rank's numbers to all.
        attendance: of the pass.
    """

    def __init__(self, old: _BatchNorm, name: str, gather: Gather, attendance: Attendance) -> None:
        super().__init__(old)
        self._name, self._gather, self._attendance = name, gather, attendance

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise `(B, C, ...)`; every rank must call this equally often."""
        if not self.training:
            return super().forward(inputs)
        counts = not self._attendance.stand_in
        with torch.no_grad():
            mean, variance, total = _join(self._gather(_moments(inputs, counts=counts), f"{self._name}.forward"))
            self._follow(mean, variance, total)
            wide = torch.promote_types(inputs.dtype, torch.float32)
            scale = (variance + self.eps).rsqrt()
        exchange = (self._gather, f"{self._name}.backward", counts)
        found: Tensor = _Normalised.apply(  # type: ignore[no-untyped-call]
            inputs, self.weight, self.bias, mean.to(wide), scale.to(wide), total, exchange
        )
        return found

    def _follow(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        """Let the running averages follow, as torch's do; a pass in which no rank has samples leaves them alone."""
        if self.running_mean is None or self.running_var is None:
            return
        some = total > 0
        factor = torch.zeros_like(total) + (self.momentum or 0.0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(some)
            if self.momentum is None:
                factor = self.num_batches_tracked.clamp(min=1).to(total).reciprocal()
        unbiased = variance * (total / (total - 1).clamp(min=1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(new.to(running.dtype), (some * factor).to(running.dtype))


def _across(inputs: Tensor) -> list[int]:
    """Return the dimensions over which a channel's numbers lie."""
    return [0, *range(2, inputs.ndim)]


def _channelwise(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def _moments(inputs: Tensor, *, counts: bool) -> Tensor:
    """Return mean, sum of squared deviations and count of each channel, float64 `(2 C + 1,)`."""
    channels = inputs.shape[1]
    if not counts or not inputs.numel():
        return inputs.new_zeros(2 * channels + 1, dtype=torch.float64)
    wide = torch.promote_types(inputs.dtype, torch.float32)
    variance, mean = torch.var_mean(inputs.to(wide), _across(inputs), correction=0)
    number = inputs.numel() // channels
    return torch.cat([mean.double(), variance.double() * number, mean.new_full((1,), number, dtype=torch.float64)])


def _join(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Join the moments of all ranks `(ranks, 2 C + 1)`: mean `(C,)`, variance `(C,)` and the count."""
    channels = rows.shape[1] // 2
    means, squares, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    total = counts.sum()
    divisor = total.clamp(min=1)
    mean = (means * counts).sum(0) / divisor
    variance = (squares + counts * (means - mean).square()).sum(0) / divisor
    return mean, variance, total


class _Normalised(torch.autograd.Function):
    """(x - mean) scale weight + bias, whose mean and scale depend on the x of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        total: Tensor,
        exchange: tuple[Gather, str, bool],
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, mean, scale, total)
        ctx.exchange = exchange
        factor = scale if weight is None else scale * weight
        summand = -mean * factor if bias is None else bias - mean * factor
        return (inputs * _channelwise(factor, inputs) + _channelwise(summand, inputs)).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Propagate as in S. Ioffe and C. Szegedy 2015, "Batch normalization", section 3, with sums over all ranks."""
        inputs, weight, mean, scale, total = ctx.saved_tensors
        gather, name, counts = ctx.exchange
        wide, across = mean.dtype, _across(inputs)
        outer = gradient.to(wide)
        centred = (inputs.to(wide) - _channelwise(mean, inputs)) * _channelwise(scale, inputs)
        of_bias, of_weight = outer.sum(across), (outer * centred).sum(across)
        sums = torch.cat([of_bias, of_weight]).double()
        if not counts:  # what it gives is not in the mean, so nothing of the others' loss depends on it
            sums = torch.zeros_like(sums)
        first, second = (gather(sums, name).sum(0) / total.clamp(min=1)).to(wide).chunk(2)
        inner = outer
        if counts:
            inner = outer - _channelwise(first, inputs) - centred * _channelwise(second, inputs)
        factor = scale if weight is None else scale * weight
        found = (inner * _channelwise(factor, inputs)).to(inputs.dtype)
        if weight is None:
            return found, None, None, None, None, None, None
        return found, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None, None, None
