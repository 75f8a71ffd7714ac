from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import Pipeline

import models.clusters
from models.clusters import find
from models.segments import SegmentModel
from models.telling import Past, measure, outcomes_of, telling, told
from models.telling_words import UNKNOWN, headline, table
from publish.report.telling import describe_telling

COUNT = 600


def past(seed: int, as_of: str = "2024-03-01") -> Past:
    """Make users whose sessions tell whether they come again, and whose revenue tells what they spend then.

    What else is known of them are three groups, clearly apart, that tell nothing.
    """
    random = np.random.default_rng(seed)
    group = random.integers(3, size=COUNT)
    users = pd.DataFrame(
        {
            "user_id": [f"u{i:03d}" for i in range(COUNT)],
            "as_of": pd.Timestamp(as_of, tz="UTC"),
            "recency_days": np.exp(random.normal(2, 1, COUNT)),
            "session_count": random.poisson(6, COUNT).astype("float64"),
            "revenue_total": np.exp(random.normal(3, 1.5, COUNT)),
            "idle_a": np.exp(group + random.normal(0, 0.1, COUNT)),
            "idle_b": np.exp(2 * group + random.normal(0, 0.1, COUNT)),
            "idle_c": np.exp((group == 1) + random.normal(0, 0.1, COUNT)),
        }
    )
    comes = users["session_count"] + random.normal(0, 1, COUNT) > 6
    outcomes = users[["user_id", "as_of"]].assign(
        label_churn=~comes,
        revenue=np.where(comes, users["revenue_total"] * np.exp(random.normal(0, 0.3, COUNT)), 0.0),
        event_count=np.where(comes, 3.0, 0.0),
    )
    return Past(users, outcomes, {"label_churn": 28.0, "revenue": 28.0, "event_count": 28.0})


def by_sessions(users: pd.DataFrame) -> NDArray[np.intp]:
    return np.searchsorted([4.5, 7.5], users["session_count"])


@cache
def measured() -> dict[str, Any]:
    return measure(by_sessions, 3, [past(1, "2024-02-02"), past(2)])


# --- what is told ---


def test_each_user_is_told_the_mean_of_the_same_segment_then() -> None:
    then = np.array([[1.0, 10.0], [0.0, 20.0], [1.0, 60.0]])

    found = told(np.array([0, 0, 1]), then, np.array([1, 0]), k=2)
    assert found.tolist() == [[1.0, 60.0], [0.5, 15.0]]


def test_of_a_segment_that_nobody_was_in_everyones_mean_is_told() -> None:
    assert told(np.array([0, 0]), np.array([[1.0], [0.0]]), np.array([1]), k=2).tolist() == [[0.5]]


def test_what_is_surely_told_is_three_standard_errors_less() -> None:
    random = np.random.default_rng(1)
    actual = random.normal(size=(500, 1))
    value, low = telling(actual + random.normal(size=(500, 1)) / 2, actual)

    assert value == pytest.approx(0.75, abs=0.1)
    assert 0 < value - low < 0.2
    assert telling(np.zeros((500, 1)) + actual.mean(), actual) == pytest.approx((0, 0), abs=0.1)


def test_a_label_that_hardly_anybody_has_is_no_outcome() -> None:
    one = past(1)
    rare = replace(
        one, outcomes=one.outcomes.assign(label_gift=np.arange(COUNT) < 9, label_visit=np.arange(COUNT) < 10)
    )

    assert outcomes_of([rare]) == ["label_churn", "label_visit", "revenue"]


def test_where_nothing_is_earned_events_are_what_users_are_worth() -> None:
    one = past(1)

    assert outcomes_of([one]) == ["label_churn", "revenue"]
    assert outcomes_of([replace(one, outcomes=one.outcomes.assign(revenue=0.0))]) == ["label_churn", "event_count"]


def test_where_users_do_nothing_there_are_no_outcomes() -> None:
    one = past(1)
    nothing = one.outcomes.assign(label_churn=True, revenue=0.0, event_count=0.0)

    assert outcomes_of([one, replace(one, outcomes=nothing)]) == []


# --- the figures ---


def test_the_figures_of_segments_are_those_of_scikit_learn() -> None:
    before, then = past(1, "2024-02-02"), past(2)
    rates = before.outcomes["label_churn"].groupby(by_sessions(before.users)).mean()
    spent = np.arcsinh(before.outcomes["revenue"]).groupby(by_sessions(before.users)).mean()
    churned, worth = then.outcomes["label_churn"], np.arcsinh(then.outcomes["revenue"])

    of_churn = measured()["outcomes"]["label_churn"]["metrics"]["segments"]
    of_value = measured()["outcomes"]["revenue"]["metrics"]["segments"]
    assert of_churn["auc"]["value"] == pytest.approx(roc_auc_score(churned, rates[by_sessions(then.users)]))
    assert of_churn["r2"]["value"] == pytest.approx(r2_score(churned, rates[by_sessions(then.users)]))
    assert of_value["r2"]["value"] == pytest.approx(r2_score(worth, spent[by_sessions(then.users)]))


