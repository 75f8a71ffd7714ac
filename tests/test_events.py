import csv
import json
import tomllib
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from histories import events_of
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law
from messages import assert_documented

from features.events import EVENTS, REASONS, REJECTED, accept, reconcile
from features.sessions import sessionize
from features.sources import Source, SourceError, read_events
from features.table import materialize

SOURCES = Path(__file__).parent / "data/sources"
TOOLS = ("ga4", "snowplow", "segment", "posthog", "retailrocket")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = {"user_id": "user_id", "occurred_at": "occurred_at", "event_name": "event_name"}
NO_COLUMNS = ("source_file", "row", "malformed")
DEFAULTS = {
    **{"user_id": "u", "occurred_at": "2024-01-01", "event_name": "view"},
    **{"source_file": "e.csv", "malformed": False},
}

Row = dict[str, Any]


def judge(
    engine: DuckDB, rows: list[Row], *, types: dict[str, pa.DataType] | None = None, zone: str = "UTC", **source: Any
) -> tuple[list[Row], list[Row]]:
    """Judge rows that name only what matters; return events by their id and rejected rows by their text."""
    names = sorted({name for row in rows for name in row})  # in one order, for which queries are compiled once
    whole = [
        dict.fromkeys(names) | DEFAULTS | {"row": f"row {number}"} | row for number, row in enumerate(rows, start=1)
    ]
    columns = {}
    for name in whole[0]:
        column = pa.array([row[name] for row in whole], (types or {}).get(name))
        columns[name] = column.cast("string") if pa.types.is_null(column.type) else column
    raw = engine.create_table(f"raw_{uuid.uuid4().hex}", pa.table(columns), temp=True)
    mapped = {name: name for name in columns if name not in NO_COLUMNS}
    events, rejected = accept([raw], Source.model_validate({"files": "e.csv", "columns": mapped} | source), zone, NOW)
    return (
        events.order_by("event_id").to_pyarrow().to_pylist(),
        rejected.order_by("row", "source_file", "rejected_id").to_pyarrow().to_pylist(),
    )


def reasons(engine: DuckDB, rows: list[Row], **settings: Any) -> list[str]:
    return [row["reason"] for row in judge(engine, rows, **settings)[1]]


def read_times(
    engine: DuckDB, given: list[Any], type_: pa.DataType | None = None, **settings: Any
) -> list[datetime | str]:
    """Return the instant that each of a source's times is read as, or why it is rejected."""
    types = {"occurred_at": type_} if type_ else None
    rows = [{"event_id": f"{i:03}", "occurred_at": time, "row": f"{i:03}"} for i, time in enumerate(given)]
    events, rejected = judge(engine, rows, types=types, **settings)
    found: dict[str, datetime | str] = {event["event_id"]: event["occurred_at"] for event in events}
    for row in rejected:  # what is held back is the event as JSON
        found[json.loads(row["row"])["event_id"] if row["row"].startswith("{") else row["row"]] = row["reason"]
    return [found[key] for key in sorted(found)]


def assert_read_as(engine: DuckDB, expected: dict[Any, str], **settings: Any) -> None:
    """Compare what times are read as with what they are, an instant in UTC or a reason."""
    read = read_times(engine, list(expected), **settings)
    words = [time if isinstance(time, str) else time.isoformat().removesuffix("+00:00") for time in read]
    assert dict(zip(expected, words, strict=True)) == expected


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- what is accepted ---


def test_an_accepted_row_is_an_event_with_what_the_source_says(engine: DuckDB) -> None:
    said = {
        **{"event_id": "e1", "user_id": "ada", "anonymous_id": "cookie", "account_id": "acme", "event_name": "buy"},
        **{"page": "/pay", "element": "button", "item_id": "lamp", "order_id": "7", "category": "light"},
        "properties": "{}",
        **{"source": "google", "medium": "cpc", "campaign": "spring", "device": "phone", "country": "GB"},
        **{"quantity": 2.0, "revenue": 19.5, "order_id": "o1"},
    }
    times = {"occurred_at": "2024-01-01T10:00:00Z", "ingested_at": "2024-01-01T10:05:00Z"}
    events, rejected = judge(engine, [said | times])
    read = {"occurred_at": at("2024-01-01T10:00"), "ingested_at": at("2024-01-01T10:05"), "source_file": "e.csv"}
    assert events == [said | read]
    assert rejected == []


def test_what_a_source_does_not_map_is_null(engine: DuckDB) -> None:
    [event], _ = judge(engine, [{}])
    given = {"event_id", "user_id", "occurred_at", "ingested_at", "event_name", "source_file"}
    assert {name for name, value in event.items() if value is not None} == given


def test_blank_text_is_null(engine: DuckDB) -> None:
    events, _ = judge(engine, [{"page": ""}, {"page": "  "}, {"page": "\t\n"}, {"page": None}])
    assert [event["page"] for event in events] == [None] * 4


def test_other_text_stays_as_it_is(engine: DuckDB) -> None:
    [event], _ = judge(engine, [{"user_id": " Ada\n"}])
    assert event["user_id"] == " Ada\n"


