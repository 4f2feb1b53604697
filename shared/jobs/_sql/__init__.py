"""Every statement that writes a job, named and described. Executed by psycopg, sync or async.

A change, its event, the batch counters and the notifications it owes are one statement; the children it sets free
or ends follow in the same transaction. All stand or fall together (DESIGN invariants 1, 3, 4, 8, 9).
Parameters are psycopg's named ones. All times are the database's.
"""

from .accept import ADOPT, SUBMIT
from .attempt import HEARTBEAT, LOG, PROGRESS, RESCUE, SETTLE
from .claim import CLAIM
from .follow import BLOCK, CANCEL, FREE

__all__ = ["ADOPT", "BLOCK", "CANCEL", "CLAIM", "FREE", "HEARTBEAT", "LOG", "PROGRESS", "RESCUE", "SETTLE", "SUBMIT"]
