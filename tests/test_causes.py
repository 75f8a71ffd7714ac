"""What the rules of an earlier version would say of users now, on a real lake."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pytest
from histories import instant

from features.lake import Lake
from flows.causes import would_be
from flows.configuration import Configuration, load
from flows.snapshot import table_of
from models import rfm
from models.conditions import parse
from models.rules import SHIPPED
from publish.changes import Otherwise
from publish.versions import Version

AS_OF = instant("2024-06-30T05:00:00")
CONFIG = """
name = "shop"
[events]
files = "events.csv"
columns = { user_id = "user", occurred_at = "time", event_name = "event" }
[features]
windows_days = [14]
"""
USERS: list[dict[str, Any]] = [
    {"user_id": "ada", "tenure_days": 3, "session_count_14d": 5, "purchase_count": 0},
    {"user_id": "ben", "tenure_days": 9, "session_count_14d": 1, "purchase_count": 0},
]


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    (tmp_path / "habitus.toml").write_text(CONFIG)
    configuration = load(tmp_path / "habitus.toml")
    table = table_of(configuration)
    rows = [dict.fromkeys(table.schema.names) | row | {"as_of": AS_OF} for row in USERS]
    with Lake(configuration.lake) as lake:
        lake.write(table, ibis.memtable(pa.Table.from_pylist(rows, schema=table.schema.to_pyarrow())), only=[AS_OF])
    return configuration


def asked(configuration: Configuration, conditions: Mapping[str, str], **manifest: Any) -> Otherwise:
    of_rules = {name: {"title": name, "condition": condition} for name, condition in conditions.items()}
    said = {"rules": of_rules, "models": {"segments": None}, "segments": {}} | manifest
    with Lake(configuration.lake) as lake:
        found = would_be(lake, configuration, AS_OF, Version(1, AS_OF, "", said))
        assert found is not None
        return Otherwise(ibis.memtable(found.segments.to_pyarrow()), found.unasked)


def segments_of(found: Otherwise) -> dict[str, list[str]]:
    return {row["user_id"]: row["segments"] for row in found.segments.to_pyarrow().to_pylist()}


def test_rules_of_before_say_who_would_be_in_them_now(configuration: Configuration) -> None:
    found = asked(configuration, {"new": "tenure_days <= 7"})
    assert (segments_of(found), found.unasked) == ({"ada": ["new"], "ben": []}, set())


def test_a_shipped_rule_on_a_window_that_there_is_no_more_cannot_be_asked(configuration: Configuration) -> None:
    conditions = {rule.name: rule.condition for rule in SHIPPED if not rfm.is_about(parse(rule.condition))}
    assert asked(configuration, conditions).unasked == {
        *("returning_visitors", "frequent_visitors", "occasional_browsers", "frequent_buyers", "support_seekers")
    }


def test_a_rule_that_was_redefined_on_a_new_window_is_asked_on_the_old_one_which_is_gone(
    configuration: Configuration,
) -> None:
    assert asked(configuration, {"busy": "session_count_28d >= 4"}).unasked == {"busy"}
    assert asked(configuration, {"busy": "session_count_14d >= 4"}).unasked == set()


def test_a_rule_that_was_off_said_nothing_of_anybody(configuration: Configuration) -> None:
    found = asked(configuration, {"busy": "session_count_14d >= 4"}, rules_off=["busy"])
    assert (segments_of(found), found.unasked) == ({"ada": [], "ben": []}, set())


def test_a_rule_whose_needs_nobody_meets_says_nothing_of_anybody(configuration: Configuration) -> None:
    rule = {"title": "never", "condition": "purchase_count = 0", "needs": ["purchase_count"]}
    found = asked(configuration, {}, rules={"never": rule})
    assert (segments_of(found), found.unasked) == ({"ada": [], "ben": []}, set())


def test_a_model_that_is_gone_cannot_be_asked(configuration: Configuration) -> None:
    found = asked(configuration, {}, models={"segments": 7}, segments={"S01": "Loyal"})
    assert found.unasked == {"S01"}


def test_where_there_is_no_snapshot_nothing_can_be_asked(configuration: Configuration) -> None:
    with Lake(configuration.lake) as lake:
        before = Version(1, AS_OF, "", {"rules": {}, "models": {"segments": None}, "segments": {}})
        assert would_be(lake, configuration, instant("2024-07-01T05:00:00"), before) is None
