import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import pytest
from ibis.backends.duckdb import Backend as DuckDB
from receiver import SegmentReceiver
from releases import Members, deliver, releases

from publish.destination import Delivery, DestinationError
from publish.destinations.segment_calls import SegmentCalls, SegmentSettings
from publish.destinations.sending import World
from publish.outbox import Outbox

KEY = "write-key-of-a-source"


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as outbox:
        yield outbox


def segment(outbox: Outbox, endpoint: str, key: str = KEY, timeout_s: float = 5) -> SegmentCalls:
    chosen = SegmentSettings.model_validate(
        {"kind": "segment", "endpoint": endpoint, "write_key": {"env": "KEY"}, "timeout_s": timeout_s}
    )
    world = World(pause=lambda seconds: None, chance=lambda: 1.0)
    return chosen.connect("tool", {"write_key": key}, Path(), outbox, world)


def calls_of(receiver: SegmentReceiver, kind: str) -> list[dict[str, Any]]:
    return [call for call in receiver.calls.values() if call["type"] == kind]


def test_a_user_with_changes_is_identified_by_what_is_known_now(engine: DuckDB, outbox: Outbox) -> None:
    release = releases(engine, [{("ann", "a"), ("ann", "vip")}], "tool")[0]
    with SegmentReceiver(KEY) as receiver:
        assert deliver(segment(outbox, receiver.url), release) == Delivery(
            "tool", "released", receiver.url, 2, counted="changes"
        )
    (call,) = calls_of(receiver, "identify")
    assert call.pop("messageId").startswith("chg_")
    assert call == {
        "type": "identify",
        "userId": "ann",
        "timestamp": "2024-03-02T00:00:00+00:00",
        "traits": {
            "habitus_segment_id": "a",
            "habitus_segment_name": "A",
            "habitus_named_segments": ["vip"],
            "habitus_lifecycle_stage": "active",
            "habitus_churn_probability": 0.25,
            "habitus_conversion_probability": None,
            "habitus_version": 1,
        },
    }


def test_each_change_is_tracked_after_its_user_was_identified(engine: DuckDB, outbox: Outbox) -> None:
    states: list[Members] = [{("ann", "a")}, {("ann", "b")}]
    with SegmentReceiver(KEY) as receiver:
        deliver(segment(outbox, receiver.url), releases(engine, states, "tool")[1])
    (request,) = receiver.requests
    batch = json.loads(request.body)["batch"]
    assert [(call["type"], call.get("event"), call["timestamp"][:10]) for call in batch] == [
        ("identify", None, "2024-03-03"),
        ("track", "Segment Entered", "2024-03-02"),
        ("track", "Segment Exited", "2024-03-03"),
        ("track", "Segment Entered", "2024-03-03"),
    ]
    assert batch[2]["properties"] == {"segment_id": "a", "segment_name": "A", "reason": "behaviour", "version": 2}
    assert receiver.members == {("ann", "b")}


def test_who_is_not_known_any_more_has_the_traits_cleared(engine: DuckDB, outbox: Outbox) -> None:
    first, second = releases(engine, [{("ann", "a")}, set()], "tool")
    with SegmentReceiver(KEY) as receiver:
        deliver(segment(outbox, receiver.url), first)
        deliver(segment(outbox, receiver.url), second)
    traits = calls_of(receiver, "identify")[-1]["traits"]
    assert traits.pop("habitus_version") == 2
    assert traits.pop("habitus_named_segments") == []
    assert set(traits.values()) == {None}
    assert "habitus_churn_probability" in traits
    assert receiver.members == set()


def test_users_without_changes_are_not_identified_again(engine: DuckDB, outbox: Outbox) -> None:
    first, second = releases(engine, [{("ann", "a")}, {("ann", "a"), ("bob", "a")}], "tool")
    with SegmentReceiver(KEY) as receiver:
        deliver(segment(outbox, receiver.url), first)
        deliver(segment(outbox, receiver.url), second)
        assert deliver(segment(outbox, receiver.url), second).state == "unchanged"
    assert [call["userId"] for call in calls_of(receiver, "identify")] == ["ann", "bob"]


@pytest.mark.parametrize(
    "trouble", [500, 429, pytest.param("hang", marks=pytest.mark.ci), "close_unread", "close_applied", "twice"]
)
def test_what_is_repeated_has_the_same_message_ids(engine: DuckDB, outbox: Outbox, trouble: Any) -> None:
    state = {("ann", "a"), ("bob", "a")}
    with SegmentReceiver(KEY, [trouble]) as receiver:
        tool = segment(outbox, receiver.url, timeout_s=1 if trouble == "hang" else 5)
        assert deliver(tool, releases(engine, [state], "tool")[0]).state == "released"
    assert len(receiver.calls) == 4
    assert receiver.members == state


