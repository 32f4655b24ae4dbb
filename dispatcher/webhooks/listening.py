"""The listening socket: made before anything else is started, and without all that serves on it."""

from __future__ import annotations

import errno
import socket
from typing import Final

from dispatcher.config import Settings
from dispatcher.errors import InputError

_BACKLOG: Final = 512


def listen(where: str, settings: Settings) -> socket.socket:
    """A socket that listens at ``where``, HOST:PORT, before anything else is started.

    Raises:
        InputError: that is no address, it is taken, or there is no secret to check requests with.
    """
    if settings.webhook_secret is None and settings.whatsapp_app_secret is None:
        raise InputError(
            "--webhooks",
            "there is no secret, so nothing that comes in could be believed",
            "set DRIPLINE_WEBHOOK_SECRET (of the generic contract) or DRIPLINE_WHATSAPP_APP_SECRET",
        )
    host, colon, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise InputError("--webhooks", f"{where!r} is no HOST:PORT", "write it like 127.0.0.1:8090, or [::1]:8090")
    try:
        family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        problem = "something listens there already" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise InputError("--webhooks", f"{where}: {problem}", "choose another address") from None
