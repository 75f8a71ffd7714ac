"""Reports as they are kept, forgotten and made by the commands, on a finished run of a small shop."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from shops import Ran, habitus

from features.lake import Lake
from flows.configuration import load
from flows.snapshot import table_of
from models.registry import Registry
from publish.destination import DestinationError
from publish.destinations.folders import LocalFolder
from publish.report.content import SUPPRESSED, TOP_USERS, Report, TopUser
from publish.report.reports import CONTENT, PAGE, USERS, Reports, without_users
from publish.report.settings import ReportSettings
from publish.report.tables import write_tables

EXAMPLE = Report.model_validate_json((Path(__file__).parent / "data" / "report" / "report.json").read_bytes())
IDS = ["ann", 'o"brien & <script>', "a/b?c=d", "=cmd()", "😀"]


def users_of(ids: list[str]) -> pa.Table:
    return pa.table({"user_id": sorted(ids), "user_number": range(1, len(ids) + 1)})


def example(ids: list[str] = IDS, version: int = 2) -> Report:
    top = [TopUser(user_id=one, user_number=1, session_count_28d=1, last_seen_at=EXAMPLE.as_of) for one in ids]
    segments = [EXAMPLE.segments[0].model_copy(update={"top_users": top}), *EXAMPLE.segments[1:]]
    segments[1:] = [one.model_copy(update={"top_users": []}) for one in segments[1:]]
    return EXAMPLE.model_copy(update={"segments": segments, "users_listed": len(ids), "version": version})


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    def page(report: Report, users: pa.Table | None, settings: ReportSettings) -> str:
        return f"{report.version} {[] if users is None else users['user_id'].to_pylist()}"

    return Reports(LocalFolder(tmp_path / "reports"), ReportSettings(), page)


def texts(folder: Path) -> str:
    """Return all that is in a folder's files, of Parquet the rows."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return "\n".join(
        str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text() for path in files
    )


def test_a_report_is_a_folder_with_a_page_json_tables_and_users(reports: Reports, tmp_path: Path) -> None:
    name = reports.add(example(), users_of(IDS), "abc")
    folder = tmp_path / "reports" / name
    assert Report.model_validate_json((folder / CONTENT).read_bytes()) == example()
    assert pq.read_table(folder / USERS)["user_id"].to_pylist() == sorted(IDS)
    assert (folder / PAGE).exists()
    assert (tmp_path / "reports" / "latest").readlink().name == name
    manifest = reports.folder.manifest(name)
    assert (manifest["version"], manifest["users"]) == (2, len(IDS))
    assert {file["path"] for file in manifest["files"]} >= {CONTENT, PAGE, USERS, "tables/segments.csv"}


def test_the_same_report_is_the_same_folder(reports: Reports) -> None:
    assert reports.add(example(), users_of(IDS), "abc") == reports.add(example(), users_of(IDS), "abc")
    assert len(reports.folder.versions()) == 1


def test_another_report_of_a_version_replaces_it_and_those_of_others_stay(reports: Reports) -> None:
    first, second = (reports.add(example(version=number), users_of(IDS), "abc") for number in (1, 2))
    third = reports.add(example(IDS[1:]), users_of(IDS[1:]), "abc")
    assert sorted(reports.folder.versions()) == sorted([first, third])
    assert second not in reports.folder.versions()


def test_a_report_is_found_by_what_it_was_made_of(reports: Reports) -> None:
    assert reports.find("abc") is None
    name = reports.add(example(), users_of(IDS), "abc")
    assert (reports.find("abc"), reports.find("other")) == (name, None)


@pytest.mark.parametrize("gone", IDS)
def test_a_forgotten_user_is_in_no_report_any_more_and_counts_stay(reports: Reports, tmp_path: Path, gone: str) -> None:
    others = [one for one in IDS if one != gone]
    for number in (1, 2):
        reports.add(example(version=number), users_of(IDS), "abc")
    untouched = reports.add(example(others, version=3), users_of(others), "abc")
    assert reports.forget([gone]) == 2
    latest = reports.folder.latest()
    assert latest == untouched
    assert len(reports.folder.versions()) == 3
    for name in reports.folder.versions():
        report = Report.model_validate_json((tmp_path / "reports" / name / CONTENT).read_bytes())
        assert [one.user_id for one in report.segments[0].top_users] == others
        assert report.overview == EXAMPLE.overview
        assert report.users_listed == len(others)
    found = texts(tmp_path / "reports")
    assert gone not in found
    assert json.dumps(gone) not in found


def test_to_forget_who_is_in_no_report_changes_nothing(reports: Reports) -> None:
    name = reports.add(example(), users_of(IDS), "abc")
    assert reports.forget(["nobody"]) == 0
    assert reports.folder.versions() == [name]


def test_a_report_that_cannot_be_read_is_named_and_stays(reports: Reports, tmp_path: Path) -> None:
    name = reports.add(example(), users_of(IDS), "abc")
    (tmp_path / "reports" / name / CONTENT).write_text('{"report_version": "9.0"}')
    with pytest.raises(DestinationError, match=f"{name}/report.json: is not what"):
        reports.forget(["ann"])
    assert reports.folder.versions() == [name]


def test_a_report_without_users_names_nobody() -> None:
    assert not any(one in without_users(example()).model_dump_json() for one in ("ann", "cmd()"))


def test_tables_have_every_user_and_say_what_is_suppressed(tmp_path: Path) -> None:
    counts = write_tables(example(), tmp_path)
    assert counts["top_users.csv"] == len(IDS)
    assert SUPPRESSED in (tmp_path / "segments.csv").read_text()
    assert '"o""brien & <script>"' in (tmp_path / "top_users.csv").read_text()
    assert counts.keys() == {path.name for path in tmp_path.iterdir()}