def test_a_sources_names_become_ours_and_others_stay(engine: DuckDB) -> None:
    rows = [{"event_id": name, "event_name": name} for name in ("Order Completed", "order completed", "wishlist_add")]
    events, _ = judge(engine, rows, names={"Order Completed": "purchase"})
    assert {event["event_id"]: event["event_name"] for event in events} == {
        "Order Completed": "purchase",
        "order completed": "order completed",
        "wishlist_add": "wishlist_add",
    }


def test_events_and_rejected_rows_come_under_their_contracts(engine: DuckDB) -> None:
    [event], [row] = judge(engine, [{}, {"user_id": ""}])
    assert tuple(event) == EVENTS.schema.names
    assert tuple(row) == REJECTED.schema.names


# --- reasons ---


def test_a_line_that_could_not_be_read_is_rejected_as_malformed(engine: DuckDB) -> None:
    row = {"malformed": True, "user_id": None, "occurred_at": None, "event_name": None}
    assert reasons(engine, [row]) == ["malformed_row"]


def test_a_blank_user_is_rejected_as_no_user(engine: DuckDB) -> None:
    assert reasons(engine, [{"user_id": user} for user in (None, "", "   ", "\t\n")]) == ["no_user"] * 4


def test_a_placeholder_for_a_user_is_rejected_as_no_user(engine: DuckDB) -> None:
    assert reasons(engine, [{"user_id": "undefined"}, {"user_id": " NULL "}]) == ["no_user", "no_user"]


def test_a_user_whose_id_is_in_no_list_of_placeholders_is_one(engine: DuckDB) -> None:
    events, rejected = judge(engine, [{"user_id": "null"}, {"user_id": "guest"}], no_user=["guest"])

    assert [event["user_id"] for event in events] == ["null"]
    assert [row["reason"] for row in rejected] == ["no_user"]


def test_a_blank_time_is_rejected_as_no_time(engine: DuckDB) -> None:
    assert reasons(engine, [{"occurred_at": time} for time in (None, "", "   ")]) == ["no_time"] * 3


def test_a_time_that_is_none_is_rejected_as_unparseable(engine: DuckDB) -> None:
    assert reasons(engine, [{"occurred_at": "yesterday"}]) == ["unparseable_time"]


def test_a_time_after_now_is_rejected_as_in_the_future(engine: DuckDB) -> None:
    assert reasons(engine, [{"occurred_at": "2026-01-01T00:00:00.000001Z"}]) == ["time_in_the_future"]


def test_a_time_of_just_now_is_accepted(engine: DuckDB) -> None:
    assert reasons(engine, [{"occurred_at": "2026-01-01T00:00:00Z"}]) == []


def test_a_blank_event_name_is_rejected_as_no_event_name(engine: DuckDB) -> None:
    assert reasons(engine, [{"event_name": name} for name in (None, "", "  ")]) == ["no_event_name"] * 3


@pytest.mark.parametrize("column", ["revenue", "quantity"])
def test_what_is_no_number_is_rejected_as_such(engine: DuckDB, column: str) -> None:
    numbers = ["ten", "1,5", "€ 5"]
    assert reasons(engine, [{column: number} for number in numbers]) == ["unparseable_number"] * 3


@pytest.mark.parametrize("column", ["revenue", "quantity"])
@pytest.mark.parametrize(
    "numbers",
    [
        ["inf", "-inf", "1e300", "1000000000001"],
        [float("inf"), float("-inf"), 1e300, -1e12 - 1],
        [2**62, -(2**62)],
        [Decimal(10) ** 37, -(Decimal(10) ** 37)],
    ],
    ids=["text", "floats", "integers", "decimals"],
)
def test_an_amount_beyond_a_million_millions_is_rejected_as_out_of_range(
    engine: DuckDB, column: str, numbers: list[Any]
) -> None:
    assert reasons(engine, [{column: number} for number in numbers]) == ["amount_out_of_range"] * len(numbers)


def read_numbers(engine: DuckDB, given: list[Any]) -> list[float | None]:
    rows = [{"event_id": f"{i:03}", "revenue": number} for i, number in enumerate(given)]
    return [event["revenue"] for event in judge(engine, rows)[0]]


def test_numbers_are_read_from_text(engine: DuckDB) -> None:
    assert read_numbers(engine, ["1.5", " 2 ", "-4", "1e12"]) == [1.5, 2, -4, 1e12]


def test_a_blank_number_is_null(engine: DuckDB) -> None:
    assert read_numbers(engine, ["", "  ", None, "NaN"]) == [None] * 4
    assert read_numbers(engine, [float("nan"), None]) == [None] * 2


def test_typed_numbers_are_read(engine: DuckDB) -> None:
    assert read_numbers(engine, [7, -4]) == [7, -4]
    assert read_numbers(engine, [Decimal("9.99")]) == [9.99]


def test_of_several_reasons_a_row_has_the_first(engine: DuckDB) -> None:
    mistakes: list[Row] = [
        {"revenue": "1e13"},
        {"revenue": "ten", "quantity": "1e13"},
        {"event_name": ""},
        {"occurred_at": "1066-10-14"},
        {"occurred_at": "yesterday"},
        {"occurred_at": ""},
        {"user_id": ""},
    ]
    piled: list[Row] = []
    for mistake in mistakes:
        piled.append((piled[-1] if piled else {}) | mistake)
    others = ("malformed_row", "inexact_id", "erased", "time_in_the_future", "duplicate_id", "duplicate_line")
    assert reasons(engine, piled) == [reason for reason in REASONS if reason not in others][::-1]


