"""A feature that tells a label too well, and a category that names it, are found; honest ones are not."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from models.leaks import (
    ALONE_MAX,
    Alone,
    find_naming,
    measure_alone,
    newcombe,
    too_good,
    unmeasured,
    wilson,
)

LABELS = ["churned", "bought"]
USERS = 1_000


def labelled(users: int = USERS, snapshots: int = 2, seed: int = 0) -> pd.DataFrame:
    """Make labelled snapshots in which a feature tells something of each label, and no category does."""
    draw = np.random.default_rng(seed)
    count = users * snapshots
    recency_days = draw.exponential(20, count)
    return pd.DataFrame(
        {
            "user_id": np.tile([f"u{number}" for number in range(users)], snapshots),
            "as_of": np.repeat([datetime(2024, 1 + month, 1, tzinfo=UTC) for month in range(snapshots)], users),
            "recency_days": recency_days,
            "cart_rate": np.where(draw.random(count) < 0.5, np.nan, draw.random(count)),
            "device": draw.choice(np.array(["phone", "tablet", None], dtype=object), count),
            "churned": pd.array(draw.random(count) < recency_days / (20 + recency_days), dtype="boolean"),
            "bought": pd.array(draw.random(count) < 0.1, dtype="boolean"),
        }
    )


def truth(frame: pd.DataFrame, label: str = "churned") -> NDArray[np.bool_]:
    return frame[label].to_numpy(dtype=bool)


def alone(frame: pd.DataFrame, feature: str, label: str = "churned") -> Alone:
    [found] = [one for one in measure_alone(frame, LABELS) if (one.feature, one.label) == (feature, label)]
    return found


# --- a feature alone ---


def test_honest_features_are_not_too_good() -> None:
    measured = measure_alone(labelled(), LABELS)

    assert {(one.feature, one.label) for one in measured} == {
        (feature, label) for feature in ("recency_days", "cart_rate", "device") for label in LABELS
    }
    assert measured[0].feature == "recency_days"
    assert measured[0].label == "churned"
    assert too_good(measured) == []
    assert find_naming(labelled(), LABELS) == []
    assert unmeasured(labelled(), LABELS) == []


def test_the_auc_of_a_number_is_that_of_its_values() -> None:
    frame = labelled()
    found = alone(frame, "recency_days")

    assert found.auc == pytest.approx(roc_auc_score(truth(frame), frame["recency_days"]))
    assert found.low < found.auc < found.high
    assert found.users == USERS


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_knows_the_label_is_too_good_in_either_direction(sign: int) -> None:
    frame = labelled()
    noise = np.random.default_rng(1).normal(0, 0.1, len(frame))
    frame["days_until_next"] = sign * (truth(frame) + noise)

    assert [(one.feature, one.label) for one in too_good(measure_alone(frame, LABELS))] == [
        ("days_until_next", "churned")
    ]


@pytest.mark.parametrize("value", [-5.0, 5.0])
def test_a_null_that_knows_the_label_is_too_good_whatever_the_values(value: float) -> None:
    frame = labelled()
    frame["next_event_days"] = np.where(truth(frame), np.nan, value)

    assert alone(frame, "next_event_days").auc == 1.0
    assert too_good([alone(frame, "next_event_days")])


def test_infinite_values_are_the_largest() -> None:
    frame = labelled()
    frame["ratio"] = np.where(truth(frame), np.inf, np.random.default_rng(1).random(len(frame)))

    assert alone(frame, "ratio").auc == 1.0


def test_a_category_that_encodes_the_label_is_too_good_and_named() -> None:
    frame = labelled()
    frame["plan"] = np.where(truth(frame), "cancelled", np.random.default_rng(1).choice(["basic", "plus"], len(frame)))

    assert [one.feature for one in too_good(measure_alone(frame, LABELS))] == ["plan"]
    found = {(one.feature, one.value, one.label, one.outcome) for one in find_naming(frame, LABELS)}
    assert found == {("plan", "cancelled", "churned", True)} | {
        ("plan", plan, "churned", False) for plan in ("basic", "plus")
    }


def test_an_id_tells_nothing_of_other_users() -> None:
    frame = labelled(snapshots=4)
    of_user = np.random.default_rng(1).random(USERS) < 0.5
    frame["churned"] = np.tile(of_user, 4)
    frame["loyalty_number"] = "n" + frame["user_id"]

    assert 0.4 < alone(frame, "loyalty_number").auc < 0.6
    assert find_naming(frame, LABELS) == []


def test_a_category_is_judged_by_its_rate_with_other_users() -> None:
    frame = labelled(users=200, snapshots=1)
    frame["churned"] = [number % 4 == 0 for number in range(200)]
    frame["letter"] = ["a" if number % 2 else "b" for number in range(200)]

    assert alone(frame, "letter").auc == pytest.approx(5 / 6, abs=0.02)


def test_features_with_one_value_and_labels_with_one_outcome_are_left_out() -> None:
    frame = labelled()
    frame["constant"], frame["empty"], frame["plan"] = 1.0, np.nan, None
    frame["bought"] = True
    measured = measure_alone(frame, LABELS)

    assert {one.feature for one in measured} == {"recency_days", "cart_rate", "device"}
    assert {one.label for one in measured} == {"churned"}
    assert unmeasured(frame, LABELS) == ["bought: it is true of all 2,000 rows"]


def test_rows_without_a_label_do_not_count() -> None:
    frame = labelled()
    frame["knows"] = truth(frame).astype(float)
    unknown = frame.assign(churned=None, knows=1 - frame["knows"], user_id="v" + frame["user_id"])
    both = pd.concat([frame, unknown], ignore_index=True)

    assert alone(both, "knows").auc == 1.0
    assert alone(both, "knows").users == USERS
    assert unmeasured(frame.assign(churned=None), ["churned"]) == ["churned: no row has this label"]


def test_twelve_users_are_too_few_for_a_verdict() -> None:
    frame = labelled(users=12, snapshots=3)
    frame["churned"] = [number % 2 == 0 for number in range(36)]
    frame["knows"], frame["plan"] = truth(frame).astype(float), np.where(truth(frame), "left", "there")

    assert alone(frame, "knows").auc == 1.0
    assert too_good(measure_alone(frame, LABELS)) == []
    assert find_naming(frame, ["churned"]) == []
    [reason] = unmeasured(frame, ["churned"])
    assert "6 users with it and 6 without are too few" in reason


def test_many_rows_of_few_users_are_no_more_certain_than_the_users() -> None:
    few, many = labelled(users=100, snapshots=1), labelled(users=100, snapshots=12)
    few["knows"], many["knows"] = truth(few).astype(float), truth(many).astype(float)

    assert alone(few, "knows").low < ALONE_MAX
    assert alone(many, "knows").low < ALONE_MAX


# --- categories that name a label ---


def named(users_with: int, share: float, share_of_others: float, users: int = USERS) -> pd.DataFrame:
    """Make one snapshot with a plan `x` whose users have an outcome in one share, and all others in another."""
    has_plan = np.arange(users) < users_with
    place = np.where(has_plan, np.arange(users), np.arange(users) - users_with)
    happened = np.where(has_plan, place < share * users_with, place < share_of_others * (users - users_with))
    return labelled(users, 1).assign(plan=np.where(has_plan, "x", "y"), churned=happened)[
        ["user_id", "as_of", "plan", "churned"]
    ]


@pytest.mark.parametrize(
    ("users_with", "share", "share_of_others", "values"),
    [
        (200, 1.0, 0.2, ["x"]),
        (200, 0.995, 0.2, ["x"]),
        (200, 0.9, 0.2, []),  # strong, and honest
        (200, 1.0, 0.6, []),  # most others have it too
        (50, 1.0, 0.2, []),  # too few users
        (200, 0.0, 0.97, ["y", "x"]),
        (200, 0.0, 0.02, []),  # a rare label: nearly none of the others has it either
    ],
)
def test_a_value_names_a_label_where_nearly_all_with_it_have_what_most_others_have_not(
    users_with: int, share: float, share_of_others: float, values: list[str]
) -> None:
    assert [one.value for one in find_naming(named(users_with, share, share_of_others), ["churned"])] == values


def test_a_finding_has_its_numbers() -> None:
    [found] = find_naming(named(200, 0.995, 0.25), ["churned"])

    assert (found.label, found.feature, found.value, found.outcome) == ("churned", "plan", "x", True)
    assert (found.share, found.share_of_others, found.users) == (0.995, 0.25, 200)


def test_no_value_may_name_a_label_too() -> None:
    frame = named(200, 1.0, 0.2)
    frame["plan"] = frame["plan"].where(frame["plan"] != "x", None)

    assert [one.value for one in find_naming(frame, ["churned"])] == ["(none)"]


def test_other_labels_are_no_features() -> None:
    frame = labelled()
    frame["bought"] = frame["churned"]

    assert too_good(measure_alone(frame, LABELS)) == []
    assert find_naming(frame, LABELS) == []


def test_among_very_many_values_some_are_pure_by_chance() -> None:
    frame = labelled(users=2_000, snapshots=5)
    frame["campaign"] = np.random.default_rng(2).integers(0, 3_000, len(frame)).astype(str)

    assert find_naming(frame, LABELS) == []


# --- intervals ---


@pytest.mark.parametrize(("auc", "positive", "negative"), [(1.0, 1, 1), (0.0, 1, 5), (0.5, 1, 1), (0.97, 30, 900)])
def test_an_interval_holds_its_value_and_stays_within_0_and_1(auc: float, positive: int, negative: int) -> None:
    low, high = newcombe(auc, positive, negative)
    assert 0 <= low <= auc <= high <= 1
    assert low < high


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    true_auc, covered = 0.9214, 0  # of normal values whose means are 2 apart
    for _ in range(300):
        positive, negative = draw.normal(2, 1, 40), draw.normal(0, 1, 120)
        low, high = newcombe(float((positive[:, None] > negative).mean()), 40, 120)
        covered += low <= true_auc <= high
    assert 0.92 < covered / 300 <= 0.99


def test_wilsons_interval_narrows_with_the_number() -> None:
    assert wilson(0.5, 10)[0] < wilson(0.5, 100)[0] < 0.5
    assert wilson(1.0, 10)[1] == 1.0
