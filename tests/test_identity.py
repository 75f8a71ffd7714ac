"""Who a segment is, on a small shop that has run: its id and name through trainings, and the users who stay in it."""

import json
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis
import pandas as pd
import pytest
from mlflow import MlflowClient
from shops import Ran, habitus

from features.lake import Lake
from flows.configuration import Configuration, load
from flows.identity import NEXT_NUMBER, explain, next_number
from flows.score import Scored, assign_users, find_lines
from flows.train import train_segments, version_tags
from models import rfm
from models.registry import PROMOTIONS, Registry
from publish.assignments import ASSIGNMENTS, from_arrow, to_arrow

AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
WEEK_BEFORE = AS_OF - timedelta(days=7)
NAME = "Gift hunters [/spring]"
MODEL = "gifts-segments"


def assigned_at(configuration: Configuration, as_of: datetime) -> pd.DataFrame:
    with Lake(configuration.lake) as lake:
        return from_arrow(lake.read(ASSIGNMENTS, only=[as_of]).order_by("user_id").to_pyarrow())


@pytest.fixture(scope="module")
def shop(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """Find and name four segments of a shop that has run, under another name; users hardly leave a segment."""
    folder = tmp_path_factory.mktemp("identity") / "shop"
    shutil.copytree(ran.configuration.folder, folder, symlinks=True)
    config = folder / "habitus.toml"
    four = {'name = "ecom"': 'name = "gifts"', "k_max = 4": "k_min = 4\nk_max = 4\ndwell_margin = 0.9"}
    text = config.read_text()
    for given, instead in four.items():
        text = text.replace(given, instead)
    config.write_text(text)
    assert train_segments.fn(str(config), None).version == 1
    done = habitus("segments", "rename", "S01", f" {NAME} ", "--config", str(config))
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"S01 is {NAME} now, and was ")
    return load(config)


@dataclass(frozen=True)
class Again:
    """A shop whose users are scored again: what each was nearest to, was in a week before, and is in now."""

    configuration: Configuration
    nearest: pd.DataFrame
    week_before: pd.DataFrame
    scored: Scored
    found: pd.DataFrame


@pytest.fixture(scope="module")
def again(shop: Configuration, tmp_path_factory: pytest.TempPathFactory) -> Again:
    """Have everyone in his runner-up a week before, but for one in a segment that there is no more, and score again."""
    folder = tmp_path_factory.mktemp("again") / "shop"
    shutil.copytree(shop.folder, folder, symlinks=True)
    configuration = load(folder / "habitus.toml")
    assign_users.fn(str(configuration.file), None)
    now = assigned_at(configuration, AS_OF)
    before = now.assign(as_of=pd.Timestamp(WEEK_BEFORE), segment_id=now["runner_up_segment_id"])
    before.loc[0, "segment_id"] = "S99"
    with Lake(configuration.lake) as lake:
        lake.write(ASSIGNMENTS, ibis.memtable(to_arrow(before)), only=[WEEK_BEFORE])
    scored = assign_users.fn(str(configuration.file), None)
    return Again(configuration, now, before, scored, assigned_at(configuration, AS_OF))


def test_users_at_a_border_stay_where_they_were_scored_last(again: Again) -> None:
    nearest, week_before, found = again.nearest, again.week_before, again.found

    stays = nearest["segment_strength"] < 0.9
    stays[0] = False
    assert 0 < (~stays).sum() < len(stays) / 2
    assert (found["segment_id"] == week_before["segment_id"].where(stays, nearest["segment_id"])).all()
    assert (found.loc[stays, "runner_up_segment_id"] == nearest.loc[stays, "segment_id"]).all()
    assert (found.loc[stays, "segment_strength"] == 0).all()


def test_scored_again_users_are_where_they_were(again: Again) -> None:
    with Lake(again.configuration.lake) as lake:
        version = lake.version(ASSIGNMENTS)
        assign_users.fn(str(again.configuration.file), None)
        assert lake.version(ASSIGNMENTS) == version


