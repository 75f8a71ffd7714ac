from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pytest
import stationary
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law

from models.conditions import parse
from models.rules import Rule, match, prepare
from models.staying import staying_days
from publish.brake import BrakeSettings, Step, judge

AS_OF = datetime(2024, 6, 30, 5, tzinfo=UTC)
DAY = timedelta(days=1)
COLUMNS = ["destination", "segment_id", "segment_name", "members_before", "entered", "left", "made"]
STEPS = ["destination", "segment_id", "days", "members_before", "entered", "left", "made"]


def audience(before: int, entered: int, left: int, name: str = "crm", made: int = 0) -> tuple[Any, ...]:
    return name, "s1", "Lapsed buyers", before, entered, left, made


def earlier(*moved: tuple[int, int], days: float = 7, before: int = 1000, made: int = 0) -> list[tuple[Any, ...]]:
    """Return steps at which so many of the members entered and left."""
    return [("crm", "s1", days, before, entered, left, made) for entered, left in moved]


def judged(
    *audiences: tuple[Any, ...],
    days: float = 7,
    steps: Sequence[tuple[Any, ...]] = (*earlier((0, 0)), *earlier((0, 0)), *earlier((0, 0))),
    users: tuple[int, int] = (1000, 1000),
    staying: float = float("inf"),
    levels: Mapping[str, tuple[float, float]] | None = None,
    **settings: Any,
) -> list[str]:
    """Judge audiences; without `steps`, of ones that have never changed."""
    step = Step(AS_OF - days * DAY, AS_OF, *users, pd.DataFrame(list(audiences), columns=COLUMNS), levels or {})
    known = pd.DataFrame(list(steps), columns=STEPS)
    return judge(step, known, {"s1": staying}, BrakeSettings(**settings))


# --- audiences that never change ---


def test_an_audience_that_changes_by_too_much_is_said_with_its_numbers() -> None:
    assert judged(audience(1204, 10, 812), steps=earlier((200, 0), (0, 100), (0, 0))) == [
        "crm: s1 Lapsed buyers: 1,204 members, 812 would leave and 10 enter in 7 days "
        "(67 % fewer; usual is 10 %, at most 60 %)"
    ]


def test_a_rule_whose_name_is_its_id_is_named_once() -> None:
    [said] = judged(("crm", "at_risk", "at_risk", 100, 0, 90, 0))
    assert said.startswith("crm: at_risk: 100 members")


def test_a_change_of_exactly_the_limit_is_released() -> None:
    assert judged(audience(100, 9, 20), audience_change_max=0.29) == []
    assert len(judged(audience(100, 10, 20), audience_change_max=0.29)) == 1


def test_those_who_enter_and_those_who_leave_count_together() -> None:
    assert judged(audience(100, 50, 0)) == judged(audience(100, 0, 50)) == []
    assert len(judged(audience(100, 26, 25))) == 1


def test_no_audience_may_change_at_a_limit_of_0() -> None:
    assert judged(audience(100, 0, 0), audience_change_max=0) == []
    assert len(judged(audience(1000, 1, 0), audience_change_max=0)) == 1


def test_an_audience_of_few_is_judged_as_if_it_had_audience_min_members() -> None:
    assert judged(audience(4, 46, 4)) == []
    assert len(judged(audience(4, 47, 4))) == 1
    assert judged(audience(4, 47, 4), audience_min=1000) == []


def test_a_small_audience_that_becomes_that_of_everybody_is_held() -> None:
    assert len(judged(audience(12, 4000, 12))) == 1


def test_an_audience_that_had_nobody_brakes_only_for_another_rule_or_model() -> None:
    assert judged(audience(0, 5000, 0), audience_min=0) == []
    assert judged(audience(0, 5000, 0, made=50)) == []
    [said] = judged(audience(0, 5000, 0, made=5000))
    assert said.endswith("(5,000 of them by another rule or model, 5000 %; at most 50 %)")


