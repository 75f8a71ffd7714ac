"""Time travel: take a snapshot again after what came later was changed. No feature may notice.

What takes a snapshot is a function of EVENTS, their SESSIONS and an instant, so a feature of one's own is tried in the
same way as the features of Habitus: see `with_features`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends import BaseBackend

from features.events import ADD_TO_CART, EVENTS, NUMBERS, PAGE_VIEW, PURCHASE, REFUND, SEARCH, SUPPORT_VIEW, TEXTS
from features.sessions import sessionize
from features.table import MATERIALIZED, TIME, ContractError, materialize, stack

Take = Callable[[ir.Table, ir.Table, datetime], ir.Table]
"""Make of EVENTS, their SESSIONS and as_of a row for each user: `user_id`, and a column for each feature."""
Change = Callable[[ir.Table, datetime], ir.Table]
"""Make of EVENTS others, of which the same was known at as_of."""

KEY = ("user_id", "as_of")
TOLERANCE = 1e-9
MADE_UP = "made up"
MADE_UP_NAMES = (
    *(PAGE_VIEW, SEARCH, "product_view", ADD_TO_CART, "checkout_start", PURCHASE, REFUND),
    *(SUPPORT_VIEW, "click", "sign_up", "login"),
)
MICROSECOND = timedelta(microseconds=1)
FAR = timedelta(days=400)
AFTER = (timedelta(0), MICROSECOND, timedelta(days=3))
BEFORE = (MICROSECOND, timedelta(minutes=5), timedelta(days=3))


class ExtraFeature(Protocol):
    """Make a feature of EVENTS, SESSIONS and as_of: a table with a row for each user, `user_id` and the feature.

    The column is called like the function, the first sentence of whose docstring is its title. Users without a row
    have null. All events and sessions are given, those after as_of too: see `known` and `sessions.sessions_at`.
    """

    __name__: str

    def __call__(self, events: ir.Table, sessions: ir.Table, as_of: datetime, /) -> ir.Table:
        """Return user_id and the feature."""


@dataclass(frozen=True)
class Changed:
    """Name a feature that knows the future: for how many users it changed, and by which change of the future.

    The feature `user_id` stands for users who came into the snapshot or left it.
    """

    feature: str
    as_of: datetime
    change: str
    users: int


@dataclass(frozen=True)
class Journey:
    """Hold what was tried at an instant: users and features of the snapshot, events after it and events made up."""

    as_of: datetime
    users: int
    features: tuple[str, ...]
    events_after: int
    events_made_up: int
    changed: tuple[Changed, ...]


@contextmanager
def forgetting(engine: BaseBackend) -> Iterator[None]:
    """Drop, at the end, what was materialized meanwhile: a journey takes many snapshots."""
    before = set(engine.list_tables(like=f"^{MATERIALIZED}"))
    try:
        yield
    finally:
        for name in set(engine.list_tables(like=f"^{MATERIALIZED}")) - before:
            engine.drop_table(name)


def known(events: ir.Table, as_of: datetime) -> ir.Table:
    """Return the EVENTS that were known at an instant."""
    instant = ibis.literal(as_of, TIME)
    return events.filter(events.occurred_at < instant, events.ingested_at <= instant)


def with_features(take: Take, *features: ExtraFeature) -> Take:
    """Take a snapshot with further features: numbers become float64, all else text, as the contract has it.

    Raises ContractError, when a snapshot is taken, for a feature whose name is taken or that has not its column.
    """

    def taken(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
        snapshot = take(events, sessions, as_of)
        for feature in features:
            name, made = feature.__name__, feature(events, sessions, as_of)
            if name in snapshot.columns:
                raise ContractError(f"{name}: there is a column of that name already; rename the feature")
            if not {"user_id", name} <= set(made.columns):
                raise ContractError(f"{name}: gave {', '.join(made.columns)}; it has to give user_id and {name}")
            is_number = made[name].type().is_numeric() or made[name].type().is_boolean()
            column = made.select("user_id", **{name: made[name].cast("float64" if is_number else "string")})
            snapshot = snapshot.left_join(column, "user_id").drop("user_id_right")
        return snapshot

    return taken


def sample_users(sessions: ir.Table, count: int, seed: int) -> ir.Table:
    """Return at most `count` users of SESSIONS, by a hash of their id: always the same for a seed."""
    users = sessions.select("user_id").distinct()
    place = (users.user_id + f"\x1f{seed}").hexdigest("md5")
    return users.mutate(place=place).order_by("place").limit(count).select("user_id")


def travel(
    take: Take, events: ir.Table, sessions: ir.Table, as_of: datetime, gap: timedelta, day_level: bool = False
) -> Journey:
    """Take a snapshot, change what came later, and take it again, with the sessions that the other events make.

    First all is gone that came later, then all is changed at once, which is enough where no feature notices; where one
    does, each change is made alone, to tell which it was. Numbers that differ by less than a billionth do not differ.
    `day_level` says that the source of these sessions has days, not times.
    """
    with forgetting(events.get_backend()):
        before = materialize(take(events, sessions, as_of))
        features = tuple(name for name in before.columns if name not in KEY)
        is_after = events.occurred_at >= ibis.literal(as_of, TIME)
        [counts] = events.agg(after=is_after.sum().fill_null(0)).to_pyarrow().to_pylist()
        users = before.count().to_pyarrow().as_py()

        def after(*changes: Change) -> tuple[dict[str, int], int]:
            with forgetting(events.get_backend()):
                others = events
                for change in changes:
                    others = change(others, as_of)
                others = materialize(EVENTS.check(others))
                then = materialize(sessionize(others, gap, day_level))
                made_up = others.count(where=others.source_file == MADE_UP).to_pyarrow().as_py()
                return count_changed(before, take(others, then, as_of)), made_up

        of_cut, _ = after(_cut)
        of_all, made_up = after(*CHANGES.values())
        found: dict[str, Mapping[str, int]] = {"cut": of_cut}
        if of_cut or of_all:
            found |= {name: after(change)[0] for name, change in CHANGES.items()}
        if not any(found.values()):
            found = {"all at once": of_all}
    changed = tuple(
        Changed(feature, as_of, change, count) for change, counts in found.items() for feature, count in counts.items()
    )
    return Journey(as_of, users, features, counts["after"], made_up, changed)


def count_changed(before: ir.Table, after: ir.Table) -> dict[str, int]:
    """Count the users for whom a feature differs between two snapshots at one instant, by feature; none is left out.

    The feature `user_id` counts the users that only one of them has.
    """
    names = [name for name in before.columns if name not in KEY]
    later = after.select(user_id_then=after.user_id, **{f"{name}_then": after[name] for name in names})
    both = before.select("user_id", *names).outer_join(later, [("user_id", "user_id_then")])
    in_both = both.user_id.notnull() & both.user_id_then.notnull()
    differing = {name: in_both & _differs(both[name], both[f"{name}_then"]) for name in names}
    [counts] = (
        both.agg(**{"user_id": (~in_both).sum()}, **{name: is_other.sum() for name, is_other in differing.items()})
        .to_pyarrow()
        .to_pylist()
    )
    return {name: int(count) for name, count in counts.items() if count}


def _differs(now: ir.Value, then: ir.Value) -> ir.BooleanValue:
    if not now.type().is_floating():
        return ~now.identical_to(then)
    difference = (now - then).abs()
    is_near = difference <= TOLERANCE * ibis.greatest(ibis.literal(1.0), now.abs(), then.abs())
    is_number = ~difference.isinf() & ~difference.isnan()  # on some engines, no number is the largest of all
    return ~now.identical_to(then) & ~(is_near & is_number).fill_null(False)


# Changes: all of them leave what was known at as_of as it was.


def _cut(events: ir.Table, as_of: datetime) -> ir.Table:
    """Leave out what happened at as_of or after."""
    return events.filter(events.occurred_at < ibis.literal(as_of, TIME))


def _late(events: ir.Table, as_of: datetime) -> ir.Table:
    """Leave out what happened before and arrived after; make up other such events, also some of users' own, again."""
    instant = ibis.literal(as_of, TIME)
    had_arrived = events.filter((events.occurred_at >= instant) | (events.ingested_at <= instant))
    before = [(-ago, as_of + MICROSECOND) for ago in BEFORE]
    own = _again(known(events, as_of), ibis.interval(minutes=-7), "late", ingested_at=ibis.literal(as_of + MICROSECOND))
    return stack(stack(had_arrived, _made_up(events, as_of, before, "late")), own)


