import numpy as np
import pandas as pd
import pytest

from models.propensities import compete, data_gate, fit, fit_recency_baseline, percentiles, predict, reasons


def snapshots(user_count: int = 100) -> pd.DataFrame:
    """Make users at three instants, whose recency and device say how likely they churn."""
    random = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "user_id": [f"u{i:03d}" for i in range(user_count)] * 3,
            "as_of": pd.to_datetime(["2026-01-01", "2026-01-08", "2026-01-15"], utc=True).repeat(user_count),
            "recency_days": random.gamma(1, 20, 3 * user_count),
            "session_count_7d": random.integers(0, 5, 3 * user_count).astype("float64"),
            "session_count_28d": random.integers(0, 20, 3 * user_count).astype("float64"),
            "cart_abandonment_rate": random.choice([0.0, 0.5, np.nan], 3 * user_count),
        }
    )
    frame["device"] = pd.Series(random.choice(["mobile", "desktop"], 3 * user_count), dtype="str")
    frame.loc[::7, "device"] = None
    return frame


def churned(frame: pd.DataFrame) -> pd.Series:
    odds = frame["recency_days"] / 10 - 2 + 2 * (frame["device"] == "mobile")
    return pd.Series(np.random.default_rng(6).random(len(frame)) < 1 / (1 + np.exp(-odds)), index=frame.index)


FRAME = snapshots()
LABELS = churned(FRAME)
MODEL = fit(FRAME, LABELS, FRAME["user_id"], seed=1, n_jobs=1)


# --- fit and predict ---


def test_a_propensity_is_a_probability() -> None:
    probabilities = predict(MODEL, FRAME)

    assert probabilities.shape == (300,)
    assert 0 < probabilities.min() < probabilities.max() < 1


def test_propensities_are_calibrated_on_users_the_model_does_not_know() -> None:
    strangers = snapshots(1_000)

    assert predict(MODEL, strangers).mean() == pytest.approx(churned(strangers).mean(), abs=0.05)


def test_long_absent_users_are_likelier_to_churn() -> None:
    lately, long_ago = FRAME.assign(recency_days=1.0), FRAME.assign(recency_days=60.0)

    assert (predict(MODEL, long_ago) > predict(MODEL, lately)).all()


def test_a_category_counts() -> None:
    mobile, desktop = FRAME.assign(device="mobile"), FRAME.assign(device="desktop")

    assert predict(MODEL, mobile).mean() > predict(MODEL, desktop).mean() + 0.1


def test_the_same_inputs_give_the_same_bits() -> None:
    again = fit(FRAME, LABELS, FRAME["user_id"], seed=1, n_jobs=1)

    assert predict(again, FRAME).tobytes() == predict(MODEL, FRAME).tobytes()


def test_the_order_of_rows_does_not_change_a_bit() -> None:
    shuffled = FRAME.sample(frac=1, random_state=3)
    again = fit(shuffled, LABELS[shuffled.index], shuffled["user_id"], seed=1, n_jobs=1)

    assert predict(again, FRAME).tobytes() == predict(MODEL, FRAME).tobytes()


def test_another_seed_gives_another_model() -> None:
    other = fit(FRAME, LABELS, FRAME["user_id"], seed=2, n_jobs=1)

    assert not np.array_equal(predict(other, FRAME), predict(MODEL, FRAME))


def test_an_unknown_category_counts_as_missing() -> None:
    unknown, missing = FRAME.assign(device="television"), FRAME.assign(device=pd.Series(dtype="str"))

    assert np.array_equal(predict(MODEL, unknown), predict(MODEL, missing))


def test_a_null_is_not_zero() -> None:
    frame = FRAME.assign(cart_abandonment_rate=[0.0, np.nan] * 150)
    model = fit(frame, frame["cart_abandonment_rate"].isna(), frame["user_id"], seed=1, n_jobs=1)

    null, zero = FRAME.assign(cart_abandonment_rate=np.nan), FRAME.assign(cart_abandonment_rate=0.0)
    assert predict(model, null).min() > 0.9
    assert predict(model, zero).max() < 0.1


def test_users_are_known_by_what_they_do_and_not_by_their_id() -> None:
    renamed = FRAME.assign(user_id="x", as_of=pd.Timestamp("2030-01-01", tz="UTC"))

    assert np.array_equal(predict(MODEL, renamed), predict(MODEL, FRAME))


def test_there_are_no_more_folds_than_users_of_the_rarer_label() -> None:
    rare = pd.Series(FRAME["user_id"].isin(["u001", "u002", "u003"]))

    assert fit(FRAME, rare, FRAME["user_id"], seed=1, n_jobs=1).cv == 3


def test_a_label_that_one_user_has_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 users, and one has 1"):
        fit(FRAME, FRAME["user_id"] == "u001", FRAME["user_id"], seed=1, n_jobs=1)


