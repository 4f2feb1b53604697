"""What is done to the system. Each disturbance is one function; a plan calls it with its own random numbers."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from uuid import uuid4

import psycopg
import redis

from shared import ids
from shared.broker import Publisher, WakeBroker, bell_channel, wake_message
from shared.jobs import Wake
from tests.chaos import kinds
from tests.chaos.stack import LEASE_SECONDS, ChaosStack

__all__ = ["DISTURBANCES", "Disturbance"]

# Called with the system, random numbers of its own, and for about how many seconds to go on.
Disturbance = Callable[[ChaosStack, Random, float], None]
DISTURBANCES: dict[str, Disturbance] = {}
# Between two kills of job workers: one that is hit three times by bad luck is set aside, and shall be rare.
_KILL_SPACING = 0.9


def _disturbance(act: Disturbance) -> Disturbance:
    DISTURBANCES[act.__name__] = act
    return act


def _during(seconds: float, every: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(every)


# -- processes


@_disturbance
def kill_workers(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """kill -9 of job workers at random points."""
    for _ in range(2):
        time.sleep(rng.uniform(0.2, max(0.3, seconds / 2)))
        stack.fleet.kill(rng.choice(stack.fleet.of("worker", "grading")))
        time.sleep(_KILL_SPACING)


@_disturbance
def kill_gateway(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """kill -9 of the gateway, its master or the process that serves; between commit and publish, with luck."""
    [gateway] = stack.fleet.of("gateway")
    for _ in range(2):
        time.sleep(rng.uniform(0.1, max(0.2, seconds / 2)))
        serving = _children(gateway.pid) if gateway.running else []
        stack.fleet.kill(gateway, pid=rng.choice(serving) if serving and rng.random() < 0.5 else None)


@_disturbance
def kill_schedulers(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """kill -9 of schedulers, and once of all of them."""
    time.sleep(rng.uniform(0.1, max(0.2, seconds / 2)))
    stack.fleet.kill(rng.choice(stack.fleet.of("scheduler")))
    time.sleep(rng.uniform(0.1, max(0.2, seconds / 2)))
    for scheduler in stack.fleet.of("scheduler"):
        stack.fleet.kill(scheduler)


@_disturbance
def pause_worker(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """SIGSTOP of a worker past its lease, then SIGCONT: what it still holds is another's by then."""
    time.sleep(rng.uniform(0.2, 0.8))
    stack.fleet.pause(rng.choice(stack.fleet.of("worker")), LEASE_SECONDS + 1.0)


