"""The wires between the fake hosts: one bridge, whose own address is the login node's, and a veth pair per node."""

import subprocess
from collections.abc import Sequence

from hpctrain.errors import ClusterError
from hpctrain.sandbox.slurm_conf import LOGIN_ADDRESS
from hpctrain.sandbox.spec import tool

_BRIDGE = "br0"


def make_bridge(network: str) -> None:
    """Give the login node its interfaces."""
    _ip(
        "link set lo up",
        f"link add {_BRIDGE} type bridge",
        f"address add {network}.{LOGIN_ADDRESS}/24 dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
    )


def plug_in(network: str, cables: Sequence[tuple[str, int, int]]) -> None:
    """Run a cable from the bridge to each node.

    Args:
        network: first three numbers of the addresses.
        cables: (name of the bridge's end, number of the node, pid of a process in its network namespace).
    """
    prefix = ":".join(f"{int(part):02x}" for part in network.split("."))
    # A rebooted host has the address that its neighbours remember: without it they would not reach it for seconds.
    ends = ((name, f"02:{prefix}:00:{number:02x}", pid) for name, number, pid in cables)
    _ip(*(f"link add {a} up master {_BRIDGE} type veth peer name eth0 address {mac} netns {b}" for a, mac, b in ends))


def configure_node(network: str, number: int) -> None:
    """Set the addresses of the node in whose network namespace this process is. It gets no route to elsewhere."""
    _ip("link set lo up", f"address add {network}.{number}/24 dev eth0", "link set eth0 up")


def set_cable(name: str, *, up: bool) -> None:
    """Mend or cut a node's cable."""
    _ip(f"link set {name} {'up' if up else 'down'}")


def _ip(*commands: str) -> None:
    text = "".join(f"{command}\n" for command in commands)
    done = subprocess.run([tool("ip"), "-batch", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"sandbox: the kernel refused a network interface: {done.stderr.strip()}\n{text}")
