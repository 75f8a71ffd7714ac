import time
from collections.abc import Iterator

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law

from features import engines
from models.conditions import (
    And,
    Comparison,
    Condition,
    ConditionError,
    Feature,
    Kind,
    Not,
    Or,
    Percentile,
    check,
    features_of,
    holds,
    parse,
    percentiles,
    resolve,
    thresholds,
)

COLUMNS: dict[str, Kind] = {"revenue_total": "number", "recency_days": "number", "device": "text", "plan": "text"}


def is_(feature: str, value: float = 1) -> Comparison:
    return Comparison(feature, "=", (value,))


# --- what can be written ---


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("a = 1", Comparison("a", "=", (1,))),
        ("a == 1", Comparison("a", "=", (1,))),
        ("a != -2", Comparison("a", "!=", (-2,))),
        ("a<0.5", Comparison("a", "<", (0.5,))),
        ("a <= 1e3", Comparison("a", "<=", (1000,))),
        ("a > 1.5E-2", Comparison("a", ">", (0.015,))),
        ("  a\n >=\t1 ", Comparison("a", ">=", (1,))),
        ("a = 'it''s'", Comparison("a", "=", ("it's",))),
        ('a = "it\'s; --"', Comparison("a", "=", ("it's; --",))),
        ("a = 'Île-de-France'", Comparison("a", "=", ("Île-de-France",))),
        ("a = ''", Comparison("a", "=", ("",))),
        ("a >= p90", Comparison("a", ">=", (Percentile(90),))),
        ("a >= P99.5", Comparison("a", ">=", (Percentile(99.5),))),
        ("a > b", Comparison("a", ">", (Feature("b"),))),
        ("a between 1 and 2", Comparison("a", "between", (1, 2))),
        ("a not between p5 and p95", Comparison("a", "not between", (Percentile(5), Percentile(95)))),
        ("a in (1)", Comparison("a", "in", (1,))),
        ("a NOT IN ('x', \"y\")", Comparison("a", "not in", ("x", "y"))),
        ("a is null", Comparison("a", "is null")),
        ("a Is Not Null", Comparison("a", "is not null")),
        ("`Age band` = 'old'", Comparison("Age band", "=", ("old",))),
        ("`in` in (1)", Comparison("in", "in", (1,))),
        ("(a = 1)", is_("a")),
        ("not a = 1", Not(is_("a"))),
        ("not not a = 1", Not(Not(is_("a")))),
        ("a = 1 and b = 1 and c = 1", And((is_("a"), is_("b"), is_("c")))),
        ("a = 1 and (b = 1 and c = 1)", And((is_("a"), And((is_("b"), is_("c")))))),
    ],
)
def test_a_text_is_read_as(text: str, condition: Condition) -> None:
    assert parse(text) == condition


def test_not_binds_more_than_and_and_this_more_than_or() -> None:
    assert parse("not a = 1 and b = 1 or c = 1") == Or((And((Not(is_("a")), is_("b"))), is_("c")))
    assert parse("not (a = 1 and (b = 1 or c = 1))") == Not(And((is_("a"), Or((is_("b"), is_("c"))))))


def test_the_and_of_between_is_no_other() -> None:
    assert parse("a between 1 and 2 and b = 1") == And((Comparison("a", "between", (1, 2)), is_("b")))


def test_the_features_are_those_on_both_sides_each_once() -> None:
    assert features_of(parse("a > b and (c is null or not a = 1) and b = 'a'")) == ["a", "b", "c"]


def test_the_percentiles_of_several_conditions_are_each_there_once() -> None:
    asked = percentiles([parse("a >= p90 and b < 3"), parse("a >= p90 or a < p5 or b > p90")])

    assert asked == [("a", 90), ("a", 5), ("b", 90)]


# --- what is written ---


numbers = st.one_of(
    st.integers(-3, 3).map(float), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.1, 1e-7, 1e22])
)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=5)
names = st.one_of(
    st.sampled_from(["a", "session_count_28d", "p90", "null", "Age band", "é"]),
    st.text(st.characters(exclude_characters="`"), min_size=1, max_size=5),
)
values = st.one_of(numbers, texts, st.integers(0, 1000).map(lambda tenths: Percentile(tenths / 10)))
operands = st.one_of(values, names.map(Feature))
comparisons = st.one_of(
    st.builds(Comparison, names, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), st.tuples(operands)),
    st.builds(
        Comparison, names, st.sampled_from(["in", "not in"]), st.lists(operands, min_size=1, max_size=3).map(tuple)
    ),
    st.builds(
        Comparison,
        names,
        st.sampled_from(["between", "not between"]),
        st.tuples(numbers, numbers).map(sorted).map(tuple),
    ),
    st.builds(Comparison, names, st.sampled_from(["is null", "is not null"])),
)


