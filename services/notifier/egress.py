"""One HTTP POST to an address a stranger chose, without becoming their way into our network (SSRF).

The host is resolved once, every address it has is checked, and the connection goes to a checked address and
nowhere else: the name is used for the Host header and TLS alone, so a second DNS answer changes nothing.
No redirects, no proxy from the environment, one deadline over everything, a bounded answer.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import httpcore2
import httpx2

from .addresses import Network, in_networks, is_public, parse_address

__all__ = [
    "Aborted",
    "AddressNotAllowed",
    "Answer",
    "DeliveryFailed",
    "Egress",
    "EgressError",
    "Exchange",
    "NameNotResolved",
    "UrlNotAllowed",
]

PORTS = frozenset({80, 443, 8443})
MAX_ANSWER_BYTES = 64 * 1024
# Once the status is known the answer's body changes nothing: it is read for politeness, briefly.
_BODY_SECONDS = 1.0
_MAX_ADDRESSES = 4  # of a name with many; the deadline is shared between them
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.\-]{0,251}[a-z0-9_])?\.?|[0-9a-f:.]*:[0-9a-f:.]*")

Resolver = Callable[[str, int], Sequence[str]]
Connector = Callable[[str, int, float], socket.socket]
FailureKind = Literal["timeout", "connect", "tls", "protocol"]


class EgressError(Exception):
    """The request did not come about, or got no answer."""


class UrlNotAllowed(EgressError):
    """The URL itself is out of bounds: scheme, port, credentials, or not a URL. The text is a sentence for people."""


class AddressNotAllowed(EgressError):
    """The host has an address that is not on the public internet, nor in an allowed network."""


class NameNotResolved(EgressError):
    """The host's name gave no address in time. May pass."""


class DeliveryFailed(EgressError):
    """No whole answer: ``kind`` says where it broke. May pass."""

    def __init__(self, kind: FailureKind) -> None:
        super().__init__(kind)
        self.kind = kind


