"""EVENTS: what users did. Rows of any source are accepted under this contract, or rejected with a reason."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from features.sources import Source, SourceError, row_text
from features.table import TIME, Table, materialize

TEXTS = (
    *("anonymous_id", "account_id", "page", "element", "item_id", "order_id", "category"),
    *("source", "medium", "campaign", "device", "country", "properties"),
)
NUMBERS = ("quantity", "revenue")

EVENTS = Table(
    name="events",
    schema=ibis.schema(
        {
            "event_id": "!string",
            "user_id": "!string",
            "anonymous_id": "string",
            "account_id": "string",
            "occurred_at": TIME.copy(nullable=False),
            "ingested_at": TIME.copy(nullable=False),
            "event_name": "!string",
            "page": "string",
            "element": "string",
            "item_id": "string",
            "order_id": "string",
            "category": "string",
            "quantity": "float64",
            "revenue": "float64",
            "source": "string",
            "medium": "string",
            "campaign": "string",
            "device": "string",
            "country": "string",
            "properties": "string",
            "source_file": "!string",
        }
    ),
    key=("event_id",),
    partition="day of occurred_at",
    contract=2,
)

REJECTED = Table(
    name="rejected",
    schema=ibis.schema(
        {"rejected_id": "!string", "source_file": "!string", "reason": "!string", "row": "string"},
    ),
    key=("rejected_id",),
)

REASONS = {
    "malformed_row": "the line could not be read as a row",
    "no_user": "no user",
    "no_time": "no time",
    "unparseable_time": "a time that could not be read",
    "time_in_the_future": "a time in the future",
    "no_event_name": "no event name",
    "unparseable_number": "a quantity or revenue that is not a number",
    "erased": "an event of a user who was erased since",
    "duplicate_id": "an event id that was there already",
}
"""Why a row is rejected, in the order in which reasons are looked for: a row has one reason, the first."""

PAGE_VIEW = "page_view"
SEARCH = "search"
ADD_TO_CART = "add_to_cart"
PURCHASE = "purchase"
REFUND = "refund"
SUPPORT_VIEW = "support_view"

UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
HAS_OFFSET = r"(Z|UTC|GMT|[+-]\d{2}(:?\d{2}(:\d{2})?)?)$"
FIRST_INSTANT, LAST_INSTANT = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
MAXIMUM_EXACT_INTEGER = 2**53
MAXIMUM_NUMBER = 1e12
HOUR_AND_MINUTE = r"^(\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2})( ?[^:\d. ].*)$"
SPACED_OFFSET = r" ([+-]\d{2}(:?\d{2})?)$"
STARTS_AS_DATE = r"^\d{4}-\d{2}-\d{2}([T ].*)?$"
PLAIN_TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?$"


@ibis.udf.scalar.builtin(name="timezone", signature=((dt.string, dt.Timestamp()), TIME))
def local_to_utc(zone: str, local: ir.TimestampValue) -> ir.TimestampValue:
    """Return the instant of a local time; of an ambiguous one, the engine's choice, always the same."""


@ibis.udf.scalar.builtin(name="timezone", signature=((dt.string, TIME), dt.Timestamp()))
def utc_to_local(zone: str, instant: ir.TimestampValue) -> ir.TimestampValue:
    """Return the local time of an instant."""


@ibis.udf.scalar.builtin(name="epoch_us", signature=((TIME,), dt.int64))
def epoch_us(instant: ir.TimestampValue) -> ir.IntegerValue:
    """Return microseconds since 1970."""


@ibis.udf.scalar.builtin(name="make_timestamp", signature=((dt.int64,), dt.Timestamp()))
def utc_of_epoch_us(microseconds: ir.IntegerValue) -> ir.TimestampValue:
    """Return the time in UTC of microseconds since 1970."""


@dataclass(frozen=True)
class Reconciled:
    """Hold what EVENTS of a batch are to those that are there: `added`, `known` or `lost` to an earlier twin.

    `displaced` are those that are there and have an earlier twin among the added.
    """

    added: ir.Table
    known: ir.Table
    lost: ir.Table
    displaced: ir.Table


