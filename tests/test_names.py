from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import law

from models.descriptions import Trait
from models.names import FORMS, Named, names, needs


def trait(feature: str, difference: float, value: float = 5.0, statistic: str = "median") -> Trait:
    overall = value / 10 if difference > 0 else 10 * value + 1
    return Trait(feature, difference, statistic, value, overall)  # type: ignore[arg-type]


def category(column: str, value: str, share: float = 0.8, difference: float = 1.0) -> Trait:
    return Trait(column, difference, "share", share, 0.4, value)


def name(*typical: Trait) -> str:
    [named] = names([typical], [100])
    return named.name


# --- templates ---


@pytest.mark.parametrize(
    ("typical", "expected"),
    [
        ([trait("cart_abandonment_rate", 1.2, 0.9), category("device", "mobile")], "Cart abandoners on mobile"),
        ([trait("purchase_count_90d", 2.0), trait("tenure_days", 1.0, 300)], "Loyal frequent buyers"),
        ([trait("purchase_count", 2.0), trait("tenure_days", 1.0, 300)], "Long-standing frequent buyers"),
        ([trait("session_count", 1.0, 9.0), trait("night_session_share", 0.9, 0.7)], "Frequent night visitors"),
        ([trait("recency_days", 1.5, 90), trait("session_count", -1.0, 1.0)], "Lapsed one-time visitors"),
        ([trait("purchase_recency_days", 1.5, 90), trait("recency_days", 1.0, 60)], "Lapsed buyers"),
        ([trait("support_visit_count", 2.0), trait("search_count", 1.0)], "Support seekers who search a lot"),
        ([trait("duration_mean_s", -1.0), trait("cart_count", -0.8)], "Visitors with short sessions and few carts"),
        ([trait("purchase_count_90d", -1.0, 0.0), trait("search_count", 0.9)], "Visitors who search a lot"),
        ([category("country", "France")], "Visitors from France"),
        ([category("age_band", "35-55"), trait("session_count", 0.8, 9)], "Frequent visitors (age band 35-55)"),
        ([trait("loyalty_score", -1.0, 0.2)], "Visitors with low loyalty score"),
        ([], "Typical visitors"),
    ],
)  # fmt: skip
def test_names_are_those_that_marketing_would_use(typical: list[Trait], expected: str) -> None:
    assert name(*typical) == expected


def test_a_difference_less_than_medium_makes_no_name() -> None:
    assert name(trait("session_count", 0.49, 9.0)) == "Typical visitors"


def test_what_users_do_names_them_before_what_they_leave() -> None:
    assert name(trait("search_count", -1.5, 0.0), trait("night_session_share", 1.0, 0.8)).startswith("Night visitors")


@pytest.mark.parametrize(
    "one",
    [
        category("device", "mobile", share=0.59),
        Trait("support_visit_count", 1.5, "any", 0.4, 0.02),
        Trait("night_session_share", 1.5, "mean", 0.4, 0.02),
        Trait("engaged_rate", 1.0, "mean", 1.0, 0.9),
        trait("recency_days", 1.0, 9.0),
    ],
)
def test_a_name_promises_nothing_that_does_not_hold_of_most(one: Trait) -> None:
    assert name(one, trait("session_count", 0.6, 9.0)) == "Frequent visitors"


def test_who_lately_did_not_buy_may_have_bought_before() -> None:
    lately = Trait("purchase_count_90d", -1.0, "any", 0.02, 0.46)

    assert name(lately, category("device", "iOS")) == "Visitors on iOS"
    assert name(lately) == "Visitors not buying lately"
    assert name(Trait("purchase_count", -2.0, "any", 0.02, 0.46)) == "Visitors without a purchase"


def test_who_did_nothing_for_some_days_is_not_inactive() -> None:
    assert name(Trait("session_count_28d", -1.0, "any", 0.02, 0.46)) == "Inactive visitors"
    assert name(Trait("session_count_7d", -1.0, "any", 0.02, 0.46)) == "Less active visitors"


def test_without_is_said_of_nearly_all_and_not_of_the_median_user() -> None:
    assert name(Trait("purchase_count", -1.0, "any", 0.11, 0.46)) == "Other visitors"
    assert name(trait("purchase_count", -1.0, 0.0)) == "Visitors buying at most once"


def test_what_was_bought_may_have_been_returned() -> None:
    assert name(Trait("revenue_total", -2.0, "any", 0.02, 0.9)) == "Visitors without revenue"


