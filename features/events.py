"""EVENTS: what users did. Rows of any source are accepted under this contract, or rejected with a reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Literal

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from features.first_ids import FIRST_ID
from features.limits import END_OF_INSTANTS, FIRST_INSTANT
from features.placeholders import without_placeholders
from features.sources import Source, SourceError, Time, row_text
from features.table import TIME, Table, materialize, stack
from features.values import (
    AMOUNT_MAX,
    UnitError,
    as_instant,
    as_json,
    as_number,
    as_text,
    is_beyond_amounts,
    is_beyond_instants,
    is_given,
    is_inexact,
    is_no_number,
)

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
    "malformed_row": "a line that could not be read as a row",
    "no_user": "no user",
    "inexact_id": "an id that is a number too large to be exact",
    "no_time": "no time",
    "unparseable_time": "a time that could not be read",
    "time_out_of_range": f"a time that is not from {FIRST_INSTANT.year} to {END_OF_INSTANTS.year - 1}",
    "no_event_name": "no event name",
    "unparseable_number": "a quantity or revenue that is not a number",
    "amount_out_of_range": f"a quantity or revenue beyond {AMOUNT_MAX:,.0f}",
    "erased": "an event of a user who was erased since",
    "time_in_the_future": "a time in the future, held back until then",
    "duplicate_id": "an event id that was there already",
    "duplicate_line": "a line of an order that was there already under another event id",
}
"""Why a row is rejected, in the order in which reasons are looked for: a row has one reason, the first."""

OUT_OF_RANGE, FUTURE = "time_out_of_range", "time_in_the_future"
DUPLICATE_ID, DUPLICATE_LINE = "duplicate_id", "duplicate_line"

PAGE_VIEW = "page_view"
SEARCH = "search"
ADD_TO_CART = "add_to_cart"
PURCHASE = "purchase"
REFUND = "refund"
SUPPORT_VIEW = "support_view"

ID_COLUMNS = ("event_id", "user_id", "anonymous_id", "account_id", "item_id", "order_id")
"""What is kept digit for digit."""
MADE = "content:"
"""What ids begin with that are made of a row's content."""


@ibis.udf.scalar.builtin(name="timezone", signature=((dt.string, TIME), dt.Timestamp()))
def utc_to_local(zone: str, instant: ir.TimestampValue) -> ir.TimestampValue:
    """Return the local time of an instant."""


@ibis.udf.scalar.builtin(name="epoch_us", signature=((TIME,), dt.int64))
def epoch_us(instant: ir.TimestampValue) -> ir.IntegerValue:
    """Return microseconds since 1970."""


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
    parts: Sequence[ir.Table],
    source: Source,
    time_zone: str,
    now: datetime,
    erased_among: Callable[[ir.Table], ir.Table] | None = None,
    due: ir.Table | None = None,
    stored_among: Callable[[ir.Table], ir.Table] | None = None,
) -> tuple[ir.Table, ir.Table]:
    """Judge every row of a source: return EVENTS and REJECTED, which together have as many rows as parts and `due`.

    The parts are as `sources.read_events` gives them. Times without zone are in the zone of their column, of the
    source, or else in `time_zone`. Blank text is null, and a user whose id is one of the source's `no_user`
    is none. Of rows with one event id the first to be ingested is accepted.
    A source without ids gets them from the rows' content: equal rows within a file are separate events, equal rows in
    two files are one event. A source that does not say when it learned of an event learned of it at once:
    ingested_at = occurred_at.
    `erased_among` gives user_id and erased_at of those of some users who were erased: what they did before is rejected.
    `due` are EVENTS that were held back as in the future when they were read, and are no longer. `stored_among` gives
    event_id and properties of those of some ids that a lake holds: a row with an id by rule 1 that it holds keeps both.
    A rejected row is text as the source has it; of a duplicate, and of what is held back, the event that it would have
    been, as JSON; of a user who was erased, null.
    Raises SourceError where the time's type needs a unit.
    """
    tables = [_judge(part, source, time_zone, now, erased_among, stored_among) for part in parts]
    if due is not None:
        nothing = ibis.null("string")
        tables.append(EVENTS.check(due).mutate(is_made=ibis.literal(False), reason=nothing, row=nothing))
    judged = reduce(stack, tables)
    bad = judged.filter(judged.reason.notnull() & (judged.reason != FUTURE))
    bad = bad.mutate(copy=ibis.row_number().over(group_by=[bad.source_file, bad.reason, bad.row]))
    good, held = judged.filter(judged.reason.isnull()), judged.filter(judged.reason == FUTURE)
    shared = materialize(good.group_by("event_id").agg(rows=good.count()).filter(lambda ids: ids["rows"] > 1))
    rejected = stack(_reject(bad), reject_events(_count_equal(_number_copies(held)), FUTURE))
    if not shared.count().to_pyarrow().as_py():
        return EVENTS.check(good), rejected
    # Windows sort, so only rows that share their id with another go through them.
    ranked = materialize(_rank(_number_copies(good.semi_join(shared, "event_id"))))
    late = _count_equal(ranked, ranked["rank"]).filter(ranked["rank"] > 0)
    events = EVENTS.check(good.anti_join(shared, "event_id")).union(EVENTS.check(ranked.filter(ranked["rank"] == 0)))
    return events, stack(rejected, reject_events(late, DUPLICATE_ID))