@_disturbance
def roll_workers(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """SIGTERM of one worker after the other, each when the one before is back."""
    for worker in stack.fleet.of("worker", "grading"):
        stack.fleet.terminate(worker)
        _await(worker.ready, 15)


@_disturbance
def skew_clocks(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """Workers whose wall clocks are five minutes fast or slow. They keep them until they are next replaced."""
    for worker in stack.fleet.of("worker"):
        worker.skew = rng.choice((-300.0, 300.0))
        stack.fleet.log.note(f"clock {worker.skew:+.0f} s", worker.name)
        stack.fleet.terminate(worker)
    _await(lambda: all(w.ready() for w in stack.fleet.of("worker")), 20)
    for worker in stack.fleet.of("worker"):
        worker.skew = 0.0


# -- Redis


@_disturbance
def flush_redis(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """FLUSHALL, in mid-load."""
    for _ in range(2):
        time.sleep(rng.uniform(0.2, max(0.3, seconds / 2)))
        stack.fleet.log.note("FLUSHALL", "redis")
        with contextlib.suppress(redis.RedisError):
            stack.redis.flushall()


@_disturbance
def stop_redis(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """Redis stopped or killed, and back after a while with what it held."""
    time.sleep(rng.uniform(0.2, 0.6))
    with stack.servers_lock, stack.fleet.log.lasting("redis stopped", "redis"):
        stack.servers.stop_valkey(kill=rng.random() < 0.5)
        time.sleep(rng.uniform(0.5, max(0.6, seconds / 2)))
        stack.servers.start_valkey()


@_disturbance
def restart_redis_empty(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """Redis killed, and back with nothing in it."""
    time.sleep(rng.uniform(0.2, 0.8))
    with stack.servers_lock, stack.fleet.log.lasting("redis restarted empty", "redis"):
        stack.servers.stop_valkey(kill=True)
        stack.servers.start_valkey(empty=True)


# -- Postgres


@_disturbance
def restart_postgres_fast(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """Postgres stopped by SIGINT, which cuts all sessions off, and started again."""
    time.sleep(rng.uniform(0.2, 0.8))
    stack.restart_postgres(signal.SIGINT, rng.uniform(0.0, 0.8))


@_disturbance
def restart_postgres_immediate(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """Postgres stopped by SIGQUIT, as by a crash; it recovers from its write-ahead log."""
    time.sleep(rng.uniform(0.2, 0.8))
    stack.restart_postgres(signal.SIGQUIT, rng.uniform(0.0, 0.8))


@_disturbance
def terminate_backends(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """pg_terminate_backend of the services' and the submitter's sessions, a random part of them, in a loop."""
    with stack.fleet.log.lasting("pg_terminate_backend loop", "postgres"):
        for _ in _during(min(seconds, 2.0), 0.2):
            with contextlib.suppress(psycopg.Error), stack.connect() as conn:
                conn.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where (application_name like 'gradeline%%' or application_name = 'chaos-load') and random() < %s",
                    (rng.uniform(0.2, 0.8),),
                )


# -- wake-ups


@_disturbance
def duplicate_wakeups(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """Whoever submits rings five times for each job; and what lies in the queue lies there five times."""
    stack.fleet.log.note("each wake-up five times", "redis")
    stack.duplicating.set()
    seen: set[bytes] = set()
    try:
        for _ in _during(seconds, 0.02):
            with contextlib.suppress(redis.RedisError):
                fresh: list[Any] = [m for m in stack.redis.lrange(stack.queue_key, 0, -1) if m not in seen]
                seen.update(fresh)
                if fresh:
                    stack.redis.rpush(stack.queue_key, *fresh * 4)
    finally:
        stack.duplicating.clear()


@_disturbance
def drop_wakeups(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """The list of wake-ups deleted, again and again."""
    stack.fleet.log.note("wake-ups dropped", "redis")
    for _ in _during(seconds, 0.01):
        with contextlib.suppress(redis.RedisError):
            stack.redis.delete(stack.queue_key, f"{stack.queue_key}.msgs")


def _bent(job_id: str, **fields: Any) -> bytes:
    """A wake-up with some of its fields replaced."""
    _, body = wake_message(kinds.QUEUE, job_id)
    return json.dumps({**json.loads(body), **fields}).encode()


@_disturbance
def send_junk(stack: ChaosStack, rng: Random, seconds: float) -> None:
    """Messages that nobody can read, of actors and queues that do not exist, and for jobs that do not exist."""
    stack.fleet.log.note("junk messages", "redis")
    publisher = Publisher(WakeBroker(stack.redis))
    for _ in _during(seconds, 0.05):
        _, foreign = wake_message("elsewhere", str(ids.new_uuid()))
        bodies: list[bytes] = [
            rng.randbytes(rng.randint(1, 60)),
            b"",
            b"null",
            b"[]",
            b'{"queue_name": "chaos"}',
            foreign,
            _bent("no-uuid", actor_name="nobody"),
            _bent("x", args=(1, 2, 3), kwargs={"a": []}, options={"eta": "soon"}),
        ]
        with contextlib.suppress(redis.RedisError):
            for body in rng.sample(bodies, 3):
                raw_id = str(uuid4())
                stack.redis.hset(f"{stack.queue_key}.msgs", raw_id, body)  # type: ignore[arg-type]
                stack.redis.rpush(stack.queue_key, raw_id)
            stack.redis.rpush(stack.queue_key, "an id without a body")
            publisher.send([Wake(kinds.QUEUE, ids.new_uuid(), 1)] * 3)
            stack.redis.publish(bell_channel(kinds.QUEUE), b"\xff\xfe")


def _await(condition: Callable[[], bool], within: float) -> None:
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []
