"""In which number formats a run computes: one dtype for weights and batches, one for the arithmetic inside."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch.amp.grad_scaler import GradScaler

from hpctrain.config.schema import Precision as Name


class Precision:
    """The number formats of a run.

    - fp32: everything in float32, also on GPUs, where torch would let convolutions round to TF32.
    - tf32: the same, but on tensor cores, which round the factors of a product to 10 bits after the point ("NVIDIA A100
      Tensor Core GPU Architecture", 2020); sums, and all else, stay in float32. GPUs only.
    - bf16: weights, gradients and optimizer in float32; matrix products and convolutions in bfloat16 (autocast).
    - fp16: the same in float16, whose range is small: the loss is scaled, and a step that overflows is left out
      (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).
    - fp64: everything in float64, for proofs of equality.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        self.name = name
        self.dtype = torch.float64 if name == "fp64" else torch.float32
        """Of weights, batches and the loss."""
        self._device = device.type
        if name == "tf32" and device.type != "cuda":
            raise AssertionError("the plan is checked for this")
        if device.type == "cuda":
            torch.backends.fp32_precision = "tf32" if name == "tf32" else "ieee"  # type: ignore[attr-defined]
            # the fastest algorithm of a convolution may sum in another order every time; a resumed run must not
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context in which the model runs; a new one for each use."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        return contextlib.nullcontext() if half is None else torch.autocast(self._device, half)

    def scaler(self) -> GradScaler | None:
        """Return what scales the loss, where that is needed."""
        return GradScaler(self._device) if self.name == "fp16" else None
