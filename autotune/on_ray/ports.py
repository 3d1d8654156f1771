"""Ports on which a Ray that is started here listens."""

import errno
import socket
from typing import Literal

from autotune.errors import InputError

LOOPBACK = "127.0.0.1"


def refuse_taken(host: str, port: int | None, what: Literal["dashboard", "metrics"]) -> None:
    """Raise InputError where it cannot be listened: Ray would try 50 ports, for minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port or 0))
        except OSError as error:
            foreign = error.errno == errno.EADDRNOTAVAIL
            raise InputError(
                f"cannot listen on {host}:{port or ''}: {error.strerror}",
                field=f"{what}_host" if foreign else f"{what}_port",
            ) from None
