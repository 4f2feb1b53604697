"""The whole stack on one machine: servers, schema, keys, services, in that order and back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploy.local.backing import LOWEST_SERVICE_STAGE, Backing, BackingFailed
from deploy.local.child import log_tail
from deploy.local.configuration import Configuration
from deploy.local.embedded import Say
from deploy.local.guard import Guard
from deploy.local.locks import FolderBusy, FolderLock
from deploy.local.ports import choose_port, is_free
from deploy.local.schema import SchemaMemory
from deploy.local.services import SERVICES, Service, ServiceProcess, Task, module
from deploy.local.stack_file import KEYS, banner, write_stack_file
from deploy.local.supervisor import Supervisor

__all__ = ["EXIT_BUSY", "EXIT_FAILED", "EXIT_STOPPED", "Commands", "Stack"]

EXIT_STOPPED, EXIT_FAILED, EXIT_BUSY = 0, 1, 2
_SERVERS_READY, _TASK_DONE, _SERVICES_HEALTHY = 90.0, 120.0, 60.0  # seconds until we give up, or say so


@dataclass(frozen=True, slots=True)
class Commands:
    """What is run before the services: both repeatable, both with the services' environment."""

    migrate: tuple[str, ...] = module("shared.db.migrate")
    bootstrap: tuple[str, ...] = (*module("services.api.bootstrap"), "--json")


class _StackFailedError(Exception):
    """The stack cannot come up; the text says what to do."""


class _StopAsked(Exception):
    """A signal asks us to stop before we are up."""


