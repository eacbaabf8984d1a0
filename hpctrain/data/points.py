"""Small sets of points for the first exercises of every course; each is a pure function of its arguments."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from hpctrain.config import schema
from hpctrain.config.datasets import PointsArgs
from hpctrain.data import augment, split
from hpctrain.data.dataset import Dataset
from hpctrain.data.memory import InMemory

Floats = npt.NDArray[np.float64]

SLOPE, OFFSET = (2.0, -3.0), 0.5
"""Of `line`: y = SLOPE . x + OFFSET."""
NORMAL, MARGIN = (0.6, 0.8), 0.2
"""Of `separable`: the classes lie on the two sides of NORMAL . x = 0, at least MARGIN away from it."""
CENTRES = ((-1.0, -0.5), (1.0, 0.5))
"""Of `clusters`."""
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
"""Of `xor`, in turn: the class is 1 where exactly one of the two is."""


def load(
    data: schema.Data,
    *,
    path: str | None,  # noqa: ARG001 - as the other formats are called
    train_samples: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Dataset:
    """Make a set of points: inputs `(P, 2)`, and classes or numbers.

    Args:
        data: the config's section; its arguments are a `PointsArgs`.
        path: none.
        train_samples: use the first so many of the training points.
        seed: of the split alone.
        device: where batches are made.
        dtype: of inputs, and of targets that are numbers.
    """
    args: PointsArgs = schema.arguments(PointsArgs, data.args)
    regression = args.kind == "line"
    chosen = split.choose(args.count, data.split, seed)
    count = split.planned(chosen, train_samples, data.dataset)
    inputs, targets = make(args, args.count, "train")
    ids = {name: part.ids(np.arange(part.count)) for name, part in chosen.items()}
    varying = None if regression else augment.build(data.augment, seed=seed, shape=(), classes=2)

    def part(points: Floats, answers: Floats, *, training: bool = False) -> InMemory:
        wanted = torch.from_numpy(answers).to(device, dtype if regression else torch.int64)
        made = torch.from_numpy(points).to(device, dtype)
        return InMemory(made, wanted, count=len(made), dtype=dtype, augment=varying if training else None)

    tested = (inputs[ids["test"]], targets[ids["test"]]) if data.split.test else make(args, args.test_count, "test")
    return Dataset(
        part(inputs[ids["train"][:count]], targets[ids["train"][:count]], training=True),
        part(*tested),
        part(inputs[ids["validation"]], targets[ids["validation"]]) if len(ids["validation"]) else None,
        (2,),
        1 if regression else 2,
        "number" if regression else "classes",
    )


def make(args: PointsArgs, count: int, which: str) -> tuple[Floats, Floats]:
    """Return so many points `(count, 2)` and their targets `(count,)`; the first n of more are those of n."""
    drawn = np.random.Generator(np.random.Philox(key=[args.seed, _KINDS.index(args.kind) * 2 + (which == "test")]))
    # one row of four numbers for each point, so that a larger set begins with a smaller one
    rows = drawn.random((count, 4))
    uniform, normal = 2 * rows[:, :2] - 1, _normal(rows)
    return _MAKERS[args.kind](uniform, normal, args.noise)


def _normal(rows: Floats) -> Floats:
    """Make two independent standard normal numbers of four uniform ones (Box & Muller 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-rows[:, 2:3])), 2 * np.pi * rows[:, 3:4]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _line(uniform: Floats, normal: Floats, noise: float) -> tuple[Floats, Floats]:
    return uniform, uniform @ np.array(SLOPE) + OFFSET + noise * normal[:, 0]


def _separable(uniform: Floats, normal: Floats, noise: float) -> tuple[Floats, Floats]:
    direction = np.array(NORMAL)
    distance = uniform @ direction
    side = np.where(distance >= 0, 1.0, -1.0)
    return uniform + (side * MARGIN)[:, None] * direction + noise * normal, (side + 1) / 2


def _clusters(uniform: Floats, normal: Floats, noise: float) -> tuple[Floats, Floats]:
    label = np.arange(len(uniform)) % 2
    return np.array(CENTRES)[label] + noise * normal, label.astype(np.float64)


def _xor(uniform: Floats, normal: Floats, noise: float) -> tuple[Floats, Floats]:
    corner = np.array(CORNERS)[np.arange(len(uniform)) % len(CORNERS)]
    return corner + noise * normal, corner.sum(axis=1) % 2


_MAKERS: dict[str, Callable[[Floats, Floats, float], tuple[Floats, Floats]]] = {
    "line": _line,
    "separable": _separable,
    "clusters": _clusters,
    "xor": _xor,
}
_KINDS = tuple(_MAKERS)
