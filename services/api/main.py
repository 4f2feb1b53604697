"""The gateway under gunicorn, with gunicorn's own asgi worker (docs/decisions/0004-server.md)."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from gunicorn.app.base import BaseApplication

from shared.settings import Settings
from shared.telemetry import health, logging, sentry

__all__ = ["Gateway", "main"]


class Gateway(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured from Settings. The application is loaded before the fork, so workers share its memory."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._deps: Any = None
        self._health: health.HealthServer | None = None
        super().__init__()

    def load_config(self) -> None:
        s = self._settings
        options = {
            "bind": f"{s.api_host}:{s.port}",
            "workers": s.api_workers,
            "worker_class": "services.api.server.GatewayWorker",
            "preload_app": True,
            "graceful_timeout": 20,
            "timeout": 60,
            "keepalive": 75,
            "backlog": 2048,
            "accesslog": None,
            "errorlog": "-",
            "loglevel": "warning",
            "proc_name": "gradeline-api",
            "post_worker_init": self._worker_started,
            "when_ready": self._ready,
            "on_exit": self._exit,
            "child_exit": _child_exit,
            "control_socket_disable": True,
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        from services.api.app import create_app
        from services.api.deps import Deps

        self._deps = Deps.of(self._settings)
        return create_app(self._settings, self._deps)

    def _worker_started(self, worker: Any) -> None:
        # Streams never end by themselves: they ask the worker whether it wants to go on.
        self._deps.alive = lambda: worker.alive

    def _ready(self, arbiter: Any) -> None:
        s = self._settings
        if s.health_port is not None:
            self._health = health.HealthServer(s.health_host, s.health_port, {}, stats=lambda: {"service": "api"})
            self._health.start()

    def _exit(self, arbiter: Any) -> None:
        if self._health is not None:
            self._health.close()


def _child_exit(arbiter: Any, worker: Any) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def main() -> None:
    settings = Settings()
    settings.signing_key()  # refuse to start without one
    with tempfile.TemporaryDirectory(prefix="gradeline-metrics-") as folder:
        # Figures of all gateway processes behind one port; must be set before prometheus_client is imported.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        logging.configure(settings, "api")
        sentry.init(settings, "api")
        Gateway(settings).run()
