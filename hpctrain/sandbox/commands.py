"""`hpctrain sandbox ...`: the commands; each imports what it needs inside."""

import sys

import click


@click.group()
def sandbox() -> None:
    """A private Slurm of several nodes on this machine, to try a config before the cluster."""


_nodes = click.option("--nodes", type=click.IntRange(1, 64), default=2, show_default=True)
_gpus = click.option("--gpus-per-node", type=click.IntRange(0, 16), default=0, show_default=True, help="Fake GPUs.")
_cpus = click.option("--cpus-per-node", type=click.IntRange(1, 256), default=8, show_default=True)
_accounting = click.option("--accounting", is_flag=True, help="With slurmdbd and MariaDB, so that sacct works.")
_partitions = click.option(
    "--partition",
    "partitions",
    multiple=True,
    default=("main",),
    show_default=True,
    help="Its partitions, for a config that names one.",
)
_network = click.option("--network", default="10.231.7", show_default=True, help="First three bytes of its addresses.")


@sandbox.command()
@_nodes
@_gpus
@_cpus
@_accounting
@_network
@_partitions
def up(
    nodes: int, gpus_per_node: int, cpus_per_node: int, accounting: bool, network: str, partitions: tuple[str, ...]
) -> None:
    """Start it; hpctrain's commands use it until `sandbox down`."""
    from hpctrain.sandbox import cluster

    box = cluster.up(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        accounting=accounting,
        network=network,
        partitions=partitions,
    )
    print(f'export PATH="{box.bin}:$PATH"')
    print(
        f"hpctrain: {nodes} nodes are idle; hpctrain submit uses them now. For sbatch and squeue themselves type the "
        "line above",
        file=sys.stderr,
    )


@sandbox.command()
def down() -> None:
    """End it and remove all of it."""
    from hpctrain.sandbox import cluster

    print("hpctrain: the sandbox is gone" if cluster.down() else "hpctrain: no sandbox was up", file=sys.stderr)


@sandbox.command(name="status")
def sandbox_status() -> None:
    """Print its nodes and jobs as JSON."""
    import msgspec

    from hpctrain.sandbox import cluster

    print(msgspec.json.format(msgspec.json.encode(cluster.status()), indent=2).decode())


@sandbox.command(name="run", context_settings={"ignore_unknown_options": True})
@_nodes
@_gpus
@_cpus
@_accounting
@_network
@_partitions
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD [ARG]...")
def sandbox_run(
    nodes: int,
    gpus_per_node: int,
    cpus_per_node: int,
    accounting: bool,
    network: str,
    partitions: tuple[str, ...],
    command: tuple[str, ...],
) -> None:
    """Start one, run CMD as on its login node, remove it; ends with CMD's exit code."""
    from hpctrain.sandbox import cluster

    sys.exit(
        cluster.run(
            command,
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            cpus_per_node=cpus_per_node,
            accounting=accounting,
            network=network,
            partitions=partitions,
        )
    )


@sandbox.command()
@click.argument(
    "verb", type=click.Choice(["crash", "cut", "join", "up", "kill-slurmd", "start-slurmd"]), metavar="VERB"
)
@click.argument("name")
def node(verb: str, name: str) -> None:
    """Break or mend one node: crash (power off), cut and join (network), up (power on), kill and start its slurmd."""
    from hpctrain.sandbox import cluster

    cluster.node(verb, name)
