import json
import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from simulated import CALIBRATED, ROWS, World
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from models.evaluation import CalibrationSettings, Estimate, Probabilities
from models.promotion import Contest, compete, miscalibration


def metrics(ece: float = 0.01, slope: tuple[float, float, float] = (1.0, 0.9, 1.1)) -> dict[str, Estimate]:
    return CALIBRATED | {"ece": Estimate(ece, ece / 2, ece * 2), "calibration_slope": Estimate(*slope)}


TOO_SURE = metrics(ece=0.12)


# --- who is promoted ---


def test_the_first_model_is_promoted_if_it_beats_recency() -> None:
    world = World(1)
    decision = world.decide({"model": world.seen(0)})

    assert decision.promoted
    assert decision.withheld is None
    assert decision.reason.startswith("Promoted: log loss 0.5000 is below that of the base rate (by 0.")
    assert decision.reason.endswith("on the same 800 later rows.")


def test_a_worse_challenger_is_refused_in_100_of_100_tries() -> None:
    worlds = [World(seed, draws=50) for seed in range(100)]

    assert not any(one.decide({"model": one.seen(0.5), "champion": one.seen(0)}).promoted for one in worlds)


@pytest.mark.slow
def test_an_equal_champion_keeps_serving() -> None:
    worlds = [World(seed) for seed in range(100)]
    decisions = [one.decide({"model": one.seen(0), "champion": one.seen(0)}) for one in worlds]

    assert not any(decision.promoted for decision in decisions)
    assert {decision.gains["champion"] for decision in decisions} == {Estimate(0, 0, 0)}
    assert "is not surely below that of the champion (by 0.0000, 0.0000 to 0.0000)" in decisions[0].reason


@pytest.mark.slow
def test_models_that_are_equally_good_do_not_take_turns() -> None:
    worlds = [World(seed) for seed in range(100)]

    turns = sum(one.decide({"model": one.seen(0.7), "champion": one.seen(0.7)}).promoted for one in worlds)
    assert turns <= 5


def test_a_better_challenger_is_promoted() -> None:
    worlds = [World(seed) for seed in range(20)]

    assert all(one.decide({"model": one.seen(0), "champion": one.seen(1)}).promoted for one in worlds)


def test_a_model_that_does_not_beat_recency_is_refused_and_the_interval_says_so() -> None:
    world = World(1)
    decision = world.decide({"model": world.seen(1), "recency": world.seen(0.9)})

    gain = decision.gains["recency"]
    assert not decision.promoted
    assert gain.low < 0 < gain.high
    assert f"recency alone (by {gain.value:.4f}, {gain.low:.4f} to {gain.high:.4f})" in decision.reason
    assert "the base rate" not in decision.reason


def test_a_model_that_beats_the_champion_but_not_recency_is_refused() -> None:
    world = World(1)

    assert not world.decide({"model": world.seen(0.5), "champion": world.seen(2), "recency": world.seen(0)}).promoted


def test_a_model_need_not_beat_rfm() -> None:
    world = World(1)
    decision = world.decide({"model": world.seen(0.5), "rfm": world.seen(0)})

    assert decision.promoted
    assert decision.gains["rfm"].is_negative


# --- segments ---


def halves(of_many: NDArray[np.float64], of_few: NDArray[np.float64], few: int) -> tuple[Probabilities, pd.Series]:
    """Predict the one for the first segment and the other for the last `few` users."""
    last = np.arange(ROWS) >= ROWS - few
    return np.where(last, of_few, of_many), pd.Series(np.where(last, "S02", "S01"))


def test_no_segment_may_get_clearly_worse() -> None:
    world = World(1)
    ours, segments = halves(world.seen(0), world.seen(2.5), 150)
    theirs, _ = halves(world.seen(2), world.seen(0), 150)
    decision = world.decide({"model": ours, "champion": theirs}, segments=segments)

    assert decision.gains["champion"].is_positive
    assert decision.segments["S01"].is_positive
    assert not decision.promoted
    lost = -decision.segments["S02"].value
    assert decision.reason == f"Not promoted: segment S02 gets worse by {lost:.4f}, on the same 800 later rows."


def test_a_segment_of_few_rows_has_no_say() -> None:
    world = World(1)
    ours, segments = halves(world.seen(0), world.seen(2.5), 49)
    theirs, _ = halves(world.seen(2), world.seen(0), 49)
    decision = world.decide({"model": ours, "champion": theirs}, segments=segments)

    assert decision.promoted
    assert decision.segments.keys() == {"S01"}


def test_segments_of_chance_do_not_keep_a_better_challenger_out() -> None:
    promoted = 0
    for seed in range(20):
        world = World(seed, draws=50)
        chance = pd.Series(np.random.default_rng(seed).integers(0, 8, ROWS).astype(str))
        promoted += world.decide({"model": world.seen(0), "champion": world.seen(1)}, segments=chance).promoted
    assert promoted == 20


