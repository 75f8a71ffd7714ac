import json

import numpy as np
import pandas as pd
import pytest

from models.segments import NotEnoughUsers, SegmentModel, align, assign, describe, fit, profiles, renamed

FEATURES = ("session_count", "purchase_count", "recency_days", "night_session_share", "support_visit_count")
BUYER = dict(zip(FEATURES, (40.0, 20.0, 2.0, 0.1, 0.0), strict=True))
ONE_TIMER = dict(zip(FEATURES, (1.0, 0.0, 90.0, 0.1, 0.0), strict=True))
NIGHT_OWL = dict(zip(FEATURES, (60.0, 0.0, 30.0, 0.9, 0.0), strict=True))
SUPPORTED = dict(zip(FEATURES, (3.0, 0.0, 2.0, 0.1, 5.0), strict=True))


def users(kind: dict[str, float], count: int, first: int = 0) -> pd.DataFrame:
    """Make users of one kind, whose values vary by a tenth."""
    rows = pd.DataFrame({feature: value * np.linspace(0.9, 1.0, count) for feature, value in kind.items()})
    rows.insert(0, "user_id", [f"u{first + i:03d}" for i in range(count)])
    return rows


def shop() -> pd.DataFrame:
    return pd.concat([users(BUYER, 20), users(ONE_TIMER, 30, 20), users(NIGHT_OWL, 12, 50)], ignore_index=True)


def noise(user_count: int = 100, feature_count: int = 6) -> pd.DataFrame:
    values = np.random.default_rng(7).random((user_count, feature_count))
    rows = pd.DataFrame(values, columns=[f"score_{letter}" for letter in "abcdefgh"[:feature_count]])
    rows.insert(0, "user_id", [f"u{i:03d}" for i in range(user_count)])
    return rows


def segment_ids(model: SegmentModel, snapshot: pd.DataFrame) -> pd.Series:
    return assign(model, snapshot).set_index("user_id")["segment_id"]


# --- fit ---


def test_users_who_behave_alike_are_in_one_segment() -> None:
    ids = segment_ids(fit(shop(), 2, 6, seed=1), shop())

    assert ids.groupby(ids).size().to_dict() == {"S01": 30, "S02": 20, "S03": 12}
    assert ids["u000":"u019"].unique() == ["S02"]
    assert ids["u020":"u049"].unique() == ["S01"]
    assert ids["u050":"u061"].unique() == ["S03"]


def test_the_number_of_segments_has_the_highest_silhouette() -> None:
    model = fit(shop(), 2, 6, seed=1)

    assert list(model.silhouettes) == [2, 3, 4, 5, 6]
    assert model.silhouette == max(model.silhouettes.values()) == model.silhouettes[3]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_neither_the_order_of_rows_nor_the_number_of_threads_changes_a_bit(n_jobs: int) -> None:
    model, again = fit(noise(), 2, 6, seed=1), fit(noise().iloc[::-1], 2, 6, seed=1, n_jobs=n_jobs)

    assert again.to_dict() == model.to_dict()
    assert again.pipeline[-1].cluster_centers_.tobytes() == model.pipeline[-1].cluster_centers_.tobytes()


def test_a_constant_feature_is_left_out() -> None:
    assert "search_count" not in fit(shop().assign(search_count=3.0), 2, 3, seed=1).features


def test_a_feature_that_applies_to_nobody_is_left_out() -> None:
    assert "revenue_per_purchase" not in fit(shop().assign(revenue_per_purchase=np.nan), 2, 3, seed=1).features


def test_a_category_is_left_out() -> None:
    rows = shop()
    rows["device"] = ["mobile", "desktop"] * 31

    assert "device" not in fit(rows, 2, 3, seed=1).features


def test_of_one_quantity_over_several_windows_only_the_longest_counts() -> None:
    rows = noise().rename(
        columns={
            "score_a": "session_count_7d",
            "score_b": "session_count_90d",
            "score_c": "session_count_28d",
            "score_d": "purchase_count_7d",
            "score_e": "purchase_count",
            "score_f": "session_trend_28d",
        }
    )

    features = fit(rows, 2, 3, seed=1).features
    assert sorted(features) == ["purchase_count", "session_count_90d", "session_trend_28d"]


def test_of_two_features_that_say_the_same_only_the_first_counts() -> None:
    rows = noise().assign(score_z=lambda rows: 1 - rows["score_b"])

    assert sorted(fit(rows, 2, 3, seed=1).features) == [f"score_{letter}" for letter in "abcdef"]


