import json
import shlex
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import bench
import duckdb
import lakes
import page
import pytest
from apart import FailedError, Taken, call_apart
from contestants import duckdb_fast
from contestants.habitus import sessionize as habitus
from digest import digest
from typer.testing import CliRunner

from features.events import EVENTS
from features.lake import Lake
from features.sessions import sessionize
from features.synthetic import Traffic


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a lake of 8,000 events whose few users meet every border and often come twice at one time."""
    folder = tmp_path_factory.mktemp("benchmark")
    lakes.make_lake(folder, Traffic(events=8_000, days=9, users=60))
    return folder


@pytest.fixture(scope="module")
def expected(events: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of what `sessionize` makes of all events at once."""
    out = tmp_path_factory.mktemp("expected")
    with Lake(events) as lake:
        lake.engine.to_parquet(sessionize(lake.read(EVENTS), timedelta(minutes=30)), out / "sessions.parquet")
    return digest(out)


@pytest.mark.parametrize("name", ["habitus", "duckdb_fast", "duckdb_lag", "polars_slots", "pandas_groupby"])
def test_every_contestant_makes_the_same_sessions(name: str, events: Path, expected: str, tmp_path: Path) -> None:
    if name == "polars_slots":
        pytest.importorskip("polars")
    import_module(f"contestants.{name}").sessionize(events, tmp_path)

    assert digest(tmp_path / "sessions") == expected


@pytest.mark.parametrize("events_per_chunk", [1, 5000, 1_000_000])
def test_chunks_make_no_difference(events_per_chunk: int, events: Path, expected: str, tmp_path: Path) -> None:
    duckdb_fast.sessionize(events, tmp_path, events_per_chunk)

    assert digest(tmp_path / "sessions") == expected


@pytest.mark.parametrize(
    "change",
    [
        "* REPLACE (CASE WHEN row = 1 THEN 'elsewhere' ELSE exit_page END AS exit_page)",
        "* REPLACE (CASE WHEN row = 1 THEN NULL ELSE country END AS country)",
        "* REPLACE (CASE WHEN row = 1 THEN coalesce(source, '') ELSE source END AS source)",
        "* REPLACE (CASE WHEN row = 1 THEN ended_at + INTERVAL 1 MICROSECOND ELSE ended_at END AS ended_at)",
        "* REPLACE (CASE WHEN row = 1 THEN revenue + 0.000001 ELSE revenue END AS revenue)",
        "* REPLACE (CASE WHEN row = 1 THEN entry_page ELSE exit_page END AS exit_page, "
        "CASE WHEN row = 1 THEN exit_page ELSE entry_page END AS entry_page)",
    ],
)
def test_a_digest_tells_a_single_value_that_differs(change: str, tmp_path: Path) -> None:
    session = """SELECT range AS row, 'id' || range AS session_id, 'u' AS user_id,
        TIMESTAMPTZ '2024-01-01' AS started_at, TIMESTAMPTZ '2024-01-01' AS ended_at,
        0.0::DOUBLE AS duration_s, 1 AS event_count, 1 AS page_view_count,
        0 AS search_count, 0 AS support_count, 0 AS cart_add_count, 0 AS purchase_count, 0.0::DOUBLE AS revenue,
        true AS bounced, false AS engaged, false AS converted, NULL::BOOLEAN AS cart_abandoned, '/in' AS entry_page,
        '/out' AS exit_page, NULL::VARCHAR AS source, NULL::VARCHAR AS campaign, 'tv' AS device, 'DE' AS country
        FROM range(3)"""
    for name, columns, order in (("as_it_is", "*", "row"), ("reversed", "*", "row DESC"), ("changed", change, "row")):
        (tmp_path / name).mkdir()
        duckdb.execute(f"COPY (SELECT {columns} FROM ({session}) ORDER BY {order}) TO '{tmp_path / name}/rows.parquet'")

    assert digest(tmp_path / "reversed") == digest(tmp_path / "as_it_is")
    assert digest(tmp_path / "changed") != digest(tmp_path / "as_it_is")


