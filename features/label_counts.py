"""Label counts: what became of a label at each instant, and whether the events agree with it."""

from datetime import datetime

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.labels import KEY, Label
from features.table import TIME


def count_labels(snapshot: ir.Table, labels: ir.Table, events: ir.Table, known_at: datetime, label: Label) -> ir.Table:
    """Count users of SNAPSHOTS by what LABELS, made at `known_at`, have of them, and compare these with EVENTS.

    A row for each as_of, in order: `users` in the snapshot; of these those whose window was not over (`incomplete`),
    those of whom a complete label is not asked (`ineligible`), those who have it (`labelled`) and for whom it is true
    (`positive`), and those whose label is not what the events in the window say (`contradicted`). Whoever has no label
    and is in none of these lacks one. All are counts; none is null.

    Who has an event in a window is looked up here in the plainest way, sharing nothing with what made the labels.
    """
    known = events.filter(events.ingested_at <= ibis.literal(known_at, TIME))
    acts = known.filter(known.event_name.isin(label.events)) if label.events else known
    windows = _windows(snapshot, label)
    present = acts.join(windows, [acts.occurred_at >= windows.begin_at, acts.occurred_at < windows.end_at])
    present = present.select(*KEY).distinct().mutate(is_present=True)
    users = snapshot.select(*KEY, is_eligible=label.is_eligible(snapshot))
    users = users.left_join(labels.select(*KEY, answer=labels[label.column]), KEY).drop("user_id_right", "as_of_right")
    users = users.left_join(present, KEY).drop("user_id_right", "as_of_right")
    is_complete = users.as_of <= ibis.literal(known_at - label.reach, TIME)
    says = users.is_present.isnull() if label.kind == "churn" else users.is_present.notnull()
    return (
        users.group_by("as_of")
        .agg(
            users=users.count(),
            incomplete=users.count(where=~is_complete),
            ineligible=users.count(where=is_complete & ~users.is_eligible),
            labelled=users.answer.count(),
            positive=users.count(where=users.answer),
            contradicted=users.count(where=users.answer != says),
        )
        .order_by("as_of")
    )


def _windows(snapshot: ir.Table, label: Label) -> ir.Table:
    """Return the instants of snapshots, and from when to before when each one's window is."""
    instants = snapshot.select("as_of").distinct().to_pyarrow()["as_of"].to_pylist()
    windows = {
        "as_of": instants,
        "begin_at": [instant + label.delay for instant in instants],
        "end_at": [instant + label.reach for instant in instants],
    }
    return ibis.memtable(pa.table({name: pa.array(at, TIME.to_pyarrow()) for name, at in windows.items()}))