def test_assignments_with_the_columns_of_an_earlier_version_hold_nobody(shop: Configuration, tmp_path: Path) -> None:
    shutil.copytree(shop.folder, tmp_path / "shop", symlinks=True)
    configuration = load(tmp_path / "shop" / "habitus.toml")
    earlier = {name: dtype for name, dtype in ASSIGNMENTS.schema.items() if name != "lifecycle_stage"}
    before = assigned_at(shop, AS_OF).assign(as_of=pd.Timestamp(WEEK_BEFORE))
    rows = to_arrow(before).drop_columns("lifecycle_stage")
    with Lake(configuration.lake) as lake:
        lake.write(replace(ASSIGNMENTS, schema=ibis.schema(earlier)), ibis.memtable(rows))

    assign_users.fn(str(configuration.file), None)
    assert (assigned_at(configuration, AS_OF)["segment_strength"] > 0).all()


def test_the_lines_of_rfm_are_of_the_training_that_serves_or_else_of_the_latest_by_then(
    shop: Configuration, tmp_path: Path
) -> None:
    shutil.copytree(shop.folder, tmp_path / "shop", symlinks=True)
    configuration = load(tmp_path / "shop" / "habitus.toml")
    registry = Registry(configuration.mlruns)
    trained = rfm.lines_of(registry.read_dict(MODEL, 1, "segments.json"))
    assert trained is not None
    assert find_lines(registry, configuration, AS_OF) == trained
    assert find_lines(registry, configuration, WEEK_BEFORE) is None

    with registry.run("gifts/segments", "later") as run:
        later = replace(trained, top=(1.0, 2.0, 3.0))
        run.log_dict({"rfm": later.to_dict()}, "segments.json")
        serving = registry.load(MODEL, 1)
        assert serving is not None
        snapshot = pd.DataFrame({name: [0.0] for name in serving.model.feature_names_in_})
        tags = version_tags(AS_OF, promoted=False)
        run.log_model(serving.model, MODEL, "later", snapshot, {}, tags=tags)
    assert find_lines(registry, configuration, AS_OF) == trained  # it did not earn to serve

    client = MlflowClient(f"sqlite:///{configuration.mlruns / 'mlflow.db'}")
    client.set_model_version_tag(MODEL, "1", PROMOTIONS, "[]")
    assert find_lines(registry, configuration, AS_OF) == later


def test_a_given_name_is_used_at_scoring(again: Again) -> None:
    found = again.found
    assert {one.segment_id: one.name for one in again.scored.segments}["S01"] == NAME
    assert set(found.loc[found["segment_id"] == "S01", "segment_name"]) == {NAME}


