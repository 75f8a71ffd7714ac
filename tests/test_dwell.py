import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.dwell import flap_rate, stay
from models.segments import assign, fit, follow

NIGHT, DAY = "S01", "S02"
LAMPS = pd.DataFrame({"user_id": [f"u{i:02d}" for i in range(30)], "night_session_share": [1.0] * 20 + [0.0] * 10})
MODEL = fit(LAMPS, 2, 2, seed=1)
"""Of users who only come at night and others who never do: the border is at a night share of a half."""


def at(*night_shares: float) -> pd.DataFrame:
    return pd.DataFrame({"user_id": [f"v{i}" for i in range(len(night_shares))], "night_session_share": night_shares})


# --- stay ---


def segment_of(distances: list[float], previous: int, margin: float) -> int:
    return int(stay(np.array([distances]), np.array([previous]), margin)[0])


def test_a_user_stays_while_another_segment_is_not_clearly_nearer() -> None:
    assert segment_of([1.0, 0.95], previous=0, margin=0.1) == 0


def test_a_user_leaves_for_a_segment_that_is_clearly_nearer() -> None:
    assert segment_of([1.0, 0.85], previous=0, margin=0.1) == 1


def test_a_segment_nearer_by_exactly_the_margin_is_clearly_nearer() -> None:
    assert segment_of([1.0, 0.75], previous=0, margin=0.25) == 1


def test_a_user_who_is_new_is_in_the_nearest_segment() -> None:
    assert segment_of([1.0, 0.999], previous=-1, margin=0.5) == 1


def test_a_user_leaves_for_the_nearest_of_those_that_are_nearer() -> None:
    assert segment_of([1.0, 0.8, 0.7], previous=0, margin=0.1) == 2


def test_who_is_at_a_centre_leaves_for_it_whatever_the_margin() -> None:
    assert segment_of([1.0, 0.0], previous=0, margin=0.99) == 1


def test_nobody_is_nobody() -> None:
    assert stay(np.empty((0, 3)), np.empty(0, dtype=int), 0.1).tolist() == []


@given(
    distances=arrays(float, (8, 4), elements=st.floats(0, 100)),
    previous=arrays(int, 8, elements=st.integers(-1, 3)),
)
def test_without_a_margin_everyone_is_in_the_nearest_segment(
    distances: np.ndarray,
    previous: np.ndarray,
) -> None:
    assert np.array_equal(stay(distances, previous, 0), distances.argmin(axis=1))


# --- assign with what was before ---


def test_of_a_user_who_only_stays_the_strength_is_0_and_the_nearest_segment_runner_up() -> None:
    [row] = assign(MODEL, at(0.49), pd.Series([NIGHT]), 0.1).to_dict("records")

    assert (row["segment_id"], row["segment_strength"], row["runner_up_segment_id"]) == (NIGHT, 0.0, DAY)


def test_of_a_user_who_is_nearest_to_where_he_was_nothing_changes() -> None:
    once = assign(MODEL, at(0.9, 0.2))

    pd.testing.assert_frame_equal(assign(MODEL, at(0.9, 0.2), pd.Series([NIGHT, DAY]), 0.1), once, check_exact=True)


@pytest.mark.parametrize("previous", [None, np.nan, "S07"])
def test_who_was_in_no_segment_that_there_is_goes_to_the_nearest(previous: object) -> None:
    assigned = assign(MODEL, at(0.49, 0.49), pd.Series([previous, NIGHT], dtype=object), 0.1)

    assert assigned["segment_id"].to_list() == [DAY, NIGHT]


# --- follow, flap_rate ---


def test_a_user_at_a_border_flaps_without_the_rule_and_not_with_it() -> None:
    weeks = [at(share, 1.0) for share in (0.51, 0.49, 0.51)]

    without, with_rule = follow(MODEL, weeks, 0), follow(MODEL, weeks, 0.1)
    assert without.T["v0"].to_list() == [NIGHT, DAY, NIGHT]
    assert with_rule.T["v0"].to_list() == [NIGHT, NIGHT, NIGHT]
    assert (flap_rate(without), flap_rate(with_rule)) == (0.5, 0.0)


def test_a_user_who_comes_later_has_no_segment_before() -> None:
    assert follow(MODEL, [at(1.0), at(1.0, 0.0)], 0.1).T["v1"].isna().to_list() == [True, False]


def test_who_leaves_and_does_not_come_back_does_not_flap() -> None:
    rows = pd.DataFrame([["A", "B", "B"], ["A", "A", "B"], ["A", "B", "C"], ["A", "B", "A"]])

    assert flap_rate(rows) == 0.25


def test_each_three_snapshots_in_a_row_count() -> None:
    assert flap_rate(pd.DataFrame([["A", "B", "A", "B"], ["A", "A", "A", "A"]])) == 0.5


def test_a_user_who_is_not_in_all_three_does_not_count() -> None:
    assert flap_rate(pd.DataFrame([["A", None, "A"], ["A", "B", "A"]])) == 1.0


def test_below_three_snapshots_there_is_no_rate() -> None:
    assert np.isnan(flap_rate(pd.DataFrame([["A", "B"]])))
