"""What a value of a source is; the cases are those of docs/decisions/016-canonical-values.md."""

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend as DuckDB

from features.values import (
    as_instant,
    as_json,
    as_number,
    as_text,
    canonical_json,
    is_beyond_instants,
    is_inexact,
)

INSTANT = datetime(2024, 3, 1, 10, 30, tzinfo=UTC)


def column(engine: DuckDB, values: list[Any], type_: pa.DataType | None = None) -> Any:
    table = pa.table({"value": pa.array(values, type_)})
    return engine.create_table(f"values_{uuid.uuid4().hex}", table, temp=True).value


def json_column(engine: DuckDB, *values: str) -> Any:
    return column(engine, list(values)).cast("json")


def listed(expr: Any) -> list[Any]:
    return list(expr.as_table().to_pyarrow()[0].to_pylist())


TEXTS: list[tuple[pa.DataType | None, list[Any], list[str | None]]] = [
    (pa.string(), ["1.0", "007", " a ", "", " \t", None], ["1.0", "007", " a ", None, None, None]),
    (pa.int64(), [7, -7, 2**63 - 1], ["7", "-7", "9223372036854775807"]),
    (pa.uint64(), [2**64 - 1], ["18446744073709551615"]),
    (pa.float64(), [7.0, -0.0, 2.5, float("nan"), None], ["7", "0", "2.5", None, None]),
    (pa.float32(), [7.0, 0.1], ["7", "0.1"]),
    (pa.decimal128(10, 2), [Decimal("20.00"), Decimal("19.90"), Decimal("100.00")], ["20", "19.9", "100"]),
    (pa.decimal128(20, 0), [Decimal("12345678901234567890")], ["12345678901234567890"]),
    (pa.bool_(), [True, False], ["true", "false"]),
    (pa.date32(), [date(2024, 3, 1)], ["2024-03-01"]),
    (pa.struct({"b": pa.float64(), "a": pa.string()}), [{"b": 1.0, "a": None}], ['{"b":1}']),
    (None, [[1, None, 2]], ["[1,null,2]"]),
]


@pytest.mark.parametrize(("type_", "values", "texts"), TEXTS, ids=lambda case: str(case) if case is None else "")
def test_the_text_of_a_value_is_up_to_its_own_type_alone(
    engine: DuckDB, type_: pa.DataType | None, values: list[Any], texts: list[str | None]
) -> None:
    assert listed(as_text(column(engine, values, type_))) == texts


def test_the_text_of_json_is_that_of_each_value(engine: DuckDB) -> None:
    texts = {
        **{"1": "1", "1.0": "1", '"1"': "1", '"1.0"': "1.0", "1.50": "1.5", "1e3": "1000", "true": "true"},
        **{
            "null": None,
            '""': None,
            '" "': None,
            '"null"': "null",
            "[1, 2]": "[1,2]",
            '{"b": 1, "a": 2}': '{"a":2,"b":1}',
        },
        **{"9007199254740993": "9007199254740993", "123456789012345678901234567890": "123456789012345678901234567890"},
    }
    assert dict(zip(texts, listed(as_text(json_column(engine, *texts))), strict=True)) == texts


def test_json_text_has_its_keys_in_order_and_no_nulls() -> None:
    assert canonical_json('{ "b": null, "c": {"y": null}, "a": [null, 1.0] }') == '{"a":[null,1],"c":{}}'


@pytest.mark.parametrize("text", ["{not json", "[1, 2", "12", '"text"', "", "{'a': 1}"])
def test_what_is_no_json_object_or_list_stays_as_it_is(text: str) -> None:
    assert canonical_json(text) == text


def test_half_a_character_becomes_a_question_mark() -> None:
    assert canonical_json('{"a": "\\ud800"}') == '{"a":"?"}'


def test_deep_json_stays_as_it_is() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert canonical_json(deep) == deep


