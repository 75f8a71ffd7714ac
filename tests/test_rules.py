import pandas as pd
import pytest

from models.rules import RULES, match

SNAPSHOT_FEATURES = [
    "recency_days",
    "tenure_days",
    "session_count",
    "session_count_28d",
    "session_count_90d",
    "search_count",
    "support_visit_count_28d",
    "cart_count",
    "cart_abandoned_recency_days",
    "purchase_count_90d",
    "purchase_recency_days",
]

MET = [
    ("cart_abandoners", {"cart_abandoned_recency_days": 28}),
    ("cart_abandoners", {"cart_abandoned_recency_days": 3, "purchase_recency_days": 10}),
    ("support_seekers", {"support_visit_count_28d": 2}),
    ("frequent_visitors", {"session_count_28d": 8}),
    ("frequent_buyers", {"purchase_count_90d": 3}),
    ("one_time_visitors", {"session_count": 1, "recency_days": 7}),
    ("new_visitors", {"tenure_days": 6.9}),
    ("researchers", {"search_count": 5, "cart_count": 0}),
    ("at_risk", {"session_count_90d": 8, "recency_days": 15}),
    ("dormant", {"recency_days": 91}),
]

NOT_MET = [
    ("cart_abandoners", {"cart_abandoned_recency_days": 29}),
    ("cart_abandoners", {"cart_abandoned_recency_days": 10, "purchase_recency_days": 3}),
    ("support_seekers", {"support_visit_count_28d": 1}),
    ("frequent_visitors", {"session_count_28d": 7}),
    ("frequent_buyers", {"purchase_count_90d": 2}),
    ("one_time_visitors", {"session_count": 1, "recency_days": 6}),
    ("one_time_visitors", {"session_count": 2, "recency_days": 7}),
    ("new_visitors", {"tenure_days": 7}),
    ("researchers", {"search_count": 4, "cart_count": 0}),
    ("researchers", {"search_count": 5, "cart_count": 1}),
    ("at_risk", {"session_count_90d": 8, "recency_days": 14}),
    ("at_risk", {"session_count_90d": 7, "recency_days": 15}),
    ("dormant", {"recency_days": 90}),
]


def snapshot(*users: dict[str, float]) -> pd.DataFrame:
    rows = pd.DataFrame(users, columns=SNAPSHOT_FEATURES, dtype="float64")
    rows.insert(0, "user_id", [f"u{i}" for i in range(len(users))])
    return rows


@pytest.mark.parametrize(("rule", "user"), MET)
def test_a_rule_is_met(rule: str, user: dict[str, float]) -> None:
    assert rule in match(snapshot(user))["u0"]


@pytest.mark.parametrize(("rule", "user"), NOT_MET)
def test_a_rule_is_not_met(rule: str, user: dict[str, float]) -> None:
    assert rule not in match(snapshot(user))["u0"]


def test_every_rule_is_specified_above() -> None:
    assert {rule for rule, _ in MET} == {rule for rule, _ in NOT_MET} == set(RULES)


def test_what_does_not_apply_to_a_user_meets_no_rule() -> None:
    assert match(snapshot({}))["u0"] == []


def test_a_user_has_the_sorted_names_of_all_rules_met() -> None:
    matched = match(
        snapshot({"search_count": 9, "cart_count": 0, "recency_days": 100, "session_count": 1}, {"tenure_days": 1})
    )

    assert matched.to_dict() == {
        "u0": ["dormant", "one_time_visitors", "researchers"],
        "u1": ["new_visitors"],
    }


def test_a_rule_on_a_window_that_the_snapshot_does_not_have_is_left_out() -> None:
    other_windows = snapshot({"session_count_28d": 20, "recency_days": 91}).rename(
        columns={"session_count_28d": "session_count_14d"}
    )

    assert match(other_windows)["u0"] == ["dormant"]
