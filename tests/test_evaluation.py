import math
from itertools import islice

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from models.evaluation import Bootstrap, Estimate, calibration_bins, compare, evaluate, gains, losses, top_users

LABELS = pd.Series([True, True, False, False, True, False, False, False, False, False])
PROBABILITIES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])


def each_once(row_count: int) -> pd.Series:
    """Name the users of rows of which each is another's."""
    return pd.Series([f"u{i}" for i in range(row_count)])


def figures_of(labels: pd.Series, probabilities: NDArray[np.float64]) -> dict[str, float]:
    """Measure without intervals."""
    few = Bootstrap(each_once(len(labels)), draws=1)
    return {name: one.value for name, one in evaluate(labels, probabilities, few).items()}


def drawn_from(probabilities: NDArray[np.float64], seed: int = 1) -> pd.Series:
    return pd.Series(np.random.default_rng(seed).random(len(probabilities)) < probabilities)


def with_ties(row_count: int = 500) -> tuple[pd.Series, NDArray[np.float64]]:
    probabilities = np.random.default_rng(0).integers(1, 20, row_count) / 20
    return drawn_from(probabilities), probabilities


# --- figures of all rows ---


def test_metrics_are_what_a_hand_gets() -> None:
    metrics = figures_of(LABELS, PROBABILITIES)

    assert metrics["base_rate"] == pytest.approx(0.3)
    assert metrics["auc"] == pytest.approx(19 / 21)  # of 21 pairs of a positive and a negative, 2 are swapped
    assert metrics["average_precision"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 5) / 3)
    assert metrics["brier"] == pytest.approx(np.mean((LABELS - PROBABILITIES) ** 2))
    assert metrics["log_loss"] == pytest.approx(
        -np.mean([math.log(p if happened else 1 - p) for p, happened in zip(PROBABILITIES, LABELS, strict=True)])
    )


def test_metrics_are_scikit_learns_with_ties_too() -> None:
    labels, probabilities = with_ties()
    metrics = figures_of(labels, probabilities)

    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, probabilities))
    assert metrics["average_precision"] == pytest.approx(average_precision_score(labels, probabilities))
    assert metrics["log_loss"] == pytest.approx(log_loss(labels, probabilities))
    assert metrics["brier"] == pytest.approx(brier_score_loss(labels, probabilities))


def test_a_draw_is_measured_as_scikit_learn_measures_rows_with_weights() -> None:
    labels, probabilities = with_ties()
    bootstrap = Bootstrap(each_once(500), seed=7, draws=1)
    [weights] = bootstrap
    drawn = evaluate(labels, probabilities, bootstrap)

    for name, score in (
        ("auc", roc_auc_score),
        ("average_precision", average_precision_score),
        ("log_loss", log_loss),
        ("brier", brier_score_loss),
    ):
        assert drawn[name].low == pytest.approx(score(labels, probabilities, sample_weight=weights)), name
        assert drawn[name].low == drawn[name].high != drawn[name].value


def test_a_certainty_that_fails_costs_much_but_not_everything() -> None:
    assert losses(pd.Series([True, False]), np.array([0.0, 0.0])).tolist() == pytest.approx([34.5, 0], abs=0.1)


def test_lift_is_the_rate_in_the_first_tenth_over_the_base_rate() -> None:
    metrics = figures_of(LABELS, PROBABILITIES)

    assert metrics["lift_10pct"] == pytest.approx(1 / 0.3)
    assert metrics["precision_10pct"] == pytest.approx(1)
    assert metrics["precision_20pct"] == pytest.approx(1)


def test_equal_probabilities_count_in_equal_parts() -> None:
    labels = pd.Series([True, False, False, False, True] + [False] * 15)
    probabilities = np.array([0.5] * 5 + [0.1] * 15)

    assert figures_of(labels, probabilities)["precision_5pct"] == pytest.approx(0.4)
    assert figures_of(labels, probabilities)["precision_20pct"] == pytest.approx(0.4)


def test_a_model_that_knows_nothing_has_no_lift_in_whatever_order_the_rows_come() -> None:
    for labels in (LABELS, LABELS[::-1]):
        metrics = figures_of(labels, np.full(10, 0.3))
        assert (metrics["lift_1pct"], metrics["lift_10pct"], metrics["auc"]) == pytest.approx((1, 1, 0.5))


def test_the_order_of_rows_does_not_matter() -> None:
    labels, probabilities = with_ties()
    order = np.random.default_rng(3).permutation(500)

    shuffled = figures_of(labels.iloc[order], probabilities[order])
    assert shuffled == pytest.approx(figures_of(labels, probabilities))


# --- calibration ---


def test_probabilities_that_come_true_are_calibrated() -> None:
    labels = pd.Series([True] * 10 + [False] * 40 + [True] * 40 + [False] * 10)
    metrics = figures_of(labels, np.repeat([0.2, 0.8], 50))

    assert metrics["ece"] == pytest.approx(0)
    assert metrics["calibration_slope"] == pytest.approx(1)


