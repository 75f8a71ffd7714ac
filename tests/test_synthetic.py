from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend as DuckDB

from features.events import EVENTS
from features.lake import Lake
from features.sessions import sessionize
from features.synthetic import FUNNEL, Traffic, synthetic_events, write_deliveries, write_events

Write = Callable[[Path, Traffic, int], list[Path]]

TRAFFIC = Traffic(events=30_000, days=14)


@pytest.fixture(scope="module")
def module_engine() -> Iterator[DuckDB]:
    engine = ibis.duckdb.connect()
    engine.raw_sql("SET TimeZone = 'UTC'")
    yield engine
    engine.disconnect()


@pytest.fixture(scope="module")
def events(module_engine: DuckDB) -> pd.DataFrame:
    made: pd.DataFrame = synthetic_events(module_engine, TRAFFIC).to_pandas()
    return by_id(made)


@pytest.fixture(scope="module")
def sessions(module_engine: DuckDB, events: pd.DataFrame) -> pd.DataFrame:
    table = module_engine.create_table("all_events", events, schema=EVENTS.schema)
    made: pd.DataFrame = sessionize(table, timedelta(minutes=30)).to_pandas()
    return made


@pytest.fixture(scope="module")
def deliveries(module_engine: DuckDB, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return all rows that were delivered, each with the day that its file is named after."""
    files = write_deliveries(tmp_path_factory.mktemp("deliveries"), TRAFFIC)
    whole: pd.DataFrame = module_engine.read_parquet([*files], filename=True).to_pandas()
    return whole.assign(day=[date.fromisoformat(Path(file).stem) for file in whole.pop("filename")])


def by_id(events: pd.DataFrame) -> pd.DataFrame:
    return events.sort_values("event_id", ignore_index=True)


# --- the same again ---


def test_the_same_traffic_gives_the_same_events_and_another_seed_others(engine: DuckDB) -> None:
    first, again, other = (
        by_id(synthetic_events(engine, Traffic(events=2000, days=3, seed=seed)).to_pandas()) for seed in (5, 5, 6)
    )

    pd.testing.assert_frame_equal(first, again)
    assert not first.occurred_at.equals(other.occurred_at)


@pytest.mark.parametrize("write", [write_events, write_deliveries])
def test_threads_change_no_byte(write: Write, tmp_path: Path) -> None:
    traffic = Traffic(events=5000, days=9)
    alone, together = (write(tmp_path / str(threads), traffic, threads) for threads in (1, 4))

    assert [file.name for file in alone] == [file.name for file in together]
    assert [file.read_bytes() for file in alone] == [file.read_bytes() for file in together]


def test_files_hold_the_same_events_as_memory(engine: DuckDB, events: pd.DataFrame, tmp_path: Path) -> None:
    files = write_events(tmp_path, TRAFFIC)

    pd.testing.assert_frame_equal(by_id(EVENTS.check(engine.read_parquet([*files])).to_pandas()), events)
    for file in files:
        days = pq.read_table(file, columns=["occurred_at"])["occurred_at"].cast("date32").unique().to_pylist()
        assert days == [date.fromisoformat(file.stem)]


def test_all_delivered_events_are_the_same_events(deliveries: pd.DataFrame, events: pd.DataFrame) -> None:
    first = deliveries.sort_values("ingested_at").drop_duplicates("event_id")

    pd.testing.assert_frame_equal(by_id(first[events.columns]), events)


def test_there_are_exactly_as_many_events_as_asked_and_a_lake_takes_them(lake: Lake) -> None:
    lake.write(EVENTS, synthetic_events(lake.engine, Traffic(events=1003, days=5)))

    assert lake.read(EVENTS).count().to_pyarrow().as_py() == 1003
    assert lake.read(EVENTS).event_id.length().max().to_pyarrow().as_py() <= 12


@pytest.mark.parametrize(("events", "days", "users"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_traffic_of_nothing_is_refused(events: int, days: int, users: int) -> None:
    with pytest.raises(ValueError, match="at least one event, one day and one user"):
        Traffic(events=events, days=days, users=users)


def test_a_single_event_on_many_days_is_enough(engine: DuckDB) -> None:
    assert len(synthetic_events(engine, Traffic(events=1, days=30)).to_pandas()) == 1


# --- what it is like ---


def test_sessions_have_8_events_on_average_one_in_five_has_one_and_a_few_are_very_long(sessions: pd.DataFrame) -> None:
    assert sessions.event_count.mean() == pytest.approx(8, abs=0.5)
    assert sessions.event_count.median() == pytest.approx(4, abs=1)
    assert (sessions.event_count == 1).mean() == pytest.approx(0.2, abs=0.03)
    assert sessions.event_count.max() > 100
    assert (sessions.duration_s > 3600).any()


def test_no_session_is_near_the_longest_that_is_allowed(sessions: pd.DataFrame) -> None:
    assert sessions.duration_s.max() < 20 * 3600


def test_pauses_are_log_normal_with_some_at_no_time_at_all_and_some_near_the_limit(events: pd.DataFrame) -> None:
    ordered = events.sort_values(["user_id", "occurred_at"])
    pause_s = ordered.occurred_at.diff().dt.total_seconds()[ordered.user_id == ordered.user_id.shift()]
    within = pause_s[pause_s <= 1800]

    assert within.median() == pytest.approx(20, abs=2)
    assert np.log(within[within > 0]).std() == pytest.approx(1.5, abs=0.15)
    assert (within == 0).any()
    assert (within > 1500).any()


def test_evenings_are_busy_nights_and_weekends_are_quiet(sessions: pd.DataFrame, events: pd.DataFrame) -> None:
    by_hour = sessions.groupby(sessions.started_at.dt.hour).size()
    by_weekday = events.groupby(events.occurred_at.dt.day_name()).size()

    assert by_hour.idxmax() in (19, 20)
    assert by_hour.max() / by_hour.min() == pytest.approx(4, rel=0.25)
    assert by_weekday.Saturday / by_weekday.Tuesday == pytest.approx(0.7 / 1.1, rel=0.05)


def test_activity_of_users_falls_with_their_rank_by_a_power_law(engine: DuckDB) -> None:
    made = synthetic_events(engine, Traffic(events=100_000, days=120, users=500))
    events = made.select("user_id", "occurred_at").order_by("user_id", "occurred_at").to_pandas()
    starts = events[events.occurred_at - events.groupby("user_id").occurred_at.shift() > timedelta(minutes=30)]
    activity = starts.user_id.value_counts().to_numpy()
    slope, _ = np.polyfit(np.log(np.arange(10, 250)), np.log(activity[10:250]), 1)

    assert slope == pytest.approx(-2 / 3, abs=0.07)
    assert activity[:50].sum() / activity.sum() == pytest.approx(0.43, abs=0.03)


def test_without_a_number_of_users_each_has_a_session_in_two_weeks() -> None:
    assert Traffic(events=8000, days=100).user_count == pytest.approx(1000 / 100 * 14, rel=0.03)


def test_who_buys_had_a_cart_and_a_checkout_first_and_only_a_purchase_has_revenue(events: pd.DataFrame) -> None:
    ordered = events.sort_values(["user_id", "occurred_at", "event_id"])
    steps = ordered[ordered.event_name.isin(FUNNEL)]
    before = steps.groupby("user_id").event_name.shift()

    assert set(before[steps.event_name == "purchase"]) == {"checkout_start"}
    assert set(before[steps.event_name == "checkout_start"]) == {"add_to_cart"}
    assert set(events.event_name[events.revenue.notna()]) == {"purchase"}
    assert (steps.event_name.value_counts()[[*FUNNEL]].diff().dropna() < 0).all()


def test_late_events_are_as_many_as_asked_by_minutes_to_days(events: pd.DataFrame) -> None:
    delay = events.ingested_at - events.occurred_at
    late = delay[delay > timedelta(minutes=1)]

    assert len(late) / len(events) == pytest.approx(0.02, abs=0.003)
    assert late.dt.total_seconds().mean() / 3600 == pytest.approx(6, abs=0.6)
    assert late.max() > timedelta(days=1)
    assert delay.min() > timedelta(0)


def test_some_events_are_delivered_twice_the_second_time_later_and_otherwise_the_same(deliveries: pd.DataFrame) -> None:
    ordered = deliveries.sort_values("ingested_at").drop(columns="day")
    again = ordered[ordered.duplicated("event_id")].set_index("event_id")
    first = ordered.drop_duplicates("event_id").set_index("event_id").loc[again.index]

    assert len(again) / len(first) == 1
    assert len(again) / TRAFFIC.events == pytest.approx(0.01, abs=0.002)
    assert (again.ingested_at > first.ingested_at).all()
    pd.testing.assert_frame_equal(again.drop(columns="ingested_at"), first.drop(columns="ingested_at"))


def test_a_file_of_deliveries_holds_what_arrived_on_its_day(deliveries: pd.DataFrame) -> None:
    assert (deliveries.ingested_at.dt.date == deliveries.day).all()
    assert (deliveries.occurred_at < datetime(2024, 1, 15, 12, tzinfo=UTC)).all()