def conditions_of(leaves: st.SearchStrategy[Comparison]) -> st.SearchStrategy[Condition]:
    def more(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.one_of(st.builds(Not, inner), st.builds(And, several), st.builds(Or, several))

    return st.recursive(leaves, more, max_leaves=6)


@law(40)
@given(conditions_of(comparisons))
def test_what_is_written_is_read_as_what_it_was(condition: Condition) -> None:
    assert parse(condition.to_text()) == condition


def test_a_condition_is_written_as_people_would() -> None:
    text = "not (a = 1 or b in ('x', 'y')) and (c >= p90 or `Age band` is not null) and d between -0.5 and 1000"

    assert parse(text).to_text() == text


# --- what is wrong ---


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 1, "it ends where one expects the name of a feature"),
        ("a", 2, "it ends where one expects =, !=, <, <=, >, >=, between, in or is"),
        ("a = ", 5, "it ends where one expects a number, a 'text', a percentile such as p90, or the name of a feature"),
        ("a = 1 and", 10, "it ends where one expects the name of a feature"),
        ("a = 1 b = 2", 7, "here is 'b' where one expects and, or, or the end"),
        ("(a = 1", 7, "it ends where one expects and, or, or a closing bracket"),
        ("a = 1)", 6, "here is ')' where one expects and, or, or the end"),
        ("1 = a", 1, "here is '1' where one expects the name of a feature"),
        ("a not = 1", 7, "here is '=' where one expects between or in"),
        ("a is 1", 6, "here is '1' where one expects null or not null"),
        ("a in 1", 6, "here is '1' where one expects an opening bracket"),
        ("a in ()", 7, "here is ')' where one expects a number"),
        ("a in (1 2)", 9, "here is '2' where one expects a comma or a closing bracket"),
        ("a between 1 or 2", 13, "here is 'or' where one expects and, with the upper end"),
        ("a between 3 and 1", 1, "between 3 and 1 is nothing: the lower end first"),
        ("a = null", 5, "here is 'null' where one expects a number"),
        ("a <> 1", 4, "here is '>' where one expects a number"),
        ("a = 'x", 5, "the quote ' is not closed"),
        ("a = x'", 6, "the quote ' is not closed"),
        ("a = 1_000", 5, "a number is written as 3, -2, 0.5 or 1e3"),
        ("a = .5", 5, "'.' means nothing here"),
        ("a = 1e999", 5, "is too large for a number"),
        ("a > p101", 5, "there is no percentile p101: they go from p0 to p100"),
        ("a = 1; drop table users", 6, "';' means nothing here"),
        ("a = 1 -- b", 7, "a number is written as"),
        ("a.b = 1", 2, "'.' means nothing here"),
        ("__import__('os')", 1, "a name does not begin with two underscores"),
        ("a = __class__", 5, "a name does not begin with two underscores"),
        ("exec('x')", 5, "here is '(' where one expects ="),
        ("lambda: 1", 7, "':' means nothing here"),
        ("a = 'x\0'", 5, "a text holds no control characters"),
        ("\u0430 = 1", 1, r"'\u0430' (CYRILLIC SMALL LETTER A) means nothing here: write ASCII, or quote a text"),
        ("a \uff1d 1", 3, r"'\uff1d' (FULLWIDTH EQUALS SIGN) means nothing here"),
        ("a = \uff11", 5, r"'\uff11' (FULLWIDTH DIGIT ONE) means nothing here"),
        ("a = \u200b1", 5, r"'\u200b' (ZERO WIDTH SPACE) means nothing here"),
        ("a\u00a0= 1", 2, r"'\xa0' (NO-BREAK SPACE) means nothing here"),
        ("a = \u2018x\u2019", 5, "LEFT SINGLE QUOTATION MARK"),
        ("(" * 51 + "a = 1" + ")" * 51, 52, "is nested more than 50 deep"),
        ("(" * 10_000 + "a = 1" + ")" * 10_000, 4001, "is 20,005 characters long, and 4,000 are read at most"),
        ("not " * 900 + "a = 1", 205, "is nested more than 50 deep"),
        ("not " * 10_000 + "a = 1", 4001, "is 40,005 characters long"),
        ("a = '" + "x" * 5_000_000, 4001, "is 5,000,005 characters long"),
        ("(" * 4000, 52, "is nested more than 50 deep"),
        ("'" * 3999, 3999, "the quote ' is not closed"),
    ],
)
def test_a_mistake_is_told_at_once_with_its_place(text: str, column: int, what: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(ConditionError) as caught:
        parse(text)

    assert time.perf_counter() - begun < 0.5
    assert str(caught.value).startswith(f"column {column}: ")
    assert what in str(caught.value)
    assert caught.value.column == column


@law(40)
@given(st.text(max_size=60) | st.text("ab1 .<>=!()',pnotrs\"`-_e", max_size=30))
def test_any_text_is_a_condition_or_a_mistake(text: str) -> None:
    try:
        condition = parse(text)
    except ConditionError as error:
        condition, column = None, error.column
    assert 1 <= column <= len(text) + 1 if condition is None else parse(condition.to_text()) == condition


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("revenu_total > 3", "column 1: there is no feature revenu_total; did you mean revenue_total?"),
        ("device = 'x' and zzz > 3", "column 18: there is no feature zzz"),
        ("recency_days > revenue", "column 16: there is no feature revenue; did you mean revenue_total?"),
        ("device = mobile", "column 10: there is no feature mobile; a text is quoted: 'mobile'"),
        ("device > 'x'", "column 1: device is a text: compare it with =, !=, in or is null"),
        ("device between 'a' and 'b'", "column 1: device is a text: compare it with =, !=, in or is null"),
        ("device = 3", "column 1: device is a text, and 3 is a number"),
        ("device in ('x', 3)", "column 1: device is a text, and 3 is a number"),
        ("device = p90", "column 1: device is a text, and p90 is a number"),
        ("device = revenue_total", "column 1: device is a text, and revenue_total is a number"),
        ("revenue_total = 'x'", "column 1: revenue_total is a number, and 'x' is a text"),
        ("not (recency_days < 3 or revenue_total in (1, 'x'))", "column 26: revenue_total is a number, and 'x' is"),
    ],
)
def test_what_does_not_fit_the_features_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(ConditionError) as caught:
        check(parse(text), COLUMNS)
    assert str(caught.value).startswith(told)


