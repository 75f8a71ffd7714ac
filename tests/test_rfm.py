"""RFM: grades by lines that a training draws, the groups of the trade, and the customers who spend most."""

from itertools import product
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import rfm
from models.conditions import ConditionError, holds, parse
from models.rfm import GROUPS, Lines, Scale
from models.rules import NO_LINES, SHIPPED, Rule, RulesSettings, match, prepare
from models.staying import staying_days

FEATURES = (
    *("recency_days", "session_count", "active_day_count"),
    *("purchase_recency_days", "purchase_count", "revenue_total"),
)
LINES = Lines(
    Scale("purchase_recency_days", (60.0, 20.0), (80.0, 60.0, 40.0, 20.0), falling=True),
    Scale("purchase_count", (2.0, 4.0), (2.0, 3.0, 4.0, 5.0)),
    Scale("revenue_total", (10.0, 20.0), (10.0, 20.0, 30.0, 40.0)),
    (100.0, 500.0, 900.0),
)
RULES = [rule for rule in SHIPPED if rfm.is_about(parse(rule.condition))]


def buyers(days: list[float], counts: list[float], revenue: list[float]) -> pd.DataFrame:
    """Return users who bought, and one who did not."""
    rows = [
        {"purchase_recency_days": r, "purchase_count": f, "revenue_total": m}
        for r, f, m in zip(days, counts, revenue, strict=True)
    ]
    frame = pd.DataFrame([*rows, {"purchase_count": 0, "revenue_total": 0}], columns=list(FEATURES), dtype="float64")
    frame = frame.fillna({"recency_days": 1, "session_count": 1, "active_day_count": 1})
    frame.insert(0, "user_id", [f"u{i}" for i in range(len(frame))])
    return frame


def fifths(values: list[float]) -> tuple[float | None, ...]:
    """Return the bounds of the grades of frequency."""
    lines = rfm.fit(buyers([1.0] * len(values), values, [1.0] * len(values)))
    assert lines is not None
    return lines.frequency.fifths


# --- the lines ---


def test_without_ties_the_lines_are_the_quantiles() -> None:
    assert fifths([float(n) for n in range(1, 101)]) == (21, 41, 61, 81)


def test_most_who_bought_once_have_one_grade_and_the_others_share_the_rest() -> None:
    assert fifths([1.0] * 70 + [2.0] * 10 + [3.0] * 8 + [4.0] * 6 + [5.0] * 6) == (2, 3, 4, 5)


def test_a_grade_takes_whole_values_as_near_to_its_share_as_it_gets() -> None:
    assert fifths([1.0] * 15 + [2.0] * 60 + [3.0] * 25)[:2] == (2, 3)


def test_where_nobody_bought_twice_all_have_the_lowest_grade_of_frequency() -> None:
    assert fifths([1.0] * 50) == (None, None, None, None)


def test_fewer_days_are_a_higher_grade() -> None:
    days = [float(n) for n in range(1, 11)]
    lines = rfm.fit(buyers(days, [1.0] * 10, [1.0] * 10))
    assert lines is not None
    assert lines.recency == Scale("purchase_recency_days", (7.0, 4.0), (8.0, 6.0, 4.0, 2.0), falling=True)


@given(st.lists(st.integers(-3, 12).map(float), min_size=1, max_size=60))
def test_equal_values_have_equal_grades_and_more_is_never_less(values: list[float]) -> None:
    users = buyers([1.0] * len(values), [1.0] * len(values), values)
    lines = rfm.fit(users)
    assert lines is not None
    found = rfm.grade(lines, users).iloc[:-1]
    by_value = pd.Series(found["rfm_5"].str[4].astype(int).to_numpy(), values)
    assert by_value.groupby(level=0).nunique().max() == 1
    assert by_value.sort_index().is_monotonic_increasing
    assert by_value.min() == 1


@pytest.mark.parametrize(
    ("revenue", "share", "expected"),
    [
        ([float(n) for n in range(1, 101)], 0, 81),
        ([float(n) for n in range(1, 101)], 2, 100),
        ([9.0] * 100, 0, None),  # all or nobody: nobody is nearer to a fifth
        ([9.0] * 15 + [1.0] * 85, 0, 9),
        ([0.0] * 49 + [5.0], 2, 5),
        ([0.0] * 48 + [5.0], 2, None),  # a hundredth of 49 is nearer to none than to one
        ([0.0] * 10, 0, None),
        ([-5.0] * 95 + [3.0] * 5, 0, 3),
    ],
)
def test_the_top_customers_are_as_near_to_their_share_as_whole_values_allow(
    revenue: list[float], share: int, expected: float | None
) -> None:
    lines = rfm.fit(buyers([1.0] * len(revenue), [1.0] * len(revenue), revenue))
    assert lines is not None
    assert lines.top[share] == expected


