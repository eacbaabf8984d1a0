"""The config's `data` -> a dataset of parts that give batches."""

import torch

from hpctrain.config.datasets import Data
from hpctrain.data import folder, images, pictures, shards, table, user
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
        return user.load(data, plan, device=device, dtype=dtype)
    if data.dataset in {"folder", "shards"}:
        opener = folder.open_sources if data.dataset == "folder" else shards.open_sources
        train, test = opener(data, plan.data_path or "", plan.data_digest)
        return pictures.load(data, train, test, plan, device=device, dtype=dtype)
    reader = table.load if data.dataset == "table" else images.load
    return reader(
        data, path=plan.data_path, train_samples=plan.train_samples or 0, seed=plan.seed, device=device, dtype=dtype
    )
