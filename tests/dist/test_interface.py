"""Interfaces of this machine; several nodes and decoys are in tests/cluster."""

import pytest

from hpctrain.dist import interface
from hpctrain.errors import WorldError


def test_loopback_is_among_the_interfaces():
    assert interface.addresses()["lo"] == "127.0.0.1"


def test_one_node_stays_on_loopback():
    assert interface.publishable_address(interface=None, host="x", suffix="", peers=[], nodes=1) == "127.0.0.1"
    assert interface.towards("127.0.0.1", interface=None, host="x", nodes=1) == "lo"


def test_loopback_is_never_taken_between_nodes():
    with pytest.raises(WorldError, match=r"n1 has no route to rank 0 at 127\.0\.0\.1 \(its own end would be 127"):
        interface.towards("127.0.0.1", interface=None, host="n1", nodes=2)


def test_what_the_user_set_wins():
    assert interface.towards("10.9.9.9", interface="lo", host="n1", nodes=2) == "lo"
    assert interface.publishable_address(interface="lo", host="n1", suffix="", peers=[], nodes=2) == "127.0.0.1"


def test_an_unknown_interface_lists_the_known_ones():
    with pytest.raises(WorldError) as caught:
        interface.towards("127.0.0.1", interface="ib7", host="n1", nodes=1)
    assert str(caught.value).startswith("n1 has no interface 'ib7' with an IPv4 address\n  choose one of lo (127.0.0.1)")


def test_a_name_that_leads_nowhere_says_what_to_set():
    with pytest.raises(WorldError, match=r"finds no address .* 'nowhere\.invalid-i' resolves to nothing\n  choose one of"):
        interface.publishable_address(interface=None, host="nowhere.invalid", suffix="-i", peers=[], nodes=2)


def test_nodes_share_a_network_only_if_all_are_in_it():
    assert str(interface.shared_subnet("127.0.0.1", ["127.0.0.2", "127.9.9.9"])) == "127.0.0.0/8"
    assert interface.shared_subnet("127.0.0.1", ["127.0.0.2", "192.0.2.1"]) is None
    assert interface.shared_subnet("127.0.0.1", []) is None


def test_the_network_of_an_address_is_known():
    assert str(interface.subnet("127.0.0.1")) == "127.0.0.0/8"
    with pytest.raises(WorldError, match=r"no interface has the address 192\.0\.2\.1"):
        interface.subnet("192.0.2.1")