def test_an_event_is_held_back_as_in_the_future_only_if_nothing_else_is_wrong_with_it(engine: DuckDB) -> None:
    assert reasons(engine, [{"occurred_at": "2099-01-01", "revenue": "ten"}]) == ["unparseable_number"]


def test_a_rejected_row_is_kept_with_its_file(engine: DuckDB) -> None:
    _, [row] = judge(engine, [{"user_id": "", "source_file": "2024/a.csv", "row": ",2024-01-01,view"}])
    assert (row["source_file"], row["reason"], row["row"]) == ("2024/a.csv", "no_user", ",2024-01-01,view")


def test_equal_rejected_rows_are_all_kept(engine: DuckDB) -> None:
    _, rejected = judge(engine, [{"user_id": "", "row": "same"}] * 3)
    assert len({row["rejected_id"] for row in rejected}) == 3


# --- times ---


def test_a_time_with_an_offset_is_an_instant_whatever_the_zone(engine: DuckDB) -> None:
    expected = {
        "2024-06-30T10:00:00Z": "2024-06-30T10:00:00",
        "2024-06-30T10:00:00z": "2024-06-30T10:00:00",
        "2024-06-30T10:00:00+02:00": "2024-06-30T08:00:00",
        "2024-06-30T10:00:00-0530": "2024-06-30T15:30:00",
        "2024-06-30T10:00:00+02": "2024-06-30T08:00:00",
        "2024-06-30T10:00:00+02:00:30": "2024-06-30T07:59:30",
        "2024-06-30 10:00:00 UTC": "2024-06-30T10:00:00",
        "2024-06-30 10:00:00 utc": "2024-06-30T10:00:00",
        "2024-06-30T10:00:00.123456+02:00": "2024-06-30T08:00:00.123456",
        " 2024-06-30T10:00:00Z ": "2024-06-30T10:00:00",
        "2024-06-30T10:00Z": "2024-06-30T10:00:00",
        "2024-06-30 10:00 UTC": "2024-06-30T10:00:00",
        "2024-06-30 10:00:00 +0200": "2024-06-30T08:00:00",
    }
    assert_read_as(engine, expected, zone="America/New_York")


def test_a_time_without_an_offset_is_a_local_one(engine: DuckDB) -> None:
    expected = {
        "2024-06-30 10:00:00": "2024-06-30T14:00:00",
        "2024-06-30T10:00": "2024-06-30T14:00:00",
        "2024-06-30 10:00:00.25": "2024-06-30T14:00:00.250000",
        "2024-06-30": "2024-06-30T04:00:00",
        "2024-01-15 10:00:00": "2024-01-15T15:00:00",
    }
    assert_read_as(engine, expected, zone="America/New_York")


def test_the_sources_own_zone_comes_first(engine: DuckDB) -> None:
    assert_read_as(engine, {"2024-06-30": "2024-06-29T15:00:00"}, zone="Europe/Berlin", time_zone="Asia/Tokyo")


def test_the_clock_changes_with_the_season(engine: DuckDB) -> None:
    expected = {
        "2024-03-31 01:59:59": "2024-03-31T00:59:59",
        "2024-03-31 03:00:00": "2024-03-31T01:00:00",
        "2024-10-27 01:59:59": "2024-10-26T23:59:59",
        "2024-10-27 03:00:00": "2024-10-27T02:00:00",
    }
    assert_read_as(engine, expected, zone="Europe/Berlin")


def test_an_hour_that_is_there_twice_is_always_read_as_the_same(engine: DuckDB) -> None:
    found = set(read_times(engine, ["2024-10-27 02:30:00"] * 3, zone="Europe/Berlin"))
    assert len(found) == 1
    assert found <= {at("2024-10-27T00:30"), at("2024-10-27T01:30")}


@pytest.mark.parametrize(
    ("unit", "number"),
    [("s", 1719741600), ("ms", 1719741600000), ("us", 1719741600000000), ("ns", 1719741600000000000)],
)
def test_a_number_of_its_unit_since_1970_is_an_instant(engine: DuckDB, unit: str, number: int) -> None:
    for written in (number, float(number), str(number)):
        assert_read_as(engine, {written: "2024-06-30T10:00:00"}, time_unit=unit, zone="Asia/Tokyo")


def test_a_number_is_exact_to_the_microsecond(engine: DuckDB) -> None:
    assert_read_as(engine, {1719741600.25: "2024-06-30T10:00:00.250000"}, time_unit="s")
    assert_read_as(engine, {Decimal("1719741600.123456"): "2024-06-30T10:00:00.123456"}, time_unit="s")
    assert_read_as(engine, {"1719741600.123456": "2024-06-30T10:00:00.123456"}, time_unit="s")
    assert_read_as(engine, {1719741600123: "2024-06-30T10:00:00.123000"}, time_unit="ms")
    assert_read_as(engine, {"1719741600123456": "2024-06-30T10:00:00.123456"}, time_unit="us")
    assert_read_as(engine, {1719741600123456000: "2024-06-30T10:00:00.123456"}, time_unit="ns")