def test_no_audiences_never_brake() -> None:
    assert judged() == []


def test_the_largest_change_comes_first() -> None:
    found = judged(audience(100, 0, 60, "ads"), audience(100, 0, 90, "crm"), audience(100, 0, 60, "mail"), days=0)
    assert [said.partition(":")[0] for said in found] == ["crm", "ads", "mail"]


def test_a_share_shows_the_decimals_that_put_it_beyond_the_limit() -> None:
    [said] = judged(audience(10_000, 5_004, 0))
    assert said.endswith("(50.04 %; usual is 0 %, at most 50 %)")


@law(20)
@given(before=st.integers(100, 10**9), change=st.integers(0, 10**9), most=st.floats(0, 10))
def test_an_audience_is_held_just_where_its_share_is_beyond_the_limit(before: int, change: int, most: float) -> None:
    held = judged(audience(before, 0, change), audience_change_max=most)
    assert bool(held) == (change / before > most)


# --- what is usual ---


def test_what_an_audience_did_before_is_usual() -> None:
    weekly = earlier((900, 950), (1000, 1000), (1050, 900))
    assert judged(audience(1000, 1200, 1000), steps=weekly) == []
    [said] = judged(audience(1000, 1501, 1000), steps=weekly)
    assert said.endswith("(250.1 %; usual is 200 %, at most 250 %)")


def test_until_three_changes_are_known_all_may_be_exchanged_in_two_weeks() -> None:
    two = earlier((0, 0), (0, 0))
    assert judged(audience(1000, 750, 750), steps=two) == []
    assert len(judged(audience(1000, 751, 750), steps=two)) == 1
    assert judged(audience(1000, 1500, 1000), days=60, steps=two) == []
    assert len(judged(audience(1000, 400, 400), days=1, steps=two)) == 1


def test_at_two_destinations_the_same_segment_has_changes_of_its_own() -> None:
    busy = earlier((900, 900), (900, 900), (900, 900))
    at_rest = [("ads", *one[1:]) for one in earlier((0, 0), (0, 0), (0, 0))]
    found = judged(audience(1000, 900, 900), audience(1000, 900, 900, "ads"), steps=[*busy, *at_rest])
    assert [said.partition(":")[0] for said in found] == ["ads"]


def test_in_more_days_as_much_more_is_usual_up_to_an_exchange_of_all() -> None:
    daily = earlier((50, 50), (50, 40), (0, 0), days=1)
    assert judged(audience(1000, 600, 600), days=7, steps=daily) == []
    assert len(judged(audience(1000, 601, 600), days=7, steps=daily)) == 1
    assert len(judged(audience(1000, 1501, 1000), days=100, steps=daily)) == 1


def test_in_fewer_days_as_much_is_usual_as_members_may_come_and_go_at_once() -> None:
    weekly = earlier((300, 300), (300, 300), (300, 300))
    assert judged(audience(1000, 550, 550), days=1, steps=weekly) == []


def test_what_another_rule_or_model_moved_before_is_not_usual() -> None:
    narrower, wider = (earlier(moved, moved, moved, made=900) for moved in ((0, 900), (900, 0)))
    assert len(judged(audience(1000, 0, 600), steps=narrower)) == 1
    assert len(judged(audience(1000, 600, 0), steps=wider)) == 1


def test_what_another_rule_or_model_moves_is_never_usual() -> None:
    weekly = earlier((1000, 1000), (1000, 1000), (1000, 1000))
    assert judged(audience(1000, 1000, 1000, made=500), steps=weekly) == []
    [said] = judged(audience(1000, 1000, 1000, made=501), steps=weekly)
    assert said.endswith("(501 of them by another rule or model, 50.1 %; at most 50 %)")


