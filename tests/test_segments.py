import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from shops import Ran
from simulated import refits

from flows.snapshot import table_of
from models.segments import SegmentModel, align, assign, describe, fit, keep_names, profiles, renamed, without

FEATURES = ("session_count", "purchase_count", "recency_days", "night_session_share", "support_visit_count")
BUYER = dict(zip(FEATURES, (40.0, 20.0, 2.0, 0.1, 0.0), strict=True))
ONE_TIMER = dict(zip(FEATURES, (1.0, 0.0, 90.0, 0.1, 0.0), strict=True))
NIGHT_OWL = dict(zip(FEATURES, (60.0, 0.0, 30.0, 0.9, 0.0), strict=True))


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


@pytest.fixture(scope="module")
def chosen() -> SegmentModel:
    """Choose the number of the shop's segments."""
    return fit(shop(), 2, 6, seed=1)


@pytest.fixture(scope="module")
def three() -> SegmentModel:
    return fit(shop(), 3, 3, seed=1)


@pytest.fixture(scope="module")
def of_noise() -> SegmentModel:
    return fit(noise(), 2, 3, seed=1)


# --- fit ---


def test_users_who_behave_alike_are_in_one_segment(chosen: SegmentModel) -> None:
    ids = segment_ids(chosen, shop())

    assert ids.groupby(ids).size().to_dict() == {"S01": 30, "S02": 20, "S03": 12}
    assert ids["u000":"u019"].unique() == ["S02"]
    assert ids["u020":"u049"].unique() == ["S01"]
    assert ids["u050":"u061"].unique() == ["S03"]


def test_a_model_tells_how_it_was_chosen(chosen: SegmentModel) -> None:
    assert chosen.chosen in chosen.candidates
    assert [(one.method, one.k) for one in chosen.candidates] == [
        *(("k-means", k) for k in (2, 3, 4, 5, 6)),
    ]
    assert chosen.doubt is None


def test_the_order_of_rows_changes_no_bit(of_noise: SegmentModel) -> None:
    again = fit(noise().iloc[::-1], 2, 3, seed=1)

    assert again.to_dict() == of_noise.to_dict()
    assert again.pipeline[-1].cluster_centers_.tobytes() == of_noise.pipeline[-1].cluster_centers_.tobytes()


def test_segments_that_serve_are_kept_where_others_are_no_better(three: SegmentModel) -> None:
    again = fit(shop(), 2, 4, seed=2, champion=three)

    assert again.chosen is not None
    assert again.chosen.kept
    assert again.pipeline[-1].cluster_centers_ == pytest.approx(three.pipeline[-1].cluster_centers_)


def test_segments_made_of_noise_are_in_doubt(of_noise: SegmentModel) -> None:
    assert of_noise.doubt is not None
    assert "at least 0.6 is needed" in of_noise.doubt


def test_refunds_may_exceed_revenue() -> None:
    rows = shop().assign(revenue_total=np.linspace(-500, 500, 62))

    assert "revenue_total" in fit(rows, 2, 2, seed=1).features


def test_a_model_survives_json(chosen: SegmentModel) -> None:
    model = align(chosen, chosen, shop(), shop(), 4, "2024-06-30T00:00:00+00:00", {})

    assert SegmentModel.from_dict(model.pipeline, json.loads(json.dumps(model.to_dict()))) == model


def test_a_model_from_before_there_were_lineages_has_none(chosen: SegmentModel) -> None:
    stored = chosen.to_dict()
    del stored["lineage"]

    assert SegmentModel.from_dict(chosen.pipeline, stored) == chosen


# --- assign ---


def lit_and_unlit() -> pd.DataFrame:
    """Make ten users who only come at night and ten who never do."""
    return pd.concat(
        [users({"night_session_share": 1.0}, 10), users({"night_session_share": 0.0}, 10, 10)], ignore_index=True
    ).assign(night_session_share=[1.0] * 10 + [0.0] * 10)


@pytest.fixture(scope="module")
def by_night() -> SegmentModel:
    return fit(lit_and_unlit(), 2, 2, seed=1)