def _shuffled(events: ir.Table, as_of: datetime) -> ir.Table:
    """Deal out the users and the names of what happened later among those events; their times stay."""
    later = events.filter(events.occurred_at >= ibis.literal(as_of, TIME))
    dealt = later.mutate(number=ibis.row_number().over(order_by=later.event_id))
    for number, columns in enumerate((["user_id"], ["event_name", *NUMBERS])):
        place = (later.event_id + f"\x1f{number}").hexdigest("md5")
        donors = later.select(*columns, number=ibis.row_number().over(order_by=place))
        dealt = dealt.drop(*columns).join(donors, "number")
    return stack(_cut(events, as_of), dealt.drop("number"))


def _moved(events: ir.Table, as_of: datetime) -> ir.Table:
    """Move the first event that each user has later to as_of, and all others far away."""
    later = events.filter(events.occurred_at >= ibis.literal(as_of, TIME))
    order = ibis.window(group_by="user_id", order_by=["occurred_at", "event_id"])
    far_away = later.occurred_at + ibis.interval(days=FAR.days)
    moved = later.mutate(
        occurred_at=ibis.ifelse(ibis.row_number().over(order) == 0, ibis.literal(as_of, TIME), far_away)
    )
    return stack(_cut(events, as_of), moved.mutate(ingested_at=moved.occurred_at))


