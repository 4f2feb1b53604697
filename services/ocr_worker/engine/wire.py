"""What goes over the sockets: frames (four bytes of length, then that many bytes) to a reading process, and fixed
orders to the template process (see there)."""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

from .limits import MAX_REPLY_BYTES

__all__ = ["FAILED", "REPLY", "REQUEST", "Closed", "receive", "send"]

REQUEST: Final = struct.Struct("!ci")  # order, process id
REPLY: Final = struct.Struct("!i")
FAILED: Final = -1

_LENGTH: Final = struct.Struct("!I")


class Closed(ConnectionError):
    """The other end is gone, or sent what no sound end sends."""


def send(channel: socket.socket, body: bytes) -> None:
    """Raises Closed."""
    try:
        channel.sendall(_LENGTH.pack(len(body)) + body)
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed from error


def receive(channel: socket.socket, seconds: float | None = None) -> bytes:
    """One frame. Raises Closed, and TimeoutError when it is not complete within ``seconds``."""
    deadline = None if seconds is None else time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size, deadline))
    if length > MAX_REPLY_BYTES:
        raise Closed
    return _exactly(channel, length, deadline)


def _exactly(channel: socket.socket, count: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        try:
            part = channel.recv(min(count - len(parts), 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed from error
        if not part:
            raise Closed
        parts += part
    return bytes(parts)
