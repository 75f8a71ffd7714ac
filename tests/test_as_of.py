"""What a run is about: each case of docs/as-of.md in rows of events by local day."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from histories import events_of
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law

from features.as_of import Day, Decision, choose_as_of, days_of, find_lag
from features.zones import start_of_day, write_instant

BERLIN = "Europe/Berlin"
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def day(text: str, events: int = 100, last: str = "22:00", zone: str = "UTC", known: str | None = None) -> Day:
    """Write a day with events from its beginning to a time of its clock, known at once, or by an instant."""
    last_at = datetime.fromisoformat(f"{text} {last}").replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    known_at = datetime.fromisoformat(f"{known}Z") if known else last_at
    return Day(date.fromisoformat(text), events, start_of_day(date.fromisoformat(text), zone), last_at, known_at)


def row_of_days(first: str, count: int, events: int = 100, last: str = "22:00", zone: str = "UTC") -> list[Day]:
    days = (date.fromisoformat(first) + timedelta(days=number) for number in range(count))
    return [day(each.isoformat(), events, last, zone) for each in days]


def chosen(days: Sequence[Day], zone: str = "UTC", now: datetime = NOW, **options: Any) -> Decision:
    return choose_as_of(days, zone, now, **options)


def as_of(days: Sequence[Day], zone: str = "UTC", now: datetime = NOW, **options: Any) -> str:
    return write_instant(chosen(days, zone, now, **options).as_of, zone)


MAY = row_of_days("2024-05-01", 31)


# --- whole days ---


def test_a_last_day_whose_last_event_comes_as_late_as_on_another_day_is_whole() -> None:
    days = [day("2024-06-01", last="23:10"), day("2024-06-02", last="20:50"), day("2024-06-03", last="20:50")]
    assert as_of(days) == "2024-06-04 00:00 UTC"


def test_a_last_day_that_ends_earlier_than_any_other_may_go_on() -> None:
    decision = chosen(
        [day("2024-06-01", last="20:50"), day("2024-06-02", last="23:10"), day("2024-06-03", last="20:49")]
    )
    assert decision.as_of == datetime(2024, 6, 3, tzinfo=UTC)
    assert decision.newest_at == datetime(2024, 6, 2, 23, 10, tzinfo=UTC)
    assert decision.why == (
        "the end of the last whole day: 2024-06-03 may go on, as its last event comes at 20:49, "
        "earlier than on any day before (from 20:50 on)"
    )


def test_days_end_where_the_business_s_days_end() -> None:
    days = [day("2024-06-28", last="23:50", zone=BERLIN), day("2024-06-29", last="23:55", zone=BERLIN)]
    assert chosen(days, BERLIN).as_of == datetime(2024, 6, 29, 22, tzinfo=UTC)
    assert as_of(days, BERLIN) == "2024-06-30 00:00 Europe/Berlin"


@pytest.mark.parametrize(
    ("last_day", "end"), [("2024-03-31", "2024-03-31T22:00Z"), ("2024-10-27", "2024-10-27T23:00Z")]
)
def test_a_day_of_23_or_25_hours_ends_at_its_midnight(last_day: str, end: str) -> None:
    assert chosen([day(last_day, zone=BERLIN)], BERLIN).as_of == datetime.fromisoformat(end)


def test_clocks_that_change_at_midnight_begin_the_day_when_they_change() -> None:
    assert start_of_day(date(2023, 4, 28), "Africa/Cairo") == datetime(2023, 4, 27, 22, tzinfo=UTC)


def test_only_the_28_days_before_say_how_late_a_day_ends() -> None:
    before, early = row_of_days("2024-05-02", 28), day("2024-05-01", last="09:00")
    assert as_of([early, *before, day("2024-05-30", last="12:00")]) == "2024-05-30 00:00 UTC"
    assert as_of([early, *before[1:], day("2024-05-30", last="12:00")]) == "2024-05-31 00:00 UTC"


def test_a_last_day_with_less_than_half_of_the_fewest_events_may_go_on() -> None:
    assert as_of([*MAY, day("2024-06-01", events=50)]) == "2024-06-02 00:00 UTC"
    assert as_of([*MAY, day("2024-06-01", events=49)]) == "2024-06-01 00:00 UTC"


def test_the_whole_days_before_one_that_may_go_on_include_empty_ones() -> None:
    friday, monday = [day("2024-06-06"), day("2024-06-07")], day("2024-06-10", last="09:00")
    assert as_of([*friday, monday]) == "2024-06-10 00:00 UTC"
    assert as_of(friday) == "2024-06-08 00:00 UTC"


def test_a_day_that_is_not_over_is_not_whole_however_late_its_last_event() -> None:
    days = [day("2024-06-01", last="20:00"), day("2024-06-02", last="23:58")]
    assert as_of(days, now=datetime(2024, 6, 2, 23, 59, tzinfo=UTC)) == "2024-06-02 00:00 UTC"
    assert as_of(days, now=datetime(2024, 6, 3, tzinfo=UTC)) == "2024-06-03 00:00 UTC"


def test_whether_a_day_is_over_is_told_by_the_business_s_clocks() -> None:
    days = [day("2024-06-01", last="20:00", zone=BERLIN), day("2024-06-02", last="23:58", zone=BERLIN)]
    assert as_of(days, BERLIN, now=datetime(2024, 6, 2, 21, 59, tzinfo=UTC)) == "2024-06-02 00:00 Europe/Berlin"
    assert as_of(days, BERLIN, now=datetime(2024, 6, 2, 22, tzinfo=UTC)) == "2024-06-03 00:00 Europe/Berlin"


def test_a_source_of_dates_has_whole_days_unless_they_are_not_over() -> None:
    days = [day("2024-06-01", last="00:00"), day("2024-06-02", events=1, last="00:00")]
    assert as_of(days, day_level=True) == "2024-06-03 00:00 UTC"
    assert as_of(days, now=datetime(2024, 6, 2, 5, tzinfo=UTC), day_level=True) == "2024-06-02 00:00 UTC"


def test_the_newest_event_of_a_source_of_dates_may_be_as_late_as_its_day() -> None:
    friday = [day("2024-06-06", last="00:00"), day("2024-06-07", last="00:00")]
    decision = chosen(friday, scheduled_at=datetime(2024, 6, 10, 5, tzinfo=UTC), day_level=True)
    assert decision.newest_at is not None
    assert write_instant(decision.newest_at, "UTC") == "2024-06-07 23:59 UTC"
    assert find_lag(decision.newest_at, decision.due, 3, "UTC") is None


def test_a_single_day_is_all_there_is() -> None:
    assert as_of([day("2024-06-01", events=1, last="08:00")]) == "2024-06-02 00:00 UTC"
    decision = chosen([day("2024-06-01")], now=datetime(2024, 6, 1, 12, tzinfo=UTC))
    assert decision.as_of == datetime(2024, 6, 2, tzinfo=UTC)
    assert decision.why == "the end of 2024-06-01, the only day"


# --- schedules ---


def test_a_schedule_is_about_the_end_of_the_last_whole_day_before_it() -> None:
    assert as_of(MAY, scheduled_at=datetime(2024, 6, 1, 5, tzinfo=UTC)) == "2024-06-01 00:00 UTC"
    until_two = [*MAY, day("2024-06-01", events=10, last="02:00")]  # files of other days than the business's
    assert as_of(until_two, scheduled_at=datetime(2024, 6, 1, 5, tzinfo=UTC)) == "2024-06-01 00:00 UTC"


def test_a_schedule_is_about_its_own_instant_where_events_go_on_until_an_hour_before() -> None:
    live = [*MAY, day("2024-06-01", events=10, last="04:50")]
    decision = chosen(live, scheduled_at=datetime(2024, 6, 1, 5, 50, tzinfo=UTC))
    assert decision.as_of == decision.due == datetime(2024, 6, 1, 5, 50, tzinfo=UTC)
    assert decision.why == "the scheduled instant: events go on until 2024-06-01 04:50 UTC"
    assert as_of(live, scheduled_at=datetime(2024, 6, 1, 5, 51, tzinfo=UTC)) == "2024-06-01 00:00 UTC"


def test_dates_do_not_go_on_until_an_hour() -> None:
    today = [*MAY, day("2024-06-01", last="00:00")]
    assert as_of(today, scheduled_at=datetime(2024, 6, 1, 0, 30, tzinfo=UTC), day_level=True) == "2024-06-01 00:00 UTC"


def test_a_schedule_is_about_its_own_instant_where_the_last_day_was_not_known_at_its_end() -> None:
    loaded = [*MAY[:-1], day("2024-05-31", known="2024-06-01T02:10")]
    decision = chosen(loaded, scheduled_at=datetime(2024, 6, 1, 5, tzinfo=UTC))
    assert decision.as_of == datetime(2024, 6, 1, 5, tzinfo=UTC)
    assert decision.newest_at == datetime(2024, 5, 31, 22, tzinfo=UTC)
    assert decision.why == "the scheduled instant: events of 2024-05-31 were known by 2024-06-01 02:10 UTC only"
    assert as_of(loaded, scheduled_at=datetime(2024, 6, 2, tzinfo=UTC)) == "2024-06-02 00:00 UTC"
    assert as_of(loaded, scheduled_at=datetime(2024, 6, 2, 5, tzinfo=UTC)) == "2024-06-01 00:00 UTC"


def test_a_schedule_within_the_only_day_is_about_its_own_instant() -> None:
    decision = chosen([day("2024-06-01", last="02:00")], scheduled_at=datetime(2024, 6, 1, 5, tzinfo=UTC))
    assert decision.as_of == datetime(2024, 6, 1, 5, tzinfo=UTC)
    assert decision.why == "the scheduled instant: 2024-06-01, the only day, is not over"


def test_a_schedule_that_runs_late_is_about_what_it_was_due_for() -> None:
    at_five = datetime(2024, 6, 1, 5, tzinfo=UTC)
    until_five = [*MAY, day("2024-06-01", last="04:50")]
    later = [*until_five, *row_of_days("2024-06-02", 3)]
    assert chosen(later, scheduled_at=at_five) == chosen(until_five, scheduled_at=at_five)


def test_a_schedule_takes_its_own_instant_for_now() -> None:
    at_five = datetime(2024, 6, 1, 5, tzinfo=UTC)
    assert chosen(MAY, scheduled_at=at_five).now == at_five
    assert chosen(MAY, scheduled_at=at_five) == chosen(MAY, now=at_five + timedelta(days=9), scheduled_at=at_five)


def test_a_schedule_before_all_events_has_none() -> None:
    decision = chosen(MAY, scheduled_at=datetime(2024, 4, 1, 5, tzinfo=UTC))
    assert (decision.as_of, decision.newest_at) == (datetime(2024, 4, 1, tzinfo=UTC), None)


# --- clocks ahead ---


def test_a_row_of_a_clock_that_is_ahead_does_not_move_the_instant() -> None:
    decision = chosen([*MAY, day("2026-02-03", events=1)])
    assert decision.as_of == datetime(2024, 6, 1, tzinfo=UTC)
    assert decision.newest_at == datetime(2024, 5, 31, 22, tzinfo=UTC)
    assert decision.notes == (
        "1 event stands alone, on 2026-02-03, 613 days after all others: of a clock that is ahead, it seems, "
        "so the data ends with 2024-05-31; if they are right, say --as-of 2026-02-04",
    )


def test_a_last_day_that_stands_alone_is_not_trusted_though_it_is_full() -> None:
    assert as_of([*MAY, day("2025-05-31", events=100)]) == "2024-06-01 00:00 UTC"


def test_several_clocks_may_be_ahead_by_different_times() -> None:
    ahead = [day("2024-12-01", 3), day("2025-01-01", 1), day("2026-02-03", 1), day("2026-02-04", 2)]
    decision = chosen([*MAY, *ahead])
    assert decision.as_of == datetime(2024, 6, 1, tzinfo=UTC)
    assert decision.notes[0].startswith("7 events stand alone, on 2024-12-01 to 2026-02-04, 184 days after all others")


def test_three_rows_tell_a_clock_that_is_ahead() -> None:
    assert as_of([day("2024-05-01", 1), day("2024-05-02", 1), day("2026-02-03", 1)]) == "2024-05-03 00:00 UTC"


def test_a_clock_that_is_behind_moves_nothing() -> None:
    assert as_of([day("1970-01-01", events=1), *MAY]) == "2024-06-01 00:00 UTC"
    assert chosen([day("1970-01-01", events=1), *MAY]).notes == ()


def test_the_day_before_a_clock_that_is_ahead_may_go_on_as_any_last_day() -> None:
    days = [*MAY, day("2024-06-01", last="11:00"), day("2026-02-03", events=1)]
    assert as_of(days) == "2024-06-01 00:00 UTC"


def test_a_pause_of_a_week_is_a_holiday() -> None:
    assert as_of([*MAY, day("2024-06-07")]) == "2024-06-08 00:00 UTC"
    assert as_of([*MAY, day("2024-06-08")]) == "2024-06-01 00:00 UTC"


def test_a_pause_of_twice_the_longest_before_is_the_data_s_own() -> None:
    closed = [*row_of_days("2024-04-01", 20), *row_of_days("2024-05-01", 31)]  # for 11 days
    assert as_of([*closed, day("2024-06-22")]) == "2024-06-23 00:00 UTC"
    assert as_of([*closed, day("2024-06-23")]) == "2024-06-01 00:00 UTC"


def test_activity_that_resumes_is_trusted_on_its_second_day() -> None:
    assert as_of([*MAY, day("2024-09-01")]) == "2024-06-01 00:00 UTC"
    assert as_of([*MAY, day("2024-09-01"), day("2024-09-02", 51)]) == "2024-09-03 00:00 UTC"


def test_days_beyond_a_pause_with_at_most_half_of_what_is_usual_are_of_clocks_ahead() -> None:
    assert as_of([*MAY, day("2024-09-01", 50), day("2024-09-02", 50)]) == "2024-06-01 00:00 UTC"


def test_the_larger_part_is_never_taken_for_clocks_ahead() -> None:
    first = [day("2024-01-01", 10), day("2024-01-02", 10)]
    assert as_of([*first, day("2024-05-01", events=20)]) == "2024-05-02 00:00 UTC"
    assert as_of([*first, day("2024-05-01", events=19)]) == "2024-01-03 00:00 UTC"


def test_a_single_user_who_comes_now_and_then_has_no_clock_ahead() -> None:
    visits = ["2024-01-01", "2024-01-10", "2024-01-14", "2024-02-01", "2024-02-20", "2024-03-25"]
    decision = chosen([day(each, events=1) for each in visits])
    assert (decision.as_of, decision.notes) == (datetime(2024, 3, 26, tzinfo=UTC), ())


def test_what_is_after_now_is_not_looked_at() -> None:
    assert chosen([*MAY, *row_of_days("2024-06-02", 40)], now=datetime(2024, 6, 1, 8, tzinfo=UTC)) == chosen(
        MAY, now=datetime(2024, 6, 1, 8, tzinfo=UTC)
    )


# --- dribbling tails ---


def test_a_tail_below_a_hundredth_of_what_was_usual_is_said_with_the_instant_before() -> None:
    decision = chosen([*row_of_days("2024-05-01", 31, 1000), *row_of_days("2024-06-01", 12, 3)])
    assert decision.as_of == datetime(2024, 6, 13, tzinfo=UTC)
    assert decision.notes == (
        "since 2024-06-01 there were 36 events in 12 days, less than 1 % of the 1,000 a day before: "
        "if a source has stopped, say --as-of 2024-06-01",
    )


def test_a_tail_of_a_hundredth_is_none() -> None:
    assert chosen([*MAY, *row_of_days("2024-06-01", 12, 1)]).notes == ()


def test_a_tail_may_be_longer_than_what_says_what_is_usual() -> None:
    [note] = chosen([*row_of_days("2024-05-01", 31, 1000), *row_of_days("2024-06-01", 90, 3)]).notes
    assert note.startswith("since 2024-06-01 there were 270 events in 90 days")


def test_empty_days_count_in_a_tail() -> None:
    few = [*row_of_days("2024-05-01", 31, 20), day("2024-06-07", 1)]
    [note] = chosen(few).notes
    assert note.startswith("since 2024-06-01 there was 1 event in 7 days, less than 1 % of the 20 a day before")
    assert chosen([*few[:-1], day("2024-06-05", 1)]).notes == ()


def test_a_single_low_day_is_no_tail() -> None:
    usual = row_of_days("2024-05-01", 31, 1000)
    assert chosen([*usual, day("2024-06-01", 3)]).notes == ()
    assert len(chosen([*usual, *row_of_days("2024-06-01", 2, 3)]).notes) == 1


def test_a_weekend_as_low_as_others_is_no_tail() -> None:
    weeks = [
        day(each.isoformat(), 1000 if each.weekday() < 5 else 3)
        for each in (date(2024, 5, 6) + timedelta(days=number) for number in range(28))
    ]
    assert chosen(weeks).notes == ()
    [note] = chosen([*weeks, day("2024-06-03", 3)]).notes
    assert note.endswith("say --as-of 2024-06-01")


def test_a_tail_that_comes_back_is_none() -> None:
    low = [*row_of_days("2024-05-01", 31, 1000), *row_of_days("2024-06-01", 12, 3)]
    assert chosen([*low, day("2024-06-13", 900)]).notes == ()


# --- old data ---


def test_events_older_than_the_limit_when_they_were_to_be_new_are_said() -> None:
    newest, due = datetime(2024, 5, 31, 21, 55, tzinfo=UTC), datetime(2024, 11, 1, 5, tzinfo=UTC)
    assert find_lag(newest, due, 3, BERLIN) == (
        "the newest event is of 2024-05-31 23:55 Europe/Berlin, 153.3 days before 2024-11-01 06:00 Europe/Berlin; "
        "at most 3 (publish.max_lag_days)"
    )


def test_a_lag_of_exactly_the_limit_is_none() -> None:
    newest = datetime(2024, 5, 31, 22, tzinfo=UTC)
    assert find_lag(newest, newest + timedelta(days=3), 3, "UTC") is None
    assert find_lag(newest, newest + timedelta(days=3, microseconds=1), 3, "UTC") is not None


def test_of_a_schedule_events_were_to_be_new_at_its_instant() -> None:
    november = datetime(2024, 11, 1, 5, tzinfo=UTC)
    decision = chosen(MAY, scheduled_at=november)
    assert (decision.as_of, decision.due) == (datetime(2024, 6, 1, tzinfo=UTC), november)


def test_by_hand_old_data_is_as_new_as_its_end() -> None:
    decision = chosen(MAY)
    assert decision.due == decision.as_of
    assert find_lag(decision.newest_at, decision.due, 3, "UTC") is None


# --- given instants ---


def test_a_given_instant_is_taken_as_it_is() -> None:
    given_at = datetime(2024, 5, 10, 5, tzinfo=UTC)
    decision = chosen(MAY, given=given_at)
    assert (decision.as_of, decision.due, decision.notes) == (given_at, given_at, ())


def test_a_given_instant_is_compared_with_the_newest_event_before_it() -> None:
    decision = chosen([*MAY, *row_of_days("2024-09-01", 9)], given=datetime(2024, 8, 1, tzinfo=UTC))
    assert decision.newest_at == datetime(2024, 5, 31, 22, tzinfo=UTC)
    within = chosen(MAY, given=datetime(2024, 5, 10, 5, tzinfo=UTC))
    assert within.newest_at == within.as_of


def test_a_given_instant_after_a_clock_that_is_ahead_is_compared_with_right_ones() -> None:
    decision = chosen([*MAY, day("2026-02-03", events=1)], given=datetime(2026, 2, 4, tzinfo=UTC))
    assert decision.newest_at == datetime(2024, 5, 31, 22, tzinfo=UTC)


def test_a_given_instant_before_all_events_has_none() -> None:
    assert chosen(MAY, given=datetime(2024, 4, 1, tzinfo=UTC)).newest_at is None


# --- laws ---


@st.composite
def histories(draw: st.DrawFn) -> list[Day]:
    pauses = draw(st.lists(st.sampled_from([1, 1, 1, 1, 2, 3, 8, 30, 400]), min_size=1, max_size=45))
    at, days = date(2020, 1, 1), []
    for pause in pauses:
        at += timedelta(days=pause)
        first, last = sorted(draw(st.tuples(st.integers(0, 86_399), st.integers(0, 86_399))))
        midnight = start_of_day(at, "UTC")
        events = draw(st.sampled_from([1, 2, 100, 1000]))
        first_at, last_at = midnight + timedelta(seconds=first), midnight + timedelta(seconds=last)
        days.append(Day(at, events, first_at, last_at, last_at))
    return days


@law(50)
@given(histories(), st.data())
def test_the_instant_is_a_day_s_end_after_the_first_event_and_not_after_the_last_day(
    days: list[Day], data: st.DataObject
) -> None:
    now = start_of_day(data.draw(st.sampled_from(days)).day, "UTC") + timedelta(hours=29)
    decision = chosen(days, now=now)

    assert days[0].first_at < decision.as_of <= max(now, days[0].last_at + timedelta(days=1))
    assert decision.as_of == start_of_day(decision.as_of.date(), "UTC")
    assert decision.as_of <= start_of_day(days[-1].day + timedelta(days=1), "UTC")
    assert decision.newest_at is not None
    assert decision.newest_at < decision.as_of


@law(50)
@given(histories(), st.data())
def test_days_after_a_schedule_change_nothing(days: list[Day], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(days)))
    due = start_of_day(days[count - 1].day, "UTC") + timedelta(hours=5)
    assert chosen(days, scheduled_at=due) == chosen(days[:count], scheduled_at=due)


@law(50)
@given(histories())
def test_a_day_within_a_week_of_a_whole_one_never_moves_the_instant_back(days: list[Day]) -> None:
    last, following = days[-1], replace(days[-1], day=days[-1].day + timedelta(days=7))
    end = start_of_day(last.day + timedelta(days=1), "UTC")
    if chosen(days).as_of == end:
        assert chosen([*days, following]).as_of >= end


# --- events by local day ---


def test_events_are_counted_by_local_day(engine: DuckDB) -> None:
    times = ["2024-06-28T21:59:59", "2024-06-28T22:00:00", "2024-06-29T12:00:00", "2024-06-29T21:55:00"]
    events = events_of(engine, [{"occurred_at": each} for each in times])

    first, second, _, last = (datetime.fromisoformat(f"{each}+00:00") for each in times)
    assert days_of(events, BERLIN) == [
        Day(date(2024, 6, 28), 1, first, first, first),
        Day(date(2024, 6, 29), 3, second, last, last),
    ]
    assert [(each.day.day, each.events) for each in days_of(events, "UTC")] == [(28, 2), (29, 2)]


def test_a_day_is_known_when_its_last_event_was(engine: DuckDB) -> None:
    rows = [{"occurred_at": "2024-06-28T10:00", "ingested_at": f"2024-06-29T0{hour}:00"} for hour in (2, 1)]
    [found] = days_of(events_of(engine, [*rows, {"occurred_at": "2024-06-28T12:00"}]), "UTC")
    assert found.known_at == datetime(2024, 6, 29, 2, tzinfo=UTC)


def test_quarters_of_an_hour_begin_days_somewhere(engine: DuckDB) -> None:
    events = events_of(engine, [{"occurred_at": "2024-06-28T18:14:59"}, {"occurred_at": "2024-06-28T18:15:00"}])
    assert [each.day.day for each in days_of(events, "Asia/Kathmandu")] == [28, 29]


def test_times_at_the_ends_of_the_calendar_have_no_day(engine: DuckDB) -> None:
    events = events_of(engine, [{"occurred_at": "0001-01-01T00:00:00"}, {"occurred_at": "9999-12-31T23:59:59"}])
    assert days_of(events, "America/New_York") == []
