"""The supervisor by itself, with children that misbehave."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dummy_stack import running, wait_for

from deploy.local.child import Child, Launch
from deploy.local.guard import Guard
from deploy.local.supervisor import Supervisor


class Scripted(Child):
    """Runs a line of Python, which gets the path of a file to make when it is under way."""

    def __init__(self, folder: Path, name: str, script: str, grace: float = 30.0) -> None:
        super().__init__(name, folder / f"{name}.log", grace=grace)
        self.mark = folder / f"{name}.mark"
        self._script = script

    def describe(self) -> Launch:
        argv = (sys.executable, "-S", "-c", self._script, str(self.mark))
        return Launch(argv, dict(os.environ), Path("/"))

    def ready(self) -> bool:
        return self.mark.exists()


_MARK = "import sys, time, signal, subprocess; mark = lambda text: open(sys.argv[1], 'w').write(text); "
PATIENT = _MARK + "mark('x'); time.sleep(600)"
STUBBORN = (
    _MARK + "signal.signal(signal.SIGTERM, lambda *_: None); p = subprocess.Popen(['sleep', '600']); "
    "mark(str(p.pid)); [time.sleep(1) for _ in range(600)]"
)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(said: list[str]) -> Iterator[Supervisor]:
    supervisor = Supervisor(Guard(), said.append)
    with supervisor.signals():
        yield supervisor
        supervisor.stop()


def test_a_child_that_dies_at_once_is_restarted_ever_more_slowly(
    supervisor: Supervisor, said: list[str], tmp_path: Path
) -> None:
    begun = time.monotonic()
    supervisor.add(Scripted(tmp_path, "dying", "raise SystemExit(3)"), 0)
    assert supervisor.run_until(lambda: len(said) == 4, 10)
    assert [line.split(" in ")[1].split(" s ")[0] for line in said] == ["0.2", "0.4", "0.8", "1.6"]
    assert all("status 3" in line for line in said)
    assert 1.4 < time.monotonic() - begun < 5


def test_a_command_that_cannot_be_started_again_is_retried(
    supervisor: Supervisor, said: list[str], tmp_path: Path
) -> None:
    child = Scripted(tmp_path, "blocked", PATIENT)
    supervisor.add(child, 0)
    child.log.unlink()
    child.log.mkdir()  # now its log cannot be opened
    os.kill(child.pid, signal.SIGKILL)
    assert supervisor.run_until(lambda: any("cannot be started" in line for line in said), 10)
    child.log.rmdir()
    assert supervisor.run_until(lambda: child.running, 10)


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(
    supervisor: Supervisor, said: list[str], tmp_path: Path
) -> None:
    child = Scripted(tmp_path, "stubborn", STUBBORN, grace=0.5)
    supervisor.add(child, 0)
    assert supervisor.run_until(lambda: child.ready() and child.mark.read_text() != "", 10)
    pids = [child.pid, int(child.mark.read_text())]
    supervisor.stop()
    assert running(pids) == []
    assert said == ["killing stubborn: the grace period is over"]


def test_a_second_request_cuts_the_patience_short(supervisor: Supervisor, said: list[str], tmp_path: Path) -> None:
    child = Scripted(tmp_path, "stubborn", STUBBORN)
    supervisor.add(child, 0)
    assert supervisor.run_until(lambda: child.ready() and child.mark.read_text() != "", 10)
    os.kill(os.getpid(), signal.SIGTERM)
    supervisor.run()
    os.kill(os.getpid(), signal.SIGTERM)
    begun = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - begun < 5
    assert said == ["killing stubborn: asked twice"]


def test_a_paused_child_is_woken_to_stop(supervisor: Supervisor, said: list[str], tmp_path: Path) -> None:
    child = Scripted(tmp_path, "paused", PATIENT)
    supervisor.add(child, 0)
    assert supervisor.run_until(child.ready, 10)
    os.kill(child.pid, signal.SIGSTOP)
    supervisor.stop()
    assert child.exit_status == -signal.SIGTERM
    assert said == []


def test_stages_stop_from_the_highest_to_the_lowest(supervisor: Supervisor, tmp_path: Path) -> None:
    note = "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
    order = tmp_path / "order"
    script = note + "open(sys.argv[1], 'w').close()\ntry: time.sleep(600)\nfinally: open({!r}, 'a').write({!r})"
    children = [Scripted(tmp_path, name, script.format(str(order), name)) for name in "abc"]
    for stage, child in enumerate(children):
        supervisor.add(child, stage)
    assert supervisor.run_until(lambda: all(child.ready() for child in children), 10)
    supervisor.stop()
    assert order.read_text() == "cba"


def test_the_guard_stops_in_the_order_of_the_plan_and_kills_groups(tmp_path: Path) -> None:
    child = Scripted(tmp_path, "stubborn", STUBBORN)
    child.launch()
    wait_for(lambda: child.ready() and child.mark.read_text() != "")
    pids = [child.pid, int(child.mark.read_text())]
    guard = Guard()
    guard.protect([(child,)])
    begun = time.monotonic()
    guard.close()  # an end of file, as the death of its owner would be
    wait_for(lambda: not running(pids), 2)  # SIGKILL was sent; the kernel takes its time
    assert 2 < time.monotonic() - begun < 8
    assert child.exit_status == -signal.SIGKILL
