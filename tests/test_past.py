from datetime import timedelta
from itertools import pairwise

from shops import Ran

from flows.instant import event_span
from flows.past import digest, read_past
from flows.snapshot import complete_dates

DAY = timedelta(days=1)


def test_outcomes_are_complete_before_the_next_snapshot_and_the_last_ones_now(ran: Ran) -> None:
    reach = ran.configuration.labels.reach
    with ran.configuration.open_lake() as lake:
        now = max(lake.partitions(lake.find_contract("snapshots")))
        past = read_past(ran.configuration, lake, now)

    begun = [*(one.as_of for one in past), now]
    assert len(past) == 3
    assert all(next_one - one >= reach for one, next_one in pairwise(begun))
    assert all(one.users["user_id"].to_list() == one.outcomes["user_id"].to_list() for one in past)


def test_outcomes_know_nothing_of_what_came_after_the_snapshot_that_learns_from_them(ran: Ran) -> None:
    with ran.configuration.open_lake() as lake:
        now = max(lake.partitions(lake.find_contract("snapshots")))
        before = read_past(ran.configuration, lake, now)
        then = read_past(ran.configuration, lake, before[-1].as_of)

    # Seen from the last of them, the same two snapshots before it had the same outcomes.
    assert digest(then[-2:]) == digest(before[:2])


def test_where_the_history_is_short_labels_of_shorter_windows_are_learnt_from(ran: Ran) -> None:
    with ran.configuration.open_lake() as lake:
        span = event_span(lake)
        assert span is not None
        instants, labels = complete_dates(ran.configuration, lake, span[0] + 30 * DAY)

    assert list(labels) == ["conversion"]
    assert instants == [span[0] + number * DAY for number in (9, 16, 23)]


def test_without_two_windows_of_history_there_is_no_past(ran: Ran) -> None:
    with ran.configuration.open_lake() as lake:
        span = event_span(lake)
        assert span is not None
        assert complete_dates(ran.configuration, lake, span[0] + 20 * DAY) == ([], {})
        assert read_past(ran.configuration, lake, span[0] + 20 * DAY) == []
