"""For people who write job types: run a handler inline, keep jobs in memory, assert what was enqueued.

Nothing here needs pytest, a server or a worker; see docs/testing.md. ``MemoryStore`` and ``PostgresStore`` are one
interface, ``JobStore``, and one suite of tests holds both to the same behaviour.
"""

from ._clock import ManualClock
from ._drain import drain
from ._enqueued import assert_enqueued, assert_not_enqueued, enqueued
from ._inline import InlineRun, InterruptAfter, Progress, run_inline
from ._interface import JobStore
from ._memory import MemoryStore
from ._misuse import TestingKitMisuse
from ._postgres import PostgresStore

__all__ = [
    "InlineRun",
    "InterruptAfter",
    "JobStore",
    "ManualClock",
    "MemoryStore",
    "PostgresStore",
    "Progress",
    "TestingKitMisuse",
    "assert_enqueued",
    "assert_not_enqueued",
    "drain",
    "enqueued",
    "run_inline",
]
