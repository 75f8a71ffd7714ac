import re
import tomllib
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import law
from pydantic import ValidationError
from shops import Ran

from features.snapshots import FEATURES, snapshots_table
from flows.snapshot import table_of
from models import rfm
from models.conditions import Kind, check, holds, parse
from models.rules import LACKING, PERSONAL, SHIPPED, ReadyRule, Rule, RulesSettings, match, needs, prepare, without

MET = [
    ("new_visitors", {"tenure_days": 7}),
    ("returning_visitors", {"session_count_28d": 1, "tenure_days": 28.1}),
    ("frequent_visitors", {"session_count_28d": 4}),
    ("one_time_visitors", {"session_count": 1, "recency_days": 7}),
    ("occasional_browsers", {"session_count_90d": 2, "purchase_count": 0}),
    ("occasional_browsers", {"session_count_90d": 7, "purchase_count": 0}),
    ("frequent_buyers", {"purchase_count_90d": 3}),
    ("one_time_buyers", {"purchase_count": 1}),
    ("high_value_customers", {"revenue_total": 100}),
    ("cart_abandoners", {"cart_abandoned_recency_days": 28}),
    ("cart_abandoners", {"cart_abandoned_recency_days": 3, "purchase_recency_days": 10}),
    ("support_seekers", {"support_visit_count_28d": 2}),
    ("bargain_reactors", {"campaign_session_count": 2}),
    ("researchers", {"search_count": 5, "item_count": 5, "pages_per_session": 1, "cart_count": 0}),
    ("researchers", {"search_count": 5, "item_count": 0, "pages_per_session": 3, "cart_count": 0}),
    ("night_or_weekend_users", {"session_count": 3, "night_session_share": 0.6, "weekend_session_share": 0}),
    ("night_or_weekend_users", {"session_count": 3, "weekend_session_share": 0.6}),
    ("at_risk", {"session_count": 9, "recency_days": 28}),
    ("at_risk", {"session_count": 9, "recency_days": 90}),
    ("won_back", {"return_absence_days": 60.1}),
    ("dormant", {"recency_days": 90.1}),
]
NOT_MET = [
    ("new_visitors", {"tenure_days": 7.1}),
    ("returning_visitors", {"session_count_28d": 0, "tenure_days": 28.1}),
    ("returning_visitors", {"session_count_28d": 1, "tenure_days": 28}),
    ("frequent_visitors", {"session_count_28d": 3}),
    ("one_time_visitors", {"session_count": 1, "recency_days": 6}),
    ("one_time_visitors", {"session_count": 2, "recency_days": 7}),
    ("occasional_browsers", {"session_count_90d": 1, "purchase_count": 0}),
    ("occasional_browsers", {"session_count_90d": 8, "purchase_count": 0}),
    ("occasional_browsers", {"session_count_90d": 2, "purchase_count": 1}),
    ("frequent_buyers", {"purchase_count_90d": 2}),
    ("one_time_buyers", {"purchase_count": 2}),
    ("high_value_customers", {"revenue_total": 0}),
    ("high_value_customers", {"revenue_total": 10}),
    ("cart_abandoners", {"cart_abandoned_recency_days": 29}),
    ("cart_abandoners", {"cart_abandoned_recency_days": 10, "purchase_recency_days": 3}),
    ("support_seekers", {"support_visit_count_28d": 1}),
    ("bargain_reactors", {"campaign_session_count": 1}),
    ("researchers", {"search_count": 4, "item_count": 5, "cart_count": 0}),
    ("researchers", {"search_count": 5, "item_count": 4, "pages_per_session": 2.9, "cart_count": 0}),
    ("researchers", {"search_count": 5, "item_count": 5, "cart_count": 1}),
    ("night_or_weekend_users", {"session_count": 2, "weekend_session_share": 1}),
    ("night_or_weekend_users", {"session_count": 3, "night_session_share": 0.5, "weekend_session_share": 0.5}),
    ("at_risk", {"session_count": 9, "recency_days": 27.9}),
    ("at_risk", {"session_count": 9, "recency_days": 90.1}),
    ("at_risk", {"session_count": 2, "recency_days": 28}),
    ("won_back", {"return_absence_days": 60}),
    ("dormant", {"recency_days": 90}),
]
CROWD: list[dict[str, float]] = [{"revenue_total": 50, "session_count": 5, "session_count_28d": 2}] * 8
"""Others, whom percentiles are of."""
ON_FEATURES = [rule for rule in SHIPPED if not rfm.is_about(parse(rule.condition))]
"""Those on grades are in test_rfm.py."""
COLUMNS: dict[str, Kind] = {**dict.fromkeys(FEATURES, "number"), "device": "text"}


