from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import law
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

import models.reasons
from features.snapshots import FAVOURITES, FEATURES
from models.reasons import contributions, importance, reasons, sentence

NUMERIC = ["recency_days", "session_count_7d", "session_count_28d", "active_day_count", "purchase_recency_days"]
CATEGORIES = ["device", "plan"]
NULL = float("nan")
DEVICES = np.array(["mobile", "desktop", "tablet", None])


def users(count: int, seed: int = 1) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "recency_days": random.gamma(1, 20, count),
            "session_count_7d": random.integers(0, 5, count).astype("float64"),
            "session_count_28d": random.integers(0, 20, count).astype("float64"),
            "active_day_count": random.integers(1, 30, count).astype("float64"),
            "purchase_recency_days": np.where(random.random(count) < 0.5, NULL, random.gamma(1, 50, count)),
            "device": pd.Series(random.choice(DEVICES, count), dtype="str"),
            "plan": pd.Series(random.choice(["free", "paid"], count), dtype="str"),
        }
    )
    return frame.assign(duration_mean_s=NULL, bounce_rate=0.5)


def churned(frame: pd.DataFrame) -> pd.Series:
    """Say who is likelier to churn: the absent, the rare, who never bought, and the mobile."""
    odds = frame["recency_days"] / 10 - frame["session_count_28d"] / 5 + 2 * frame["purchase_recency_days"].isna()
    odds += 2 * (frame["device"] == "mobile") - 2 * (frame["device"] == "tablet")
    return pd.Series(np.random.default_rng(2).logistic(size=len(frame)) < odds - 1)


def fit(frame: pd.DataFrame, labels: "pd.Series[bool]", **parameters: Any) -> Pipeline:
    numeric = frame.select_dtypes("float64").columns.tolist()
    categories = frame.columns.difference(numeric, sort=False).tolist()
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    columns = ColumnTransformer([("numeric", "passthrough", numeric), ("categories", encoder, categories)])
    defaults = {"n_estimators": 15, "num_leaves": 15, "max_depth": 4, "min_child_samples": 5, "random_state": 1}
    trees = lgb.LGBMClassifier(**defaults | {"min_data_per_group": 5, "n_jobs": 1, "verbose": -1} | parameters)
    given = [len(numeric) + i for i in range(len(categories))]
    return Pipeline([("columns", columns), ("trees", trees)]).fit(frame, labels, trees__categorical_feature=given)


