import io
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from features.as_of import GIVEN, Decision
from flows.publish import Published
from flows.score import SegmentNow
from flows.screen import show_decision, show_hints, show_published, show_segments


def shown(*segments: SegmentNow) -> str:
    console = Console(width=100, file=io.StringIO())
    result: Any = SimpleNamespace(scored=SimpleNamespace(segments=list(segments)))
    show_segments(result, console)
    written: Any = console.file
    return str(written.getvalue())


def segment(name: str, flags: tuple[str, ...] = ()) -> SegmentNow:
    return SegmentNow("S01", name, 1200, 0.3, "Came 14 times (all users: 3)", [], list(flags), None)


def test_a_segment_is_one_row_of_name_users_share_and_summary() -> None:
    [row] = [line for line in shown(segment("Loyal visitors")).splitlines() if "S01" in line]

    assert " ".join(row.split()) == "S01 Loyal visitors 1,200 30 % Came 14 times (all users: 3)"


def test_a_flag_stands_below_the_summary() -> None:
    assert "too broad to say much" in shown(segment("Loyal visitors", ("too broad to say much: 1,200 users",)))


def test_a_value_in_brackets_is_text_and_no_markup() -> None:
    assert "Visitors (plan [/bold])" in shown(segment("Visitors (plan [/bold])"))


def test_without_segments_it_says_so() -> None:
    assert "no segments were found yet" in shown()


def test_changes_are_said_to_be_memberships_since_a_user_is_in_several_segments() -> None:
    console = Console(width=100, file=io.StringIO())
    rows = [
        {"destination": "published", "change": "entered", "reason": "behaviour", "users": 47},
        {"destination": "published", "change": "entered", "reason": "new_user", "users": 3147},
        {"destination": "published", "change": "left", "reason": "gone", "users": 1},
        {"destination": "crm", "change": "left", "reason": "gone", "users": 9},
    ]
    nothing: dict[str, Any] = {"findings": [], "deliveries": [], "abandoned": {}, "held": None, "release": None}
    published = Published(None, None, "UTC", Path("latest"), 1234, rows, **nothing)
    show_published(published, "habitus.toml", "habitus", console)
    written: Any = console.file
    assert "entered: 3,147 memberships (new user), 47 (behaviour)" in written.getvalue()
    assert "left: 1 membership (gone)" in written.getvalue()


MAY = datetime(2024, 5, 31, 21, 55, tzinfo=UTC)
JUNE = datetime(2024, 5, 31, 22, tzinfo=UTC)


def said(why: str, now: datetime, *notes: str) -> str:
    console = Console(width=100, file=io.StringIO())
    show_decision(Decision(JUNE, why, MAY, JUNE, now, notes), "Europe/Berlin", console)
    written: Any = console.file
    return str(written.getvalue())


def test_it_says_how_old_data_is_and_what_may_be_wrong_with_it() -> None:
    shown = said("the end of 2024-05-31", datetime(2024, 11, 1, 5, tzinfo=UTC), "1 event stands alone")

    assert [line.rstrip() for line in shown.splitlines()] == [
        "  the newest event is of 2024-05-31 23:55 Europe/Berlin, 153 days ago",
        "  1 event stands alone",
    ]


def test_of_data_of_the_last_day_and_of_an_instant_that_was_given_it_says_nothing() -> None:
    assert said("the end of 2024-05-31", datetime(2024, 6, 1, 5, tzinfo=UTC)) == ""
    assert said(GIVEN, datetime(2024, 11, 1, 5, tzinfo=UTC)) == ""


def test_a_hint_is_text_and_no_markup_and_keeps_its_brackets() -> None:
    console = Console(width=100, file=io.StringIO())
    show_hints(['write "Purchase" = "purchase" under [events.names]'], console)
    written: Any = console.file

    assert written.getvalue().strip() == 'write "Purchase" = "purchase" under [events.names]'