class Aborted(EgressError):
    """``Exchange.abort`` was called."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``headers`` by lower-case name (the last one of a name). ``body`` is at most 64 KiB and may be cut short."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    seconds: float


def system_resolver(host: str, port: int) -> list[str]:
    """All addresses of ``host``, by getaddrinfo, in its order. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(address: str, port: int, seconds: float) -> socket.socket:
    """A TCP connection to a numeric ``address``: no name is looked up. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect((address, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class Egress:
    """Makes ``Exchange``s under one policy; safe to share between threads.

    ``allow_networks`` may also be reached by plain http and at any port. ``resolver``, ``connector`` and
    ``ssl_context`` are seams for tests and for deployments with their own DNS or authorities.
    """

    def __init__(
        self,
        *,
        allow_networks: tuple[Network, ...] = (),
        timeout: float = 10.0,
        resolver: Resolver = system_resolver,
        connector: Connector = connect,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.allow_networks = allow_networks
        self.timeout = timeout
        self.resolver = resolver
        self.connector = connector
        self.ssl_context = ssl_context or ssl.create_default_context()

    def exchange(self, url: str) -> Exchange:
        """Raises UrlNotAllowed. Touches no network."""
        return Exchange(self, url)


class Exchange:
    """One request and its answer. ``abort`` may come from another thread at any time."""

    def __init__(self, egress: Egress, url: str) -> None:
        self._egress = egress
        self._url, self._host, self._port = _parse(url)
        self._deadline = 0.0
        self._aborted = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """POST ``body``; Host, Content-Length and Connection are set here. Any status is an answer.

        Raises AddressNotAllowed, NameNotResolved, DeliveryFailed, Aborted. Ends within the timeout, whatever
        the other side does.
        """
        began = time.monotonic()
        self._deadline = began + self._egress.timeout
        addresses = self._checked_addresses()
        connection = httpcore2.HTTPConnection(
            httpcore2.Origin(self._url.raw_scheme, self._host.encode(), self._port),
            ssl_context=self._egress.ssl_context,
            network_backend=_Pinned(self, addresses),
        )
        authority = f"[{self._host}]" if ":" in self._host else self._host
        if self._port != {"http": 80, "https": 443}[self._url.scheme]:
            authority += f":{self._port}"
        request = httpcore2.Request(
            "POST",
            httpcore2.URL(
                scheme=self._url.raw_scheme, host=self._host.encode(), port=self._port, target=self._url.raw_path
            ),
            headers=[
                ("Host", authority),
                *headers.items(),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ],
            content=body,
        )
        try:
            response = connection.handle_request(request)
            kept = self._drain(response)
        except EgressError:
            raise
        except httpcore2.TimeoutException:
            raise self._failure("timeout") from None
        except httpcore2.NetworkError:
            raise self._failure("connect") from None
        except httpcore2.ProtocolError:
            raise self._failure("protocol") from None
        finally:
            connection.close()
            self._let_go()
        answered = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}
        return Answer(response.status, answered, kept, time.monotonic() - began)

    def abort(self) -> None:
        """Break off now: a blocked ``post`` raises Aborted. Idempotent."""
        self._aborted.set()
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):
                    # The plain method: SSLSocket's own would take the TLS object from under the reader.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def remaining(self) -> float:
        """Seconds left, more than 0. Raises DeliveryFailed("timeout"), Aborted."""
        if self._aborted.is_set():
            raise Aborted
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeliveryFailed("timeout")
        return left

    def hold(self, sock: socket.socket) -> None:
        """Make ``sock`` the one that ``abort`` breaks."""
        with self._lock:
            self._socket = sock
        if self._aborted.is_set():
            self.abort()

    def open(self, address: str, share: float) -> socket.socket:
        return self._egress.connector(address, self._port, share)

    def _let_go(self) -> None:
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _failure(self, kind: FailureKind) -> EgressError:
        return Aborted() if self._aborted.is_set() else DeliveryFailed(kind)

    def _checked_addresses(self) -> list[str]:
        found = self._resolve()
        for text in found:
            try:
                address = parse_address(text)
            except ValueError:
                raise AddressNotAllowed("The webhook's host has an address that is not one.") from None
            if in_networks(address, self._egress.allow_networks):
                continue
            # One bad address condemns the name: which of them gets the connection must not matter.
            if not is_public(address):
                raise AddressNotAllowed("The webhook's host does not have a public internet address.")
            if self._url.scheme != "https":
                raise UrlNotAllowed("The webhook's address must begin with https://.")
            if self._port not in PORTS:
                raise UrlNotAllowed(f"Webhooks go to the ports {', '.join(map(str, sorted(PORTS)))} only.")
        return found[:_MAX_ADDRESSES]

    def _resolve(self) -> list[str]:
        """On a thread of its own, since getaddrinfo knows no time limit; a late one ends by itself, unheard."""
        answer: list[str] = []
        failed = threading.Event()
        done = threading.Event()

        def look_up() -> None:
            try:
                answer.extend(self._egress.resolver(self._host, self._port))
            except (OSError, UnicodeError):
                failed.set()
            finally:
                done.set()

        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        # The name server gets half of the time, so that its slowness is told from the receiver's.
        until = self._deadline - self._egress.timeout / 2
        while not done.wait(min(0.1, self.remaining())):  # in short steps, to notice an abort
            if time.monotonic() > until:
                raise NameNotResolved
        self.remaining()
        if failed.is_set() or not answer:
            raise NameNotResolved
        return list(answer)

    def _drain(self, response: httpcore2.Response) -> bytes:
        self._deadline = min(self._deadline, time.monotonic() + _BODY_SECONDS)
        kept = bytearray()
        try:
            for chunk in response.iter_stream():
                kept += chunk
                if len(kept) >= MAX_ANSWER_BYTES:
                    break
        except (EgressError, httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
            pass  # the status has been given; how the rest arrives is the other side's affair
        return bytes(kept[:MAX_ANSWER_BYTES])


def _parse(url: str) -> tuple[httpx2.URL, str, int]:
    """One parser decides what the host is, and its decision alone is resolved, checked and connected to."""
    try:
        parsed = httpx2.URL(url)
        host = parsed.raw_host.decode("ascii").lower()
    except (httpx2.InvalidURL, UnicodeError, ValueError):
        raise UrlNotAllowed("The webhook's address is not a URL.") from None
    if parsed.scheme not in ("http", "https"):
        raise UrlNotAllowed("The webhook's address must begin with https://.")
    if parsed.userinfo:
        raise UrlNotAllowed("The webhook's address must not contain a user name or password.")
    if not _HOST.fullmatch(host):
        raise UrlNotAllowed("The webhook's address has no valid host.")
    port = parsed.port if parsed.port is not None else (443 if parsed.scheme == "https" else 80)
    if not 0 < port < 65536:
        raise UrlNotAllowed("The webhook's address has no valid port.")
    return parsed, host, port


class _Pinned(httpcore2.NetworkBackend):
    """Connects to the checked addresses whatever host it is asked for, within the exchange's deadline."""

    def __init__(self, exchange: Exchange, addresses: list[str]) -> None:
        self._exchange = exchange
        self._addresses = addresses

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        kind: FailureKind = "connect"
        for i, address in enumerate(self._addresses):
            share = self._exchange.remaining() / (len(self._addresses) - i)
            try:
                sock = self._exchange.open(address, share)
            except OSError as e:
                kind = "timeout" if isinstance(e, TimeoutError) else "connect"
                continue
            self._exchange.hold(sock)
            return _Stream(self._exchange, sock)
        self._exchange.remaining()
        raise DeliveryFailed(kind)


class _Stream(httpcore2.NetworkStream):
    """A socket whose every call gets what is left of the deadline: a byte a second does not prolong it."""

    def __init__(self, exchange: Exchange, sock: socket.socket) -> None:
        self._exchange = exchange
        self._socket = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(self._exchange.remaining())
        try:
            return self._socket.recv(max_bytes)
        except TimeoutError:
            raise httpcore2.ReadTimeout from None
        except OSError:
            raise httpcore2.ReadError from None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        while view:
            self._socket.settimeout(self._exchange.remaining())
            try:
                view = view[self._socket.send(view) :]
            except TimeoutError:
                raise httpcore2.WriteTimeout from None
            except OSError:
                # httpcore then reads what the other side may have said before it closed.
                raise httpcore2.WriteError from None

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        self._socket.settimeout(self._exchange.remaining())
        try:
            wrapped = ssl_context.wrap_socket(
                self._socket, server_hostname=server_hostname, do_handshake_on_connect=False
            )
            self._exchange.hold(wrapped)  # before the handshake, which can be what hangs
            wrapped.do_handshake()
        except TimeoutError:
            raise DeliveryFailed("timeout") from None
        except (OSError, ValueError):  # ssl.SSLError is an OSError; ValueError: a name TLS cannot carry
            self._exchange.remaining()
            raise DeliveryFailed("tls") from None
        return _Stream(self._exchange, wrapped)

    def get_extra_info(self, info: str) -> Any:
        return self._socket if info == "socket" else None
