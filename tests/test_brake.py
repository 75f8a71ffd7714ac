from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from publish.brake import BrakeSettings, judge

AS_OF = datetime(2024, 6, 30, 5, tzinfo=UTC)
COLUMNS = ["destination", "segment_id", "segment_name", "members_before", "entered", "left"]


def judged(*audiences: tuple[Any, ...], users: tuple[int | None, int] = (1000, 1000), **settings: Any) -> list[str]:
    frame = pd.DataFrame(list(audiences), columns=COLUMNS)
    return judge(frame, *users, AS_OF, AS_OF, BrakeSettings(**settings))


def audience(before: Any, entered: Any, left: Any, name: str = "crm") -> tuple[Any, ...]:
    return name, "s1", "Lapsed buyers", before, entered, left


# --- audiences ---


def test_an_audience_that_changes_by_too_much_is_said_with_its_numbers() -> None:
    assert judged(audience(1204, 20, 800)) == [
        "crm: s1 Lapsed buyers: 1,204 members, 800 would leave and 20 enter (68 % of 1,204; at most 50 %)"
    ]


def test_a_rule_whose_name_is_its_id_is_named_once() -> None:
    [said] = judged(("crm", "at_risk", "at_risk", 100, 0, 90))
    assert said.startswith("crm: at_risk: 100 members")


def test_a_change_of_exactly_the_limit_is_released() -> None:
    assert judged(audience(100, 9, 20), audience_change_max=0.29) == []
    assert len(judged(audience(100, 10, 20), audience_change_max=0.29)) == 1


def test_those_who_enter_and_those_who_leave_count_together() -> None:
    assert judged(audience(100, 50, 0)) == judged(audience(100, 0, 50)) == []
    assert len(judged(audience(100, 26, 25))) == 1


def test_an_audience_that_more_than_doubles_may_be_allowed() -> None:
    assert judged(audience(100, 150, 0), audience_change_max=1.5) == []


def test_no_audience_may_change_at_a_limit_of_0() -> None:
    assert judged(audience(100, 0, 0), audience_change_max=0) == []
    assert len(judged(audience(1000, 1, 0), audience_change_max=0)) == 1


def test_an_audience_that_was_small_never_brakes() -> None:
    assert judged(audience(99, 5000, 99)) == []
    assert len(judged(audience(100, 0, 100))) == 1


@pytest.mark.parametrize("nobody", [0, None])
def test_an_audience_that_had_nobody_never_brakes(nobody: int | None) -> None:
    assert judged(audience(nobody, 5000, None), audience_min=0) == []


def test_no_audiences_never_brake() -> None:
    assert judged() == []


def test_the_largest_change_comes_first() -> None:
    found = judged(audience(100, 0, 60, "ads"), audience(100, 0, 90, "crm"), audience(100, 0, 60, "mail"))
    assert [said.partition(":")[0] for said in found] == ["crm", "ads", "mail"]


def test_a_share_shows_the_decimals_that_put_it_beyond_the_limit() -> None:
    [said] = judged(audience(10_000, 0, 5_004))
    assert said.endswith("(50.04 % of 10,000; at most 50 %)")


@given(before=st.integers(100, 10**9), change=st.integers(0, 10**9), most=st.floats(0, 10))
def test_an_audience_is_held_just_where_its_share_is_beyond_the_limit(before: int, change: int, most: float) -> None:
    held = judged(audience(before, 0, change), audience_change_max=most)
    assert bool(held) == (change / before > most)


# --- users ---


def test_far_fewer_users_than_before_are_said_with_their_numbers() -> None:
    assert judged(users=(10_000, 7_000)) == ["users: 10,000 before, 7,000 now (30 % fewer; at most 20 %)"]


def test_a_loss_of_exactly_the_limit_is_released() -> None:
    assert judged(users=(1000, 800)) == []
    assert judged(users=(1000, 799)) == ["users: 1,000 before, 799 now (20.1 % fewer; at most 20 %)"]


def test_more_users_never_brake() -> None:
    assert judged(users=(1000, 100_000)) == []


@pytest.mark.parametrize("before", [None, 0])
def test_the_first_users_never_brake(before: int | None) -> None:
    assert judged(users=(before, 0)) == []


# --- instants ---


def test_an_instant_before_the_released_one_is_held() -> None:
    nothing = pd.DataFrame([], columns=COLUMNS)
    local = (AS_OF - timedelta(days=7)).astimezone(timezone(timedelta(hours=2)))
    assert judge(nothing, 10, 10, AS_OF, local, BrakeSettings()) == [
        "as of 2024-06-23 05:00 UTC, which is before 2024-06-30 05:00 UTC, the released one"
    ]
    assert judge(nothing, 10, 10, AS_OF, AS_OF, BrakeSettings()) == []
    assert judge(nothing, None, 10, None, AS_OF, BrakeSettings()) == []


def test_every_reason_is_said() -> None:
    frame = pd.DataFrame([audience(100, 0, 90)], columns=COLUMNS)
    found = judge(frame, 1000, 10, AS_OF, AS_OF - timedelta(days=1), BrakeSettings())
    assert [said.split()[0] for said in found] == ["as", "users:", "crm:"]
