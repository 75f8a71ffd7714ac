"""A table's contract: its columns, its key and its partition. Knows no particular table."""

import uuid
from dataclasses import dataclass

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
from ibis.backends import BaseBackend

MATERIALIZED = "materialized_"
TIME = dt.Timestamp(timezone="UTC")
"""Every instant in Habitus: microseconds, UTC."""


class ContractError(Exception):
    """Say which contract a table breaks, and how."""


@dataclass(frozen=True)
class Table:
    """Describe a table: a column whose type is not nullable ("!string") has a value in every row.

    `partition` names a column, or is "day of <column>" for the UTC day of an instant. `contract` is a number that goes
    up with every change of columns or of what they mean, but for columns that a configuration names: `upgrades` leads
    from one to the next.
    """

    name: str
    schema: ibis.Schema
    key: tuple[str, ...]
    partition: str | None = None
    contract: int = 1

    def check(self, expr: ir.Table) -> ir.Table:
        """Return the contract's columns of `expr` in the contract's order and types.

        Raises ContractError for a column that is missing or of another type. Types are compared without
        nullability, which no engine tracks; nulls and keys are checked where rows are at hand, in `lake`.
        """
        types = expr.schema()
        wrong = [
            f"{name} is missing" if name not in types else f"{name} is {types[name]}, not {wanted}"
            for name, wanted in self.schema.items()
            if name not in types or not _is_same(types[name], wanted)
        ]
        if wrong:
            raise ContractError(f"{self.name}: {'; '.join(wrong)}")
        return expr.select(*self.schema.names)

    def refuse(self, contract: int) -> ContractError:
        """Return what to say of a stored table that is under another contract: which of the two is to be upgraded."""
        what_to_do = "run `habitus upgrade CONFIG`" if contract < self.contract else "upgrade Habitus"
        return ContractError(
            f"{self.name}: is of contract {contract}, this release works with {self.contract}: {what_to_do}"
        )

    @property
    def required(self) -> tuple[str, ...]:
        """List the columns that are never null."""
        return tuple(name for name, dtype in self.schema.items() if not dtype.nullable)


def stack(upper: ir.Table, lower: ir.Table) -> ir.Table:
    """Return the rows of both tables, which may differ in nullability: Ibis alone minds it."""
    return upper.union(lower.select(*upper.columns).cast(upper.schema()))


def materialize(expr: ir.Table) -> ir.Table:
    """Run a query once, where its result is used more than once; the result lives as long as the engine.

    Ibis' own `cache` drops its table when the expression is collected, and complains if the engine is closed by then.
    """
    return expr.get_backend().create_table(f"{MATERIALIZED}{uuid.uuid4().hex}", expr, temp=True)


def forget_materialized(engine: BaseBackend, keep: ir.Table | None = None) -> None:
    """Drop what `materialize` stored with an engine, but for one table."""
    for name in engine.list_tables(like=f"^{MATERIALIZED}"):
        if keep is None or name != keep.op().name:
            engine.drop_table(name)


def _is_same(found: dt.DataType, wanted: dt.DataType) -> bool:
    if isinstance(found, dt.Timestamp) and isinstance(wanted, dt.Timestamp):
        return bool(found.timezone == wanted.timezone)
    return bool(found.copy(nullable=True) == wanted.copy(nullable=True))
