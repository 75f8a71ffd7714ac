"""Compile a query once: of few rows that takes longer than to run it, and tests ask the same again and again.

Two queries have the same text, but for the names of their tables, where they are made alike of equal parts.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import ibis.expr.operations as ops
import ibis.expr.types as ir
from ibis.backends.duckdb import Backend as DuckDB
from ibis.backends.sql.datatypes import DuckDBType
from ibis.common.collections import FrozenDict
from ibis.common.graph import Node

MADE_UP = re.compile("[0-9A-Za-z_]*[0-9a-z]{20,}")
"""The name of a table that was made for the moment."""

Shape = tuple[Any, ...]


def compile_once() -> None:
    """Remember, in this process, what DuckDB's queries and types of columns were compiled to."""
    compile_anew: Callable[..., str] = DuckDB.compile
    texts: dict[Any, str] = {}

    def compile(self: DuckDB, expr: ir.Expr, /, *, limit: Any = None, params: Any = None, pretty: bool = False) -> str:
        if params or pretty:
            return compile_anew(self, expr, limit=limit, params=params, pretty=pretty)
        shape, names = shape_of(expr.op())
        if (shape, limit) not in texts:
            texts[shape, limit] = hide(compile_anew(self, expr, limit=limit), names)
        return show(texts[shape, limit], names)

    DuckDB.compile = compile
    DuckDBType.from_string = cache(DuckDBType.from_string)


def shape_of(op: Node) -> tuple[Shape, list[str]]:
    """Return what a query is made of, and the names that its tables happen to have, in order."""
    numbers: dict[int, int] = {}
    names: dict[str, int] = {}
    identifiers: dict[int, int] = {}
    parts: list[Shape] = []

    def part(value: Any) -> Any:
        if isinstance(value, Node):
            return "node", numbers[id(value)]
        if isinstance(value, tuple):
            return tuple(map(part, value))
        if isinstance(value, FrozenDict):
            return tuple((part(key), part(one)) for key, one in value.items())
        if isinstance(value, str):
            return MADE_UP.sub(lambda found: f"\0{names.get(found[0], found[0])}\0", value)
        return type(value), repr(value) if isinstance(value, float) else value

    pending = [op]
    while pending:
        node = pending[-1]
        if id(node) in numbers:
            pending.pop()
            continue
        below = [child for child in node.__children__ if id(child) not in numbers]
        if below:
            pending += reversed(below)
            continue
        pending.pop()
        values = dict(zip(node.argnames, node.args, strict=True))
        if isinstance(node, ops.PhysicalTable):
            for unseen in ("data", "source"):
                values.pop(unseen, None)
            if MADE_UP.fullmatch(values["name"]):
                names.setdefault(values["name"], len(names))
        if isinstance(node, ops.SelfReference):
            values["identifier"] = identifiers.setdefault(values["identifier"], len(identifiers))
        numbers[id(node)] = len(parts)
        parts.append((type(node), *map(part, values.values())))
    return tuple(parts), list(names)


def hide(text: str, names: list[str]) -> str:
    """Put numbers in the place of names."""
    for number, name in enumerate(names):
        text = text.replace(name, f"\0{number}\0")
    return text


def show(text: str, names: list[str]) -> str:
    """Put names in the place of their numbers."""
    return re.sub("\0([0-9]+)\0", lambda found: names[int(found[1])], text)