def by_lightgbm(pipeline: Pipeline, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return LightGBM's own contributions, and the base as the last column."""
    return np.asarray(pipeline[-1].predict(pipeline[:-1].transform(frame), pred_contrib=True))


def raw_scores(pipeline: Pipeline, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    return np.asarray(pipeline[-1].predict(pipeline[:-1].transform(frame), raw_score=True))


FRAME = users(500)
MODEL = fit(FRAME, churned(FRAME))
OTHERS = users(300, seed=3)


def assert_exact(pipeline: Pipeline, frame: pd.DataFrame) -> None:
    matrix, base = contributions(pipeline, frame)

    own = by_lightgbm(pipeline, frame)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, own[:, :-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(base, own[:, -1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(matrix.sum(axis=1) + base, raw_scores(pipeline, frame), rtol=0, atol=1e-9)


# --- contributions ---


def test_contributions_are_those_of_lightgbm_and_sum_with_the_base_to_the_raw_score() -> None:
    assert_exact(MODEL, OTHERS)


def test_features_that_the_trees_do_not_use_contribute_nothing() -> None:
    matrix, _ = contributions(MODEL, OTHERS)
    of = dict(zip([*FRAME.select_dtypes("float64"), *CATEGORIES], matrix.T, strict=True))

    assert (of["bounce_rate"] == 0).all()
    assert (of["duration_mean_s"] == 0).all()
    assert (of["recency_days"] != 0).any()


@pytest.mark.parametrize(
    "changed",
    [
        dict.fromkeys(NUMERIC, NULL),
        {"device": None, "plan": None},
        {"device": "television"},
        dict.fromkeys(NUMERIC, float("inf")),
        dict.fromkeys(NUMERIC, float("-inf")),
        dict.fromkeys(NUMERIC, 0.0),
        {"duration_mean_s": 60.0, "bounce_rate": NULL},
    ],
    ids=str,
)
def test_contributions_of_values_that_the_trees_had_not_seen_are_those_of_lightgbm(changed: dict[str, Any]) -> None:
    assert_exact(MODEL, OTHERS.assign(**changed).astype({"device": "str", "plan": "str"}))


def test_a_null_in_a_feature_that_had_none_in_training_is_taken_as_lightgbm_takes_it() -> None:
    shifted = FRAME.assign(recency_days=FRAME["recency_days"] - 20)  # where 0 and null do not go with the least

    assert_exact(fit(shifted, churned(FRAME)), OTHERS.assign(recency_days=NULL))


def test_a_value_on_a_threshold_goes_left_and_the_next_number_right() -> None:
    table = MODEL[-1].booster_.trees_to_dataframe()
    thresholds = table.loc[table["split_feature"] == "Column_0", "threshold"].astype("float64").to_numpy()
    frame = users(len(thresholds))

    beside = (thresholds, np.nextafter(thresholds, np.inf), np.nextafter(thresholds, -np.inf))
    assert_exact(MODEL, pd.concat([frame.assign(recency_days=values) for values in beside]))


@pytest.mark.parametrize(
    "parameters",
    [
        {"num_leaves": 2},
        {"num_leaves": 32, "max_depth": 5},
        {"num_leaves": 31, "max_depth": -1},
        {"monotone_constraints": [1, -1, -1, 0, 0, 0, 0, 0, 0]},
        {"zero_as_missing": True},
        {"use_missing": False},
        {"boosting_type": "dart"},
        {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"n_estimators": 1},
    ],
    ids=str,
)
def test_contributions_are_exact_for_trees_of_any_kind(parameters: dict[str, Any]) -> None:
    assert_exact(fit(FRAME, churned(FRAME), **parameters), OTHERS)


def test_trees_without_a_split_contribute_nothing_to_their_base() -> None:
    few = FRAME.head(8)
    pipeline = fit(few, churned(FRAME).head(8))

    matrix, base = contributions(pipeline, OTHERS)

    assert (matrix == 0).all()
    assert base == raw_scores(pipeline, OTHERS)[0]


@law(8)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(10, 120),
    null_share=st.sampled_from([0, 0.3, 1]),
    distinct=st.sampled_from([2, 5, 1000]),
    leaves=st.integers(2, 40),
    depth=st.sampled_from([1, 2, 3, 4, 5, -1]),
    direction=st.sampled_from([-1, 0, 1]),
)
def test_contributions_of_any_model_are_exact(
    seed: int, rows: int, null_share: float, distinct: int, leaves: int, depth: int, direction: int
) -> None:
    random = np.random.default_rng(seed)
    numbers = random.integers(-distinct, distinct, (rows, 4)) / 3
    numbers[random.random(numbers.shape) < null_share] = NULL
    frame = pd.DataFrame(numbers, columns=list("abcd")).assign(e=random.choice(list("uvwxyz"), rows))
    labels = pd.Series(np.arange(rows) % 3 == 0)
    further = {"min_child_samples": 2, "monotone_constraints": [direction, 0, 0, 0, 0], "cat_smooth": 1.0}

    assert_exact(fit(frame, labels, n_estimators=8, num_leaves=leaves, max_depth=depth, **further), frame)


def test_rows_are_taken_apart_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    some = OTHERS.head(60)
    whole, base = contributions(MODEL, some)
    said = reasons(MODEL, some)

    monkeypatch.setattr(models.reasons, "ROWS_AT_ONCE", 7)

    parts, base_of_parts = contributions(MODEL, some)
    assert parts.tobytes() == whole.tobytes()
    assert base_of_parts == base
    assert reasons(MODEL, some) == said


def test_no_rows_have_no_contributions_and_no_reasons() -> None:
    assert contributions(MODEL, FRAME.head(0))[0].shape == (0, 9)
    assert reasons(MODEL, FRAME.head(0)) == []


def test_importance_is_the_share_of_what_moves_scores() -> None:
    added = np.abs(contributions(MODEL, OTHERS)[0]).mean(axis=0)
    found = importance(MODEL, OTHERS)
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found["recency_days"] == pytest.approx(added[0] / added.sum())
    assert importance(MODEL, OTHERS.head(0)) == {}


def test_a_model_without_trees_is_refused() -> None:
    columns = ColumnTransformer([("numeric", "passthrough", ["recency_days"])])
    logistic = Pipeline([("columns", columns), ("logistic", LogisticRegression())]).fit(FRAME, churned(FRAME))

    for explain in (contributions, reasons):
        with pytest.raises(TypeError, match="reasons need LightGBM's trees, and the model ends in LogisticRegression"):
            explain(logistic, FRAME)


# --- reasons ---

ACTIVITY = ["session_count_7d", "session_count_28d", "active_day_count"]

QUIET: dict[str, Any] = {
    **{"recency_days": 80.4, "session_count_7d": 0.0, "session_count_28d": 1.0, "active_day_count": 2.0},
    **{"purchase_recency_days": 30.0, "device": "desktop", "plan": "free", "duration_mean_s": NULL, "bounce_rate": 0.5},
}


def said_of(pipeline: Pipeline = MODEL, top: int = 9, **features: Any) -> list[str]:
    user = pd.DataFrame([QUIET | features]).astype({"device": "str", "plan": "str"})
    [said] = reasons(pipeline, user, top)
    return said


def test_reasons_are_what_raises_the_score_most() -> None:
    assert said_of(top=1) == ["last visit 80 days ago"]
    assert said_of(top=2, recency_days=15.0, device="mobile")[0] == "mostly on mobile"


def test_the_strongest_reason_is_the_first_and_there_are_as_many_as_asked_for_at_most() -> None:
    every = said_of(purchase_recency_days=NULL, device="mobile")

    assert len(every) > 3
    assert [said_of(top=top, purchase_recency_days=NULL, device="mobile") for top in (0, 1, 3)] == [
        every[:top] for top in (0, 1, 3)
    ]


def test_what_lowers_the_score_is_no_reason() -> None:
    said = said_of(recency_days=0.2, session_count_28d=19.0, device="tablet")

    assert not any(words.startswith(("last visit", "came", "mostly")) for words in said)


def test_what_a_user_never_did_is_a_reason() -> None:
    assert "never bought" in said_of(purchase_recency_days=NULL)


@pytest.mark.parametrize("unknown", [{"device": None}, {"device": "television"}, {"recency_days": NULL}])
def test_what_is_not_known_is_no_reason(unknown: dict[str, Any]) -> None:
    [name] = unknown
    frame = FRAME.assign(**{name: FRAME[name].mask(FRAME.index % 2 == 1)})
    pipeline = fit(frame, pd.Series(FRAME.index % 2 == 1))

    matrix, _ = contributions(pipeline, frame.assign(**unknown).astype({"device": "str"}))
    assert (matrix.max(axis=1) > 1).all()
    about = ("mostly on", "device") if name == "device" else "last visit"
    assert not any(words.startswith(about) or not words for words in said_of(pipeline, **unknown))


def test_what_is_infinite_is_no_reason() -> None:
    assert not any(words.startswith("last visit") for words in said_of(recency_days=float("inf")))


def test_features_of_one_topic_are_one_reason_as_strong_as_their_sum_said_by_the_strongest() -> None:
    names = [*FRAME.select_dtypes("float64"), *CATEGORIES]
    matrix, _ = contributions(MODEL, OTHERS)
    for said, added, (_, user) in zip(reasons(MODEL, OTHERS, 9), matrix, OTHERS.iterrows(), strict=True):
        known = {
            name: value
            for name, value in zip(names, added, strict=True)
            if name != "device" or user[name] == user[name]
        }
        for window in ("session_count_7d", "session_count_28d"):
            if user[window] == 0:
                known["recency_days"] += known.pop(window)
        activity = [name for name in ACTIVITY if name in known]
        strengths = {sentence(name, user[name]): value for name, value in known.items() if name not in activity}
        speaker = max(activity, key=lambda name: known[name])
        strengths[sentence(speaker, user[speaker])] = sum(known[name] for name in activity)
        assert said == sorted((words for words in strengths if strengths[words] >= 0.01), key=lambda w: -strengths[w])


def test_what_hardly_raises_the_score_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    every = said_of(device="mobile")

    monkeypatch.setattr(models.reasons, "ADDED_MIN", 1.0)

    matrix, _ = contributions(MODEL, pd.DataFrame([QUIET | {"device": "mobile"}]))
    assert said_of(device="mobile") == every[: (matrix >= 1).sum()] != every


def test_that_no_session_was_in_a_window_is_said_by_the_last_one() -> None:
    frame = FRAME.assign(session_count_7d=np.arange(500.0) % 2)
    pipeline = fit(frame, frame["session_count_7d"] == 0)
    without = frame.drop(columns="recency_days")

    assert said_of(pipeline, session_count_7d=0.0)[0] == "last visit 80 days ago"
    assert said_of(fit(without, frame["session_count_7d"] == 0), session_count_7d=0.0)[0] == (
        "did not come in the last 7 days"
    )


def test_a_feature_of_ones_own_is_said_by_its_title() -> None:
    frame = FRAME.assign(newsletters_read=np.arange(500.0) % 2)
    pipeline = fit(frame, frame["newsletters_read"] == 1)

    assert said_of(pipeline, newsletters_read=1.0) == ["newsletters read: 1"]


def test_an_attribute_of_users_is_said_by_its_name() -> None:
    assert said_of(fit(FRAME, FRAME["plan"] == "paid"), plan="paid") == ["plan: paid"]


def test_a_personal_attribute_is_no_reason_and_the_next_one_is_told() -> None:
    frame = FRAME.assign(plan=np.where(FRAME["recency_days"] > 40, "paid", FRAME["plan"]))
    pipeline = fit(frame, frame["plan"] == "paid")
    [told] = reasons(pipeline, frame.head(1).assign(plan="paid"), top=9)
    [public] = reasons(pipeline, frame.head(1).assign(plan="paid"), top=9, personal=["plan"])

    assert told[0] == "plan: paid"
    assert public == told[1:]


def test_users_with_the_same_reason_share_its_words() -> None:
    [[one], [other]] = reasons(MODEL, pd.DataFrame([QUIET, QUIET | {"recency_days": 80.3}]), top=1)

    assert one == "last visit 80 days ago"
    assert one is other


# --- sentences ---


@pytest.mark.parametrize("name", [*FEATURES, *FAVOURITES])
def test_every_feature_has_a_sentence_of_its_own(name: str) -> None:
    values: list[Any] = ["mobile"] if name in FAVOURITES else [0.0, 0.3, 1.0, 2.5, 12.0, 123_456.0]
    said = [sentence(name, value) for value in values]

    assert len(set(said)) >= len(said) - 1  # 0 and 0.3 days are both less than a day
    for words in [*said, sentence(name, NULL)]:
        assert not {":", "{", "_", "–"} & set(words)
        assert "nan" not in words


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("recency_days", 0.0, "last visit less than a day ago"),
        ("recency_days", 0.7, "last visit 1 day ago"),
        ("recency_days", 34.2, "last visit 34 days ago"),
        ("tenure_days", 1234.0, "first visit 1,234 days ago"),
        ("session_count", 0.0, "did not come so far"),
        ("session_count_1d", 0.0, "did not come in the last day"),
        ("session_count_28d", 1.0, "came once in the last 28 days"),
        ("session_count_28d", 8.0, "came 8 times in the last 28 days"),
        ("session_count_365d", 1234.0, "came 1,234 times in the last 365 days"),
        ("session_trend_28d", -1.0, "no session in the last 28 days but some in the 28 before"),
        ("session_trend_28d", -0.5, "67 % fewer sessions in the last 28 days than in the 28 before"),
        ("session_trend_28d", 0.0, "as many sessions in the last 28 days as in the 28 before"),
        ("session_trend_28d", 0.2, "50 % more sessions in the last 28 days than in the 28 before"),
        ("session_trend_28d", 1.0, "came in the last 28 days, and not in the 28 before"),
        ("session_trend_28d", NULL, "no session in the last 56 days"),
        ("active_day_count", 1.0, "active on 1 day so far"),
        ("duration_mean_s", 312.0, "5 min 12 s per session on average"),
        ("duration_median_s", 40.0, "typical session of 40 s"),
        ("duration_median_s", NULL, ""),
        ("pages_per_session", 1.0, "1 page per session"),
        ("pages_per_session", 2.5, "2.5 pages per session"),
        ("bounce_rate", 0.0, "no sessions bounced"),
        ("bounce_rate", 0.001, "0.1 % of sessions bounced"),
        ("bounce_rate", 0.3, "30 % of sessions bounced"),
        ("bounce_rate", 0.999, "99.9 % of sessions bounced"),
        ("bounce_rate", 1.0, "all sessions bounced"),
        ("search_count", 3.0, "3 searches so far"),
        ("support_visit_count_90d", 1.0, "1 support visit in the last 90 days"),
        ("support_recency_days", 12.0, "last support visit 12 days ago"),
        ("support_recency_days", NULL, "never sought support"),
        ("campaign_session_count", 3.0, "3 visits from a campaign so far"),
        ("return_absence_days", 61.0, "came back after 61 days"),
        ("return_absence_days", NULL, ""),
        ("cart_count", 1.0, "1 cart filled so far"),
        ("cart_abandonment_rate", 0.5, "50 % of carts abandoned"),
        ("cart_abandonment_rate", NULL, "never filled a cart"),
        ("cart_abandoned_recency_days", 1.0, "abandoned a cart 1 day ago"),
        ("cart_abandoned_recency_days", NULL, "never abandoned a cart"),
        ("purchase_count_90d", 0.0, "no purchase in the last 90 days"),
        ("purchase_count_90d", 1.0, "1 purchase in the last 90 days"),
        ("purchase_count", 2.0, "2 purchases so far"),
        ("purchase_recency_days", NULL, "never bought"),
        ("revenue_total", -1234.56, "revenue of -1,235 so far"),
        ("revenue_total", 0.0, "no revenue so far"),
        ("revenue_per_purchase", 45.0, "revenue of 45 per purchase"),
        ("evening_session_share", 0.4, "40 % of sessions in the evening"),
        ("weekend_session_share", 0.0, "no sessions at the weekend"),
        ("device", "mobile", "mostly on mobile"),
        ("source", "email", "source mostly email"),
        ("country", "DE", "mostly from DE"),
        ("device", None, ""),
        ("age_band", "30 to 39", "age band: 30 to 39"),
        ("age_band", None, ""),
        ("nps_score", 9.0, "nps score: 9"),
        ("nps_score", NULL, ""),
        ("is_member", True, "is member: True"),
    ],
)
def test_a_value_is_said_as_a_marketer_reads_it(name: str, value: float | str | None, words: str) -> None:
    assert sentence(name, value) == words
