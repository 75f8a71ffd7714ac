import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from models.descriptions import Trait, flags, summarise, traits


def told(users: pd.DataFrame, of_users: list[int] | NDArray[np.intp]) -> list[list[str]]:
    """Say what is typical of each segment."""
    found = traits(users, np.asarray(of_users, dtype=np.intp), max(of_users) + 1)
    return [[trait.in_words() for trait in of_one] for of_one in found]


def features(of_one: list[Trait]) -> list[str]:
    return [trait.feature for trait in of_one]


HALVES = [0] * 20 + [1] * 20


# --- traits ---


def test_a_difference_is_in_standard_deviations_between_a_segment_and_everyone_else() -> None:
    users = pd.DataFrame({"night_session_share": [1.0] * 20 + [0.0] * 20})

    [[trait], [other]] = traits(users, np.array(HALVES), 2)
    assert trait == Trait("night_session_share", 2.0, "mean", 1.0, 0.5, of_most=1.0)
    assert other.difference == pytest.approx(-2.0)


def test_the_strongest_trait_comes_first() -> None:
    users = pd.DataFrame(
        {
            "session_count": [*range(2, 22), *range(1, 21)],
            "pages_per_session": [9.0, 8.0] * 10 + [1.0, 2.0] * 10,
            "night_session_share": [0.9, 0.5, 0.1, 0.2] * 5 + [0.5, 0.1, 0.2, 0.0] * 5,
        },
        dtype="float64",
    )

    [first, _] = traits(users, np.array(HALVES), 2)
    assert features(first) == ["pages_per_session", "night_session_share"]


def test_one_whale_does_not_change_what_is_typical() -> None:
    revenue = [20.0, 30.0] * 500 + [200.0, 300.0] * 500
    usual = pd.DataFrame({"revenue_total": revenue})
    with_whale = pd.DataFrame({"revenue_total": [1e12, *revenue[1:]]})
    of_users = np.repeat([0, 1], 1000)

    [_, [trait]], [_, [same]] = (traits(users, of_users, 2) for users in (usual, with_whale))
    assert same.difference == pytest.approx(trait.difference, rel=0.1)
    assert (same.statistic, same.value) == ("median", 250)


def test_where_few_have_any_their_share_tells() -> None:
    users = pd.DataFrame({"support_visit_count": [1.0, 2.0, 1.0, 0.0] * 5 + [0.0] * 60})

    [supported, others] = told(users, [0] * 20 + [1] * 60)
    assert supported == ["support visits: 1 (all users: 0)"]
    assert others == ["sought support: 0 % (all users: 19 %)"]


def test_a_share_is_told_by_its_mean_since_half_of_all_are_0_or_1() -> None:
    users = pd.DataFrame({"cart_abandonment_rate": [1.0] * 27 + [0.0] * 23 + [0.0] * 27 + [1.0] * 3 + [np.nan] * 20})

    [[first, *_], _] = told(users, [0] * 50 + [1] * 50)
    assert first == "share of carts that were abandoned, mean of those who filled a cart: 54 % (all users: 38 %)"


def test_nulls_count_neither_here_nor_there() -> None:
    users = pd.DataFrame({"revenue_per_purchase": [90.0, 100.0, np.nan] * 10 + [9.0, 10.0, np.nan] * 10})

    [[trait], _] = traits(users, np.array([0] * 30 + [1] * 30), 2)
    assert (trait.value, trait.overall) == (95.0, 50.0)


@pytest.mark.parametrize(("applies", "count"), [(11, 0), (12, 1)])
def test_what_applies_to_less_than_sixty_per_cent_of_a_segment_is_not_typical_of_it(applies: int, count: int) -> None:
    users = pd.DataFrame({"revenue_per_purchase": [90.0] * applies + [np.nan] * (20 - applies) + [8.0, 9.0] * 10})

    assert len(told(users, HALVES)[0]) == count


