"""What a report counts and measures, on a shop small enough to be counted by hand."""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from attacker import bounds
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law

from features.labels import LabelSettings
from features.sessions import SESSIONS
from features.snapshots import FEATURES, snapshots_table
from models.rules import PERSONAL
from publish.assignments import ASSIGNMENTS
from publish.changes import CHANGES
from publish.report.content import SUPPRESSED, Estimate, Report, Segment
from publish.report.numbers import Source, make_report
from publish.report.propensities import Trained
from publish.report.settings import ReportSettings
from publish.versions import Version

NOW = datetime(2024, 6, 30, tzinfo=UTC)
DAY = timedelta(days=1)
RULES = {"buyers": {"title": "Buyers", "sentence": "bought", "condition": "purchase_count >= 1"}}
ABOUT_PAGES = ("pages_per_session", "bounce_rate", "engaged_rate")
SNAPSHOTS = snapshots_table((1, 7, 28, 90), ["region"])


def user(number: int, segment_id: str | None = "S01", **known: Any) -> dict[str, Any]:
    """Make a user with what matters: sessions as days ago, features, attributes and assignments."""
    return {
        "user_id": f"u{number:04}",
        "segment_id": segment_id,
        "rules": [],
        "days_ago": [1.0],
        "converted": 0,
        "device": "mobile",
        "region": None,
        "lifecycle_stage": "active",
    } | known


def version(number: int, users: Sequence[dict[str, Any]], as_of: datetime = NOW) -> Version:
    ids = sorted({one["segment_id"] for one in users if one["segment_id"]})
    memberships = [name for one in users for name in (one["segment_id"], *one["rules"]) if name]
    manifest = {
        "source": "shop",
        "labels": ["churn", "conversion"],
        "models": {"segments": 1, "churn": None, "conversion": None},
        "configuration": "0" * 64,
        "withheld": {},
        "segments": {name: f"Segment {name}" for name in ids},
        "rules": RULES,
        "sizes": {"users": len(users), "segments": {name: memberships.count(name) for name in memberships}},
    }
    return Version(number, as_of, f"content {number}", manifest)


def source(engine: DuckDB, users: Sequence[dict[str, Any]], k: int = 3, **known: Any) -> Source:
    """Make all that a report is made of."""

    def table(rows: list[dict[str, Any]], schema: pa.Schema) -> Any:
        return engine.create_table(f"table_{uuid.uuid4().hex}", pa.Table.from_pylist(rows, schema=schema), temp=True)

    assigned = [
        {
            **{name: one.get(name) for name in ASSIGNMENTS.schema.names},
            "as_of": NOW,
            "segment_name": f"Segment {one['segment_id']}" if one["segment_id"] else None,
            "rule_segments": one["rules"],
            "churn_reasons": [],
            "conversion_reasons": [],
            "holdout": False,
            "held_out_of": [],
            "segment_strengths": [],
        }
        for one in users
    ]
    sessions = [
        {
            **dict.fromkeys(SESSIONS.schema.names),
            **{name: 0 for name, dtype in SESSIONS.schema.items() if dtype.is_numeric()},
            "session_id": f"{one['user_id']} {i}",
            "user_id": one["user_id"],
            "started_at": NOW - days * DAY - timedelta(minutes=10),
            "ended_at": NOW - days * DAY,
            "duration_s": 600.0,
            "page_view_count": 4,
            "bounced": False,
            "engaged": True,
            "converted": i < one["converted"],
        }
        for one in users
        for i, days in enumerate(one["days_ago"])
    ]
    snapshot = [
        {**dict.fromkeys(FEATURES, 0.0), **{name: one.get(name, 0.0) for name in FEATURES}}
        | {"user_id": one["user_id"], "as_of": NOW, "device": one["device"], "region": one["region"]}
        for one in users
    ]
    released = table(assigned, ASSIGNMENTS.schema.to_pyarrow())
    made = Source(
        version=version(2, users),
        earlier=[],
        released=released,
        listed=released,
        sessions=table(sessions, SESSIONS.schema.to_pyarrow()),
        snapshot=table(snapshot, SNAPSHOTS.schema.to_pyarrow()),
        changes=table(known.pop("changes", []), CHANGES.schema.to_pyarrow()),
        rejected={"no_user": 1},
        discovered=None,
        trained={},
        labels=LabelSettings().named,
        attributes=["region"],
        settings=ReportSettings(k=k),
        time_zone="Europe/Berlin",
    )
    return replace(made, **known)


