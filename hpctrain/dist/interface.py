"""Which network interface do ranks talk over? One concrete name per node; IPv4, standard library alone.

Rank 0's node uses the interface that owns the published address, the others the one that routes to it. The route from
rank 0's node to itself is `lo`: exported to the others it would make them dial 127.0.0.1, so with more than one node
`lo` is never chosen.
"""

import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence

from hpctrain.errors import WorldError

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "HOROVOD_GLOO_IFACE")
"""Where the collective libraries look; what a user or site has set there stays, unless `dist.interface` is given."""

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_SIOCGIFNETMASK = 0x891B
_LOOPBACK = "127."


def addresses() -> dict[str, str]:
    """Return the IPv4 address of each network interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has no IPv4 address
                continue
            found[name] = socket.inet_ntoa(reply[20:24])
    return found


def subnet(address: str) -> ipaddress.IPv4Network:
    """Return the network of an interface of this node, by its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name, own in addresses().items():
            if own == address:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFNETMASK, struct.pack("256s", name.encode()[:15]))
                return ipaddress.IPv4Network(f"{own}/{socket.inet_ntoa(reply[20:24])}", strict=False)
    raise WorldError(f"no interface has the address {address}")


def resolve(name: str) -> list[str]:
    """Return the addresses of a name; none where it leads nowhere."""
    try:
        return socket.gethostbyname_ex(name)[2]
    except OSError:
        return []


def shared_subnet(address: str, others: Iterable[str]) -> ipaddress.IPv4Network | None:
    """Return the network of an interface of this node, by its address, if all others are in it, too."""
    listed = [ipaddress.IPv4Address(other) for other in others]
    shared = subnet(address) if listed else None
    return shared if shared is not None and all(other in shared for other in listed) else None


def publishable_address(*, interface: str | None, host: str, suffix: str, peers: Sequence[str], nodes: int) -> str:
    """Choose the address under which rank 0 shall be reached by the ranks of all nodes.

    Args:
        interface: what the user set as `dist.interface`; it wins.
        host: name of this node.
        suffix: text that leads from a host name to its name on the fast network (`dist.host_suffix`).
        peers: names of the other nodes.
        nodes: number of nodes; 1 keeps the traffic on the loopback interface.

    Raises:
        WorldError: the interface does not exist, or nothing but loopback is found.
    """
    owned = addresses()
    if interface is not None:
        if interface not in owned:
            raise WorldError(f"{host} has no interface {interface!r} with an IPv4 address", _choose(owned))
        return owned[interface]
    if nodes == 1:
        return "127.0.0.1"
    for name in (host + suffix, host):
        for address in resolve(name):
            if not address.startswith(_LOOPBACK) and address in owned.values():
                return address
    for peer in peers:  # the own name leads nowhere (Debian maps it to 127.0.1.1): take the address that peers see
        for address in resolve(peer + suffix):
            local = _local_address_towards(address)
            if local is not None and not local.startswith(_LOOPBACK):
                return local
    raise WorldError(
        f"{host} finds no address at which other nodes could reach it: {host + suffix!r} resolves to "
        f"{', '.join(resolve(host + suffix)) or 'nothing'}",
        _choose(owned),
    )


def towards(address: str, *, interface: str | None, host: str, nodes: int) -> str:
    """Return the name of the interface over which this node talks to rank 0 at `address`.

    Raises:
        WorldError: there is none, or only loopback although there are several nodes.
    """
    owned = addresses()
    if interface is not None:
        if interface not in owned:
            raise WorldError(f"{host} has no interface {interface!r} with an IPv4 address", _choose(owned))
        return interface
    local = address if address in owned.values() else _local_address_towards(address)
    for name, own in owned.items():
        if own == local and (nodes == 1 or not own.startswith(_LOOPBACK)):
            return name
    raise WorldError(f"{host} has no route to rank 0 at {address} (its own end would be {local})", _choose(owned))


def _choose(owned: dict[str, str]) -> str:
    listed = ", ".join(f"{name} ({address})" for name, address in owned.items())
    return f"choose one of {listed or 'none: no interface has an IPv4 address'} by dist.interface=NAME"


def _local_address_towards(address: str) -> str | None:
    """Ask the kernel's routing table by connecting a datagram socket: nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError as error:
            if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}:
                return None
            raise
        return str(probe.getsockname()[0])