def test_the_baseline_knows_recency_alone() -> None:
    baseline = fit_recency_baseline(FRAME, LABELS)
    others = FRAME.assign(device="mobile", session_count_28d=0.0)

    assert np.array_equal(predict(baseline, FRAME), predict(baseline, others))
    by_recency = pd.Series(predict(baseline, FRAME)).corr(FRAME["recency_days"], method="spearman")
    assert by_recency == pytest.approx(1)


# --- percentiles ---


def test_a_percentile_is_the_share_of_other_users_with_less() -> None:
    assert percentiles(np.array([0.3, 0.1, 0.2, 0.9, 0.4])).tolist() == [50, 0, 25, 100, 75]


def test_equal_probabilities_have_equal_percentiles() -> None:
    assert percentiles(np.array([0.5, 0.5, 0.1])).tolist() == [50, 50, 0]


def test_the_only_user_has_no_one_below() -> None:
    assert percentiles(np.array([0.5])).tolist() == [0]


# --- reasons ---


def user(**features: float | str | None) -> pd.DataFrame:
    return pd.DataFrame([features]).astype({"device": "str"})


QUIET: dict[str, float | str | None] = {
    "recency_days": 80.0,
    "session_count_7d": 0.0,
    "session_count_28d": 0.0,
    "cart_abandonment_rate": np.nan,
    "device": "mobile",
}


def test_reasons_are_what_raises_the_probability_most() -> None:
    assert reasons(MODEL, user(**QUIET), top=2) == [["days since the last session: 80", "device: mobile"]]


def test_what_lowers_the_probability_is_no_reason() -> None:
    said = reasons(MODEL, user(**QUIET | {"recency_days": 1.0, "device": "desktop"}), top=5)[0]

    assert not any(reason.startswith(("days since", "device")) for reason in said)


def test_what_does_not_apply_is_no_reason() -> None:
    said = reasons(MODEL, user(**QUIET | {"recency_days": np.nan, "device": None}), top=5)[0]

    assert not any(reason.startswith(("days since", "device", "share of carts")) for reason in said)


def test_a_quantity_is_one_reason_however_many_windows_it_has() -> None:
    for said in reasons(MODEL, FRAME, top=5):
        assert sum(reason.startswith("sessions in the last") for reason in said) <= 1


def test_every_row_has_its_own_reasons() -> None:
    several = reasons(MODEL, FRAME.head(20), top=3)

    assert several == [reasons(MODEL, FRAME.iloc[[row]], top=3)[0] for row in range(20)]


# --- data_gate ---


def labels(positives: int, negatives: int) -> pd.Series:
    return pd.Series([True] * positives + [False] * negatives)


def test_enough_labels_pass_the_gate() -> None:
    assert data_gate(labels(20, 80), labels(20, 80), minimum_rows=100, minimum_of_each_class=20) is None


def test_too_few_rows_are_told_in_numbers() -> None:
    told = data_gate(labels(1_000, 999), labels(20, 80), minimum_rows=2_000, minimum_of_each_class=20)

    assert told == "1,999 rows for training, at least 2,000 are needed"


def test_too_few_rows_for_testing_are_told_in_numbers() -> None:
    told = data_gate(labels(20, 80), labels(0, 0), minimum_rows=100, minimum_of_each_class=20)

    assert told == "0 rows for testing, at least 100 are needed"


@pytest.mark.parametrize(
    ("test", "told"),
    [
        (labels(0, 100), "0 positive labels for testing, at least 20 are needed"),
        (labels(81, 19), "19 negative labels for testing, at least 20 are needed"),
    ],
)
def test_too_few_of_one_label_are_told_in_numbers(test: pd.Series, told: str) -> None:
    assert data_gate(labels(20, 80), test, minimum_rows=100, minimum_of_each_class=20) == told


# --- compete ---

LABELLED = FRAME.assign(churned=LABELS)
LATER = snapshots(400).assign(churned=lambda frame: churned(frame))


def test_a_challenger_meets_the_baselines_on_the_same_rows() -> None:
    contest = compete(LABELLED, LATER, "churned", champion=None, seed=1)

    assert contest.measured.keys() == {"model", "recency", "base_rate"}
    assert {metrics["rows"] for metrics in contest.measured.values()} == {1200}
    assert contest.decision.promoted


def test_the_base_rate_to_beat_is_that_of_training() -> None:
    contest = compete(LABELLED, LATER, "churned", champion=None, seed=1)

    assert set(contest.predicted["base_rate"]) == {LABELS.mean()}


def test_a_challenger_equal_to_the_champion_is_not_promoted() -> None:
    champion = compete(LABELLED, LATER, "churned", champion=None, seed=1).model

    contest = compete(LABELLED, LATER, "churned", champion, seed=1)

    assert not contest.decision.promoted
    assert "the champion" in contest.decision.reason