def test_a_number_says_whom_it_is_of_where_it_does_not_apply_to_all() -> None:
    some = pd.DataFrame({"purchase_recency_days": [90.0] * 15 + [np.nan] * 5 + [8.0, 9.0] * 10})
    everyone = some.fillna(70.0)

    assert told(some, HALVES)[0] == ["days since the last purchase among those who bought: 90 (all users: 9)"]
    assert told(everyone, HALVES)[0] == ["days since the last purchase: 90 (all users: 40)"]


def test_a_trend_is_told_by_how_many_came_more_often() -> None:
    users = pd.DataFrame(
        {"session_trend_28d": [0.9998] * 14 + [0.0] * 6 + [-0.5] * 12 + [np.nan] * 8, "tenure_days": 56.0}
    )

    [[rising], [falling]] = traits(users, np.array(HALVES), 2)
    assert rising.clause() == "70 % came more often in the last 28 days than in the 28 before"
    assert falling.clause() == "60 % came less often in the last 28 days than in the 28 before"
    assert (falling.value, falling.overall, falling.of_most) == (0.6, 0.3, -0.5)


def test_no_trend_is_told_of_a_history_of_less_than_56_days() -> None:
    users = pd.DataFrame({"session_trend_28d": [1.0] * 20 + [-1.0] * 20, "tenure_days": 55.9})

    assert told(users, HALVES) == [[], []]


def test_who_is_new_has_no_trend() -> None:
    users = pd.DataFrame(
        {
            "session_trend_28d": [-1.0] * 12 + [0.0] * 2 + [1.0] * 26,
            "tenure_days": [60.0] * 14 + [20.0] * 6 + [90.0] * 20,
        }
    )

    [few, _] = told(users, HALVES)
    assert few[0] == (
        "came less often in the last 28 days than in the 28 before among those known for 56 days: "
        "86 % (all users: 35 %)"
    )


def test_hours_and_weekdays_are_habits_of_those_with_three_sessions() -> None:
    once = pd.DataFrame({"weekend_session_share": [0.0] * 20 + [1.0] * 20, "session_count": [1.0, 2.0] * 20})
    often = once.assign(session_count=3.0)

    assert told(once, HALVES) == [[], []]
    assert told(often, HALVES)[0] == ["share of sessions at the weekend, mean of users: 0 % (all users: 50 %)"]


def test_a_window_longer_than_the_history_is_not_told() -> None:
    users = pd.DataFrame({"purchase_count_90d": [3.0, 4.0] * 10 + [0.0, 1.0] * 10, "tenure_days": 30.0})

    assert told(users, HALVES) == [[], []]
    assert told(users.assign(tenure_days=90.0), HALVES)[0] == ["purchases in the last 90 days: 3.5 (all users: 2)"]


def test_all_and_none_are_exact() -> None:
    users = pd.DataFrame({"cart_count": [1.0] * 299 + [0.0] + [0.0] * 299 + [1.0]})

    [[one], [none]] = traits(users, np.repeat([0, 1], 300), 2)
    assert one.clause() == "1 cart filled"
    assert none.clause() == "0.3 % filled a cart"
    assert Trait("cart_count", 1.0, "any", 0.996, 0.5).clause() == "99.6 % filled a cart"
    assert Trait("cart_count", 1.0, "any", 1.0, 0.5).clause() == "all filled a cart"


def test_infinite_values_are_no_values() -> None:
    users = pd.DataFrame({"session_count": [np.inf, 9.0, 9.0] * 10 + [1.0, 2.0, 2.0] * 10})

    [[trait], _] = traits(users, np.array([0] * 30 + [1] * 30), 2)
    assert (trait.value, trait.overall) == (9.0, 2.0)


@pytest.mark.parametrize("value", [3.0, 0.0, np.nan])
def test_a_constant_feature_is_typical_of_nobody(value: float) -> None:
    assert told(pd.DataFrame({"session_count": [value] * 40}), HALVES) == [[], []]


