"""Vary training batches: whole batches at once, on the device where they lie.

1. `pixels`, on bytes: crop inside of a margin, mirror, change colours.
2. `batch`, on what the model gets: cutout; smooth the labels; mixup or CutMix.

What happens to a sample follows from (seed, epoch, sample), what is mixed from (seed, step, micro-batch), so that
ranks, workers and attempts have no part in it. The few random numbers are drawn on the CPU; images stay where they are.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hpctrain.config.check_data import too_large
from hpctrain.config.datasets import Augment
from hpctrain.data import draws
from hpctrain.data.dataset import Wanted
from hpctrain.errors import DataError

_RED, _GREEN, _BLUE = 19595, 38470, 7471
"""ITU-R BT.601 luma times 2^16. Sums over bytes stay below 2^24: exact in float32, in any order of summation."""


def build(
    options: Augment, *, seed: int, shape: tuple[int, ...], classes: int, white: int = 255
) -> "Augmentation | None":
    """Return what varies batches as the config says; None if nothing does.

    Args:
        options: the config's section.
        seed: of the run.
        shape: of one input: (C, H, W), or (F,).
        classes: how many there are.
        white: the largest pixel value.

    Raises:
        DataError: a margin or a square is as large as the images.
    """
    if len(shape) == 3:
        for key, message in too_large(options, min(shape[1:])):
            raise DataError(f"data.augment.{key}: {message}")
    made = Augmentation(options, seed=seed, classes=classes, white=white)
    return made if made.varies else None


class Augmentation:
    """Varies batches, see `hpctrain.data.memory.Augment`; the arguments are those of `build`."""

    def __init__(self, options: Augment, *, seed: int, classes: int, white: int) -> None:
        self._options, self._seed, self._classes, self._white = options, seed, classes, white
        self._mixes = [name for name in ("mixup", "cutmix") if getattr(options, name)]
        self._soft = bool(self._mixes or options.label_smoothing)
        self.varies = bool(self._soft or options.crop == "padded" or options.flip or options.jitter or options.cutout)

    def pixels(self, images: Tensor, wanted: Wanted) -> Tensor:
        """Vary uint8 images `(B, C, H, W)`."""
        options = self._options
        if options.crop == "padded":
            places = _floor(self._per_sample("crop", wanted, 2) * (2 * options.padding + 1))
            images = crop_padded(images, _to(places, images), options.padding)
        if options.flip:
            images = mirror(images, _to(self._per_sample("flip", wanted, 1)[:, 0] < 0.5, images))
        if options.jitter:
            low, high = max(1 - options.jitter, 0), 1 + options.jitter
            factors = low + (high - low) * self._per_sample("jitter", wanted, 3)
            images = jitter(images, _to(factors.astype(np.float32), images), self._white)
        return images

    def batch(self, inputs: Tensor, targets: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """Vary normalised inputs `(B, ...)`, which may be written to; mixed or smoothed targets are probabilities."""
        if self._options.cutout:
            sides = np.array(inputs.shape[2:])
            centres = _floor(self._per_sample("cutout", wanted, 2) * sides)
            inputs = cut_out(inputs, _to(centres, inputs), self._options.cutout)
        if self._soft:
            targets = smooth(targets, self._classes, self._options.label_smoothing, inputs.dtype)
        if self._mixes:
            inputs, targets = self._mix(inputs, targets, wanted)
        return inputs, targets

    def _mix(self, inputs: Tensor, targets: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
        choice, first, second, y, x = self._per_micro_batch("mix", wanted, 5)
        partners = _to(self._per_micro_batch("partners", wanted, len(inputs)).argsort(kind="stable"), inputs)
        name = self._mixes[int(choice * len(self._mixes))]
        share = symmetric_beta(getattr(self._options, name), first, second)
        if name == "mixup":
            return mixup(inputs, targets, partners, share)
        height, width = inputs.shape[2:]
        return cutmix(inputs, targets, partners, share, (int(y * height), int(x * width)))

    def _per_sample(self, what: str, wanted: Wanted, count: int) -> npt.NDArray[np.float64]:
        return draws.uniform(self._seed, wanted.epoch, wanted.ids.numpy(), count=count, what=what)

    def _per_micro_batch(self, what: str, wanted: Wanted, count: int) -> npt.NDArray[np.float64]:
        (found,) = draws.uniform(self._seed, wanted.step, [wanted.micro], count=count, what=what)
        return np.asarray(found)


def crop_padded(images: Tensor, places: Tensor, padding: int) -> Tensor:
    """Cut each image out of itself with a black margin, as torchvision's RandomCrop with `padding`.

    Args:
        images: uint8 `(B, C, H, W)`.
        places: row and column of the cut within the enlarged image, int64 `(B, 2)`, 0 to 2 x padding.
        padding: pixels of the margin on each side.
    """
    height, width = images.shape[2:]
    cuts = functional.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view of all cuts
    return cuts[torch.arange(len(images), device=images.device), :, places[:, 0], places[:, 1]]


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror left and right of the chosen images; `chosen` is bool `(B,)`."""
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def jitter(images: Tensor, factors: Tensor, white: int) -> Tensor:
    """Change brightness, then contrast, then saturation, as torchvision's ColorJitter defines them.

    Each is factor x image + (1 - factor) x other, cut off at black and white: the other is black, the image's mean
    grey, the image in grey. Every stage is rounded to whole pixel values, so that the mean is exact. Only three
    channels have a saturation.

    Args:
        images: uint8 `(B, C, H, W)`.
        factors: float32 `(B, 3)`.
        white: the largest pixel value.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    colours = images.shape[1] == 3
    values = images.to(torch.float32)

    def blend(factor: Tensor, other: Tensor | None) -> None:
        values.mul_(factor)
        if other is not None:
            values.add_((1 - factor) * other)
        values.round_().clamp_(0, white)

    blend(brightness, None)
    mean = (grey(values) if colours else values).mean((1, 2, 3), keepdim=True, dtype=torch.float64)
    blend(contrast, mean.to(torch.float32))
    if colours:
        blend(saturation, grey(values))
    return values.to(torch.uint8)


def grey(values: Tensor) -> Tensor:
    """Return the luma of whole pixel values, float32 `(B, 3, H, W)`, rounded: `(B, 1, H, W)`."""
    red, green, blue = values.unbind(1)
    luma = (red * _RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE)
    return luma.add_(2**15).mul_(2**-16).floor_()[:, None]


def cut_out(inputs: Tensor, centres: Tensor, side: int) -> Tensor:
    """Set a square of each image to 0, the mean of what is normalised (DeVries & Taylor 2017, section 3.2).

    Args:
        inputs: `(B, C, H, W)`; written to.
        centres: row and column, int64 `(B, 2)`; what lies outside of the image is cut off.
        side: of the square, in pixels.
    """

    def covered(length: int, centre: Tensor) -> Tensor:
        offset = torch.arange(length, device=inputs.device) - (centre[:, None] - side // 2)
        return (offset >= 0) & (offset < side)

    rows, columns = (covered(length, centres[:, axis]) for axis, length in enumerate(inputs.shape[2:]))
    return inputs.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


def smooth(labels: Tensor, classes: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Return probabilities `(B, K)` of labels int64 `(B,)`, a part spread evenly (Szegedy et al. 2016, section 7)."""
    even = torch.full((len(labels), classes), smoothing / classes, dtype=dtype, device=labels.device)
    return even.scatter_(1, labels[:, None], 1 - smoothing + smoothing / classes)