def report_of(engine: DuckDB, users: Sequence[dict[str, Any]], k: int = 3, **known: Any) -> Report:
    return make_report(source(engine, users, k, **known))[0]


def segment(report: Report, segment_id: str) -> Segment:
    found = report.segment(segment_id)
    assert found is not None
    return found


def counts(part: Any, name: str) -> dict[str | None, Any]:
    [breakdown] = [one for one in part.breakdowns if one.name == name]
    return {bar.value: bar.count for bar in breakdown.bars if bar.count}


def metric(part: Any, name: str) -> Any:
    [found] = [one for one in part.metrics if one.name == name]
    return found.here


def test_active_users_came_in_the_days_before(engine: DuckDB) -> None:
    ago = [0.5, 6.9, 7.5, 20, 29, 40, 60, 100]
    overview = report_of(engine, [user(i, days_ago=[days]) for i, days in enumerate(ago)], k=1).overview
    assert (overview.users, overview.sessions, overview.active_7d, overview.active_28d) == (8, 8, 2, 4)
    assert (overview.new_28d, overview.returning_28d, overview.lost_28d) == (4, 0, 2)


def test_who_came_before_is_returning(engine: DuckDB) -> None:
    overview = report_of(engine, [user(1, days_ago=[3, 50]), user(2, days_ago=[3])], k=1).overview
    assert (overview.new_28d, overview.returning_28d) == (1, 1)


def test_hours_and_weekdays_are_local(engine: DuckDB) -> None:
    [late] = [user(1, days_ago=[1 / 24])]  # begun on Saturday 2024-06-29 at 22:50 UTC, in Berlin on Sunday at 0:50
    found = report_of(engine, [late], k=1).overview
    assert (counts(found, "hour"), counts(found, "weekday")) == ({"0": 1}, {"7": 1})


def test_sources_of_days_have_no_hours_and_no_durations(engine: DuckDB) -> None:
    report = report_of(engine, [user(1)], k=1, day_level=True)
    assert "hour" not in [one.name for one in report.overview.breakdowns]
    assert not {"duration_mean_s", "bounce_rate", "engaged_rate"} & {one.name for one in report.overview.metrics}
    assert any("no hours" in note for note in report.withheld)


def test_rates_that_are_about_pages_are_of_sessions_with_a_page_view(engine: DuckDB) -> None:
    users = [user(i, days_ago=[1, 2], converted=1) for i in range(3)]
    sessions = source(engine, users).sessions
    is_other = sessions.started_at < NOW - 2 * DAY
    of_both = sessions.mutate(
        page_view_count=ibis.ifelse(is_other, 0, 4), bounced=ibis.ifelse(is_other, ibis.null("boolean"), True)
    )
    none = sessions.mutate(page_view_count=ibis.literal(0, "int64"), bounced=ibis.null("boolean"))

    some, without = (report_of(engine, users, sessions=one).overview for one in (of_both, none))

    assert [metric(some, name).value for name in ABOUT_PAGES] == [4, 1, 1]
    assert [metric(without, name) for name in ABOUT_PAGES] == [None] * 3
    assert metric(without, "conversion_rate").value == 0.5


def test_a_rate_has_an_interval_that_knows_that_a_users_sessions_are_alike(engine: DuckDB) -> None:
    alike = [user(i, days_ago=[1, 2, 3, 4], converted=4 * (i % 2)) for i in range(20)]
    spread = [user(i, days_ago=[1, 2, 3, 4], converted=2) for i in range(20)]
    one, other = (metric(report_of(engine, users).overview, "conversion_rate") for users in (alike, spread))
    assert one.value == other.value == 0.5
    assert one.low < 0.31 < other.low


def test_what_does_not_apply_is_null(engine: DuckDB) -> None:
    assert metric(report_of(engine, [user(1)], k=1).overview, "cart_abandonment_rate") is None


def test_top_users_are_the_most_active_ones_and_have_their_last_visit(engine: DuckDB) -> None:
    users = [user(i, days_ago=[days + 0.5 for days in range(i % 7)] + [30 + i]) for i in range(30)]
    top = segment(report_of(engine, users), "S01").top_users
    assert len(top) == 20
    assert [one.session_count_28d for one in top] == sorted((one.session_count_28d for one in top), reverse=True)
    assert (top[0].user_id, top[0].last_seen_at) == ("u0006", NOW - 0.5 * DAY)


