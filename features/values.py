"""What a value of a source is: its canonical text, number and instant.

They depend on the value, on the type that its own file gives it, and on the configuration; never on what is read with
it. So the same content is the same from CSV, JSON lines and Parquet, and in every order of files. The table of cases is
in docs/decisions/016-canonical-values.md.
"""

import json
from datetime import UTC, datetime
from typing import Any

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from features.limits import END_OF_INSTANTS, FIRST_INSTANT
from features.table import TIME

CANONICAL_JSON = "habitus_canonical_json"
"""The function of the engine that `canonical_json` is."""
MAXIMUM_EXACT_INTEGER = 2**53
MAXIMUM_EXACT_INTEGER_32 = 2**24
AMOUNT_MAX = 1e12
"""The largest quantity or revenue, of either sign."""
FAR = datetime(9999, 12, 31, tzinfo=UTC)
"""What stands for a time that is too far away for the engine."""
UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
HAS_OFFSET = r"(Z|UTC|GMT|[+-](0\d|1[0-5])(:?[0-5]\d(:[0-5]\d)?)?)$"
"""An offset that clocks can have: up to 15:59:59, as in PostgreSQL."""
ENDS_AS_OFFSET = r"[T ].*[+-][\d:.]+$"
HOUR_AND_MINUTE = r"^(\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2})( ?[^:\d. ].*)$"
SPACED_OFFSET = r" ([+-]\d{2}(:?\d{2})?)$"
STARTS_AS_DATE = r"^\d{4}-\d{2}-\d{2}([T ].*)?$"
PLAIN_TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?$"
DIGITS = r"^-?\d+$"


class UnitError(Exception):
    """Say that times are numbers of which nobody knows the unit."""


@ibis.udf.scalar.builtin(name="timezone", signature=((dt.string, dt.Timestamp()), TIME))
def local_to_utc(zone: str, local: ir.TimestampValue) -> ir.TimestampValue:
    """Return the instant of a local time; of an ambiguous one, the engine's choice, always the same."""


@ibis.udf.scalar.builtin(name="make_timestamp", signature=((dt.int64,), dt.Timestamp()))
def utc_of_epoch_us(microseconds: ir.IntegerValue) -> ir.TimestampValue:
    """Return the time in UTC of microseconds since 1970."""


@ibis.udf.scalar.builtin(name="json_type", signature=((dt.json,), dt.string))
def _json_type(value: ir.Value) -> ir.StringValue:
    """Return what a JSON value is: VARCHAR, UBIGINT, BIGINT, DOUBLE, BOOLEAN, OBJECT, ARRAY or NULL."""


@ibis.udf.scalar.builtin(name="json_extract_string", signature=((dt.json, dt.string), dt.string))
def _json_string(value: ir.Value, path: str) -> ir.StringValue:
    """Return the text of a JSON string."""


@ibis.udf.scalar.builtin(name=CANONICAL_JSON, signature=((dt.string,), dt.string))
def _canonical_json(text: ir.StringValue) -> ir.StringValue:
    """Return JSON text as `canonical_json` has it."""


def add_functions(con: duckdb.DuckDBPyConnection) -> None:
    """Give an engine the function that `as_text` and `as_json` use."""
    con.create_function(CANONICAL_JSON, canonical_json, ["VARCHAR"], "VARCHAR")