def mixup(inputs: Tensor, targets: Tensor, partners: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return share x each sample + (1 - share) x its partner (Zhang et al. 2018, section 2).

    Args:
        inputs: `(B, ...)`.
        targets: probabilities `(B, K)`.
        partners: numbers within the batch, int64 `(B,)`.
        share: 0 to 1, the same for the whole batch.
    """
    return tuple(part * share + part[partners] * (1 - share) for part in (inputs, targets))  # type: ignore[return-value]


def cutmix(
    inputs: Tensor, targets: Tensor, partners: Tensor, share: float, centre: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Put a box of each sample's partner into it, and mix targets by the area (Yun et al. 2019, section 3.1).

    Args:
        inputs: `(B, C, H, W)`; written to.
        targets: probabilities `(B, K)`.
        partners: numbers within the batch, int64 `(B,)`.
        share: part of the area outside of the box, before it is cut off at the borders.
        centre: row and column of the box.
    """
    spans, area = [], 1.0
    for length, middle in zip(inputs.shape[2:], centre, strict=True):
        half = int(0.5 * length * math.sqrt(1 - share))
        low, high = max(middle - half, 0), min(middle + half, length)
        spans.append(slice(low, high))
        area *= (high - low) / length
    box = inputs[:, :, spans[0], spans[1]]
    box.copy_(box[partners])
    return inputs, targets * (1 - area) + targets[partners] * area


def symmetric_beta(alpha: float, first: float, second: float) -> float:
    """Make a draw from Beta(alpha, alpha) of two uniform ones in [0, 1).

    A draw t of Student's distribution with 2 alpha degrees of freedom (R. W. Bailey, "Polar generation of random
    variates with the t-distribution", Math. Comp. 1994) gives (1 + t / sqrt(2 alpha + t^2)) / 2 (L. Devroye,
    "Non-uniform random variate generation", 1986, section IX.3). There is no rejection: two numbers are enough.
    """
    radius = math.sqrt(math.expm1(min(-math.log1p(-first) / alpha, 700)))  # 700: e^709 is the largest float
    ratio = radius * math.cos(2 * math.pi * second)
    return 0.5 * (1 + ratio / math.hypot(1, ratio))


def _floor(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return values.astype(np.int64)


def _to(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, non_blocking=True)
