"""Dramatiq over Redis: wake-ups in, wake-ups out, and the runner that every worker uses."""

from .factory import NAMESPACE, WakeBroker, actor_name, bell_channel, make_redis, wake_message
from .publisher import LOOK_CHANNEL, Publisher
from .runner import WorkerDeps, WorkerProcess, discover, run_worker

__all__ = [
    "LOOK_CHANNEL",
    "NAMESPACE",
    "Publisher",
    "WakeBroker",
    "WorkerDeps",
    "WorkerProcess",
    "actor_name",
    "bell_channel",
    "discover",
    "make_redis",
    "run_worker",
    "wake_message",
]