def accept(
    raw: ir.Table,
    source: Source,
    time_zone: str,
    now: datetime,
    erased_among: Callable[[ir.Table], ir.Table] | None = None,
) -> tuple[ir.Table, ir.Table]:
    """Judge every row of a source: return EVENTS and REJECTED, which together have as many rows as `raw`.

    `raw` is as `sources.read_events` gives it. Times without zone are in the source's zone, or else in `time_zone`.
    Blank text is null. Of rows with one event id the first to be ingested is accepted. A source without ids gets them
    from the rows' content: equal rows within a file are separate events, equal rows in two files are one event.
    A source that does not say when it learned of an event learned of it at once: ingested_at = occurred_at.
    `erased_among` gives user_id and erased_at of those of some users who were erased: what they did before is rejected.
    A rejected row is text as the source has it; of a duplicate, the event that it would have been, as JSON; of a user
    who was erased, null.
    Raises SourceError where the time's type needs a unit.
    """
    judged = _judge(raw, source, source.time_zone or time_zone, now, erased_among)
    good, bad = judged.filter(judged.reason.isnull()), judged.filter(judged.reason.notnull())
    bad = bad.mutate(copy=ibis.row_number().over(group_by=[bad.source_file, bad.reason, bad.row]))
    shared = materialize(good.group_by("event_id").agg(rows=good.count()).filter(lambda ids: ids["rows"] > 1))
    if not shared.count().to_pyarrow().as_py():
        return EVENTS.check(good), _reject(bad)
    # Windows sort, so only rows that share their id with another go through them.
    twins = good.semi_join(shared, "event_id")
    copy = ibis.row_number().over(group_by=[twins.source_file, twins.event_id, twins.is_made])
    made = twins.event_id + ibis.ifelse(copy > 0, ibis.literal("-") + copy.cast("string"), "")
    ranked = materialize(_rank(EVENTS.check(twins.mutate(event_id=ibis.ifelse(twins.is_made, made, twins.event_id)))))
    copy = ibis.row_number().over(group_by=[ranked[name] for name in EVENTS.schema.names], order_by=ranked["rank"])
    late = ranked.mutate(copy=copy).filter(ranked["rank"] > 0)
    events = EVENTS.check(good.anti_join(shared, "event_id")).union(EVENTS.check(ranked.filter(ranked["rank"] == 0)))
    return events, _reject(bad).union(reject_duplicates(late))


def _judge(
    raw: ir.Table,
    source: Source,
    zone: str,
    now: datetime,
    erased_among: Callable[[ir.Table], ir.Table] | None,
) -> ir.Table:
    """Return rows as EVENTS, beside `is_made` of an id, the reason to reject a row by itself, and then its text."""
    given_id = as_text(raw.event_id) if "event_id" in raw.columns else ibis.null("string")
    rows = raw.mutate(
        event_id=given_id.fill_null(_id_of_content(raw)),
        is_made=given_id.isnull(),
        occurred_at=_time(raw.occurred_at, source.time_unit, zone, "occurred_at"),
        ingested_at=_time(raw.ingested_at, source.time_unit, zone, "ingested_at")
        if "ingested_at" in raw.columns
        else ibis.null(TIME),
        has_time=_is_given(raw.occurred_at),
        has_bad_number=ibis.or_(*(_is_bad_number(raw[name]) for name in NUMBERS if name in raw.columns)),
        **{name: as_text(raw[name]) for name in ("user_id", "event_name", *TEXTS) if name in raw.columns},
        **{name: _number(raw[name]) for name in NUMBERS if name in raw.columns},
    )
    rows = rows.mutate(
        ingested_at=rows.ingested_at.fill_null(rows.occurred_at),
        event_name=rows.event_name.substitute(source.names) if source.names else rows.event_name,
    )
    erased_at = ibis.null(TIME)
    if erased_among is not None:
        erased = erased_among(rows.select("user_id").distinct())
        rows = rows.left_join(erased, "user_id").drop("user_id_right")
        erased_at = rows.erased_at
    rows = rows.mutate(
        is_of_erased=erased_at.notnull(),
        reason=ibis.cases(
            (rows.malformed, "malformed_row"),
            (rows.user_id.isnull(), "no_user"),
            (~rows.has_time, "no_time"),
            (rows.occurred_at.isnull(), "unparseable_time"),
            (rows.occurred_at > ibis.literal(now, TIME), "time_in_the_future"),
            (rows.event_name.isnull(), "no_event_name"),
            (rows.has_bad_number, "unparseable_number"),
            (rows.occurred_at < erased_at, "erased"),
        ),
    )
    text = ibis.ifelse(rows.reason.notnull() & ~rows.is_of_erased, row_text(rows), ibis.null("string"))
    unmapped = {name: ibis.null(EVENTS.schema[name]) for name in (*TEXTS, *NUMBERS) if name not in raw.columns}
    mapped = [name for name in EVENTS.schema.names if name not in unmapped]
    return materialize(rows.select(*mapped, "is_made", "reason", row=text)).mutate(**unmapped)


