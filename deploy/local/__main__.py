"""``python -m deploy.local run | status | test-servers [command …]``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.local.configuration import Configuration

_DESCRIPTION = """\
The embedded stack: PostgreSQL, Valkey, mail sink and all services on this machine, from wheels.

  run           everything; stop it with Ctrl-C
  status        what runs, and whether it is healthy
  test-servers  an empty PostgreSQL and Valkey; with a command, runs it with DATABASE_URL and REDIS_URL, then stops

Environment: PORT (8080), DATA (var). DATABASE_URL, REDIS_URL, S3_BUCKET with S3_*, and SMTP_URL replace the embedded
PostgreSQL, Valkey, local folder and mail sink.
"""


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that went away must not take the stack with it
        print(text, flush=True)


def _run() -> int:
    from deploy.local.stack import Stack

    return Stack(Configuration.read(os.environ), say=_say).run()


def _status() -> int:
    from deploy.local.private_file import read_json
    from deploy.local.stack_file import status

    path = Configuration.read(os.environ).stack_file
    code, text = status(read_json(path), path)
    _say(text)
    return code


def _test_servers(command: Sequence[str]) -> int:
    from deploy.local.servers import embedded_servers

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # unwinds through the context managers, which stop the servers
    with tempfile.TemporaryDirectory(prefix="gradeline-test-") as folder, embedded_servers(Path(folder)) as servers:
        addresses = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        if command:
            return subprocess.run(command, env={**os.environ, **addresses}, check=False).returncode
        for name, value in addresses.items():
            _say(f"export {name}={value}")
        _say("# Ctrl-C stops both")
        while True:
            signal.pause()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "status", "test-servers"))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for test-servers: what to run")
    options = parser.parse_args(arguments)
    if options.command and options.what != "test-servers":
        parser.error(f"{options.what} takes no arguments")
    try:
        if options.what == "run":
            return _run()
        return _status() if options.what == "status" else _test_servers(options.command)
    except ValueError as error:  # 1, since 2 says that a stack is running already
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
