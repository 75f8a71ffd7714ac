import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import law
from numpy.typing import NDArray

from models.segment_rules import SAMPLE_MAX, SegmentRule, find

Mask = NDArray[np.bool_]


def matched(users: pd.DataFrame, rule: SegmentRule) -> Mask:
    """Evaluate a rule's text by another program: of NaN as null, so that a comparison with it is false."""
    nulls = users.astype(object).where(users.notna(), None)
    typed = ", ".join(
        f"{name}::{'DOUBLE' if users[name].dtype == np.float64 else 'VARCHAR'} AS {name}" for name in users
    )
    with duckdb.connect() as connection:
        connection.register("nulls", nulls)
        found = connection.sql(f"SELECT coalesce({rule.text}, false) AS met FROM (SELECT {typed} FROM nulls)")
        return found.df()["met"].to_numpy(dtype=bool)


def rule_for(users: pd.DataFrame, member: Mask) -> SegmentRule:
    """Return the rule of the members, checked: its figures are what evaluating its text gives."""
    [_, rule] = find(users, member.astype(np.intp), 2)
    assert rule is not None
    met = matched(users, rule)
    assert rule.coverage == met.mean()
    assert rule.recall == (met & member).sum() / member.sum()
    assert rule.precision == (met & member).sum() / max(1, met.sum())
    return rule


def numbers(count: int = 200, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "session_count": rng.integers(0, 30, count).astype(float),
            "recency_days": rng.exponential(40, count),
            "bounce_rate": rng.random(count),
        }
    )


# --- texts ---


def test_a_threshold_of_counts_is_a_whole_number() -> None:
    users = numbers()

    assert rule_for(users, (users["session_count"] > 12).to_numpy()).text == "session_count >= 13"
    assert rule_for(users, (users["session_count"] <= 12).to_numpy()).text == "session_count <= 12"


def test_counts_from_one_to_another_are_said_with_between() -> None:
    users = numbers(2000)

    assert rule_for(users, users["session_count"].between(5, 12).to_numpy()).text == "session_count between 5 and 12"
    assert rule_for(users, (users["session_count"] == 5).to_numpy()).text == "session_count = 5"


def test_thresholds_have_few_digits_and_still_divide() -> None:
    users = numbers(10_000)

    rule = rule_for(users, (users["recency_days"] > 31.41592).to_numpy())
    assert rule.text == "recency_days > 31"
    assert rule.precision > 0.98


def test_a_third_digit_is_taken_where_two_would_move_many() -> None:
    users = pd.DataFrame({"revenue_total": np.linspace(1000, 1100, 1000)})

    assert rule_for(users, (users["revenue_total"] > 1034).to_numpy()).text == "revenue_total > 1030"


def test_conditions_are_joined_by_and() -> None:
    users = numbers(1000)
    member = ((users["session_count"] >= 20) & (users["bounce_rate"] <= 0.3)).to_numpy()

    rule = rule_for(users, member)
    assert set(rule.text.split(" and ")) == {"session_count >= 20", "bounce_rate <= 0.3"}


def test_parts_are_joined_by_or() -> None:
    users = numbers(1000)
    member = ((users["session_count"] >= 25) | (users["bounce_rate"] > 0.9)).to_numpy()

    rule = rule_for(users, member)
    assert " or " in rule.text
    assert (rule.precision, rule.recall) > (0.95, 0.95)


def test_a_rule_has_at_most_three_parts() -> None:
    users = numbers(2000)
    member = (users["session_count"] % 5 == 0).to_numpy()

    assert rule_for(users, member).text.count(" or ") <= 2


def test_a_condition_that_adds_nothing_is_left_out() -> None:
    users = numbers(1000)
    member = ((users["session_count"] > 12) & ~((users["bounce_rate"] < 0.1) & (users.index % 10 == 0))).to_numpy()

    assert rule_for(users, member).text == "session_count >= 13"


# --- nulls ---


def with_nulls(count: int = 600) -> pd.DataFrame:
    users = numbers(count)
    users.loc[::3, "recency_days"] = np.nan
    return users


def test_nulls_that_belong_are_named() -> None:
    users = with_nulls()

    rule = rule_for(users, (users["recency_days"].isna() | (users["recency_days"] <= 20)).to_numpy())
    assert rule.text == "(recency_days is null or recency_days <= 20)"
    assert (rule.precision, rule.recall) > (0.99, 0.99)


def test_nulls_that_do_not_belong_need_no_words() -> None:
    users = with_nulls()

    assert rule_for(users, (users["recency_days"] <= 20).to_numpy()).text == "recency_days <= 20"
    assert rule_for(users, (users["recency_days"] > 20).to_numpy()).text == "recency_days > 20"


