"""Connects to permitted machines only, judged by the very address that is connected to.

A gateway's address comes from a table, and its name from whoever runs its DNS: neither may aim the sender at a service
inside. So a name is resolved here, once a connection, and only an address that was looked at is connected to.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import httpcore

from dispatcher.core.hosts import GatewayHosts
from dispatcher.sender.contract import ForbiddenHostError


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that ``hosts`` permits, and to no other."""

    def __init__(self, hosts: GatewayHosts) -> None:
        self._hosts, self._within = hosts, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first permitted address that answers.

        Raises:
            ForbiddenHostError: none of the host's addresses is permitted.
            httpcore.ConnectError, httpcore.ConnectTimeout: none answers.
        """
        until_s = None if timeout is None else time.monotonic() + timeout
        found = await _addresses(host, port, timeout)
        permitted = [address for address in found if self._hosts.permits(host, address)]
        if not permitted:
            raise ForbiddenHostError(host, found[0])
        failure: Exception = httpcore.ConnectError("it has no address")
        for address in permitted:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            try:
                return await self._within.connect_tcp(address, port, left_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, *_given: Any, **_named: Any) -> httpcore.AsyncNetworkStream:
        """No gateway stands behind one."""
        raise httpcore.ConnectError("gateways are reached by TCP")

    async def sleep(self, seconds: float) -> None:
        """Pause."""
        await asyncio.sleep(seconds)


async def _addresses(host: str, port: int, timeout: float | None) -> list[str]:
    """The addresses of a host, in the resolver's order; an address is its own."""
    try:
        return [str(ip_address(host))]
    except ValueError:
        pass
    try:
        async with asyncio.timeout(timeout):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise httpcore.ConnectTimeout(f"the name {host} was not resolved in time") from None
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(where[4][0]).partition("%")[0] for where in found))