def test_a_call_apart_is_measured_and_its_failure_told(events: Path, tmp_path: Path) -> None:
    taken = call_apart("contestants.duckdb_lag:sessionize", events, tmp_path)

    assert 0 < taken.seconds < 60
    assert taken.cpu_seconds > 0
    assert 10**7 < taken.peak_bytes < 10**10
    with pytest.raises(FailedError, match=r"duckdb_lag:sessionize failed:(?s:.*)No files found"):
        call_apart("contestants.duckdb_lag:sessionize", tmp_path / "nowhere", tmp_path / "sessions")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the program keep all that it writes in a folder."""
    monkeypatch.setattr(lakes, "KEPT", tmp_path)
    monkeypatch.setattr(bench, "KEPT", tmp_path)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(page, "PAGE", tmp_path / "benchmarks.md")
    return tmp_path


@pytest.mark.ci
def test_the_program_stores_what_each_run_took_names_who_failed_and_keeps_only_the_events(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.CONTESTANTS, "nobody", bench.Contestant("duckdb"))
    monkeypatch.setitem(page.TITLES, "nobody", "Nobody")
    options = "sessions --events 2000 --days 3 --rounds 1 --only duckdb_lag,nobody"

    done = CliRunner().invoke(bench.app, shlex.split(options))

    assert done.exit_code == 0, done.output
    result = json.loads((folder / "results" / "sessions-2000.json").read_text())
    assert {name: len(runs) for name, runs in result["runs"].items()} == {"habitus": 1, "duckdb_lag": 1}
    assert result["machine"]["duckdb"] == duckdb.__version__
    text = (folder / "benchmarks.md").read_text()
    assert "2,000 events over 3 days" in text
    assert "| Nobody | failed: ModuleNotFoundError: No module named 'contestants.nobody' |" in text
    assert {inner.name for inner in folder.iterdir() if inner.is_dir()} == {"2000-events-3-days", "results"}
    with Lake(folder / "2000-events-3-days") as lake:
        assert lake.read(EVENTS).count().to_pyarrow().as_py() == 2000


def test_a_run_that_makes_other_sessions_ends_the_benchmark(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter(["10-a", "10-b"])
    monkeypatch.setattr(bench, "_run", lambda function, lake: (next(digests), Taken(1.0, 1.0, 1)))

    done = CliRunner().invoke(bench.app, shlex.split("sessions --events 2000 --days 3 --only duckdb_lag"))

    assert done.exit_code == 1
    assert "duckdb_lag makes other sessions than habitus: 10-b, not 10-a" in done.output
    assert not (folder / "results").exists()


def test_a_contestant_that_is_not_there_is_refused() -> None:
    done = CliRunner().invoke(bench.app, ["sessions", "--only", "duckdb_fats"])

    assert done.exit_code == 2
    assert "there is no duckdb_fats" in done.output


def test_the_page_has_a_row_for_each_contestant_the_fastest_first_in_ratio_to_habitus(folder: Path) -> None:
    runs = {
        "habitus": [{"seconds": s, "cpu_seconds": 3.0, "peak_bytes": 10**9} for s in (2.0, 9.0, 1.0)],
        "duckdb_lag": [{"seconds": s, "cpu_seconds": 9.0, "peak_bytes": 4 * 10**9} for s in (5.0, 5.0, 6.0)],
        "duckdb_fast": [{"seconds": 1.5, "cpu_seconds": 3.0, "peak_bytes": 10**9}] * 3,
    }
    told: dict[str, object] = {
        "measure": "sessions",
        "date": "2024-01-01",
        "events": 1_000_000,
        "days": 30,
        "sessions": 125_000,
    }
    told["failed"] = {"pyspark_windows": "no memory"}
    machine = {"cores": "2", "processor": "a processor", "memory": "8 GB", "system": "Linux", "duckdb": "1.5"}
    (folder / "results").mkdir()
    (folder / "results" / "sessions-1000000.json").write_text(json.dumps({**told, "machine": machine, "runs": runs}))

    page.write_page()

    lines = (folder / "benchmarks.md").read_text().splitlines()
    assert [line.split(" | ")[1:] for line in lines if line.startswith("| ") and "×" in line] == [
        ["1.5 s (1.5–1.5)", "0.75×", "0.67 M", "3.0 s", "1.0 GB |"],
        ["2.0 s (1.0–9.0)", "1.00×", "0.50 M", "3.0 s", "1.0 GB |"],
        ["5.0 s (5.0–6.0)", "2.50×", "0.20 M", "9.0 s", "4.0 GB |"],
    ]
    assert "| PySpark `local[2]`, windows | failed: no memory | | | | |" in lines


def test_habitus_leaves_the_events_that_it_is_measured_with_as_they_were(events: Path, tmp_path: Path) -> None:
    before = sorted(file.name for file in events.rglob("*"))
    habitus(events, tmp_path)

    assert sorted(file.name for file in events.rglob("*")) == before


def test_all_that_the_page_tells_of_is_measured_by_the_studies() -> None:
    assert {name for name, _ in bench.STUDIES} == page.SECTIONS.keys()


def test_a_study_that_is_not_there_is_refused() -> None:
    done = CliRunner().invoke(bench.app, ["studies", "--only", "refit"])

    assert done.exit_code == 2
    assert "there is no refit" in done.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("increment --events-per-day 300 --days 10,12 --rounds 1", "| 12 days, 3,600 events |"),
        ("memory --events 2000 --days 3 --rounds 1", "| 2,000 | 1 GB |"),
        ("snapshots --events 2000 --days 90 --rounds 1", "| sessions | one | 12 weekly |"),
        ("scoring --users 2000 --rounds 1", "| 2,000 | 62 |"),
        ("publishing --users 2000 --rounds 1", "| 2,000 | 20 |"),
        ("report --users 400 --rounds 1", "| 382 | "),
        ("serving --users 2000 --in-flight 5 --seconds 0.3 --rounds 1", "| 2,000 | 5 |"),
        ("promotions --worlds 2", "| the champion itself | 0 |"),
        ("refits --count 1", "with 1 other seeds"),
        ("brakes --weeks 1 --places 300", "| as it should be | 0 of 8 held | 0 of 2 held |"),
        pytest.param("segments --users 2000", "| 2,000 | 30 |", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_other_measures_are_stored_and_told(options: str, told: str, folder: Path) -> None:
    done = CliRunner().invoke(bench.app, shlex.split(options))

    assert done.exit_code == 0, done.output
    assert told in (folder / "benchmarks.md").read_text()
