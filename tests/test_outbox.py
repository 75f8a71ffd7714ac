import sqlite3
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from publish.destination import DestinationError
from publish.outbox import Count, Draft, Entry, Mark, Outbox, message_id

NOON = datetime(2024, 3, 9, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lake" / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    with Outbox(path, clock=NOON.timestamp) as outbox:
        yield outbox


def mark(version: int, destination: str = "hook") -> Mark:
    return Mark(destination, version, "2024-03-09T00:00:00+00:00", "shop")


def queue(outbox: Outbox, version: int, *bodies: bytes, destination: str = "hook") -> None:
    outbox.queue(mark(version, destination), lambda since: [Draft(version, body, 2) for body in bodies])


def test_only_the_owner_can_read_it(outbox: Outbox, path: Path) -> None:
    path.chmod(0o644)
    with Outbox(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_message_is_pending_until_it_is_sent_and_its_body_is_gone_then(outbox: Outbox, path: Path) -> None:
    queue(outbox, 1, b"about ann", b"about bob")
    first = outbox.next_pending("hook")
    assert first is not None
    assert (first.id, first.body) == (message_id("hook", 1, 1, b"about ann"), b"about ann")
    outbox.mark_sent(first)
    assert outbox.entries("sent") == [
        Entry(first.id, "hook", 1, 2, "sent", 1, None, None, "2024-03-09T12:00:00+00:00", "2024-03-09T12:00:00+00:00")
    ]
    assert outbox.count("hook") == {"pending": Count(1, 2), "sent": Count(1, 2), "failed": Count(0, 0)}
    assert b"about ann" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_version_is_queued_once(outbox: Outbox) -> None:
    asked: list[int] = []
    for version in (3, 3, 5):
        outbox.queue(mark(version), lambda since: asked.append(since) or [])  # type: ignore[func-returns-value]
    assert asked == [0, 3]
    assert outbox.mark("hook") == mark(5)


def test_what_fails_while_it_is_queued_leaves_nothing(outbox: Outbox) -> None:
    def drafts(since: int) -> Iterator[Draft]:
        yield Draft(1, b"one", 1)
        raise RuntimeError("the engine failed")

    with pytest.raises(RuntimeError):
        outbox.queue(mark(1), drafts)
    assert outbox.mark("hook") is None
    assert outbox.entries("pending") == []


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(outbox: Outbox) -> None:
    outbox._database.execute("PRAGMA max_page_count = 20")
    with pytest.raises(DestinationError, match=r"outbox\.db cannot be used: database or disk is full"):
        queue(outbox, 1, *[bytes([number]) * 10_000 for number in range(20)])
    outbox._database.execute("PRAGMA max_page_count = 2000")
    assert outbox.mark("hook") is None
    queue(outbox, 1, b"one")
    assert len(outbox.entries("pending")) == 1


def test_the_same_message_is_in_it_once(outbox: Outbox) -> None:
    queue(outbox, 1, b"one")
    for _ in range(2):
        outbox.rewrite("hook", lambda body: (body, 2), lambda mark: [Draft(1, b"removed", 1)])
    assert [entry.change_count for entry in outbox.entries("pending")] == [2, 1]


def test_an_id_says_which_destination_version_sequence_and_content_it_is() -> None:
    given = [("a", 1, 1, b"x"), ("b", 1, 1, b"x"), ("a", 2, 1, b"x"), ("a", 1, 2, b"x"), ("a", 1, 1, b"y")]
    ids = [message_id(*each) for each in given]
    assert len(set(ids)) == 5
    assert ids[0] == message_id(*given[0])
    assert "." not in "".join(ids)  # which parts id, timestamp and body where they are signed


def test_what_failed_is_listed_and_sent_again_in_its_order(outbox: Outbox) -> None:
    queue(outbox, 1, b"one", b"two")
    queue(outbox, 1, b"other", destination="other")
    first = outbox.next_pending("hook")
    assert first is not None
    outbox.mark_tried(first, "HTTP 500", "down", failed=False)
    outbox.mark_tried(first, "HTTP 400", "no", failed=True)
    (dead,) = outbox.entries("failed")
    assert (dead.id, dead.attempts, dead.reason, dead.answer) == (first.id, 2, "HTTP 400", "no")
    assert outbox.entries("failed", "other") == []
    second = outbox.next_pending("hook")
    assert second is not None
    assert second.body == b"two"
    assert outbox.retry("hook") == 1
    assert outbox.retry() == 0
    assert outbox.next_pending("hook") == first


def test_a_changed_message_has_another_id_the_same_place_and_no_answer(outbox: Outbox) -> None:
    queue(outbox, 1, b"ann bob", b"bob", b"ann")
    first = outbox.next_pending("hook")
    assert first is not None
    outbox.mark_tried(first, "HTTP 500", "about bob", failed=False)

    def without_bob(body: bytes) -> tuple[bytes | None, int]:
        kept = body.replace(b"bob", b"").strip()
        return kept or None, len(kept.split())

    assert outbox.rewrite("hook", without_bob, lambda mark: [Draft(mark.version, b"gone", 1)]) == 3
    entries = outbox.entries("pending")
    assert [entry.change_count for entry in entries] == [1, 2, 1]
    assert (entries[0].id, entries[0].answer) == (message_id("hook", 1, 1, b"ann"), None)


@pytest.mark.parametrize("content", [b"no database, whatever the name says" * 99, None])
def test_what_is_no_outbox_is_told_in_one_line(path: Path, content: bytes | None) -> None:
    path.parent.mkdir()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DestinationError, match=r"the outbox .*outbox\.db cannot be (opened|used): "):
        Outbox(path)


def test_an_outbox_of_a_later_version_is_left_alone(path: Path, outbox: Outbox) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(DestinationError, match="made by a later version"):
        Outbox(path)