def reconcile(events: ir.Table, stored: ir.Table) -> Reconciled:
    """Tell what EVENTS of some files, as `accept` gives them, are to `stored`, those of before with the same ids.

    Of two with one id the same is kept as if both had been accepted at once, so the order of files does not matter.
    What is there already, from the same file and equal in every column, is known.
    """
    twins = materialize(events.semi_join(stored, "event_id")).cast(EVENTS.schema)
    stored = stored.cast(EVENTS.schema)  # Ibis minds nullability
    known = materialize(twins.intersect(stored))
    rivals = twins.anti_join(known, "event_id").mutate(is_stored=False)
    ranked = _rank(rivals.union(stored.semi_join(rivals, "event_id").mutate(is_stored=True)))
    late = materialize(ranked.filter(ranked["rank"] > 0))
    lost, displaced = EVENTS.check(late.filter(~late.is_stored)), EVENTS.check(late.filter(late.is_stored))
    added = materialize(events.anti_join(known, "event_id").anti_join(lost, "event_id"))
    return Reconciled(added, known, lost, displaced)


def reject_duplicates(events: ir.Table) -> ir.Table:
    """Turn EVENTS that an earlier twin keeps from being accepted into REJECTED, each as JSON.

    Rows of one file that are equal have a number, `copy`, if they are given one; what was accepted first has 0.
    """
    text = ibis.struct({name: events[name] for name in EVENTS.schema.names if name != "source_file"})
    if "copy" not in events.columns:
        events = events.mutate(copy=ibis.literal(0, "int64"))
    return _reject(events.mutate(reason=ibis.literal("duplicate_id"), row=text.cast("json").cast("string")))


def _rank(events: ir.Table) -> ir.Table:
    """Rank the events that share an id, from 0, whatever order they come in."""
    first = ("ingested_at", "occurred_at")
    others = [name for name in EVENTS.schema.names if name not in ("event_id", *first)]
    order = [events[name] for name in (*first, *others)]
    return events.mutate(rank=ibis.row_number().over(group_by=events.event_id, order_by=order))


def _reject(judged: ir.Table) -> ir.Table:
    """Give each rejected row an id of its content, and of its number among equal ones."""
    content = ibis.literal("\x1f").join([judged.source_file, judged.reason, judged.row.fill_null("")])
    return REJECTED.check(judged.mutate(rejected_id=(content + "\x1f" + judged.copy.cast("string")).hexdigest("md5")))


def _id_of_content(raw: ir.Table) -> ir.StringValue:
    """Return a hash of what a row has in the mapped columns; equal rows have equal ones."""
    mapped = [name for name in EVENTS.schema.names if name in raw.columns and name not in ("event_id", "source_file")]
    content = ibis.literal("\x1f").join([_as_written(raw[name]).fill_null("\x1e") for name in mapped])
    return content.hexdigest("md5")