def test_users_of_no_segment_are_in_none() -> None:
    world = World(1)
    segments = pd.Series([None, "S01"] * (ROWS // 2))
    decision = world.decide({"model": world.seen(0), "champion": world.seen(1)}, segments=segments)

    assert decision.segments.keys() == {"S01"}


# --- calibration ---


def test_the_limits_are_on_the_mean_error_and_on_the_slope() -> None:
    limits = CalibrationSettings()

    assert miscalibration(metrics(ece=0.05), limits) is None
    assert miscalibration(metrics(ece=0.06), limits) == (
        "probabilities are off by 0.060 on average (0.030 to 0.120), 0.05 is allowed"
    )
    assert miscalibration(metrics(slope=(0.4, 0.3, 0.5)), limits) == (
        "the calibration slope is 0.40 (0.30 to 0.50), 0.7 to 1.4 is allowed"
    )
    assert miscalibration(metrics(slope=(2, 1.5, 3)), limits) is not None


def test_a_slope_that_may_be_within_the_limits_is() -> None:
    assert miscalibration(metrics(slope=(0.6, 0.4, 0.8)), CalibrationSettings()) is None
    assert miscalibration(metrics(slope=(math.nan, math.nan, math.nan)), CalibrationSettings()) is None


def test_without_a_champion_ranks_of_a_badly_calibrated_model_are_published() -> None:
    world = World(1)
    decision = world.decide({"model": world.seen(0)}, {"model": TOO_SURE})

    assert decision.promoted
    assert decision.withheld == "probabilities are off by 0.120 on average (0.060 to 0.240), 0.05 is allowed"
    assert decision.reason.endswith(f" Only ranks are published: {decision.withheld}.")


def test_a_badly_calibrated_model_does_not_follow_a_calibrated_one() -> None:
    world = World(1)
    decision = world.decide({"model": world.seen(0), "champion": world.seen(1)}, {"model": TOO_SURE})

    assert not decision.promoted
    assert f"{decision.withheld}, and the champion's calibration is within the limits" in decision.reason


def test_a_badly_calibrated_model_may_follow_another() -> None:
    world = World(1)
    measured = {"model": TOO_SURE, "champion": TOO_SURE}
    decision = world.decide({"model": world.seen(0), "champion": world.seen(1)}, measured)

    assert decision.promoted
    assert decision.withheld is not None


# --- a whole contest ---


def labelled(as_of: str, seed: int, user_count: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user_id": [f"u{i:03d}" for i in range(user_count)],
            "as_of": pd.Timestamp(as_of, tz="UTC"),
            "recency_days": random.gamma(1, 20, user_count),
            "visit_share": random.random(user_count),
        }
    )
    odds = 5 * frame["visit_share"] - 3 + frame["recency_days"] / 40
    return frame.assign(churned=random.random(user_count) < 1 / (1 + np.exp(-odds)))


SLICES = labelled("2026-01-01", 1), labelled("2026-02-01", 2), labelled("2026-03-01", 3)


def line() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression())


@pytest.fixture(scope="module")
def contest() -> Contest:
    segments = pd.Series(["S01", "S02", None] * 99 + ["S03"] * 3)
    return compete(*SLICES, "churned", segments=segments, estimator=line())


def test_a_challenger_meets_what_is_simpler_on_the_same_rows(contest: Contest) -> None:
    assert contest.measured.keys() == contest.predicted.keys() == {"model", "base_rate", "recency", "rfm"}
    assert {len(one) for one in contest.predicted.values()} == {300}
    assert contest.decision.promoted, contest.decision.reason
    assert contest.measured["model"]["log_loss"].value < contest.measured["recency"]["log_loss"].value


def test_the_challenger_has_learnt_from_the_validation_slice(contest: Contest) -> None:
    features = ["recency_days", "visit_share"]
    seen = pd.concat(SLICES[:2])
    expected = line().fit(seen[features], seen["churned"])

    learnt = contest.learned.model.estimator.estimator
    assert learnt.decision_function(SLICES[2][features]) == pytest.approx(
        expected.decision_function(SLICES[2][features])
    )


def test_the_base_rate_to_beat_is_that_of_all_that_the_challenger_saw(contest: Contest) -> None:
    seen = pd.concat(SLICES[:2])["churned"].mean()

    assert set(contest.predicted["base_rate"]) == {seen}


def test_calibration_is_told_by_segment(contest: Contest) -> None:
    assert contest.by_segment.keys() == {"S01", "S02"}  # of S03 there are too few
    assert contest.by_segment["S01"].keys() == {"base_rate", "log_loss", "ece", "calibration_slope"}


def test_the_numbers_of_a_contest_are_json(contest: Contest) -> None:
    told = json.loads(json.dumps(contest.to_dict(), allow_nan=False))

    assert told["decision"]["promoted"] is True
    assert told["metrics"]["model"]["auc"].keys() == {"value", "low", "high"}
    assert told["metrics"]["base_rate"]["calibration_slope"] == {"value": None, "low": None, "high": None}
    assert told["learned"]["calibration"] in {"sigmoid", "isotonic"}
    assert [top["users"] for top in told["top_users"]] == [100]


def test_the_same_training_again_is_not_promoted(contest: Contest) -> None:
    again = compete(*SLICES, "churned", champion=contest.learned.model, estimator=line())

    assert np.array_equal(again.predicted["model"], again.predicted["champion"])
    assert not again.decision.promoted
    assert "the champion (by 0.0000, 0.0000 to 0.0000)" in again.decision.reason
