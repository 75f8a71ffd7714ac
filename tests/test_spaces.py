import numpy as np
import pandas as pd
import pytest

from models.spaces import PRIOR_MAX, Lessons, columns_of, prepare, prior_count, standardised

COUNT = 1_000


def users(seed: int = 1) -> pd.DataFrame:
    """Make users of whom two features tell what they do next, and four that go with each other tell nothing."""
    random = np.random.default_rng(seed)
    idle = random.normal(size=COUNT)
    frame = pd.DataFrame({"user_id": [f"u{i:04d}" for i in range(COUNT)]})
    for i in range(4):
        frame[f"idle_{i}"] = np.exp(idle + 0.6 * random.normal(size=COUNT))
    frame["session_count"] = random.poisson(8, COUNT).astype("float64")
    frame["revenue_total"] = np.exp(random.normal(3, 1, COUNT))
    return frame


def outcomes(frame: pd.DataFrame, seed: int = 2) -> np.ndarray:
    random = np.random.default_rng(seed)
    comes = (frame["session_count"] + random.normal(0, 2, len(frame)) > 8).astype(float)
    return np.column_stack([comes, np.log(frame["revenue_total"]) + random.normal(0, 0.5, len(frame))])


def lessons(*snapshots: pd.DataFrame) -> Lessons:
    return Lessons.of([(frame, outcomes(frame)) for frame in snapshots])


def test_in_the_outlook_users_are_near_whose_expected_outcomes_are() -> None:
    now = users()
    coordinates = prepare(now, "outlook", lessons(users(3), users(4))).transform(now)

    assert coordinates.shape == (COUNT, 2)
    assert np.corrcoef(coordinates[:, 0], now["session_count"])[0, 1] > 0.9
    assert np.corrcoef(coordinates[:, 1], np.log(now["revenue_total"]))[0, 1] > 0.9


def test_in_the_weighted_space_what_tells_nothing_counts_for_little() -> None:
    now = users()
    prepared = prepare(now, "weighted", lessons(users(3), users(4))).transform(now)
    told, idle = (
        np.abs([np.corrcoef(column, now[name])[0, 1] for column in prepared.T]).max()
        for name in (
            "session_count",
            "idle_0",
        )
    )

    assert told > 0.8
    assert idle < 0.2


def test_the_space_of_behaviour_needs_no_lessons() -> None:
    assert prepare(users(), "behaviour").transform(users()).tobytes() == (
        prepare(users(), "behaviour", lessons(users(3))).transform(users()).tobytes()
    )


def test_a_good_season_is_no_outcome() -> None:
    frame = users()
    good = outcomes(frame) + np.array([0.0, 5.0])

    same = Lessons.of([(frame, outcomes(frame)), (frame, good)])
    assert same.outcomes[:COUNT] == pytest.approx(same.outcomes[COUNT:])


def test_a_users_coordinates_depend_on_no_other_user() -> None:
    now = users()
    for space in ("behaviour", "weighted", "outlook"):
        prepare_them = prepare(now, space, lessons(users(3)))

        assert prepare_them.transform(now)[:5].tobytes() == prepare_them.transform(now.head(5)).tobytes()


def test_all_windows_of_a_quantity_count_where_outcomes_say_which_matters() -> None:
    now, then = (
        frame.assign(session_count_28d=lambda rows: rows["session_count"] / 2) for frame in (users(), users(3))
    )

    assert "session_count_28d" in columns_of(prepare(now, "outlook", lessons(then)))
    assert "session_count_28d" not in columns_of(prepare(now, "behaviour"))


def test_standardised_features_are_in_deviations_from_the_average_user() -> None:
    features = standardised(prepare(users(), "behaviour"), users())

    assert features.std(ddof=0).to_numpy() == pytest.approx(1, abs=0.1)


# --- rates of few sessions ---


def visits(per_user: int, habit: float, seed: int = 5) -> tuple[pd.Series, pd.Series]:
    """Return the share of sessions at weekends, 0.3 on average, and how many sessions it is of.

    A `habit` of 0 means that each session's day is drawn alike for all, of 1 that all of a user's are of one kind.
    """
    random = np.random.default_rng(seed)
    always = random.random(COUNT) < 0.3
    own = np.where(random.random(COUNT) < habit, always.astype(float), 0.3)
    return pd.Series(random.binomial(per_user, own) / per_user), pd.Series(float(per_user), index=range(COUNT))


def test_a_rate_of_single_sessions_says_nothing() -> None:
    assert prior_count(*visits(1, habit=1.0)) == PRIOR_MAX


def test_a_rate_that_is_drawn_alike_for_all_says_nothing() -> None:
    assert prior_count(*visits(10, habit=0.0)) > 50


def test_a_rate_that_is_a_habit_says_much() -> None:
    assert prior_count(*visits(10, habit=1.0)) == 5


def test_the_day_of_a_single_visit_makes_no_coordinate() -> None:
    weekend, sessions = visits(1, habit=0.0)
    now = users().assign(weekend_session_share=weekend, session_count=sessions + (np.arange(COUNT) < 2))
    prepared = prepare(now, "behaviour").transform(now)

    at_weekend, on_weekdays = (prepared[(weekend == share).to_numpy()].mean(axis=0) for share in (1.0, 0.0))
    assert np.abs(at_weekend - on_weekdays).max() < 0.3
