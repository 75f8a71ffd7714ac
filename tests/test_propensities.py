import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Self

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from features.labels import Purpose
from models.evaluation import Probabilities, losses
from models.propensities import (
    DEFAULTS,
    Blend,
    Budget,
    Learned,
    Trial,
    data_gate,
    fit,
    fit_baselines,
    percentiles,
    predict,
    refit,
)

ONCE = Budget(trials=1, seconds=60)


def users_at(as_of: str, seed: int, user_count: int = 200) -> pd.DataFrame:
    """Make users whose recency and device say how likely they churn."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user_id": [f"u{i:05d}" for i in range(user_count)],
            "as_of": pd.Timestamp(as_of, tz="UTC"),
            "recency_days": random.gamma(1, 20, user_count),
            "session_count": random.integers(0, 20, user_count).astype("float64"),
            "cart_abandonment_rate": random.choice([0.0, 0.5, np.nan], user_count),
        }
    )
    frame["device"] = pd.Series(random.choice(["mobile", "desktop"], user_count), dtype="str")
    frame.loc[::7, "device"] = None
    return frame.assign(churned=random.random(user_count) < hazard(frame))


def hazard(frame: pd.DataFrame) -> Probabilities:
    """Return how likely each user truly churns."""
    odds = np.log1p(frame["recency_days"]) - 3 + 2 * (frame["device"] == "mobile")
    return np.asarray(1 / (1 + np.exp(-odds)))


TRAIN = pd.concat([users_at("2026-01-01", 1), users_at("2026-01-08", 2)], ignore_index=True)
VALIDATION = users_at("2026-02-01", 3)
LATER = users_at("2026-03-01", 4)


def learn(train: pd.DataFrame = TRAIN, validation: pd.DataFrame = VALIDATION, **given: Any) -> Learned:
    settings: dict[str, Any] = {"seed": 1, "budget": ONCE} | given
    return fit(train, validation, "churned", **settings)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Let LightGBM count one core, for on few rows threads only wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        yield


@pytest.fixture(scope="module")
def told() -> list[Trial]:
    return []


@pytest.fixture(scope="module")
def learned(told: list[Trial]) -> Learned:
    return learn(budget=Budget(trials=3, seconds=60), on_trial=told.append)


@pytest.fixture(scope="module")
def once() -> Learned:
    return learn()


def blend_of(learned: Learned) -> Blend:
    blend = learned.model.estimator.estimator
    assert isinstance(blend, Blend)
    return blend


# --- fit and predict ---


def test_a_propensity_is_a_probability(learned: Learned) -> None:
    probabilities = predict(learned.model, LATER)

    assert probabilities.shape == (200,)
    assert 0 <= probabilities.min() < probabilities.max() <= 1


def test_long_absent_users_are_likelier_to_churn(learned: Learned) -> None:
    lately, long_ago = LATER.assign(recency_days=1.0), LATER.assign(recency_days=60.0)

    assert (predict(learned.model, long_ago) > predict(learned.model, lately)).all()


def test_a_category_counts(learned: Learned) -> None:
    mobile, desktop = LATER.assign(device="mobile"), LATER.assign(device="desktop")

    assert predict(learned.model, mobile).mean() > predict(learned.model, desktop).mean() + 0.1


def test_an_unknown_category_counts_as_missing(learned: Learned) -> None:
    unknown, missing = LATER.assign(device="television"), LATER.assign(device=pd.Series(dtype="str"))

    assert np.array_equal(predict(learned.model, unknown), predict(learned.model, missing))


def test_a_null_is_not_zero() -> None:
    def by_null(frame: pd.DataFrame) -> pd.DataFrame:
        rate = np.where(np.arange(len(frame)) % 2, np.nan, 0.0)
        return frame.assign(cart_abandonment_rate=rate, churned=np.isnan(rate))

    model = learn(by_null(TRAIN), by_null(VALIDATION)).model
    null, zero = LATER.assign(cart_abandonment_rate=np.nan), LATER.assign(cart_abandonment_rate=0.0)
    assert predict(model, null).min() > 0.9
    assert predict(model, zero).max() < 0.1


def test_users_are_known_by_what_they_do_and_not_by_their_id(learned: Learned) -> None:
    renamed = LATER.assign(user_id="x", as_of=pd.Timestamp("2030-01-01", tz="UTC"))

    assert np.array_equal(predict(learned.model, renamed), predict(learned.model, LATER))


# --- the same again ---


def test_the_same_rows_and_seed_give_the_same_bits_in_whatever_order_the_rows_come(learned: Learned) -> None:
    train, validation = TRAIN.sample(frac=1, random_state=3), VALIDATION.sample(frac=1, random_state=4)
    again = learn(train, validation, budget=Budget(trials=3, seconds=60))

    assert predict(again.model, LATER).tobytes() == predict(learned.model, LATER).tobytes()
    assert [trial.log_loss for trial in again.trials] == [trial.log_loss for trial in learned.trials]


def test_another_number_of_threads_gives_the_same_bits(refitted: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow(self: lgb.LGBMClassifier, *args: Any, **given: Any) -> lgb.LGBMClassifier:
        return whole(self.set_params(n_jobs=3), *args, **given)

    whole = lgb.LGBMClassifier.fit
    monkeypatch.setattr(lgb.LGBMClassifier, "fit", grow)
    by_three = again(learn())
    assert blend_of(by_three).trees[-1].booster_.params["num_threads"] == 3

    assert blend_of(refitted).trees[-1].booster_.params["num_threads"] != 3
    assert predict(by_three.model, LATER).tobytes() == predict(refitted.model, LATER).tobytes()


def test_another_seed_gives_another_model(once: Learned) -> None:
    assert not np.array_equal(predict(learn(seed=2).model, LATER), predict(once.model, LATER))


# --- trials ---


def test_the_first_trial_is_of_the_defaults(learned: Learned) -> None:
    assert learned.trials[0].settings == DEFAULTS
    assert learned.trials[1].settings != DEFAULTS


def test_each_trial_is_told_of_as_it_ends(learned: Learned, told: list[Trial]) -> None:
    assert told == learned.trials
    assert [trial.number for trial in told] == [0, 1, 2]


def test_the_settings_of_the_best_trial_are_taken(learned: Learned) -> None:
    best = min(learned.trials, key=lambda trial: np.inf if trial.log_loss is None else trial.log_loss)

    assert learned.settings == best.settings


def test_trials_that_fall_behind_are_given_up_and_the_best_is_of_the_others() -> None:
    learned = learn(budget=Budget(trials=6))
    given_up = [trial for trial in learned.trials if trial.log_loss is None]

    assert given_up
    assert {trial.trees for trial in given_up} == {0}
    assert learned.settings not in [trial.settings for trial in given_up]


def test_trials_end_with_their_seconds() -> None:
    assert 1 <= len(learn(budget=Budget(trials=300, seconds=0.1)).trials) < 300


def test_trees_that_still_grow_when_the_seconds_are_over_are_taken_as_they_are(once: Learned) -> None:
    hasty = learn(budget=Budget(trials=3, seconds=0))

    assert [trial.trees for trial in hasty.trials] == [1]
    assert 0 <= predict(hasty.model, LATER).min() <= predict(hasty.model, LATER).max() <= 1
    assert once.trials[0].trees > 1


def test_trees_are_stopped_by_the_validation_time(once: Learned) -> None:
    contrary = VALIDATION.assign(churned=~VALIDATION["churned"])

    assert learn(validation=contrary).trials[0].trees < 5 < 30 < once.trials[0].trees


# --- what is known beforehand ---


def falling(frame: pd.DataFrame) -> pd.DataFrame:
    """Let users churn that were here lately, as conversion would have it."""
    odds = 3 - np.log1p(frame["recency_days"]) * 1.5
    return frame.assign(churned=np.random.default_rng(9).random(len(frame)) < 1 / (1 + np.exp(-odds)))


def by_recency(learned: Learned) -> NDArray[np.float64]:
    """Predict a user over and over, ever longer absent."""
    return predict(learned.model, LATER.iloc[[1] * 50].assign(recency_days=np.linspace(0, 100, 50)))


def test_a_direction_that_costs_nothing_is_kept(once: Learned) -> None:
    assert once.constrained == ["recency_days"]
    assert (np.diff(by_recency(once)) >= 0).all()


def test_a_direction_that_the_rows_speak_against_is_not_kept() -> None:
    learned = learn(falling(TRAIN), falling(VALIDATION))

    assert learned.constrained == []
    assert by_recency(learned)[0] > by_recency(learned)[-1]


def test_what_follows_activity_falls_with_absence() -> None:
    learned = learn(falling(TRAIN), falling(VALIDATION), rises=False)

    assert learned.constrained == ["recency_days"]
    assert (np.diff(by_recency(learned)) <= 0).all()


# --- the blend ---


def test_a_blend_adds_up_log_odds_by_its_share(once: Learned) -> None:
    trees, line = blend_of(once).trees, blend_of(once).line
    whole, half, none = (Blend(trees, line, share).decision_function(LATER) for share in (1.0, 0.5, 0.0))

    assert half == pytest.approx((whole + none) / 2)
    assert not np.allclose(whole, none)
    assert Blend(trees, line, 0.5).predict_proba(LATER).sum(axis=1) == pytest.approx(1)
    assert np.array_equal(Blend(trees, line, 0.5).predict(LATER), half > 0)


@pytest.mark.parametrize("device", ["mobile", "television", None])
def test_columns_are_made_ready_as_the_pipeline_does_it(once: Learned, device: str | None) -> None:
    blend = blend_of(once)
    asked = pd.concat([LATER, LATER.head(3).assign(device=pd.Series([device] * 3, dtype="str"), recency_days=np.inf)])

    by_pipeline = blend.trees.predict(asked[list(blend.feature_names_in_)], raw_score=True)
    of_trees = Blend(blend.trees, blend.line, 1.0).decision_function(asked)
    assert of_trees.tobytes() == by_pipeline.tobytes()


def test_a_model_without_categories_has_scores() -> None:
    numeric = [frame.drop(columns="device") for frame in (TRAIN, VALIDATION, LATER)]

    assert 0 < predict(learn(*numeric[:2]).model, numeric[2]).mean() < 1


def test_where_a_line_says_it_all_trees_have_little_say() -> None:
    def straight(frame: pd.DataFrame) -> pd.DataFrame:
        odds = 2 * np.log1p(frame["recency_days"]) - 5
        return frame.assign(churned=np.random.default_rng(len(frame)).random(len(frame)) < 1 / (1 + np.exp(-odds)))

    beyond = VALIDATION.assign(recency_days=VALIDATION["recency_days"] * 3)
    share = learn(straight(TRAIN), straight(beyond)).share_of_trees
    assert share is not None
    assert share <= 0.5


def test_what_no_line_can_say_is_left_to_trees() -> None:
    def either_end(frame: pd.DataFrame) -> pd.DataFrame:
        truth = np.where((frame["recency_days"] - 15).abs() > 10, 0.9, 0.1)
        return frame.assign(churned=np.random.default_rng(len(frame)).random(len(frame)) < truth)

    share = learn(either_end(TRAIN), either_end(VALIDATION)).share_of_trees
    assert share is not None
    assert share >= 0.5


# --- calibration ---


class Said(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Take recency for the log odds."""

    def fit(self, frame: pd.DataFrame, labels: "pd.Series[bool]") -> Self:
        self.classes_ = np.array([False, True])
        self.feature_names_in_ = np.array(frame.columns, dtype=object)
        return self

    def decision_function(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        return np.asarray(frame["recency_days"])

    def predict(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        return self.decision_function(frame) > 0

    def predict_proba(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        probability = 1 / (1 + np.exp(-self.decision_function(frame)))
        return np.column_stack([1 - probability, probability])


def with_odds(user_count: int, truth: Any) -> pd.DataFrame:
    """Make users whose `recency_days` is from -3 to 3, of whom the truth makes a probability."""
    odds = np.linspace(-3, 3, user_count)
    frame = users_at("2026-02-01", 3, user_count).assign(recency_days=odds)
    return frame.assign(churned=np.random.default_rng(1).random(user_count) < truth(odds))


def test_the_better_calibration_is_chosen() -> None:
    steep = with_odds(400, lambda odds: 1 / (1 + np.exp(-2 * odds)))
    stepped = with_odds(2_000, lambda odds: np.where(odds > 2, 0.95, np.where(odds > -2, 0.5, 0.05)))

    for validation, calibration in ((steep, "sigmoid"), (stepped, "isotonic")):
        found = learn(validation=validation, estimator=Said())
        assert found.calibration == calibration
        assert found.calibration_losses[calibration] == min(found.calibration_losses.values())


def test_a_sigmoid_makes_up_for_what_is_said_too_timidly() -> None:
    steep = with_odds(2_000, lambda odds: 1 / (1 + np.exp(-2 * odds)))
    model = learn(validation=steep, estimator=Said()).model

    expected = 1 / (1 + np.exp(-2 * steep["recency_days"].to_numpy()))
    assert predict(model, steep) == pytest.approx(expected, abs=0.05)


def test_few_users_of_a_class_suffice_without_a_warning() -> None:
    few = VALIDATION.assign(churned=VALIDATION["user_id"].isin(["u00001", "u00002"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = learn(validation=few, estimator=Said())

    assert 0 < predict(found.model, few).mean() < 0.1


def test_a_class_of_one_user_is_too_little_to_calibrate_on() -> None:
    rows = pd.concat([VALIDATION, VALIDATION.assign(as_of=pd.Timestamp("2026-02-08", tz="UTC"))])
    with pytest.raises(ValueError, match="at least 2 users, and one has 1"):
        learn(validation=rows.assign(churned=rows["user_id"] == "u00001"), estimator=Said())


def test_an_estimator_of_ones_own_is_calibrated_alike() -> None:
    own = make_pipeline(StandardScaler(), LogisticRegression())
    numbers = ["user_id", "as_of", "recency_days", "session_count", "churned"]
    found = learn(TRAIN[numbers], VALIDATION[numbers], estimator=own)

    inner = found.model.estimator.estimator
    assert isinstance(inner, Pipeline)
    assert (inner is own, hasattr(own[-1], "coef_")) == (False, False)
    assert found.calibration in {"sigmoid", "isotonic"}
    assert (found.trials, found.settings, found.constrained, found.share_of_trees) == ([], {}, [], None)
    assert 0 <= predict(found.model, LATER).min() < predict(found.model, LATER).max() <= 1


# --- learnt once more ---


@pytest.fixture(scope="module")
def refitted(once: Learned) -> Learned:
    return again(once)


def again(learned: Learned, train: pd.DataFrame = TRAIN, validation: pd.DataFrame = VALIDATION) -> Learned:
    return refit(learned, train, validation, "churned", seed=1)


def test_what_was_chosen_learns_from_the_validation_too(once: Learned) -> None:
    television = VALIDATION["user_id"] < "u00150"
    later = VALIDATION.assign(device=VALIDATION["device"].mask(television, "television"))
    later["churned"] |= television
    chosen = deepcopy(once)
    blend_of(chosen).share = 1.0
    on_television, on_none = LATER.assign(device="television"), LATER.assign(device=pd.Series(dtype="str"))

    assert np.array_equal(predict(chosen.model, on_television), predict(chosen.model, on_none))
    learnt = again(chosen, validation=later).model
    assert predict(learnt, on_television).mean() > predict(learnt, on_none).mean() + 0.05


def test_all_that_was_chosen_stays(once: Learned, refitted: Learned) -> None:
    chosen, learnt = blend_of(once), blend_of(refitted)

    assert learnt.trees[-1].booster_.num_trees() == once.trials[0].trees
    assert learnt.share == chosen.share
    assert learnt.trees[-1].get_params() == chosen.trees[-1].get_params()
    assert (np.diff(by_recency(refitted)) >= 0).all()
    assert refitted.model.calibrated_classifiers_[0].method == refitted.calibration == "sigmoid"


def test_what_was_chosen_is_as_it_was_after_it_was_learnt_once_more(once: Learned) -> None:
    before = predict(once.model, LATER)
    again(once)

    assert np.array_equal(predict(once.model, LATER), before)


class Remembering(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Be sure of what happened to users it has learnt from, whom it knows by their sessions, and of no one else."""

    def fit(self, frame: pd.DataFrame, labels: "pd.Series[bool]") -> Self:
        self.classes_ = np.array([False, True])
        self.feature_names_in_ = np.array(frame.columns, dtype=object)
        self.known_ = dict(zip(frame["session_count"], np.where(labels, 5.0, -5.0), strict=True))
        return self

    def decision_function(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        return frame["session_count"].map(self.known_).fillna(0.0).to_numpy()

    def predict(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        return self.decision_function(frame) > 0


def test_no_user_is_calibrated_by_a_model_that_saw_them() -> None:
    """What a model remembers of users says nothing of others: then the calibration says the same of everyone."""
    churned = VALIDATION["churned"].to_numpy()
    of_each = {"session_count": np.arange(200.0), "churned": churned}
    train, validation = (frame.assign(**of_each) for frame in (TRAIN[:200], VALIDATION))
    chosen = learn(train, validation, estimator=Remembering())

    assert np.ptp(predict(chosen.model, validation)) > 0.9
    assert predict(again(chosen, train, validation).model, validation) == pytest.approx(churned.mean(), abs=0.02)


def test_the_calibration_is_by_the_latest_rows() -> None:
    odds = with_odds(2_000, lambda odds: 1 / (1 + np.exp(-odds)))
    rarer = with_odds(2_000, lambda odds: 1 / (1 + np.exp(3 - odds)))
    chosen = learn(odds, rarer, estimator=Said())

    learnt = again(chosen, odds, rarer).model
    assert predict(learnt, rarer).mean() == pytest.approx(rarer["churned"].mean(), abs=0.01)


def test_the_order_of_rows_does_not_matter_to_what_is_learnt_once_more(once: Learned, refitted: Learned) -> None:
    train, validation = TRAIN.sample(frac=1, random_state=3), VALIDATION.sample(frac=1, random_state=4)

    shuffled = again(once, train, validation)
    assert predict(shuffled.model, LATER).tobytes() == predict(refitted.model, LATER).tobytes()


# --- rows that are out of the ordinary ---


CONSTANT: dict[str, Any] = {
    "recency_days": 1.0,
    "session_count": 2.0,
    "cart_abandonment_rate": 0.5,
    "device": "mobile",
}


@pytest.mark.parametrize(
    "odd",
    [
        CONSTANT,
        {"session_count": np.nan, "cart_abandonment_rate": np.nan, "device": None},
    ],
    ids=["constant", "null"],
)
def test_features_that_say_nothing_do_no_harm(odd: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = learn(TRAIN.assign(**odd), VALIDATION.assign(**odd))
        probabilities = predict(found.model, LATER.assign(**odd))

    assert np.isfinite(probabilities).all()


def test_features_that_are_all_constant_give_the_base_rate() -> None:
    learned = learn(TRAIN.assign(**CONSTANT), VALIDATION.assign(**CONSTANT))
    probabilities = predict(learned.model, LATER.assign(**CONSTANT))

    assert probabilities == pytest.approx(VALIDATION["churned"].mean(), abs=1e-3)


def test_a_category_that_is_new_to_the_validation_does_no_harm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = learn(validation=VALIDATION.assign(device="television"))

    assert np.isfinite(predict(found.model, LATER)).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e300])
def test_a_row_with_a_broken_number_has_a_probability_and_the_others_keep_theirs(once: Learned, value: float) -> None:
    broken = LATER.assign(session_count=LATER["session_count"].where(LATER.index != 3, value))
    probabilities = predict(once.model, broken)

    assert 0 <= probabilities[3] <= 1
    assert np.array_equal(np.delete(probabilities, 3), np.delete(predict(once.model, LATER), 3))
    for rates in fit_baselines(TRAIN, "churned").values():
        assert np.isfinite(rates(broken)).all()


# --- a known hazard ---


def test_the_log_loss_is_near_that_of_the_true_probabilities() -> None:
    train, validation = users_at("2026-01-01", 11, 4_000), users_at("2026-02-01", 12, 2_000)
    test = users_at("2026-03-01", 13, 10_000)
    found = learn(train, validation)

    reached = losses(test["churned"], predict(found.model, test)).mean()
    possible = losses(test["churned"], hazard(test)).mean()
    assert possible * 0.99 < reached < possible * 1.03


# --- baselines ---


def test_baselines_are_the_base_rate_recency_alone_and_rfm() -> None:
    baselines = fit_baselines(TRAIN, "churned")

    assert list(baselines) == ["base_rate", "recency", "rfm"]
    assert set(baselines["base_rate"](LATER)) == {TRAIN["churned"].mean()}


def test_recency_alone_knows_nothing_else() -> None:
    recency = fit_baselines(TRAIN, "churned")["recency"]

    assert np.array_equal(recency(LATER), recency(LATER.assign(device="mobile", session_count=0.0)))
    assert pd.Series(recency(LATER)).corr(LATER["recency_days"], method="spearman") == pytest.approx(1)


def test_rfm_knows_how_often_too() -> None:
    rfm = fit_baselines(TRAIN, "churned")["rfm"]

    assert not np.array_equal(rfm(LATER), rfm(LATER.assign(session_count=0.0)))
    assert np.array_equal(rfm(LATER), rfm(LATER.assign(device="mobile")))


@pytest.mark.parametrize("frame", [TRAIN.drop(columns="recency_days"), TRAIN.assign(recency_days=np.nan)])
def test_rows_without_recency_are_an_error_that_says_so(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="recency_days is needed in every row"):
        fit_baselines(frame, "churned")
    with pytest.raises(ValueError, match="recency_days is needed in every row"):
        learn(train=frame)


def test_baselines_are_the_same_in_whatever_order_the_rows_come() -> None:
    baselines, again = (fit_baselines(rows, "churned") for rows in (TRAIN, TRAIN.sample(frac=1, random_state=3)))

    assert all(baselines[name](LATER).tobytes() == again[name](LATER).tobytes() for name in ("recency", "rfm"))


# --- percentiles ---


def test_a_percentile_is_the_share_of_other_users_with_less() -> None:
    assert percentiles(np.array([0.3, 0.1, 0.2, 0.9, 0.4])).tolist() == [50, 0, 25, 100, 75]


def test_equal_probabilities_have_equal_percentiles() -> None:
    assert percentiles(np.array([0.5, 0.5, 0.1])).tolist() == [50, 50, 0]


def test_the_only_user_has_no_one_below() -> None:
    assert percentiles(np.array([0.5])).tolist() == [0]


# --- data_gate ---


def labels(positives: int, negatives: int) -> pd.DataFrame:
    return pd.DataFrame({"recency_days": 1.0, "churned": [True] * positives + [False] * negatives})


def gate(**slices: pd.DataFrame) -> str | None:
    """Let 20 positive and 80 negative labels to each purpose through, or what is given for it."""
    purposes: tuple[Purpose, ...] = ("train", "validation", "test")
    whole = {purpose: slices.get(purpose, labels(20, 80)) for purpose in purposes}
    return data_gate(whole, "churned", minimum_rows=100, minimum_of_each_class=20)


def test_enough_labels_pass_the_gate() -> None:
    assert gate() is None


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        ({"train": labels(6, 6)}, "12 rows to learn from, at least 100 are needed"),
        ({"validation": labels(49, 50)}, "99 rows to validate on, at least 100 are needed"),
        ({"test": labels(0, 0)}, "0 rows to test on, at least 100 are needed"),
        ({"train": labels(0, 1_000)}, "0 positive labels to learn from, at least 20 are needed"),
        ({"validation": labels(1_000, 0)}, "0 negative labels to validate on, at least 20 are needed"),
        ({"test": labels(81, 19)}, "19 negative labels to test on, at least 20 are needed"),
    ],
)
def test_what_is_missing_is_told_in_numbers(slices: dict[str, pd.DataFrame], told: str) -> None:
    assert gate(**slices) == told


def test_infinite_values_are_told_in_numbers() -> None:
    broken = labels(20, 80)
    broken.loc[[3, 5], "recency_days"] = [np.inf, -np.inf]

    assert gate(test=broken) == ("recency_days is infinite in 2 rows to test on: mend the events that it comes from")


def test_nulls_pass_the_gate() -> None:
    assert gate(train=labels(20, 80).assign(recency_days=np.nan)) is None