def test_a_number_may_have_an_exponent(engine: DuckDB) -> None:
    assert_read_as(engine, {"0": "1970-01-01T00:00:00", "1.7197416e9": "2024-06-30T10:00:00"}, time_unit="s")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_what_is_no_number_that_the_engine_knows_is_rejected(engine: DuckDB, unit: str) -> None:
    words = ["n/a", "nan", "inf", "-inf", "1e400", "9" * 50]
    assert read_times(engine, words, time_unit=unit) == ["unparseable_time"] * len(words)
    floats = [float("inf"), float("nan")]
    assert read_times(engine, floats, time_unit=unit) == ["unparseable_time"] * len(floats)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_number_that_is_no_time_in_range_is_rejected_as_such(engine: DuckDB, unit: str) -> None:
    for numbers in (["9" * 25, "-" + "9" * 25], [1e22, -1e22], [2**63 - 1, -(2**63)]):
        assert read_times(engine, numbers, time_unit=unit) == ["time_out_of_range"] * 2


def test_numbers_of_a_finer_unit_than_was_said_are_out_of_range(engine: DuckDB) -> None:
    numbers = [1719741600 * 10**6, 1719741600 * 10**9]
    assert read_times(engine, numbers, time_unit="s") == ["time_out_of_range"] * 2


@pytest.mark.parametrize("given", [1719741600, 1719741600.5])
@pytest.mark.parametrize("unit", ["iso", "day"])
def test_numbers_without_a_unit_are_an_error(engine: DuckDB, given: float, unit: str) -> None:
    with pytest.raises(
        SourceError, match=r"^events\.columns\.occurred_at: .*set events\.time_unit to s, ms, us or ns$"
    ):
        read_times(engine, [given], time_unit=unit)


def test_numbers_of_a_column_with_a_wrong_unit_of_its_own_say_so(engine: DuckDB) -> None:
    columns = COLUMNS | {"occurred_at": {"column": "occurred_at", "time_unit": "day"}}
    with pytest.raises(SourceError) as caught:
        judge(engine, [{"occurred_at": 1719741600}], columns=columns, time_unit="s")
    assert_documented("times are numbers, and their column's own unit is none of numbers", str(caught.value))


def test_numbers_of_ingestion_without_a_unit_are_an_error(engine: DuckDB) -> None:
    with pytest.raises(SourceError, match=r"^events\.columns\.ingested_at: "):
        judge(engine, [{"ingested_at": 1719741600}])


def test_of_a_day_only_the_date_is_read(engine: DuckDB) -> None:
    given = ["2024-06-30", "2024-06-30 23:59:59", "2024-06-30T23:00:00Z"]
    assert_read_as(engine, dict.fromkeys(given, "2024-06-29T22:00:00"), time_unit="day", zone="Europe/Berlin")


@pytest.mark.parametrize("unit", ["iso", "day"])
def test_text_that_is_no_iso_date_is_rejected(engine: DuckDB, unit: str) -> None:
    given = [
        *("yesterday", "now", "infinity", "-infinity", "epoch", "1719741600", "20240630", "30/06/2024", "2024-6-30"),
        *("2024-02-30", "2024-13-01", "2024-W26-7", "10000-01-01"),
    ]
    assert_read_as(engine, dict.fromkeys(given, "unparseable_time"), time_unit=unit)


def test_text_that_is_no_iso_time_is_rejected(engine: DuckDB) -> None:
    given = [
        *("2024-06-30T10:00:61", "2024-06-30T25:00:00", "2024-06-30 at ten", "2024-06-30 10:00:00 PM"),
        *("2024-06-30T10:00:00 Europe/London", "2024-06-30 10:00:00 BC"),
    ]
    assert_read_as(engine, dict.fromkeys(given, "unparseable_time"))


def test_instants_run_from_1970_to_2199_in_utc(engine: DuckDB) -> None:
    expected = {
        "0000-01-01": "time_out_of_range",
        "0001-01-01T00:00:00Z": "time_out_of_range",
        "1969-12-31T23:59:59.999999Z": "time_out_of_range",
        "1970-01-01T00:00:00+01:00": "time_out_of_range",
        "1970-01-01T00:00:00Z": "1970-01-01T00:00:00",
        "2199-12-31T23:59:59.999999Z": "time_in_the_future",
        "2200-01-01T00:00:00Z": "time_out_of_range",
        "9999-12-31T23:59:59-10:00": "time_out_of_range",
    }
    assert_read_as(engine, expected)


OFFSETS = ("+99:00", "+24:00", "-16:00", "+01:60", "+9", "+9999", "+010", "+02:00:99", " +9", "-1.5", "+", "Z+1")


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_an_offset_that_no_clock_has_is_no_time(engine: DuckDB, zone: str) -> None:
    given = [f"2024-06-30T10:00:00{offset}" for offset in OFFSETS] + [f"2024-06-30T10:00{o}" for o in OFFSETS]
    assert_read_as(engine, dict.fromkeys(given, "unparseable_time"), zone=zone)
    widest = {"2024-06-30T10:00:00+15:59": "2024-06-29T18:01:00", "2024-06-30T10:00:00-15:59:59": "2024-07-01T01:59:59"}
    assert_read_as(engine, widest, zone=zone)


