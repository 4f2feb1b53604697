"""What a reading process that a document has taken over could still do: next to nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.ocr_worker.engine import DocumentError, DocumentInfo, Pending, ReaderPool
from services.ocr_worker.engine.pool import _is_sound, _parse, _Task
from shared.contracts import Line, Page, Word

from . import drawing

ROOT = Path(__file__).parents[2]
PNG = "image/png"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means are Linux's")

# Everything an attacker would try first; what succeeded is printed.
ATTACKS = """
import json, os, signal, socket, sys
from pathlib import Path
from services.ocr_worker.engine.sandbox import confine_to, deny_system_calls
document, folder = map(Path, sys.argv[1:3])
secret, worker, port = sys.argv[3], sys.argv[4], int(sys.argv[5])
before = socket.socket()
held = deny_system_calls() and confine_to(document, folder)
done = []
def attempt(name, action):
    try:
        action()
        done.append(name)
    except OSError:
        pass
attempt("another tenant's file", lambda: open(secret).read())
attempt("the worker's environment", lambda: open(f"/proc/{worker}/environ").read())
attempt("the worker's memory", lambda: open(f"/proc/{worker}/mem", "rb").read(0))
attempt("a list of files", lambda: os.listdir(Path(secret).parent))
attempt("overwrite the document", lambda: open(document, "ab"))
attempt("a file elsewhere", lambda: open(secret + ".new", "w"))
attempt("a symlink in the folder", lambda: os.symlink(secret, folder / "link"))
attempt("a pipe in the folder", lambda: os.mkfifo(folder / "pipe"))
attempt("a socket", lambda: socket.socket())
attempt("a connection", lambda: before.connect(("127.0.0.1", port)))
attempt("another program", lambda: os.execv("/bin/true", ["true"]))
attempt("a signal to the worker", lambda: os.kill(int(worker), 0))
attempt("the worker's limits", lambda: __import__("resource").prlimit(int(worker), 7))
work = [document.read_bytes() != b"", (folder / "1.jpg").write_bytes(b"x") == 1, os.kill(os.getpid(), 0) is None]
import colorsys  # a module that was not loaded before
print(json.dumps([held, done, work]))
"""


@linux
def test_it_can_do_nothing_but_its_work(tmp_path: Path) -> None:
    document, folder, secret = tmp_path / "a.pdf", tmp_path / "images", tmp_path / "others" / "secret"
    folder.mkdir()
    secret.parent.mkdir()
    document.write_bytes(b"%PDF")
    secret.write_text("SECRET_KEY")
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = subprocess.run(
            [sys.executable, "-c", ATTACKS, document, folder, secret, str(os.getpid()), str(server.getsockname()[1])],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    held, succeeded, work = json.loads(done.stdout)
    if not held:
        pytest.skip("this kernel has no Landlock or no seccomp")
    assert succeeded == []
    assert work == [True, True, True]


@linux
@pytest.mark.slow
def test_a_process_reads_one_document_only_and_is_held_by_the_kernel(tmp_path: Path) -> None:
    first, second = (drawing.save(drawing.page(), tmp_path / f"{n}.png") for n in "ab")
    with ReaderPool(1) as pool:
        seen = []
        for document in (first, first, second, first):
            assert pool.inspect(document, PNG, 9).result(60).pages == 1
            (pid,) = pool.process_ids()
            status = Path(f"/proc/{pid}/status").read_text()
            assert "NoNewPrivs:\t1" in status
            seen.append(pid)
        assert seen[0] == seen[1]
        assert len(set(seen[1:])) == 3


def _reply(page: Page, change: Callable[[str], str] = str) -> bytes:
    return b'{"ok":' + change(page.model_dump_json()).encode() + b"}"


PAGE = Page(
    number=1,
    width=10,
    height=10,
    source="ocr",
    confidence=1,
    lines=(
        Line(text="\\u0000 Ada", confidence=1, box=(0, 0, 1, 1), words=(Word(text="A", confidence=1, box=(0,) * 4),)),
    ),
)
TASK = _Task(Pending[Page](), {}, Page, 1.0, lambda page: _is_sound(page, 1))


def test_a_sound_reply_is_taken_backslashes_and_all() -> None:
    assert _parse(_reply(PAGE), TASK) == PAGE


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"A"', r'"\u0000"'),  # PostgreSQL has no NUL in text
        lambda text: text.replace('"number":1', '"number":2'),  # in the place of another page
        lambda text: text.replace('"width":10', '"width":99999999999'),  # beyond the column
        lambda text: text.replace('"width":10', '"width":-1'),
    ],
)
def test_a_reply_that_no_sound_process_sends_is_a_crash(change: Callable[[str], str]) -> None:
    reply = _reply(PAGE, change)
    assert reply != _reply(PAGE)
    with pytest.raises(DocumentError, match=r"document\.crashed_reader"):
        _parse(reply, TASK)


def test_a_reply_with_more_pages_than_allowed_is_a_crash() -> None:
    task = _Task(Pending[DocumentInfo](), {}, DocumentInfo, 1.0, lambda info: 0 < info.pages <= 9)
    with pytest.raises(DocumentError, match=r"document\.crashed_reader"):
        _parse(b'{"ok":{"pages":1000000}}', task)
