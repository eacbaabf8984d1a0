"""The config's `data` -> a dataset of parts that give batches.

Each format is imported only where it is used: every rank would pay for all of them at its start.
"""

import torch

from hpctrain.config.datasets import Data
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
    """
    if ":" in data.dataset:
        from hpctrain.data import user

        return user.load(data, plan, device=device, dtype=dtype)
    if data.dataset in {"folder", "shards"}:
        from hpctrain.data import folder, pictures, shards

        opener = folder.open_sources if data.dataset == "folder" else shards.open_sources
        train, test = opener(data, plan.data_path or "", plan.data_digest)
        return pictures.load(data, train, test, plan, device=device, dtype=dtype)
    if data.dataset == "table":
        from hpctrain.data.table import load as read
    elif data.dataset == "points":
        from hpctrain.data.points import load as read
    else:
        from hpctrain.data.images import load as read
    return read(
        data, path=plan.data_path, train_samples=plan.train_samples or 0, seed=plan.seed, device=device, dtype=dtype
    )
