"""Where requests may go: public addresses, and what is allowed beside them."""

from __future__ import annotations

import pytest

from dispatcher.core.hosts import GatewayHosts

WITHIN = (
    "127.0.0.1", "127.9.9.9", "10.0.0.8", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:a00:8", "2002:7f00:1::",
    "64:ff9b::7f00:1", "ff02::1", "::",
)  # fmt: skip


@pytest.mark.parametrize("address", WITHIN)
def test_addresses_within_are_refused_by_default_and_under_every_allowed_name(address):
    assert not GatewayHosts().permits("gw.example", address)
    assert not GatewayHosts("gw.example").permits("gw.example", address)


@pytest.mark.parametrize("address", ["8.8.8.8", "157.240.1.1", "2a03:2880:f10c::1", "64:ff9b::808:808"])
def test_public_addresses_are_permitted_unless_other_names_are_listed(address):
    assert GatewayHosts().permits("gw.example", address)
    assert GatewayHosts("10.0.0.0/8").permits("gw.example", address)
    assert GatewayHosts("GW.example").permits("gw.Example.", address)
    assert not GatewayHosts("other.example").permits("gw.example", address)


def test_a_network_that_is_listed_is_permitted_under_every_name_and_no_other_one():
    hosts = GatewayHosts(" 10.1.0.0/16 , ::1, .gw.example")
    told = {
        name: hosts.permits(name, address)
        for name, address in {
            "any.example": "10.1.2.3", "else.example": "10.2.0.1", "localhost": "::1", "a.gw.example": "8.8.8.8",
            "gw.example": "8.8.8.8", "agw.example": "8.8.8.8",
        }.items()
    }  # fmt: skip
    assert told == {
        "any.example": True, "else.example": False, "localhost": True, "a.gw.example": True, "gw.example": False,
        "agw.example": False,
    }  # fmt: skip


@pytest.mark.parametrize("entry", ["http://gw.example", "10.0.0.1/8", "gw.example:80", "a b", "."])
def test_what_is_neither_a_name_nor_a_network_is_refused(entry):
    with pytest.raises(ValueError, match="is no host name, address or network"):
        GatewayHosts(entry)
