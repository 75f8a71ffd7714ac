"""Increments: the sessions that changed events touch are made again, and equal those of a rebuild row for row.

Changed events are those that came, late ones among them, and those that went (a twin that was known earlier took their
place). A session is touched if an event changed within the gap of it. Sessions that are not touched are further than
the gap from every changed event, so making only the touched ones from their events and the new ones gives what making
all would. The cap is why a touched session takes along those that follow it within the gap: where one that the cap
ended changes, the next may begin elsewhere. Those before it stay, for their cuts do not depend on what came after.
"""

from collections.abc import Callable, Collection, Generator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from features import duckdb_chains
from features.aliases import ALIASES, alias
from features.engines import DuckDB
from features.events import EVENTS, epoch_us
from features.lake import Lake
from features.sessions import (
    CAP,
    SESSIONS,
    advance,
    chains_of,
    continue_chains,
    leave_lengths_open,
    lookback,
    sessionize,
    us,
    us_between,
    within,
)
from features.table import ContractError, Table, forget_materialized, materialize, stack
from features.values import is_no_day

MATTERS = ("event_name", "page", "revenue", "source", "campaign", "device", "country")
"""The columns of EVENTS that sessions are made of, beside the id, the user and the time."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DEFINITION = 2
"""Counts up when sessions are made in another way: those of before are then made anew."""
BYTES_PER_EVENT = 500
MOST_EVENTS_IN_CHUNK = 2_000_000
MOST_DAYS_SHARE = 0.5
NONE, DAY = timedelta(0), timedelta(days=1)

Read = Callable[[Collection[datetime] | None], ir.Table]
"""Return the rows of a table on some days, or all."""
Progress = Callable[[datetime, datetime], None]
"""Be told the day that is being worked on, and the last one."""


@dataclass(frozen=True)
class Sessionized:
    """Count the sessions: all, those that are new, those of before that changed; of these, those whose id is gone."""

    sessions: int
    added: int
    revised: int
    aliased: int
    rebuilt: bool
    changed: bool


@dataclass(frozen=True)
class Revision:
    """Hold what a rebuild would change in SESSIONS: rows that go, as they were, and rows that come."""

    gone: ir.Table
    made: ir.Table

    @property
    def days(self) -> list[datetime]:
        """List the days of either."""
        return sorted({*days_of(self.gone), *days_of(self.made)})


@ibis.udf.scalar.builtin(
    name="content_hash",
    signature=((dt.Struct({name: EVENTS.schema[name].copy(nullable=True) for name in MATTERS}),), dt.int64),
)
def content_hash(content: ir.StructValue) -> ir.IntegerValue:
    """Return a hash that is the same within a run; the engines say which."""


def update_sessions(
    lake: Lake, gap: timedelta, on_progress: Progress = lambda day, last_day: None, day_level: bool = False
) -> Sessionized:
    """Make SESSIONS what the EVENTS of a lake say: those that changed events touch, or all.

    All are made anew, by chunks of days that fit into memory, where there are none, the gap or the definition is
    another, most days changed, or the events of then are no longer known. Either way the table is the same.
    `day_level` says that the source has days, not times.
    Raises ContractError where events of an earlier release are of no instant, which an ingest rejects.
    """
    if any(is_no_day(day) for day in lake.partitions(EVENTS)):
        raise ContractError(
            f"{EVENTS.name}: some are of times out of range; run `habitus ingest CONFIG`, which rejects them"
        )
    days = _days_to_revise(lake, gap, day_level)
    return _rebuild(lake, gap, day_level, on_progress) if days is None else _revise(lake, gap, day_level, days)


def is_current(lake: Lake, gap: timedelta, day_level: bool = False) -> bool:
    """Tell whether the SESSIONS of a lake are those of its EVENTS, this gap, and a source of days or of times."""
    return lake.has(SESSIONS) and _days_to_revise(lake, gap, day_level) == []


def follow_erasure(lake: Lake) -> None:
    """Let SESSIONS say that they are those of EVENTS without users who were erased, if they were those of them before.

    EVENTS' last commit says which version it was made from; sessions of one user are none of another's.
    """
    made_of = lake.origin(SESSIONS)
    erased_from = lake.origin(EVENTS).get("erased_from")
    if "events_version" in made_of and lake.changed(EVENTS, made_of["events_version"], erased_from) == []:
        lake.note(SESSIONS, {**made_of, "events_version": lake.version(EVENTS)})


def revise(
    changed: ir.Table, read_events: Read, read_sessions: Read, gap: timedelta, day_level: bool = False
) -> Revision:
    """Make those sessions again that changed events touch.

    `changed` has the user_id and occurred_at of the events that came or went, and `read_events` gives EVENTS as they
    are now. Rows that turn out as they were are in neither table of the revision.
    """
    disturbed = materialize(_intervals(changed, gap))
    sessions = read_sessions(days_of(disturbed, before=CAP + gap, after=gap))
    touched = materialize(_touched(disturbed, sessions, gap))
    if touched.filter(_may_go_on(touched, gap)).count().to_pyarrow().as_py():
        touched = materialize(_with_followers(touched, read_sessions(None), gap))
    region = materialize(_hull(stack(disturbed, touched.select(*disturbed.columns))))
    events = EVENTS.check(within(read_events(days_of(region)), region))
    made = materialize(sessionize(events, gap, day_level))
    same = materialize(_same(SESSIONS, touched, made))
    return Revision(
        gone=materialize(touched.anti_join(same, SESSIONS.key)),
        made=materialize(made.anti_join(same, SESSIONS.key)),
    )


def changed_between(before: ir.Table, after: ir.Table) -> ir.Table:
    """Return user_id and occurred_at of the events that only one of two versions of EVENTS has, or has otherwise.

    What sessions are made of is compared by its hash, with 64 bits; keys, users and times as they are.
    """
    here, there = (
        side.select(
            "event_id",
            "user_id",
            "occurred_at",
            content=content_hash(ibis.struct({name: side[name] for name in MATTERS})),
        )
        for side in (after, before)
    )
    both = here.outer_join(there, "event_id", lname="{name}_after", rname="{name}_before")
    compared = ("user_id", "occurred_at", "content")
    is_same = ibis.and_(*(both[f"{name}_after"] == both[f"{name}_before"] for name in compared)).fill_null(False)
    unequal = materialize(both.filter(~is_same))
    after_side, before_side = (
        unequal.select(user_id=unequal[f"user_id_{side}"], occurred_at=unequal[f"occurred_at_{side}"])
        for side in ("after", "before")
    )
    changed = stack(after_side, before_side)
    return changed.filter(changed.user_id.notnull())


def days_of(intervals: ir.Table, before: timedelta = NONE, after: timedelta = NONE) -> list[datetime]:
    """List the UTC days on which intervals are, or the time so long before and after them."""
    first = (epoch_us(intervals.started_at) - us(before)) // us(DAY)
    last = (epoch_us(intervals.ended_at) + us(after)) // us(DAY)
    spans = intervals.select(first=first, last=last).distinct().to_pyarrow().to_pylist()
    numbers = {number for span in spans for number in range(span["first"], span["last"] + 1)}
    return [EPOCH + number * DAY for number in sorted(numbers)]


def _origin(lake: Lake, gap: timedelta, day_level: bool) -> dict[str, int]:
    """Say what the sessions of a commit are made of."""
    gap_us = gap // timedelta(microseconds=1)
    of_what = {"definition": DEFINITION, "gap_us": gap_us, "events_version": lake.version(EVENTS)}
    return of_what | ({"day_level": 1} if day_level else {})


def _days_to_revise(lake: Lake, gap: timedelta, day_level: bool) -> list[datetime] | None:
    """List the days whose events changed since the sessions were made; None if sessions had better be made anew."""
    if not lake.has(EVENTS) or not lake.has(SESSIONS):
        return None
    now, then = _origin(lake, gap, day_level), lake.origin(SESSIONS)
    if {**then, "events_version": now["events_version"]} != now:
        return None
    days = lake.changed(EVENTS, since=then["events_version"])
    return None if days is None or len(days) > MOST_DAYS_SHARE * len(lake.partitions(EVENTS)) + 1 else days


def _rebuild(lake: Lake, gap: timedelta, day_level: bool, on_progress: Progress) -> Sessionized:
    """Make all sessions, by chunks of days that fit into memory."""
    origin = _origin(lake, gap, day_level) if lake.has(EVENTS) else None
    with closing(_parts(lake, gap, on_progress)) as parts:
        told = ((leave_lengths_open(part) if day_level else part, until) for part, until in parts)
        changed = lake.write_in_parts(SESSIONS, told, origin)
    if lake.has(ALIASES):
        kept = lake.read(ALIASES).semi_join(lake.read(SESSIONS), "session_id")
        lake.write(ALIASES, kept)
    count = lake.row_count(SESSIONS)
    return Sessionized(count, added=count, revised=0, aliased=0, rebuilt=True, changed=changed)


def _parts(lake: Lake, gap: timedelta, on_progress: Progress) -> Generator[tuple[ir.Table, datetime], None, None]:
    """Yield sessions as they are over, each time with the day before which there are no more to come."""
    row_counts = lake.partitions(EVENTS)
    most_rows = MOST_EVENTS_IN_CHUNK
    if lake.memory_limit_bytes is None:  # another engine's matter, and it had better see all at once
        most_rows = max(sum(row_counts.values()), 1)
    else:
        most_rows = min(most_rows, lake.memory_limit_bytes // BYTES_PER_EVENT)
    chunks = _chunks(row_counts, most_rows)
    go_on = duckdb_chains.continue_chains if isinstance(lake.engine, DuckDB) else continue_chains
    opened = None
    with closing(_chains(lake, chunks, gap)) as all_chains:  # while the engine is still there
        for number, (chunk, chains) in enumerate(zip(chunks, all_chains, strict=True)):
            on_progress(chunk[-1], chunks[-1][-1])
            border = chunks[number + 1][0] if chunk is not chunks[-1] else None
            since = chunk[0] - lookback(gap) - DAY
            recent = lake.read(EVENTS, only=[day for day in row_counts if since < day <= chunk[-1]])
            closed, opened = advance(chains, recent, opened, border, gap, go_on)
            days = days_of(opened) if opened is not None else []
            yield closed, min(days, default=border or chunk[-1] + DAY)
            forget_materialized(lake.engine, keep=opened)


def _chains(lake: Lake, chunks: list[list[datetime]], gap: timedelta) -> Generator[ir.Table, None, None]:
    """Yield the chains of each chunk; with DuckDB, those of the next are being made meanwhile."""
    if isinstance(lake.engine, DuckDB):
        return duckdb_chains.make_chains(lake.engine, [lake.files(EVENTS, only=chunk) for chunk in chunks], gap)
    return (chains_of(lake.read(EVENTS, only=chunk), gap) for chunk in chunks)


def _chunks(row_counts: dict[datetime, int], most_rows: int) -> list[list[datetime]]:
    """Put days together, in order, as long as they have no more rows than that; a day is never divided."""
    chunks: list[list[datetime]] = []
    rows = 0
    for day, row_count in row_counts.items():
        if not chunks or rows + row_count > most_rows:
            chunks.append([])
            rows = 0
        chunks[-1].append(day)
        rows += row_count
    return chunks


def _revise(lake: Lake, gap: timedelta, day_level: bool, days: list[datetime]) -> Sessionized:
    """Make those sessions again that changed events touch, and write the days on which any is another."""
    if not days:
        return Sessionized(lake.row_count(SESSIONS), 0, 0, 0, rebuilt=False, changed=False)
    origin, then = _origin(lake, gap, day_level), lake.origin(SESSIONS)["events_version"]
    changes = changed_between(lake.read(EVENTS, then, only=days), lake.read(EVENTS, only=days))
    read_events, read_sessions = partial(lake.read, EVENTS, None), partial(lake.read, SESSIONS, None)
    revision = revise(changes, read_events, read_sessions, gap, day_level)
    gone, made = revision.gone, revision.made
    vanished = materialize(gone.anti_join(made, "session_id"))
    counts = {"added": made.anti_join(gone, "session_id"), "revised": gone, "aliased": vanished}
    counted = {name: int(rows.count().to_pyarrow().as_py()) for name, rows in counts.items()}
    rows = stack(made, lake.read(SESSIONS, only=revision.days).anti_join(gone, "session_id"))
    # Aliases come first: after a crash in between, sessions are still those of before, and the same aliases come again.
    lake.write(ALIASES, alias(lake.read(ALIASES), vanished, made))
    changed = lake.write(SESSIONS, rows, only=revision.days, origin=origin)
    return Sessionized(lake.row_count(SESSIONS), **counted, rebuilt=False, changed=changed)


def _intervals(changed: ir.Table, gap: timedelta) -> ir.Table:
    """Aggregate instants by user and slot of time: user_id, started_at, ended_at."""
    slotted = changed.mutate(slot=epoch_us(changed.occurred_at) // us(gap))
    bounds = slotted.group_by("user_id", "slot").agg(
        started_at=slotted.occurred_at.min(), ended_at=slotted.occurred_at.max()
    )
    return bounds.drop("slot")


def _touched(intervals: ir.Table, sessions: ir.Table, gap: timedelta) -> ir.Table:
    """Return the SESSIONS that are no further than the gap from an interval of their user."""
    bounds = intervals.select("user_id", first_at=intervals.started_at, last_at=intervals.ended_at)
    near = sessions.join(
        bounds,
        [
            sessions.user_id == bounds.user_id,
            us_between(sessions.ended_at, bounds.first_at) <= us(gap),
            us_between(bounds.last_at, sessions.started_at) <= us(gap),
        ],
    )
    return sessions.semi_join(near.select("session_id").distinct(), "session_id")


def _may_go_on(sessions: ir.Table, gap: timedelta) -> ir.BooleanValue:
    """Tell which SESSIONS are so long that the cap may have ended them: the next begins after it, within the gap."""
    return us_between(sessions.started_at, sessions.ended_at) >= us(CAP) - us(gap)


def _with_followers(touched: ir.Table, sessions: ir.Table, gap: timedelta) -> ir.Table:
    """Return SESSIONS that are touched, and those that follow one within the gap, and those that follow these."""
    of_users = sessions.semi_join(touched, "user_id")
    in_order = ibis.window(group_by="user_id", order_by="started_at")
    pause_us = us_between(of_users.ended_at.lag().over(in_order), of_users.started_at)
    begun = of_users.mutate(begins=(pause_us > us(gap)).fill_null(True).cast("int64"))
    chained = begun.mutate(chain=begun.begins.cumsum().over(in_order))
    ids = touched.select(touched_id=touched.session_id)
    marked = chained.left_join(ids, chained.session_id == ids.touched_id)
    so_far = ibis.window(group_by=["user_id", "chain"], order_by="started_at", preceding=(None, 0))
    reached = marked.mutate(reached=marked.touched_id.count().over(so_far))
    return reached.filter(reached.reached > 0).select(*sessions.columns)


def _hull(intervals: ir.Table) -> ir.Table:
    """Fuse the intervals of a user that overlap: user_id, started_at, ended_at.

    An interval may lie inside an older one, so what counts is the latest end so far, not the one before.
    """
    so_far = ibis.window(group_by="user_id", order_by=["started_at", "ended_at"], preceding=(None, 0))
    before = ibis.window(group_by="user_id", order_by=["started_at", "ended_at"], preceding=(None, 1))
    latest_end = intervals.ended_at.max().over(before)
    begun = intervals.mutate(begins=(intervals.started_at > latest_end).fill_null(True).cast("int64"))
    numbered = begun.mutate(number=begun.begins.sum().over(so_far))
    fused = numbered.group_by("user_id", "number")
    return fused.agg(started_at=numbered.started_at.min(), ended_at=numbered.ended_at.max()).drop("number")


def _same(table: Table, left: ir.Table, right: ir.Table) -> ir.Table:
    """Return the keys of the rows that two versions of a table both have."""
    others = [name for name in table.schema.names if name not in table.key]
    both = left.inner_join(right, table.key, rname="{name}_right")
    is_same = ibis.and_(*(both[name].identical_to(both[f"{name}_right"]) for name in others))
    return both.filter(is_same).select(*table.key)
