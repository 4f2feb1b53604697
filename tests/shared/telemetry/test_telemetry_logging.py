"""Log lines are JSON, carry the bound ids, and cannot carry student data by accident."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog

from shared.contracts import Word
from shared.jobs.errors import PermanentError
from shared.settings import Settings
from shared.telemetry import logging as tl

ROOT = Path(__file__).parents[3]
SECRET = "Anna-Lena Mustermann"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Configured onto a buffer, and everything global put back."""
    root = logging.getLogger()
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning)
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    tl.configure(Settings(environment="test", log_level="DEBUG"), "ocr_worker", out)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
    root.setLevel(level)


def test_a_line_has_time_level_service_event_and_bound_ids(lines: Lines) -> None:
    with tl.bound(job_id="job_1", org_id=UUID(int=1), attempt=2, request_id="r1"):
        tl.get_logger("services.x").info("claimed", wait_seconds=0.25)
    tl.get_logger("services.x").info("idle")
    first, second = lines()
    assert datetime.fromisoformat(first.pop("time")).utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert first == {
        "level": "info",
        "service": "ocr_worker",
        "event": "claimed",
        "source": "services.x",
        "job_id": "job_1",
        "org_id": str(UUID(int=1)),
        "attempt": 2,
        "request_id": "r1",
        "wait_seconds": 0.25,
    }
    assert "job_id" not in second


@pytest.mark.parametrize(
    "key",
    [
        "name", "text", "email", "prompt", "token", "authorization", "Authorization", "password", "payload", "body",
        "answer", "answers", "student_name", "studentName", "file_name", "x-api-token", "notify_email", "given",
        "response_body", "HTTPBody", "student", "raw.text", "feedback", "school", "mail_to",
    ],
)  # fmt: skip
def test_forbidden_keys_are_dropped_and_named(lines: Lines, key: str) -> None:
    tl.get_logger("t").info("done", **{key: SECRET, "size": 3})
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    assert line["dropped"] == [key]
    assert line["size"] == 3


def test_ids_and_measures_of_forbidden_things_stay(lines: Lines) -> None:
    fields = {
        "student_id": "stu_1", "request_id": "r", "prompt_tokens": 12, "body_bytes": 9, "text_length": 4, "words": 7,
        "document_ids": [UUID(int=1)], "name_count": 1, "status": "completed", "queue": "ocr", "route": "/jobs/{id}",
    }  # fmt: skip
    tl.get_logger("t").info("done", **fields)
    (line,) = lines()
    assert "dropped" not in line
    assert set(fields) <= set(line)


def test_a_measure_must_be_a_number_and_an_id_must_look_like_one(lines: Lines) -> None:
    tl.get_logger("t").info("done", name_count=SECRET, student_id=SECRET, text_total=True)
    (line,) = lines()
    assert line["dropped"] == ["name_count", "student_id", "text_total"]
    assert SECRET not in json.dumps(line)


def test_an_id_that_may_be_a_name_is_dropped(lines: Lines) -> None:
    tl.get_logger("t").info("done", student_id="Anna.Mustermann", request_id="r")
    (line,) = lines()
    assert "Anna" not in json.dumps(line)
    assert line["dropped"] == ["student_id"]


def test_a_reason_is_a_code_and_never_an_exceptions_text(lines: Lines) -> None:
    quoted = f'duplicate key value violates "students_name_key" DETAIL: Key (name)=({SECRET}) already exists.'
    tl.get_logger("t").warning("failed", error=quoted, detail=quoted, reason="UniqueViolation", code="job.internal")
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    assert line["dropped"] == ["detail", "error"]
    assert (line["reason"], line["code"]) == ("UniqueViolation", "job.internal")


def test_a_library_that_logs_an_exception_as_the_message_shows_its_type(lines: Lines) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as e:
        logging.getLogger("somelib").exception(e)
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    assert line["event"] == "ValueError"


