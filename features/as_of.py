"""The instant a run is about where nobody names one: the end of the last day that the events have as a whole.

On a schedule it is the scheduled instant where events go on until then.
docs/as-of.md has a table of the cases, and tests/test_as_of.py each of them in rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from statistics import median
from zoneinfo import ZoneInfo

import ibis
import ibis.expr.types as ir

from features.events import epoch_us, utc_to_local
from features.table import TIME
from features.zones import day_of, start_of_day, write_instant

DAY = timedelta(days=1)
RECENT_DAYS = 28
"""How many days with events say what is usual."""
WEEK_DAYS = 7
"""A pause up to that is a holiday; and so many days with events there are before a level is known."""
ALONE_BY = 2
"""How many times the longest pause before it is the one that sets days at the end apart."""
DRIBBLE_SHARE = 0.01
LIVE_WITHIN = timedelta(hours=1)
"""Events that are there up to so long before a scheduled instant go on until then."""
SLOT_US = 15 * 60 * 1_000_000
"""Every zone's days begin with one of these: the calendar is asked by slot, not by event."""
GIVEN = "given"
# What has a day in every zone.
FIRST, LAST = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)


@dataclass(frozen=True)
class Day:
    """Count the events of a local day, and say when the first and the last came, and by when all were known."""

    day: date
    events: int
    first_at: datetime
    last_at: datetime
    known_at: datetime


@dataclass(frozen=True)
class Decision:
    """Say what a run is about, and why.

    `newest_at` is the last event before `as_of`, of clocks that are right; None without one. `due` is the instant at
    which events were to be new: that of the schedule; else `as_of`. `now` is what was taken for the present. `notes`
    say what a person may want to decide otherwise, and how.
    """

    as_of: datetime
    why: str
    newest_at: datetime | None
    due: datetime
    now: datetime
    notes: tuple[str, ...] = ()


def days_of(events: ir.Table, time_zone: str) -> list[Day]:
    """Aggregate EVENTS by local day, in order; days without any are not there."""
    sane = events.filter(events.occurred_at.between(ibis.literal(FIRST, TIME), ibis.literal(LAST, TIME)))
    by_slot = sane.group_by(slot=epoch_us(sane.occurred_at) // SLOT_US).agg(
        events=lambda t: t.count(),
        first_at=sane.occurred_at.min(),
        last_at=sane.occurred_at.max(),
        known_at=sane.ingested_at.max(),
    )
    by_day = by_slot.group_by(day=utc_to_local(ibis.literal(time_zone), by_slot.first_at).date()).agg(
        events=by_slot.events.sum().cast("int64"),
        first_at=by_slot.first_at.min(),
        last_at=by_slot.last_at.max(),
        known_at=by_slot.known_at.max(),
    )
    return [Day(**row) for row in by_day.order_by("day").to_pyarrow().to_pylist()]


def choose_as_of(
    days: Sequence[Day],
    time_zone: str,
    now: datetime,
    *,
    scheduled_at: datetime | None = None,
    given: datetime | None = None,
    day_level: bool = False,
) -> Decision:
    """Decide what a run is about, from the events by local day, in order.

    A given instant is taken as it is. `day_level` says that the source has dates only, so that its days are whole.
    Days are of events known at the scheduled instant, or else at `now`: later days are not looked at, and a day that is
    not over by then is not whole. Without any day up to then, it is the beginning of that day.
    """
    now = (scheduled_at or now).astimezone(UTC)
    if given is not None:
        given = given.astimezone(UTC)
        bulk, _ = _part([day for day in days if day.first_at < given])
        return Decision(given, GIVEN, min(_newest(bulk, time_zone, day_level), given) if bulk else None, given, now)
    today = day_of(now, time_zone)
    bulk, ahead = _part([day for day in days if day.day <= today])
    if not bulk:
        as_of = start_of_day(today, time_zone)
        return Decision(as_of, "there are no events before", None, now if scheduled_at else as_of, now)
    last, whole = bulk[-1], bulk
    doubt = _doubt(bulk, time_zone, now, day_level)
    if len(bulk) > 1 and doubt:
        whole, as_of = bulk[:-1], start_of_day(last.day, time_zone)
        why = f"the end of the last whole day: {last.day} may go on, as {doubt}"
    else:
        as_of = start_of_day(last.day + DAY, time_zone)
        late = "the source has whole days" if day_level else f"{_last_event(last, time_zone)}, as late as on other days"
        why = f"the end of {last.day}, " + (f"the last day: {late}" if len(bulk) > 1 else "the only day")
    if scheduled_at is not None:
        live = None if day_level else _go_on(last, now, time_zone)
        if reason := live or _not_known(whole[-1], as_of, now, time_zone):
            whole, as_of, why = bulk, now, f"the scheduled instant: {reason}"
    newest_at = min(_newest(whole, time_zone, day_level), as_of)
    notes = [note for note in (_note_ahead(bulk, ahead), _note_dribble(bulk)) if note]
    due = now if scheduled_at else as_of
    return Decision(as_of, why, newest_at, due, now, (*notes,))


def find_lag(newest_at: datetime | None, due: datetime, max_lag_days: float, time_zone: str) -> str | None:
    """Say that the newest event is older than it may be at the instant at which events were to be new.

    A lag of exactly the limit is none.
    """
    if newest_at is None or due - newest_at <= timedelta(days=max_lag_days):
        return None
    lag_days = (due - newest_at) / DAY
    return (
        f"the newest event is of {write_instant(newest_at, time_zone)}, {lag_days:,.1f} days before "
        f"{write_instant(due, time_zone)}; at most {max_lag_days:g} (publish.max_lag_days)"
    )


