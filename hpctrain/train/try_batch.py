"""One try of `hpctrain find-batch`: two whole steps with the batch of the config, within a given memory."""

import resource
from pathlib import Path
from typing import Any

import torch

from hpctrain.task import TryBatch
from hpctrain.train.trial import Trial

_STEPS = 2  # of the same batch, which is whole; the second has the optimizer's state beside the gradient


def confine(task: TryBatch) -> None:
    """Let this process map no more memory than it may take beyond what it has taken.

    A limit on the address space alone (RLIMIT_AS) would count what torch has mapped and never touched: gigabytes. So it
    is set to what is mapped now, and on top of it what is left of the memory.
    """
    if task.memory is None:
        return
    mapped, resident = (
        int(count) * resource.getpagesize() for count in Path("/proc/self/statm").read_text().split()[:2]
    )
    limit = mapped + max(task.memory - resident, 0)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def try_batch(trial: Trial, device: torch.device) -> dict[str, Any]:
    """Do the steps; what does not fit ends the rank as out of memory."""
    samples = [done.samples for done in trial.steps([0] * _STEPS, lambda _: trial.numbers.lr_used)]
    taken = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    most = max(int(trial.comm.sum(torch.tensor([taken if rank == trial.comm.rank else 0])).item())
               for rank in range(trial.comm.size))  # fmt: skip
    return {"steps": len(samples), "samples": samples, "taken": most}
