"""How many samples a batch norm sees, worked out before any rank runs."""

from typing import NamedTuple

from hpctrain.config.schema import Config

GHOST_BATCH = 32
"""Samples of a group where the config names none."""


class Problem(NamedTuple):
    """What cannot be: the key to blame, and a message that says what to type."""

    key: str
    message: str


def problem(config: Config, *, samples: int | None, global_batch: int, ranks: int, accumulate: int) -> Problem | None:
    """Say why the batch norms of a model cannot work with these numbers: one sample has no variance.

    Args:
        config: of a run that trains.
        samples: of the training set; None: not counted yet.
        global_batch: samples of a step.
        ranks: that share it.
        accumulate: passes of each rank in a step.
    """
    if config.model is None or config.batch is None:
        raise AssertionError("a config that trains has these sections")
    kind, ghost_batch = config.model.batch_norm, config.model.ghost_batch or GHOST_BATCH
    per_rank = global_batch // (ranks * accumulate)
    together = kind == "sync"
    parts = accumulate * (1 if together else ranks)  # each has statistics of its own
    sync = "" if together or ranks == 1 else "model.batch_norm=sync"
    share = f"{ranks} ranks x {accumulate} passes"
    if global_batch // parts < 2:
        use = " or ".join(filter(None, [f"batch.global={2 * ranks * accumulate}", sync]))
        return Problem(
            "batch", f"batch norm would see 1 sample in a pass: {global_batch} samples / ({share}); use {use}"
        )
    if kind == "ghost" and per_rank % ghost_batch:
        return Problem(
            "model.ghost_batch",
            f"groups of {ghost_batch} do not divide the {per_rank} samples of a pass, {global_batch} / ({share}); use "
            "a divisor",
        )
    if samples is None or config.batch.tail == "drop":
        return None
    whole, rest = divmod(samples, global_batch)
    if config.train is not None and config.train.steps is not None and config.train.steps <= whole:
        rest = 0  # no step comes that far
    if kind == "ghost" and rest % (ranks * accumulate * ghost_batch):
        return Problem(
            "model.ghost_batch",
            f"groups of {ghost_batch} do not divide the passes of an epoch's last step: {samples} - {whole} x "
            f"{global_batch} = {rest} samples / ({share}); use batch.tail=drop",
        )
    if rest and rest // parts < 2:
        return Problem(
            "batch.tail",
            f"batch norm would see fewer than 2 samples in a pass of an epoch's last step: {samples} - "
            f"{whole} x {global_batch} = {rest} samples / ({share}); use "
            + " or ".join(filter(None, ["batch.tail=drop", sync if rest >= 2 * accumulate else ""])),
        )
    return None
