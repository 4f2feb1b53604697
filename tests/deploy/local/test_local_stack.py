"""The whole stack with dummy services: up, restart of the dead, orderly end, and the end of a killed supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from dummy_stack import REPOSITORY, DummyStack, running, wait_for

from deploy.local.configuration import Configuration
from deploy.local.services import SERVICES, answers_healthy
from deploy.local.stack_file import status


def pid_of(stack: DummyStack, service: str) -> int:
    return int(stack.content()["services"][service]["pid"])


def test_comes_up_describes_itself_and_leaves_nothing_on_sigterm(stack: DummyStack) -> None:
    stack.up()
    content = stack.content()
    assert {
        "base_url",
        "api_key",
        "admin_api_key",
        "webhook_secret",
        "database_url",
        "redis_url",
        "smtp_url",
        "mail_dir",
        "services",
    } <= content.keys()
    assert content["base_url"] == f"http://127.0.0.1:{stack.port}"
    assert content["services"].keys() == {"api", "worker"}
    assert content["services"]["api"].keys() == {"pid", "health_port", "log"}
    for name in ("logs", "mail", "valkey", "mailsink"):
        assert stat.S_IMODE((stack.data / name).stat().st_mode) == 0o700, name
    for name in ("stack.json", "secret_key", "postgres/server.json", "valkey/server.json", "logs/api.log"):
        assert stat.S_IMODE((stack.data / name).stat().st_mode) == 0o600, name
    with psycopg.connect(str(content["database_url"])) as connection:
        connection.execute("select 1")
    assert redis.from_url(str(content["redis_url"])).ping()
    assert all(answers_healthy(service["health_port"]) for service in content["services"].values())
    assert status(content, stack.data / "stack.json")[0] == 0
    pids = stack.pids()
    assert len(pids) >= 10  # supervisor, guard, two services with a child each, mail sink, Valkey, Postgres …
    stack.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    assert stack.process.wait(15) == 0  # type: ignore[union-attr]
    assert running(pids) == []
    assert not (stack.data / "stack.json").exists()


def test_a_second_start_on_the_same_data_is_quick_and_keeps_ports_and_secrets(stack: DummyStack) -> None:
    stack.up()
    before, secret = stack.content(), (stack.data / "secret_key").read_text()
    stack.down()
    assert stack.up() < 5
    after = stack.content()
    assert (after["database_url"], after["redis_url"], after["smtp_url"]) == (
        before["database_url"],
        before["redis_url"],
        before["smtp_url"],
    )
    assert (stack.data / "secret_key").read_text() == secret


def test_restarts_what_dies_on_the_same_port_with_its_children_gone(stack: DummyStack) -> None:
    stack.up()
    before = stack.content()
    old, orphan = (int(pid) for pid in (stack.folder / "worker.pids").read_text().split())
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: pid_of(stack, "worker") != old)
    wait_for(lambda: answers_healthy(stack.content()["services"]["worker"]["health_port"]))
    assert running([old, orphan]) == []
    assert pid_of(stack, "api") == before["services"]["api"]["pid"]

    for server in ("postgres", "valkey", "mailsink"):
        died = before["servers"][server]["pid"]
        os.kill(died, signal.SIGKILL)
        wait_for(lambda died=died, server=server: stack.content()["servers"][server]["pid"] != died)  # type: ignore[misc]

    def both_answer() -> bool:
        try:
            psycopg.connect(str(before["database_url"]), connect_timeout=2).close()
            return bool(redis.from_url(str(before["redis_url"])).ping())
        except (psycopg.OperationalError, redis.RedisError):
            return False

    wait_for(both_answer)


def test_kill_9_of_the_supervisor_leaves_nothing_and_a_new_run_works_at_once(stack: DummyStack) -> None:
    stack.up()
    pids = stack.pids()
    stack.process.kill()  # type: ignore[union-attr]
    stack.process.wait()  # type: ignore[union-attr]
    stack.up()  # waits by itself until the guard has cleared up
    assert running(pids) == []
    assert answers_healthy(stack.port)


def test_kill_9_of_everything_is_survived(stack: DummyStack) -> None:
    stack.up()
    with psycopg.connect(str(stack.content()["database_url"])) as connection:
        connection.execute("create table kept as select 7 as n")
    for pid in stack.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    stack.process.wait()  # type: ignore[union-attr]
    assert stack.up() < 5
    with psycopg.connect(str(stack.content()["database_url"])) as connection:
        assert connection.execute("select n from kept").fetchone() == (7,)


def test_a_killed_guard_is_replaced(stack: DummyStack) -> None:
    stack.up()
    assert stack.process is not None
    supervisor = psutil.Process(stack.process.pid)

    def guards() -> list[int]:
        pids = running([child.pid for child in supervisor.children()])
        return [pid for pid in pids if "gradeline-guard" in psutil.Process(pid).cmdline()]

    (guard,) = guards()
    os.kill(guard, signal.SIGKILL)
    wait_for(lambda: len(guards()) == 1 and guards() != [guard])
    pids = stack.pids()
    supervisor.kill()
    stack.process.wait()
    wait_for(lambda: not running(pids), 8)


def test_a_second_run_on_the_same_data_is_refused_with_code_2(stack: DummyStack) -> None:
    stack.up()
    second = stack.start()
    assert second.wait(5) == 2
    said = stack.output.read_text()
    assert str(stack.data) in said
    assert f"kill {stack.process.pid}" in said  # type: ignore[union-attr]
    assert answers_healthy(stack.port)


def test_a_taken_port_is_named(stack: DummyStack) -> None:
    with socket.create_server(("127.0.0.1", stack.port)):
        assert stack.start().wait(10) == 1
    said = stack.output.read_text()
    assert f"Port {stack.port} is taken" in said
    assert "PORT=" in said


def test_servers_named_in_the_environment_are_not_embedded(stack: DummyStack) -> None:
    stack.process = stack.start(
        DATABASE_URL="postgresql://elsewhere/db", REDIS_URL="redis://elsewhere/0", SMTP_URL="smtp://elsewhere:25"
    )
    wait_for((stack.data / "stack.json").exists)
    content = stack.content()
    assert content["database_url"] == "postgresql://elsewhere/db"
    assert content["servers"] == {}
    assert not (stack.data / "postgres").exists()


def test_a_failing_migration_ends_the_run_with_its_words(stack: DummyStack) -> None:
    script = stack.folder / "stack.py"
    script.write_text(
        script.read_text().replace("assert os.environ['DATABASE_URL']", "raise SystemExit('no such column')")
    )
    process = stack.start()
    assert process.wait(20) == 1
    assert "no such column" in stack.output.read_text()
    assert running([process.pid]) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_coming_up_is_heeded(stack: DummyStack, how: signal.Signals) -> None:
    script = stack.folder / "stack.py"
    script.write_text(script.read_text().replace("assert os.environ['DATABASE_URL']", "import time; time.sleep(60)"))
    stack.process = stack.start()
    wait_for((stack.data / "logs" / "migrate.log").exists)
    pids = stack.pids()
    stack.process.send_signal(how)
    assert stack.process.wait(10) == 0
    assert running(pids) == []


def test_services_get_what_is_right_for_one_machine(tmp_path: Path) -> None:
    configuration = Configuration.read({"PORT": "9000", "DATA": str(tmp_path), "S3_BUCKET": "b", "HEALTH_PORT": "1"})
    env = configuration.for_services(database_url="d", redis_url="r", smtp_url="s")
    assert env["PUBLIC_URL"] == "http://127.0.0.1:9000"
    assert env["WEBHOOK_ALLOW_NETWORKS"] == "127.0.0.0/8"
    assert (env["DATABASE_URL"], env["REDIS_URL"], env["SMTP_URL"], env["S3_BUCKET"]) == ("d", "r", "s", "b")
    assert len(env["SECRET_KEY"]) >= 32
    assert "HEALTH_PORT" not in env
    assert env["PYTHONPATH"].split(os.pathsep)[0] == str(REPOSITORY)


@pytest.mark.parametrize("port", ["abc", "0", "70000", "-1"])
def test_a_port_that_is_none_is_refused_by_name(port: str) -> None:
    with pytest.raises(ValueError, match="PORT"):
        Configuration.read({"PORT": port})


def test_the_table_has_one_row_a_service() -> None:
    assert [service.name for service in SERVICES] == [
        "api",
        "ocr_worker",
        "grading_worker",
        "notifier",
        "scheduler",
    ]


def test_status_without_a_stack_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local", "status"],
        env={**os.environ, "DATA": str(tmp_path)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "no stack is up" in done.stdout
