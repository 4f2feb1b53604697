"""The servers behind the services: embedded ones, save where the environment names others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deploy.local.configuration import Configuration
from deploy.local.embedded import EmbeddedServer, Say
from deploy.local.locks import FolderBusy
from deploy.local.mailsink import MailSink
from deploy.local.postgres import Postgres
from deploy.local.supervisor import Supervisor
from deploy.local.valkey import Valkey

__all__ = ["LOWEST_SERVICE_STAGE", "Backing", "BackingFailed"]

# Stopped from the highest to the lowest.
_POSTGRES, _VALKEY, _MAIL, LOWEST_SERVICE_STAGE = 0, 1, 2, 3


class BackingFailed(Exception):
    """A server cannot be started; the text names it and says why."""


class Backing:
    """Addresses of database, broker and mail, and the embedded servers among them.

    ``start`` launches those, all at once, and leaves waiting for them to the caller; ``close`` gives their folders back
    after the supervisor has stopped them.
    """

    def __init__(self, configuration: Configuration, say: Say) -> None:
        self._configuration = configuration
        self._say = say
        self.servers: list[EmbeddedServer] = []
        self.database_url = configuration.database_url or ""
        self.redis_url = configuration.redis_url or ""
        self.smtp_url = configuration.smtp_url or ""
        self.mail_dir = configuration.data / "mail"

    def start(self, supervisor: Supervisor) -> None:
        """Raises BackingFailed. Postgres comes last: making its cluster takes longest, the others come up meanwhile."""
        data, say = self._configuration.data, self._say
        if not self.smtp_url:
            self.smtp_url = self._embed(
                supervisor, _MAIL, lambda log: MailSink(data / "mailsink", self.mail_dir, log, say=say), "mailsink"
            )
        if not self.redis_url:
            self.redis_url = self._embed(
                supervisor, _VALKEY, lambda log: Valkey(data / "valkey", log, say=say), "valkey"
            )
        if not self.database_url:
            self.database_url = self._embed(
                supervisor, _POSTGRES, lambda log: Postgres(data / "postgres", log, say=say), "postgres"
            )

    def describe(self) -> str:
        embedded = {server.name: server for server in self.servers}
        return ", ".join(
            f"{name} on port {embedded[name].port}" if name in embedded else f"{name} from {variable}"
            for name, variable in (("postgres", "DATABASE_URL"), ("valkey", "REDIS_URL"), ("mailsink", "SMTP_URL"))
        )

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def _embed(self, supervisor: Supervisor, stage: int, make: Callable[[Path], EmbeddedServer], name: str) -> str:
        server = make(self._configuration.log(name))
        try:
            server.open()
            self.servers.append(server)
            supervisor.add(server, stage)
        except (FolderBusy, OSError, RuntimeError, ValueError) as error:
            raise BackingFailed(f"{name} cannot be started: {error}") from error
        return server.url
