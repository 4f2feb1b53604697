"""Log lines: one JSON object a line, by structlog, with the standard library's records on the same road.

A line has ``time`` (ISO 8601, UTC), ``level``, ``service``, ``event`` and what is bound: ``job_id``, ``org_id``,
``attempt``, ``request_id`` … Keys that could hold student data are dropped whatever they hold (see
``redaction``), strings are cut, and of an exception only type and frames are written.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog
from structlog.contextvars import bound_contextvars as bound
from structlog.typing import EventDict, WrappedLogger

from shared.settings import Settings

from .redaction import MAX_STRING, describe_exception, is_forbidden, safe_value

__all__ = ["bound", "configure", "get_logger"]

_OURS = ("shared", "services", "deploy", "gradeline")
# Keys that this module itself sets: never judged by their names.
_OWN = frozenset({"event", "level", "time", "service", "source", "exception", "dropped", "thread"})


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry ``source: name``. Cheap; usable before ``configure``."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(source=name)
    return logger


def configure(settings: Settings, service: str, stream: TextIO | None = None) -> None:
    """Send every log line of this process to ``stream`` (stdout), and uncaught exceptions and warnings too.

    Call once in main().

    JSON, except on a terminal in the ``local`` environment. Handlers that libraries (gunicorn, dramatiq)
    have put on their loggers by now are taken off.
    """
    out = stream or sys.stdout
    level = logging.getLevelName(settings.log_level.upper())
    if not isinstance(level, int):
        raise ValueError("LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL")

    def add_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    renderer: Callable[[WrappedLogger, str, EventDict], Any]
    if settings.environment == "local" and out.isatty():
        renderer = structlog.dev.ConsoleRenderer(
            timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
        )
        tail: list[Any] = [_exception_as_text, renderer]
    else:
        tail = [_to_json]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            add_service,
            _exceptions,
            redact,
            *tail,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    _take_over_stdlib(level)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    # Both print to stderr otherwise, texts and all: of an exception in a destructor; and of a warning, where
    # Pydantic quotes the value that it was not made for.
    sys.unraisablehook = _unraisable
    warnings.showwarning = _warned


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Drop forbidden keys, naming them in ``dropped`` so that the mistake is seen, and make every value safe."""
    clean: EventDict = {}
    dropped: list[str] = []
    for key, value in event.items():
        if key == "exception":
            clean[key] = value  # made safe by _exceptions, and longer than safe_value allows
        elif key not in _OWN and is_forbidden(key, value):
            dropped.append(key[:40])
        else:
            clean[key] = safe_value(value)
    if dropped:
        clean["dropped"] = sorted(dropped)
    return clean


def _exceptions(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    info = event.pop("exc_info", None)
    event.pop("exception", None)
    event.pop("stack_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, tuple) and len(info) == 3:
        info = info[1]
    if isinstance(info, BaseException):
        event["exception"] = describe_exception(info)
    return event


def _exception_as_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if "exception" in event:
        event["exception"] = "\n".join(
            "\n  ".join([part["type"], *part["frames"]]) for part in reversed(event["exception"])
        )
    return event


def _to_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    # safe_value left nothing that orjson cannot write, but for integers beyond 64 bits and lone surrogates.
    try:
        return orjson.dumps(event).decode()
    except (TypeError, orjson.JSONEncodeError):
        return orjson.dumps({k: ascii(v) for k, v in event.items()}).decode()


class _Forward(logging.Handler):
    """Hands a standard library record to structlog.

    Text arguments of foreign records are masked, and only their first line is kept: dramatiq puts a message's
    arguments into them, HTTP libraries whole URLs, asyncio the repr of an exception.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.name.split(".", 1)[0] in _OURS:
                try:
                    text = record.getMessage()
                except (TypeError, ValueError, KeyError):  # template and arguments do not fit: the template alone
                    text = str(record.msg)
            else:
                text = _masked(record).split("\n", 1)[0][:MAX_STRING]
            structlog.get_logger(source=record.name).log(record.levelno, text, exc_info=record.exc_info)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Silent: the stock one prints the record, with its arguments, to stderr."""


def _masked(record: logging.LogRecord) -> str:
    def mask(value: object) -> object:
        return value if isinstance(value, (int, float)) else "…"

    if not isinstance(record.msg, str):  # ``logger.exception(e)``: the text would be the exception's
        return type(record.msg).__name__
    template = record.msg
    try:
        if isinstance(record.args, dict):
            return template % {k: mask(v) for k, v in record.args.items()}
        return template % tuple(mask(a) for a in record.args) if record.args else template
    except (TypeError, ValueError, KeyError):
        return template


def _take_over_stdlib(level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(level, logging.WARNING))  # a library's INFO and DEBUG is where payloads are printed
    for name in list(root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        if logger.level and name.split(".", 1)[0] not in _OURS:
            logger.setLevel(max(logger.level, logging.WARNING))
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    # Their lifecycle is worth INFO: started, stopping, booted.
    for name in ("gunicorn.error", "uvicorn.error", "dramatiq.MainProcess", "dramatiq.WorkerProcess"):
        logging.getLogger(name).setLevel(max(level, logging.INFO))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    get_logger("shared.telemetry").critical("uncaught exception", exc_info=error.with_traceback(trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        thread = args.thread.name if args.thread else "?"
        get_logger("shared.telemetry").critical(
            "uncaught exception in a thread", thread=thread, exc_info=args.exc_value
        )


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        get_logger("shared.telemetry").error("exception in a destructor or callback", exc_info=args.exc_value)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    get_logger("shared.telemetry").warning("python warning", category=category.__name__, at=f"{filename}:{lineno}")