@pytest.mark.parametrize("resolution", ["s", "ms", "us", "ns"])
def test_a_typed_time_without_zone_is_a_local_one(engine: DuckDB, resolution: str) -> None:
    given = {datetime(2024, 6, 30, 10): "2024-06-30T08:00:00"}
    assert_read_as(engine, given, type_=pa.timestamp(resolution), zone="Europe/Berlin")


@pytest.mark.parametrize("resolution", ["ms", "us", "ns"])
def test_a_typed_time_with_zone_is_an_instant(engine: DuckDB, resolution: str) -> None:
    given = {datetime(2024, 6, 30, 10, tzinfo=UTC): "2024-06-30T10:00:00"}
    assert_read_as(engine, given, type_=pa.timestamp(resolution, "UTC"), zone="Europe/Berlin")


def test_a_date_is_the_beginning_of_a_local_day(engine: DuckDB) -> None:
    assert_read_as(engine, {date(2024, 6, 30): "2024-06-29T22:00:00"}, zone="Europe/Berlin")


def test_a_typed_time_needs_no_unit(engine: DuckDB) -> None:
    assert_read_as(engine, {datetime(2024, 6, 30, 10): "2024-06-30T10:00:00"}, time_unit="ms")


# --- when a source learned of an event ---


def test_an_event_that_says_not_when_it_was_learned_of_was_learned_of_at_once(engine: DuckDB) -> None:
    events, _ = judge(engine, [{"occurred_at": "2024-01-01", "ingested_at": time} for time in (None, "", " ")])
    assert [event["ingested_at"] for event in events] == [at("2024-01-01")] * 3


@pytest.mark.parametrize("time", ["later", "2024-13-01", "2024-01-01T00:00:00+99:00"])
def test_a_time_of_ingestion_that_cannot_be_read_is_rejected(engine: DuckDB, time: str) -> None:
    assert reasons(engine, [{"occurred_at": "2024-01-01", "ingested_at": time}]) == ["unparseable_time"]


@pytest.mark.parametrize("time", ["0001-01-01", "9999-12-31T23:59:59"])
def test_a_time_of_ingestion_that_stands_for_none_is_out_of_range(engine: DuckDB, time: str) -> None:
    assert reasons(engine, [{"occurred_at": "2024-01-01", "ingested_at": time}]) == ["time_out_of_range"]


def test_an_event_may_be_learned_of_after_now(engine: DuckDB) -> None:
    [event], _ = judge(engine, [{"ingested_at": "2027-01-01"}])
    assert event["ingested_at"] == at("2027-01-01")


def test_the_time_of_ingestion_has_the_same_unit_and_zone(engine: DuckDB) -> None:
    row = {"occurred_at": "2024-06-30 10:00:00", "ingested_at": "2024-06-30 11:00:00"}
    [event], _ = judge(engine, [row], zone="Europe/Berlin")
    assert event["ingested_at"] == at("2024-06-30T09:00")


def test_each_column_of_times_may_have_its_own_unit_and_zone(engine: DuckDB) -> None:
    row = {"occurred_at": "1709287200", "ingested_at": "1709287205123"}
    columns = COLUMNS | {
        "occurred_at": {"column": "occurred_at", "time_unit": "s"},
        "ingested_at": {"column": "ingested_at", "time_unit": "ms"},
    }
    [event], _ = judge(engine, [row], columns=columns)
    assert (event["occurred_at"], event["ingested_at"]) == (at("2024-03-01T10:00"), at("2024-03-01T10:00:05.123"))
    row = {"occurred_at": "2024-03-01 10:00", "ingested_at": "2024-03-01 11:00"}
    columns["ingested_at"] = {"column": "ingested_at", "time_unit": "iso", "time_zone": "Europe/Berlin"}
    columns["occurred_at"] = {"column": "occurred_at"}
    [event], _ = judge(engine, [row], columns=columns, zone="America/New_York")
    assert (event["occurred_at"], event["ingested_at"]) == (at("2024-03-01T15:00"), at("2024-03-01T10:00"))


# --- ids and duplicates ---


def test_of_rows_with_one_id_the_first_to_be_ingested_is_kept(engine: DuckDB) -> None:
    rows = [
        {"event_id": "e1", "page": "/second", "ingested_at": "2024-01-03"},
        {"event_id": "e1", "page": "/first", "ingested_at": "2024-01-02", "occurred_at": "2024-01-02"},
        {"event_id": "e1", "page": "/third", "ingested_at": "2024-01-04"},
    ]
    [event], rejected = judge(engine, rows)
    assert event["page"] == "/first"
    assert [row["reason"] for row in rejected] == ["duplicate_id"] * 2


def test_of_a_duplicate_the_event_is_kept_that_it_would_have_been(engine: DuckDB) -> None:
    rows: list[Row] = [
        {"event_id": "e1", "page": "/first", "ingested_at": "2024-01-02"},
        {"event_id": "e1", "page": "/late", "ingested_at": "2024-01-03 10:00:00+02:00", "source_file": "b.csv"},
    ]
    _, [row] = judge(engine, rows)
    kept = {name: value for name, value in json.loads(row["row"]).items() if value is not None}
    assert row["source_file"] == "b.csv"
    assert kept == {
        **{"event_id": "e1", "user_id": "u", "event_name": "view", "page": "/late"},
        **{"occurred_at": "2024-01-01 00:00:00+00", "ingested_at": "2024-01-03 08:00:00+00"},
    }