def test_a_request_is_within_the_limits_of_bytes(engine: DuckDB, outbox: Outbox) -> None:
    state = {(f"{number:03} {'é' * 9_990}", "a") for number in range(40)}
    with SegmentReceiver(KEY) as receiver:
        assert deliver(segment(outbox, receiver.url), releases(engine, [state], "tool")[0]).state == "released"
    assert receiver.members == state
    sizes = [len(request.body) for request in receiver.requests]
    assert len(sizes) == 4
    assert max(sizes) > 450_000


def test_a_request_has_at_most_2500_calls(engine: DuckDB, outbox: Outbox) -> None:
    state = {(str(number), "a") for number in range(1_300)}
    with SegmentReceiver(KEY) as receiver:
        assert deliver(segment(outbox, receiver.url), releases(engine, [state], "tool")[0]).state == "released"
    assert receiver.members == state
    assert max(len(json.loads(request.body)["batch"]) for request in receiver.requests) <= 2_500


def test_a_call_beyond_the_limit_is_a_dead_letter_and_the_others_arrive(engine: DuckDB, outbox: Outbox) -> None:
    state = {("🦉" * 10_000, "a"), ("ann", "a")}
    with SegmentReceiver(KEY) as receiver:
        delivery = deliver(segment(outbox, receiver.url), releases(engine, [state], "tool")[0])
    assert delivery.state == "failed"
    assert receiver.members == {("ann", "a")}
    assert [entry.change_count for entry in outbox.entries("failed")] == [0, 1]
    assert "bytes, and Segment takes 32,000" in delivery.note


def test_probabilities_that_are_no_number_are_null(engine: DuckDB, outbox: Outbox) -> None:
    release = releases(engine, [{("ann", "a")}], "tool")[0]
    rows = release.rows.mutate(churn_probability=ibis.literal(float("nan")))
    with SegmentReceiver(KEY) as receiver:
        deliver(segment(outbox, receiver.url), replace(release, rows=rows))
    assert calls_of(receiver, "identify")[0]["traits"]["habitus_churn_probability"] is None


def test_labels_of_ones_own_are_traits(engine: DuckDB, outbox: Outbox) -> None:
    release = releases(engine, [{("ann", "a")}], "tool")[0]
    rows = release.rows.mutate(renewal_probability=release.rows.churn_probability * 2)
    with SegmentReceiver(KEY) as receiver:
        deliver(segment(outbox, receiver.url), replace(release, rows=rows))
    assert calls_of(receiver, "identify")[0]["traits"]["habitus_renewal_probability"] == 0.5


def test_an_erased_user_is_told_of_and_leaves_the_outbox(engine: DuckDB, outbox: Outbox) -> None:
    versions = releases(engine, [{("ann", "a"), ("bob", "a")}, {("ann", "a"), ("bob", "b")}], "tool")
    with SegmentReceiver(KEY, ["ok", *[500] * 5]) as receiver:
        tool = segment(outbox, receiver.url)
        deliver(tool, versions[0])
        assert deliver(tool, versions[1]).state == "pending"
        assert tool.forget({"bob": ["b"]}) == 2
        assert deliver(tool, versions[1]).count == 2
    assert receiver.members == {("ann", "a")}
    erased = [call for call in calls_of(receiver, "track") if call["properties"]["reason"] == "erased"]
    assert {call["properties"]["segment_id"] for call in erased} == {"a", "b"}
    assert calls_of(receiver, "identify")[-1]["traits"]["habitus_segment_id"] is None
    assert b"bob" not in outbox.path.read_bytes()


def test_a_wrong_key_is_told_without_the_key(engine: DuckDB, outbox: Outbox) -> None:
    wrong = "another-key-that-is-wrong"
    with SegmentReceiver(KEY) as receiver:
        tool = segment(outbox, receiver.url, wrong)
        delivery = deliver(tool, releases(engine, [{("ann", "a")}], "tool")[0])
    assert delivery.state == "failed"
    assert "HTTP 401" in delivery.note
    assert wrong not in f"{delivery}{tool}{outbox.entries('failed')}"


@pytest.mark.parametrize(("endpoint", "key"), [("https://api.example.org", " "), ("http://api.example.org", KEY)])
def test_a_missing_key_or_wrong_endpoint_is_refused(outbox: Outbox, endpoint: str, key: str) -> None:
    with pytest.raises(DestinationError, match="tool: the"):
        segment(outbox, endpoint, key)