def test_a_difference_that_may_be_chance_is_not_told() -> None:
    values = np.random.default_rng(1).normal(size=(300, 20))
    users = pd.DataFrame(values, columns=[f"score_{i}" for i in range(20)])

    assert sum(len(of_one) for of_one in told(users, np.repeat([0, 1, 2], 100))) <= 3


def test_a_single_user_is_told_only_by_what_is_extreme() -> None:
    users = pd.DataFrame({"session_count": [50.0, *[1.0, 2.0] * 20], "search_count": [2.0, *[1.0, 2.0] * 20]})

    assert told(users, [0] + [1] * 40)[0] == ["sessions: 50 (all users: 2)"]


def test_of_all_users_nothing_is_typical() -> None:
    assert told(pd.DataFrame({"session_count": [1.0, 2.0, 3.0]}), [0, 0, 0]) == [[]]


def test_a_segment_without_users_has_no_traits() -> None:
    users = pd.DataFrame({"session_count": [9.0] * 20 + [1.0] * 20, "device": ["mobile", "desktop"] * 20})

    assert traits(users, np.array(HALVES), 3)[2] == []


def test_of_a_quantity_only_the_most_telling_window_is_told() -> None:
    users = pd.DataFrame(
        {
            "session_count_7d": [2.0, 1.0] * 10 + [1.0, 2.0, 0.0, 1.0] * 5,
            "session_count_90d": [30.0, 40.0] * 10 + [3.0, 4.0] * 10,
            "session_count": [30.0, 40.0] * 10 + [3.0, 40.0] * 10,
        }
    )

    assert features(traits(users, np.array(HALVES), 2)[0]) == ["session_count_90d"]


def test_of_features_that_correlate_only_the_most_telling_is_told() -> None:
    count = np.array([*range(21, 41), *range(1, 21)], dtype=float)
    users = pd.DataFrame({"cart_count": count, "pages_per_session": 3 * count, "score": 40 - count})

    assert [features(of_one) for of_one in traits(users, np.array(HALVES), 2)] == [["cart_count"]] * 2


def test_no_more_than_twelve_traits_are_told() -> None:
    rng = np.random.default_rng(1)
    users = pd.DataFrame({f"score_{i}": rng.normal(size=2000) + np.repeat([0.7, 0], 1000) for i in range(20)})

    assert len(traits(users, np.repeat([0, 1], 1000), 2)[0]) == 12


# --- text columns ---


def test_a_value_is_typical_by_its_share_here_and_over_all() -> None:
    users = pd.DataFrame({"device": ["mobile"] * 18 + ["desktop"] * 2 + ["mobile"] * 6 + ["desktop"] * 14})

    [[trait], _] = traits(users, np.array(HALVES), 2)
    assert trait == Trait("device", trait.difference, "share", 0.9, 0.6, "mobile")
    assert trait.difference == pytest.approx((0.9 - 0.3) / np.sqrt(0.6 * 0.4))
    assert trait.in_words() == "on mobile: 90 % (all users: 60 %)"


def test_only_the_most_telling_value_of_a_column_is_told() -> None:
    users = pd.DataFrame({"region": ["north"] * 15 + ["south"] * 5 + ["west"] * 10 + ["east"] * 10})

    assert told(users, HALVES)[0] == ["region north: 75 % (all users: 38 %)"]


def test_unknown_is_not_typical() -> None:
    users = pd.DataFrame({"plan": [None] * 15 + ["pro"] * 5 + ["pro", "free"] * 10})

    assert told(users, HALVES)[0] == []


def test_a_share_is_of_all_users_also_of_those_of_whom_nothing_is_known() -> None:
    users = pd.DataFrame({"plan": ["pro"] * 14 + [None] * 6 + ["free"] * 16 + ["pro"] * 4})

    assert told(users, HALVES)[0] == ["plan pro: 70 % (all users: 45 %)"]