def snapshot(*users: dict[str, float]) -> pd.DataFrame:
    rows = pd.DataFrame(users, columns=list(FEATURES), dtype="float64")
    rows.insert(0, "user_id", [f"u{i}" for i in range(len(users))])
    return rows


def ready(users: pd.DataFrame, *rules: Rule) -> list[ReadyRule]:
    return prepare(rules or [Rule(r.name, r.title, r.sentence, r.condition) for r in ON_FEATURES], users)[0]


def met_by(user: dict[str, float]) -> list[str]:
    users = snapshot(user, *CROWD)
    return list(match(users, ready(users))["u0"])


@pytest.mark.parametrize(("rule", "user"), MET)
def test_a_rule_is_met(rule: str, user: dict[str, float]) -> None:
    assert rule in met_by(user)


@pytest.mark.parametrize(("rule", "user"), NOT_MET)
def test_a_rule_is_not_met(rule: str, user: dict[str, float]) -> None:
    assert rule not in met_by(user)


def test_every_rule_is_specified_above() -> None:
    assert {rule for rule, _ in MET} == {rule for rule, _ in NOT_MET} == {rule.name for rule in ON_FEATURES}


def test_what_does_not_apply_to_a_user_meets_no_rule() -> None:
    assert met_by({}) == []


def test_every_shipped_rule_is_about_features_and_says_what_it_needs() -> None:
    assert len({rule.title for rule in SHIPPED}) == len(SHIPPED)
    for rule in SHIPPED:
        condition = parse(rule.condition)
        check(condition, {**COLUMNS, **rfm.WORDS})
        assert condition.to_text() == rule.condition
        assert set(rule.needs) <= LACKING.keys() & set(FEATURES)
        assert rule.sentence[0].islower()
        assert not rule.sentence.endswith(".")


