import re
import tomllib
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
import pytest
from histories import events_of
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law
from pydantic import ValidationError

from features import engines
from features.attributes import ATTRIBUTES
from features.sources import CONSENT
from flows.configuration import Configuration
from publish.brake import BrakeSettings
from publish.consents import CONSENTS, YES, PurposeSettings, check_purposes, consents, unanswered
from publish.destination import DestinationSettings
from publish.holdout import held_out_of

Event = tuple[str, str, str]
ADS = PurposeSettings(granted_by=["ads_on"], withdrawn_by=["ads_off"])
NEWS = PurposeSettings(attribute="newsletter")


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[DuckDB]:
    engine = engines.connect()
    yield engine
    engine.disconnect()


def tables(engine: DuckDB, events: Sequence[Event], answers: dict[str, str]) -> tuple[ir.Table, ir.Table]:
    """Make EVENTS of user, name and time, and ATTRIBUTES of what users answer in the column newsletter."""
    rows = [{"user_id": user, "event_name": name, "occurred_at": at} for user, name, at in events]
    given = [{"user_id": user, "attribute": f"{CONSENT}newsletter", "value": text} for user, text in answers.items()]
    attributes = pa.Table.from_pylist(given, schema=ATTRIBUTES.schema.to_pyarrow())
    return events_of(engine, rows), engine.create_table(f"attributes_{uuid.uuid4().hex}", attributes, temp=True)


def granted(
    engine: DuckDB,
    events: Sequence[Event] = (),
    answers: dict[str, str] | None = None,
    users: Sequence[str | None] = ("ada",),
    **purposes: PurposeSettings,
) -> Any:
    """Return whether each user agrees to each purpose."""
    people = engine.create_table(f"users_{uuid.uuid4().hex}", pa.table({"user_id": pa.array(users, "str")}), temp=True)
    found = consents(*tables(engine, events, answers or {}), purposes, people)
    return {(row["user_id"], row["purpose"]): row["granted"] for row in CONSENTS.check(found).to_pyarrow().to_pylist()}


# --- events ---


@pytest.mark.parametrize(
    ("events", "agrees"),
    [
        ([], False),
        ([("ada", "ads_on", "2024-01-01")], True),
        ([("ada", "ads_on", "2024-01-01"), ("ada", "ads_off", "2024-01-02")], False),
        ([("ada", "ads_off", "2024-01-01"), ("ada", "ads_on", "2024-01-02")], True),
        ([("ada", "ads_off", "2024-01-01")], False),
        ([("ada", "page_view", "2024-01-03"), ("ben", "ads_on", "2024-01-03")], False),
    ],
    ids=["nothing", "granted", "withdrawn", "granted again", "never granted", "of others"],
)
@pytest.mark.parametrize("latest_first", [False, True])
def test_the_latest_event_counts(engine: DuckDB, events: list[Event], agrees: bool, latest_first: bool) -> None:
    given = events[::-1] if latest_first else events
    assert granted(engine, given, ads=ADS) == {("ada", "ads"): agrees}


@pytest.mark.parametrize("names", [("ads_on", "ads_off"), ("ads_off", "ads_on")])
def test_at_equal_times_the_withdrawal_wins(engine: DuckDB, names: tuple[str, str]) -> None:
    events = [("ada", name, "2024-01-01T10:00:00.000001") for name in names]
    assert granted(engine, events, ads=ADS) == {("ada", "ads"): False}


def test_each_of_several_events_says_it(engine: DuckDB) -> None:
    ads = PurposeSettings(granted_by=["ads_on", "all_on"], withdrawn_by=["ads_off", "left"])
    events = [("ada", "ads_on", "2024-01-01"), ("ada", "left", "2024-01-02"), ("ben", "all_on", "2024-01-01")]
    assert granted(engine, events, users=["ada", "ben"], ads=ads) == {("ada", "ads"): False, ("ben", "ads"): True}


def test_who_never_objected_agrees_where_missing_is_a_yes(engine: DuckDB) -> None:
    ads = PurposeSettings(withdrawn_by=["ads_off"], missing="yes")
    found = granted(engine, [("ada", "ads_off", "2024-01-01")], users=["ada", "ben"], ads=ads)
    assert found == {("ada", "ads"): False, ("ben", "ads"): True}


def test_one_event_may_say_it_of_several_purposes(engine: DuckDB) -> None:
    mail = PurposeSettings(granted_by=["ads_on", "mail_on"])
    assert granted(engine, [("ada", "ads_on", "2024-01-01")], ads=ADS, mail=mail) == {
        ("ada", "ads"): True,
        ("ada", "mail"): True,
    }