def test_probabilities_that_are_too_sure_have_a_low_slope() -> None:
    labels = pd.Series([True] * 20 + [False] * 30 + [True] * 30 + [False] * 20)
    metrics = figures_of(labels, np.repeat([0.1, 0.9], 50))

    assert metrics["ece"] == pytest.approx(0.3)
    assert metrics["calibration_slope"] == pytest.approx(math.log(0.6 / 0.4) / math.log(0.9 / 0.1))


def test_probabilities_that_dare_too_little_have_a_high_slope() -> None:
    labels = pd.Series([True] * 5 + [False] * 45 + [True] * 45 + [False] * 5)
    metrics = figures_of(labels, np.repeat([0.4, 0.6], 50))

    assert metrics["ece"] == pytest.approx(0.3)
    assert metrics["calibration_slope"] == pytest.approx(math.log(0.9 / 0.1) / math.log(0.6 / 0.4))


@pytest.mark.parametrize("exponent", [-1.0, 0.2, 1.0, 5.0])
def test_the_slope_is_that_of_a_logistic_regression(exponent: float) -> None:
    truth = np.random.default_rng(2).uniform(0.02, 0.98, 1_000)
    odds = (truth / (1 - truth)) ** exponent
    said, labels = odds / (1 + odds), drawn_from(truth)

    expected = LogisticRegression(C=1e9, tol=1e-8).fit(np.log(odds).reshape(-1, 1), labels).coef_[0, 0]
    assert figures_of(labels, said)["calibration_slope"] == pytest.approx(expected, rel=1e-3)


def test_labels_that_a_probability_tells_apart_have_no_slope() -> None:
    assert math.isnan(
        figures_of(pd.Series([False, False, True, True]), np.array([0.1, 0.2, 0.8, 0.9]))["calibration_slope"]
    )


def test_a_certainty_that_fails_leaves_a_slope() -> None:
    truth = np.random.default_rng(2).uniform(0.02, 0.98, 1_000)
    labels, said = drawn_from(truth), np.where(np.arange(1_000) < 10, 0.0, truth)

    assert 0 < figures_of(labels, said)["calibration_slope"] < figures_of(labels, truth)["calibration_slope"]


def test_one_probability_for_all_has_no_slope() -> None:
    metrics = figures_of(LABELS, np.full(10, 0.5))

    assert math.isnan(metrics["calibration_slope"])
    assert metrics["ece"] == pytest.approx(0.2)


# --- intervals ---


def test_an_interval_holds_the_truth_in_about_95_of_100_samples() -> None:
    said, doubtful = np.full(200, 0.3), np.full(200, 0.5)
    truth = math.log(2) + 0.3 * math.log(0.3) + 0.7 * math.log(0.7)
    found = [
        compare(drawn_from(said, seed), said, doubtful, Bootstrap(each_once(200), seed, draws=200))
        for seed in range(100)
    ]
    assert 88 <= sum(gain.low <= truth <= gain.high for gain in found) <= 99


def test_an_interval_of_rows_taken_for_users_would_be_too_narrow() -> None:
    users, happened = each_once(50), drawn_from(np.full(50, 0.3))
    rows, labels = pd.concat([users] * 8, ignore_index=True), pd.concat([happened] * 8, ignore_index=True)
    said, doubtful = np.full(400, 0.3), np.full(400, 0.5)

    by_user, by_row = (compare(labels, said, doubtful, Bootstrap(drawn)) for drawn in (rows, each_once(400)))
    assert by_user.high - by_user.low > 2 * (by_row.high - by_row.low)


def test_an_interval_is_about_its_figure() -> None:
    labels, probabilities = with_ties()

    for name, one in evaluate(labels, probabilities, Bootstrap(each_once(500), draws=100)).items():
        assert one.low < one.high, name
        assert one.low <= one.value <= one.high or name == "ece"  # a draw adds noise to what is off by little


def test_a_model_differs_in_nothing_from_itself() -> None:
    labels, probabilities = with_ties()

    assert compare(labels, probabilities, probabilities.copy(), Bootstrap(each_once(500))) == Estimate(0, 0, 0)


def test_a_difference_is_that_of_the_log_losses() -> None:
    labels, probabilities = with_ties()
    gain = compare(labels, probabilities, np.full(500, 0.5), Bootstrap(each_once(500)))

    assert gain.value == pytest.approx(math.log(2) - log_loss(labels, probabilities))
    assert gain.is_positive
    assert compare(labels, np.full(500, 0.5), probabilities, Bootstrap(each_once(500))).is_negative


def test_a_difference_of_twins_is_narrower_than_the_interval_of_either() -> None:
    labels, probabilities = with_ties()
    twin = np.clip(probabilities + 0.01, 0, 0.99)
    bootstrap = Bootstrap(each_once(500), draws=100)

    gain, own = compare(labels, twin, probabilities, bootstrap), evaluate(labels, twin, bootstrap)["log_loss"]
    assert gain.high - gain.low < (own.high - own.low) / 5


def test_more_confidence_needs_a_wider_interval() -> None:
    labels, probabilities = with_ties()
    usual, sure = (
        compare(labels, probabilities, np.full(500, 0.5), Bootstrap(each_once(500)), confidence)
        for confidence in (0.95, 0.99)
    )
    assert sure.low < usual.low < usual.value == sure.value < usual.high < sure.high


