"""Lines of orders: one that a source sends twice, under two event ids, counts once."""

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from features.events import EVENTS, MADE
from features.table import materialize, stack

LINE = ("event_name", "order_id", "item_id", "quantity", "revenue")
"""What two events agree in that are the same line."""


@dataclass(frozen=True)
class Contest:
    """Hold what becomes of EVENTS where some are added: `entering` and `leaving` the table, `repeated` lines.

    Of those that are repeated, some are added, some leave, and some were repeated before.
    """

    entering: ir.Table
    leaving: ir.Table
    repeated: ir.Table


def find_repeated(events: ir.Table) -> ir.Table:
    """Return the EVENTS that are the same line of an order as an earlier one, whatever order they come in.

    Two are the same line if event_name, order_id, item_id, quantity and revenue agree and their event ids were given by
    the source; the earliest by (occurred_at, event_id) stays. Events without an order_id are no lines.
    """
    lines = _lines(events)
    shared = lines.group_by("line").agg(rows=lines.count()).filter(lambda found: found["rows"] > 1)
    twins = materialize(lines.semi_join(shared, "line"))
    rank = ibis.row_number().over(group_by=twins.line, order_by=[twins.occurred_at, twins.event_id])
    return EVENTS.check(materialize(twins.mutate(rank=rank).filter(lambda ranked: ranked["rank"] > 0)))


def contest(added: ir.Table, displaced: ir.Table, stored: ir.Table, repeated: ir.Table) -> Contest:
    """Tell what EVENTS enter and leave where some are added and some give way to twins with their id.

    `stored` are those that are there, `repeated` those that are kept out as repeated lines; `displaced` may be of both.
    A repeated line enters where the one that it repeats is gone.
    """
    touched = materialize(_lines(stack(added, displaced)).select("line").distinct())
    leaving = displaced.anti_join(repeated, "event_id")
    if not touched.count().to_pyarrow().as_py():
        return Contest(added, leaving, added.filter(ibis.literal(False)))

    def rivals(events: ir.Table) -> ir.Table:
        theirs = _lines(events.anti_join(displaced, "event_id")).semi_join(touched, "line")
        return materialize(theirs.select(*EVENTS.schema.names))

    standing, waiting = rivals(stored), rivals(repeated)
    found = find_repeated(stack(stack(added, standing), waiting))
    entering = stack(added, waiting).anti_join(found, "event_id")
    leaving = stack(leaving, standing.semi_join(found, "event_id"))
    return Contest(materialize(entering), materialize(leaving), found)


def _lines(events: ir.Table) -> ir.Table:
    """Return the events that are lines, with what tells a line, `line`."""
    lines = events.filter(events.order_id.notnull() & ~events.event_id.startswith(MADE))
    parts = [lines[name].cast("string").fill_null("\x1e") for name in LINE]
    return lines.mutate(line=ibis.literal("\x1f").join(parts).hexdigest("md5"))