def test_who_is_seldom_engaged_need_not_leave_at_once() -> None:
    assert name(Trait("engaged_rate", -1.0, "mean", 0.4, 0.8)) == "Less engaged visitors"
    assert name(Trait("bounce_rate", 1.0, "mean", 0.6, 0.2)) == "Visitors who often leave at once"


@pytest.mark.parametrize(
    ("one", "of_most", "holds"),
    [
        (Trait("cart_abandonment_rate", 1.2, "mean", 0.6, 0.3), 0.5, "Cart abandoners"),
        (Trait("cart_abandonment_rate", 1.2, "mean", 0.6, 0.3), 0.4, "Other visitors"),
        (Trait("recency_days", 1.2, "median", 40.0, 9.0), 28.0, "Lapsed visitors"),
        (Trait("recency_days", 1.2, "median", 40.0, 9.0), 27.0, "Other visitors"),
        (Trait("session_count", -1.2, "median", 1.0, 5.0), 1.0, "One-time visitors"),
        (Trait("session_count", -1.2, "median", 1.0, 5.0), 2.0, "Occasional visitors"),
        (Trait("duration_median_s", -1.2, "median", 50.0, 90.0), 89.0, "Visitors with short sessions"),
        (Trait("duration_median_s", -1.2, "median", 50.0, 90.0), 90.0, "Other visitors"),
        (Trait("search_count", 1.2, "median", 7.0, 3.0), 4.0, "Visitors who search a lot"),
        (Trait("search_count", 1.2, "median", 7.0, 3.0), 3.0, "Other visitors"),
        (Trait("session_count_28d", 1.2, "median", 2.0, 1.0), 1.0, "Active visitors"),
        (Trait("session_count_90d", 1.2, "median", 2.0, 1.0), 1.0, "Other visitors"),
        (Trait("session_trend_28d", -1.2, "below", 0.7, 0.2), -0.1, "Fading visitors"),
        (Trait("session_trend_28d", -1.2, "below", 0.7, 0.2), 0.0, "Other visitors"),
        (Trait("session_trend_28d", 1.2, "any", 0.7, 0.2), 0.1, "Increasingly active visitors"),
        (Trait("support_visit_count", 1.2, "any", 0.6, 0.1), 1.0, "Support seekers"),
        (Trait("support_visit_count", 1.2, "any", 0.59, 0.1), 0.0, "Other visitors"),
    ],
)
def test_a_name_promises_what_holds_of_sixty_per_cent_of_all_users(one: Trait, of_most: float, holds: str) -> None:
    assert name(replace(one, of_most=of_most)) == holds


def test_who_seldom_came_lately_is_not_a_one_time_visitor() -> None:
    assert name(trait("session_count", -1.0, 1.0)) == "One-time visitors"
    assert name(trait("session_count_28d", -1.0, 1.0)) == "Less active visitors"


def test_who_has_come_for_long_but_stays_away_is_not_loyal() -> None:
    often = [trait("session_count_90d", 0.9, 9.0), trait("tenure_days", 1.0, 300)]

    assert name(*often) == "Loyal frequent visitors"
    assert name(trait("session_count", 0.9, 9.0), often[1]) == "Long-standing frequent visitors"  # or was, long ago
    assert "oyal" not in name(*often, trait("recency_days", 0.6, 20))


COMPARING = {"few", "many", "more", "less", "high", "low", "big", "small"}
WORDS = st.sampled_from(sorted([*FORMS, "session_count_28d", "purchase_count_90d", "own_score"]))