def test_without_purchases_visits_are_graded() -> None:
    users = pd.DataFrame({name: [0.0, 0.0] for name in FEATURES}).assign(
        purchase_recency_days=np.nan, recency_days=[1.0, 9.0], session_count=[7.0, 1.0], active_day_count=[3.0, 1.0]
    )
    lines = rfm.fit(users)
    assert lines is not None
    assert [scale.feature for scale in lines.scales] == ["recency_days", "session_count", "active_day_count"]
    assert lines.top == (None, None, None)
    assert rfm.grade(lines, users)["rfm_3"].tolist() == ["2-2-2", "1-1-1"]


def test_where_purchases_have_no_revenue_active_days_stand_for_money() -> None:
    lines = rfm.fit(buyers([1.0, 2.0], [1.0, 2.0], [0.0, 0.0]))
    assert lines is not None
    assert lines.money.feature == "active_day_count"


def test_of_nobody_no_lines_are_drawn() -> None:
    assert rfm.fit(buyers([], [], []).iloc[:0]) is None


def test_lines_come_back_from_json_as_they_were() -> None:
    assert Lines.from_dict(LINES.to_dict()) == LINES
    assert rfm.lines_of({}) is None


# --- grades ---


def test_grades_are_of_recency_frequency_and_money_and_null_of_who_never_bought() -> None:
    users = buyers([20.0, 81.0, 60.0], [5.0, 1.0, 4.0], [39.9, -3.0, 20.0])
    found = rfm.grade(LINES, users)
    assert found["rfm_5"].tolist()[:3] == ["5-5-4", "1-1-1", "3-4-3"]
    assert found["rfm_3"].tolist()[:3] == ["3-3-3", "1-1-1", "2-3-3"]
    assert found.iloc[3].isna().all()


# --- conditions ---


def everyone() -> pd.DataFrame:
    """Return users of every mix of grades, at and beside the lines, and one who never bought."""
    days = [19.9, 20.0, 20.1, 40.0, 60.0, 61.0, 80.0, 80.1]
    mixes = list(product(days, range(1, 7), [-1.0, 9.9, 10.0, 45.0, 100.0, 499.0, 500.0, 900.0]))
    return buyers([r for r, _, _ in mixes], [float(f) for _, f, _ in mixes], [m for _, _, m in mixes])


@pytest.mark.parametrize(
    "text",
    [
        *("rfm_recency_grade = 5", "rfm_recency_grade between 2 and 4", "rfm_recency_grade < 3"),
        *("rfm_frequency_grade in (1, 3, 5)", "rfm_frequency_grade != 2", "rfm_frequency_grade > 5"),
        *("rfm_money_grade not between 2 and 4", "rfm_money_grade >= 4.5", "not rfm_money_grade >= 2"),
        *("rfm_recency_grade is null", "rfm_recency_grade is not null", "rfm_top_percent <= 5"),
        *("rfm_top_percent = 20", "rfm_top_percent is null", "rfm_top_percent is not null or rfm_money_grade = 1"),
    ],
)
def test_a_condition_on_grades_finds_who_has_them(text: str) -> None:
    users = everyone()
    grades = rfm.grade(LINES, users)["rfm_5"].str.split("-", expand=True).astype("float64")
    top = pd.Series(np.nan, users.index)
    for percent, bound in zip((20.0, 5.0, 1.0), LINES.top, strict=True):
        top = top.mask(users["revenue_total"] >= bound, percent)
    known = pd.DataFrame(
        {rfm.RECENCY: grades[0], rfm.FREQUENCY: grades[1], rfm.MONEY: grades[2], rfm.TOP: top}, users.index
    )
    expected = holds(parse(text), known)
    resolved = rfm.resolve(parse(text), LINES)
    assert holds(resolved, users).tolist() == expected.tolist()

    table = ibis.memtable(pa.Table.from_pandas(users, preserve_index=False))
    in_table = table.select("user_id", met=holds(resolved, table)).to_pandas().set_index("user_id")["met"]
    assert in_table.reindex(users["user_id"]).tolist() == expected.tolist()
    assert parse(resolved.to_text()) == resolved