def _added(events: ir.Table, as_of: datetime) -> ir.Table:
    """Make up events at as_of and after, some of which were announced before; let users do again what they did."""
    past = known(events, as_of)
    [first] = past.agg(at=past.occurred_at.min()).to_pyarrow()["at"].to_pylist()
    days = 0 if first is None else math.ceil((as_of - first) / timedelta(days=1))
    after = [(later, as_of + later if later > MICROSECOND else as_of) for later in AFTER]
    own = _again(past, ibis.interval(days=days), "later")
    return stack(stack(events, _made_up(events, as_of, after, "later")), own)


CHANGES: Mapping[str, Change] = {"late": _late, "shuffled": _shuffled, "moved": _moved, "added": _added}
"""What is done to the future, besides that it is cut; in this order all at once."""


def _made_up(events: ir.Table, as_of: datetime, times: list[tuple[timedelta, datetime]], prefix: str) -> ir.Table:
    """Make up events of every kind for every user, at times from as_of, each with its time of arrival."""
    rows = [
        dict.fromkeys(TEXTS, MADE_UP)
        | dict.fromkeys(NUMBERS, 9_999.0)
        | {"event_id": f"{prefix} {number} {name} ", "event_name": name, "source_file": MADE_UP}
        | {"properties": "{}", "occurred_at": as_of + since, "ingested_at": ingested_at, "user_id": ""}
        for number, (since, ingested_at) in enumerate(times)
        for name in MADE_UP_NAMES
    ]
    invented = ibis.memtable(pa.Table.from_pylist(rows, EVENTS.schema.to_pyarrow()), schema=EVENTS.schema)
    users = events.select(of_user=events.user_id).distinct()
    made = invented.cross_join(users)
    return made.mutate(event_id=made.event_id + made.of_user, user_id=made.of_user).select(*EVENTS.schema.names)


def _again(
    events: ir.Table, later: ir.IntervalValue, prefix: str, ingested_at: ir.TimestampValue | None = None
) -> ir.Table:
    """Return events once more, at other times."""
    again = events.mutate(
        event_id=ibis.literal(f"again {prefix} ") + events.event_id,
        occurred_at=events.occurred_at + later,
        source_file=ibis.literal(MADE_UP),
    )
    return again.mutate(ingested_at=again.occurred_at if ingested_at is None else ingested_at.cast(TIME))