def test_the_same_draws_come_each_time_and_others_with_another_seed() -> None:
    bootstrap = Bootstrap(each_once(50), seed=4, draws=5)

    assert np.array_equal(list(bootstrap), list(bootstrap))
    assert not np.array_equal(list(bootstrap), list(Bootstrap(each_once(50), seed=5, draws=5)))


def test_rows_of_a_user_are_drawn_together() -> None:
    users = pd.Series(["a", "b", "c", "a", "b", "a"])

    for weights in islice(Bootstrap(users), 50):
        assert weights[0] == weights[3] == weights[5]
        assert weights[1] == weights[4]
        assert weights[0] + weights[1] + weights[2] == 3


def test_the_same_rows_ten_times_are_no_more_to_go_by() -> None:
    labels, probabilities = with_ties()
    once = evaluate(labels, probabilities, Bootstrap(each_once(500), draws=50))
    users = pd.concat([each_once(500)] * 10)
    tenfold = evaluate(pd.concat([labels] * 10), np.tile(probabilities, 10), Bootstrap(users, draws=50))

    for name in ("base_rate", "auc", "log_loss", "brier", "calibration_slope"):
        assert (tenfold[name].low, tenfold[name].high) == pytest.approx((once[name].low, once[name].high))


def test_a_draw_of_one_class_is_skipped() -> None:
    labels = pd.Series([True, False, False])
    probabilities = np.array([0.9, 0.2, 0.1])
    draws = Bootstrap(each_once(3), draws=100)
    assert any(weights[0] in (0, 3) for weights in draws)

    auc = evaluate(labels, probabilities, draws)["auc"]
    assert (auc.value, auc.low, auc.high) == (1, 1, 1)


def test_without_draws_there_is_no_interval() -> None:
    base_rate = evaluate(pd.Series([True, False]), np.array([0.9, 0.1]), Bootstrap(pd.Series(["a", "b"]), draws=0))

    assert base_rate["auc"].value == 1
    assert math.isnan(base_rate["auc"].low)
    assert math.isnan(base_rate["auc"].high)
    assert not base_rate["auc"].is_positive
    assert not base_rate["auc"].is_negative


# --- whom to approach ---


def test_gains_rise_from_nobody_to_everybody() -> None:
    approached, found = gains(LABELS, PROBABILITIES)

    assert approached.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert found.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1, 1, 1])


def test_of_the_likeliest_users_it_is_told_how_many_would_have_left_anyway() -> None:
    labels = pd.Series([True] * 80 + [False] * 20 + [True] * 100 + [False] * 800)
    probabilities = np.linspace(0.9, 0.1, 1_000)
    hundred, five_hundred = top_users(labels, probabilities, Bootstrap(each_once(1_000)))

    assert (hundred["users"], hundred["happened"], hundred["at_random"]) == (100, 80, 18)
    assert 60 < hundred["low"] < 80 < hundred["high"] < 100
    assert (five_hundred["users"], five_hundred["happened"], five_hundred["at_random"]) == (500, 180, 90)


def test_users_of_equal_probability_are_taken_in_equal_parts() -> None:
    [hundred] = top_users(pd.Series([True, False] * 200), np.full(400, 0.5), Bootstrap(each_once(400)))

    assert (hundred["happened"], hundred["at_random"]) == (50, 50)


def test_where_it_happened_to_one_user_it_may_be_none() -> None:
    labels = pd.Series([True] + [False] * 119)
    [hundred] = top_users(labels, np.linspace(0.9, 0.1, 120), Bootstrap(each_once(120)))

    assert (hundred["happened"], hundred["low"]) == (1, 0)


def test_of_few_users_no_top_is_told() -> None:
    assert top_users(LABELS, PROBABILITIES, Bootstrap(each_once(10))) == []


# --- calibration in groups ---


def test_calibration_compares_predictions_with_what_happened_in_groups_of_equal_size() -> None:
    probabilities = np.linspace(0.2, 0.8, 2_000)
    bins = calibration_bins(drawn_from(probabilities), probabilities)
    assert [one["rows"] for one in bins] == [200] * 10
    assert [one["predicted"] for one in bins] == sorted(one["predicted"] for one in bins)
    assert sum(one["low"] <= one["predicted"] <= one["high"] for one in bins) >= 8


def test_calibration_has_fewer_groups_where_one_would_count_few() -> None:
    labels = pd.Series(np.arange(400) % 20 == 0)  # 20 positives
    bins = calibration_bins(labels, np.linspace(0, 1, 400))
    assert [(one["rows"], round(one["happened"] * one["rows"])) for one in bins] == [(200, 10), (200, 10)]


def test_calibration_of_too_few_is_not_told() -> None:
    assert calibration_bins(LABELS, PROBABILITIES) == []


def test_rows_of_equal_probability_are_in_one_group() -> None:
    labels, probabilities = pd.Series([True, False] * 50), np.full(100, 0.5)
    assert [(one["predicted"], one["happened"], one["rows"]) for one in calibration_bins(labels, probabilities)] == [
        (0.5, 0.5, 100)
    ]