@given(
    said=st.lists(st.tuples(st.sampled_from(["ada", "ben"]), st.booleans(), st.integers(0, 5)), max_size=12),
    missing=st.sampled_from(["no", "yes"]),
)
@law(6)
def test_events_mean_what_a_walk_through_them_in_order_ends_with(
    shared_engine: DuckDB, said: list[tuple[str, bool, int]], missing: Any
) -> None:
    ads = PurposeSettings(granted_by=["ads_on"], withdrawn_by=["ads_off"], missing=missing)
    expected = dict.fromkeys([("ada", "ads"), ("ben", "ads")], missing == "yes")
    for user, is_yes, _ in sorted(said, key=lambda row: (row[2], not row[1])):  # of one second, a no comes last
        expected[user, "ads"] = is_yes
    events = [(user, "ads_on" if is_yes else "ads_off", f"2024-01-01T00:00:0{at}") for user, is_yes, at in said]
    assert granted(shared_engine, events, users=["ada", "ben"], ads=ads) == expected


# --- attributes ---


@pytest.mark.parametrize("answer", ["yes", "Yes", " TRUE ", "1", "\ttrue\n"])
def test_a_yes_may_be_written_in_several_ways(engine: DuckDB, answer: str) -> None:
    assert granted(engine, answers={"ada": answer}, news=NEWS) == {("ada", "news"): True}


@pytest.mark.parametrize("answer", ["no", "false", "0", "2", "yes please", "ja", "unknown", "y" * 100_000, "İ"])
@pytest.mark.parametrize("missing", ["no", "yes"])
def test_every_other_value_is_a_no(engine: DuckDB, answer: str, missing: Any) -> None:
    news = PurposeSettings(attribute="newsletter", missing=missing)
    assert granted(engine, answers={"ada": answer}, news=news) == {("ada", "news"): False}


@pytest.mark.parametrize(("missing", "agrees"), [("no", False), ("yes", True)])
def test_no_value_is_what_missing_says(engine: DuckDB, missing: Any, agrees: bool) -> None:
    news = PurposeSettings(attribute="newsletter", missing=missing)
    assert granted(engine, answers={"ben": "yes"}, news=news) == {("ada", "news"): agrees}


def test_a_yes_is_what_the_configuration_says(engine: DuckDB) -> None:
    news = PurposeSettings(attribute="newsletter", granted=["Opt-In ", "JA"])
    answers = {"ada": "opt-in", "ben": "ja", "cat": "yes"}
    assert granted(engine, answers=answers, users=["ada", "ben", "cat"], news=news) == {
        ("ada", "news"): True,
        ("ben", "news"): True,
        ("cat", "news"): False,
    }


def test_a_feature_of_the_same_name_says_nothing(engine: DuckDB) -> None:
    events, attributes = tables(engine, [], {"ada": "no"})
    rows = attributes.mutate(attribute=attributes.attribute.replace(CONSENT, ""), value=ibis.literal("yes"))
    people = attributes.select("user_id")
    found = consents(events, rows, {"news": NEWS}, people).to_pyarrow().to_pylist()
    assert found == [{"user_id": "ada", "purpose": "news", "granted": False}]


# --- who and what ---


def test_every_user_has_a_row_for_every_purpose_and_nobody_else(engine: DuckDB) -> None:
    events = [("cat", "ads_on", "2024-01-01")]
    found = granted(engine, events, {"ada": "yes", "cat": "yes"}, users=["ada", "ben"], ads=ADS, news=NEWS)
    assert found == {
        ("ada", "ads"): False,
        ("ada", "news"): True,
        ("ben", "ads"): False,
        ("ben", "news"): False,
    }


def test_a_user_who_is_there_twice_has_one_row(engine: DuckDB) -> None:
    people = engine.create_table("people", pa.table({"user_id": ["ada", "ada"]}), temp=True)
    found = consents(*tables(engine, [("ada", "ads_on", "2024-01-01")], {}), {"ads": ADS}, people)
    assert found.count().to_pyarrow().as_py() == 1


def test_without_users_or_purposes_there_are_no_rows(engine: DuckDB) -> None:
    assert granted(engine, [("ada", "ads_on", "2024-01-01")], users=[], ads=ADS) == {}
    assert granted(engine, [("ada", "ads_on", "2024-01-01")]) == {}


def test_a_purpose_that_nobody_has_answered_is_told(engine: DuckDB) -> None:
    misspelt = PurposeSettings(granted_by=["ads_onn"])
    given = tables(engine, [("ada", "ads_off", "2024-01-01")], {"ada": "no"})
    other = PurposeSettings(attribute="not_read_yet")
    purposes = {"ads": ADS, "news": NEWS, "misspelt": misspelt, "other": other}
    assert unanswered(*given, purposes) == ["misspelt", "other"]


# --- settings ---


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "neither is given"),
        ({"missing": "yes"}, "neither is given"),
        ({"attribute": "newsletter", "granted_by": ["on"]}, "not both"),
        ({"attribute": "newsletter", "withdrawn_by": ["off"]}, "not both"),
        ({"granted_by": ["on"], "granted": ["yes"]}, "granted is of an attribute"),
        ({"withdrawn_by": ["off"]}, "nobody could ever agree"),
        ({"granted_by": ["on", "both"], "withdrawn_by": ["both"]}, "'both' is in granted_by and in withdrawn_by"),
        ({"attribute": ""}, "at least 1 character"),
        ({"attribute": "newsletter", "granted": []}, "at least 1 item"),
        ({"attribute": "newsletter", "missing": False}, "'no' or 'yes'"),
    ],
)
def test_a_purpose_that_is_not_clear_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PurposeSettings.model_validate(given)