def _go_on(last: Day, due: datetime, time_zone: str) -> str | None:
    """Say that events go on until a scheduled instant, if they do."""
    if due - last.last_at > LIVE_WITHIN:
        return None
    return f"events go on until {write_instant(last.last_at, time_zone)}"


def _not_known(whole: Day, end: datetime, due: datetime, time_zone: str) -> str | None:
    """Say that the last whole day was not known at its end, but is at a scheduled instant within a day, if so."""
    if end > due:
        return f"{whole.day}, the only day, is not over"
    if whole.known_at <= end or due - end > DAY:
        return None
    return f"events of {whole.day} were known by {write_instant(whole.known_at, time_zone)} only"


def _newest(days: Sequence[Day], time_zone: str, day_level: bool) -> datetime:
    """Return the last event of days; where there are dates only, as late as it may have been."""
    last = days[-1]
    return start_of_day(last.day + DAY, time_zone) - timedelta(microseconds=1) if day_level else last.last_at


def _part(days: Sequence[Day]) -> tuple[Sequence[Day], Sequence[Day]]:
    """Part the days of right clocks from those of clocks ahead.

    Those are at the end, after a pause that the days before do not show: longer than a week, and than twice their
    longest. They have fewer events than the days before, and either each of them stands alone, or none has more than
    half of what is usual; otherwise activity has resumed.
    """
    longest = 0
    for place in range(1, len(days)):
        pause = (days[place].day - days[place - 1].day).days
        is_apart = place > 1 and pause > max(WEEK_DAYS, ALONE_BY * longest)
        if is_apart and _is_stray(days[:place], days[place:]):
            return days[:place], days[place:]
        longest = max(longest, pause)
    return days, []


def _is_stray(bulk: Sequence[Day], ahead: Sequence[Day]) -> bool:
    if sum(day.events for day in ahead) >= sum(day.events for day in bulk):
        return False
    stand_alone = all((after.day - day.day).days > WEEK_DAYS for day, after in pairwise(ahead))
    return stand_alone or max(day.events for day in ahead) <= _level(bulk) / 2


def _level(days: Sequence[Day]) -> float:
    """Return the events of a usual day: the median of the last ones."""
    return median(day.events for day in days[-RECENT_DAYS:])


def _doubt(days: Sequence[Day], time_zone: str, now: datetime, day_level: bool) -> str | None:
    """Say why the last day is perhaps not whole, by the days before it; None where it looks whole."""
    last, before = days[-1], days[-RECENT_DAYS - 1 : -1]
    if start_of_day(last.day + DAY, time_zone) > now:
        return f"it is not over at {write_instant(now, time_zone)}"
    if day_level or not before:
        return None
    earliest = min(_clock(day.last_at, time_zone) for day in before)
    if _clock(last.last_at, time_zone) < earliest:
        return f"{_last_event(last, time_zone)}, earlier than on any day before (from {earliest:%H:%M} on)"
    fewest = min(day.events for day in before)
    if last.events < fewest / 2:
        return f"it has {last.events:,} events, and no day before fewer than {fewest:,}"
    return None


def _clock(instant: datetime, time_zone: str) -> time:
    return instant.astimezone(ZoneInfo(time_zone)).time()


def _last_event(day: Day, time_zone: str) -> str:
    return f"its last event comes at {_clock(day.last_at, time_zone):%H:%M}"


def _events(count: int) -> str:
    return f"{count:,} event{'' if count == 1 else 's'}"


def _note_ahead(bulk: Sequence[Day], ahead: Sequence[Day]) -> str | None:
    if not ahead:
        return None
    count, pause = sum(day.events for day in ahead), (ahead[0].day - bulk[-1].day).days
    stand = f"{_events(count)} {'stands' if count == 1 else 'stand'} alone"
    until = "" if len(ahead) == 1 else f" to {ahead[-1].day}"
    return (
        f"{stand}, on {ahead[0].day}{until}, {pause:,} days after all others: of a clock that is ahead, it seems, "
        f"so the data ends with {bulk[-1].day}; if they are right, say --as-of {ahead[-1].day + DAY}"
    )


def _note_dribble(days: Sequence[Day]) -> str | None:
    """Say since when there is less than DRIBBLE_SHARE of what was usual, for longer than it was before, if it is."""
    tail = sum(day.events for day in days[WEEK_DAYS:])
    for place in range(WEEK_DAYS, len(days)):
        before, first = days[max(0, place - RECENT_DAYS) : place], days[place]
        tail_days = (days[-1].day - before[-1].day).days
        few = DRIBBLE_SHARE * _level(before)
        is_low = max(tail / tail_days, first.events / (first.day - before[-1].day).days) < few
        usual = [day.day for day in before if day.events >= few]
        pauses = ((after - day).days - 1 for day, after in pairwise(usual))
        if is_low and tail_days > max([1, *pauses]):
            since = before[-1].day + DAY
            return (
                f"since {since} there {'was' if tail == 1 else 'were'} {_events(tail)} in {tail_days} days, less than "
                f"1 % of the {_level(before):,.0f} a day before: if a source has stopped, say --as-of {since}"
            )
        tail -= first.events
    return None