def test_that_users_do_not_have_a_value_tells_only_where_nearly_all_are_known() -> None:
    of_segment = ["France", "Spain", "Italy", "Malta", "Peru"] * 3
    others = ["United Kingdom"] * 79 + ["Spain"]

    assert told(pd.DataFrame({"country": [*of_segment, *[None] * 5, *others]}), [0] * 20 + [1] * 80)[0] == []


def test_what_nearly_everyone_else_has_is_told_where_a_segment_has_it_not() -> None:
    countries = ["France", "Spain", "Italy", "Malta"] * 5 + ["Spain"] + ["United Kingdom"] * 79

    assert told(pd.DataFrame({"country": countries}), [0] * 20 + [1] * 80)[0] == [
        "from United Kingdom: 0 % (all users: 79 %)"
    ]


def test_a_value_that_only_few_of_a_segment_have_is_not_typical_of_it() -> None:
    users = pd.DataFrame({"country": ["Iceland"] * 5 + ["France", "Spain", "Italy"] * 5 + ["France", "Spain"] * 90})

    assert not any("Iceland" in words for words in told(users, [0] * 20 + [1] * 180)[0])


@pytest.mark.parametrize("values", [["mobile"] * 40, [None] * 40, [f"u{i}" for i in range(40)]])
def test_a_column_of_one_value_or_of_one_for_each_user_tells_nothing(values: list[str | None]) -> None:
    assert told(pd.DataFrame({"device": pd.Series(values, dtype=object)}), HALVES) == [[], []]


def test_a_long_value_is_cut_to_one_line() -> None:
    users = pd.DataFrame({"survey": ["very\n" * 100_000] * 20 + ["short"] * 20})

    [[words], _] = told(users, HALVES)
    assert words == "survey very very very very very very very very…: 100 % (all users: 50 %)"


def test_control_characters_are_left_out() -> None:
    users = pd.DataFrame({"plan": ["\x1b[31mpro\x00"] * 20 + ["free"] * 20})

    assert told(users, HALVES)[0] == ["plan [31mpro: 100 % (all users: 50 %)"]


def test_users_and_instants_are_no_traits() -> None:
    users = pd.DataFrame({"user_id": ["a"] * 20 + ["b"] * 20, "as_of": pd.Timestamp("2024-01-01", tz="UTC")})

    assert told(users, HALVES) == [[], []]


# --- words ---


@pytest.mark.parametrize(
    ("trait", "words"),
    [
        (Trait("recency_days", 1.0, "median", 64.2, 12.1), "last visit 64 days ago (all users: 12 days)"),
        (Trait("session_count_28d", 1.0, "median", 4.0, 1.0), "came 4 times in the last 28 days (all users: 1)"),
        (Trait("purchase_count_90d", -1.0, "any", 0.0, 0.46), "none bought in the last 90 days (all users: 46 %)"),
        (Trait("cart_count", 1.0, "any", 0.9, 0.5), "90 % filled a cart (all users: 50 %)"),
        (Trait("bounce_rate", 1.0, "mean", 0.4, 0.1), "40 % of sessions bounced on average (all users: 10 %)"),
        (Trait("bounce_rate", 1.0, "mean", 1.0, 0.1), "all sessions bounced (all users: 10 %)"),
        (Trait("pages_per_session", 1.0, "median", 4.5, 3.0), "4.5 pages per session typically (all users: 3)"),
        (Trait("duration_mean_s", 1.0, "median", 60.0, 30.0), "1 min 0 s per session typically (all users: 30 s)"),
        (Trait("duration_median_s", 1.0, "median", 60.0, 30.0), "typical session of 1 min 0 s (all users: 30 s)"),
        (Trait("recency_days", -1.0, "median", 0.4, 1.2), "last visit less than a day ago (all users: 1 day)"),
        (
            Trait("revenue_per_purchase", 1.0, "median", 90.0, 40.0, among="those who bought"),
            "revenue of 90 per purchase typically among those who bought (all users: 40)",
        ),
        (Trait("tenure_days", 1.0, "mean", 878.0, 754.0), "first visit 878 days ago on average (all users: 754 days)"),
        (
            Trait("session_trend_28d", -1.0, "below", 0.8, 0.4, among="those known for 56 days"),
            "80 % came less often in the last 28 days than in the 28 before among those known for 56 days "
            "(all users: 40 %)",
        ),
        (Trait("country", 1.0, "share", 0.8, 0.1, "France"), "80 % from France (all users: 10 %)"),
        (Trait("age_band", 1.0, "share", 0.8, 0.1, "55+"), "80 % with age band 55+ (all users: 10 %)"),
        (Trait("loyalty_score", 1.0, "median", 0.8, 0.1), "loyalty score, median of users: 0.8 (all users: 0.1)"),
    ],
)
def test_a_summary_says_values_as_people_would(trait: Trait, words: str) -> None:
    assert summarise([trait]) == words[0].upper() + words[1:]


