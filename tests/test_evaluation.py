import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import _pylab_helpers
from matplotlib.patches import Rectangle

from models.evaluation import decide, evaluate, plot_calibration, plot_gains, plot_profiles, plot_silhouettes

LABELS = pd.Series([True, True, False, False, True, False, False, False, False, False])
PROBABILITIES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])


def measured(log_loss: float) -> dict[str, float]:
    return {"rows": 1200.0, "log_loss": log_loss}


BASELINES = {"the base rate": measured(0.6), "recency alone": measured(0.5)}


# --- evaluate ---


def test_metrics_are_what_a_hand_gets() -> None:
    metrics = evaluate(LABELS, PROBABILITIES)

    assert metrics["rows"] == 10
    assert metrics["base_rate"] == pytest.approx(0.3)
    assert metrics["auc"] == pytest.approx(19 / 21)  # of 21 pairs of a positive and a negative, 2 are swapped
    assert metrics["average_precision"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 5) / 3)
    assert metrics["brier"] == pytest.approx(np.mean((LABELS - PROBABILITIES) ** 2))
    assert metrics["log_loss"] == pytest.approx(
        -np.mean([math.log(p if happened else 1 - p) for p, happened in zip(PROBABILITIES, LABELS, strict=True)])
    )


def test_lift_is_the_rate_in_the_first_tenth_over_the_base_rate() -> None:
    assert evaluate(LABELS, PROBABILITIES)["lift_10pct"] == pytest.approx(1 / 0.3)


def test_a_model_that_knows_nothing_has_no_lift_in_whatever_order_the_rows_come() -> None:
    assert evaluate(LABELS, np.full(10, 0.3))["lift_10pct"] == pytest.approx(1)
    assert evaluate(LABELS[::-1], np.full(10, 0.3))["lift_10pct"] == pytest.approx(1)


# --- decide ---


def test_the_first_model_is_promoted_if_it_beats_the_baselines() -> None:
    decision = decide(measured(0.4), BASELINES)

    assert decision.promoted
    assert decision.reason == (
        "Promoted: log loss 0.4000 is below the base rate (0.6000) and recency alone (0.5000) "
        "on the same 1,200 later rows."
    )


def test_a_challenger_is_promoted_if_it_beats_the_champion_too() -> None:
    decision = decide(measured(0.4), BASELINES | {"the champion": measured(0.45)})

    assert decision.promoted
    assert "the champion (0.4500)" in decision.reason


def test_an_equal_champion_keeps_serving() -> None:
    decision = decide(measured(0.4), BASELINES | {"the champion": measured(0.4)})

    assert not decision.promoted
    assert decision.reason == (
        "Not promoted: log loss 0.4000 is not below the champion (0.4000) on the same 1,200 later rows."
    )


def test_a_model_no_better_than_a_baseline_is_not_promoted() -> None:
    assert not decide(measured(0.5), BASELINES).promoted


def test_a_model_that_beats_the_champion_but_not_a_baseline_is_not_promoted() -> None:
    assert not decide(measured(0.52), BASELINES | {"the champion": measured(0.55)}).promoted


# --- figures ---


def test_gains_rise_from_nobody_to_everybody() -> None:
    figure = plot_gains(LABELS, {"this model": PROBABILITIES, "recency alone": np.full(10, 0.3)})

    chance, model, baseline = (np.asarray(line.get_xydata()) for line in figure.axes[0].lines)
    assert model.tolist()[:3] == [[0, 0], [0.1, pytest.approx(1 / 3)], [0.2, pytest.approx(2 / 3)]]
    assert model.tolist()[-1] == [1, 1]
    assert baseline.tolist() == chance.tolist() == [[0, 0], [1, 1]]


def test_calibration_compares_what_was_said_with_what_happened() -> None:
    probabilities = np.repeat([0.2, 0.8], 50)
    figure = plot_calibration(pd.Series([True] * 10 + [False] * 40 + [True] * 45 + [False] * 5), probabilities)

    _, model = figure.axes[0].lines
    assert model.get_xydata() == pytest.approx(np.array([[0.2, 0.2], [0.8, 0.9]]))
    assert [bar.get_height() for bar in figure.axes[1].patches if isinstance(bar, Rectangle)].count(50) == 2


def test_profiles_start_with_what_tells_segments_apart() -> None:
    profiles = pd.DataFrame(
        {"recency_days": [0.1, -0.1], "purchase_count": [1.6, -0.4]}, index=["Frequent buyers", "Others"]
    )
    axes = plot_profiles(profiles).axes[0]

    assert [label.get_text() for label in axes.get_yticklabels()] == ["purchases", "days since the last session"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Frequent buyers", "Others"]
    assert [text.get_text() for text in axes.texts] == ["+1.6"]


def test_the_chosen_number_of_segments_is_marked() -> None:
    axes = plot_silhouettes({2: 0.2, 3: 0.35, 4: 0.3}).axes[0]

    assert [text.get_text() for text in axes.texts] == ["3 segments: 0.350"]


def test_figures_leave_no_global_state() -> None:
    plot_silhouettes({2: 0.2, 3: 0.35})

    assert _pylab_helpers.Gcf.figs == {}