def _judge(
    raw: ir.Table,
    source: Source,
    time_zone: str,
    now: datetime,
    erased_among: Callable[[ir.Table], ir.Table] | None,
    stored_among: Callable[[ir.Table], ir.Table] | None,
) -> ir.Table:
    """Return rows as EVENTS, beside `is_made` of an id, the reason to reject a row by itself, and then its text."""
    rows = raw.mutate(
        given_id=as_text(raw.event_id) if "event_id" in raw.columns else ibis.null("string"),
        has_time=is_given(raw.occurred_at),
        has_bad_ingestion=is_given(raw.ingested_at) if "ingested_at" in raw.columns else ibis.literal(False),
        has_no_number=ibis.or_(*(is_no_number(raw[name]) for name in NUMBERS if name in raw.columns)),
        is_beyond_amounts=ibis.or_(*(is_beyond_amounts(raw[name]) for name in NUMBERS if name in raw.columns)),
        has_inexact_id=ibis.or_(*(is_inexact(raw[name]) for name in ID_COLUMNS if name in raw.columns)),
        occurred_at=_instants(raw, source, "occurred_at", time_zone),
        ingested_at=_instants(raw, source, "ingested_at", time_zone),
        **{
            name: as_json(raw[name]) if name == "properties" else as_text(raw[name])
            for name in ("user_id", "event_name", *TEXTS)
            if name in raw.columns
        },
        **{name: as_number(raw[name]) for name in NUMBERS if name in raw.columns},
    )
    mapped = [name for name in EVENTS.schema.names if name in raw.columns and name not in ("event_id", "source_file")]
    rows = rows.mutate(
        event_id=rows.given_id.fill_null(_id_of_content(rows, mapped)),
        is_made=rows.given_id.isnull(),
        has_bad_ingestion=rows.has_bad_ingestion & rows.ingested_at.isnull(),
        user_id=without_placeholders(rows.user_id, source.no_user),
        ingested_at=rows.ingested_at.fill_null(rows.occurred_at),
        event_name=rows.event_name.substitute(source.names) if source.names else rows.event_name,
    )
    if stored_among is not None:
        rows = _keep_first_ids(rows, stored_among)
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
            (rows.has_inexact_id, "inexact_id"),
            (~rows.has_time, "no_time"),
            (rows.occurred_at.isnull() | rows.has_bad_ingestion, "unparseable_time"),
            (is_beyond_instants(rows.occurred_at) | is_beyond_instants(rows.ingested_at), OUT_OF_RANGE),
            (rows.event_name.isnull(), "no_event_name"),
            (rows.has_no_number, "unparseable_number"),
            (rows.is_beyond_amounts, "amount_out_of_range"),
            (rows.occurred_at < erased_at, "erased"),
            (rows.occurred_at > ibis.literal(now, TIME), FUTURE),
        ),
    )
    is_kept = rows.reason.notnull() & (rows.reason != FUTURE) & ~rows.is_of_erased
    text = ibis.ifelse(is_kept, row_text(rows), ibis.null("string"))
    unmapped = {name: ibis.null(EVENTS.schema[name]) for name in (*TEXTS, *NUMBERS) if name not in raw.columns}
    stored = [name for name in EVENTS.schema.names if name not in unmapped]
    judged = materialize(rows.select(*stored, "is_made", "reason", row=text)).mutate(**unmapped)
    return judged.select(*EVENTS.schema.names, "is_made", "reason", "row")


