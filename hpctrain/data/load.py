"""The config's `data` -> a dataset of parts that give batches."""

import torch

from hpctrain.config.datasets import Data
from hpctrain.data import images, user
from hpctrain.data.dataset import Dataset
from hpctrain.plan import Plan


def load(data: Data, plan: Plan, *, device: torch.device, dtype: torch.dtype) -> Dataset:
    """Open the dataset of a plan.

    Args:
        data: the config's section.
        plan: names its directory and how many samples are used, and has the seed.
        device: where batches are made.
        dtype: of the inputs.

    Raises:
        DataError: it cannot be read, or is not the planned one.
        UsageError: the user's own cannot be found.
        JobError: the user's own failed.
    """
    if ":" in data.dataset:
        return user.load(data, plan, device=device, dtype=dtype)
    return images.load(
        data, path=plan.data_path, train_samples=plan.train_samples or 0, seed=plan.seed, device=device, dtype=dtype
    )
