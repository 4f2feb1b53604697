"""Claiming: the one place where priority, fairness, limits, pauses, isolation and time are weighed.

Order, in every form: priority, where {age} seconds of waiting lift a job one level (so a low job is level with new
high ones after twice that, and no stream of work starves it); then turn, the organisation's jobs in flight plus the
job's place among its organisation's (so organisations alternate, however many jobs one of them has); then age.

CLAIM serves queues without limits, in one statement and one round trip. Where there are limits, or jobs with a
concurrency key, it takes nothing and says ``limited``; then CLAIM_LIMITED does it in a transaction after LOCK, which
makes claimers of that queue take turns: what it counts is then the truth and stays so until it commits.
"""

from __future__ import annotations

from ..states import EventKind, Hold, allowed
from .parts import QUEUED, RUNNING, sources

__all__ = ["CLAIM", "CLAIM_ALONE", "CLAIM_LIMITED", "LOCK", "RESERVE", "UNHOLD", "UNHOLD_ALL"]

_LEVEL = "greatest(0, {priority} - floor(extract(epoch from now() - {run_at}) / %(age)s))::int"

# Jobs set apart because processes died with them, that nobody is making room for.
_ALONE = f"""select j.id from jobs j
     where j.queue = %(queue)s and j.status = {QUEUED} and j.hold = {Hold.ALONE.value} and j.run_at <= now()
       and (%(types)s::text[] is null or j.type = any(%(types)s))"""

# The organisations with work, by a loose index scan: one probe of jobs_claim_idx for each, not a pass over its jobs,
# so the cost follows the organisations at work and not the depth of the backlog. It is written so that no other plan
# is possible, whatever the statistics say (those of a fresh table are of no use).
_ORGS = f"""orgs as (
  (select org_id from jobs
    where queue = %(queue)s and status = {QUEUED} and hold = 0 {{when}}
    order by org_id, priority, run_at, id limit 1)
  union all
  select (select j.org_id from jobs j
           where j.queue = %(queue)s and j.status = {QUEUED} and j.hold = 0 and j.org_id > o.org_id
           order by j.org_id, j.priority, j.run_at, j.id limit 1)
    from orgs o where o.org_id is not null
), busy as (
  select org_id, count(*) as jobs from jobs where queue = %(queue)s and status = {RUNNING} group by org_id
)"""

# The first jobs of each organisation and priority, in the order of jobs_claim_idx.
_HEAD = f"""head as (
  select h.id, h.run_at, o.org_id, h.concurrency_key, h.concurrency_limit,
         {_LEVEL.format(priority="p.level", run_at="h.run_at")} as level
    from orgs o cross join (values (0), (1), (2)) as p (level)
    cross join lateral (
      select j.id, j.run_at, j.concurrency_key, j.concurrency_limit from jobs j
       where j.queue = %(queue)s and j.status = {QUEUED} and j.hold = 0 and j.org_id = o.org_id
         and j.priority = p.level and j.run_at <= now() and (%(types)s::text[] is null or j.type = any(%(types)s))
       order by j.run_at, j.id limit %(window)s
    ) h
   where o.org_id is not null
)"""

# Visits the ranked jobs one by one, best first, by their key; takes what nobody else has locked. What it picked is then
# found by an array: joined, a generic plan, which cannot know the limit, may prefer to read the whole table.
_PICKED = f"""picked as materialized (
  select l.id from (select id from {{ranked}} order by level, turn, run_at, id) r cross join lateral (
    select j.id from jobs j
     where j.id = r.id and j.status in {sources(EventKind.STARTED)} and j.run_at <= now() for update skip locked
  ) l
  limit {{limit}}
)"""

_CLAIMED = f"""claimed as (
  update jobs j
     set status = '{allowed(EventKind.STARTED).target.value}', attempt = j.attempt + 1,
         lease_until = now() + make_interval(secs => %(lease)s), worker_id = %(worker_id)s, started_at = now(),
         next_retry_at = null, progress = 0, step = null, event_seq = j.event_seq + 1
   where j.id = any(array(select id from picked))
  returning j.id, j.org_id, j.created_by, j.type, j.queue, j.priority, j.attempt, j.max_retries, j.retry_count,
            j.stall_count, j.crash_count, j.time_limit, j.batch_id, j.payload, j.created_at, j.run_at, j.started_at,
            j.event_seq, j.concurrency_key,
            j.has_children or j.batch_id is not null or j.webhook_url is not null or j.notify_email is not null
              or j.concurrency_key is not null as has_followers
), event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor)
  select id, event_seq, org_id, '{EventKind.STARTED.value}', attempt, 'worker:' || %(worker_id)s::text from claimed
)"""

