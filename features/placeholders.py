"""Placeholders: what programs write where they have no user. Taken for an id, it would make strangers one user."""

from collections.abc import Mapping

import ibis
import ibis.expr.types as ir

NO_USER = (
    *("null", "(null)", "none", "nil", "undefined", "NaN", r"\N", "(not set)"),
    *("00000000-0000-0000-0000-000000000000", "0" * 32),
)


def is_placeholder(user_id: ir.StringValue, placeholders: list[str]) -> ir.BooleanValue:
    """Tell which ids are one of some placeholders, but for blanks around them and upper or lower case."""
    if not placeholders:
        return user_id.isnull() & False
    return _bare(user_id).isin([text.strip().lower() for text in placeholders]).fill_null(False)


def without_placeholders(user_id: ir.StringValue, placeholders: list[str]) -> ir.StringValue:
    """Return ids, and null for those that are a placeholder."""
    return ibis.ifelse(is_placeholder(user_id, placeholders), None, user_id) if placeholders else user_id


def count_placeholders(user_id: ir.StringColumn, placeholders: list[str]) -> dict[str, int]:
    """Count the rows whose id is a placeholder by that, as the list has it, the most frequent first."""
    as_listed = {text.strip().lower(): text for text in placeholders}
    found = _bare(user_id).name("bare").as_table()
    counts = found.filter(found.bare.isin(list(as_listed))).group_by("bare").agg(rows=ibis._.count())
    rows = counts.order_by(counts["rows"].desc(), counts.bare).to_pyarrow().to_pylist()
    return {as_listed[row["bare"]]: row["rows"] for row in rows}


def in_words(counts: Mapping[str, int]) -> str:
    """Say how many rows have which placeholder.

    >>> in_words({"null": 1200, "(not set)": 1})
    "1,200 say 'null', 1 says '(not set)'"
    """
    return ", ".join(f"{count:,} {'says' if count == 1 else 'say'} {name!r}" for name, count in counts.items())


def _bare(user_id: ir.StringValue) -> ir.StringValue:
    return user_id.strip().lower()