@st.composite
def segments(draw: st.DrawFn) -> list[list[Trait]]:
    """Draw traits, the strongest first and one per feature, of some segments."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        features = draw(st.lists(WORDS, max_size=6, unique=True))
        differences = sorted(draw(st.lists(st.floats(0.2, 3.0), min_size=6, max_size=6)), reverse=True)
        signs = draw(st.lists(st.sampled_from([-1, 1]), min_size=6, max_size=6))
        values = draw(st.lists(st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0, 40.0]), min_size=6, max_size=6))
        statistics = draw(st.lists(st.sampled_from(["median", "any"]), min_size=6, max_size=6))
        parts = zip(features, differences, signs, values, statistics, strict=False)
        found.append([trait(feature, d * sign, v, how) for feature, d, sign, v, how in parts])
    return found


@law(40)
@given(segments(), st.lists(st.sampled_from(["Typical visitors", "frequent buyers", "Inactive visitors"])))
def test_names_differ_and_do_not_contradict_themselves(typical: list[list[Trait]], taken: list[str]) -> None:
    made = [one.name for one in names(typical, [10] * len(typical), taken=taken)]

    assert len({one.casefold() for one in made} | {one.casefold() for one in taken}) == len(made) + len(set(taken))
    for one in made:
        words = one.replace(" and ", " ").lower().split()
        assert all(words.count(word) == 1 or word in COMPARING for word in words)
        assert "," not in one
        assert not {"frequent", "occasional"} <= set(words)
        assert not {"lapsed", "recent"} <= set(words)
        assert not {"new", "long-standing"} <= set(words)
        assert len(one) <= 90


# --- unique ---


def test_two_segments_alike_are_told_apart_by_what_comes_next() -> None:
    often = trait("session_count", 1.0, 9.0)

    made = names([[often], [often, trait("search_count", 0.3)], [often]], [50, 40, 30])
    assert [one.name for one in made] == [
        "Frequent visitors",
        "Frequent visitors who search a lot",
        "Frequent visitors 2",
    ]


def test_the_largest_segment_has_the_first_choice() -> None:
    often = trait("session_count", 1.0, 9.0)

    assert [one.name for one in names([[often], [often]], np.array([10, 20]))] == [
        "Frequent visitors 2",
        "Frequent visitors",
    ]


def test_a_name_given_by_a_person_is_taken_in_any_case() -> None:
    typical = [trait("purchase_count", 2.0), trait("search_count", 1.0)]

    [named] = names([typical], [10], taken=["FREQUENT BUYERS WHO SEARCH A LOT"])
    assert named.name == "Frequent buyers"


# --- stable ---

BUYERS = [trait("purchase_count", 2.0), trait("search_count", 1.0)]
[EARLIER] = names([BUYERS], [10])


def test_a_name_remembers_the_traits_it_was_made_of() -> None:
    assert Named("Frequent buyers who search a lot", tuple(BUYERS)) == EARLIER


def test_a_kept_segment_keeps_its_name_while_each_trait_has_half_its_difference() -> None:
    weaker = [trait("session_count", 3.0, 9.0), trait("purchase_count", 1.0), trait("search_count", 0.5)]

    assert names([weaker], [10])[0].name == "Frequent visitors who search a lot"
    assert names([weaker], [10], {0: EARLIER}) == [EARLIER]


def test_a_name_that_is_no_longer_true_goes() -> None:
    for changed in (
        [trait("purchase_count", 2.0)],
        [trait("purchase_count", 2.0), trait("search_count", 0.49)],
        [trait("purchase_count", 2.0), trait("search_count", -1.0)],
        [trait("purchase_count", 2.0, 1.0), trait("search_count", 1.0)],  # one purchase is not often
    ):
        assert names([changed], [10], {0: EARLIER})[0].name != EARLIER.name


def test_another_window_or_measure_of_the_same_keeps_a_name() -> None:
    now = [trait("purchase_count_90d", 1.5), trait("search_count", 1.0)]

    assert names([now], [10], {0: EARLIER}) == [EARLIER]


def test_a_kept_name_is_not_given_to_a_larger_segment() -> None:
    made = names([BUYERS, BUYERS], [100, 10], {1: EARLIER})

    assert made[1] == EARLIER
    assert made[0].name == "Frequent buyers"


def test_an_earlier_name_that_a_person_has_given_to_another_segment_goes() -> None:
    assert names([BUYERS], [10], {0: EARLIER}, taken=[EARLIER.name])[0].name == "Frequent buyers"


def test_typical_visitors_stay_so_while_nothing_sets_them_apart() -> None:
    [typical] = names([[]], [10])

    assert names([[trait("search_count", 0.4)]], [10], {0: typical}) == [typical]
    assert names([[trait("search_count", 0.6)]], [10], {0: typical})[0].name == "Visitors who search a lot"


def test_a_name_needs_the_attributes_that_it_was_made_of() -> None:
    [named] = names([[category("age_band", "35-55"), trait("session_count", 0.8)]], [100])
    assert "(age band 35-55)" in named.name
    assert needs(named, ["region", "age_band"])
    assert not needs(named, ["age", "plan"])
    assert not needs(named, [])


def test_what_an_older_name_needs_is_known_by_its_form() -> None:
    assert needs(Named("Past buyers (region South)", ()), ["region"])
    assert not needs(Named("Past buyers of the region", ()), ["region"])