# Claim the best due jobs of a queue, whichever message woke the worker. One row at least, with what the claimer
# should know; the jobs in its other columns, null when there are none.
CLAIM = f"""
with recursive gate as materialized (
  select exists (select from queue_limits where queue = %(queue)s)
      or exists (select from jobs where queue = %(queue)s and status = {QUEUED} and hold = 0
                    and concurrency_key is not null) as limited,
         exists ({_ALONE} and (j.lease_until is null or j.lease_until < now())) as alone
), {_ORGS.format(when="and not (select limited from gate)")}, {_HEAD}, ranked as (
  select h.id, h.level, h.run_at,
         coalesce(b.jobs, 0) + row_number() over (partition by h.org_id order by h.level, h.run_at, h.id) as turn
    from head h left join busy b on b.org_id = h.org_id
), {_PICKED.format(ranked="ranked", limit="%(limit)s")}, {_CLAIMED}
select g.limited, g.alone, 0 as held, null::float8 as wait, c.* from gate g left join claimed c on true
"""

LOCK = "select pg_advisory_xact_lock(hashtextextended('gradeline.claim:' || %(queue)s, 0))"

# Tokens of a bucket by now. statement_timestamp, not now(): the transaction may have waited for its lock.
_TOKENS = """least({limit}::float8, coalesce({bucket}.tokens, {limit})
           + greatest(0, coalesce(extract(epoch from statement_timestamp() - {bucket}.filled_at), 0))
             * {limit} / {period})"""
# What holds for a key: paused by any rule that fits it; each number by the most particular one that gives it (its own,
# else that of its name in any organisation, else that of any key).
_PARTICULAR = "order by l.org_id = {of}.org_id desc, l.concurrency_key <> '' desc"


def _most_particular(column: str) -> str:
    return f"(array_agg(l.{column} {_PARTICULAR}) filter (where l.{column} is not null))[1] as {column}"


_KEY_RULE = f"""select bool_or(l.paused_at is not null) as paused, {_most_particular("max_running")},
         {_most_particular("start_limit")}, {_most_particular("start_period")}
      from queue_limits l
     where l.queue = {{of}}.queue and l.scope = 'key'
       and l.org_id in ({{of}}.org_id, '00000000-0000-0000-0000-000000000000')
       and l.concurrency_key in ({{of}}.concurrency_key, '')"""
_KEY_RUNNING = f"""select count(*) as jobs from jobs x
     where x.queue = {{of}}.queue and x.org_id = {{of}}.org_id and x.concurrency_key = {{of}}.concurrency_key
       and x.status = {RUNNING} and x.concurrency_key is not null"""


def _key_room(of: str) -> str:
    """How many more jobs of the key ``of`` (queue, org_id, concurrency_key, concurrency_limit) may start now."""
    return f"""select least(case when r.paused then 0 end, coalesce(r.max_running, {of}.concurrency_limit) - n.jobs,
                  floor({_TOKENS.format(limit="r.start_limit", period="r.start_period", bucket="b")}))::bigint as room,
         r.start_limit, {_TOKENS.format(limit="r.start_limit", period="r.start_period", bucket="b")} as tokens
    from ({_KEY_RUNNING.format(of=of)}) n left join ({_KEY_RULE.format(of=of)}) r on true
    left join start_buckets b on r.start_limit is not null and b.queue = {of}.queue and b.scope = 'key'
         and b.org_id = {of}.org_id and b.concurrency_key = {of}.concurrency_key"""