def test_what_does_not_apply_to_a_user_counts_as_average() -> None:
    model = fit(noise(), 2, 3, seed=1)
    one_null = noise().assign(score_a=np.nan)

    prepared = pd.DataFrame(model.pipeline[:-1].transform(one_null), columns=model.features)
    assert (prepared["score_a"] == 0).all()
    assert (prepared["score_b"] != 0).all()


def test_a_few_extreme_users_are_cut_at_three_deviations() -> None:
    rows = noise()
    rows.loc[0, "score_a"] = 1e9
    model = fit(rows, 2, 3, seed=1)

    assert model.pipeline[:-1].transform(rows).max() == 3


def test_refunds_may_exceed_revenue() -> None:
    rows = shop().assign(revenue_total=np.linspace(-500, 500, 62))

    assert "revenue_total" in fit(rows, 2, 3, seed=1).features


def test_too_few_users_are_refused_in_numbers() -> None:
    with pytest.raises(NotEnoughUsers, match="3 segments need at least 30 users, the snapshot has 29"):
        fit(shop().head(29), 3, 6, seed=1)


def test_users_who_do_not_differ_are_refused() -> None:
    with pytest.raises(NotEnoughUsers, match="the 30 of the snapshot do not"):
        fit(shop().head(30).assign(**BUYER), 2, 6, seed=1)


def test_too_few_different_users_are_refused_in_numbers() -> None:
    rows = shop().head(30).assign(**BUYER)
    rows.loc[:9, "session_count"] = 1.0

    with pytest.raises(NotEnoughUsers, match="3 segments need as many different users, the snapshot has 2"):
        fit(rows, 3, 6, seed=1)


def test_there_are_never_more_segments_than_different_users() -> None:
    rows = shop().head(60).assign(**BUYER)
    rows["session_count"] = [1.0, 10.0, 100.0] * 20

    assert list(fit(rows, 2, 6, seed=1).silhouettes) == [2, 3]


def test_a_segment_that_any_sample_finds_again_is_stable() -> None:
    assert [segment.stability for segment in fit(shop(), 3, 3, seed=1).segments] == [1.0, 1.0, 1.0]


def test_a_segment_made_of_noise_is_not_stable() -> None:
    assert max(segment.stability for segment in fit(noise(), 5, 5, seed=1).segments) < 0.75


def test_a_model_survives_json() -> None:
    fitted = fit(shop(), 2, 6, seed=1)
    model = align(fitted, fitted, shop(), shop(), 4, "2024-06-30T00:00:00+00:00", {})

    assert SegmentModel.from_dict(model.pipeline, json.loads(json.dumps(model.to_dict()))) == model


def test_a_model_from_before_there_were_lineages_has_none() -> None:
    model = fit(shop(), 2, 6, seed=1)
    stored = model.to_dict()
    del stored["lineage"]

    assert SegmentModel.from_dict(model.pipeline, stored) == model


# --- assign ---


def lit_and_unlit() -> pd.DataFrame:
    """Make ten users who only come at night and ten who never do."""
    return pd.concat(
        [users({"night_session_share": 1.0}, 10), users({"night_session_share": 0.0}, 10, 10)], ignore_index=True
    ).assign(night_session_share=[1.0] * 10 + [0.0] * 10)


def test_strength_is_1_at_a_centre_and_0_between_two() -> None:
    model = fit(lit_and_unlit(), 2, 2, seed=1)
    three = pd.DataFrame({"user_id": ["night", "both", "day"], "night_session_share": [1.0, 0.5, 0.0]})

    assert assign(model, three)["segment_strength"].to_list() == [1.0, 0.0, 1.0]


def test_the_runner_up_is_the_second_nearest_segment() -> None:
    model = fit(lit_and_unlit(), 2, 2, seed=1)
    two = pd.DataFrame({"user_id": ["night", "day"], "night_session_share": [0.9, 0.2]})

    assigned = assign(model, two)
    assert assigned["segment_id"].to_list() == assigned["runner_up_segment_id"].to_list()[::-1]
    assert assigned["segment_strength"].to_list() == pytest.approx([1 - 0.1 / 0.9, 1 - 0.2 / 0.8])


def test_another_user_changes_no_assignment() -> None:
    model = fit(noise(), 2, 6, seed=1)
    everyone = assign(model, noise())

    for count in (1, 2, 3, 50):
        pd.testing.assert_frame_equal(assign(model, noise().head(count)), everyone.head(count), check_exact=True)


def test_assignments_keep_the_order_of_the_snapshot() -> None:
    backwards = shop().iloc[::-1]

    assert assign(fit(shop(), 2, 3, seed=1), backwards)["user_id"].to_list() == backwards["user_id"].to_list()