def test_members_whose_days_are_over_leave_from_the_first_version_on() -> None:
    assert judged(audience(1000, 1200, 1000), steps=[], staying=7) == []
    assert judged(audience(1000, 1200, 1000), staying=7) == []
    assert len(judged(audience(1000, 500, 500), days=1, steps=[], staying=7)) == 1


def test_nearly_all_may_be_exchanged_and_not_be_lost() -> None:
    assert judged(audience(1000, 500, 1000), staying=7) == []
    [said] = judged(audience(1000, 499, 1000), staying=7)
    assert said.endswith("(50.1 % fewer; usual is 0 %, at most 50 %)")


def test_a_loss_that_was_there_before_is_usual() -> None:
    at_weekends = earlier((0, 900), (0, 0), (0, 0), days=1)
    assert judged(audience(1000, 0, 900), days=1, steps=at_weekends) == []


# --- users ---


def test_far_fewer_users_than_before_are_said_with_their_numbers() -> None:
    assert judged(users=(10_000, 7_000)) == ["users: 10,000 before, 7,000 now (30 % fewer; at most 20 %)"]


def test_a_loss_of_users_of_exactly_the_limit_is_released() -> None:
    assert judged(users=(1000, 800)) == []
    assert judged(users=(1000, 799)) == ["users: 1,000 before, 799 now (20.1 % fewer; at most 20 %)"]


def test_more_users_never_brake() -> None:
    assert judged(users=(1000, 100_000)) == []


def test_the_first_users_never_brake() -> None:
    assert judged(users=(0, 0)) == []


# --- levels ---


def test_twice_the_revenue_or_a_hundredth_of_it_is_said_with_its_numbers() -> None:
    assert judged(levels={"revenue_total": (43.2, 86.4)}) == [
        "revenue, the median of users with any: 43 before, 86 now (100 % more; at most 50 %)"
    ]
    assert judged(levels={"pages_per_session": (4.2, 0.042)}) == [
        "pages per session, the median of users with any: 4.2 before, 0.0 now (99 % less; at most 50 %)"
    ]


def test_a_level_that_changes_by_exactly_the_limit_is_released() -> None:
    assert judged(levels={"revenue_total": (40, 60)}) == judged(levels={"revenue_total": (40, 20)}) == []
    assert len(judged(levels={"revenue_total": (40, 60.1)})) == 1


# --- instants ---


def test_an_instant_before_the_released_one_is_held() -> None:
    nothing = pd.DataFrame([], columns=COLUMNS)
    local = (AS_OF - timedelta(days=7)).astimezone(timezone(timedelta(hours=2)))
    steps = pd.DataFrame([], columns=STEPS)
    assert judge(Step(AS_OF, local, 10, 10, nothing), steps, {}, BrakeSettings()) == [
        "as of 2024-06-23 05:00 UTC, which is before 2024-06-30 05:00 UTC, the released one"
    ]
    assert judge(Step(AS_OF, AS_OF, 10, 10, nothing), steps, {}, BrakeSettings()) == []


def test_every_reason_is_said() -> None:
    found = judged(audience(100, 0, 90), users=(1000, 10), days=-1)
    assert [said.split()[0] for said in found] == ["as", "users:", "crm:"]


# --- definitions by which members leave ---


@pytest.mark.parametrize(
    ("condition", "days"),
    [
        ("tenure_days <= 7", 7),
        ("tenure_days < 7 and session_count >= 2", 7),
        ("recency_days between 28 and 90", 62),
        ("recency_days <= 28 or tenure_days <= 90", 90),
        ("recency_days > 90", None),
        ("not recency_days > 30", 30),
        ("not (recency_days > 30 or tenure_days > 60)", 30),
        ("session_count_28d >= 4", 28),
        ("purchase_count_90d > 0", 90),
        ("session_count_28d <= 3", None),
        ("not session_count_28d <= 3", 28),
        ("session_count_7d >= p90", 7),
        ("recency_days <= p90", None),
        ("recency_days < tenure_days", None),
        ("recency_days != 3 and recency_days not between 5 and 9", None),
        ("recency_days in (3, 5)", 2),
        ("recency_days is null", None),
        ("purchase_count = 1 and session_trend_28d > 0", None),
        ("plan = 'pro'", None),
    ],
)
def test_who_does_nothing_meets_a_condition_for_so_many_days(condition: str, days: float | None) -> None:
    assert staying_days(parse(condition)) == (float("inf") if days is None else days)


