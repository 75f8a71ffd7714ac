"""SNAPSHOTS: every feature of every user at an instant, from what was known then.

A feature is a function named after its column: it takes the table that its section names and returns an aggregate
over a user's rows. The first sentence of its docstring is its title in reports; `models.reasons` says its values.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import reduce
from typing import Annotated, Any, Protocol

import ibis
import ibis.expr.types as ir
from pydantic import AfterValidator, Field

from features.events import PURCHASE, SUPPORT_VIEW, epoch_us, utc_to_local
from features.history import count_before, instants_table, sessions_as_known
from features.limits import DAYS_MAX
from features.sessions import micros
from features.sources import Settings
from features.table import TIME, Table, materialize, stack


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
RETURN_DAYS = 28
WINDOWS_DAYS = (1, 7, 28, 90)
FAVOURITES = ("device", "source", "country")
KEY = ("user_id", "as_of")
FIRSTS = {"new_day_count": "local_day", "new_item_count": "item_id", "new_category_count": "category"}
LASTS = {"support_at": SUPPORT_VIEW, "purchase_at": PURCHASE}
COUNTS = ("page_view_count", "search_count", "support_count", "cart_add_count")
US_PER_QUARTER = 15 * 60 * 1_000_000
MINUTES_WITHOUT_SECONDS = 10
ROWS_AT_ONCE = 200_000
"""Rows of SNAPSHOTS that one query makes: it takes some hundred megabytes."""


class FeatureSettings(Settings):
    """Choose the windows, in days before as_of, in which sessions, support visits and purchases are counted."""

    windows_days: Annotated[
        list[Annotated[int, Field(gt=0, le=DAYS_MAX)]], AfterValidator(lambda days: sorted(set(days)))
    ] = Field(default=list(WINDOWS_DAYS), min_length=1)


# Of a user's sessions, all before as_of. Columns beside those of SESSIONS: `age_days` of the start and `end_age_days`,
# `duration_us`, `revenue_micros`, `local_hour` of the start, `at_weekend`, `from_campaign`.


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


def return_absence_days(sessions: ir.Table) -> ir.FloatingScalar:
    """Days away before the first session of the last 28 days. Since the end of the one before; null without both.

    No other pause before a session of these days can be longer than 28 days.
    """
    last_before = sessions.end_age_days.min(where=sessions.age_days > RETURN_DAYS)
    return last_before - sessions.age_days.max(where=sessions.age_days <= RETURN_DAYS)


def duration_mean_s(sessions: ir.Table) -> ir.FloatingScalar:
    """Mean length of a session. In seconds; null where the source has days, not times."""
    return sessions.duration_us.mean() / 1_000_000


def duration_median_s(sessions: ir.Table) -> ir.FloatingScalar:
    """Median length of a session. In seconds; null where the source has days, not times."""
    return sessions.duration_us.median() / 1_000_000


def pages_per_session(sessions: ir.Table) -> ir.FloatingScalar:
    """Pages per session. Page views by sessions with one; null without a page view."""
    return sessions.page_view_count.sum() / sessions.count(where=sessions.page_view_count > 0).nullif(0)


def bounce_rate(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions that bounced. Of those with a page view; null without one, or where the source has days."""
    return sessions.count(where=sessions.bounced) / sessions.bounced.count().nullif(0)