def test_of_rows_ingested_at_once_the_first_to_occur_is_kept(engine: DuckDB) -> None:
    rows = [
        {"event_id": "e1", "occurred_at": "2024-01-02", "ingested_at": "2024-01-03"},
        {"event_id": "e1", "occurred_at": "2024-01-01", "ingested_at": "2024-01-03"},
    ]
    [event], _ = judge(engine, rows)
    assert event["occurred_at"] == at("2024-01-01")


def test_a_rejected_row_takes_no_id_from_a_good_one(engine: DuckDB) -> None:
    rows = [
        {"event_id": "e1", "user_id": "", "ingested_at": "2024-01-01"},
        {"event_id": "e1", "user_id": "ada", "ingested_at": "2024-01-02"},
    ]
    [event], [row] = judge(engine, rows)
    assert event["user_id"] == "ada"
    assert row["reason"] == "no_user"


def test_ids_of_several_users_are_still_ids(engine: DuckDB) -> None:
    rows = [{"event_id": "e1", "user_id": "ada"}, {"event_id": "e1", "user_id": "ben"}]
    assert reasons(engine, rows) == ["duplicate_id"]


def test_rows_with_a_blank_id_get_one_of_their_content(engine: DuckDB) -> None:
    rows: list[Row] = [{"event_id": blank, "page": f"/{i}"} for i, blank in enumerate((None, "", "  "))]
    events, rejected = judge(engine, [*rows, {"event_id": "e1"}])
    assert rejected == []
    assert len({event["event_id"] for event in events} - {"e1", "", None}) == 3


def test_equal_rows_in_one_file_are_separate_events(engine: DuckDB) -> None:
    events, rejected = judge(engine, [{"source_file": "a.csv"}, {"source_file": "a.csv"}])
    assert len({event["event_id"] for event in events}) == 2
    assert rejected == []


def test_equal_rows_in_two_files_are_one_event(engine: DuckDB) -> None:
    rows = [{"source_file": "a.csv"}, {"source_file": "b.csv"}, {"source_file": "b.csv"}]
    events, rejected = judge(engine, rows)
    assert len(events) == 2
    assert [row["reason"] for row in rejected] == ["duplicate_id"]


def test_rows_that_differ_in_any_mapped_column_are_separate_events(engine: DuckDB) -> None:
    rows: list[Row] = [
        {"source_file": "a.csv", "page": "x", "element": "y"},
        {"source_file": "b.csv", "page": "xy", "element": None},
        {"source_file": "c.csv", "page": None, "element": "xy"},
    ]
    events, rejected = judge(engine, rows)
    assert len(events) == 3
    assert rejected == []


def test_which_of_several_like_rows_is_kept_is_not_up_to_their_order(engine: DuckDB) -> None:
    rows: list[Row] = [{"event_id": "e1", "row": f"{i}", "source_file": file} for i, file in enumerate("cab")]
    rows += [{"event_id": None, "row": f"{i}", "source_file": file} for i, file in enumerate("babb")]
    assert judge(engine, rows) == judge(engine, rows[::-1])


def test_an_id_of_content_is_the_same_in_another_run(engine: DuckDB) -> None:
    first, _ = judge(engine, [{"page": "/a"}])
    again, _ = judge(engine, [{"page": "/b"}, {"page": "/a"}])
    assert first[0]["event_id"] in {event["event_id"] for event in again if event["page"] == "/a"}


def test_whole_numbers_are_ids_without_a_fraction(engine: DuckDB) -> None:
    expected = {7.0: "7", -3.0: "-3", 2.5: "2.5", 2.0**53 - 1: "9007199254740991"}
    rows = [{"event_id": f"{i}", "user_id": number} for i, number in enumerate(expected)]
    assert [event["user_id"] for event in judge(engine, rows)[0]] == list(expected.values())


def test_an_id_of_content_does_not_depend_on_how_a_number_is_stored(engine: DuckDB) -> None:
    assert judge(engine, [{"quantity": 7}])[0] == judge(engine, [{"quantity": 7.0}])[0]


@pytest.mark.parametrize("column", ["event_id", "user_id", "anonymous_id", "account_id", "item_id", "order_id"])
def test_a_row_whose_id_is_a_float_that_may_have_lost_digits_is_rejected(engine: DuckDB, column: str) -> None:
    assert reasons(engine, [{column: 2.0**53}]) == ["inexact_id"]


def test_an_id_of_content_does_not_depend_on_how_values_are_stored(engine: DuckDB) -> None:
    ways: list[Row] = [
        {"revenue": "19.90", "element": True, "ingested_at": "2024-01-01T10:00:00+01:00"},
        {"revenue": Decimal("19.9"), "element": 1, "ingested_at": datetime(2024, 1, 1, 9)},
        {"revenue": 19.9, "element": "true", "ingested_at": datetime(2024, 1, 1, 9, tzinfo=UTC)},
    ]
    assert len({judge(engine, [way])[0][0]["event_id"] for way in ways}) == 1


