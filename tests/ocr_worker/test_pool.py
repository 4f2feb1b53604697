"""The pool's promises: a page's trouble is that page's alone, and a cancel is prompt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from services.ocr_worker.engine import DocumentError, ReaderPool
from services.ocr_worker.engine.nursery import SpawningNursery

from . import drawing

pytestmark = pytest.mark.slow

PNG = "image/png"
GIB = 1024**3


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return drawing.save(drawing.page(), tmp_path / "page.png")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """Seconds of work."""
    lines = tuple(f"{n} all work and no play makes jack a dull boy indeed" for n in range(28))
    return drawing.save(drawing.page(lines, size=(1400, 2300)), tmp_path / "dense.png")


def until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_killed_process_fails_its_own_page_only(picture: Path, dense: Path, tmp_path: Path) -> None:
    with ReaderPool(2, 3 * GIB) as pool:
        doomed = pool.read_page(dense, PNG, 1, tmp_path / "1.jpg")
        until(pool.process_ids)
        (victim,) = pool.process_ids()
        until(doomed.running)
        time.sleep(0.2)  # until the process has taken it; one that dies before costs nobody a page
        others = [pool.read_page(picture, PNG, 1, tmp_path / f"o{n}.jpg") for n in range(3)]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(DocumentError, match=r"document\.crashed_reader"):
            doomed.result(10)
        for other in others:
            assert "Ada" in other.result(30).text
        assert victim not in pool.process_ids()


def test_an_idle_process_that_dies_costs_nobody_a_page(picture: Path, tmp_path: Path) -> None:
    with ReaderPool(1, 3 * GIB) as pool:
        pool.inspect(picture, PNG, 9).result(30)
        os.kill(pool.process_ids()[0], signal.SIGKILL)
        assert pool.inspect(picture, PNG, 9).result(30).pages == 1


def test_the_death_of_the_template_is_survived(picture: Path, tmp_path: Path) -> None:
    with ReaderPool(1, 3 * GIB) as pool:
        pool.inspect(picture, PNG, 9).result(30)
        (child,) = pool.process_ids()
        for template in pool.template_ids():
            os.kill(template, signal.SIGKILL)
        until(lambda: gone(child))
        assert pool.inspect(picture, PNG, 9).result(30).pages == 1


def test_a_cancel_kills_at_once_and_the_pool_reads_on(picture: Path, dense: Path, tmp_path: Path) -> None:
    with ReaderPool(1, 3 * GIB) as pool:
        pool.inspect(picture, PNG, 9).result(30)
        (before,) = pool.process_ids()
        pending = pool.read_page(dense, PNG, 1, tmp_path / "1.jpg")
        waiting = pool.read_page(dense, PNG, 1, tmp_path / "2.jpg")
        until(pending.running)
        time.sleep(0.2)  # into the C code
        start = time.monotonic()
        assert waiting.cancel()
        assert pending.cancel()
        with pytest.raises(CancelledError):
            pending.result(1.0)
        assert time.monotonic() - start < 1.0
        assert gone(before)
        assert waiting.cancelled()
        assert pool.inspect(picture, PNG, 9).result(5).pages == 1


def test_a_cancel_that_comes_late_changes_nothing(picture: Path, tmp_path: Path) -> None:
    with ReaderPool(1, 3 * GIB) as pool:
        pending = pool.inspect(picture, PNG, 9)
        pending.result(30)
        assert not pending.cancel()
        assert pending.result(0).pages == 1


def test_a_page_past_its_time_is_stopped(picture: Path, dense: Path, tmp_path: Path) -> None:
    with ReaderPool(1, 3 * GIB) as pool:
        pool.inspect(picture, PNG, 9).result(30)
        start = time.monotonic()
        with pytest.raises(DocumentError, match=r"document\.too_slow"):
            pool.read_page(dense, PNG, 1, tmp_path / "1.jpg", timeout=0.3).result(10)
        assert time.monotonic() - start < 2.0


def test_memory_is_bounded(tmp_path: Path) -> None:
    big = drawing.save(drawing.page(size=(7000, 7000)), tmp_path / "big.png")
    with ReaderPool(1, 600 * 1024**2) as pool:
        with pytest.raises(DocumentError) as caught:
            pool.read_page(big, PNG, 1, tmp_path / "1.jpg").result(30)
        assert caught.value.code in ("document.too_large", "document.crashed_reader")


def test_many_threads_share_one_pool(reader_pool: ReaderPool, picture: Path, tmp_path: Path) -> None:
    texts: list[str] = []

    def read(number: int) -> None:
        texts.append(reader_pool.read_page(picture, PNG, 1, tmp_path / f"{number}.jpg").result(60).text)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 6
    assert len(set(texts)) == 1


def test_idle_processes_are_ended_and_start_again(picture: Path) -> None:
    with ReaderPool(2, 3 * GIB, idle_seconds=0.2) as pool:
        pool.inspect(picture, PNG, 9).result(30)
        until(lambda: not pool.process_ids())
        start = time.monotonic()
        assert pool.inspect(picture, PNG, 9).result(30).pages == 1
        assert time.monotonic() - start < 1.0


def test_close_ends_everything_promptly(picture: Path, dense: Path, tmp_path: Path) -> None:
    pool = ReaderPool(2, 3 * GIB)
    pool.inspect(picture, PNG, 9).result(30)
    pending = [pool.read_page(dense, PNG, 1, tmp_path / f"{n}.jpg") for n in range(4)]
    until(pending[0].running)
    pids = [*pool.process_ids(), *pool.template_ids()]
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 2.0
    assert all(gone(pid) for pid in pids)
    for each in pending:
        with pytest.raises(CancelledError):
            each.result(0)
    with pytest.raises(RuntimeError):
        pool.inspect(picture, PNG, 9)


def test_nothing_outlives_a_worker_that_is_killed(picture: Path, dense: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from services.ocr_worker.engine import ReaderPool\n"
        f"pool = ReaderPool(1); page = Path({str(dense)!r}); image = Path({str(tmp_path / 'x')!r})\n"
        "pending = pool.read_page(page, 'image/png', 1, image)\n"
        "while not pool.process_ids(): time.sleep(0.01)\n"
        "print(*pool.process_ids(), *pool.template_ids(), flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert worker.stdout is not None
    with worker.stdout:
        pids = [int(pid) for pid in worker.stdout.readline().split()]
    assert pids
    worker.kill()
    worker.wait()
    until(lambda: all(gone(pid) for pid in pids), 5.0)


def test_reading_processes_get_none_of_the_workers_secrets(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "very secret")
    with ReaderPool(1, 3 * GIB) as pool:
        pool.inspect(picture, PNG, 9).result(30)
        for pid in [*pool.process_ids(), *pool.template_ids()]:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"very secret" not in environment
            assert b"ORT_DISABLE_TELEMETRY=1" in environment


def test_the_template_has_one_thread_so_that_it_may_fork(picture: Path) -> None:
    with ReaderPool(1, 3 * GIB) as pool:
        pool.inspect(picture, PNG, 9).result(30)
        for template in pool.template_ids():
            assert len(list(Path(f"/proc/{template}/task").iterdir())) == 1


def test_processes_can_be_spawned_where_forking_is_unsafe(picture: Path, tmp_path: Path) -> None:
    with ReaderPool(1, nursery=SpawningNursery(3 * GIB)) as pool:
        assert "Ada" in pool.read_page(picture, PNG, 1, tmp_path / "1.jpg").result(60).text
        (pid,) = pool.process_ids()
    assert gone(pid)


def test_importing_the_handler_loads_no_ocr_library() -> None:
    script = (
        "import sys, services.ocr_worker.document\n"
        "bad = {'rapidocr', 'onnxruntime', 'cv2', 'numpy', 'PIL', 'pypdfium2', 'pillow_heif'} & set(sys.modules)\n"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2], timeout=60)
