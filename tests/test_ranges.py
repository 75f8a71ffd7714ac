"""Times and amounts out of range: rejected with the reason, and no later stage stops at what is left."""

import math
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis
import pyarrow as pa
import pytest
from histories import events_of
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law
from messages import assert_documented

from features.attributes import ATTRIBUTES
from features.events import EVENTS, REJECTED, accept
from features.increments import update_sessions
from features.labels import LabelSettings, label
from features.lake import Lake
from features.sessions import SESSIONS, sessionize
from features.snapshots import feature_names, take_snapshot
from features.sources import Source, SourceError
from features.table import ContractError
from flows.ingest import Ingested, accept_files

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AS_OF = datetime(2025, 6, 1, tzinfo=UTC)
GAP = timedelta(minutes=30)
CONFIG = """
name = "shop"
[events]
files = "*.csv"
rejected_max = 1
[events.columns]
event_id = "id"
user_id = "user"
occurred_at = "at"
event_name = "event"
revenue = "amount"
quantity = "count"
"""
SOURCE = Source.model_validate(
    {
        "files": "*.csv",
        "columns": {
            **{"event_id": "id", "user_id": "user", "occurred_at": "at", "event_name": "event"},
            **{"revenue": "amount", "quantity": "count"},
        },
    }
)


def put(folder: Path, name: str, *rows: str) -> None:
    (folder / "habitus.toml").write_text(CONFIG)
    (folder / name).write_text("\n".join(["id,user,at,event,amount,count", *rows]) + "\n")


def ingest(folder: Path) -> Ingested:
    return accept_files.fn(str(folder / "habitus.toml"), NOW, False)


def features_of(events: ibis.Table, engine: DuckDB) -> list[float]:
    """Return all features that users have at AS_OF, having labelled them."""
    nobody = ibis.memtable(ATTRIBUTES.schema.to_pyarrow().empty_table())
    snapshot = take_snapshot(events, sessionize(events, GAP), nobody, AS_OF, gap=GAP)
    label(snapshot, events, NOW, LabelSettings()).to_pyarrow()
    rows = snapshot.to_pyarrow().to_pylist()
    return [row[name] for row in rows for name in feature_names((1, 7, 28, 90)) if row[name] is not None]


YEARS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)) | st.datetimes(
    datetime(2025, 5, 1), datetime(2025, 5, 3)
)
ROWS = st.lists(
    st.tuples(YEARS, st.sampled_from(["purchase", "refund"]), st.floats(), st.floats()), min_size=1, max_size=30
)


@given(rows=ROWS)
@law(2)
def test_whatever_doubles_and_times_come_features_are_finite(
    engine: DuckDB, rows: list[tuple[datetime, str, float, float]]
) -> None:
    columns = {
        **{"event_id": [str(number) for number in range(len(rows))], "user_id": ["ada"] * len(rows)},
        **{
            "occurred_at": pa.array([row[0] for row in rows], pa.timestamp("us")),
            "event_name": [row[1] for row in rows],
        },
        **{
            "revenue": pa.array([row[2] for row in rows], pa.float64()),
            "quantity": pa.array([row[3] for row in rows], pa.float64()),
        },
        **{"source_file": ["a"] * len(rows), "row": ["row"] * len(rows), "malformed": [False] * len(rows)},
    }
    raw = engine.create_table(f"raw_{uuid.uuid4().hex}", pa.table(columns), temp=True)
    events, rejected = accept([raw], SOURCE, "UTC", NOW)
    counted = events.count().to_pyarrow().as_py() + rejected.count().to_pyarrow().as_py()

    assert counted == len(rows)
    assert all(math.isfinite(value) for value in features_of(events, engine))


def test_the_largest_amounts_add_up_however_many_there_are(engine: DuckDB) -> None:
    rows = [
        {"event_id": str(number), "event_name": "purchase", "revenue": 1e12, "occurred_at": AS_OF - timedelta(days=1)}
        for number in range(50)
    ]
    events = events_of(engine, rows)

    assert sessionize(events, GAP).revenue.sum().to_pyarrow().as_py() == 5e13
    assert 5e13 in features_of(events, engine)


def test_times_and_amounts_out_of_range_stop_no_later_stage(tmp_path: Path) -> None:
    times = ("0001-01-01", "1969-12-31T23:59:59Z", "2200-01-01", "9999-12-31T23:59:59")
    amounts = ("inf", "-inf", "1e308", "-1e300", "1e300", "9223372036854775808", "1" + "0" * 40)
    put(
        tmp_path,
        "a.csv",
        *(f"t{number},ada,{time},home,1,1" for number, time in enumerate(times)),
        *(f"a{number},ada,2025-05-01,purchase,{amount},1" for number, amount in enumerate(amounts)),
        *(f"q{number},ada,2025-05-01,purchase,1,{amount}" for number, amount in enumerate(amounts)),
        *(f"m{number},ada,2025-05-01 10:00:{number},purchase,1e12,1e12" for number in range(10, 30)),
        "n,ada,2025-05-01,purchase,nan,nan",
    )

    assert ingest(tmp_path).rejected == {"time_out_of_range": 4, "amount_out_of_range": 14}
    with Lake(tmp_path / "lake") as lake:
        assert update_sessions(lake, GAP).sessions == 2
        assert lake.read(SESSIONS).revenue.max().to_pyarrow().as_py() == 20e12
        assert all(map(math.isfinite, features_of(lake.read(EVENTS), lake.engine)))
    put(tmp_path, "b.csv", "z,ada,2025-05-01 10:20:00,purchase,1e12,1")
    ingest(tmp_path)
    with Lake(tmp_path / "lake") as lake:
        update_sessions(lake, GAP)
        assert lake.read(SESSIONS).revenue.max().to_pyarrow().as_py() == 21e12


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a folder whose lake has an event of the year 1, as an earlier release accepted it."""
    put(tmp_path, "a.csv", *(f"{day},ada,2025-05-0{day},home,1,1" for day in range(1, 8)))
    ingest(tmp_path)
    with Lake(tmp_path / "lake") as lake:
        events = lake.read(EVENTS)
        first = datetime(1, 1, 1, tzinfo=UTC)
        odd = events.filter(events.event_id == "1").mutate(
            event_id=ibis.literal("odd"), occurred_at=ibis.literal(first, EVENTS.schema["occurred_at"])
        )
        lake.write(EVENTS, EVENTS.check(odd), only=[first])
    return tmp_path


def test_an_event_of_before_that_is_of_no_instant_is_rejected_by_the_next_ingest(old: Path) -> None:
    before = ingest(old)

    assert before.rejected == {"time_out_of_range": 1}
    assert before.accepted == 7
    with Lake(old / "lake") as lake:
        assert update_sessions(lake, GAP).sessions == 7
        [row] = lake.read(REJECTED).row.to_pyarrow().to_pylist()
    assert '"event_id":"odd"' in row
    assert ingest(old).changed is False


def test_sessions_of_an_event_of_before_that_is_of_no_instant_say_to_ingest(old: Path) -> None:
    with Lake(old / "lake") as lake, pytest.raises(ContractError) as caught:
        update_sessions(lake, GAP)
    assert_documented("an event of an earlier release is of the year 1", str(caught.value))


def test_a_file_whose_times_are_all_out_of_range_says_what_they_look_like(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "1,ada,0001-01-01,home,1,1")
    with pytest.raises(SourceError) as caught:
        ingest(tmp_path)
    assert_documented("all times of the events are before 1970 or after 2199", str(caught.value), tmp_path)