def test_strength_is_1_at_a_centre_and_0_between_two(by_night: SegmentModel) -> None:
    three = pd.DataFrame({"user_id": ["night", "both", "day"], "night_session_share": [1.0, 0.5, 0.0]})

    assert assign(by_night, three)["segment_strength"].to_list() == [1.0, 0.0, 1.0]


def test_the_runner_up_is_the_second_nearest_segment(by_night: SegmentModel) -> None:
    two = pd.DataFrame({"user_id": ["night", "day"], "night_session_share": [0.9, 0.2]})

    assigned = assign(by_night, two)
    assert assigned["segment_id"].to_list() == assigned["runner_up_segment_id"].to_list()[::-1]
    assert assigned["segment_strength"].to_list() == pytest.approx([1 - 0.1 / 0.9, 1 - 0.2 / 0.8])


def test_another_user_changes_no_assignment(of_noise: SegmentModel) -> None:
    everyone = assign(of_noise, noise())

    for count in (1, 2, 3, 50):
        pd.testing.assert_frame_equal(assign(of_noise, noise().head(count)), everyone.head(count), check_exact=True)


def test_assignments_keep_the_order_of_the_snapshot(three: SegmentModel) -> None:
    backwards = shop().iloc[::-1]

    assert assign(three, backwards)["user_id"].to_list() == backwards["user_id"].to_list()


# --- renamed ---


def names_of(model: SegmentModel) -> dict[str, str]:
    return {segment.segment_id: segment.name for segment in model.segments}


def test_a_name_that_a_person_gave_takes_the_place_of_the_automatic_one(three: SegmentModel) -> None:

    assert names_of(renamed(three, {"S02": "Our best"})) == names_of(three) | {"S02": "Our best"}
    assert assign(renamed(three, {"S02": "Our best"}), shop())["segment_name"][0] == "Our best"


def test_an_automatic_name_that_was_given_to_another_segment_is_told_apart_by_its_id(three: SegmentModel) -> None:
    automatic = names_of(three)["S01"]

    assert names_of(renamed(three, {"S02": automatic.upper()}))["S01"] == f"{automatic} (S01)"
    assert names_of(renamed(three, {"S09": automatic}))["S01"] == f"{automatic} (S01)"


# --- describe ---


def test_segments_are_described_from_the_largest_to_the_smallest(three: SegmentModel) -> None:
    described = describe(three)

    assert described["segment_id"].to_list() == ["S01", "S02", "S03"]
    assert described["user_count"].to_list() == [30, 20, 12]
    assert described["user_share"].sum() == pytest.approx(1)


def test_a_segment_is_described_by_its_name_summary_traits_and_rule(three: SegmentModel) -> None:
    buyers = describe(three).iloc[1]

    assert buyers["segment_name"] == "Frequent buyers"
    assert buyers["summary"] == "19 purchases (all users: 0)"
    assert buyers["typical"][0] == "purchases: 19 (all users: 0)"
    assert (buyers["rule"], buyers["rule_precision"], buyers["rule_recall"]) == ("purchase_count > 9", 1, 1)
    assert buyers["flags"] == []


def test_what_is_typical_is_not_only_what_segments_are_made_of() -> None:
    rows = shop().assign(device=["desktop"] * 20 + ["mobile"] * 30 + ["desktop"] * 12)
    model = fit(rows, 3, 3, seed=1)

    assert "device" not in model.features
    assert "on mobile: 100 % (all users: 48 %)" in describe(model).iloc[0]["typical"]


def test_segments_that_were_stored_with_less_still_load(three: SegmentModel) -> None:
    told = three.to_dict()
    for segment in told["segments"]:
        for new in ("summary", "rule", "flags", "named_by"):
            del segment[new]
        for trait in segment["typical"]:
            del trait["category"]

    [first, *_] = SegmentModel.from_dict(three.pipeline, told).segments
    assert (first.summary, first.rule, first.flags, first.named_by) == ("", None, (), ())
    assert first.typical == three.segments[0].typical


# --- what is personal ---