def _keep_first_ids(rows: ir.Table, stored_among: Callable[[ir.Table], ir.Table]) -> ir.Table:
    """Give rows without an id the one by rule 1 that the lake holds, where it does, with its text of properties."""
    rows = materialize(rows)
    for first in [name for name in rows.columns if name.startswith(FIRST_ID)]:
        stored = stored_among(rows.filter(rows.is_made).select(event_id=first).distinct())
        stored = stored.select(stored_id="event_id", stored_properties="properties")
        both = rows.left_join(stored, rows[first] == stored.stored_id)
        has_first = both.is_made & both.stored_id.notnull()
        kept = {"event_id": ibis.ifelse(has_first, both.stored_id, both.event_id)}
        if "properties" in rows.columns:
            kept["properties"] = ibis.ifelse(has_first, both.stored_properties, both.properties)
        rows = materialize(both.mutate(**kept).drop("stored_id", "stored_properties"))
    return rows


def _instants(
    raw: ir.Table, source: Source, name: Literal["occurred_at", "ingested_at"], time_zone: str
) -> ir.TimestampValue:
    if name not in raw.columns:
        return ibis.null(TIME)
    try:
        return as_instant(raw[name], source.unit_of(name), source.zone_of(name, time_zone))
    except UnitError as error:
        if not raw.filter(raw[name].notnull()).limit(1).count().to_pyarrow().as_py():
            return ibis.null(TIME)  # a column without a value has a type, but no unit
        given = getattr(source.columns, name)
        key = f"events.columns.{name}.time_unit" if isinstance(given, Time) and given.time_unit else "events.time_unit"
        raise SourceError(f"events.columns.{name}: {error}; set {key} to s, ms, us or ns") from error


def _number_copies(rows: ir.Table) -> ir.Table:
    """Return rows as EVENTS, where made ids of the second and further equal rows of a file end in their number."""
    copy = ibis.row_number().over(group_by=[rows.source_file, rows.event_id, rows.is_made])
    made = rows.event_id + ibis.ifelse(copy > 0, ibis.literal("-") + copy.cast("string"), "")
    return EVENTS.check(rows.mutate(event_id=ibis.ifelse(rows.is_made, made, rows.event_id)))


def _count_equal(events: ir.Table, order: ir.Value | None = None) -> ir.Table:
    """Give rows that are equal in all columns of EVENTS a number, `copy`, from 0."""
    copy = ibis.row_number().over(group_by=[events[name] for name in EVENTS.schema.names], order_by=order)
    return events.mutate(copy=copy)


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


def reject_events(events: ir.Table, reason: str) -> ir.Table:
    """Turn EVENTS into REJECTED, each as JSON, which `events_in` reads.

    Rows of one file that are equal have a number, `copy`, if they are given one; what was accepted first has 0.
    """
    text = ibis.struct({name: events[name] for name in EVENTS.schema.names if name != "source_file"})
    if "copy" not in events.columns:
        events = events.mutate(copy=ibis.literal(0, "int64"))
    return _reject(events.mutate(reason=ibis.literal(reason), row=text.cast("json").cast("string")))


def events_in(rejected: ir.Table) -> ir.Table:
    """Return the EVENTS that REJECTED hold as JSON, beside their rejected_id.

    What was withheld since is none, nor is what an earlier release kept as the source wrote it.
    """
    is_event = ibis.and_(
        *(rejected.row.contains(f'"{name}":') for name in EVENTS.schema.names if name != "source_file")
    )
    given = rejected.filter(rejected.row.startswith('{"event_id":') & is_event)
    text = given.row.cast("json")
    parsed = {
        name: _field(text, name).try_cast(dtype.copy(nullable=True))
        for name, dtype in EVENTS.schema.items()
        if name != "source_file"
    }
    events = given.select("rejected_id", "source_file", **parsed)
    whole = events.filter(*(events[name].notnull() for name in EVENTS.required))
    return whole.select("rejected_id", *EVENTS.schema.names)


@ibis.udf.scalar.builtin(name="json_extract_string", signature=((dt.json, dt.string), dt.string))
def _field(value: ir.Value, path: str) -> ir.StringValue:
    """Return the text of a field of a JSON object."""


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


def _id_of_content(judged: ir.Table, mapped: Sequence[str]) -> ir.StringValue:
    """Return a hash of what a row says in the mapped columns, under rule 2: rows that say the same have equal ones.

    It is made of what is stored of them, so that the type that an engine finds for a column has no part in it. A
    boolean is 1 or 0, which other sources write.
    """
    content = ibis.literal("\x1f").join([_in_id(judged[name]).fill_null("\x1e") for name in mapped])
    return ibis.literal(MADE) + content.hexdigest("md5")


def _in_id(value: ir.Value) -> ir.StringValue:
    if value.type().is_timestamp():
        return epoch_us(value).cast("string")
    text = value.cast("string")
    return text.substitute({"true": "1", "false": "0"}) if value.type().is_string() else text
