"""The passes with which other ranks go on with the same global batch."""

from hpctrain.errors import UsageError
from hpctrain.plan import Plan


def passes_for(before: Plan, ranks: int, *, together: bool = False) -> int:
    """Return the passes with which other ranks do the same global batch, in passes no larger than before.

    Args:
        before: the plan so far.
        ranks: that go on.
        together: batch norms see a pass of all ranks, so that the number of passes must stay.

    Raises:
        UsageError: the ranks do not divide it.
    """
    batch, per_rank, accumulate = before.global_batch or 0, before.batch_per_rank or 1, before.accumulate or 1
    if ranks == before.ranks:
        return accumulate
    if together and batch % (ranks * accumulate) == 0:
        return accumulate
    if together:
        near = _nearest(batch // accumulate, ranks)
        raise UsageError(
            f"the {batch // accumulate} samples of a pass, over all of which model.batch_norm: sync takes its mean, "
            f"cannot be shared evenly by {ranks} ranks",
            f"use dist.ranks={near}",
        )
    share, rest = divmod(batch, ranks)
    if rest:
        near = _nearest(batch, ranks)
        raise UsageError(
            f"the global batch of {batch} cannot be kept on {ranks} ranks: {batch} / {ranks} = {batch / ranks:.4g}, "
            "and another batch would repeat samples or leave some out",
            f"use dist.ranks={near}, or start a new run",
        )
    return next(count for count in range(-(-share // per_rank), share + 1) if share % count == 0)


def _nearest(samples: int, ranks: int) -> str:
    """Return the numbers of ranks next to one by which samples can be divided."""
    fitting = [count for count in range(1, samples + 1) if samples % count == 0]
    return " or ".join(map(str, sorted(sorted(fitting, key=lambda count: abs(count - ranks))[:3])))