def test_a_summary_begins_with_what_the_name_was_made_of() -> None:
    typical = [
        Trait("session_count_90d", 2.0, "median", 9.0, 1.0),
        Trait("search_count", 1.5, "median", 8.0, 2.0),
        Trait("item_count", 1.2, "median", 30.0, 4.0),
        Trait("device", 1.0, "share", 0.8, 0.4, "iOS"),
    ]

    earlier = Trait("device", 0.9, "share", 0.7, 0.4, "iOS")
    assert summarise(typical, [earlier]) == (
        "80 % on iOS (all users: 40 %), came 9 times in the last 90 days (1), 8 searches (2)"
    )


def test_a_summary_has_two_weak_traits_at_most() -> None:
    weak = [Trait(f"score_{i}", 0.4, "median", 3.0, 1.0) for i in range(3)]
    strong = Trait("session_count", 0.5, "median", 9.0, 1.0)

    assert summarise([strong, *weak]) == "Came 9 times (all users: 1), score 0, median of users: 3 (1)"
    assert summarise([strong, strong, *weak]) == "Came 9 times (all users: 1), came 9 times (1)"


def test_of_a_segment_without_traits_nothing_is_claimed() -> None:
    assert summarise([]) == "No clear difference from all users"
    assert summarise([], others="everyone else") == "No clear difference from everyone else"


@pytest.mark.parametrize(
    ("older", "words"),
    [
        (Trait("bounce_rate", 1.0, "median", 1.0, 0.0), "share of sessions that bounced, median of users: 100 %"),
        (Trait("session_trend_28d", 1.0, "mean", 0.9991, 0.2), "trend of sessions, mean of users: 1.0"),
        (Trait("session_trend_28d", 1.0, "median", 1.0, 0.2), "trend of sessions, median of users: 1"),
    ],
)  # fmt: skip
def test_a_trait_of_an_older_model_is_read_as_the_statistic_that_it_is(older: Trait, words: str) -> None:
    assert older.clause() == words


# --- flags ---

STRONG = [Trait("session_count", 0.5, "median", 9.0, 1.0)]


def test_a_segment_of_use_has_no_flag() -> None:
    assert flags(10, 0.005, STRONG) == flags(600, 0.6, STRONG) == ()


def test_a_segment_of_too_few_users_or_too_small_a_share_is_flagged() -> None:
    assert flags(9, 0.3, STRONG) == ("too small for a campaign: 9 users, 30 % of all",)
    assert flags(1, 0.3, STRONG) == ("too small for a campaign: 1 user, 30 % of all",)
    assert flags(4_000, 0.004, STRONG) == ("too small for a campaign: 4,000 users, 0.4 % of all",)


def test_a_segment_of_most_users_is_flagged() -> None:
    assert flags(700, 0.7, STRONG) == ("too broad to say much: 700 users, 70 % of all",)


def test_a_segment_that_differs_in_nothing_by_a_medium_effect_is_flagged() -> None:
    weak = [Trait("session_count", -0.49, "median", 1.0, 2.0)]

    assert flags(100, 0.1, weak) == (
        "nothing distinctive: no difference from all others of at least medium size was found",
    )