def on_islands() -> pd.DataFrame:
    """Return the shop, whose buyers live on islands, and whose others do not."""
    return shop().assign(region=["islands"] * 20 + ["inland"] * 42)


@pytest.fixture(scope="module")
def telling() -> SegmentModel:
    """Return segments of before the region was personal, with a lineage, and one that is gone."""
    model = fit(on_islands(), 3, 3, seed=1)
    aligned = align(model, model, None, on_islands(), 4, "2024-03-01T00:00:00+00:00", {})
    assert aligned.lineage is not None
    gone = replace(aligned.lineage.events[0], segment_id="S09", name="Lapsed visitors (region islands)", kind="retired")
    return replace(aligned, lineage=replace(aligned.lineage, events=(*aligned.lineage.events, gone)))


def test_nothing_that_is_said_of_segments_needs_what_is_personal(telling: SegmentModel) -> None:
    assert "islands" in str(telling.to_dict())

    model = fit(on_islands(), 3, 3, seed=1, personal=["region", "plan"])

    assert not {"region", "islands", "inland"} & set(str(model.to_dict()).replace("'", " ").split())
    assert "islands" not in str(model.to_dict())
    assert model.to_dict() == fit(shop(), 3, 3, seed=1).to_dict()


def test_words_of_before_that_need_what_is_personal_are_made_again(telling: SegmentModel) -> None:
    model = without(telling, ["region"])

    assert "island" not in str(model.to_dict())
    assert names_of(model) == names_of(fit(shop(), 3, 3, seed=1))
    assert [one.summary for one in model.segments] == [one.summary for one in fit(shop(), 3, 3, seed=1).segments]
    assert model.lineage is not None
    names = {one.segment_id: one.name for one in model.lineage.events}
    assert names == names_of(model) | {"S09": "S09"}


def test_words_that_need_nothing_personal_stay(telling: SegmentModel) -> None:
    assert without(telling, ["plan"]) == telling
    assert without(telling, []) == telling


def test_a_name_that_does_not_say_what_it_was_made_of_is_known_by_its_form(telling: SegmentModel) -> None:
    unknown = replace(telling, segments=tuple(replace(one, named_by=()) for one in telling.segments))
    assert "islands" not in str(without(unknown, ["region"]).to_dict())


# --- keep_names ---


def test_a_segment_keeps_the_name_it_had_while_it_is_true(three: SegmentModel) -> None:
    [_, buyers, _] = sorted(three.segments, key=lambda one: one.segment_id)
    weaker = fit(shop().assign(purchase_count=lambda rows: (rows["purchase_count"] / 5).round()), 3, 3, seed=1)

    [_, again, _] = sorted(keep_names(weaker, three).segments, key=lambda one: one.segment_id)
    assert (again.name, again.named_by) == (buyers.name, buyers.named_by)
    assert again.summary == "4 purchases (all users: 0)"


def test_a_name_that_somebody_gave_to_another_segment_is_not_used(three: SegmentModel) -> None:
    again = keep_names(three, three, taken=["frequent buyers"])

    assert {one.name for one in three.segments} - {one.name for one in again.segments} == {"Frequent buyers"}
    assert next(one.summary for one in again.segments if one.segment_id == "S02").startswith("19 purchases")


# --- profiles ---


def test_profiles_are_in_deviations_from_the_average_user(by_night: SegmentModel) -> None:
    assert profiles(by_night, lit_and_unlit()).to_dict("index") == {
        "Night visitors": {"night_session_share": 1.0},
        "Daytime visitors": {"night_session_share": -1.0},
    }


@pytest.mark.slow
def test_fifty_refits_with_other_seeds_and_row_orders_keep_the_ids_and_the_users(ran: Ran) -> None:
    with ran.configuration.open_lake() as lake:
        table = table_of(ran.configuration)
        snapshot = lake.read(table, only=[max(lake.partitions(table))]).to_pandas()
    for number_kept, (ids_kept, share) in enumerate(refits(snapshot, 50)):
        assert ids_kept, f"after {number_kept} refits"
        assert share >= 0.99