class Stack:
    """One stack on one data folder. ``run`` blocks until a signal asks it to stop, and gives the exit code."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        services: Sequence[Service] = SERVICES,
        commands: Commands | None = None,
        say: Say = print,
    ) -> None:
        self._configuration = configuration
        self._table = tuple(services)
        self._commands = commands or Commands()
        self._say = say
        self._backing = Backing(configuration, say)
        self._services: list[ServiceProcess] = []
        self._keys: dict[str, str] = {}
        self._up = False

    def run(self) -> int:
        """0 after an orderly stop, 1 when the stack could not come up, 2 when one is up on this folder already."""
        data = self._configuration.data
        data.mkdir(mode=0o711, parents=True, exist_ok=True)  # Postgres' account must get through, when we are root
        lock = FolderLock(data)
        try:
            lock.acquire()
        except FolderBusy as busy:
            self._say(
                f"A stack is running on {data} already (process {busy.pid}). See it with "
                f"`python -m deploy.local status`, stop it with `kill {busy.pid}`, or set DATA to another folder."
            )
            return EXIT_BUSY
        supervisor = Supervisor(Guard([lock.fileno()]), self._say, self._on_restart)
        try:
            with supervisor.signals():
                return self._run(supervisor)
        finally:
            lock.release()

    def _run(self, supervisor: Supervisor) -> int:
        code = EXIT_STOPPED
        try:
            self._come_up(supervisor)
            supervisor.run()
        except _StopAsked:
            pass
        except _StackFailedError as failure:
            self._say(f"\n{failure}")
            code = EXIT_FAILED
        finally:
            begun = time.monotonic()
            self._say("stopping")
            self._configuration.stack_file.unlink(missing_ok=True)
            supervisor.stop()
            self._backing.close()
            self._say(f"stopped in {time.monotonic() - begun:.1f} s")
        return code

    def _come_up(self, supervisor: Supervisor) -> None:
        begun = time.monotonic()
        configuration, backing = self._configuration, self._backing
        configuration.stack_file.unlink(missing_ok=True)  # of a supervisor that was killed
        if not is_free(configuration.port, host=""):
            raise _StackFailedError(
                f"Port {configuration.port} is taken by another program. "
                f"Choose another one, for example PORT={choose_port(min(configuration.port + 1, 65535))}."
            )
        self._step("servers", lambda: self._start_servers(supervisor))
        env = configuration.for_services(
            database_url=backing.database_url, redis_url=backing.redis_url, smtp_url=backing.smtp_url
        )
        key_file = configuration.data / "keys.json"
        migrate = Task("migrate", self._commands.migrate, env, configuration.log("migrate"))
        bootstrap = Task(
            "bootstrap",
            self._commands.bootstrap,
            {**env, "BOOTSTRAP_FILE": str(key_file)},
            configuration.log("bootstrap"),
            secret=True,
        )
        # When this very schema was reached before, the migrations only confirm it: the services need not wait.
        schema = SchemaMemory(configuration.data / "schema.json", backing.database_url)
        confirmed = schema.is_current() and key_file.exists()
        if confirmed:
            self._start_services(supervisor, env)
        self._step("schema", lambda: self._finish(supervisor, migrate))
        schema.note()
        supervisor.add(bootstrap, LOWEST_SERVICE_STAGE, restart=False)
        if not confirmed:
            self._start_services(supervisor, env)
        self._step("keys", lambda: self._take_keys(supervisor, bootstrap))
        self._step("services", lambda: self._await_health(supervisor))
        self._up = True
        self._write()
        self._say(banner(configuration, backing, self._keys, time.monotonic() - begun))

    def _step(self, name: str, action: Callable[[], str]) -> None:
        begun = time.monotonic()
        outcome = action()
        self._say(f"{name:<9} {time.monotonic() - begun:5.2f} s  {outcome}")

    def _start_servers(self, supervisor: Supervisor) -> str:
        try:
            self._backing.start(supervisor)
        except BackingFailed as failure:
            raise _StackFailedError(str(failure)) from failure
        servers = self._backing.servers
        if not self._wait(supervisor, lambda: all(server.ready() for server in servers), _SERVERS_READY):
            sick = next(server for server in servers if not server.ready())
            raise _StackFailedError(f"{sick.name} does not serve; the end of {sick.log}:\n{log_tail(sick.log)}")
        return self._backing.describe()

    def _start_services(self, supervisor: Supervisor, env: Mapping[str, str]) -> None:
        for row in self._table:
            port = self._configuration.port if row.port_in == "PORT" else choose_port()
            service = ServiceProcess(row, port, env, self._configuration.log(row.name))
            self._services.append(service)
            supervisor.add(service, LOWEST_SERVICE_STAGE)

    def _finish(self, supervisor: Supervisor, task: Task) -> str:
        if task.exit_status is None and not task.running:
            supervisor.add(task, LOWEST_SERVICE_STAGE, restart=False)
        if not self._wait(supervisor, lambda: task.exit_status is not None, _TASK_DONE):
            raise _StackFailedError(f"{task.name} has not ended in {_TASK_DONE:g} s; see {task.log}")
        if task.exit_status != 0:
            raise _StackFailedError(f"{task.name} failed with status {task.exit_status}:\n{log_tail(task.log, 20)}")
        return "up to date"

    def _take_keys(self, supervisor: Supervisor, task: Task) -> str:
        self._finish(supervisor, task)
        try:
            printed = json.loads(task.printed)
            self._keys = {name: str(printed[name]) for name in KEYS}
        except (ValueError, TypeError, KeyError) as error:
            raise _StackFailedError(f"{task.name} did not print the keys as JSON; see {task.log}") from error
        return "ready"

    def _await_health(self, supervisor: Supervisor) -> str:
        waiting = list(self._services)

        def all_healthy() -> bool:
            waiting[:] = [service for service in waiting if not service.ready()]
            return not waiting

        if not self._wait(supervisor, all_healthy, _SERVICES_HEALTHY):
            for service in waiting:  # no reason to take the healthy ones away
                self._say(f"{service.name} is not healthy; the end of {service.log}:\n{log_tail(service.log)}")
            return f"{len(self._services) - len(waiting)} of {len(self._services)} healthy"
        return ", ".join(service.name for service in self._services) or "none"

    def _wait(self, supervisor: Supervisor, condition: Callable[[], bool], seconds: float) -> bool:
        reached = supervisor.run_until(condition, seconds)
        if supervisor.stopping:
            raise _StopAsked
        return reached

    def _on_restart(self) -> None:
        if self._up:
            try:
                self._write()
            except OSError as error:  # a full disk must not end the stack
                self._say(f"{self._configuration.stack_file} cannot be written: {error}")

    def _write(self) -> None:
        write_stack_file(self._configuration, self._backing, self._keys, self._services)