def test_text_that_is_json_is_canonical_only_where_json_is_meant(engine: DuckDB) -> None:
    given = column(engine, ['{"b": 1, "a": 2}', "[x", "plain"])
    assert listed(as_json(given)) == ['{"a":2,"b":1}', "[x", "plain"]
    assert listed(as_text(given)) == ['{"b": 1, "a": 2}', "[x", "plain"]


NUMBERS: list[tuple[pa.DataType | None, list[Any], list[float | None]]] = [
    (pa.string(), ["20.00", "2e1", " 20 ", "ten", ""], [20.0, 20.0, 20.0, None, None]),
    (pa.float64(), [-0.0], [0.0]),
    (pa.float32(), [0.1, 19.99], [0.1, 19.99]),
    (pa.decimal128(12, 3), [Decimal("19.990"), Decimal("0.100")], [19.99, 0.1]),
    (pa.bool_(), [True, False], [1.0, 0.0]),
    (pa.int8(), [1], [1.0]),
]


@pytest.mark.parametrize(("type_", "values", "numbers"), NUMBERS, ids=lambda case: "")
def test_a_number_is_what_is_written_whatever_its_type(
    engine: DuckDB, type_: pa.DataType | None, values: list[Any], numbers: list[float | None]
) -> None:
    assert list(map(str, listed(as_number(column(engine, values, type_))))) == list(map(str, numbers))


def test_a_number_in_json_may_be_text(engine: DuckDB) -> None:
    given = json_column(engine, "20.0", '"20.00"', "20", "true", "null", '"ten"')
    assert listed(as_number(given)) == [20.0, 20.0, 20.0, 1.0, None, None]


@pytest.mark.parametrize(
    ("type_", "values"),
    [(pa.float64(), [2.0**53 - 1, 2.0**53, 1e300, None]), (pa.float32(), [2.0**24 - 1, 2.0**24, 1e30, None])],
)
def test_a_float_is_exact_as_long_as_it_counts_by_one(engine: DuckDB, type_: pa.DataType, values: list[Any]) -> None:
    assert listed(is_inexact(column(engine, values, type_))) == [False, True, True, False]


def test_json_is_exact_if_it_is_written_in_digits(engine: DuckDB) -> None:
    given = json_column(engine, "123456789012345678901234567890", "9007199254740993.0", "1e20", '"1e20"', "1.5", "null")
    assert listed(is_inexact(given)) == [False, True, True, False, False, False]


def test_an_id_of_several_columns_is_inexact_if_one_is(engine: DuckDB) -> None:
    given = column(engine, [{"habitus_part_0": 1.0, "habitus_part_1": 2.0**60}])
    assert listed(is_inexact(given)) == [True]


FAR: list[tuple[pa.DataType, list[int]]] = [
    (pa.date32(), [2**31 - 1, -(2**31) + 1, -1000, 84_006]),
    (pa.timestamp("ms"), [2**63 - 1, -(2**63) + 1, -1, 7_258_118_400_000]),
    (pa.timestamp("us"), [2**63 - 1, -(2**63) + 1, -1, 7_258_118_400_000_000]),
    (pa.timestamp("ns"), [2**63 - 1, -(2**63) + 1, -1000, 7_258_118_400_000_000_000]),
    (pa.timestamp("us", "UTC"), [2**63 - 1, -(2**63) + 1, -1, 7_258_118_400_000_000]),
]


@pytest.mark.parametrize(("type_", "numbers"), FAR, ids=lambda case: str(case) if isinstance(case, pa.DataType) else "")
def test_a_typed_time_is_out_of_range_however_far_it_is(
    engine: DuckDB, tmp_path: Path, type_: pa.DataType, numbers: list[int]
) -> None:
    integers = pa.array(numbers, pa.int32() if type_ == pa.date32() else pa.int64())
    pq.write_table(pa.table({"value": integers.cast(type_)}), tmp_path / "a.parquet")
    value = engine.read_parquet(tmp_path / "a.parquet").value

    assert listed(is_beyond_instants(as_instant(value, "iso", "UTC"))) == [True] * 4
    assert listed(is_beyond_instants(as_instant(value, "iso", "Pacific/Kiritimati")))[:2] == [True] * 2