def test_lists_have_only_users_whom_the_destination_may_know_and_counts_have_all(engine: DuckDB) -> None:
    users = [user(i) for i in range(8)]
    whole = source(engine, users)
    allowed = whole.released.filter(whole.released.user_id != "u0003")
    report, listed = make_report(replace(whole, listed=allowed))
    assert "u0003" not in report.model_dump_json()
    assert "u0003" not in listed["user_id"].to_pylist()
    assert (report.overview.users, report.users_listed, len(listed)) == (8, 7, 7)
    assert any("consented" in note for note in report.withheld)


def test_the_table_of_users_has_a_row_for_each_listed_one_in_order(engine: DuckDB) -> None:
    _, listed = make_report(source(engine, [user(2, region="North"), user(1, days_ago=[2, 40])], k=1))
    assert listed["user_id"].to_pylist() == ["u0001", "u0002"]
    assert sorted(listed["user_number"].to_pylist()) == [1, 2]
    assert listed["session_count"].to_pylist() == [2, 1]
    assert listed["session_count_28d"].to_pylist() == [1, 1]
    assert listed["attribute_region"].to_pylist() == [None, "North"]
    assert listed["last_seen_at"].to_pylist()[0] == NOW - 2 * DAY


def test_what_is_typical_is_told_against_everyone_else_and_chance_is_not(engine: DuckDB) -> None:
    random = np.random.default_rng(0)
    users = [
        user(
            i,
            "S01" if i < 60 else "S02",
            search_count=float(random.poisson(9 if i < 60 else 2)),
            item_count=float(random.poisson(5)),
            device="mobile" if random.random() < (0.9 if i < 60 else 0.3) else "desktop",
        )
        for i in range(120)
    ]
    typical = segment(report_of(engine, users), "S01").typical
    assert {one.feature for one in typical} == {"search_count", "device"}
    assert all(one.q <= 0.05 for one in typical)
    [device] = [one for one in typical if one.feature == "device"]
    assert device.words.startswith("on mobile: 87 %")
    assert device.here.low is not None
    assert device.here.high is not None
    assert device.here.low < device.here.value < device.here.high
    assert "everyone else" in device.words


def test_personal_attributes_and_ids_can_be_left_out(engine: DuckDB) -> None:
    users = [user(i, "S01" if i < 30 else "S02", region="North" if i < 27 else "South") for i in range(60)]
    report = report_of(engine, users, settings=ReportSettings(k=3, personal=["region", "user_id"]))
    assert any(one.feature == "region" for one in segment(report, "S01").typical)
    public = report.without_personal().model_dump_json()
    assert "North" in report.model_dump_json()
    assert not any(text in public for text in ("North", "u0001", '"region"'))


def test_a_rule_on_what_is_personal_is_left_out_and_its_sentence_stays_where_it_was_written(engine: DuckDB) -> None:
    condition = "region = 'North'"
    users = [user(i, rules=["buyers"] if i < 30 else [], region="North" if i < 30 else "South") for i in range(60)]
    settings = ReportSettings(k=3, personal=["region"])
    told, public = [], []
    for sentence in (condition, "", "live up there"):
        made = version(2, users)
        rules = {"buyers": {"title": "Buyers", "condition": condition, "sentence": sentence}}
        made = replace(made, manifest=made.manifest | {"rules": rules})
        report = report_of(engine, users, settings=settings, version=made)
        told.append(segment(report, "buyers").description)
        public.append(segment(report.without_personal(), "buyers"))
    assert told == [condition, "region: is 'North'", "live up there"]
    assert [one.rule for one in public] == [None] * 3
    assert [one.description for one in public] == [PERSONAL, PERSONAL, "live up there"]


def test_a_small_segment_is_not_described_and_the_next_one_neither(engine: DuckDB) -> None:
    users = [user(i, "S01" if i < 50 else "S02" if i < 70 else "S03") for i in range(72)]
    report = report_of(engine, users)
    assert segment(report, "S01").users == 50
    assert segment(report, "S03").users == segment(report, "S02").users == SUPPRESSED
    assert segment(report, "S03").withheld == "it has fewer than 3 users"
    assert "give away" in (segment(report, "S02").withheld or "")
    assert segment(report, "S03").top_users == []


def test_a_named_segment_of_nearly_everyone_is_not_counted(engine: DuckDB) -> None:
    users = [user(i, rules=["buyers"] if i else []) for i in range(20)]
    assert segment(report_of(engine, users), "buyers").users == SUPPRESSED


def test_rare_values_are_told_of_together(engine: DuckDB) -> None:
    regions = ["North"] * 20 + ["South"] * 9 + ["East"] * 2 + ["West"] * 2
    report = report_of(engine, [user(i, region=region) for i, region in enumerate(regions)])
    assert counts(report.overview, "region") == {"North": 20, "South": 9, "all other values": 4}


