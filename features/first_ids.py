"""Ids of content by rule 1, which lakes of 0.1.0 hold: a hash of the text of the types that the engine found.

Events that were ingested by it keep these ids. So where a lake has files of that rule, rows get the ids of both rules,
and keep the one that the lake knows (decision 16).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

FIRST_ID = "habitus_first_id_"
EXACT = 2**53
FIRST_COLUMNS = (
    *(
        "user_id",
        "anonymous_id",
        "account_id",
        "occurred_at",
        "ingested_at",
        "event_name",
        "page",
        "element",
        "item_id",
    ),
    *("category", "quantity", "revenue", "source", "medium", "campaign", "device", "country", "properties"),
)
"""What an id was made of, in this order."""


def add_first_ids(
    con: duckdb.DuckDBPyConnection,
    sql: str,
    columns: Mapping[str, str],
    is_json: bool,
    mapped: Mapping[str, str],
    known: Sequence[Mapping[str, str]],
) -> str:
    """Return a query for rows, with an id for each of the columns that files were read with by rule 1.

    `columns` are those of the rows with their types, `mapped` expressions over them by column of EVENTS. An id is null
    where an expression does not work on the columns of then.
    """
    expressions = [mapped[name] for name in FIRST_COLUMNS if name in mapped]
    for place, kinds in enumerate(known):
        name = f"{FIRST_ID}{place}"
        row = _as_of_then(columns, kinds, is_json)
        typed = f"SELECT habitus_outer AS habitus_row, unnest({row}) FROM ({sql}) AS habitus_outer"
        listed = ", ".join(f"({expression}) AS c{number}" for number, expression in enumerate(expressions))
        try:
            found = con.execute(f"DESCRIBE SELECT {listed} FROM ({typed})").fetchall()
        except duckdb.Error:
            sql = f"SELECT *, NULL::VARCHAR AS {name} FROM ({sql})"
            continue
        texts = [_as_written(f"({one})", kind) for one, (_, kind, *_) in zip(expressions, found, strict=True)]
        content = " || chr(31) || ".join(f"coalesce({text}, chr(30))" for text in texts)
        sql = f"SELECT unnest(habitus_row), md5({content}) AS {name} FROM ({typed})"
    return sql


def _as_of_then(columns: Mapping[str, str], kinds: Mapping[str, str], is_json: bool) -> str:
    """Return a struct of the columns that files had then, of the types of then."""
    if is_json:
        structure = {name: structure_of(duckdb.sqltype(kind)) for name, kind in kinds.items()}
        text = json.dumps(structure).replace("'", "''")
        return f"from_json(CASE WHEN NOT habitus_malformed THEN habitus_line END, '{text}')"
    fields = (
        f"{_identifier(name)}: TRY_CAST({_identifier(name) if name in columns else 'NULL'} AS {kind})"
        for name, kind in kinds.items()
    )
    return f"{{{', '.join(fields)}}}"


def structure_of(kind: Any) -> Any:
    """Return a type of the engine as the structure of JSON that is read as it."""
    if kind.id == "struct":
        return {name: structure_of(child) for name, child in kind.children}
    if kind.id == "list":
        return [structure_of(kind.children[0][1])]
    return str(kind)


def _as_written(sql: str, kind: str) -> str:
    """Return the text of a value under rule 1: as the engine writes its type, a whole number without a point."""
    text = f"CAST({sql} AS VARCHAR)"
    if kind not in ("FLOAT", "DOUBLE"):
        return text
    is_whole = f"abs({sql}) < {EXACT} AND {sql} = floor({sql})"
    return (
        f"CASE WHEN isnan({sql}) THEN NULL WHEN {is_whole} THEN CAST(CAST({sql} AS BIGINT) AS VARCHAR) ELSE {text} END"
    )


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