def _is_given(value: ir.Value) -> ir.BooleanValue:
    text = value.cast("string")
    # Whatever sorts from "!" on begins with no space: so nearly every row is spared the costly strip.
    return ibis.ifelse(text >= "!", True, text.strip().fill_null("") != "")


def as_text(value: ir.Value) -> ir.StringValue:
    """Return a column as text, blank as null; a whole number without the .0 that float columns give to ids."""
    return ibis.ifelse(_is_given(value), _as_written(value), None)


def _as_written(value: ir.Value) -> ir.StringValue:
    text = value.cast("string")
    if value.type().is_floating():
        exact = ibis.ifelse(value.abs() < MAXIMUM_EXACT_INTEGER, value, None)
        text = ibis.ifelse(exact == exact.floor(), exact.cast("int64").cast("string"), text)
        text = ibis.ifelse(value.isnan(), None, text)
    return text


def _number(value: ir.Value) -> ir.FloatingValue:
    """Return a column as a number, and null where it is blank or no sensible number."""
    number = value.try_cast("float64")
    return ibis.ifelse(number.abs() <= MAXIMUM_NUMBER, number, None)


def _is_bad_number(value: ir.Value) -> ir.BooleanValue:
    """Tell what is there and no sensible number; NaN is how some sources write null."""
    number = value.try_cast("float64")
    return _is_given(value) & (number.isnull() | (~number.isnan() & (number.abs() > MAXIMUM_NUMBER)))


def _time(raw: ir.Value, unit: str, zone: str, name: str) -> ir.TimestampValue:
    """Read a time in whatever type the source has it; null where it cannot be read or is in no year from 1 to 9999."""
    instant = _read_time(raw, unit, zone, name)
    is_sane = instant.between(ibis.literal(FIRST_INSTANT, TIME), ibis.literal(LAST_INSTANT, TIME))
    return ibis.ifelse(is_sane, instant, None)


def _read_time(raw: ir.Value, unit: str, zone: str, name: str) -> ir.TimestampValue:
    kind = raw.type()
    if kind.is_timestamp() and kind.timezone is not None:
        return raw.cast(TIME)
    if kind.is_date() or kind.is_timestamp():
        return local_to_utc(zone, raw.cast("timestamp"))
    if kind.is_numeric() and unit in ("iso", "day"):
        raise SourceError(f"events.columns.{name}: its times are numbers; set events.time_unit to s, ms, us or ns")
    text = raw.cast("string").strip().upper()
    if unit in UNITS_PER_SECOND:
        number = text.try_cast(dt.Decimal(38, 9))
        bounds = (int(bound.timestamp()) * UNITS_PER_SECOND[unit] for bound in (FIRST_INSTANT, LAST_INSTANT))
        first, last = (ibis.literal(str(bound)).cast(dt.Decimal(38, 9)) for bound in bounds)
        number = ibis.ifelse(number.between(first, last), number, None)  # what is beyond would overflow
        second = ibis.literal(f"{1 / UNITS_PER_SECOND[unit]:.9f}").cast(dt.Decimal(10, 9))
        return local_to_utc("UTC", utc_of_epoch_us((number * second * 1_000_000).cast("int64")))
    text = ibis.ifelse(text.re_search(STARTS_AS_DATE), text, None)
    if unit == "day":
        return local_to_utc(zone, text.left(10).try_cast("date").cast("timestamp"))
    has_offset = text.length().between(11, 64) & text.re_search(HAS_OFFSET)
    # The engine wants seconds where there is an offset, and no space before the offset.
    text = text.re_replace(HOUR_AND_MINUTE, r"\1:00\2").re_replace(SPACED_OFFSET, r"\1")
    instant = ibis.ifelse(has_offset, text.try_cast(TIME), local_to_utc(zone, text.try_cast(dt.Timestamp())))
    # What needs none of the above, as most times do, is spared it.
    is_plain = raw.cast("string").re_search(PLAIN_TIME)
    return ibis.ifelse(is_plain, local_to_utc(zone, raw.cast("string").try_cast(dt.Timestamp())), instant)