# --- the commands ---


@pytest.fixture(scope="module")
def shop(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the shop of a finished run: its configuration."""
    folder = tmp_path_factory.mktemp("report") / "shop"
    shutil.copytree(ran.configuration.folder, folder, symlinks=True)
    return folder / "habitus.toml"


def latest(config: Path) -> Path:
    return (config.parent / "published" / "reports" / "latest").resolve()


@pytest.fixture(scope="module")
def report(shop: Path) -> Report:
    return Report.model_validate_json((latest(shop) / CONTENT).read_bytes())


def test_a_run_leaves_the_report_of_its_version(ran: Ran, shop: Path, report: Report) -> None:
    assert "report: version 1" in ran.progress
    assert (report.version, report.overview.users) == (1, 400)
    assert report.overview.rejected_rows == {"no_user": 1, "time_in_the_future": 1, "unparseable_time": 1}
    assert report.model_versions["segments"] == 1
    assert (latest(shop) / PAGE).stat().st_size > 10_000


def test_its_lists_are_those_of_the_published_assignments(shop: Path, report: Report) -> None:
    published = pq.read_table(shop.parent / "published" / "latest" / "assignments.parquet")
    users = pq.read_table(latest(shop) / USERS)
    for name in ("user_id", "segment_id", "rule_segments", "churn_percentile", "churn_reasons"):
        assert users[name].to_pylist() == published[name].to_pylist()
    assert report.users_listed == len(users)


def test_its_segments_are_described(report: Report) -> None:
    discovered = [one for one in report.segments if one.kind == "discovered" and one.withheld is None]
    assert discovered
    for one in discovered:
        assert one.typical
        assert one.rule is not None
        assert one.lineage is not None
        assert one.stability is not None
        assert len(one.top_users) == TOP_USERS
        assert [bar.name for bar in one.breakdowns] == ["device", "source", "country", "hour", "weekday"]
    assert len({one.segment_id for one in report.segments}) == len(report.segments)


def test_its_models_are_told_with_baselines_calibration_and_drivers(ran: Ran, report: Report) -> None:
    for model in report.models:
        assert model.version == ran.result["trained"][model.label]["serving"]
        if model.version is not None:
            assert {one.rival for one in model.gains} >= {"base_rate", "recency"}
            assert sum(one.share for one in model.drivers) == pytest.approx(1, abs=1e-4)
            assert model.metrics["auc"].low is not None


def test_the_same_version_gives_the_same_report(shop: Path) -> None:
    before = latest(shop)
    done = habitus("report", str(shop), "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], Path(told["where"]).name) == (1, before.name)
    assert latest(shop) == before


def test_mlflow_has_the_report_without_users(shop: Path, report: Report) -> None:
    registry = Registry(shop.parent / "mlruns")
    client = MlflowClient(registry.tracking_uri)
    [experiment] = client.search_experiments(filter_string="name = 'ecom/report'")
    [run] = client.search_runs([experiment.experiment_id])
    folder = registry.artifacts.of_run(run.info.run_id, "")
    assert {file.name for file in folder.iterdir()} == {CONTENT, PAGE}
    logged = Report.model_validate_json((folder / CONTENT).read_bytes())
    assert logged.overview == report.overview
    assert "user_0" not in logged.model_dump_json()


def test_forget_reaches_the_report(shop: Path, report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shop.parent, folder, symlinks=True)
    gone = report.segments[0].top_users[0].user_id
    assert gone is not None
    done = habitus("forget", gone, "--config", str(folder / "habitus.toml"))
    assert done.exit_code == 0, done.stderr
    assert gone not in texts(folder / "published" / "reports")


def test_a_report_that_fails_leaves_the_publish_as_it_is(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("flows.publish.write_report", fail)
    done = habitus("publish", str(shop))
    assert done.exit_code == 0
    assert "report was not written: no room" in done.stderr


def test_before_the_first_version_there_is_nothing_to_report(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "habitus.toml").write_text(shop.read_text())
    shutil.copy(shop.parent / "events.csv.gz", tmp_path)
    done = habitus("report", str(tmp_path / "habitus.toml"))
    assert done.exit_code == 2
    assert "run `habitus publish" in done.stderr


def test_without_the_snapshot_it_says_how_to_take_it(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shop.parent, folder, symlinks=True)
    config = load(folder / "habitus.toml")
    with Lake(config.lake) as lake:
        table = table_of(config)
        lake.write(table, lake.read(table, only=[]), only=list(lake.partitions(table)))
    before = latest(folder / "habitus.toml")
    done = habitus("report", str(folder / "habitus.toml"))
    assert done.exit_code == 2
    assert "run `habitus snapshot" in done.stderr
    assert latest(folder / "habitus.toml") == before


@pytest.mark.slow
def test_without_models_it_says_so(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shop.parent, folder, symlinks=True)
    shutil.rmtree(folder / "mlruns")
    done = habitus("report", str(folder / "habitus.toml"), "--json")
    assert done.exit_code == 0, done.stderr
    assert any("does not have the model" in note for note in json.loads(done.stdout)["withheld"])


def test_personal_names_what_there_is(shop: Path, tmp_path: Path) -> None:
    text = shop.read_text() + '\n[report]\npersonal = ["region"]\n'
    (tmp_path / "habitus.toml").write_text(text)
    done = habitus("report", str(tmp_path / "habitus.toml"))
    assert done.exit_code == 2
    assert "report.personal: there is no attribute 'region'; there are user_id" in done.stderr