def _limited(head: str, orgs: str, *, park: bool) -> str:
    tokens = _TOKENS.format(limit="r.start_limit", period="r.start_period", bucket="b")
    held = (
        f"""held as (
  update jobs j set hold = {Hold.KEY.value}
    from (select x.id from jobs x join keyed k on k.id = x.id
           where k.place > k.room and x.status = {QUEUED} and x.hold = 0 for update of x skip locked) b
   where j.id = b.id returning j.id
), """
        if park
        else "held as (select null::uuid as id where false), "
    )
    return f"""
with recursive {orgs}, whole as materialized (
  select least(%(limit)s, case when r.paused_at is not null then 0 end,
               r.max_running - (select coalesce(sum(jobs), 0) from busy), floor({tokens}))::bigint as room,
         r.start_limit, r.start_period, {tokens} as tokens
    from (select 1) one left join queue_limits r on r.queue = %(queue)s and r.scope = 'queue'
    left join start_buckets b on b.queue = r.queue and b.scope = 'queue'
), org as materialized (
  select o.org_id, coalesce(b.jobs, 0) as busy, t.start_limit, t.start_period, t.tokens,
         least(case when t.paused then 0 end, t.max_running - coalesce(b.jobs, 0), floor(t.tokens))::bigint as room
    from orgs o left join busy b on b.org_id = o.org_id
    cross join lateral (
      select r.*, {tokens} as tokens from (
        select bool_or(l.paused_at is not null) as paused,
               coalesce(min(l.max_running) filter (where l.org_id = o.org_id), min(l.max_running)) as max_running,
               coalesce(min(l.start_limit) filter (where l.org_id = o.org_id), min(l.start_limit)) as start_limit,
               coalesce(min(l.start_period) filter (where l.org_id = o.org_id), min(l.start_period)) as start_period
          from queue_limits l
         where l.queue = %(queue)s and l.scope = 'organisation'
           and l.org_id in (o.org_id, '00000000-0000-0000-0000-000000000000')
      ) r left join start_buckets b on r.start_limit is not null and b.queue = %(queue)s
               and b.scope = 'organisation' and b.org_id = o.org_id
    ) t
   where o.org_id is not null
), {head}, keyed as materialized (
  select h.*, r.room, r.start_limit, r.tokens,
         row_number() over (partition by h.org_id, h.concurrency_key order by h.level, h.run_at, h.id) as place
    from (select h.*, %(queue)s::text as queue from head h join org on org.org_id = h.org_id
           where h.concurrency_key is not null and coalesce(org.room, 1) > 0) h
    cross join lateral ({_key_room("h")}) r
), open as (
  select h.id, h.org_id, h.level, h.run_at from head h where h.concurrency_key is null
  union all
  select k.id, k.org_id, k.level, k.run_at from keyed k where k.place <= k.room
), ranked as (
  select o.id, o.level, o.run_at, g.busy + o.place as turn
    from (select open.*, row_number() over (partition by org_id order by level, run_at, id) as place from open) o
    join org g on g.org_id = o.org_id
   where o.place <= coalesce(g.room, o.place)
), {_PICKED.format(ranked="ranked", limit="greatest(0, (select room from whole))")}, {held}{_CLAIMED}, spent as (
  select 'queue' as scope, '00000000-0000-0000-0000-000000000000'::uuid as org_id, '' as concurrency_key,
         w.tokens - (select count(*) from claimed) as tokens, w.start_limit, w.start_period
    from whole w where w.start_limit is not null
  union all
  select 'organisation', g.org_id, '', g.tokens - (select count(*) from claimed c where c.org_id = g.org_id),
         g.start_limit, g.start_period
    from org g where g.start_limit is not null
  union all
  select 'key', c.org_id, c.concurrency_key, min(k.tokens) - count(*), null, null
    from claimed c join keyed k on k.id = c.id where k.start_limit is not null group by c.org_id, c.concurrency_key
), bucket as (
  insert into start_buckets (queue, scope, org_id, concurrency_key, tokens, filled_at)
  select %(queue)s, scope, org_id, concurrency_key, tokens, statement_timestamp() from spent
  on conflict (queue, scope, org_id, concurrency_key)
  do update set tokens = excluded.tokens, filled_at = excluded.filled_at
)
select true as limited, false as alone, (select count(*) from held)::int as held,
       (select min((1 - s.tokens) * s.start_period / s.start_limit) from spent s where s.tokens < 1)::float8 as wait,
       c.*
  from (select 1) one left join claimed c on true
"""


