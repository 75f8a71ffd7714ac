"""Expressions of a mapping: each is of one row alone, so that what a row becomes is up to that row."""

import json
from collections.abc import Collection, Iterator
from typing import Any

import duckdb

CLOCKS = ("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp")
"""What is written like a column, and is the clock where no column has that name."""
TOGETHER = {
    "WINDOW": "a window function",
    "SUBQUERY": "a subquery",
    "STAR": "columns that it does not name",
    "POSITIONAL_REFERENCE": "a column by its place",
}
"""What the parser's classes are to us, of those that look beyond a row or at what files happen to have."""
SPREADS = ("unnest", "unlist")
TODAY_UNLESS_GIVEN = "age"


def why_not_of_one_row(con: duckdb.DuckDBPyConnection, sql: str, columns: Collection[str]) -> str | None:
    """Say what in an expression makes its value depend on more than one row's columns; None if nothing does.

    The engine's own parser is asked, and the engine's own list of functions: aggregates, those that give something
    else in each run, and macros, which are judged by what they stand for.
    """
    return _why_not(con, sql, {name.lower() for name in columns}, frozenset())


def _why_not(con: duckdb.DuckDBPyConnection, sql: str, columns: Collection[str], within: frozenset[str]) -> str | None:
    found = con.execute("SELECT json_serialize_sql($1)", [f"SELECT ({sql}\n)"]).fetchone()
    parsed: dict[str, Any] = json.loads(found[0]) if found else {"error": True}
    if parsed["error"]:
        return None  # the engine says itself what is wrong
    nodes = list(_nodes([statement["node"]["select_list"] for statement in parsed["statements"]]))
    for node in nodes:
        if node["class"] in TOGETHER:
            return f"has {TOGETHER[node['class']]}: its value would depend on what is read together"
    clocks = [name for name in map(_bare_name, nodes) if name in CLOCKS and name not in columns]
    if clocks:
        return _changes(clocks[0])
    calls = {node["function_name"].lower(): node for node in nodes if node["class"] == "FUNCTION"}
    return _why_not_calls(con, calls, within) if calls else None


def _why_not_calls(
    con: duckdb.DuckDBPyConnection, calls: dict[str, dict[str, Any]], within: frozenset[str]
) -> str | None:
    for name in SPREADS:
        if name in calls:
            return f"has {name}(), which makes several rows of one"
    if TODAY_UNLESS_GIVEN in calls and len(calls[TODAY_UNLESS_GIVEN]["children"]) == 1:
        return _changes(TODAY_UNLESS_GIVEN)
    known = con.execute(
        """SELECT DISTINCT lower(function_name), function_type, coalesce(stability, 'CONSISTENT'), macro_definition
        FROM duckdb_functions() WHERE lower(function_name) IN (SELECT unnest($1::VARCHAR[])) ORDER BY ALL""",
        [sorted(calls)],
    ).fetchall()
    for name, kind, stability, definition in known:
        if kind == "aggregate":
            return f"has an aggregate, {name.removesuffix('_star')}(): its value would depend on what is read together"
        if kind == "scalar" and stability != "CONSISTENT":
            return _changes(name)
        if kind == "macro" and name not in within:
            why = _why_not(con, definition, (), within | {name})
            if why is not None:
                return why
    return None


def _changes(name: str) -> str:
    return f"has {name}, which gives something else in each run"


def _nodes(parsed: Any) -> Iterator[dict[str, Any]]:
    """Walk through what the parser found, from the outside."""
    if isinstance(parsed, dict):
        if isinstance(parsed.get("class"), str):
            yield parsed
        for part in parsed.values():
            yield from _nodes(part)
    elif isinstance(parsed, list):
        for part in parsed:
            yield from _nodes(part)


def _bare_name(node: dict[str, Any]) -> str:
    """Return the name of a column that is written without a table's; of anything else, nothing."""
    names = node.get("column_names") if node["class"] == "COLUMN_REF" else None
    return str(names[0]).lower() if names and len(names) == 1 else ""