def engaged_rate(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions that were engaged. Of those with a page view; null without one, or where the source has days.

    Of the others more are known to be engaged than not to be, so that a share of all that are known would be too high.
    """
    with_page = sessions.page_view_count > 0
    return sessions.count(where=sessions.engaged & with_page) / sessions.engaged.count(where=with_page).nullif(0)


def search_count(sessions: ir.Table) -> ir.IntegerScalar:
    """Searches. Never null."""
    return sessions.search_count.sum()


def support_visit_count(sessions: ir.Table, days: int | None = None) -> ir.IntegerScalar:
    """Support visits. Views of support pages and chats; never null."""
    return ibis.ifelse(_within(sessions, days), sessions.support_count, 0).sum()


def support_session_share(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions with a support visit. Never null."""
    return sessions.count(where=sessions.support_count > 0) / sessions.count()


def campaign_session_count(sessions: ir.Table) -> ir.IntegerScalar:
    """Sessions from a campaign. Never null."""
    return sessions.count(where=sessions.from_campaign)


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
    return sessions.revenue_micros.sum().cast("float64") / 1_000_000


def revenue_per_purchase(sessions: ir.Table) -> ir.FloatingScalar:
    """Revenue per purchase. Null without a purchase."""
    return revenue_total(sessions) / purchase_count(sessions).nullif(0)


def conversion_rate(sessions: ir.Table) -> ir.FloatingScalar:
    """Share of sessions with a purchase. Never null."""
    return sessions.count(where=sessions.converted) / sessions.count()


def _share_between(sessions: ir.Table, from_hour: int, to_hour: int) -> ir.FloatingScalar:
    hour = sessions.local_hour
    return sessions.count(where=(hour >= from_hour) & (hour < to_hour)) / hour.count().nullif(0)


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
    return sessions.count(where=sessions.at_weekend) / sessions.count()


# Of what was new in a user's events, all before as_of: how many local days, items and categories had no event before
# (`new_day_count`, `new_item_count`, `new_category_count`), and the days since support visits and purchases
# (`support_age_days`, `purchase_age_days`; null where it was none).


def active_day_count(news: ir.Table) -> ir.IntegerScalar:
    """Active days. Local days with an event; never null."""
    return news.new_day_count.sum()


def support_recency_days(news: ir.Table) -> ir.FloatingScalar:
    """Days since the last support visit. Null without one."""
    return news.support_age_days.min()


def purchase_recency_days(news: ir.Table) -> ir.FloatingScalar:
    """Days since the last purchase. Null without one."""
    return news.purchase_age_days.min()


def item_count(news: ir.Table) -> ir.IntegerScalar:
    """Different items. Zero where none is known; never null."""
    return news.new_item_count.sum()


def category_count(news: ir.Table) -> ir.IntegerScalar:
    """Different categories. Zero where none is known; never null."""
    return news.new_category_count.sum()


SESSION_FEATURES: tuple[Feature, ...] = (
    recency_days,
    tenure_days,
    session_count,
    session_trend_28d,
    return_absence_days,
    duration_mean_s,
    duration_median_s,
    pages_per_session,
    bounce_rate,
    engaged_rate,
    search_count,
    support_visit_count,
    support_session_share,
    campaign_session_count,
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
    events: ir.Table, sessions: ir.Table, attributes: ir.Table, as_of: datetime, **definitions: Any
) -> ir.Table:
    """Take SNAPSHOTS at one instant, as `take_snapshots` does at many."""
    [(_, snapshot)] = take_snapshots(events, sessions, attributes, [as_of], **definitions)
    return snapshot


def take_snapshots(
    events: ir.Table,
    sessions: ir.Table,
    attributes: ir.Table,
    instants: Iterable[datetime],
    *,
    gap: timedelta,
    windows_days: Sequence[int] = WINDOWS_DAYS,
    attribute_names: Sequence[str] = (),
    time_zone: str = "UTC",
    day_level: bool = False,
) -> Iterator[tuple[list[datetime], ir.Table]]:
    """Take SNAPSHOTS at `instants`: at each, one row for every user with a session before it.

    Only what was known at an instant counts: events with `occurred_at < as_of` and `ingested_at <= as_of`. Hours, days
    and weekends are those of `time_zone`. `day_level` sources have no times of day, so what needs one is null, or a
    length of sessions. Attributes have no history: they are taken as they are.

    What instants have in common is done once. Yields instants and their rows: in order, as many at once as are no
    strain on memory.
    """
    ordered = sorted(set(instants))
    if not ordered:
        return
    described = materialize(_describe(sessions, time_zone, day_level).order_by("user_id"))
    counts = materialize(_count_values(sessions, ordered))
    news = materialize(_news(events, ordered, time_zone))
    touched, as_known = sessions_as_known(events, sessions, ordered, gap)
    of_touched = materialize(_of_sessions(_describe(as_known, time_zone, day_level, "as_of"), windows_days))
    values = _values(as_known, *KEY)
    counts_of_touched = materialize(values.group_by(*KEY, "column", "value").agg(n=values.count().cast("int32")))
    user_count = int(described.user_id.nunique().to_pyarrow().as_py())
    size = max(1, ROWS_AT_ONCE // max(1, user_count))
    for first in range(0, len(ordered), size):
        some = ordered[first : first + size]
        moments = instants_table(some, first)
        seen = described.join(moments, described.ended_at < moments.as_of)
        snapshots = _of_sessions(seen, windows_days).anti_join(touched, KEY)
        snapshots = stack(snapshots, of_touched.semi_join(moments, "as_of"))
        for part in (_of_news(news, moments), _favourites(counts, moments, touched, counts_of_touched)):
            snapshots = snapshots.left_join(part, KEY).drop("user_id_right", "as_of_right")
        if attribute_names:
            snapshots = snapshots.left_join(_of_users(attributes, attribute_names), "user_id").drop("user_id_right")
        numbers = {name: snapshots[name].cast("float64") for name in feature_names(windows_days)}
        yield some, snapshots_table(windows_days, attribute_names).check(snapshots.mutate(**numbers))


def quantity(name: str) -> str:
    """Return a feature's name without its window: session_count for session_count_28d."""
    return re.sub(r"_\d+d$", "", name)


def is_age(name: str) -> bool:
    """Tell whether a feature grows by a day each day for as long as its user does nothing."""
    return name == "tenure_days" or name.endswith("recency_days")


def window_of(name: str) -> int | None:
    """Return the days before as_of that a count is of; None of what is no count of the last days.

    >>> window_of("session_count_28d"), window_of("session_count"), window_of("session_trend_28d")
    (28, None, None)
    """
    counted, _, days = name.rpartition("_")
    is_windowed = counted in {feature.__name__ for feature in WINDOWED_FEATURES} and days[:-1].isdigit()
    return int(days[:-1]) if is_windowed and days.endswith("d") else None


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

    >>> format_value("duration_mean_s", 1036.0)
    '17 min'
    >>> format_value("session_count", 1234.0), format_value("pages_per_session", 3.14159)
    ('1,234', '3.1')
    >>> format_value("bounce_rate", 0.254), format_value("bounce_rate", 0.996), format_value("bounce_rate", 1.0)
    ('25 %', '99.6 %', '100 %')
    """
    if value != value:
        return "–"
    if name.endswith(("_rate", "_share")):
        return f"{_points(100 * value)} %"
    if name.endswith("_s"):
        minutes, seconds = divmod(round(value), 60)
        if minutes >= MINUTES_WITHOUT_SECONDS:
            return f"{round(value / 60):,} min"
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    decimals = 0 if abs(value) >= 10 or float(value).is_integer() else 1
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # -0.04 is 0.0


def _points(value: float) -> str:
    """Write per cent without decimals, or with as many, two at most, as tell some from none and most from all."""
    texts = [f"{value:.{decimals}f}" for decimals in (0, 1, 2)]
    beyond = "under 0.01" if value < 1 else "over 99.99"
    return next((text for text in texts if value in (0, 100) or float(text) not in (0, 100)), beyond)


def _days_between(earlier: ir.TimestampValue, later: ir.TimestampValue) -> ir.FloatingValue:
    return (epoch_us(later) - epoch_us(earlier)) / US_PER_DAY


def _describe(sessions: ir.Table, time_zone: str, day_level: bool, *further: str) -> ir.Table:
    """Return what features need of sessions, in as few bytes as will do."""
    local_start = utc_to_local(time_zone, sessions.started_at)
    duration_us = epoch_us(sessions.ended_at) - epoch_us(sessions.started_at)
    return sessions.select(
        *("user_id", *further, "started_at", "ended_at", "converted", "cart_abandoned"),
        # Of days it is never known that a session bounced, or was not engaged: there is no telling how many.
        **{name: ibis.null("boolean") if day_level else sessions[name] for name in ("bounced", "engaged")},
        **{name: sessions[name].cast("int32") for name in COUNTS},
        revenue_micros=micros(sessions.revenue),
        duration_us=ibis.null("int64") if day_level else duration_us,
        local_hour=ibis.null("int8") if day_level else local_start.hour().cast("int8"),
        at_weekend=local_start.day_of_week.index() >= 5,
        from_campaign=sessions.campaign.notnull(),
    )


def _of_sessions(sessions: ir.Table, windows_days: Sequence[int]) -> ir.Table:
    """Return the features of sessions, each of which is there for every as_of at which it was known."""
    sessions = sessions.mutate(
        age_days=_days_between(sessions.started_at, sessions.as_of),
        end_age_days=_days_between(sessions.ended_at, sessions.as_of),
    )
    windowed = {
        f"{feature.__name__}_{days}d": feature(sessions, days) for feature in WINDOWED_FEATURES for days in windows_days
    }
    return sessions.group_by(KEY).agg(
        **{feature.__name__: feature(sessions) for feature in SESSION_FEATURES}, **windowed
    )


def _news(events: ir.Table, instants: Sequence[datetime], time_zone: str) -> ir.Table:
    """Return what of users' events was new at the instant numbered `first`: known then, and not at the one before."""
    until = ibis.literal(instants[-1], TIME)
    known = events.filter(events.occurred_at < until, events.ingested_at <= until)
    known = known.mutate(known_us=ibis.greatest(epoch_us(known.occurred_at) + 1, epoch_us(known.ingested_at)))
    nothing = dict.fromkeys(FIRSTS, ibis.literal(0, "int64")) | dict.fromkeys(LASTS, ibis.null(TIME))

    def at_first(rows: ir.Table, **new: ir.Scalar) -> ir.Table:
        grouped = rows.group_by("user_id", first=count_before(rows.known_us, instants)).agg(**new)
        return grouped.select("user_id", "first", **nothing | {name: grouped[name] for name in new})

    parts = []
    for name, column in FIRSTS.items():
        rows = _with_local_day(known, time_zone) if column == "local_day" else known.filter(known[column].notnull())
        firsts = rows.group_by("user_id", column).agg(known_us=rows.known_us.min())
        # One after the other, since each takes much memory.
        parts.append(materialize(at_first(firsts, **{name: firsts.count()})))
    acts = known.filter(known.event_name.isin(LASTS.values()))
    lasts = {name: acts.occurred_at.max(where=acts.event_name == event_name) for name, event_name in LASTS.items()}
    news = reduce(stack, [*parts, at_first(acts, **lasts)])
    return news.group_by("user_id", "first").agg(
        **{name: news[name].sum().cast("int64") for name in FIRSTS}, **{name: news[name].max() for name in LASTS}
    )


def _of_news(news: ir.Table, moments: ir.Table) -> ir.Table:
    """Return the features of news."""
    news = news.join(moments, news["first"] <= moments.number)
    news = news.mutate(
        support_age_days=_days_between(news.support_at, news.as_of),
        purchase_age_days=_days_between(news.purchase_at, news.as_of),
    )
    return news.group_by(KEY).agg(**{feature.__name__: feature(news) for feature in EVENT_FEATURES})


def _with_local_day(events: ir.Table, time_zone: str) -> ir.Table:
    """Add the local day, looked up by the quarter of an hour: to convert each time takes several times as long."""
    events = events.mutate(quarter=epoch_us(events.occurred_at) // US_PER_QUARTER)
    quarters = events.group_by("quarter").agg(
        first_day=utc_to_local(time_zone, events.occurred_at.min()).date(),
        last_day=utc_to_local(time_zone, events.occurred_at.max()).date(),
    )
    events = events.join(quarters, "quarter")
    # Midnight was within a quarter where an offset is of seconds, as they were long ago.
    day = utc_to_local(time_zone, events.occurred_at).date()
    return events.mutate(local_day=ibis.ifelse(events.first_day == events.last_day, events.first_day, day))


def _count_values(sessions: ir.Table, instants: Sequence[datetime]) -> ir.Table:
    """Count users' sessions with each value of a favourite's column, at the instants from `first` to before `end`."""
    of_user = ["user_id", "column", "value"]
    values = _values(sessions, "user_id", "ended_at")
    counts = values.group_by(*of_user, first=count_before(epoch_us(values.ended_at) + 1, instants)).agg(
        n=values.count()
    )
    so_far = counts.n.sum().over(ibis.cumulative_window(group_by=of_user, order_by="first"))
    next_first = counts["first"].lead().over(group_by=of_user, order_by="first")
    return counts.mutate(n=so_far.cast("int32"), end=next_first.fill_null(len(instants)).cast("int32"))


def _favourites(counts: ir.Table, moments: ir.Table, touched: ir.Table, counts_of_touched: ir.Table) -> ir.Table:
    """Return each user's most frequent values over sessions; of equally frequent ones the first by name."""
    then = counts.join(moments, [counts["first"] <= moments.number, counts.end > moments.number])
    then = then.anti_join(touched, KEY).select(*counts_of_touched.columns)
    then = stack(then, counts_of_touched.semi_join(moments, "as_of"))
    best = ibis.struct({"fewer": -then.n, "value": then.value})
    return then.group_by(KEY).agg(
        **{name: best.min(where=then.column == number)["value"] for number, name in enumerate(FAVOURITES)}
    )


def _values(sessions: ir.Table, *columns: str) -> ir.Table:
    """Return a row for each value of a favourite's column, which is called by its number."""
    return ibis.union(
        *(
            sessions.filter(sessions[name].notnull()).select(
                *columns, column=ibis.literal(number, "int8"), value=sessions[name]
            )
            for number, name in enumerate(FAVOURITES)
        )
    )


def _of_users(attributes: ir.Table, names: Sequence[str]) -> ir.Table:
    return attributes.group_by("user_id").agg(
        **{name: attributes.value.max(where=attributes.attribute == name) for name in names}
    )