def test_a_segment_of_nulls_is_that() -> None:
    users = with_nulls()

    assert rule_for(users, users["recency_days"].isna().to_numpy()).text == "recency_days is null"
    assert rule_for(users, users["recency_days"].notna().to_numpy()).text == "recency_days is not null"


def test_a_column_without_nulls_is_not_asked_for_them() -> None:
    users = numbers()

    assert "null" not in rule_for(users, (users["bounce_rate"] <= 0.4).to_numpy()).text


# --- text columns ---


def test_a_value_may_be_a_condition() -> None:
    users = numbers().assign(device=pd.Series(["mobile", "desktop", None, "tablet"] * 50, dtype="str"))

    assert rule_for(users, (users["device"] == "mobile").to_numpy()).text == "device = 'mobile'"
    assert rule_for(users, (users["device"] != "mobile").to_numpy()).text == "(device is null or device != 'mobile')"


def test_a_value_that_cannot_be_written_is_no_condition() -> None:
    users = numbers().assign(survey=["it's", "x" * 41, 'say "no"', "two\nlines"] * 50)

    assert "survey" not in rule_for(users, (users["survey"] == "it's").to_numpy()).text


def test_a_column_whose_name_cannot_be_written_is_left_out() -> None:
    users = numbers().rename(columns={"session_count": "Session; drop"})

    [_, rule] = find(users, (users["Session; drop"] > 12).to_numpy().astype(np.intp), 2)
    assert rule is None or "drop" not in rule.text


# --- how good ---


@law(8)
@given(st.integers(0, 10_000), st.floats(0.05, 0.6), st.integers(2, 60))
def test_figures_are_what_evaluating_the_text_gives(seed: int, null_share: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    users = numbers(count, seed).assign(
        revenue_total=np.round(rng.lognormal(4, 2, count), 2), device=rng.choice(["mobile", "desktop"], count)
    )
    users = users.mask(rng.random(users.shape) < null_share)
    of_users = rng.integers(3, size=count)

    for i, rule in enumerate(find(users, of_users, 3)):
        if rule is not None:
            met, member = matched(users, rule), of_users == i
            assert rule.coverage == met.mean()
            assert rule.recall == (met & member).sum() / member.sum()
            assert rule.precision == (met & member).sum() / max(1, met.sum())


def test_noise_has_a_poor_rule_and_says_so() -> None:
    users = numbers(1000)
    rule = rule_for(users, np.random.default_rng(2).random(1000) < 0.3)

    assert rule.precision < 0.6


def test_the_same_users_give_the_same_rule() -> None:
    users = numbers(500)
    of_users = (users["session_count"] // 10).to_numpy().astype(np.intp)

    assert find(users, of_users, 3) == find(users, of_users, 3)


def test_more_users_than_the_sample_are_all_measured() -> None:
    users = pd.DataFrame({"session_count": np.arange(2.0 * SAMPLE_MAX)})
    member = (users["session_count"] > SAMPLE_MAX).to_numpy()
    [_, rule] = find(users, member.astype(np.intp), 2)

    assert rule is not None
    assert rule.sample_size == SAMPLE_MAX
    assert rule.coverage * len(users) == pytest.approx((users["session_count"] > SAMPLE_MAX).sum(), rel=0.05)


def test_infinite_values_take_part() -> None:
    users = numbers().assign(recency_days=lambda rows: rows["recency_days"].where(rows["session_count"] <= 12, np.inf))

    rule = rule_for(users, (users["session_count"] > 12).to_numpy())
    assert (rule.precision, rule.recall) == (1, 1)


def test_an_infinite_value_is_not_null() -> None:
    users = numbers(300)
    users.loc[::3, "session_count"] = np.nan
    users.loc[1::3, "session_count"] = np.inf

    assert rule_for(users, users["session_count"].isna().to_numpy()).text == "session_count is null"


# --- nothing to tell by ---


@pytest.mark.parametrize(
    "users",
    [
        pd.DataFrame({"session_count": [3.0] * 20}),
        pd.DataFrame({"session_count": [np.nan] * 20}),
        pd.DataFrame({"user_id": [f"u{i}" for i in range(20)]}),
    ],
)
def test_users_who_do_not_differ_have_no_rule(users: pd.DataFrame) -> None:
    assert find(users, np.array([0, 1] * 10), 2) == [None, None]


def test_all_users_and_no_users_have_no_rule() -> None:
    assert find(numbers(20), np.zeros(20, dtype=np.intp), 2) == [None, None]


def test_one_user_has_no_rule() -> None:
    assert find(numbers(1), np.array([0]), 1) == [None]