# --- renamed ---


def names_of(model: SegmentModel) -> dict[str, str]:
    return {segment.segment_id: segment.name for segment in model.segments}


def test_a_name_that_a_person_gave_takes_the_place_of_the_automatic_one() -> None:
    model = fit(shop(), 3, 3, seed=1)

    assert names_of(renamed(model, {"S02": "Our best"})) == names_of(model) | {"S02": "Our best"}
    assert assign(renamed(model, {"S02": "Our best"}), shop())["segment_name"][0] == "Our best"


def test_an_automatic_name_that_was_given_to_another_segment_is_told_apart_by_its_id() -> None:
    model = fit(shop(), 3, 3, seed=1)
    automatic = names_of(model)["S01"]

    assert names_of(renamed(model, {"S02": automatic.upper()}))["S01"] == f"{automatic} (S01)"
    assert names_of(renamed(model, {"S09": automatic}))["S01"] == f"{automatic} (S01)"


# --- describe ---


def test_segments_are_described_from_the_largest_to_the_smallest() -> None:
    described = describe(fit(shop(), 3, 3, seed=1))

    assert described["segment_id"].to_list() == ["S01", "S02", "S03"]
    assert described["user_count"].to_list() == [30, 20, 12]
    assert described["user_share"].sum() == pytest.approx(1)


def test_segments_have_names_that_marketing_would_use() -> None:
    described = describe(fit(pd.concat([shop(), users(SUPPORTED, 15, 62)], ignore_index=True), 4, 4, seed=1))

    assert described["segment_name"].to_list() == [
        "Lapsed visitors, here only once",
        "Frequent buyers, here lately",
        "Support seekers, here lately",
        "Night visitors, often here",
    ]


def test_who_seldom_came_lately_is_not_a_one_time_visitor() -> None:
    ever = describe(fit(shop(), 3, 3, seed=1))
    lately = describe(fit(shop().rename(columns={"session_count": "session_count_28d"}), 3, 3, seed=1))

    assert ever["segment_name"][0] == "One-time visitors, not buying"
    assert lately["segment_name"][0] == "Rare visitors, not buying"


def test_what_is_typical_is_said_in_words() -> None:
    buyers = describe(fit(shop(), 3, 3, seed=1)).iloc[1]

    assert buyers["typical"][0] == "purchases: 19"


def test_a_difference_is_in_standard_deviations_between_a_segment_and_everyone_else() -> None:
    night = fit(lit_and_unlit(), 2, 2, seed=1).segments
    trait = next(segment for segment in night if segment.name.startswith("Night")).typical[0]

    assert trait.feature == "night_session_share"
    assert trait.difference == pytest.approx(2.0)
    assert (trait.statistic, trait.value, trait.overall) == ("median", 1.0, 0.5)


def test_where_medians_are_equal_the_mean_tells() -> None:
    rows = shop()
    rows["support_visit_count"] = [0.0] * 50 + [3.0] * 4 + [0.0] * 8
    segments = fit(rows, 3, 3, seed=1).segments
    night = next(segment for segment in segments if segment.name.startswith("Night"))
    trait = next(trait for trait in night.typical if trait.feature == "support_visit_count")

    assert (trait.statistic, trait.value, trait.overall) == ("mean", 1.0, 12 / 62)


def test_a_feature_that_nobody_in_a_segment_has_is_not_typical_of_it() -> None:
    rows = lit_and_unlit()
    rows["revenue_per_purchase"] = [10.0, 20.0] * 5 + [np.nan] * 10

    day = next(segment for segment in fit(rows, 2, 2, seed=1).segments if segment.name.startswith("Day"))
    assert [trait.feature for trait in day.typical] == ["night_session_share"]


def test_every_segment_has_a_name_of_its_own() -> None:
    names = describe(fit(noise(200, 3), 8, 8, seed=1))["segment_name"]

    assert names.is_unique


def test_a_feature_of_ones_own_makes_a_name_too() -> None:
    rows = lit_and_unlit().rename(columns={"night_session_share": "loyalty_score"})

    assert sorted(describe(fit(rows, 2, 2, seed=1))["segment_name"]) == [
        "Users with high loyalty score",
        "Users with low loyalty score",
    ]


def test_profiles_are_in_deviations_from_the_average_user() -> None:
    assert profiles(fit(lit_and_unlit(), 2, 2, seed=1)).to_dict("index") == {
        "Night visitors": {"night_session_share": 1.0},
        "Day visitors": {"night_session_share": -1.0},
    }
