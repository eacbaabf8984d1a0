"""From a proven world to a trained model: device, threads, process group, loop."""

import contextlib
import os

import msgspec
import torch

from hpctrain import task as tasks
from hpctrain.config.schema import Config
from hpctrain.dist.connect import connect
from hpctrain.errors import WorldError
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train.heartbeat import Heart
from hpctrain.train.loop import train
from hpctrain.train.proof import Joined
from hpctrain.train.stop import Stop
from hpctrain.world import World


def run(
    run: RunDir,
    attempt: int,
    config: Config,
    plan: Plan,
    world: World,
    joined: Joined,
    network: str,
    stop: Stop,
    heart: Heart | None,
    *,
    debug: bool,
) -> None:
    """Train; returns on every rank after rank 0 has written the outcome.

    Raises:
        WorldError: a GPU was promised and is not there.
        HpctrainError: whatever the loop finds.
    """
    device = _device(plan, world)
    # More threads than cores run several times slower, and another number of threads sums in another order: so the
    # config alone decides, not the machine.
    torch.set_num_threads(config.slurm.cpus_per_task or 1)
    if device.type == "cpu":
        _keep_freed_memory()
    comm = connect(
        plan,
        world,
        store=(joined.host, joined.port),
        listen_fd=None if joined.listener is None else joined.listener.detach(),
        interface=network,
        device=device,
        timeout_s=config.dist.timeout,
        settings=config.dist,
    )
    if debug and config.data is not None:  # one thread, in which a debugger sees everything
        alone = msgspec.structs.replace(config.data, workers="0", loader="threads")
        config = msgspec.structs.replace(config, data=alone)
    if (task := tasks.read(run)) is None:
        train(run, attempt, config, plan, world, comm, device, stop, heart=heart, debug=debug)
    else:
        from hpctrain.train import practice

        practice.perform(task, run, attempt, config, plan, world, comm, device, heart)
    comm.close()


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, which needs the same again.

    By its defaults it gives large blocks back to the kernel, and each step pays for clearing the same pages anew: a
    small CNN's step then takes 20 or 30 ms, by chance of where its blocks lie (docs/log.md).
    """
    import ctypes

    trim_threshold, mmap_threshold, never = -1, -3, 1 << 30  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, never)
        libc.mallopt(mmap_threshold, never)


def _device(plan: Plan, world: World) -> torch.device:
    if plan.device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 0:
        raise WorldError(
            f"{world} was promised a GPU, but torch sees none",
            "look at hpctrain doctor in the job; run on CPUs with device=cpu",
        )
    index = world.local_rank if count > 1 else 0
    if index >= count or (count == 1 and world.local_size > 1 and "," in os.environ.get("CUDA_VISIBLE_DEVICES", ",")):
        raise WorldError(
            f"{world} was promised a GPU of its own, but torch sees {count} for {world.local_size} ranks",
            "ask for one GPU per rank with slurm.gpus_per_node, or run on CPUs with device=cpu",
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
