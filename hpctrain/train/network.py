"""Which network a run's nodes talk over, as far as its config and the job know."""

import os
from collections.abc import Iterable, Mapping

from hpctrain.config.schema import Config
from hpctrain.dist import interface
from hpctrain.errors import WorldError
from hpctrain.plan import Plan
from hpctrain.world import World


def hosts(world: World) -> list[str]:
    """Return the names of the job's nodes."""
    return os.environ.get("HPCTRAIN_HOSTS", world.host).split()


def address(config: Config, plan: Plan, world: World) -> str:
    """Return the address at which other nodes reach this one.

    Raises:
        WorldError: there is none.
    """
    return interface.publishable_address(
        interface=config.dist.interface,
        host=world.host,
        suffix=config.dist.host_suffix,
        peers=_peers(world),
        nodes=plan.nodes,
    )


def open_mpis(env: Mapping[str, str], own: str, others: Iterable[str]) -> dict[str, str]:
    """Say to Open MPI which network the nodes share, unless somebody has said so already.

    It would connect to any address of a peer, also to that of a bridge for containers, which is the same on all nodes.

    Args:
        env: the environment of the ranks.
        own: this node's address.
        others: addresses of the other nodes.
    """
    if any(name.startswith("OMPI_MCA_btl_tcp_if_") for name in env):
        return {}
    # a routed network's interfaces have no more in common than their names, or not even that
    shared = interface.shared_subnet(own, others)
    return {} if shared is None else {"OMPI_MCA_btl_tcp_if_include": str(shared)}


def open_mpis_by_name(config: Config, plan: Plan, world: World) -> dict[str, str]:
    """Say the same for ranks that no launcher of ours has told: srun started them."""
    if plan.nodes == 1:
        return {}
    if config.dist.interface is not None:
        return {"OMPI_MCA_btl_tcp_if_include": config.dist.interface}
    suffix = config.dist.host_suffix
    others = [(interface.resolve(peer + suffix) or interface.resolve(peer))[:1] for peer in _peers(world)]
    try:
        own = address(config, plan, world)
    except WorldError:  # rank 0 needs an address, and says so; this one may do without
        return {}
    return open_mpis(os.environ, own, [found[0] for found in others]) if all(others) else {}


def _peers(world: World) -> list[str]:
    return [host for host in hosts(world) if host != world.host]
