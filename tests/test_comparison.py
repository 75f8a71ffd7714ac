from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from models.comparison import EVERYONE, OTHERS, by_attribute, by_feature

SNAPSHOT = pd.DataFrame(
    {
        "user_id": ["a", "b", "c", "d", "e"],
        "as_of": pd.Timestamp("2024-06-30", tz="UTC"),
        "session_count": [1.0, 2.0, 3.0, 10.0, 20.0],
        "revenue_per_purchase": [np.nan, 5.0, 7.0, np.nan, np.nan],
        "device": ["mobile", "desktop", "mobile", None, "mobile"],
    }
)
MEMBERS = pd.DataFrame({"user_id": ["a", "b", "c", "d"], "segment_name": ["few", "few", "few", "many"]})


def members(**segment_of_user: str | None) -> pd.DataFrame:
    return pd.DataFrame(list(segment_of_user.items()), columns=["user_id", "segment_name"])


def user_counts(compared: pd.DataFrame) -> dict[str, float]:
    return dict(zip(compared.columns, compared.to_numpy()[0], strict=True))


# --- by feature ---


def test_segments_stand_side_by_side_the_largest_first_and_all_users_last() -> None:
    assert list(by_feature(SNAPSHOT, MEMBERS).columns) == ["few", "many", EVERYONE]


def test_each_feature_has_a_median_a_mean_and_a_share_of_nulls() -> None:
    compared = by_feature(SNAPSHOT, MEMBERS)

    assert list(compared.index) == [
        ("users", "count"),
        ("session_count", "median"),
        ("session_count", "mean"),
        ("session_count", "null_share"),
        ("revenue_per_purchase", "median"),
        ("revenue_per_purchase", "mean"),
        ("revenue_per_purchase", "null_share"),
    ]
    assert compared["few"].to_list() == pytest.approx([3, 2, 2, 0, 6, 6, 1 / 3])
    assert compared[EVERYONE].to_list() == pytest.approx([5, 3, 7.2, 0, 6, 6, 0.6])


def test_a_feature_that_nobody_in_a_segment_has_is_null_there() -> None:
    compared = by_feature(SNAPSHOT, MEMBERS)["many"]

    assert np.isnan(compared["revenue_per_purchase", "median"])
    assert compared["revenue_per_purchase", "null_share"] == 1


def test_a_user_may_be_in_many_segments_but_in_each_only_once() -> None:
    twice = pd.concat([MEMBERS, MEMBERS, members(a="many")])

    assert user_counts(by_feature(SNAPSHOT, twice)) == {"few": 3, "many": 2, EVERYONE: 5}


def test_named_segments_are_compared_alike() -> None:
    assigned = pd.DataFrame(
        {"user_id": ["a", "b"], "rule_segments": [["new_visitors", "researchers"], ["researchers"]]}
    )

    compared = by_feature(SNAPSHOT, assigned.explode("rule_segments"), "rule_segments")
    assert list(compared.columns) == ["researchers", "new_visitors", EVERYONE]


def test_users_that_the_snapshot_does_not_have_and_null_segments_do_not_count() -> None:
    compared = by_feature(SNAPSHOT, members(a="few", stranger="few", b=None))

    assert user_counts(compared) == {"few": 1, EVERYONE: 5}


def test_an_empty_snapshot_or_no_members_compare_nothing() -> None:
    assert list(by_feature(SNAPSHOT.head(0), MEMBERS).columns) == [EVERYONE]
    assert list(by_feature(SNAPSHOT, MEMBERS.head(0)).columns) == [EVERYONE]


# --- by attribute ---


def test_each_value_has_its_users_and_share_per_segment_and_among_all() -> None:
    compared = by_attribute(SNAPSHOT, MEMBERS)

    assert compared.astype(object).where(compared.notna(), None).to_numpy().tolist() == [
        ["device", "mobile", "few", 2, pytest.approx(2 / 3), 0.6],
        ["device", "mobile", "many", 0, 0.0, 0.6],
        ["device", "desktop", "few", 1, pytest.approx(1 / 3), 0.2],
        ["device", "desktop", "many", 0, 0.0, 0.2],
        ["device", None, "few", 0, 0.0, 0.2],
        ["device", None, "many", 1, 1.0, 0.2],
    ]


def test_users_add_up_to_the_segment() -> None:
    rows = SNAPSHOT.assign(region=pd.Series(["north", None, "south", "south", "north"], dtype="str"))

    users = by_attribute(rows, MEMBERS).groupby(["attribute", "segment"])["users"].sum()
    assert users.to_dict() == {(a, s): n for a in ("device", "region") for s, n in (("few", 3), ("many", 1))}


def test_rare_values_of_many_are_one() -> None:
    users = [f"u{i:02d}" for i in range(60)]
    snapshot = pd.DataFrame({"user_id": users, "plan": [f"p{min(i, 30):02d}" for i in range(60)]})

    compared = by_attribute(snapshot, pd.DataFrame({"user_id": users, "segment_name": "all"}))
    assert len(compared) == 20
    assert compared["value"].iloc[0] == "p30"
    assert compared.set_index("value").loc[OTHERS, "users"] == 12
    assert compared["users"].sum() == 60


def test_a_long_value_is_cut() -> None:
    snapshot = SNAPSHOT.assign(device="x" * 10_000)

    assert set(by_attribute(snapshot, MEMBERS)["value"].str.len()) == {40}


def test_some_attributes_may_be_chosen() -> None:
    rows = SNAPSHOT.assign(region="north")

    assert set(by_attribute(rows, MEMBERS, attributes=["region"])["attribute"]) == {"region"}


def test_an_unknown_attribute_is_named() -> None:
    with pytest.raises(ValueError, match="no attribute 'plan'; there are device"):
        by_attribute(SNAPSHOT, MEMBERS, attributes=["plan"])


# --- errors ---


@pytest.mark.parametrize("compare", [by_feature, by_attribute])
def test_a_missing_column_is_named(compare: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]) -> None:
    with pytest.raises(ValueError, match="the table of members has no column 'segment_name'; there are user_id, name"):
        compare(SNAPSHOT, MEMBERS.rename(columns={"segment_name": "name"}))
    with pytest.raises(ValueError, match="the snapshot has no column 'user_id'"):
        compare(SNAPSHOT.drop(columns="user_id"), MEMBERS)


def test_a_segment_cannot_be_called_as_all_users() -> None:
    with pytest.raises(ValueError, match="a segment is called 'all users'"):
        by_feature(SNAPSHOT, members(a="all users"))