def test_the_page_on_named_segments_says_what_is_shipped() -> None:
    page = (Path(__file__).parents[1] / "docs" / "named-segments.md").read_text()
    rows = [f"| `{rule.name}` | {rule.sentence} | `{rule.condition}` |" for rule in ON_FEATURES]
    [own] = [text for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[rules.vip]" in text]

    assert "\n".join(rows) in page
    columns: dict[str, Kind] = {**COLUMNS, "age_band": "text", "region": "text"}
    RulesSettings.model_validate(tomllib.loads(own)["rules"]).check(columns)


# --- who is in which ---


def test_a_user_has_the_sorted_names_of_all_rules_met() -> None:
    users = snapshot({"recency_days": 100, "session_count": 1}, {"tenure_days": 1}, {})

    assert match(users, ready(users)).to_dict() == {
        "u0": ["dormant", "one_time_visitors"],
        "u1": ["new_visitors"],
        "u2": [],
    }


def test_nobody_meets_rules_in_an_empty_snapshot() -> None:
    users = snapshot()

    assert match(users, ready(users)).to_dict() == {}


def test_without_rules_nobody_is_in_any() -> None:
    assert match(snapshot({}, {}), []).to_dict() == {"u0": [], "u1": []}


@law(15)
@given(st.lists(st.lists(st.booleans(), min_size=70, max_size=70), max_size=6))
def test_any_number_of_rules_is_matched_as_one_by_one(met: list[list[bool]]) -> None:
    frame = pd.DataFrame(met, columns=[f"f{number}" for number in range(70)], dtype="float64")
    frame.insert(0, "user_id", [f"u{number}" for number in range(len(met))])
    rules = [Rule(f"rule_{number}", "", "", f"f{number} = 1") for number in range(70)]

    found = match(frame, prepare(rules, frame)[0])

    assert [set(names) for names in found] == [
        {f"rule_{number}" for number, is_met in enumerate(user) if is_met} for user in met
    ]
    assert all(names == sorted(names) for names in found)


def test_percentiles_are_of_everyone_and_travel_with_the_rule() -> None:
    users = snapshot(*({"revenue_total": float(amount)} for amount in range(1, 12)))
    [rule] = [rule for rule in SHIPPED if rule.name == "high_value_customers"]

    [one] = prepare([rule], users)[0]

    assert one.thresholds == {"revenue_total p90": 10}
    assert match(users, [one])[lambda met: met.map(bool)].index.tolist() == ["u9", "u10"]
    assert match(users.tail(1), [one]).to_dict() == {"u10": ["high_value_customers"]}


def test_nobody_is_above_a_percentile_that_nobody_has() -> None:
    users = snapshot({}, {"revenue_total": 5})

    [one] = ready(users, Rule("careless", "", "", "cart_abandonment_rate >= p90"))

    assert one.thresholds == {"cart_abandonment_rate p90": None}
    assert match(users, [one]).to_dict() == {"u0": [], "u1": []}


def test_every_shipped_rule_finds_the_same_users_in_a_table_and_in_a_frame(ran: Ran) -> None:
    with ran.configuration.open_lake() as lake:
        table = lake.read(table_of(ran.configuration))
        frame = table.to_pandas()
        rules = [Rule(rule.name, rule.title, rule.sentence, rule.condition) for rule in SHIPPED]
        lines = rfm.fit(frame)
        of_table, of_frame = (prepare(rules, users, lines)[0] for users in (table, frame))
        flags = {one.rule.name: holds(one.condition, table) for one in of_table}
        found = table.select("user_id", "as_of", **flags).to_pandas()

    assert len(of_table) == len(of_frame) == len(SHIPPED)
    assert [one.thresholds for one in of_table] == [one.thresholds for one in of_frame]
    found = frame[["user_id", "as_of"]].merge(found, on=["user_id", "as_of"])
    for one in of_frame:
        met = holds(one.condition, frame)
        assert found[one.rule.name].tolist() == met.tolist(), one.rule.name
    assert sum(found[rule.name].any() for rule in SHIPPED) > 10


# --- what the data lacks ---


def test_a_rule_is_off_where_the_data_has_not_what_it_needs() -> None:
    users = snapshot({"purchase_count": 0, "purchase_count_90d": 0, "revenue_total": 0, "search_count": 3})

    on, off = prepare(SHIPPED, users)

    assert {name: off[name] for name in off if not name.startswith(("rfm_", "top_"))} == {
        **dict.fromkeys(["occasional_browsers", "frequent_buyers", "one_time_buyers"], "no purchases"),
        **{"high_value_customers": "no revenue", "cart_abandoners": "no carts", "researchers": "no carts"},
        "support_seekers": "no support visits",
        "bargain_reactors": "no session came from a campaign",
    }
    assert {one.rule.name for one in on} == {rule.name for rule in SHIPPED} - off.keys()


def test_what_is_missing_is_the_same_in_a_table() -> None:
    users = snapshot({"purchase_count": 2, "search_count": 3}, {"revenue_total": -5, "campaign_session_count": 0})
    table = ibis.memtable(pa.Table.from_pandas(users, preserve_index=False))

    assert prepare(SHIPPED, table)[1] == prepare(SHIPPED, users)[1]
    assert "high_value_customers" not in prepare(SHIPPED, users)[1]


def test_a_rule_on_a_window_that_the_snapshot_does_not_have_is_off() -> None:
    columns = snapshots_table([7, 28], ()).schema.names
    users = snapshot({"purchase_count": 1, "cart_count": 1}).reindex(columns=columns)

    off = prepare(SHIPPED, users)[1]

    assert off["occasional_browsers"] == "no session_count_90d: add 90 to features.windows_days"
    assert "returning_visitors" not in off


def test_a_rule_that_needs_nothing_stays_on_beside_one_that_needs_what_both_are_about() -> None:
    users = snapshot({"cart_count": 0, "search_count": 9})
    own = Rule("searchers", "Searchers", "", "search_count >= 5 and cart_count = 0")

    on, off = prepare([*SHIPPED, own], users)

    assert off["researchers"] == "no carts"
    assert "searchers" in {one.rule.name for one in on}


def test_a_rule_of_ones_own_needs_nothing() -> None:
    users = snapshot({"cart_count": 0})

    assert match(users, ready(users, Rule("cartless", "", "", "cart_count = 0"))).to_dict() == {"u0": ["cartless"]}


# --- flags ---


@pytest.mark.parametrize(
    ("users", "everyone", "flag"),
    [
        (0, 1000, "nobody"),
        (9, 1000, "too small: fewer than 10 users"),
        (10, 1000, None),
        (10, 2000, None),
        (10, 2001, "too small: under 0.5 % of users"),
        (600, 1000, None),
        (601, 1000, "too broad: over 60 % of users"),
        (0, 0, "nobody"),
    ],
)
def test_a_segment_that_is_of_no_use_is_flagged(users: int, everyone: int, flag: str | None) -> None:
    assert RulesSettings().flag(users, everyone) == flag


# --- rules of one's own ---


def given_rules(**sections: Any) -> dict[str, Rule]:
    return {rule.name: rule for rule in RulesSettings.model_validate(sections).rules}


def test_without_settings_the_rules_are_the_shipped_ones() -> None:
    assert tuple(given_rules().values()) == SHIPPED


def test_a_rule_of_ones_own_comes_last_with_its_words() -> None:
    rules = given_rules(big_spenders={"condition": "revenue_total > 100", "sentence": "have spent much"})

    assert [*rules.values()] == [
        *SHIPPED,
        Rule("big_spenders", "Big spenders", "have spent much", "revenue_total > 100"),
    ]


def test_a_condition_without_a_sentence_is_its_own() -> None:
    assert given_rules(vip={"condition": "revenue_total > 100"})["vip"].sentence == "revenue_total > 100"


def test_a_shipped_rule_can_be_redefined_in_its_place() -> None:
    rules = given_rules(dormant={"condition": "recency_days > 60"}, at_risk={"title": "Leaving"})

    assert [*rules] == [rule.name for rule in SHIPPED]
    assert (rules["dormant"].title, rules["dormant"].condition) == ("Dormant", "recency_days > 60")
    assert rules["at_risk"].title == "Leaving"
    assert rules["at_risk"].condition == SHIPPED[[*rules].index("at_risk")].condition


def test_a_rule_can_be_switched_off() -> None:
    settings = RulesSettings.model_validate(
        {"dormant": {"enabled": False}, "vip": {"condition": "a = 1", "enabled": False}}
    )

    assert [rule.name for rule in settings.rules] == [rule.name for rule in SHIPPED if rule.name != "dormant"]
    assert settings.switched_off == ["dormant", "vip"]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"dormnt": {"enabled": False}}, "dormnt: did you mean dormant"),
        ({"vip": {}}, "vip: a rule of your own needs a condition"),
        ({"Vip": {"condition": "a = 1"}}, "'Vip' is no name of a rule"),
        ({"vip": {"condition": "a = 1", "sentence": ""}}, "at least 1 character"),
        ({"vip": {"condition": "a = 1", "title": "x" * 81}}, "at most 80 characters"),
        ({"share_max": 2}, "less than or equal to 1"),
    ],
)
def test_a_section_that_is_wrong_is_refused(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RulesSettings.model_validate(section)


# --- what is personal ---


@pytest.mark.parametrize(
    ("condition", "is_so"),
    [
        ("region = 'islands'", True),
        ("session_count >= 3 and not (region is null)", True),
        ("device in ('region', 'plan')", False),
        ("pages_per_session > 3", False),
        ("in other words: region", True),
        ("in other words", False),
    ],
)
def test_a_condition_needs_the_features_that_it_is_on(condition: str, is_so: bool) -> None:
    assert needs(condition, ["region", "age"]) == is_so


def test_a_rule_on_what_is_personal_is_told_without_its_condition() -> None:
    condition = "region = 'islands'"
    assert without(Rule("islanders", "Islanders", condition, condition), ["region"]) == Rule(
        "islanders", "Islanders", PERSONAL, ""
    )
    written = Rule("islanders", "Islanders", "live on islands", condition)
    assert without(written, ["region"]) == Rule("islanders", "Islanders", "live on islands", "")
    assert without(written, ["plan"]) is written
