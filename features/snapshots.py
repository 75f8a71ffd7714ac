"""SNAPSHOTS: every feature of every user at an instant, from what was known then.

A feature is a function named after its column: it takes the table that its section names and returns an aggregate
over a user's rows. The first sentence of its docstring is its title, in reports and in reasons.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Protocol

import ibis
import ibis.expr.types as ir
from pydantic import AfterValidator, Field

from features.events import PURCHASE, SUPPORT_VIEW, epoch_us, utc_to_local
from features.sessions import micros, sessions_at
from features.sources import Settings
from features.table import TIME, Table


class Feature(Protocol):
    """Aggregate a user's rows to a number."""

    __name__: str
    __doc__: str | None

    def __call__(self, rows: ir.Table, /) -> ir.Scalar: ...


class WindowedFeature(Feature, Protocol):
    """Aggregate a user's rows of the last so many days to a number."""

    def __call__(self, rows: ir.Table, /, days: int | None = None) -> ir.Scalar: ...


US_PER_DAY = 86_400 * 1_000_000
TREND_DAYS = 28
WINDOWS_DAYS = (1, 7, 28, 90)
FAVOURITES = ("device", "source", "country")


class FeatureSettings(Settings):
    """Choose the windows, in days before as_of, in which sessions, support visits and purchases are counted."""

    windows_days: Annotated[list[Annotated[int, Field(gt=0)]], AfterValidator(lambda days: sorted(set(days)))] = Field(
        default=list(WINDOWS_DAYS), min_length=1
    )


# Of a user's sessions, all before as_of. Columns beside SESSIONS': `age_days` of its start, `end_age_days`,
# `duration_us`, `local_start`.


def recency_days(sessions: ir.Table) -> ir.FloatingScalar:
    """Days since the last session. From its end to as_of; never null."""
    return sessions.end_age_days.min()


def tenure_days(sessions: ir.Table) -> ir.FloatingScalar:
    """Days since the first session. From its start to as_of; never null."""
    return sessions.age_days.max()


def session_count(sessions: ir.Table, days: int | None = None) -> ir.IntegerScalar:
    """Sessions. Never null."""
    return sessions.count(where=_within(sessions, days))


def _within(sessions: ir.Table, days: int | None) -> ir.BooleanValue:
    return ibis.literal(True) if days is None else sessions.age_days <= days


def session_trend_28d(sessions: ir.Table) -> ir.FloatingScalar:
    """Trend of sessions. The last 28 days less the 28 before, by their sum: -1 to 1; null without a session in both."""
    last = sessions.count(where=sessions.age_days <= TREND_DAYS)
    before = sessions.count(where=(sessions.age_days > TREND_DAYS) & (sessions.age_days <= 2 * TREND_DAYS))
    return (last - before) / (last + before).nullif(0)


def duration_mean_s(sessions: ir.Table) -> ir.FloatingScalar:
    """Mean length of a session. In seconds; null where the source has days, not times."""
    return sessions.duration_us.mean() / 1_000_000


def duration_median_s(sessions: ir.Table) -> ir.FloatingScalar:
    """Median length of a session. In seconds; null where the source has days, not times."""
    return sessions.duration_us.median() / 1_000_000


def pages_per_session(sessions: ir.Table) -> ir.FloatingScalar:
    """Pages per session. Page views by sessions; never null."""
    return sessions.page_view_count.sum() / sessions.count()


