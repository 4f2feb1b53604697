"""Promises of the embedded PostgreSQL and Valkey, against the real ones."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from dummy_stack import REPOSITORY, running, wait_for
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.locks import FolderBusy
from deploy.local.ports import is_free
from deploy.local.postgres import Postgres
from deploy.local.servers import EmbeddedServers, embedded_servers
from deploy.local.valkey import Valkey


def scalar(url: str, sql: str) -> object:
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute(sql.encode()).fetchone()
        return None if row is None else row[0]


def test_postgres_serves_the_gradeline_database_in_utf8(servers: EmbeddedServers) -> None:
    assert scalar(servers.database_url, "select current_database()") == "gradeline"
    assert scalar(servers.database_url, "show server_encoding") == "UTF8"
    assert scalar(servers.database_url, "select lower('ÄÉ')") == "äé"


def test_postgres_refuses_a_wrong_password(servers: EmbeddedServers) -> None:
    url = servers.database_url.replace(servers.postgres.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)


def test_only_the_loopback_interface_is_listened_on(servers: EmbeddedServers) -> None:
    assert scalar(servers.database_url, "show listen_addresses") == "127.0.0.1"
    assert scalar(servers.database_url, "show unix_socket_directories") == ""
    assert redis.from_url(servers.redis_url).config_get("bind")["bind"] == "127.0.0.1"


def test_secrets_are_readable_by_their_owner_only(servers: EmbeddedServers) -> None:
    for path in (servers.postgres.home / "server.json", servers.valkey.home / "server.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_password_is_among_the_arguments(servers: EmbeddedServers) -> None:
    listing = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert servers.postgres.password not in listing
    assert servers.valkey.password not in listing


def test_values_never_reach_the_postgres_log(servers: EmbeddedServers) -> None:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("create temp table pupils (name text primary key)")
        connection.execute("insert into pupils values (%s)", ["Ada Lovelace"])
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("insert into pupils values (%s)", ["Ada Lovelace"])
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            connection.execute("select %s::text::int", ["Ada Lovelace"])
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute("selekt 'Ada Lovelace'")
    log = servers.postgres.log.read_text()
    assert "ready to accept connections" in log
    assert "Lovelace" not in log


def test_a_committed_row_survives_kill_9_of_the_postmaster(servers: EmbeddedServers) -> None:
    with psycopg.connect(servers.database_url) as connection:
        connection.execute("create table kept (n int)")
        connection.execute("insert into kept values (7)")
    before, pid = servers.database_url, servers.postgres_pid
    servers.restart_postgres(kill=True)
    assert servers.database_url == before
    assert servers.postgres_pid != pid
    assert scalar(servers.database_url, "select n from kept") == 7


def test_valkey_keeps_its_data_over_a_restart_unless_told_otherwise(servers: EmbeddedServers) -> None:
    client = redis.from_url(servers.redis_url)
    client.set("kept", "yes")
    servers.restart_valkey(kill=True)
    assert client.get("kept") == b"yes"
    servers.stop_valkey()
    with pytest.raises(redis.ConnectionError):
        client.get("kept")
    servers.start_valkey(empty=True)
    assert client.get("kept") is None


def test_valkey_refuses_rather_than_evicts(servers: EmbeddedServers) -> None:
    assert redis.from_url(servers.redis_url).config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    parts = urlsplit(servers.redis_url)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(host=str(parts.hostname), port=int(parts.port or 0), retry=Retry(NoBackoff(), 0)).ping()


def test_a_second_opener_is_refused(servers: EmbeddedServers) -> None:
    for second in (
        Postgres(servers.postgres.home, servers.postgres.log),
        Valkey(servers.valkey.home, servers.valkey.log),
    ):
        with pytest.raises(FolderBusy, match=str(os.getpid())):
            second.open()


def test_a_stranger_with_the_pid_of_a_dead_postmaster_is_left_alone(tmp_path: Path) -> None:
    with embedded_servers(tmp_path, keep=True) as servers:
        cluster = servers.postgres.cluster
        content = (cluster / "postmaster.pid").read_text()
        servers.stop_postgres(kill=True)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        lines = content.splitlines(keepends=True)
        (cluster / "postmaster.pid").write_text("".join([f"{stranger.pid}\n", *lines[1:]]))
        with embedded_servers(tmp_path) as servers:
            assert scalar(servers.database_url, "select 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


_OWNER = """
import sys, time
from pathlib import Path
from deploy.local.postgres import Postgres
from deploy.local.valkey import Valkey
folder = Path(sys.argv[1])
for server in (Valkey(folder / "valkey", folder / "log"), Postgres(folder / "postgres", folder / "log")):
    server._say = lambda text: None
    server.open()
    server.start()
    print(server.pid, flush=True)
time.sleep(600)
"""


def test_servers_orphaned_without_a_guard_are_stopped_before_a_restart(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert owner.stdout is not None
    orphans = [int(owner.stdout.readline()) for _ in range(2)]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert running(orphans) == orphans
    with embedded_servers(tmp_path) as servers:
        assert running(orphans) == []
        assert scalar(servers.database_url, "select 1") == 1


_SUITE = """
import sys, time
from pathlib import Path
from deploy.local.servers import embedded_servers
with embedded_servers(Path(sys.argv[1]), keep=True) as servers:
    print(servers.postgres_pid, servers.valkey_pid, servers.guard_pid, flush=True)
    time.sleep(600)
"""


def test_the_guard_stops_the_servers_of_a_killed_process_and_then_itself(tmp_path: Path) -> None:
    suite = subprocess.Popen(
        [sys.executable, "-c", _SUITE, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert suite.stdout is not None
    pids = [int(pid) for pid in suite.stdout.readline().split()]
    assert running(pids) == pids
    suite.send_signal(signal.SIGKILL)
    suite.wait()
    suite.stdout.close()
    wait_for(lambda: not running(pids), 8)
    with embedded_servers(tmp_path) as servers:  # also clears what lies outside tmp_path
        assert scalar(servers.database_url, "select 1") == 1


def test_leaving_stops_both_and_deletes_their_data(tmp_path: Path) -> None:
    with embedded_servers(tmp_path) as servers:
        cluster, pids = servers.postgres.cluster, [servers.postgres_pid, servers.valkey_pid]
        ports = [servers.postgres.port, servers.valkey.port]
    assert running(pids) == []
    assert all(is_free(port) for port in ports)
    assert not cluster.exists()
    assert not (tmp_path / "valkey").exists()


def test_ports_stay_the_same_over_restarts(tmp_path: Path) -> None:
    with embedded_servers(tmp_path, keep=True) as servers:
        before = (servers.database_url, servers.redis_url)
    with embedded_servers(tmp_path) as servers:
        assert (servers.database_url, servers.redis_url) == before
