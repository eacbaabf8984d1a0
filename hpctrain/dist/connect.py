"""Choose how the ranks work together, and bring them together."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from hpctrain.config.schema import Dist
from hpctrain.dist import mpi
from hpctrain.dist.comm import Comm
from hpctrain.dist.ddp import Ddp
from hpctrain.dist.interface import VARIABLES
from hpctrain.dist.single import Single
from hpctrain.errors import RendezvousError, WorldError
from hpctrain.plan import Plan
from hpctrain.world import World


def connect(
    plan: Plan,
    world: World,
    *,
    store: tuple[str, int] | None,
    listen_fd: int | None,
    interface: str | None,
    device: torch.device,
    timeout_s: float,
    settings: Dist,
) -> Comm:
    """Form the group of all ranks; every rank calls this once.

    Args:
        plan: names the backend and how many ranks there must be.
        world: this process.
        store: host and port at which rank 0 listens; None only for a single rank.
        listen_fd: on rank 0 the descriptor of the socket that is already bound to that port and listens; taken over
            here. So no port is ever guessed, and no stranger's store is joined by mistake.
        interface: one concrete network interface for those of Gloo and NCCL for which the environment names none.
        device: this rank's device.
        timeout_s: how long a rank waits for the others, now and in each collective.
        settings: of the config.

    Raises:
        WorldError: the ranks are not as many as planned, or did not come together in time.
    """
    if world.size != plan.ranks:
        raise WorldError(f"{world} runs, but {plan.ranks} ranks are planned", "start as many ranks as the plan says")
    if world.size == 1:
        if listen_fd is not None:
            os.close(listen_fd)
        return Single()
    if store is None:
        raise AssertionError("more than one rank needs the address of rank 0")
    if interface is not None:
        for name in VARIABLES:
            os.environ.setdefault(name, interface)
    if plan.strategy == "horovod":
        from hpctrain.dist import hvd

        return hvd.connect(
            plan, world, settings, store=store, listen_fd=listen_fd, device=device, timeout_s=timeout_s
        )
    try:
        _process_group(plan, world, store=store, listen_fd=listen_fd, device=device, timeout_s=timeout_s)
    except (dist.DistError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RendezvousError(
            f"{world} could not join the others through {store[0]}:{store[1]} on {interface or 'the default interface'} "
            f"within {timeout_s:g} s: {reason}",
            "look at the other ranks' logs; if the interface is wrong, set dist.interface",
        ) from error
    return Ddp(device, settings.compression)


def _process_group(
    plan: Plan,
    world: World,
    *,
    store: tuple[str, int],
    listen_fd: int | None,
    device: torch.device,
    timeout_s: float,
) -> None:
    """Initialise torch's default process group."""
    timeout = timedelta(seconds=timeout_s)
    if plan.backend == "mpi":
        mpi.require_in_torch()
        if listen_fd is not None:  # MPI knows the others
            os.close(listen_fd)
        dist.init_process_group("mpi", timeout=timeout)
        return
    shared = dist.TCPStore(  # type: ignore[attr-defined]
        *store,
        is_master=world.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listen_fd if world.rank == 0 else None,
    )
    dist.init_process_group(
        plan.backend,
        store=dist.PrefixStore("hpctrain", shared),  # type: ignore[attr-defined]
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        device_id=device if plan.backend == "nccl" else None,
    )
