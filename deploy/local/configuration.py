"""What the environment says about the local stack."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.ports import LOOPBACK
from deploy.local.private_file import write_private
from deploy.local.services import REPOSITORY

__all__ = ["Configuration"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """Where the stack listens and keeps its data, and what it uses instead of embedded servers (None: embedded)."""

    environ: Mapping[str, str]
    port: int
    data: Path
    database_url: str | None
    redis_url: str | None
    smtp_url: str | None

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Configuration:
        """Raises ValueError, naming the variable, when PORT is no port."""
        given = environ.get("PORT") or "8080"
        if not given.isascii() or not given.isdigit() or not 0 < int(given) < 65536:
            raise ValueError(f"PORT must be a number from 1 to 65535, not {given!r}")
        return cls(
            environ=environ,
            port=int(given),
            data=Path(environ.get("DATA") or "var").resolve(),
            database_url=environ.get("DATABASE_URL") or None,
            redis_url=environ.get("REDIS_URL") or None,
            smtp_url=environ.get("SMTP_URL") or None,
        )

    @property
    def base_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def stack_file(self) -> Path:
        return self.data / "stack.json"

    def log(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.log"

    @property
    def storage(self) -> str:
        """Where files go, for people to read."""
        bucket = self.environ.get("S3_BUCKET")
        return f"s3://{bucket}" if bucket else str(self.data / "storage")

    def for_services(self, *, database_url: str, redis_url: str, smtp_url: str) -> dict[str, str]:
        """The environment of every service: ours, the addresses, and what is right on one machine only.

        Whatever Settings field our own environment names stays as it is; S3_* pass through that way.
        """
        fixed = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SMTP_URL": smtp_url,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), self.environ.get("PYTHONPATH")))),
            "PYTHONUNBUFFERED": "1",
        }
        usual = {
            "ENVIRONMENT": "local",
            "PUBLIC_URL": self.base_url,
            "STORAGE_DIR": str(self.data / "storage"),
            "SECRET_KEY": "",
            "WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
            "HEALTH_HOST": LOOPBACK,
            # On one machine a worker that is not heard of for so long is dead: its jobs run again within 10 s.
            "LEASE_SECONDS": "6",
            "RESCUE_SECONDS": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",  # glibc's one arena a thread costs tens of MB in processes with many threads
        }
        # PORT and HEALTH_PORT are given to each service by itself.
        ours = {name: value for name, value in self.environ.items() if value and name not in ("PORT", "HEALTH_PORT")}
        merged = usual | ours | fixed
        merged["SECRET_KEY"] = merged["SECRET_KEY"] or self._secret_key()
        return merged

    def _secret_key(self) -> str:
        """Made once, kept in ``<DATA>/secret_key`` (0600): another one would void signed links and webhook secrets."""
        path = self.data / "secret_key"
        if not path.exists():
            write_private(path, os.urandom(36).hex() + "\n")
        return path.read_text().strip()