def test_segments_with_the_same_users_hide_the_same(engine: DuckDB) -> None:
    def region(i: int) -> str:
        return "NSEW"[0 if i % 40 < 20 else 1 if i % 40 < 31 else 2 if i % 40 < 38 else 3]

    users = [user(i, f"S0{i // 40 + 1}", region=region(i), rules=["buyers"] if i < 40 else []) for i in range(120)]
    report = report_of(engine, users)
    assert counts(segment(report, "S01"), "region") == counts(segment(report, "buyers"), "region")


def changed(user_id: str, segment_id: str, change: str, reason: str) -> dict[str, Any]:
    return {
        "version": 2,
        "as_of": NOW,
        "destination": "published",
        "user_id": user_id,
        "segment_id": segment_id,
        "segment_name": segment_id,
        "change": change,
        "reason": reason,
        "from_segment_id": None,
        "to_segment_id": None,
    }


def test_who_entered_and_left_is_counted_by_reason(engine: DuckDB) -> None:
    users = [user(i, "S01" if i < 20 else "S02") for i in range(40)]
    moved = [
        changed(f"u{i:04}", *move, "behaviour") for i in range(5) for move in (("S01", "entered"), ("S02", "left"))
    ]
    moved += [changed(f"u{i:04}", "S01", "entered", "new_user") for i in range(5, 9)]
    earlier = version(1, users[:35], NOW - 7 * DAY)
    report = report_of(engine, users, changes=moved, earlier=[earlier])
    own = segment(report, "S01")
    assert own.changes is not None
    assert (own.changes.version, own.changes.entered, own.changes.left) == (1, 9, 0)
    assert {one.reason: one.entered for one in own.changes.reasons} == {"behaviour": 5, "new_user": 4}
    assert report.overview.changes is not None
    assert (report.overview.changes.entered, report.overview.changes.left) == (9, 5)
    assert [(point.version, point.users) for point in own.trend] == [(1, 20), (2, 20)]
    assert [(point.version, point.users) for point in report.overview.trend] == [(1, 35), (2, 40)]


def test_few_who_entered_cannot_be_told_from_the_sizes(engine: DuckDB) -> None:
    users = [user(i, "S01" if i < 20 else "S02") for i in range(40)]
    moved = [changed("u0001", "S01", "entered", "behaviour"), changed("u0001", "S02", "left", "behaviour")]
    report = report_of(engine, users, changes=moved, earlier=[version(1, users, NOW - 7 * DAY)])
    for part in (segment(report, "S01"), segment(report, "S02"), report.overview):
        assert part.changes is not None
        assert part.changes.entered == part.changes.left == SUPPRESSED


def test_the_first_version_has_no_changes(engine: DuckDB) -> None:
    report = report_of(engine, [user(1)], k=1)
    assert report.overview.changes is None


def test_probabilities_are_a_histogram(engine: DuckDB) -> None:
    users = [user(i, churn_probability=0.12 if i < 6 else 0.97) for i in range(12)] + [user(i) for i in range(12, 20)]
    trained = {"churn": Trained(1, NOW, NOW, {})}
    [churn, conversion] = segment(report_of(engine, users, trained=trained), "S01").propensities
    assert {churn.edges[i]: count for i, count in enumerate(churn.histogram) if count} == {0.1: 6, 0.95: 6}
    assert isinstance(churn.mean, Estimate)
    assert (churn.scored, churn.mean.value) == (12, 0.545)
    assert (conversion.scored, conversion.mean, conversion.withheld) == (0, None, "no model serves")


def test_a_model_is_told_as_its_training_logged_it(engine: DuckDB) -> None:
    figure = {"value": 0.3, "low": 0.2, "high": 0.4}
    decision = {
        "metrics": {
            "model": {"base_rate": figure, "auc": figure, "lift_1pct": figure, "calibration_slope": {"value": None}}
        },
        "gains": {"recency": figure},
        "calibration": [{"predicted": 0.1, "happened": 0.2, "low": 0.1, "high": 0.3, "rows": 50}],
        "rows": {"test": 100},
        "test_as_of": "2024-06-02T00:00:00+00:00",
        "reason": "Promoted.",
    }
    trained = {"churn": Trained(4, NOW, NOW, decision, {"recency_days": 0.75, "region": 0.25})}
    churn, conversion = report_of(engine, [user(i) for i in range(9)], trained=trained).models
    assert churn.definition.startswith("churned: no event")
    assert (churn.version, churn.tested_users) == (4, 100)
    assert sorted(churn.metrics) == ["auc", "base_rate"], "the first per cent of 100 users is too few"
    assert [(one.rival, one.gain.value) for one in churn.gains] == [("recency", 0.3)]
    assert [one.users for one in churn.calibration] == [50]
    assert [(one.feature, one.share) for one in churn.drivers] == [("recency_days", 0.75), ("region", 0.25)]
    assert (conversion.version, conversion.metrics) == (None, {})