def test_an_id_that_is_not_a_number_is_none(engine: DuckDB) -> None:
    assert reasons(engine, [{"user_id": float("nan")}]) == ["no_user"]


def test_large_whole_numbers_are_ids_with_all_their_digits(engine: DuckDB) -> None:
    [event], _ = judge(engine, [{"user_id": 9223372036854775807}])
    assert event["user_id"] == "9223372036854775807"


# --- a batch beside the events of before ---


def reconciled(engine: DuckDB, batch: list[Row], stored: list[Row]) -> dict[str, list[tuple[str, Any]]]:
    """Return the ids and pages of the events of each kind."""
    sides = [events_of(engine, [{"occurred_at": "2024-01-01"} | row for row in rows]) for rows in (batch, stored)]
    found = reconcile(*sides)
    return {
        kind: sorted((row["event_id"], row["page"]) for row in getattr(found, kind).to_pyarrow().to_pylist())
        for kind in ("added", "known", "lost", "displaced")
    }


def test_an_event_with_a_new_id_is_added(engine: DuckDB) -> None:
    found = reconciled(engine, [{"event_id": "e2", "page": "/b"}], [{"event_id": "e1", "page": "/a"}])
    assert found == {"added": [("e2", "/b")], "known": [], "lost": [], "displaced": []}


def test_an_event_that_is_there_from_the_same_file_is_known(engine: DuckDB) -> None:
    event = {"event_id": "e1", "page": None, "revenue": 1.5}
    assert reconciled(engine, [event], [event]) == {"added": [], "known": [("e1", None)], "lost": [], "displaced": []}


def test_an_event_that_was_ingested_earlier_displaces_its_twin(engine: DuckDB) -> None:
    early = {"page": "/early", "ingested_at": "2024-01-02"}
    late = {"page": "/late", "ingested_at": "2024-01-03"}
    displacing, displaced = {"event_id": "e1"} | early, {"event_id": "e1"} | late
    losing, winning = {"event_id": "e2"} | late, {"event_id": "e2"} | early
    assert reconciled(engine, [displacing, losing], [displaced, winning]) == {
        **{"added": [("e1", "/early")], "known": []},
        **{"lost": [("e2", "/late")], "displaced": [("e1", "/late")]},
    }


TWINS: list[tuple[Row, Row]] = [
    ({"occurred_at": "2024-01-01"}, {"occurred_at": "2024-01-02"}),
    ({"page": "/a"}, {"page": "/b"}),
    ({"page": "/b"}, {"page": None}),
    ({"revenue": 1.0}, {"revenue": 2.0}),
    ({"source_file": "a.csv"}, {"source_file": "b.csv"}),
]


@dataclass(frozen=True)
class Met:
    """What became of pairs of twins: ids, and the accepted events of both and of the first alone."""

    displaced: set[str]
    lost: set[str]
    of_both: dict[str, Row]
    of_first: dict[str, Row]


@pytest.fixture(scope="module")
def met(connected: DuckDB) -> Met:
    """Let the TWINS meet, each pair under an id of its own, and under another the other way round."""
    pairs = [
        ({"event_id": f"e{number}"} | first, {"event_id": f"e{number}"} | second)
        for number, (first, second) in enumerate(TWINS)
    ]
    same = {"page": "/", "ingested_at": "2024-01-03"}
    firsts, seconds = ([same | pair[side] for pair in pairs] for side in (0, 1))
    turned = [[row | {"event_id": f"turned {row['event_id']}"} for row in rows] for rows in (seconds, firsts)]
    found = reconciled(connected, firsts + turned[0], seconds + turned[1])
    of_both, of_first = (
        {event["event_id"]: event for event in judge(connected, rows)[0]} for rows in (seconds + firsts, firsts)
    )
    return Met({id_ for id_, _ in found["displaced"]}, {id_ for id_, _ in found["lost"]}, of_both, of_first)


@pytest.mark.parametrize(("first", "second"), TWINS)
def test_twins_ingested_at_once_are_told_apart_by_their_other_columns(met: Met, first: Row, second: Row) -> None:
    event_id = f"e{TWINS.index((first, second))}"
    assert event_id in met.displaced
    assert event_id not in met.lost
    assert f"turned {event_id}" in met.lost
    assert f"turned {event_id}" not in met.displaced
    assert met.of_both[event_id] == met.of_first[event_id]


# --- laws ---

TEXT = st.none() | st.sampled_from(["", " ", "a", "b", "e1"]) | st.text(max_size=4)
TIME = TEXT | st.sampled_from(["2024-01-01", "2024-01-01T10:00:00+02:00", "2025-06-30 10:00", "2099-01-01", "9" * 20])
NUMBER = TEXT | st.sampled_from(["1", "1e300", "nan", "-inf", "2.50"])
GARBAGE = st.fixed_dictionaries(
    {
        **{"event_id": TEXT, "user_id": TEXT, "event_name": TEXT, "page": TEXT, "revenue": NUMBER},
        **{"occurred_at": TIME, "ingested_at": TIME, "source_file": st.sampled_from(["a.csv", "b.csv"])},
        **{"row": st.sampled_from(["one", "two"]), "malformed": st.booleans()},
    }
)


