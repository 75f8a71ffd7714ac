"""OUTCOMES: what all users of a snapshot did after it, be they eligible for a label or not."""

from collections.abc import Iterable, Mapping
from datetime import datetime

import ibis
import ibis.expr.types as ir

from features.events import epoch_us
from features.labels import CHURN, KEY, Label, acted
from features.sessions import earned, micros, us
from features.table import TIME, Table

LABEL = "label_"
"""Before the names of labels, which may be any word."""


def outcomes_table(names: Iterable[str]) -> Table:
    """Return the contract for these labels, by name."""
    return Table(
        name="outcomes",
        schema=ibis.schema(
            {"user_id": "!string", "as_of": TIME.copy(nullable=False)}
            | {f"{LABEL}{name}": "!boolean" for name in names}
            | {"revenue": "!float64", "event_count": "!float64"}
        ),
        key=KEY,
        partition="as_of",
    )


def outcomes(snapshot: ir.Table, events: ir.Table, known_at: datetime, labels: Mapping[str, Label]) -> ir.Table:
    """Tell what users of SNAPSHOTS did after their as_of, by EVENTS known at `known_at`: OUTCOMES.

    A column for each label says whether it is true, of all users: a segment holds those, too, of whom the label is not
    asked. `revenue` (purchases less refunds, at least 0) and `event_count` are sums over the window of churn or, where
    that is not among the labels, of the first one. Rows of which any window ends after `known_at` are left out, as with
    labels.
    """
    instant = ibis.literal(known_at, TIME)
    reach_us = us(max(label.reach for label in labels.values()))
    found = snapshot.filter(epoch_us(instant) - epoch_us(snapshot.as_of) >= reach_us).select(*KEY)
    known = events.filter(events.occurred_at < instant, events.ingested_at <= instant)
    instants = sorted(found.distinct().as_of.to_pyarrow().unique().to_pylist())
    users = found
    for name, label in labels.items():
        those = acted(users, instants, known, label).mutate(**{f"{LABEL}{name}": True})
        found = found.left_join(those, KEY).drop("user_id_right", "as_of_right")
    window = labels.get(CHURN) or next(iter(labels.values()))
    sums = ibis.union(*(_sums(known, one, window) for one in instants or [known_at]))
    found = found.left_join(sums, KEY).drop("user_id_right", "as_of_right")
    answers = {
        f"{LABEL}{name}": found[f"{LABEL}{name}"].isnull() == (label.kind == "churn") for name, label in labels.items()
    }
    revenue = (found.revenue_micros.fill_null(0).cast("float64") / 1_000_000).clip(lower=0)
    values = {"revenue": revenue, "event_count": found.act_count.fill_null(0).cast("float64")}
    return outcomes_table(labels).check(found.select(*KEY, **answers, **values))


def _sums(events: ir.Table, as_of: datetime, label: Label) -> ir.Table:
    """Add up what each user's events in a label's window are worth, and count them."""
    inside = events.filter(
        events.occurred_at >= ibis.literal(as_of + label.delay, TIME),
        events.occurred_at < ibis.literal(as_of + label.reach, TIME),
    )
    sums = inside.group_by("user_id").agg(revenue_micros=micros(earned(inside)).sum(), act_count=inside.count())
    return sums.mutate(as_of=ibis.literal(as_of, TIME))
