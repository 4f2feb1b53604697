"""A real SMTP server that delivers every mail into a folder: ``python -m deploy.local.mailsink --port P --dir D``."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.child import Launch
from deploy.local.embedded import EmbeddedServer, Say
from deploy.local.ports import LOOPBACK
from deploy.local.processes import stop_orphan

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

__all__ = ["Maildrop", "MailSink", "main"]

_MAIL_BYTES = 32 * 1024 * 1024


class Maildrop:
    """aiosmtpd's handler: one ``<time in ns>-<process>-<count>.eml`` a mail, so that names sort by arrival.

    A file appears complete or not at all. The envelope is kept in ``X-MailFrom`` and ``X-RcptTo`` above the mail's own
    headers, since blind recipients stand nowhere else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = itertools.count(1)
        folder.mkdir(parents=True, exist_ok=True)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        name = f"{time.time_ns()}-{os.getpid()}-{next(self._count)}"
        recipients = ", ".join(str(recipient) for recipient in envelope.rcpt_tos)
        draft = self._folder / f".{name}"
        with draft.open("wb") as file:
            file.write(f"X-MailFrom: {envelope.mail_from or ''}\r\nX-RcptTo: {recipients}\r\n".encode())
            file.write(bytes(envelope.original_content or b""))
        draft.rename(self._folder / f"{name}.eml")
        return "250 Message accepted for delivery"


class MailSink(EmbeddedServer):
    """The mail sink as a process of the stack, delivering into ``mail_dir``."""

    def __init__(self, home: Path, mail_dir: Path, log: Path, *, say: Say = print) -> None:
        super().__init__("mailsink", home, log, stop_signal=signal.SIGTERM, say=say, grace=5.0)
        self.mail_dir = mail_dir

    @property
    def url(self) -> str:
        return f"smtp://{LOOPBACK}:{self.port}"

    @property
    def _pid_file(self) -> Path:
        return self.home.resolve() / "mailsink.pid"

    def describe(self) -> Launch:
        argv = (sys.executable, "-m", "deploy.local.mailsink", "--port", str(self.port), "--dir", str(self.mail_dir))
        root = Path(__file__).resolve().parents[2]
        env = {"PYTHONPATH": str(root), "PATH": os.environ.get("PATH", os.defpath), "PYTHONUNBUFFERED": "1"}
        return Launch((*argv, "--pid-file", str(self._pid_file)), env, root)

    def ready(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=0.8) as connection:
                return connection.recv(3) == b"220"
        except OSError:
            return False

    def stop_leftover(self) -> int | None:
        return stop_orphan(self._pid_file, str(self._pid_file), self.stop_signal)

    def prepare(self) -> None:
        self.home.chmod(0o700)
        self.mail_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


async def _serve(port: int, folder: Path) -> None:
    from aiosmtpd.smtp import SMTP

    loop = asyncio.get_running_loop()
    maildrop = Maildrop(folder)
    server = await loop.create_server(
        lambda: SMTP(maildrop, hostname="localhost", enable_SMTPUTF8=True, data_size_limit=_MAIL_BYTES, loop=loop),
        LOOPBACK,
        port,
    )
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    print(f"mail sink on {LOOPBACK}:{port}", flush=True)
    await ended.wait()
    server.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.mailsink", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True, help="where the .eml files go")
    parser.add_argument("--pid-file", type=Path, help="where to write our pid")
    options = parser.parse_args(arguments)
    if options.pid_file is not None:
        options.pid_file.write_text(f"{os.getpid()}\n")
    asyncio.run(_serve(options.port, options.dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
