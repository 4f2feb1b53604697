"""Every statement that writes a job, named and described. Executed by psycopg, sync or async.

A change, its event, the batch counters and the notifications it owes are one statement; the children it sets free
or ends follow in the same transaction. All stand or fall together (DESIGN invariants 1, 3, 4, 8, 9).
Parameters are psycopg's named ones. All times are the database's.
"""

from .accept import (
    ADOPT,
    BEHIND_BATCHES,
    COLUMNS,
    LOCK_CIRCLES,
    LOCK_UNIQUE,
    SUBMIT,
    SUBMIT_IN_BATCH,
    UNIQUE,
    submit_one,
)
from .attempt import HEARTBEAT, LOG, PROGRESS, RELEASE_ORPHANS, RESCUE, SETTLE, SETTLE_PLAIN
from .claim import CLAIM, CLAIM_ALONE, CLAIM_LIMITED, LOCK, RESERVE, UNHOLD, UNHOLD_ALL
from .follow import BLOCK, CANCEL, COMPLETE_BATCH, FREE

__all__ = [
    "ADOPT",
    "BEHIND_BATCHES",
    "BLOCK",
    "CANCEL",
    "CLAIM",
    "CLAIM_ALONE",
    "CLAIM_LIMITED",
    "COLUMNS",
    "COMPLETE_BATCH",
    "FREE",
    "HEARTBEAT",
    "LOCK",
    "LOCK_CIRCLES",
    "LOCK_UNIQUE",
    "LOG",
    "PROGRESS",
    "RELEASE_ORPHANS",
    "RESCUE",
    "RESERVE",
    "SETTLE",
    "SETTLE_PLAIN",
    "SUBMIT",
    "SUBMIT_IN_BATCH",
    "UNHOLD",
    "UNHOLD_ALL",
    "UNIQUE",
    "submit_one",
]