# The same under limits. ``held``: how many jobs were found whose concurrency key is taken; they are set apart (Hold)
# so that the next claim looks past them. ``wait``: seconds until a start limit allows the next start.
CLAIM_LIMITED = _limited(_HEAD, _ORGS.format(when=""), park=True)

# The best job of those that run alone, for a process that runs nothing. One reserved for it comes first.
CLAIM_ALONE = _limited(
    f"""head as (
  select j.id, j.run_at, j.org_id, j.concurrency_key, j.concurrency_limit,
         case when j.worker_id = %(worker_id)s then -1
              else {_LEVEL.format(priority="j.priority", run_at="j.run_at")} end as level
    from jobs j
   where j.id in ({_ALONE} and (j.lease_until is null or j.lease_until < now() or j.worker_id = %(worker_id)s)
                   order by j.worker_id = %(worker_id)s desc nulls last, j.priority, j.run_at, j.id limit %(window)s)
)""",
    f"""orgs as (
  select distinct j.org_id from jobs j
   where j.queue = %(queue)s and j.status = {QUEUED} and j.hold = {Hold.ALONE.value} and j.run_at <= now()
), busy as (
  select org_id, count(*) as jobs from jobs where queue = %(queue)s and status = {RUNNING} group by org_id
)""",
    park=False,
)

# Say that this process is making room for the best job that runs alone, so that no other process does.
# A queued row's lease is such a reservation; it lapses by itself.
RESERVE = f"""
update jobs j set worker_id = %(worker_id)s, lease_until = now() + make_interval(secs => %(seconds)s)
 where j.id = ({_ALONE} and (j.lease_until is null or j.lease_until < now() or j.worker_id = %(worker_id)s)
                order by j.priority, j.run_at, j.id limit 1 for update skip locked)
returning j.id
"""


def _unhold(keys: str) -> str:
    def line(hold: Hold) -> str:
        keyed = " and j.concurrency_key is not null" if hold is Hold.NONE else ""
        level = _LEVEL.format(priority="p.level", run_at="h.run_at")
        return f"""select h.id, {hold.value} as hold, h.run_at, {level} as level
            from (values (0), (1), (2)) as p (level) cross join lateral (
              select j.id, j.run_at from jobs j
               where j.queue = r.queue and j.status = {QUEUED} and j.hold = {hold.value} and j.org_id = r.org_id
                 and j.concurrency_key = r.concurrency_key{keyed} and j.priority = p.level and j.run_at <= now()
               order by j.run_at, j.id limit greatest(0, r.room)
            ) h"""

    return f"""
with key as materialized ({keys}), room as materialized (
  select k.queue, k.org_id, k.concurrency_key, r.room
    from (select k.*, (select j.concurrency_limit from jobs j
                        where j.queue = k.queue and j.status = {QUEUED} and j.hold = {Hold.KEY.value}
                          and j.org_id = k.org_id and j.concurrency_key = k.concurrency_key
                        order by j.priority, j.run_at, j.id limit 1) as concurrency_limit from key k) k
    cross join lateral ({_key_room("k")}) r
), next as (
  select n.id, n.hold from room r cross join lateral (
    select l.id, l.hold from ({line(Hold.KEY)} union all {line(Hold.NONE)}) l
     order by l.level, l.run_at, l.id limit greatest(0, r.room)
  ) n
)
update jobs j set hold = {Hold.NONE.value}
  from (select j.id from jobs j where j.id = any(array(select id from next where hold = {Hold.KEY.value}))
           and j.status = {QUEUED} and j.hold = {Hold.KEY.value} for update skip locked) b
 where j.id = b.id
returning j.id, j.queue, j.priority, j.run_at <= now() as due
"""


# Let held jobs of these keys back among those that a claim looks at: those that are among the first, in the claim's own
# order, of all that are due, as many as may run. Whether they may is decided
# again by the claim, so this need be neither exact nor exclusive.
UNHOLD = _unhold(
    "select distinct * from unnest(%(queues)s::text[], %(org_ids)s::uuid[], %(keys)s::text[]) "
    "as t (queue, org_id, concurrency_key)"
)
# The same for every key that holds a job: what finds those that were held in the moment their key came free.
UNHOLD_ALL = _unhold(
    f"""select distinct queue, org_id, concurrency_key from jobs
     where status = {QUEUED} and hold = {Hold.KEY.value}"""
)
