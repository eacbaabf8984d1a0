"""The gradient noise scale: how large a batch still makes a step better.

Two batches of different size give two squared norms of the gradient, from which follow the squared norm of the true
gradient |G|^2 and the trace of the covariance of single samples' gradients S; their ratio is a batch size. Far below it
twice the batch allows twice the rate, far beyond it a larger batch only costs more. The small batch is a micro-batch of
one rank and pass, the large one the whole step; both are there anyway.

Source: S. McCandlish, J. Kaplan, D. Amodei et al. 2018, "An empirical model of large-batch training", appendix A.1.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from hpctrain.data.batches import Share
from hpctrain.dist.comm import Comm, Step

_REMEMBERED = 100  # steps over which the two norms are averaged, about
_BEYOND = 2.0


class NoiseScale:
    """Measures the noise scale while a run trains.

    Costs two small kernels for each parameter in each pass and one norm of the gradient in each step; nothing waits for
    the device, and the ranks meet only where they report anyway, once more for one number. What is averaged is not in a
    checkpoint: after a resume it begins anew, which changes nothing that is trained.

    Args:
        model: whose parameters get a gradient.
        step: of the model.
        global_batch: samples of a whole step.
        accumulate: passes of each rank in a step.
        comm: the ranks.
    """

    def __init__(self, model: nn.Module, step: Step, *, global_batch: int, accumulate: int, comm: Comm) -> None:
        self._model, self._step, self._comm = model, step, comm
        self._batch, self._micro = global_batch, comm.size * accumulate
        self._small, self._large = (torch.zeros((), dtype=torch.float64) for _ in range(2))
        self._pass: list[Tensor] = []
        self._steps = 0
        self._averages = [0.0, 0.0, 0.0]  # squared norms of the small and the large batch, and their weight
        self._warned = False
        for part in model.parameters():
            if part.requires_grad:
                part.register_hook(self._take)  # type: ignore[no-untyped-call]

    def measure(self, share: Share) -> None:
        """Take the step in whose passes are done, before anything changes the gradient; one of less samples is not."""
        taken, self._pass = self._pass, []
        if share.samples != self._batch or not taken:
            return
        factor = self._step.gain * (1.0 if self._step.scaler is None else self._step.scaler.get_scale())
        # the gradient of a pass is its part of the mean over the batch: times their number it is its own mean
        small = torch.stack(taken).square().sum(dtype=torch.float64) * (self._micro / factor) ** 2
        scale = factor / self._step.gain
        large = (self._step.gradient_norm().double() / scale).square()
        sound = torch.isfinite(small) & torch.isfinite(large)
        self._small = self._small.to(small.device) + torch.where(sound, small, 0.0)
        self._large = self._large.to(large.device) + torch.where(sound, large, 0.0)
        self._steps += 1

    def report(self) -> dict[str, Any]:
        """Return `noise_scale`, in samples, of about the last hundred steps; `{}` if nothing can be said of it yet.

        Every rank must call this. With too few steps an estimate of |G|^2 may be negative.
        """
        if not self._steps:
            return {}
        (small,) = self._comm.sum(self._small.cpu().reshape(1)).tolist()
        keep = (1 - 1 / _REMEMBERED) ** self._steps
        now = (small / self._micro / self._steps, float(self._large.item()) / self._steps, 1.0)
        self._averages = [keep * old + (1 - keep) * new for old, new in zip(self._averages, now, strict=True)]
        self._small.zero_()
        self._large.zero_()
        self._steps = 0
        small, large, weight = self._averages
        scale = noise_scale(small / weight, large / weight, self._batch / self._micro, self._batch)
        if scale is None:
            return {}
        if self._batch > _BEYOND * scale and not self._warned and self._comm.rank == 0:
            self._warned = True
            print(
                f"hpctrain: the batch of {self._batch} is beyond the gradient's noise scale of {scale:.0f}: a smaller "
                "one would learn almost as much per step, for less",
                file=sys.stderr,
                flush=True,
            )
        return {"noise_scale": scale}

    def _take(self, gradient: Tensor) -> None:
        """Note the norm of what this pass alone adds to a parameter's gradient, before ranks and passes are summed."""
        self._pass.append(torch.linalg.vector_norm(gradient.detach()))


def noise_scale(small: float, large: float, small_batch: float, large_batch: float) -> float | None:
    """Return S / |G|^2, in samples; None if the estimate of |G|^2 is not positive (McCandlish et al., A.1).

    Args:
        small: mean squared norm of the gradient of small batches.
        large: mean squared norm of the gradient of large batches.
        small_batch: samples of these.
        large_batch: samples of those.
    """
    true = (large_batch * large - small_batch * small) / (large_batch - small_batch)
    trace = (small - large) / (1 / small_batch - 1 / large_batch)
    return max(trace, 0.0) / true if true > 0 else None