def canonical_json(text: str) -> str:
    """Return JSON with its keys in order, without nulls in objects, blanks, and zeros that say nothing.

    What is no JSON object or list stays as it is. A number that no double holds becomes text.

    >>> canonical_json('{"b": 1.50, "a": {"y": null, "x": 2.0}, "c": [null, 12345678901234567890]}')
    '{"a":{"x":2},"b":1.5,"c":[null,12345678901234567890]}'
    """
    try:
        given = json.loads(text, parse_float=_number_of, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    if not isinstance(given, dict | list):
        return text
    written = json.dumps(_without_nulls(given), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return written.encode("utf-8", "replace").decode()  # halves of characters, which are no text


def _number_of(text: str) -> int | float | str:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        return text
    return int(number) if number.is_integer() and abs(number) < MAXIMUM_EXACT_INTEGER else number


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def is_given(value: ir.Value) -> ir.BooleanValue:
    """Tell what is neither null nor blank."""
    text = _json_text(value) if value.type().is_json() else value.cast("string")
    # Whatever sorts from "!" on begins with no space: so nearly every row is spared the costly strip.
    return ibis.ifelse(text >= "!", True, text.strip().fill_null("") != "")


def as_text(value: ir.Value) -> ir.StringValue:
    """Return a column as canonical text, blank as null.

    Text is as it is written, digit for digit. A number has no zeros at its end, and a whole one no point: 1, 1.0 and
    1.00 are "1". A boolean is "true" or "false". Objects and lists are as `canonical_json` has them. A struct of a
    source's columns, as ids of several are, is the texts of its fields with | between them; null if all are blank.
    """
    kind = value.type()
    if isinstance(kind, dt.Struct) and all(name.startswith(PART) for name in kind.names):
        parts = [as_text(value[name]) for name in kind.names]
        joined = ibis.literal("|").join([part.fill_null("") for part in parts])
        return ibis.ifelse(ibis.and_(*(part.isnull() for part in parts)), None, joined)
    text = canonical_text(value)
    return ibis.ifelse(is_given(text), text, None)


PART = "habitus_part_"
"""What the fields of a struct are called that are an id together."""


def canonical_text(value: ir.Value) -> ir.StringValue:
    """Return the canonical text of a value; see `as_text`."""
    kind = value.type()
    if kind.is_json():
        return _json_text(value)
    if kind.is_floating():
        return _float_text(_as_double(value))
    if kind.is_decimal():
        text = value.cast("string")
        return ibis.ifelse(text.contains("."), text.re_replace(r"\.?0+$", ""), text)
    if kind.is_nested():
        return _canonical_json(value.cast("json").cast("string"))
    return value.cast("string")


def as_json(value: ir.Value) -> ir.StringValue:
    """Return a column as text, blank as null; what is a JSON object or list as `canonical_json` has it."""
    text = as_text(value)
    if value.type().is_nested():
        return text
    return ibis.ifelse(text.left(1).isin(["{", "["]), _canonical_json(text), text)


def is_inexact(value: ir.Value) -> ir.BooleanValue:
    """Tell an id that is a float so large that its last digits may be lost."""
    kind = value.type()
    if isinstance(kind, dt.Struct):
        return ibis.or_(*(is_inexact(value[name]) for name in kind.names))
    if kind.is_json():
        text = value.cast("string")
        is_float = (_json_type(value) == "DOUBLE") & ~text.re_search(DIGITS)
        number = ibis.ifelse(is_float, text.try_cast("float64"), None)
        return (number.abs() >= MAXIMUM_EXACT_INTEGER).fill_null(False)
    if not kind.is_floating():
        return ibis.literal(False)
    limit = MAXIMUM_EXACT_INTEGER if isinstance(kind, dt.Float64) else MAXIMUM_EXACT_INTEGER_32
    return (value.abs() >= limit).fill_null(False)


def as_number(value: ir.Value) -> ir.FloatingValue:
    """Return a column as a number, and null where it is blank or no sensible number; a boolean is 1 or 0."""
    number = _as_double(value)
    return ibis.cases((number == 0, 0.0), (number.abs() <= AMOUNT_MAX, number))  # 0 has no sign


def is_no_number(value: ir.Value) -> ir.BooleanValue:
    """Tell what is there and is no number; NaN is how some sources write null."""
    return is_given(value) & _as_double(value).isnull()


def is_beyond_amounts(value: ir.Value) -> ir.BooleanValue:
    """Tell a number that is larger than any amount, of either sign."""
    number = _as_double(value)
    return (~number.isnan() & (number.abs() > AMOUNT_MAX)).fill_null(False)


def is_beyond_instants(instant: ir.TimestampValue) -> ir.BooleanValue:
    """Tell what `as_instant` gives that is out of the range of instants."""
    is_within = (instant >= ibis.literal(FIRST_INSTANT, TIME)) & (instant < ibis.literal(END_OF_INSTANTS, TIME))
    return ~is_within.fill_null(True)


def is_no_day(day: datetime) -> bool:
    """Tell a day that is out of the range of instants."""
    return not FIRST_INSTANT <= day < END_OF_INSTANTS


def as_instant(value: ir.Value, unit: str, zone: str) -> ir.TimestampValue:
    """Return a column as instants, null where it cannot be read; of any year, so ask `is_beyond_instants`.

    Numbers count a unit since 1970; local times are in a zone. Raises UnitError where they are numbers without a unit.
    """
    kind = value.type()
    if kind.is_date() or kind.is_timestamp():
        return _read_typed_time(value, zone)
    if kind.is_numeric() and unit in ("iso", "day"):
        raise UnitError("its times are numbers")
    written = canonical_text(value)
    return _read_epoch(written, unit) if unit in UNITS_PER_SECOND else _read_written_time(written, unit, zone)


def _as_double(value: ir.Value) -> ir.FloatingValue:
    """Return the double that is nearest to a number as it is written: 0.1 is 0.1, also of a float of 32 bits."""
    kind = value.type()
    if kind.is_json():
        text = _json_text(value)
        is_boolean = _json_type(value) == "BOOLEAN"
        return ibis.ifelse(is_boolean, (text == "true").cast("int8").cast("string"), text).try_cast("float64")
    if kind.is_decimal() or (kind.is_floating() and not isinstance(kind, dt.Float64)):
        return value.cast("string").try_cast("float64")
    return value.try_cast("float64")


def _float_text(number: ir.FloatingValue) -> ir.StringValue:
    exact = ibis.ifelse(number.abs() < MAXIMUM_EXACT_INTEGER, number, None)
    text = ibis.ifelse(exact == exact.floor(), exact.cast("int64").cast("string"), number.cast("string"))
    return ibis.ifelse(number.isnan(), None, text)


def _json_text(value: ir.Value) -> ir.StringValue:
    kind, text = _json_type(value), value.cast("string")
    is_fraction = (kind == "DOUBLE") & ~text.re_search(DIGITS)
    number = ibis.ifelse(is_fraction, text, None).try_cast("float64")
    return ibis.cases(
        (kind == "VARCHAR", _json_string(value, "$")),
        (kind.isin(["OBJECT", "ARRAY"]), _canonical_json(text)),
        (is_fraction & (number.abs() < float("inf")), _float_text(number)),
        (kind != "NULL", text),
    )


def _read_typed_time(value: ir.Value, zone: str) -> ir.TimestampValue:
    kind, far = value.type(), ibis.literal(FAR, TIME)
    has_zone = kind.is_timestamp() and kind.timezone is not None
    read = value.try_cast(TIME if has_zone else dt.Timestamp())
    first, last = (bound if has_zone else bound.replace(tzinfo=None) for bound in (datetime(1, 1, 3, tzinfo=UTC), FAR))
    read = ibis.ifelse(read.between(ibis.literal(first, read.type()), ibis.literal(last, read.type())), read, None)
    instant = read if has_zone else local_to_utc(zone, read)
    return ibis.ifelse(value.notnull(), instant.fill_null(far), None)


def _read_epoch(written: ir.StringValue, unit: str) -> ir.TimestampValue:
    number = written.strip().try_cast(dt.Decimal(38, 9))
    far = ibis.literal(str(int(FAR.timestamp()) * UNITS_PER_SECOND[unit])).cast(dt.Decimal(38, 9))
    number = ibis.ifelse(number.abs() <= far, number, ibis.ifelse(number.notnull(), far, None))  # else it overflows
    second = ibis.literal(f"{1 / UNITS_PER_SECOND[unit]:.9f}").cast(dt.Decimal(10, 9))
    return local_to_utc("UTC", utc_of_epoch_us((number * second * 1_000_000).cast("int64")))


def _read_written_time(written: ir.StringValue, unit: str, zone: str) -> ir.TimestampValue:
    text = written.strip().upper()
    text = ibis.ifelse(text.re_search(STARTS_AS_DATE), text, None)
    if unit == "day":
        return local_to_utc(zone, text.left(10).try_cast("date").cast("timestamp"))
    has_offset = text.length().between(11, 64) & text.re_search(HAS_OFFSET)
    # The engine wants seconds where there is an offset, and no space before the offset.
    text = text.re_replace(HOUR_AND_MINUTE, r"\1:00\2").re_replace(SPACED_OFFSET, r"\1")
    local = ibis.ifelse(
        text.re_search(ENDS_AS_OFFSET), None, text
    )  # an offset that no clock has makes it no local time
    instant = ibis.ifelse(has_offset, text.try_cast(TIME), local_to_utc(zone, local.try_cast(dt.Timestamp())))
    # What needs none of the above, as most times do, is spared it.
    is_plain = written.re_search(PLAIN_TIME)
    return ibis.ifelse(is_plain, local_to_utc(zone, written.try_cast(dt.Timestamp())), instant)