def bounce_rate(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions that bounced. Never null."""
    return sessions.bounced.cast("int64").sum() / sessions.count()


def engaged_rate(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions that were engaged. Never null."""
    return sessions.engaged.cast("int64").sum() / sessions.count()


def search_count(sessions: ir.Table) -> ir.IntegerScalar:
    """Searches. Never null."""
    return sessions.search_count.sum()


def support_visit_count(sessions: ir.Table, days: int | None = None) -> ir.IntegerScalar:
    """Support visits. Views of support pages and chats; never null."""
    return ibis.ifelse(_within(sessions, days), sessions.support_count, 0).sum()


def support_session_share(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions with a support visit. Never null."""
    return sessions.count(where=sessions.support_count > 0) / sessions.count()


def cart_count(sessions: ir.Table) -> ir.IntegerScalar:
    """Carts. Sessions with an addition to the cart; never null."""
    return sessions.count(where=sessions.cart_add_count > 0)


def cart_abandonment_rate(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of carts that were abandoned. Null without a cart."""
    return sessions.count(where=sessions.cart_abandoned) / sessions.count(where=sessions.cart_add_count > 0).nullif(0)


def cart_abandoned_recency_days(sessions: ir.Table) -> ir.FloatingScalar:
    """Days since a cart was abandoned. From the end of the last such session; null without one."""
    return sessions.end_age_days.min(where=sessions.cart_abandoned)


def purchase_count(sessions: ir.Table, days: int | None = None) -> ir.IntegerScalar:
    """Purchases. Sessions with a purchase, as RFM counts occasions (Fader and Hardie): order lines count once."""
    return sessions.count(where=sessions.converted & _within(sessions, days))


def revenue_total(sessions: ir.Table) -> ir.FloatingScalar:
    """Revenue. Purchases less refunds, in the source's currency; never null."""
    return micros(sessions.revenue).sum() / 1_000_000


def revenue_per_purchase(sessions: ir.Table) -> ir.FloatingScalar:
    """Revenue per purchase. Null without a purchase."""
    return revenue_total(sessions) / purchase_count(sessions).nullif(0)


def conversion_rate(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions with a purchase. Never null."""
    return sessions.count(where=sessions.converted) / sessions.count()


def _share_between(sessions: ir.Table, from_hour: int, to_hour: int) -> ir.FloatingScalar:
    hour = sessions.local_start.hour()
    return sessions.count(where=(hour >= from_hour) & (hour < to_hour)) / sessions.local_start.count().nullif(0)


def night_session_share(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions at night. Begun from 0 to 6 local time; null where the source has days, not times."""
    return _share_between(sessions, 0, 6)


def morning_session_share(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions in the morning. Begun from 6 to 12 local time; null where the source has days, not times."""
    return _share_between(sessions, 6, 12)


def afternoon_session_share(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions in the afternoon. Begun from 12 to 18 local time; null where the source has days, not times."""
    return _share_between(sessions, 12, 18)


def evening_session_share(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions in the evening. Begun from 18 to 24 local time; null where the source has days, not times."""
    return _share_between(sessions, 18, 24)


def weekend_session_share(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions at the weekend. Begun on a Saturday or Sunday, local time; never null."""
    return sessions.count(where=sessions.local_day.day_of_week.index() >= 5) / sessions.count()


# Of a user's events, all before as_of. Columns beside EVENTS': `age_days`, `local_day`.


def active_day_count(events: ir.Table) -> ir.IntegerScalar:
    """Active days. Local days with an event; never null."""
    return events.local_day.nunique()


def support_recency_days(events: ir.Table) -> ir.FloatingScalar:
    """Days since the last support visit. Null without one."""
    return events.age_days.min(where=events.event_name == SUPPORT_VIEW)


def purchase_recency_days(events: ir.Table) -> ir.FloatingScalar:
    """Days since the last purchase. Null without one."""
    return events.age_days.min(where=events.event_name == PURCHASE)


def item_count(events: ir.Table) -> ir.IntegerScalar:
    """Different items. Zero where none is known; never null."""
    return events.item_id.nunique()


def category_count(events: ir.Table) -> ir.IntegerScalar:
    """Different categories. Zero where none is known; never null."""
    return events.category.nunique()


SESSION_FEATURES: tuple[Feature, ...] = (
    recency_days,
    tenure_days,
    session_count,
    session_trend_28d,
    duration_mean_s,
    duration_median_s,
    pages_per_session,
    bounce_rate,
    engaged_rate,
    search_count,
    support_visit_count,
    support_session_share,
    cart_count,
    cart_abandonment_rate,
    cart_abandoned_recency_days,
    purchase_count,
    revenue_total,
    revenue_per_purchase,
    conversion_rate,
    night_session_share,
    morning_session_share,
    afternoon_session_share,
    evening_session_share,
    weekend_session_share,
)
WINDOWED_FEATURES: tuple[WindowedFeature, ...] = (session_count, support_visit_count, purchase_count)
EVENT_FEATURES: tuple[Feature, ...] = (
    active_day_count,
    support_recency_days,
    purchase_recency_days,
    item_count,
    category_count,
)


def feature_names(windows_days: Sequence[int]) -> tuple[str, ...]:
    """List the features, the windowed ones as `<feature>_<days>d`."""
    return (
        *(feature.__name__ for feature in SESSION_FEATURES),
        *(f"{feature.__name__}_{days}d" for feature in WINDOWED_FEATURES for days in windows_days),
        *(feature.__name__ for feature in EVENT_FEATURES),
    )


def snapshots_table(windows_days: Sequence[int], attributes: Sequence[str]) -> Table:
    """Return the contract for these windows and attributes of users."""
    return Table(
        name="snapshots",
        schema=ibis.schema(
            {"user_id": "!string", "as_of": TIME.copy(nullable=False)}
            | dict.fromkeys(feature_names(windows_days), "float64")
            | dict.fromkeys((*FAVOURITES, *attributes), "string")
        ),
        key=("user_id", "as_of"),
        partition="as_of",
    )


FEATURES = feature_names(WINDOWS_DAYS)
SNAPSHOTS = snapshots_table(WINDOWS_DAYS, ())


def take_snapshot(
    events: ir.Table,
    sessions: ir.Table,
    attributes: ir.Table,
    as_of: datetime,
    *,
    gap: timedelta,
    windows_days: Sequence[int] = WINDOWS_DAYS,
    attribute_names: Sequence[str] = (),
    time_zone: str = "UTC",
    day_level: bool = False,
) -> ir.Table:
    """Take SNAPSHOTS at `as_of`: one row for each user with a session before it.

    Only what was known at `as_of` counts: events with `occurred_at < as_of` and `ingested_at <= as_of`. Hours, days
    and weekends are those of `time_zone`. `day_level` sources have no times of day, so what needs one is null.
    Attributes have no history: they are taken as they are.
    """
    instant = ibis.literal(as_of, TIME)
    seen = sessions_at(events, sessions, as_of, gap)
    local_start = utc_to_local(time_zone, seen.started_at)
    duration_us = epoch_us(seen.ended_at) - epoch_us(seen.started_at)
    seen = seen.mutate(
        age_days=_days_between(seen.started_at, instant),
        end_age_days=_days_between(seen.ended_at, instant),
        duration_us=ibis.null("int64") if day_level else duration_us,
        local_start=ibis.null("timestamp") if day_level else local_start,
        local_day=local_start.date(),
    )
    windowed = {
        f"{feature.__name__}_{days}d": feature(seen, days) for feature in WINDOWED_FEATURES for days in windows_days
    }
    known = events.filter(events.occurred_at < instant, events.ingested_at <= instant)
    known = known.mutate(
        age_days=_days_between(known.occurred_at, instant),
        local_day=utc_to_local(time_zone, known.occurred_at).date(),
    )
    parts = [
        seen.group_by("user_id").agg(**{feature.__name__: feature(seen) for feature in SESSION_FEATURES}, **windowed),
        known.group_by("user_id").agg(**{feature.__name__: feature(known) for feature in EVENT_FEATURES}),
        *(_favourite(seen, name) for name in FAVOURITES),
        *(_attribute(attributes, name) for name in attribute_names),
    ]
    snapshot = parts[0].mutate(as_of=instant)
    for part in parts[1:]:
        snapshot = snapshot.left_join(part, "user_id").drop("user_id_right")
    numbers = {name: snapshot[name].cast("float64") for name in feature_names(windows_days)}
    return snapshots_table(windows_days, attribute_names).check(snapshot.mutate(**numbers))


def title(name: str) -> str:
    """Return what a feature is called in a text, in lower case; of a category column, its name.

    >>> title("recency_days")
    'days since the last session'
    >>> title("session_count_28d")
    'sessions in the last 28 days'
    """
    for feature in (*SESSION_FEATURES, *EVENT_FEATURES):
        named = (feature.__doc__ or "").split(". ")[0]
        words = named[0].lower() + named[1:]
        if name == feature.__name__:
            return words
        window = name.removeprefix(f"{feature.__name__}_").removesuffix("d")
        if feature in WINDOWED_FEATURES and window.isdigit() and window != name:
            return f"{words} in the last {window} days" if window != "1" else f"{words} in the last day"
    return name.replace("_", " ")


def in_words(name: str, value: float) -> str:
    """Say a feature's value, rounded as people would, with its unit.

    >>> in_words("recency_days", 34.2)
    'days since the last session: 34'
    >>> in_words("bounce_rate", 0.254)
    'share of sessions that bounced: 25 %'
    >>> in_words("duration_mean_s", 312.0)
    'mean length of a session: 5 min 12 s'
    """
    return f"{title(name)}: {format_value(name, value)}"


def format_value(name: str, value: float) -> str:
    """Write a feature's value, rounded as people would, with its unit; null as a dash.

    >>> format_value("session_count", 1234.0), format_value("pages_per_session", 3.14159)
    ('1,234', '3.1')
    """
    if value != value:
        return "–"
    if name.endswith(("_rate", "_share")):
        return f"{value:.0%}".replace("%", " %")
    if name.endswith("_s"):
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"{value:,.0f}" if abs(value) >= 10 or float(value).is_integer() else f"{value:,.1f}"


def _days_between(earlier: ir.TimestampValue, later: ir.TimestampValue) -> ir.FloatingValue:
    return (epoch_us(later) - epoch_us(earlier)) / US_PER_DAY


def _favourite(sessions: ir.Table, name: str) -> ir.Table:
    """Return each user's most frequent value over sessions; of equally frequent ones the first by name."""
    counted = sessions.filter(sessions[name].notnull()).group_by(["user_id", name]).agg(frequency=ibis._.count())
    order = ibis.window(group_by="user_id", order_by=[counted.frequency.desc(), counted[name]])
    ranked = counted.mutate(rank=ibis.row_number().over(order))
    return ranked.filter(ranked["rank"] == 0).select("user_id", name)


def _attribute(attributes: ir.Table, name: str) -> ir.Table:
    return attributes.filter(attributes.attribute == name).select("user_id", **{name: attributes.value})
