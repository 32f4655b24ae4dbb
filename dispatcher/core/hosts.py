"""Which machines a request to a gateway may go to. Pure: whoever connects resolves names, and asks for each address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address

_TRANSLATED: Final = ip_network("64:ff9b::/96")
"""IPv4 behind NAT64 (RFC 6052): the last 32 bits are the address."""


class GatewayHosts:
    """Where gateways may stand: at public addresses, and at those of ``allowed``.

    Args:
        allowed: separated by commas: addresses and networks that need not be public (``127.0.0.0/8``), and names
            (``gw.example``, ``.example`` for all below). With at least one name, only named hosts are gateways.

    Raises:
        ValueError: an entry is neither.
    """

    def __init__(self, allowed: str = "") -> None:
        self._names: list[str] = []
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in filter(None, map(str.strip, allowed.split(","))):
            try:
                self._networks.append(ip_network(entry))
            except ValueError:
                if not all(part.replace("-", "").isalnum() for part in entry.removeprefix(".").split(".")):
                    raise ValueError(f"{entry!r} is no host name, address or network") from None
                self._names.append(entry.casefold())

    def permits(self, host: str, address: str) -> bool:
        """Whether a request to ``host`` may connect to ``address``, which is one of its addresses."""
        at = ip_address(address)
        if any(at in network for network in self._networks):
            return True
        return _is_public(at) and (not self._names or self._names_it(host.casefold().rstrip(".")))

    def _names_it(self, host: str) -> bool:
        return any(host == name or (name.startswith(".") and host.endswith(name)) for name in self._names)


def _is_public(at: Address) -> bool:
    if isinstance(at, IPv6Address):
        within = at.ipv4_mapped or at.sixtofour or (IPv4Address(int(at) & 0xFFFF_FFFF) if at in _TRANSLATED else None)
        if within is not None:
            return _is_public(within)
    return at.is_global and not at.is_multicast
