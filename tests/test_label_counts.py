import uuid
from datetime import timedelta
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
import pytest
from histories import events_of, instant
from ibis.backends.duckdb import Backend as DuckDB

from features.label_counts import count_labels
from features.labels import LabelSettings, label, labels_table
from features.table import TIME

Row = dict[str, Any]

AS_OF, LATER = "2024-03-01", "2024-06-01"
SETTINGS = LabelSettings.model_validate({"delay_days": 2, "bought": {"kind": "conversion", "horizon_days": 28}})
NOTHING = {"users": 1, "incomplete": 0, "ineligible": 0, "labelled": 0, "positive": 0, "contradicted": 0}


def snapshot_of(engine: DuckDB, users: list[tuple[str, str, float]]) -> ir.Table:
    rows = [{"user_id": user, "as_of": instant(as_of), "recency_days": days} for user, as_of, days in users]
    schema = pa.schema([("user_id", pa.string()), ("as_of", TIME.to_pyarrow()), ("recency_days", pa.float64())])
    return engine.create_table(f"snapshot_{uuid.uuid4().hex}", pa.Table.from_pylist(rows, schema), temp=True)


def told(engine: DuckDB, *rows: Row) -> ir.Table:
    """Make LABELS by hand."""
    table = pa.Table.from_pylist(list(rows), labels_table(SETTINGS.named).schema.to_pyarrow())
    return engine.create_table(f"labels_{uuid.uuid4().hex}", table, temp=True)


def counted(
    engine: DuckDB,
    events: list[Row],
    name: str = "churn",
    known_at: str = LATER,
    users: list[tuple[str, str, float]] | None = None,
    labels: ir.Table | None = None,
) -> list[Row]:
    """Label users and count them; list what is found at each instant, without the instant."""
    snapshot, known = snapshot_of(engine, users or [("u", AS_OF, 1.0)]), events_of(engine, events)
    made = label(snapshot, known, instant(known_at), SETTINGS) if labels is None else labels
    found = count_labels(snapshot, made, known, instant(known_at), SETTINGS.named[name])
    rows: list[Row] = found.drop("as_of").to_pyarrow().to_pylist()
    return rows


def test_users_are_counted_by_what_became_of_the_label(engine: DuckDB) -> None:
    users = [("gone", AS_OF, 1.0), ("here", AS_OF, 1.0), ("long gone", AS_OF, 40.0)]

    found = counted(engine, [{"occurred_at": "2024-03-05", "user_id": "here"}], users=users)

    assert found == [NOTHING | {"users": 3, "labelled": 2, "positive": 1, "ineligible": 1}]


def test_a_window_that_was_not_over_is_told_apart_from_a_user_who_is_not_eligible(engine: DuckDB) -> None:
    users = [("u", AS_OF, 1.0), ("v", AS_OF, 40.0), ("u", "2024-03-20", 1.0), ("v", "2024-03-20", 40.0)]

    assert counted(engine, [], known_at="2024-03-31", users=users) == [
        NOTHING | {"users": 2, "labelled": 1, "positive": 1, "ineligible": 1},
        NOTHING | {"users": 2, "incomplete": 2},
    ]


def test_a_window_is_over_exactly_at_its_end(engine: DuckDB) -> None:
    assert counted(engine, [], known_at="2024-03-31") == [NOTHING | {"labelled": 1, "positive": 1}]
    assert counted(engine, [], known_at="2024-03-30T23:59:59.999999") == [NOTHING | {"incomplete": 1}]


BEGIN, END, JUST = instant("2024-03-03"), instant("2024-03-31"), timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("event", "acted"),
    [
        ({"occurred_at": BEGIN - JUST}, False),
        ({"occurred_at": BEGIN}, True),
        ({"occurred_at": END - JUST}, True),
        ({"occurred_at": END}, False),
        ({"occurred_at": BEGIN, "user_id": "v"}, False),
        ({"occurred_at": BEGIN, "ingested_at": instant(LATER)}, True),
        ({"occurred_at": BEGIN, "ingested_at": instant(LATER) + JUST}, False),
    ],
)
def test_a_label_that_the_events_do_not_bear_out_is_found(engine: DuckDB, event: Row, acted: bool) -> None:
    row = {"user_id": "u", "as_of": instant(AS_OF)}
    event = {"event_name": "purchase"} | event

    right = told(engine, row | {"churned": not acted, "bought": acted})
    wrong = told(engine, row | {"churned": acted, "bought": not acted})
    snapshot, events = snapshot_of(engine, [("u", AS_OF, 1.0)]), events_of(engine, [event])

    for name in ("churn", "bought"):
        for labels, contradicted in ((right, 0), (wrong, 1)):
            found = count_labels(snapshot, labels, events, instant(LATER), SETTINGS.named[name])
            assert found.to_pyarrow()["contradicted"].to_pylist() == [contradicted]


def test_an_event_of_another_name_does_not_count(engine: DuckDB) -> None:
    bought = told(engine, {"user_id": "u", "as_of": instant(AS_OF), "bought": True})

    found = counted(engine, [{"occurred_at": "2024-03-05", "event_name": "add_to_cart"}], "bought", labels=bought)

    assert found == [NOTHING | {"labelled": 1, "positive": 1, "contradicted": 1}]


def test_a_user_who_should_have_a_label_and_has_none_is_in_no_count(engine: DuckDB) -> None:
    assert counted(engine, [], labels=told(engine)) == [NOTHING]


def test_without_a_snapshot_nothing_is_counted(engine: DuckDB) -> None:
    nobody = snapshot_of(engine, [])
    found = count_labels(nobody, told(engine), events_of(engine, []), instant(LATER), SETTINGS.named["churn"])

    assert found.to_pyarrow().num_rows == 0