@pytest.mark.parametrize("purpose", [ADS, NEWS, PurposeSettings(withdrawn_by=["ads_off"], missing="yes")])
def test_settings_can_be_written_and_read_again(purpose: PurposeSettings) -> None:
    assert PurposeSettings.model_validate(purpose.model_dump()) == purpose


def destinations(**purposes: list[str] | None) -> dict[str, DestinationSettings]:
    return {name: DestinationSettings(purposes=listed) for name, listed in purposes.items()}


@pytest.mark.parametrize("purposes", [[], ["ads"]])
def test_a_destination_may_need_no_purpose_where_it_says_so(purposes: list[str]) -> None:
    check_purposes(destinations(crm=[]), purposes)


def test_a_destination_may_say_nothing_where_there_are_no_purposes() -> None:
    check_purposes(destinations(crm=None), [])


def test_a_destination_has_to_say_its_purposes_where_there_are_some() -> None:
    with pytest.raises(ValueError, match=r"^destinations\.crm\.purposes: is missing; list those of ads, news that"):
        check_purposes(destinations(ads=["ads"], crm=None), ["ads", "news"])


@pytest.mark.parametrize(
    ("asked", "there", "hint"),
    [
        ("newletter", ["ads", "newsletter"], "did you mean 'newsletter'?"),
        ("xyz", ["ads", "newsletter"], "there are ads, newsletter"),
        ("ads", [], "there are none"),
    ],
)
def test_a_purpose_that_there_is_not_is_told(asked: str, there: list[str], hint: str) -> None:
    with pytest.raises(ValueError, match=r"^destinations\.crm\.purposes: there is no \[purposes\.") as raised:
        check_purposes(destinations(crm=[asked]), there)
    assert str(raised.value).endswith(hint)


# --- the guide ---

GUIDE = (Path(__file__).parents[1] / "docs" / "destinations" / "consent.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def test_the_guides_configuration_is_valid() -> None:
    shop, sent = (tomllib.loads(text) for text in blocks("toml"))
    columns = {"user_id": "user", "occurred_at": "time", "event_name": "event"}
    given = {"name": "shop", "events": {"files": "e.csv", "columns": columns}} | shop
    configuration = Configuration.model_validate(given | sent | {"publish": given["publish"] | sent["publish"]})
    assert configuration.publish.brake == BrakeSettings()
    assert configuration.purposes["newsletter"].granted == list(YES)
    assert configuration.destinations["crm"].purposes == ["newsletter"]


def test_lift_is_measured_as_the_guide_does(engine: DuckDB) -> None:
    as_of = datetime(2024, 6, 30, 5, tzinfo=UTC)
    users = [f"user-{i}" for i in range(400)]
    crm = {"crm": DestinationSettings(holdout_share={"S01": 0.25})}
    held_out_of_segments = held_out_of(pd.Series([["S01"]] * len(users), index=users), crm, "shop")
    held = {user for user in users if held_out_of_segments[user]}
    members = {
        "user_id": [*users, "other", "control"],
        "as_of": [as_of] * 402,
        "segment_id": ["S01"] * 400 + ["S02", "S01"],
        "rule_segments": pa.array([[]] * 402, pa.list_(pa.string())),
        "held_out_of": [*held_out_of_segments, [], []],
        "holdout": [False] * 401 + [True],
    }
    engine.create_table("assignments", pa.table(members), temp=True)
    treated = [user for user in users if user not in held]
    buyers = [*treated[: len(treated) // 2], *sorted(held)[: len(held) // 4], "other", "control"]
    rows = [{"user_id": user, "event_name": "purchase", "occurred_at": as_of} for user in buyers * 2]
    rows += [{"user_id": user, "event_name": "page_view", "occurred_at": as_of} for user in users]
    rows += [{"user_id": user, "event_name": "purchase", "occurred_at": as_of - timedelta(seconds=1)} for user in users]
    rows += [{"user_id": user, "event_name": "purchase", "occurred_at": as_of + timedelta(28)} for user in users]
    engine.create_table("events", events_of(engine, rows), temp=True)

    [sql] = blocks("sql")
    [found] = engine.con.sql(sql).to_arrow_table().to_pylist()
    treated_share, held_share = (len(treated) // 2) / len(treated), (len(held) // 4) / len(held)
    assert (found["users"], found["held_out_users"]) == (len(treated), len(held))
    assert found["lift"] == pytest.approx(treated_share - held_share)
    assert found["low"] < 0.25 < found["high"]
    variance = treated_share * (1 - treated_share) / len(treated) + held_share * (1 - held_share) / len(held)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * variance**0.5)