def test_warnings_and_what_destructors_raise_are_logged_without_their_texts(
    lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    class Sheet:
        def __del__(self) -> None:
            raise ValueError(SECRET)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = tl._warned  # pytest has put its own in this place
        # Pydantic warns of a value of the wrong type by quoting it.
        Word.model_construct(text="", confidence=SECRET, box=(0, 0, 0, 0)).model_dump_json()  # type: ignore[arg-type]
    sys.unraisablehook = tl._unraisable
    sheet = Sheet()
    del sheet
    warned, raised = lines()
    assert (warned["event"], warned["category"]) == ("python warning", "UserWarning")
    assert raised["exception"][0]["type"] == "ValueError"
    assert SECRET not in json.dumps([warned, raised])
    assert SECRET not in "".join(capsys.readouterr())


def test_a_process_takes_over_warnings_and_unraisable_exceptions() -> None:
    script = (
        "import sys, warnings; from shared.settings import Settings; from shared.telemetry import logging\n"
        "logging.configure(Settings(environment='test'), 't')\n"
        "class D:\n    def __del__(self): raise ValueError('Anna')\n"
        "D(); warnings.warn('Anna')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Anna" not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_nested_values_are_searched_and_unknown_objects_are_named_by_type(lines: Lines) -> None:
    class Submission:
        def __repr__(self) -> str:
            return SECRET

    tl.get_logger("t").info(
        "done",
        details={"page": 1, "student": {"name": SECRET}, "list": [{"answer": SECRET, "n": 1}]},
        thing=Submission(),
        raw=SECRET.encode(),
        where=Path("/tmp") / SECRET,
        error=ValueError(SECRET),
        deep={"a": {"b": {"c": {"d": {"e": SECRET}}}}},
    )
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    assert line["details"] == {"page": 1, "list": [{"n": 1}]}
    assert (line["thing"], line["raw"], line["error"]) == ("<Submission>", "<20 bytes>", "ValueError")


def test_long_strings_and_lists_are_cut(lines: Lines) -> None:
    tl.get_logger("t").info("x" * 5000, why="y" * 5000, many=list(range(1000)))
    (line,) = lines()
    assert len(line["event"]) < 350
    assert len(line["why"]) < 350
    assert len(line["many"]) == 21


def test_exceptions_show_type_and_frames_but_neither_text_nor_locals(lines: Lines) -> None:
    def parse(answer: str) -> int:
        return int(answer)

    try:
        try:
            parse(SECRET)
        except ValueError as e:
            e.add_note(SECRET)
            raise RuntimeError(SECRET) from e
    except RuntimeError:
        tl.get_logger("t").exception("failed")
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    assert [part["type"] for part in line["exception"]] == ["RuntimeError", "ValueError"]
    assert line["exception"][1]["frames"][-1].endswith(" parse")


def test_job_errors_keep_their_code_and_sentence(lines: Lines) -> None:
    try:
        raise PermanentError("document.encrypted", "The PDF is locked with a password.")
    except PermanentError:
        tl.get_logger("t").warning("failed", exc_info=True)
    (line,) = lines()
    assert line["exception"][0]["type"] == "PermanentError: document.encrypted: The PDF is locked with a password."


def test_exception_groups_and_cycles_end(lines: Lines) -> None:
    a, b = ValueError(SECRET), KeyError(SECRET)
    a.__context__, b.__context__ = b, a
    tl.get_logger("t").error("failed", exc_info=ExceptionGroup(SECRET, [a, b]))
    tl.get_logger("t").error("failed", exc_info=a)
    group, cycle = lines()
    assert group["exception"][0]["group"] == ["ValueError", "KeyError"]
    assert len(cycle["exception"]) == 2
    assert SECRET not in json.dumps([group, cycle])


def test_stdlib_records_take_the_same_road(lines: Lines) -> None:
    with tl.bound(job_id="job_1"):
        logging.getLogger("services.api.app").info("listening on %s", "a port")
    (line,) = lines()
    assert (line["event"], line["source"], line["job_id"]) == ("listening on a port", "services.api.app", "job_1")


def test_foreign_records_are_masked(lines: Lines) -> None:
    foreign = logging.getLogger("dramatiq.worker.WorkerThread")
    foreign.warning("Failed to process %s after %d ms.", f"grade({SECRET})", 12)
    foreign.error("Task exception was never retrieved\nfuture: <Task exception=ValueError('%s')>" % SECRET)  # noqa: UP031
    foreign.error("mapped %(who)s", {"who": SECRET})
    foreign.info("debugging: %s", SECRET)
    got = lines()
    assert [line["event"] for line in got] == [
        "Failed to process … after 12 ms.",
        "Task exception was never retrieved",
        "mapped …",
    ]


def test_a_record_that_does_not_fit_its_own_template_is_still_a_line(lines: Lines) -> None:
    # By hand: pytest's own handler raises on such a record.
    tl._Forward().emit(logging.makeLogRecord({"name": "x", "levelno": 40, "msg": "odd %d", "args": (SECRET,)}))
    tl._Forward().emit(logging.makeLogRecord({"name": "services.x", "levelno": 40, "msg": "odd %d", "args": (SECRET,)}))
    assert [line["event"] for line in lines()] == ["odd %d", "odd %d"]


def test_handlers_put_up_by_libraries_are_taken_off() -> None:
    code = (
        "import logging, sys; from shared.settings import Settings; from shared.telemetry import logging as tl\n"
        "lg = logging.getLogger('gunicorn.error'); lg.addHandler(logging.StreamHandler(sys.stdout)); lg.propagate = 0\n"
        "tl.configure(Settings(environment='test'), 'api')\n"
        "lg.setLevel(20); lg.info('Booting worker with pid: %d', 7)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60, capture_output=True, text=True)
    (line,) = map(json.loads, out.stdout.splitlines())
    assert line["event"] == "Booting worker with pid: 7"


def test_uncaught_exceptions_leave_as_json_without_their_text() -> None:
    code = (
        "import threading; from shared.settings import Settings; from shared.telemetry import logging as tl\n"
        "tl.configure(Settings(environment='test'), 'api')\n"
        f"def boom(): raise ValueError({SECRET!r})\n"
        "t = threading.Thread(target=boom, name='consumer'); t.start(); t.join(); boom()\n"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert out.returncode == 1
    assert out.stderr == ""
    assert SECRET not in out.stdout
    assert [json.loads(line)["event"] for line in out.stdout.splitlines()] == [
        "uncaught exception in a thread",
        "uncaught exception",
    ]


def test_a_terminal_in_the_local_environment_gets_readable_lines() -> None:
    code = (
        "from shared.settings import Settings; from shared.telemetry import logging as tl\n"
        "tl.configure(Settings(environment='local'), 'api')\n"
        "try: int('Anna')\n"
        "except ValueError: tl.get_logger('t').exception('failed', student_name='Anna')\n"
    )
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb") as terminal:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60, stdout=terminal)
    text = os.read(ours, 65536).decode()
    os.close(ours)
    assert "failed" in text
    assert "ValueError" in text
    assert "Anna" not in text
    assert not text.lstrip().startswith("{")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOG_LEVEL"):
        tl.configure(Settings(log_level="LOUD"), "api")


def test_values_that_json_cannot_hold_do_not_lose_the_line(lines: Lines) -> None:
    tl.get_logger("t").info("odd", big=2**80, surrogate="\ud800", nan=float("nan"))
    (line,) = lines()
    assert "odd" in line["event"]