@pytest.mark.parametrize("size", [0, 1, 2])
def test_of_too_few_users_nothing_is_counted(engine: DuckDB, size: int) -> None:
    report = report_of(engine, [user(i) for i in range(size)])
    assert report.overview.users == (SUPPRESSED if size else 0)
    assert shown_counts(report) <= {0}
    assert any("nobody" in note or "fewer than 3" in note for note in report.withheld)


def test_without_discovered_segments_there_are_named_ones(engine: DuckDB) -> None:
    report = report_of(engine, [user(i, None, rules=["buyers"] if i < 9 else []) for i in range(30)])
    assert [(one.segment_id, one.users) for one in report.segments] == [("buyers", 9)]
    assert any("No segments" in note for note in report.withheld)


def test_the_same_users_in_another_order_give_the_same_report(engine: DuckDB) -> None:
    users = [user(i, f"S0{i % 3 + 1}", search_count=float(i % 7), region="NS"[i % 2]) for i in range(60)]
    one, other = (make_report(source(engine, given)) for given in (users, users[::-1]))
    assert one[0].model_dump_json() == other[0].model_dump_json()
    assert one[1].equals(other[1])


def test_a_report_is_read_back_as_it_was(engine: DuckDB) -> None:
    report = report_of(engine, [user(i) for i in range(9)])
    assert Report.model_validate_json(report.model_dump_json()) == report


COUNTS = {"users", "sessions", "count", "entered", "left", "scored", "active_7d", "active_28d", "new_28d", "lost_28d"}


def shown_counts(report: Report) -> set[int]:
    """Collect all counts that a report shows."""

    def walk(part: Any, name: str) -> Iterator[int]:
        if isinstance(part, dict):
            for key, value in part.items():
                yield from walk(value, "count" if name == "discovered" else key)
        elif isinstance(part, list):
            for one in part:
                yield from walk(one, "count" if name == "histogram" else name)
        elif name in COUNTS | {"returning_28d"} and isinstance(part, int):
            yield part

    return set(walk(json.loads(report.model_dump_json()), ""))


SHOPS = st.lists(
    st.tuples(
        st.sampled_from(["S01", "S01", "S01", "S02", "S02", "S03"]),
        st.booleans(),
        st.sampled_from(["mobile", "mobile", "desktop", "tablet"]),
        st.sampled_from([1.0, 10.0, 40.0]),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=60,
)


@law(4)
@given(shop=SHOPS)
def test_no_small_count_is_shown_and_none_of_devices_can_be_worked_out(engine: DuckDB, shop: list[Any]) -> None:
    k = 4
    users = [
        user(i, segment_id, rules=["buyers"] if buys else [], device=device, days_ago=[days], converted=converted)
        for i, (segment_id, buys, device, days, converted) in enumerate(shop)
    ]
    report = report_of(engine, users, k)
    assert not shown_counts(report) & set(range(1, k))
    whole = {
        bar.value: bar.count for bar in next(one for one in report.overview.breakdowns if one.name == "device").bars
    }
    parts = {one.segment_id: one for one in report.segments if one.kind == "discovered" and one.withheld is None}
    true = pd.crosstab([one["segment_id"] for one in users], [one["device"] for one in users])
    if not parts or set(whole) != set(true.columns):  # where rare values are one, the table is another
        return
    true = pd.concat([true.loc[list(parts)], true.drop(index=list(parts)).sum().to_frame("rest").T])[list(whole)]
    shown = np.full(true.shape, np.nan)
    for i, one in enumerate(parts.values()):
        for bar in next(found for found in one.breakdowns if found.name == "device").bars:
            if bar.count != SUPPRESSED:
                shown[i, list(whole).index(bar.value)] = bar.count
    sums = np.array([np.nan if count == SUPPRESSED else count for count in whole.values()], dtype=float)
    for row, column in np.argwhere((true.to_numpy() > 0) & (true.to_numpy() < k)):
        least, most = bounds(shown, true.to_numpy().sum(axis=1), sums, row, column)
        assert least < most