def test_a_normalised_gini_is_1_in_the_order_of_what_came() -> None:
    then = past(2)
    order = np.argsort(np.argsort(then.outcomes["revenue"], kind="stable"), kind="stable")

    perfect = measure(lambda users: order, COUNT, [replace(then), then])
    assert perfect["outcomes"]["revenue"]["metrics"]["segments"]["gini"]["value"] == pytest.approx(1)


def test_rivals_are_told_beside_the_segments_with_paired_intervals() -> None:
    gains = measured()["outcomes"]["label_churn"]["gains"]

    assert set(gains) == {"rfm_kmeans", "rfm_terciles", "spending"}
    assert gains["spending"]["auc"]["low"] > 0
    ours, theirs = (measured()["outcomes"]["label_churn"]["metrics"][way]["auc"] for way in ("segments", "spending"))
    assert gains["spending"]["auc"]["value"] == pytest.approx(ours["value"] - theirs["value"])


# --- in words ---


def gained(value: float, low: float, high: float) -> dict[str, Any]:
    """Return what segments told of a value, that far ahead of k-means on RFM."""
    metrics = {"segments": {"r2": {"value": 0.2}}, "rfm_kmeans": {"r2": {"value": 0.2 - value}}}
    gain = {"rfm_kmeans": {"r2": {"value": value, "low": low, "high": high}}}
    return {"outcomes": {"revenue": {"horizon_days": 28.0, "metrics": metrics, "gains": gain}}}


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((0.05, 0.03, 0.07), "15 %: 5.0 points more (3.0 to 7.0)"),
        ((-0.05, -0.07, -0.03), "25 %: 5.0 points less (3.0 to 7.0)"),
        ((0.05, -0.01, 0.11), "15 %: no clear difference"),
    ],
)
def test_what_is_told_is_said_beside_k_means_on_rfm(gain: tuple[float, float, float], said: str) -> None:
    assert headline(gained(*gain), "2024-03-01") == (
        "They explain 20 % of the differences in revenue over the next 28 days; as many segments by k-means on RFM, "
        f"{said}. This was measured with segments found in the same way on 2024-03-01."
    )


def test_where_nothing_is_told_that_is_said() -> None:
    assert headline(None, "") == f"What{UNKNOWN.removeprefix('what')}."


def test_a_report_has_what_its_segments_told() -> None:
    made = SegmentModel(Pipeline([("nothing", "passthrough")]), (), 1, tells=measured())

    tells = describe_telling(made, "Europe/Berlin")
    assert tells is not None
    assert tells.days == "28 days"
    assert (tells.figures[0].outcome, tells.figures[0].metric) == ("churn", "AUC")
    assert tells.figures[0].segments == measured()["outcomes"]["label_churn"]["metrics"]["segments"]["auc"]["value"]
    assert describe_telling(replace(made, tells=None), "Europe/Berlin") is None


def test_each_figure_is_a_row_to_read() -> None:
    assert [(row.outcome, row.metric) for row in table(measured())] == [
        ("churn", "AUC"),
        ("churn", "R²"),
        ("revenue", "R²"),
        ("revenue", "Gini"),
    ]


# --- in the choice ---


@pytest.fixture(autouse=True)
def few_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.clusters, "REFIT_COUNT", 4)


def test_segments_that_tell_are_chosen_over_segments_that_are_only_apart() -> None:
    now = past(3, "2024-03-29").users
    chosen = find(now, 3, 4, seed=1, past=[past(1, "2024-02-02"), past(2)]).chosen
    blind = find(now, 3, 4, seed=1).chosen

    assert blind.separation > chosen.separation
    assert chosen.space != "behaviour"
    assert chosen.telling is not None
    assert chosen.telling > 0.3
    assert chosen.steadiness is not None


def test_where_outcomes_are_shuffled_segments_are_those_of_behaviour() -> None:
    random = np.random.default_rng(4)
    mixed = [
        replace(one, outcomes=one.outcomes.iloc[random.permutation(COUNT)].reset_index(drop=True))
        for one in (past(1, "2024-02-02"), past(2))
    ]

    assert find(past(3, "2024-03-29").users, 3, 4, seed=1, past=mixed).chosen.space == "behaviour"