# --- twenty weeks in which nothing happens, and what may happen in them ---


def members_of(snapshot: pd.DataFrame, rules: Sequence[Rule]) -> dict[str, set[str]]:
    met = match(snapshot, prepare(rules, snapshot)[0]).explode().dropna()
    return {str(name): set(users) for name, users in met.index.to_series().groupby(met.to_numpy())}


class Audiences:
    """Members by rule at each version, and what the brake says of the next one."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules, self.steps = rules, pd.DataFrame([], columns=STEPS)
        self.since: datetime | None = None
        self.snapshot = pd.DataFrame()

    def judge(self, as_of: datetime, snapshot: pd.DataFrame, rules: Sequence[Rule]) -> list[str]:
        assert self.since is not None
        step = self._step(as_of, snapshot, rules)
        staying = {rule.name: staying_days(parse(rule.condition)) for rule in rules}
        before, now = stationary.levels_of(self.snapshot), stationary.levels_of(snapshot)
        levels = {name: (before[name], now[name]) for name in now}
        moved = Step(self.since, as_of, len(self.snapshot), len(snapshot), step, levels)
        return judge(moved, self.steps, staying, BrakeSettings())

    def release(self, as_of: datetime, snapshot: pd.DataFrame) -> None:
        if self.since is not None:
            step = self._step(as_of, snapshot, self.rules).assign(days=(as_of - self.since) / DAY)
            self.steps = pd.concat([self.steps, step[STEPS]])
        self.since, self.snapshot = as_of, snapshot

    def _step(self, as_of: datetime, snapshot: pd.DataFrame, rules: Sequence[Rule]) -> pd.DataFrame:
        before, after = members_of(self.snapshot, self.rules), members_of(snapshot, rules)
        redefined = {new.name for new, old in zip(rules, self.rules, strict=True) if new != old}
        rows = []
        for name, members in before.items():
            entered, left = len(after.get(name, set()) - members), len(members - after.get(name, set()))
            made = entered + left if name in redefined else 0
            rows.append(("crm", name, name, len(members), entered, left, made))
        return pd.DataFrame(rows, columns=COLUMNS)


TWENTY_WEEKS = [pytest.param("weekly", 21, marks=pytest.mark.slow), pytest.param("daily", 141, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("rhythm", "versions"), [("weekly", 7), ("daily", 7), *TWENTY_WEEKS])
def test_where_every_week_is_as_the_one_before_nothing_is_held_but_accidents(
    engine: DuckDB, rhythm: str, versions: int
) -> None:
    world = stationary.World(engine, places=1000, days=versions * stationary.RHYTHMS[rhythm])
    instants = world.instants[:: stationary.RHYTHMS[rhythm]][:versions]
    occasions = {1, 5, versions - 1}
    snapshots = world.snapshots(instants)
    twice = world.snapshots([instants[number] for number in sorted(occasions)], doubled=True)
    audiences = Audiences(world.rules)
    audiences.release(instants[0], snapshots[instants[0]])
    for number, as_of in enumerate(instants[1:], start=1):
        assert audiences.judge(as_of, snapshots[as_of], world.rules) == []
        if number in occasions:
            found = stationary.accidents(snapshots[as_of], twice[as_of], world.rules, number)
            held = {kind for kind, accident in found.items() if audiences.judge(as_of, *accident)}
            assert held == found.keys()
        audiences.release(as_of, snapshots[as_of])