@pytest.fixture(scope="module")
def retrained(shop: Configuration, tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """Train three segments, where four serve."""
    folder = tmp_path_factory.mktemp("retrained") / "shop"
    shutil.copytree(shop.folder, folder, symlinks=True)
    config = folder / "habitus.toml"
    config.write_text(config.read_text().replace("k_min = 4\nk_max = 4", "k_min = 3\nk_max = 3"))
    assert train_segments.fn(str(config), None).version == 2
    return load(config)


def test_a_training_keeps_ids_and_given_names_and_says_what_became_of_each(retrained: Configuration, ran: Ran) -> None:
    registry = Registry(retrained.mlruns)
    versions = [registry.load(MODEL, number) for number in (1, 2)]
    before, now = (
        {one["segment_id"]: one["name"] for one in found.metadata["segments"]} for found in versions if found
    )
    assert versions[1] is not None
    lineage = versions[1].metadata["lineage"]

    assert {event["segment_id"] for event in lineage["events"]} == before.keys() | now.keys()
    fresh = sorted(now.keys() - before.keys())
    assert fresh == [f"S{len(before) + i + 1:02d}" for i in range(len(fresh))]
    assert now.get("S01", NAME) == NAME
    changes = lineage["size_changes"]
    assert all(one["before"] + one["behaviour"] + one["model"] == one["now"] for one in changes)
    assert sum(one["now"] for one in changes) == ran.result["scored"]["users"]
    assert all(one["behaviour"] == 0 for one in changes)  # the same snapshot
    for event, line in zip(
        [one for one in lineage["events"] if one["kind"] != "kept"], explain(versions[1].metadata), strict=False
    ):
        assert line.startswith(f"{event['segment_id']} {event['name']}: {event['kind']}")


def test_a_training_says_how_many_users_flap(retrained: Configuration) -> None:
    found = Registry(retrained.mlruns).load(MODEL, 2)
    assert found is not None
    flapping = found.metadata["flapping"]

    assert len(flapping["snapshots"]) == 5
    assert 0 <= flapping["flap_rate"] <= flapping["flap_rate_without_dwell"] < 0.2
    assert explain(found.metadata)[-1].endswith(f"{flapping['flap_rate_without_dwell']:.1%} would".replace("%", " %"))


def test_mlflow_keeps_the_lineage_of_a_training(retrained: Configuration) -> None:
    registry = Registry(retrained.mlruns)
    client = MlflowClient(registry.tracking_uri, registry_uri=registry.tracking_uri)
    run_id = str(client.get_model_version(MODEL, "2").run_id)

    assert {"lineage.json", "size_changes.png"} <= {
        file.name for file in registry.artifacts.of_run(run_id, "").iterdir()
    }
    metrics = client.get_run(run_id).data.metrics
    assert metrics["segments"] == 3
    kinds = [metrics[f"segments_{kind}"] for kind in ("kept", "split", "merged", "born")]
    assert sum(kinds) >= 3
    assert metrics["flap_rate"] <= metrics["flap_rate_without_dwell"]


def test_no_number_is_given_twice_not_even_one_of_a_version_that_never_served(retrained: Configuration) -> None:
    registry = Registry(retrained.mlruns)
    before = next_number(registry, MODEL)
    found = registry.load(MODEL, 2)
    assert found is not None
    inputs = pd.DataFrame(0.0, index=range(3), columns=found.model.feature_names_in_)
    for tags in ({NEXT_NUMBER: "40"}, {}):  # the second, of before there was the tag, says it in its metadata
        with registry.run("gifts/segments", "challenger") as run:
            metadata = found.metadata | ({} if tags else {"next_number": 50})
            tags |= version_tags(AS_OF, promoted=False)
            run.log_model(found.model, MODEL, "challenger", inputs, metadata, tags=tags)

    assert before == found.metadata["next_number"]
    assert next_number(registry, MODEL) == 50
    assert next_number(registry, "absent") == 1


# --- habitus segments ---


def test_the_segments_that_serve_are_shown(retrained: Configuration) -> None:
    screen = habitus("segments", str(retrained.file))
    found = json.loads(habitus("segments", str(retrained.file), "--json").stdout)

    assert screen.exit_code == 0
    assert screen.stdout.startswith(f"{MODEL} version 2, as of 2024-06-30 00:00 UTC")
    assert found["version"] == 2
    assert sum(one["share"] for one in found["segments"]) == pytest.approx(1)
    assert [one["users"] for one in found["segments"]] == sorted(
        (one["users"] for one in found["segments"]), reverse=True
    )
    for one in found["segments"]:
        assert f" {one['segment_id']} " in screen.stdout
        assert f" {one['stability']:.2f} " in screen.stdout
        assert one["since"] == "2024-06-30T00:00:00Z"
        assert one["event"] is not None
    assert "What these segments say about the next" in screen.stdout
    assert f"stability of refits {found['chosen']['stability']:.2f}" in screen.stdout
    assert set(found["tells"]["outcomes"]) >= {"label_churn", "event_count"}


def test_a_name_can_be_given_again(retrained: Configuration) -> None:
    def rename(name: str) -> str:
        done = habitus("segments", "rename", "S03", name, "--config", str(retrained.file))
        assert done.exit_code == 0, done.stderr
        return str(done.stdout)

    rename("Éclair")
    assert "and was Éclair;" in rename("éclair fans")


@pytest.mark.parametrize(
    ("segment_id", "name", "complaint"),
    [
        ("S77", "Anyone", "there is no segment 'S77'; there are S01 "),
        ("s01", "Anyone", "there is no segment 's01'; there are S01 "),
        ("S02", "", "the name is empty"),
        ("S02", " \t ", "the name is empty"),
        ("S02", "x" * 81, "the name has 81 characters; at most 80 fit"),
        ("S02", "x" * 1_000_000, "the name has 1,000,000 characters"),
        ("S02", "Night\nowls", "the name's character 6 (U+000A) cannot be seen; leave it out"),
        ("S02", "Night\u202eowls", "the name's character 6 (U+202E) cannot be seen"),
        ("S02", "Night\x00owls", "the name's character 6 (U+0000) cannot be seen"),
        ("S02", NAME.upper(), f"S01 has the name {NAME!r} already; choose another"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_line(
    shop: Configuration, segment_id: str, name: str, complaint: str
) -> None:
    before = Registry(shop.mlruns).given_names(MODEL)
    done = habitus("segments", "rename", segment_id, name, "--config", str(shop.file))

    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert complaint in line
    assert Registry(shop.mlruns).given_names(MODEL) == before
