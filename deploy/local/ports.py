"""TCP ports on the loopback interface for servers that choose their own."""

from __future__ import annotations

import random
import socket

__all__ = ["LOOPBACK", "choose_port", "is_free"]

LOOPBACK = "127.0.0.1"
# Below the ephemeral ranges of Linux (32768+) and macOS (49152+). A client that retries a dead server's port inside
# the ephemeral range can be given that very port as its own and connect to itself, and then the server cannot return.
_LOWEST, _HIGHEST = 20_000, 32_000


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on this port now; connections in TIME_WAIT do not count. "" means any address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose_port(preferred: int | None = None) -> int:
    """The preferred port while it is free, else a random free one. Raises OSError when 200 tries find none."""
    if preferred is not None and is_free(preferred):
        return preferred
    for _ in range(200):
        port = random.randrange(_LOWEST, _HIGHEST)  # noqa: S311 - a port is no secret
        if is_free(port):
            return port
    raise OSError(f"no free TCP port found on {LOOPBACK} between {_LOWEST} and {_HIGHEST}")
