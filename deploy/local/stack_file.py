"""``<DATA>/stack.json``: where a running stack can be reached and by which keys; there while it is up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deploy.local.backing import Backing
from deploy.local.configuration import Configuration
from deploy.local.private_file import write_json
from deploy.local.processes import is_alive
from deploy.local.services import ServiceProcess, answers_healthy

__all__ = ["banner", "read_services", "status", "write_stack_file"]

KEYS = ("api_key", "admin_api_key", "webhook_secret")


def write_stack_file(
    configuration: Configuration,
    backing: Backing,
    keys: dict[str, str],
    services: Sequence[ServiceProcess],
) -> None:
    """Replaces the file atomically, mode 0600. The names of its fields are promised in the API outline."""
    write_json(
        configuration.stack_file,
        {
            "base_url": configuration.base_url,
            "pid": os.getpid(),
            **keys,
            "database_url": backing.database_url,
            "redis_url": backing.redis_url,
            "smtp_url": backing.smtp_url,
            "mail_dir": str(backing.mail_dir),
            "services": {
                service.name: {"pid": service.pid, "health_port": service.port, "log": str(service.log)}
                for service in services
            },
            "servers": {
                server.name: {"pid": server.pid, "port": server.port, "log": str(server.log)}
                for server in backing.servers
            },
        },
    )


def banner(configuration: Configuration, backing: Backing, keys: dict[str, str], seconds: float) -> str:
    """What a person needs to know once the stack is up."""
    rows = [
        ("address", configuration.base_url),
        ("API key", keys.get("api_key", "")),
        ("admin key", keys.get("admin_api_key", "")),
        ("webhook secret", keys.get("webhook_secret", "")),
        ("files", configuration.storage),
        ("mails", str(backing.mail_dir) if not configuration.smtp_url else "sent through SMTP_URL"),
        ("logs", str(configuration.data / "logs")),
        ("all of this", str(configuration.stack_file)),
        ("stop", "Ctrl-C"),
    ]
    lines = "\n".join(f"  {name:<15} {value}" for name, value in rows)
    return f"\nGradeline is up after {seconds:.1f} s\n{lines}\n"


def read_services(content: dict[str, object]) -> dict[str, tuple[int, int]]:
    """Name to (pid, health port) of a stack file's services; what is malformed is left out."""
    services = content.get("services")
    found = {}
    for name, entry in services.items() if isinstance(services, dict) else ():
        if isinstance(entry, dict):
            pid, port = entry.get("pid"), entry.get("health_port")
            if isinstance(pid, int) and isinstance(port, int):
                found[str(name)] = (pid, port)
    return found


def status(content: dict[str, object], stack_file: Path) -> tuple[int, str]:
    """Exit code and text: 0 all healthy, 1 some are not, 3 no stack is up."""
    services = read_services(content)
    supervisor = content.get("pid")
    if not isinstance(supervisor, int):
        return 3, f"no stack is up ({stack_file} is not there)"
    if not is_alive(supervisor):
        return 3, f"no stack is up (its supervisor, process {supervisor}, was killed; start it again)"
    lines = [str(content.get("base_url", ""))]
    healthy = True
    for name, (pid, port) in services.items():
        fine = is_alive(pid) and answers_healthy(port)
        healthy = healthy and fine
        lines.append(f"  {name:<20} pid {pid:<8} port {port:<6} {'healthy' if fine else 'NOT healthy'}")
    return (0 if healthy else 1), "\n".join(lines)
