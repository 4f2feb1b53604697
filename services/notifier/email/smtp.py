"""One mail to one recipient over SMTP, by the standard library, from an ``smtp://`` or ``smtps://`` URL."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

__all__ = ["Aborted", "LoginRefused", "MailError", "Refused", "Sending", "SmtpServer", "Unreachable"]

# RFC 6409 and RFC 8314: submission with STARTTLS, and with TLS from the start.
_PORTS = {"smtp": 587, "smtps": 465}


class MailError(Exception):
    """The mail was not taken. Texts carry no address and nothing the server said, which may repeat one."""


class Refused(MailError):
    """The server said no with ``status``: for good from 500, for now below."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class LoginRefused(MailError):
    """The server does not take our credentials, or cannot take them safely: for the operator to mend."""


class Unreachable(MailError):
    """No conversation with the server came about, or it broke off before the mail was taken."""


class Aborted(MailError):
    """``Sending.abort`` was called."""


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where mails are handed in. ``timeout`` in seconds, for each step of the conversation."""

    host: str
    port: int
    tls: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout: float = 10.0
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def from_url(cls, url: str, *, timeout: float = 10.0, ssl_context: ssl.SSLContext | None = None) -> SmtpServer:
        """``smtp[s]://[user:password@]host[:port]``; ports 587 and 465 by default.

        Raises ValueError, which does not repeat the URL: a password is in it.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in _PORTS:
            raise ValueError("SMTP_URL must look like smtp://user:password@host:587 or smtps://…")
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password or "") if user else None
        return cls(host, port or _PORTS[parts.scheme], parts.scheme == "smtps", user, password, timeout, ssl_context)

    def sending(self) -> Sending:
        return Sending(self)


class Sending:
    """One attempt. ``abort`` may come from another thread at any time."""

    def __init__(self, server: SmtpServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._aborted = False
        self._client: smtplib.SMTP | None = None

    def send(self, message: EmailMessage, sender: str, recipient: str) -> None:
        """Returns when the server has taken responsibility for the mail.

        TLS is used from the start (smtps) or as soon as it is offered (smtp), and then must be trusted.
        Credentials are never sent in the clear, except to this very machine.
        Raises Refused, LoginRefused, Unreachable, Aborted.
        """
        try:
            client = self._open()
            try:
                self._login(client)
                client.send_message(message, sender, [recipient])
            finally:
                # After the mail is taken, how the farewell goes changes nothing: a retry would send it twice.
                with suppress(smtplib.SMTPException, OSError):
                    client.quit()
                client.close()
        except smtplib.SMTPRecipientsRefused as e:
            raise Refused(max((code for code, _ in e.recipients.values()), default=550)) from None
        except smtplib.SMTPAuthenticationError:
            raise LoginRefused from None
        except smtplib.SMTPResponseException as e:
            if self._aborted:
                raise Aborted from None
            raise (Refused(e.smtp_code) if 400 <= e.smtp_code < 600 else Unreachable()) from None
        except (smtplib.SMTPException, OSError):
            raise (Aborted() if self._aborted else Unreachable()) from None

    def abort(self) -> None:
        """Break off now: a blocked ``send`` raises Aborted. Idempotent."""
        with self._lock:
            self._aborted = True
            sock = self._client.sock if self._client is not None else None
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _open(self) -> smtplib.SMTP:
        server = self._server
        context = server.ssl_context or ssl.create_default_context()
        # Not socket.getfqdn(), smtplib's choice: it asks the DNS, without a time limit.
        greeting = socket.gethostname() or "localhost"
        client: smtplib.SMTP
        if server.tls:
            client = smtplib.SMTP_SSL(local_hostname=greeting, timeout=server.timeout, context=context)
        else:
            client = smtplib.SMTP(local_hostname=greeting, timeout=server.timeout)
        with self._lock:
            if self._aborted:
                raise Aborted
            self._client = client
        # smtplib checks certificates against _host, which only its constructor sets, by connecting; we could not
        # abort a client that its constructor has not returned yet.
        client._host = server.host  # type: ignore[attr-defined]
        try:
            code, _ = client.connect(server.host, server.port)
            if code != 220:
                raise smtplib.SMTPConnectError(code, b"")
            client.ehlo_or_helo_if_needed()
            if not server.tls and client.has_extn("starttls"):
                client.starttls(context=context)
                client.ehlo_or_helo_if_needed()
        except BaseException:
            client.close()
            raise
        return client

    def _login(self, client: smtplib.SMTP) -> None:
        if self._server.user is None:
            return
        if not isinstance(client.sock, ssl.SSLSocket) and not _is_this_machine(client):
            raise LoginRefused
        try:
            client.login(self._server.user, self._server.password or "")
        except smtplib.SMTPNotSupportedError:
            raise LoginRefused from None


def _is_this_machine(client: smtplib.SMTP) -> bool:
    peer = client.sock.getpeername()[0] if client.sock is not None else ""
    return peer == "::1" or str(peer).startswith("127.")
