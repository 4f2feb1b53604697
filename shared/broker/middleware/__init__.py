"""Our Dramatiq middleware, one policy a file. Order matters: ``before`` hooks run down this list, ``after`` up it.

Claim takes a job for the message (priority and fairness are decided there), TimeLimit watches the attempt,
Retries decides how it ended, and Claim, last again, writes that down.
"""

from .claim import Claim
from .retries import Retries
from .time_limit import TimeLimit

__all__ = ["Claim", "Retries", "TimeLimit"]