@given(rows=st.lists(GARBAGE, min_size=1, max_size=12), unit=st.sampled_from(["iso", "s", "ns", "day"]))
@law(3)
def test_every_row_is_accepted_or_rejected(engine: DuckDB, rows: list[Row], unit: str) -> None:
    events, rejected = judge(engine, rows, time_unit=unit)
    assert len(events) + len(rejected) == len(rows)
    assert len({event["event_id"] for event in events}) == len(events)
    assert len({row["rejected_id"] for row in rejected}) == len(rejected)
    assert all(event[name] is not None for event in events for name in EVENTS.required)
    assert {row["reason"] for row in rejected} <= REASONS.keys()


@given(rows=st.lists(GARBAGE, min_size=2, max_size=8).map(lambda rows: rows + rows[:2]), seed=st.integers(0, 10**6))
@law(3)
def test_the_order_of_rows_changes_nothing(engine: DuckDB, rows: list[Row], seed: int) -> None:
    shuffled = Random(seed).sample(rows, len(rows))
    assert judge(engine, shuffled) == judge(engine, rows)


@given(moments=st.lists(st.datetimes(datetime(1970, 1, 2), datetime(2025, 12, 30)), min_size=20, max_size=60))
@law(2)
def test_every_way_to_write_a_time_is_the_same_instant(engine: DuckDB, moments: list[datetime]) -> None:
    instants = [moment.replace(tzinfo=UTC) for moment in moments]
    micros = [(instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) for instant in instants]
    assert read_times(engine, [instant.isoformat() for instant in instants], zone="Asia/Tokyo") == instants
    assert read_times(engine, [moment.isoformat(" ") for moment in moments]) == instants
    assert read_times(engine, micros, time_unit="us") == instants
    assert read_times(engine, [f"{Decimal(us) / 1_000_000:f}" for us in micros], time_unit="s") == instants
    assert read_times(engine, [us * 1000 for us in micros], time_unit="ns") == instants


# --- sources of other tools ---


@dataclass(frozen=True)
class Tool:
    """What became of the rows of a tool's file."""

    accepted: list[Row]
    reasons: list[str]
    sessions: list[Row]


@pytest.fixture(scope="module")
def tools(connected: DuckDB) -> dict[str, Tool]:
    """Judge the rows of each tool once, and make sessions of them."""
    found = {}
    for name in TOOLS:
        given = tomllib.loads((SOURCES / f"{name}.toml").read_text())
        source = Source.model_validate(given["events"])
        raw = read_events(connected, source, SOURCES)
        accepted, rejected = accept(raw, source, given["time_zone"], datetime(2026, 12, 31, tzinfo=UTC))
        events = materialize(accepted)
        tables = (events, rejected, sessionize(events, timedelta(minutes=30)))
        rows, refused, sessions = (table.to_pyarrow().to_pylist() for table in tables)
        found[name] = Tool(rows, [row["reason"] for row in refused], sessions)
    return found


@pytest.mark.parametrize(
    ("tool", "row_count", "rejected"),
    [
        ("ga4", 14, ["duplicate_id", "no_user", "unparseable_time"]),
        ("snowplow", 13, ["duplicate_id", "no_user", "unparseable_time"]),
        ("segment", 13, ["duplicate_id", "no_user", "unparseable_time"]),
        ("posthog", 12, ["duplicate_id", "no_user", "unparseable_time"]),
        ("retailrocket", 11, ["no_user", "unparseable_time"]),
    ],
)
def test_rows_of_other_tools_are_accepted_and_rejected(
    tools: dict[str, Tool], tool: str, row_count: int, rejected: list[str]
) -> None:
    assert sorted(tools[tool].reasons) == rejected
    assert len(tools[tool].accepted) == row_count - len(rejected)


@pytest.mark.parametrize("tool", TOOLS)
def test_events_of_other_tools_are_the_sessions_worked_out_by_hand(tools: dict[str, Tool], tool: str) -> None:
    with (SOURCES / "expected_sessions.csv").open() as file:
        expected = [
            (row["user_id"], at(row["started_at"]), at(row["ended_at"]), int(row["event_count"]))
            for row in csv.DictReader(file)
            if row["tool"] == tool
        ]
    sessions = tools[tool].sessions
    found = [(row["user_id"], row["started_at"], row["ended_at"], row["event_count"]) for row in sessions]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("tool", "names", "revenue"),
    [
        ("ga4", {"page_view", "purchase", "product_view", "search", "add_to_cart", "session_start"}, 59.9),
        ("snowplow", {"page_view", "purchase", "page_ping"}, 120.5),
        ("segment", {"page_view", "product_view", "add_to_cart", "purchase", "identify"}, 49.95),
        ("posthog", {"page_view", "click", "purchase", "$pageleave"}, 19.5),
        ("retailrocket", {"product_view", "add_to_cart", "purchase"}, 0),
    ],
)
def test_names_and_revenue_of_other_tools_are_ours(
    tools: dict[str, Tool], tool: str, names: set[str], revenue: float
) -> None:
    assert {event["event_name"] for event in tools[tool].accepted} == names
    assert sum(event["revenue"] or 0 for event in tools[tool].accepted) == revenue
