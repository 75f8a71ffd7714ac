import duckdb
import pytest

from features.expressions import why_not_of_one_row

COLUMNS = ("price", "quantity", "sku", "seen", "tags", "user")


def why_not(sql: str) -> str | None:
    with duckdb.connect() as con:
        return why_not_of_one_row(con, sql, COLUMNS)


@pytest.mark.parametrize(
    "sql",
    [
        "price * quantity",
        "CASE WHEN sku LIKE 'C%' THEN 'refund' ELSE 'purchase' END",
        "try_strptime(seen, '%d/%m/%Y %H:%M')",
        "list_sum(list_transform(tags, x -> len(x)))",
        "list_max([len(x) for x in tags])",
        "greatest(price, quantity)",
        "nullif(split_part(sku, '-', 1), '')",
        "user",  # a column here, and else the engine's user
        "age(seen::TIMESTAMP, TIMESTAMP '2024-01-01')",
        "'sum(price) over ()'",
        "price -- sum(price)",
    ],
)
def test_an_expression_over_the_columns_of_one_row_is_fine(sql: str) -> None:
    assert why_not(sql) is None


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("row_number() OVER ()", "has a window function: "),
        ("coalesce(sku, lag(sku) OVER (ORDER BY seen))", "has a window function: "),
        ("price / sum(price) OVER ()", "has a window function: "),
        ("(SELECT 1)", "has a subquery: "),
        ("price IN (SELECT 1)", "has a subquery: "),
        ("EXISTS (FROM range(3))", "has a subquery: "),
        ("array(SELECT 1)", "has a subquery: "),
        ("sum(price)", "has an aggregate, sum(): "),
        ("MAX(price) FILTER (quantity > 1)", "has an aggregate, max(): "),
        ("count(*)", "has an aggregate, count(): "),
        ("price.sum()", "has an aggregate, sum(): "),
        ("geometric_mean(price)", "has an aggregate, avg(): "),
        ("json_group_array(price)", "has an aggregate, string_agg(): "),
        ("coalesce(*COLUMNS(*))", "has columns that it does not name: "),
        ("#2", "has a column by its place: "),
        ("unnest(tags)", "has unnest(), which makes several rows of one"),
        ("regexp_split_to_table(sku, '-')", "has unnest(), which makes several rows of one"),
    ],
)
def test_what_looks_beyond_a_row_is_named(sql: str, what: str) -> None:
    found = why_not(sql)

    assert found is not None
    assert found.startswith(what)


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("random()", "random"),
        ("sku || uuid()", "uuid"),
        ("now()", "now"),
        ("CURRENT_TIMESTAMP", "current_timestamp"),
        ("current_date", "current_date"),
        ("today() - 1", "today"),
        ("coalesce(seen, localtimestamp)", "localtimestamp"),
        ("age(seen::TIMESTAMP)", "age"),
        ("ago(INTERVAL 1 DAY)", "current_timestamp"),
        ("nextval('numbers')", "nextval"),
    ],
)
def test_what_gives_something_else_in_each_run_is_named(sql: str, what: str) -> None:
    assert why_not(sql) == f"has {what}, which gives something else in each run"


def test_a_column_may_have_the_name_of_the_clock() -> None:
    with duckdb.connect() as con:
        assert why_not_of_one_row(con, "current_date", ["Current_Date"]) is None


def test_what_the_engine_cannot_parse_is_left_to_its_own_complaint() -> None:
    assert why_not("price +") is None
