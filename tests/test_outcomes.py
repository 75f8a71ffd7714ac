from datetime import timedelta
from typing import Any

import ibis
import pytest
from histories import events_of, instant
from ibis.backends.duckdb import Backend as DuckDB

from features.labels import LabelSettings
from features.outcomes import outcomes
from features.table import TIME

AS_OF = instant("2024-03-01")
CHURN_ENDS = instant("2024-03-29")
A_MICROSECOND = timedelta(microseconds=1)


def outcomes_of(engine: DuckDB, rows: list[dict[str, Any]], known_at: str = "2024-06-01") -> list[dict[str, Any]]:
    """Tell what the user u, of a snapshot at AS_OF, did after it."""
    snapshot = ibis.memtable({"user_id": ["u"]}).mutate(as_of=ibis.literal(AS_OF, TIME))
    found = outcomes(snapshot, events_of(engine, rows), instant(known_at), LabelSettings().named)
    told: list[dict[str, Any]] = found.to_pyarrow().to_pylist()
    return told


def outcome(engine: DuckDB, rows: list[dict[str, Any]]) -> tuple[bool, bool, float, float]:
    [found] = outcomes_of(engine, rows)
    return found["label_churn"], found["label_conversion"], found["revenue"], found["event_count"]


def test_a_user_who_does_nothing_is_churned_and_worth_nothing(engine: DuckDB) -> None:
    assert outcome(engine, [{"occurred_at": "2024-01-01"}]) == (True, False, 0.0, 0.0)


def test_a_user_of_whom_churn_is_not_asked_has_an_outcome_too(engine: DuckDB) -> None:
    assert outcome(engine, [{"occurred_at": "2023-01-01"}, {"occurred_at": "2024-03-05"}]) == (False, False, 0.0, 1.0)


def test_what_came_exactly_at_as_of_counts_and_what_came_at_the_end_of_the_window_does_not(engine: DuckDB) -> None:
    inside = [{"occurred_at": AS_OF}, {"occurred_at": CHURN_ENDS - A_MICROSECOND}]
    outside = [{"occurred_at": AS_OF - A_MICROSECOND}, {"occurred_at": CHURN_ENDS}]

    assert outcome(engine, [*inside, *outside]) == (False, False, 0.0, 2.0)
    assert outcome(engine, outside) == (True, False, 0.0, 0.0)


def test_revenue_is_purchases_less_refunds_of_either_sign(engine: DuckDB) -> None:
    bought = {"occurred_at": "2024-03-05", "event_name": "purchase", "revenue": 30.0}

    for sign in (1, -1):
        returned = {"occurred_at": "2024-03-06", "event_name": "refund", "revenue": sign * 10.0}
        assert outcome(engine, [bought, returned]) == (False, True, 20.0, 2.0)


def test_who_returns_more_than_was_bought_is_worth_nothing(engine: DuckDB) -> None:
    returned = {"occurred_at": "2024-03-06", "event_name": "refund", "revenue": 10.0}

    assert outcome(engine, [returned]) == (False, False, 0.0, 1.0)


def test_an_outcome_whose_window_is_not_over_does_not_exist(engine: DuckDB) -> None:
    rows = [{"occurred_at": "2024-03-05"}]

    assert outcomes_of(engine, rows, known_at="2024-03-28") == []
    assert len(outcomes_of(engine, rows, known_at="2024-03-29")) == 1


def test_what_was_learned_of_too_late_is_not_known(engine: DuckDB) -> None:
    late = {"occurred_at": "2024-03-05", "ingested_at": "2024-07-01"}

    assert outcome(engine, [late]) == (True, False, 0.0, 0.0)


def test_outcomes_of_no_users_are_none(engine: DuckDB) -> None:
    nobody = ibis.memtable({"user_id": ["u"]}).limit(0).mutate(as_of=ibis.literal(AS_OF, TIME))

    found = outcomes(nobody, events_of(engine, []), instant("2024-06-01"), LabelSettings().named)
    assert found.count().to_pyarrow().as_py() == 0


@pytest.mark.parametrize("name", ["revenue", "event_count", "user"])
def test_a_label_may_have_any_name(engine: DuckDB, name: str) -> None:
    settings = LabelSettings.model_validate({name: {"kind": "churn", "horizon_days": 7}})
    snapshot = ibis.memtable({"user_id": ["u"]}).mutate(as_of=ibis.literal(AS_OF, TIME))

    found = outcomes(snapshot, events_of(engine, []), instant("2024-06-01"), settings.named)
    assert found[f"label_{name}"].to_pyarrow().to_pylist() == [True]
