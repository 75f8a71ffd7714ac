"""The whole job on a small shop, as a person runs it: the command, its output, and what it leaves behind."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient
from shops import Ran, habitus, small_shop

from features.events import EVENTS, REJECTED
from features.labels import LABELS
from features.lake import Lake
from features.sessions import SESSIONS
from flows.cli import HELD
from flows.snapshot import table_of
from models import rfm
from models.registry import Registry
from publish.assignments import ASSIGNMENTS

AS_OF = pd.Timestamp("2024-06-30T00:00:00Z")


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows_of(folder: Path) -> dict[str, str]:
    """Hash the data of a lake and the published files, without logs that tell when a commit was made."""
    return {
        f"{part}/{name}": digest
        for part in ("lake", "published")
        for name, digest in bytes_of(folder / part).items()
        if "_delta_log" not in name
    }


@pytest.fixture(scope="session")
def ran_again(ran: Ran) -> str:
    """Run it once more, and return the closing screen."""
    before = bytes_of(ran.configuration.lake) | bytes_of(ran.configuration.published)
    done = habitus("run", str(ran.configuration.file))
    assert bytes_of(ran.configuration.lake) | bytes_of(ran.configuration.published) == before
    return str(done.stdout)


def test_accepted_and_rejected_add_up_to_what_was_read(ran: Ran) -> None:
    ingested = ran.result["ingested"]

    assert ingested["rejected"] == {"no_user": 1, "unparseable_time": 1, "time_in_the_future": 1}
    assert ingested["accepted"] + 3 == ingested["read"]
    with Lake(ran.configuration.lake) as lake:
        assert lake.read(EVENTS).count().execute() == ingested["accepted"]
        assert lake.read(REJECTED).count().execute() == 3


def test_each_stage_says_one_line_of_progress(ran: Ran) -> None:
    said = [line.split(" s  ")[1].split(":")[0] for line in ran.progress.splitlines() if " s  " in line]

    stages = [line for line in said if not line.startswith("  ")]
    assert stages == [
        "ingest",
        "instant",
        "sessions",
        "snapshot",
        "train",
        "train",
        "train",
        "score",
        "publish",
        "report",
    ]


def test_nothing_of_other_programs_reaches_the_console(ran: Ran) -> None:
    assert "Traceback" not in ran.progress
    assert "Warning" not in ran.progress
    assert all(" s  " in line for line in ran.progress.splitlines() if line.strip())


def test_the_instant_is_the_end_of_the_last_whole_day(ran: Ran) -> None:
    assert pd.Timestamp(ran.result["as_of"]) == AS_OF


def test_everyone_seen_before_the_instant_is_assigned_once(ran: Ran) -> None:
    with Lake(ran.configuration.lake) as lake:
        sessions = lake.read(SESSIONS).to_pandas()
        assigned = lake.read(ASSIGNMENTS).to_pandas()

    assert sorted(assigned["user_id"]) == sorted(sessions[sessions["started_at"] < AS_OF]["user_id"].unique())


def test_users_are_counted_by_named_segment_and_stage(ran: Ran) -> None:
    scored = ran.result["scored"]
    with Lake(ran.configuration.lake) as lake:
        assigned = lake.read(ASSIGNMENTS).to_pandas()

    met = assigned["rule_segments"].explode().value_counts()
    assert {one["name"]: one["users"] for one in scored["rules"] if one["users"]} == met.to_dict()
    assert all(one["share"] == one["users"] / len(assigned) for one in scored["rules"])
    stages = {stage: users for stage, users in scored["lifecycle"]["stages"].items() if users}
    assert stages == assigned["lifecycle_stage"].value_counts().to_dict()
    assert (scored["lifecycle"]["since"], scored["lifecycle"]["transitions"]) == (None, [])


def test_named_segments_say_why_they_are_off_or_of_no_use(ran: Ran) -> None:
    scored = ran.result["scored"]
    named = {one["name"]: one for one in scored["rules"]}

    assert scored["rules_off"] == {
        **dict.fromkeys(["high_value_customers", "top_1_percent", "top_5_percent", "top_20_percent"], "no revenue"),
        "bargain_reactors": "no session came from a campaign",
    }
    assert named["returning_visitors"]["flag"] == "too broad: over 60 % of users"
    assert named["cart_abandoners"]["flag"] is None
    assert named["frequent_visitors"]["thresholds"].keys() == {"session_count_28d p90"}


def test_users_are_graded_by_the_lines_that_the_training_of_segments_drew(ran: Ran) -> None:
    registry = Registry(ran.configuration.mlruns)
    lines = rfm.lines_of(registry.read_dict("ecom-segments", 1, "segments.json"))
    with Lake(ran.configuration.lake) as lake:
        assigned = lake.read(ASSIGNMENTS, only=[AS_OF]).to_pandas().set_index("user_id")
        snapshot = lake.read(table_of(ran.configuration), only=[AS_OF]).to_pandas().set_index("user_id")

    assert lines is not None
    assert lines == rfm.fit(snapshot)
    expected = rfm.grade(lines, snapshot)
    pd.testing.assert_frame_equal(assigned[["rfm_3", "rfm_5"]].sort_index(), expected.sort_index())
    assert (assigned["rfm_5"].isna() == snapshot["purchase_recency_days"].isna()).all()
    manifest = json.loads((ran.configuration.published / "latest" / "manifest.json").read_text())
    assert manifest["rule_segments"]["rfm_hibernating"] > 0
    assert {one["name"]: one["thresholds"] for one in ran.result["scored"]["rules"]}["rfm_loyal"].keys() >= {
        *("purchase_recency_days grade 5", "purchase_count grade 2")
    }


def test_each_user_has_degrees_of_the_segments_and_most_of_the_own_one(ran: Ran) -> None:
    rows = pd.read_parquet(ran.configuration.published / "latest" / "assignments.parquet")
    text = pd.read_csv(ran.configuration.published / "latest" / "assignments.csv")

    strongest = [one[0]["segment_id"] for one in rows["segment_strengths"]]
    assert (rows["segment_id"] == strongest).all()  # the first scoring, so nobody stays
    assert [json.loads(one) for one in text["segment_strengths"]] == [list(one) for one in rows["segment_strengths"]]


def test_each_row_names_the_version_of_the_segments(ran: Ran) -> None:
    with Lake(ran.configuration.lake) as lake:
        assigned = lake.read(ASSIGNMENTS).to_pandas()

    assert set(assigned["segments_version"]) == {1}
    assert assigned["segment_id"].notna().all()


def test_a_probability_is_there_exactly_where_a_model_serves_and_the_user_is_eligible(ran: Ran) -> None:
    with Lake(ran.configuration.lake) as lake:
        assigned = lake.read(ASSIGNMENTS).to_pandas().set_index("user_id")
        table = lake.read(table_of(ran.configuration))
        recency = table.filter(table.as_of == AS_OF.to_pydatetime()).to_pandas().set_index("user_id")["recency_days"]
    serves = ran.result["trained"]["churn"]["serving"] is not None
    known = serves and "churn" not in ran.result["scored"]["withheld"]

    eligible = recency.reindex(assigned.index) <= 28
    assert (assigned["churn_percentile"].notna() == (eligible & serves)).all()
    assert (assigned["churn_probability"].notna() == (eligible & known)).all()


def test_labels_to_learn_from_are_complete_before_the_validation_and_these_before_the_test(ran: Ran) -> None:
    snapshots = ran.result["snapshots"]
    horizon = pd.Timedelta(days=28)

    train = [pd.Timestamp(instant) for instant in snapshots["train"]]
    validation, test = pd.Timestamp(snapshots["validation"]), pd.Timestamp(snapshots["test"])

    assert max(train) + horizon <= validation
    assert validation + horizon <= test
    assert test + horizon <= AS_OF
    with Lake(ran.configuration.lake) as lake:
        labelled = set(lake.read(LABELS).as_of.execute())
    assert labelled == {*train, validation, test}


def test_mlflow_holds_a_run_per_task_with_its_metrics(ran: Ran) -> None:
    registry = Registry(ran.configuration.mlruns)

    assert list(registry.runs("ecom/segments")["run"]) == ["segments as of 2024-06-30 00:00 UTC"]
    churn = registry.runs("ecom/churn").iloc[0]
    assert churn["model_log_loss"] == pytest.approx(
        ran.result["trained"]["churn"]["metrics"]["metrics"]["model"]["log_loss"]["value"]
    )
    assert churn["recency_auc"] > 0


def test_mlflow_keeps_the_plots(ran: Ran) -> None:
    plots = {path.name for path in (ran.configuration.mlruns / "artifacts").rglob("*.png")}

    assert plots == {"gains.png", "calibration.png", "profiles.png", "candidates.png"}


def test_mlflow_keeps_the_segments_as_a_page_for_people(ran: Ran) -> None:
    [page] = (ran.configuration.mlruns / "artifacts").rglob("segments.html")

    for segment in ran.result["scored"]["segments"]:
        assert f"{segment['segment_id']} {segment['name']}" in page.read_text()


def test_each_segment_says_by_which_rule_another_tool_finds_it(ran: Ran) -> None:
    for segment in ran.result["scored"]["segments"]:
        assert segment["summary"]
        assert segment["rule"]["text"]
        assert 0 < segment["rule"]["precision"] <= 1
        assert 0 < segment["rule"]["recall"] <= 1


def test_the_new_version_is_challenger_and_the_serving_one_champion(ran: Ran) -> None:
    registry = Registry(ran.configuration.mlruns)

    for kind in ("segments", "churn", "conversion"):
        trained = ran.result["trained"][kind]
        assert registry.aliased(f"ecom-{kind}", "challenger") == trained["version"]
        assert registry.aliased(f"ecom-{kind}", "champion") == trained["serving"]


@pytest.mark.usefixtures("ran_again")
@pytest.mark.ci
def test_prefect_keeps_runs_whose_names_say_the_instant() -> None:
    with sqlite3.connect(Path(os.environ["PREFECT_HOME"]) / "prefect.db") as database:
        names = {name for (name,) in database.execute("SELECT name FROM flow_run")}
        keys = {key for (key,) in database.execute("SELECT key FROM artifact")}

    assert "run ecom as of 2024-06-30 00:00 UTC" in names
    assert "score shop as of 2024-06-30 00:00 UTC" in names
    assert "ecom-segments" in keys


def test_the_published_files_hold_the_assignments(ran: Ran) -> None:
    latest = ran.configuration.published / "latest"
    manifest = json.loads((latest / "manifest.json").read_text())
    with Lake(ran.configuration.lake) as lake:
        users = set(lake.read(ASSIGNMENTS).user_id.execute())

    assert manifest["users"] == len(users)
    assert set(pd.read_csv(latest / "assignments.csv")["user_id"]) == users
    assert set(pd.read_parquet(latest / "assignments.parquet")["user_id"]) == users
    for file in manifest["files"]:
        assert hashlib.sha256((latest / file["path"]).read_bytes()).hexdigest() == file["sha256"]


@pytest.mark.usefixtures("ran_again")
@pytest.mark.ci
def test_a_second_run_writes_the_same_bytes_and_trains_nothing(ran: Ran) -> None:
    registry = Registry(ran.configuration.mlruns)

    for kind in ("segments", "churn", "conversion"):
        assert len(registry.runs(f"ecom/{kind}")) == 1


@pytest.mark.ci
def test_each_stage_alone_changes_nothing_after_a_run(ran: Ran) -> None:
    folder = ran.configuration.folder
    before = bytes_of(folder / "lake") | bytes_of(folder / "published")

    for stage in ("ingest", "sessions", "snapshot", "train", "score", "publish"):
        assert habitus(stage, str(ran.configuration.file)).exit_code == 0
    assert bytes_of(folder / "lake") | bytes_of(folder / "published") == before


@pytest.mark.slow
def test_an_earlier_instant_leaves_the_later_one_as_it_was(ran: Ran, tmp_path: Path) -> None:
    shutil.copytree(ran.configuration.folder, tmp_path / "shop", symlinks=True)
    config = tmp_path / "shop" / "habitus.toml"
    later = rows_of(tmp_path / "shop")

    assert habitus("run", str(config), "--as-of", "2024-06-01").exit_code == HELD

    assert later.items() <= rows_of(tmp_path / "shop").items()
    versions = [Registry(tmp_path / "shop" / "mlruns").load("ecom-segments", number) for number in (1, 2)]
    ids = [one["segment_id"] for found in versions if found for one in found.metadata["segments"]]
    assert len(set(ids)) == len(ids)  # what was there then is not what is there now
    lifecycle = json.loads(habitus("run", str(config), "--json").stdout)["scored"]["lifecycle"]
    assert pd.Timestamp(lifecycle["since"]) == pd.Timestamp("2024-06-01T00:00Z")
    for stage, users in lifecycle["stages"].items():
        assert users == sum(one["users"] for one in lifecycle["transitions"] if one["after"] == stage)
    assert {one["before"] for one in lifecycle["transitions"]} > {"active", "cooling", "at_risk"}
    with Lake(tmp_path / "shop" / "lake") as lake:
        assert set(lake.read(ASSIGNMENTS).as_of.execute()) == {pd.Timestamp("2024-06-01T00:00Z"), AS_OF}


@pytest.mark.ci
def test_a_run_killed_halfway_and_started_again_ends_as_if_undisturbed(ran: Ran, tmp_path: Path) -> None:
    config = small_shop(tmp_path / "shop")
    command = [sys.executable, "-m", "flows.cli", "run", str(config)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=pipe, stdout=pipe, text=True) as job:
        assert job.stderr is not None
        for line in job.stderr:
            if "snapshot:" in line:
                break
        os.killpg(job.pid, signal.SIGKILL)

    assert habitus("run", str(config)).exit_code == 0

    assert rows_of(tmp_path / "shop") == rows_of(ran.configuration.folder)


def test_the_lake_is_readable_by_other_tools(ran: Ran) -> None:
    frame = DeltaTable(str(ran.configuration.lake / "assignments")).to_pandas()

    assert len(frame) == ran.result["scored"]["users"]


@pytest.mark.ci
def test_the_closing_screen_shows_rows_segments_scores_and_files(ran: Ran, ran_again: str) -> None:
    assert f"3 rejected = {ran.result['ingested']['read']:,} read" in ran_again
    for segment in ran.result["scored"]["segments"]:
        assert segment["name"].split(",")[0].split()[0] in ran_again
    words = " ".join(ran_again.split())  # lines are wrapped
    for rule in ran.result["scored"]["rules"]:
        assert rule["title"] in words
    assert "off: high value customers, top 1 percent, top 5 percent, top 20 percent (no revenue)" in words
    assert f"{ran.result['scored']['lifecycle']['stages']['active']} active" in ran_again
    assert f"{ran.result['trained']['churn']['metrics']['metrics']['model']['auc']['value']:.2f}" in ran_again
    assert "latest" in ran_again
    assert " serve " in ran_again


def test_scoring_without_a_snapshot_says_what_to_run(tmp_path: Path) -> None:
    config = small_shop(tmp_path / "shop")
    assert habitus("ingest", str(config)).exit_code == 0

    done = habitus("score", str(config))

    assert done.exit_code == 2
    assert "run `habitus snapshot" in done.stderr


@pytest.mark.slow
def test_a_history_too_short_to_learn_from_still_gives_segments(tmp_path: Path) -> None:
    config = small_shop(tmp_path / "shop")

    done = habitus("run", str(config), "--as-of", "2024-03-20", "--json")

    result = json.loads(done.stdout)
    assert result["trained"]["churn"]["version"] is None
    assert "more than 84 are needed" in result["trained"]["churn"]["reason"]
    assert result["scored"]["segments"]
    assert result["scored"]["scored"] == {"churn": 0, "conversion": 0}


@pytest.mark.ci
def test_a_model_that_earned_it_is_promoted_and_explained(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "examples" / "oulad"
    shutil.copytree(source, tmp_path / "oulad", ignore=shutil.ignore_patterns("lake", "published"))
    config = tmp_path / "oulad" / "habitus.toml"
    config.write_text(
        config.read_text().replace('"../../mlruns"', '"mlruns"').replace("[training]", "[training]\ntrials = 2")
    )

    done = habitus("run", str(config), "--as-of", "2013-08-25", "--json")

    churn = json.loads(done.stdout)["trained"]["churn"]
    assert churn["reason"].startswith("Promoted: log loss")
    assert churn["serving"] == churn["version"] == 1
    assert churn["metrics"]["gains"]["recency"]["low"] > 0
    published = pd.read_csv(tmp_path / "oulad" / "published" / "latest" / "assignments.csv")
    scored = published[published["churn_version"].notna() & published["churn_percentile"].notna()]
    assert scored["churn_probability"].between(0, 1).all()
    assert 0 < len(scored) < len(published)
    assert scored["churn_reasons"].notna().mean() > 0.9
    registry = Registry(tmp_path / "oulad" / "mlruns")
    client = MlflowClient(registry.tracking_uri, registry_uri=registry.tracking_uri)
    run_id = str(client.get_model_version("oulad-churn", "1").run_id)
    left = {file.name for file in registry.artifacts.of_run(run_id, "").iterdir()}
    assert {"decision.json", "label_card.html", "label_card.json", "partitions.json", "gains.png"} <= left
    experiment = client.get_run(run_id).info.experiment_id
    trials = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert len(trials) == 2