def test_who_has_not_bought_has_no_grade_though_the_count_is_the_lowest() -> None:
    users = buyers([5.0], [1.0], [5.0])
    assert holds(rfm.resolve(parse("rfm_frequency_grade = 1"), LINES), users).tolist() == [True, False]


def test_a_grade_is_compared_with_numbers_only() -> None:
    settings = RulesSettings.model_validate({"odd": {"condition": "rfm_money_grade > rfm_recency_grade"}})
    with pytest.raises(ValueError, match=r"rules\.odd\.condition: column 1: rfm_money_grade is compared with numbers"):
        settings.check({"recency_days": "number"})
    with pytest.raises(ConditionError, match="numbers only"):
        rfm.check(parse("rfm_recency_grade >= p90"))


def test_how_long_a_grade_of_recency_stays_is_told_by_its_line() -> None:
    champions = next(rule for rule in RULES if rule.name == "rfm_champions")
    assert staying_days(rfm.resolve(parse(champions.condition), LINES)) == 20


# --- named segments ---


def test_every_mix_of_recency_and_frequency_is_in_exactly_one_group() -> None:
    for r, f in product(range(1, 6), repeat=2):
        assert len([one for one, _, r1, r2, f1, f2 in GROUPS if r1 <= r <= r2 and f1 <= f <= f2]) == 1, (r, f)


def test_every_customer_is_in_exactly_one_group_and_nobody_else_is() -> None:
    users = everyone()
    ready, off = prepare(RULES, users, LINES)
    groups = match(users, ready).map(lambda names: [name for name in names if name.startswith("rfm_")])
    assert off == {}
    assert groups.iloc[:-1].map(len).eq(1).all()
    assert groups.iloc[-1] == []
    assert {name for names in groups for name in names} == {name for name, *_ in GROUPS}


def test_who_is_in_the_top_hundredth_is_in_the_larger_shares_too() -> None:
    users = buyers([1.0] * 4, [1.0] * 4, [900.0, 899.0, 100.0, 99.0])
    ready, _ = prepare([rule for rule in RULES if rule.name.startswith("top_")], users, LINES)
    assert match(users, ready).tolist() == [
        ["top_1_percent", "top_20_percent", "top_5_percent"],
        ["top_20_percent", "top_5_percent"],
        ["top_20_percent"],
        [],
        [],
    ]


def test_the_lines_of_a_rule_are_told() -> None:
    ready, _ = prepare(RULES, everyone(), LINES)
    told = {one.rule.name: one.thresholds for one in ready}
    assert told["top_5_percent"] == {"revenue_total top 5 %": 500}
    assert told["rfm_loyal"]["purchase_recency_days grade 5"] == 20
    assert told["rfm_loyal"]["purchase_count grade 2"] == 2


def test_lines_do_not_move_with_the_users_who_are_scored() -> None:
    users = buyers([10.0], [3.0], [950.0])
    ready, _ = prepare(RULES, users, LINES)
    assert match(users, ready)["u0"] == [
        *("rfm_potential_loyalists", "top_1_percent", "top_20_percent", "top_5_percent")
    ]


def test_without_a_training_rules_on_grades_are_off() -> None:
    ready, off = prepare([*RULES, Rule("own", "Own", "", "rfm_money_grade = 5")], everyone())
    assert ready == []
    assert set(off.values()) == {NO_LINES}


def test_the_page_says_what_is_shipped() -> None:
    page = (Path(__file__).parents[1] / "docs" / "named-segments.md").read_text()
    rows = [f"| `{rule.name}` | {rule.sentence} | `{rule.condition}` |" for rule in RULES]
    assert "\n".join(rows[: len(GROUPS)]) in page
    assert "\n".join(rows[len(GROUPS) :]) in page


def test_a_group_can_be_redefined_and_switched_off() -> None:
    given: dict[str, Any] = {"rfm_new": {"enabled": False}, "rfm_loyal": {"condition": "rfm_frequency_grade >= 4"}}
    settings = RulesSettings.model_validate(given)
    settings.check({"recency_days": "number"})
    rules = {rule.name: rule.condition for rule in settings.rules}
    assert "rfm_new" not in rules
    assert rules["rfm_loyal"] == "rfm_frequency_grade >= 4"
