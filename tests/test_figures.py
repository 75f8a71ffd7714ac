import numpy as np
import pandas as pd
import pytest
from matplotlib import _pylab_helpers
from matplotlib.patches import Rectangle

from models.candidates import Candidate, Method
from models.figures import plot_calibration, plot_candidates, plot_gains, plot_profiles, plot_size_changes
from models.lineage import SizeChange


def test_gains_rise_from_nobody_to_everybody() -> None:
    labels = pd.Series([True, True, False, False, True, False, False, False, False, False])
    falling = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    figure = plot_gains(labels, {"this model": falling, "recency alone": np.full(10, 0.3)})

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


def candidate(k: int, silhouette: float, refused: str | None = None, method: Method = "k-means") -> Candidate:
    return Candidate(method, k, False, silhouette / 2, silhouette, 0.5, (1.0,) * k, 1 / k, refused)


CANDIDATES = [candidate(2, 0.2), candidate(3, 0.35), candidate(4, 0.3, "too small"), candidate(2, 0.1, None, "mixture")]


def test_the_chosen_number_of_segments_is_marked() -> None:
    axes = plot_candidates(CANDIDATES, CANDIDATES[1]).axes[0]

    assert [text.get_text() for text in axes.texts] == ["3 segments"]


def test_candidates_that_are_not_eligible_are_hollow() -> None:
    axes = plot_candidates(CANDIDATES, CANDIDATES[1]).axes[0]

    hollow = [np.asarray(line.get_xydata()).tolist() for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert hollow == [[[4, 0.15]]]


def test_a_change_of_size_is_stacked_from_what_users_did_and_what_the_model_did() -> None:
    shares = (0.0, 0.0, 0.0, 0.0)
    axes = plot_size_changes(
        [
            SizeChange("S01", "Regulars", 1000, 30, 20, 1050, *shares),
            SizeChange("S02", "Owls", 90, -40, 10, 60, *shares),
            SizeChange("S03", "Newcomers", 0, 0, 0, 0, *shares),
        ]
    ).axes[0]

    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 30), (0, -40), (0, 0), (30, 20), (0, 10), (0, 0)]
    assert [text.get_text() for text in axes.texts] == ["1,000 → 1,050 (+50)", "90 → 60 (−30)", "0 → 0 (±0)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["S01  Regulars", "S02  Owls", "S03  Newcomers"]


def test_figures_leave_no_global_state() -> None:
    plot_candidates(CANDIDATES, CANDIDATES[1])

    assert _pylab_helpers.Gcf.figs == {}
