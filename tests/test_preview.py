"""What another definition would change is shown, and nothing is changed."""

import json
from pathlib import Path

import ibis
import pytest
from ibis.backends.duckdb import Backend as DuckDB
from shops import Ran, habitus

from features.preview import compare_features
from flows.configuration import ConfigurationError
from flows.preview import parse_gap, parse_setting


def config_of(ran: Ran) -> str:
    return str(ran.configuration.file)


@pytest.mark.slow
def test_a_longer_gap_makes_fewer_longer_sessions(ran: Ran) -> None:
    done = habitus("preview", config_of(ran), "--gap", "1440m", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    sessions = {row["name"]: row for row in found["sessions"]}
    assert found["settings"] == {"sessions.gap_minutes": [30, 1440]}
    assert sessions["session_count"]["now"] == ran.result["sessionized"]["sessions"]
    assert sessions["session_count"]["then"] < sessions["session_count"]["now"]
    assert sessions["duration_mean_s"]["then"] > sessions["duration_mean_s"]["now"]
    assert {"bounce_rate", "conversion_rate"} <= sessions.keys()
    features = {row["name"]: row for row in found["features"]}
    assert 0 < features["session_count"]["changed_share"] <= 1
    assert features["revenue_total"]["changed_share"] == 0


@pytest.mark.slow
def test_the_same_setting_changes_nothing(ran: Ran) -> None:
    found = json.loads(habitus("preview", config_of(ran), "--set", "sessions.gap_minutes=30", "--json").stdout)
    assert all(row["now"] == row["then"] for row in found["sessions"])
    assert all(row["changed_share"] == 0 for row in found["features"])


@pytest.mark.slow
def test_other_windows_are_features_that_come_and_go(ran: Ran) -> None:
    found = json.loads(habitus("preview", config_of(ran), "--set", "features.windows_days=[7, 30]", "--json").stdout)
    features = {row["name"]: row for row in found["features"]}
    assert features["session_count_30d"]["now"] is None
    assert features["session_count_90d"]["then"] is None
    assert features["session_count_7d"]["changed_share"] == 0


@pytest.mark.ci
def test_a_preview_leaves_everything_as_it_was(ran: Ran) -> None:
    folder = ran.configuration.folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = habitus("preview", config_of(ran), "--gap", "45m")
    assert done.exit_code == 0, done.stderr
    assert "Nothing was stored" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "name what to preview"),
        (["--gap", "soon"], "'soon' is no duration"),
        (["--gap", "0m"], "gap_minutes"),
        (["--set", "sessions.gap_minutes"], "write KEY=VALUE"),
        (["--set", "sessions.pause=3"], "no such key"),
        (["--set", "training.seed=3"], "only settings of sessions and features"),
    ],
)
def test_a_mistake_is_one_line(ran: Ran, arguments: list[str], why: str) -> None:
    done = habitus("preview", config_of(ran), *arguments)
    assert done.exit_code == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_sessions_it_says_what_to_run_first(ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "habitus.toml").write_text(ran.configuration.file.read_text())
    done = habitus("preview", str(tmp_path / "habitus.toml"), "--gap", "45m")
    assert done.exit_code == 2
    assert "run `habitus" in done.stderr


@pytest.mark.parametrize(("text", "minutes"), [("45m", 45), ("45 min", 45), ("90s", 1.5), ("2h", 120), ("15", 15)])
def test_durations_are_read_as_people_write_them(text: str, minutes: float) -> None:
    assert parse_gap(text) == minutes


def test_a_duration_without_number_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        parse_gap("m")


def test_values_are_read_as_toml() -> None:
    assert parse_setting("features.windows_days=[1, 2]") == ("features.windows_days", [1, 2])


def test_a_value_that_appears_counts_as_changed(engine: DuckDB) -> None:
    schema = ibis.schema({"user_id": "string", "revenue_total": "float64"})
    now, then = (ibis.memtable([("a", value), ("b", 1.0)], schema=schema) for value in (None, 5.0))
    [difference] = compare_features(now, then)
    assert difference.changed_share == 0.5
    assert (difference.now, difference.then) == (1.0, 3.0)