def test_what_fits_the_features_passes() -> None:
    check(
        parse("revenue_total >= p90 and device in ('x') and device != plan and recency_days < revenue_total"), COLUMNS
    )
    check(parse("device is null or revenue_total is not null"), COLUMNS)


# --- who meets it ---


@pytest.fixture(scope="module")
def duckdb() -> Iterator[DuckDB]:
    engine = engines.connect()
    yield engine
    engine.disconnect()


def as_table(engine: DuckDB, frame: pd.DataFrame) -> ir.Table:
    schema = pa.schema([(name, pa.string() if name == "t" else pa.float64()) for name in frame])
    return engine.create_table("users", pa.Table.from_pandas(frame, schema, preserve_index=False), overwrite=True)


NULL = float("nan")
USERS = pd.DataFrame({"x": [1.0, 2.0, 3.0, NULL], "y": [3.0, NULL, 1.0, NULL], "t": ["a", "it's", None, "b"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 2", [1]),
        ("x != 2", [0, 2]),
        ("x < 2", [0]),
        ("x <= 2", [0, 1]),
        ("x > 2", [2]),
        ("x >= 2", [1, 2]),
        ("x between 1 and 2", [0, 1]),
        ("x not between 1 and 2", [2]),
        ("x in (1, 3)", [0, 2]),
        ("x not in (1, 3)", [1]),
        ("x is null", [3]),
        ("x is not null", [0, 1, 2]),
        ("x > y", [2]),
        ("x != y", [0, 2]),
        ("t = 'it''s'", [1]),
        ("t != 'a'", [1, 3]),
        ("t in ('a', 'b')", [0, 3]),
        ("t not in ('a', 'b')", [1]),
        ("t is null", [2]),
        ("t = ''' or 1 = 1 --'", []),
        ("not x = 2", [0, 2, 3]),
        ("not x != 2", [1, 3]),
        ("not (x > 1 and y > 0)", [0, 1, 3]),
        ("x > 2 or t = 'a'", [0, 2]),
        ("x >= p50", [1, 2]),
        ("x > p25 and x < p75", [1]),
        ("x between p0 and p100", [0, 1, 2]),
        ("y < p50", [2]),
    ],
)
def test_users_who_meet_a_condition(duckdb: DuckDB, text: str, expected: list[int]) -> None:
    assert met(parse(text), USERS) == met_in_table(duckdb, parse(text), USERS) == expected


def met(condition: Condition, frame: pd.DataFrame) -> list[int]:
    found = holds(resolve(condition, thresholds([condition], frame)), frame)
    assert found.dtype == bool
    return list(np.flatnonzero(found))


def met_in_table(engine: DuckDB, condition: Condition, frame: pd.DataFrame) -> list[int]:
    users = as_table(engine, frame.assign(number=np.arange(len(frame), dtype="float64")))
    found = users.select("number", met=holds(resolve(condition, thresholds([condition], users)), users))
    rows = found.order_by("number").to_pyarrow()["met"].to_pylist()
    assert None not in rows
    return [number for number, is_met in enumerate(rows) if is_met]


FEW = [0.0, 0.1, 0.3, 1 / 3, 2.5, -7.0, 1_000_000.005]
known_numbers = st.one_of(
    st.sampled_from(FEW).map(float),
    st.sampled_from([90, 50, 33.3, 99.5, 0, 100]).map(Percentile),
    st.sampled_from("xy").map(Feature),
)
known_comparisons = st.one_of(
    st.builds(
        Comparison, st.sampled_from("xy"), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), st.tuples(known_numbers)
    ),
    st.builds(
        Comparison,
        st.sampled_from("xy"),
        st.sampled_from(["between", "not between"]),
        st.tuples(known_numbers, known_numbers),
    ),
    st.builds(
        Comparison,
        st.sampled_from("xy"),
        st.sampled_from(["in", "not in"]),
        st.lists(known_numbers, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(
        Comparison, st.sampled_from("t"), st.sampled_from(["=", "!="]), st.tuples(st.sampled_from(["a", "'", ""]))
    ),
    st.builds(Comparison, st.sampled_from("xyt"), st.sampled_from(["is null", "is not null"])),
)
frames = st.lists(
    st.tuples(st.sampled_from([*FEW, NULL]), st.sampled_from([*FEW, NULL]), st.sampled_from(["a", "'", "", None])),
    max_size=12,
).map(lambda rows: pd.DataFrame(rows, columns=["x", "y", "t"]).astype({"x": "float64", "y": "float64", "t": "str"}))


@law(20)
@given(condition=conditions_of(known_comparisons), frame=frames)
def test_the_same_users_meet_it_in_a_table_and_in_a_frame(
    duckdb: DuckDB, condition: Condition, frame: pd.DataFrame
) -> None:
    assert met(condition, frame) == met_in_table(duckdb, condition, frame)


def test_what_is_no_number_is_null_to_engines_too(duckdb: DuckDB) -> None:
    raw = duckdb.create_table("raw", pa.table({"x": [1.0, NULL, None]}), overwrite=True)

    def count(text: str) -> int:
        return int(raw.filter(holds(parse(text), raw)).count().to_pyarrow().as_py())

    assert [count(text) for text in ("x > 0", "x is null", "x != 1", "not x > 0")] == [1, 2, 0, 2]


def test_users_at_a_percentile_that_many_share_reach_it(duckdb: DuckDB) -> None:
    frame = pd.DataFrame({"x": [0.0, 0.0, *[1_000_000.005] * 24]})
    asked = [parse("x >= p64"), parse("x <= p68.5")]

    assert thresholds(asked, frame) == thresholds(asked, as_table(duckdb, frame))
    assert len(met_in_table(duckdb, asked[0], frame)) == 24
    assert len(met_in_table(duckdb, asked[1], frame)) == 26


def test_nobody_reaches_a_percentile_of_nothing(duckdb: DuckDB) -> None:
    nothing = pd.DataFrame({"x": [NULL, NULL]})

    for text in ("x >= p90", "x <= p90", "x != p90", "x not between p5 and p95"):
        assert met(parse(text), nothing) == met_in_table(duckdb, parse(text), nothing) == []
        later = resolve(parse(text), thresholds([parse(text)], nothing))
        assert not holds(later, USERS).any()


def test_all_percentiles_are_of_everyone_and_interpolated(duckdb: DuckDB) -> None:
    asked = [parse("x >= p75"), parse("y < p10 or x > p0")]
    expected = {("x", 75): 2.5, ("y", 10): 1.2, ("x", 0): 1.0}

    assert thresholds(asked, USERS) == pytest.approx(expected)
    assert thresholds(asked, as_table(duckdb, USERS)) == pytest.approx(expected)


def test_a_condition_with_percentiles_needs_their_values() -> None:
    with pytest.raises(ValueError, match="x >= p90: a percentile has no value yet"):
        holds(parse("x >= p90"), USERS)


def test_hundreds_of_comparisons_are_no_strain(duckdb: DuckDB) -> None:
    many = parse(" or ".join(f"x = {number}" for number in range(350)))
    deep = parse("not (" * 24 + "x = 1" + ")" * 24)

    assert met_in_table(duckdb, many, USERS) == met(many, USERS) == [0, 1, 2]
    assert met_in_table(duckdb, deep, USERS) == met(deep, USERS) == [0]
