import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.models import Model
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from models import propensities, segments
from models.registry import PROMOTIONS, GivenName, Promotion, Registry, UnknownVersionError, promotion_tag
from models.store import StoreError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's

INPUTS = pd.DataFrame({"recency_days": np.linspace(0, 30, 40), "session_count": np.linspace(20, 1, 40)})
LABELS = INPUTS["recency_days"] > 15
MODEL = LogisticRegression().fit(INPUTS, LABELS)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store that holds nothing; to copy it is quicker than to make another."""
    folder = tmp_path_factory.mktemp("empty") / "mlruns"
    assert Registry(folder).find("absent", "abc") is None
    return folder


@pytest.fixture(scope="module")
def registry(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Hold the models of all tests, each under a name of its own."""
    return Registry(shutil.copytree(empty, tmp_path_factory.mktemp("a folder") / "mlruns"))


@pytest.fixture
def client(registry: Registry) -> MlflowClient:
    return MlflowClient(registry.tracking_uri, registry_uri=registry.tracking_uri)


def train(registry: Registry, name: str, fingerprint: str = "abc", **tags: str) -> int:
    with registry.run("ecom/churn", "2026-01-01") as run:
        run.log_model(MODEL, name, fingerprint, INPUTS, {"users": 40}, tags)
    assert run.version is not None
    return run.version


def files_of(registry: Registry, run: str) -> list[str]:
    return sorted(file.name for file in registry.artifacts.of_run(run, "").iterdir())


# --- a broken store ---


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(("file", "damage"), [("model.skops", cut), ("metadata.json", Path.unlink)])
def test_a_model_whose_files_are_broken_is_named(registry: Registry, file: str, damage: Callable[[Path], None]) -> None:
    number = train(registry, "broken")
    mlruns = registry.artifacts.folder.parent
    damage(max(mlruns.rglob(file), key=lambda path: path.stat().st_mtime_ns))

    with pytest.raises(
        StoreError, match=rf"^broken version {number} cannot be loaded from .*`habitus rollback broken`$"
    ):
        registry.load("broken", number)


# --- versions ---


def test_a_model_comes_back_as_it_was(registry: Registry) -> None:
    number = train(registry, "whole")

    loaded = registry.load("whole", number)
    assert loaded is not None
    assert (loaded.number, loaded.fingerprint, loaded.metadata) == (number, "abc", {"users": 40})
    assert np.array_equal(loaded.model.predict_proba(INPUTS), MODEL.predict_proba(INPUTS))


FRAME = INPUTS.assign(
    user_id=[f"u{i:02d}" for i in range(40)],
    as_of=pd.Timestamp("2026-01-01", tz="UTC"),
    device=pd.Series(["mobile", "desktop", None, "tablet"] * 10, dtype="str"),
)
LABELLED = FRAME.assign(churned=LABELS ^ (FRAME.index % 8 == 0))


@pytest.fixture(scope="module")
def blend() -> propensities.Blend:
    learnt = propensities.fit(LABELLED, LABELLED, "churned", 1, propensities.Budget(trials=1)).model
    return propensities.Blend(learnt.estimator.estimator.trees, learnt.estimator.estimator.line, share=0.5)


@pytest.mark.parametrize("calibration", ["sigmoid", "isotonic"])
def test_a_propensity_comes_back_as_it_was(registry: Registry, blend: propensities.Blend, calibration: str) -> None:
    model = CalibratedClassifierCV(FrozenEstimator(blend), method=calibration).fit(FRAME, LABELLED["churned"])
    with registry.run("ecom/churn", "2026-01-01") as run:
        run.log_model(model, calibration, "abc", FRAME)

    loaded = registry.load(calibration, 1)
    assert loaded is not None
    assert loaded.model.estimator.estimator.share == 0.5
    assert propensities.predict(loaded.model, FRAME).tobytes() == propensities.predict(model, FRAME).tobytes()


def test_segments_come_back_as_they_were(registry: Registry) -> None:
    frame = INPUTS.assign(user_id=[f"u{i:02d}" for i in range(40)])
    model = segments.fit(frame, 2, 3, seed=1)
    with registry.run("ecom/segments", "2026-01-01") as run:
        run.log_model(model.pipeline, "segments", "abc", frame, model.to_dict())

    loaded = registry.load("segments", 1)
    assert loaded is not None
    again = segments.SegmentModel.from_dict(loaded.model, loaded.metadata)
    pd.testing.assert_frame_equal(segments.assign(again, frame), segments.assign(model, frame), check_exact=True)


def test_versions_count_up(registry: Registry) -> None:
    assert [train(registry, "counted"), train(registry, "counted")] == [1, 2]


def test_an_alias_points_to_one_version_until_it_moves(registry: Registry) -> None:
    train(registry, "aliased")
    train(registry, "aliased", "def")

    registry.set_alias("aliased", "champion", 1)
    assert registry.aliased("aliased", "champion") == 1
    registry.set_alias("aliased", "champion", 2)
    loaded = registry.load("aliased", "champion")
    assert loaded is not None
    assert (loaded.number, loaded.fingerprint) == (2, "def")


def test_what_is_absent_is_none(registry: Registry) -> None:
    train(registry, "present")

    assert registry.load("absent", "champion") is None
    assert registry.load("absent", 1) is None
    assert registry.load("present", "champion") is None
    assert registry.load("present", 7) is None
    assert registry.aliased("present", "champion") is None


def test_the_latest_version_of_a_fingerprint_is_found(registry: Registry) -> None:
    for fingerprint in ("abc", "def", "abc", "ghi"):
        train(registry, "found", fingerprint)

    assert registry.find("found", "abc") == 3
    assert registry.find("found", "xyz") is None
    assert registry.find("absent", "abc") is None


# --- promotions ---


def day(month: int, number: int = 1) -> datetime:
    return datetime(2026, month, number, tzinfo=UTC)


def earned(*instants: datetime) -> dict[str, str]:
    """Tag a version that serves from each of these instants on, as its training decided."""
    return {PROMOTIONS: json.dumps([promotion_tag(Promotion(0, instant, instant)) for instant in instants])}


def test_the_latest_version_that_was_promoted_serves(registry: Registry) -> None:
    train(registry, "served", **earned(day(2)))
    train(registry, "served", **earned(day(1)))
    train(registry, "served", **earned())

    assert registry.serving("served") == 1


def test_the_past_is_served_by_the_version_of_then(registry: Registry) -> None:
    train(registry, "past", **earned(day(1)))
    train(registry, "past", **earned(day(2)))

    assert registry.serving("past", day(1, 31)) == 1
    assert registry.serving("past", day(2)) == 2


def test_before_the_first_promotion_nothing_serves(registry: Registry) -> None:
    train(registry, "early", **earned(day(1)))

    assert registry.serving("early", datetime(2025, 12, 31, tzinfo=UTC)) is None
    assert registry.serving("absent") is None


def test_of_two_promotions_for_an_instant_the_one_decided_last_counts(registry: Registry) -> None:
    for _ in range(2):
        train(registry, "decided", **earned(day(1)))
    registry.promote("decided", Promotion(1, day(1), day(3)), {})

    assert registry.serving("decided", day(1)) == 1


def test_a_version_without_a_word_of_promotion_does_not_serve(registry: Registry) -> None:
    train(registry, "silent about it")

    assert registry.promotions("silent about it") == []
    assert registry.serving("silent about it") is None


def test_promotions_are_listed_in_the_order_in_which_they_count(registry: Registry) -> None:
    train(registry, "listed", **earned(day(2)))
    train(registry, "listed", **earned(day(1)))
    registry.promote("listed", Promotion(2, day(2), day(3, 4), undone=1), {"reason": "too sure"})

    assert registry.promotions("listed") == [
        Promotion(2, day(1), day(1)),
        Promotion(1, day(2), day(2)),
        Promotion(2, day(2), day(3, 4), undone=1),
    ]


def test_a_person_promotes_a_version_and_the_decision_stays_with_its_run(
    registry: Registry, client: MlflowClient
) -> None:
    train(registry, "by hand", **earned(day(1)))
    train(registry, "by hand", **earned())
    registry.promote("by hand", Promotion(2, day(2), datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)), {"reason": "spring"})

    assert registry.serving("by hand") == registry.aliased("by hand", "champion") == 2
    assert registry.serving("by hand", day(1, 31)) == 1
    version = client.get_model_version("by hand", "2")
    assert json.loads(version.tags[PROMOTIONS]) == [["2026-02-01T00:00:00+00:00", "2026-02-03T04:05:06+00:00", None]]
    kept = registry.artifacts.of_run(str(version.run_id), "promotions/2026-02-03T040506.json")
    assert json.loads(kept.read_text()) == {"reason": "spring"}


def test_an_unknown_version_is_not_promoted_and_the_known_ones_are_named(registry: Registry) -> None:
    train(registry, "known", **earned(day(1)))
    train(registry, "known")

    with pytest.raises(UnknownVersionError, match=r"^known has no version 7; it has 1, 2$"):
        registry.promote("known", Promotion(7, day(2), day(2)), {})
    assert registry.serving("known") == 1


def test_an_unknown_model_is_not_promoted_and_the_known_ones_are_named(empty: Path, tmp_path: Path) -> None:
    other = Registry(shutil.copytree(empty, tmp_path / "mlruns"))
    with pytest.raises(UnknownVersionError, match=r"^there is no model shop-churn; there are none$"):
        other.promote("shop-churn", Promotion(1, day(1), day(1)), {})

    train(other, "shop-conversion")
    with pytest.raises(UnknownVersionError, match=r"^there is no model shop-churn; there are shop-conversion$"):
        other.promote("shop-churn", Promotion(1, day(1), day(1)), {})


# --- tags and names ---


def test_a_tag_is_known_of_every_version(registry: Registry) -> None:
    train(registry, "tagged", next_number="4")
    train(registry, "tagged")

    assert registry.tags("tagged", "next_number") == {1: "4", 2: None}
    assert registry.tags("absent", "next_number") == {}


def test_a_given_name_outlives_versions_and_the_last_one_counts(registry: Registry) -> None:
    train(registry, "named", **earned(day(1)))
    registry.give_name("named", "S02", GivenName("Gift hunters", day(1)))
    registry.give_name("named", "S02", GivenName("Éclair \N{SPORTS MEDAL} fans", day(2)))
    train(registry, "named", **earned(day(3)))

    assert registry.given_names("named") == {"S02": GivenName("Éclair \N{SPORTS MEDAL} fans", day(2))}


def test_without_a_name_or_a_model_none_is_given(registry: Registry) -> None:
    train(registry, "nameless")

    assert registry.given_names("nameless") == registry.given_names("absent") == {}


# --- runs ---


def test_a_run_holds_what_the_model_was_told_and_how_good_it_is(registry: Registry, client: MlflowClient) -> None:
    with registry.run("ecom/conversion", "2026-01-01", {"as_of": "2026-01-01"}) as run:
        run.log_params({"seed": 1, "horizon_days": 7})
        run.log_metrics({"auc": 0.8, "rows": 40.0})

    record = client.get_run(run.run_id)
    assert client.get_experiment(record.info.experiment_id).name == "ecom/conversion"
    assert (record.info.run_name, record.info.status) == ("2026-01-01", "FINISHED")
    assert record.data.params == {"seed": "1", "horizon_days": "7"}
    assert record.data.metrics == {"auc": 0.8, "rows": 40.0}
    assert record.data.tags["as_of"] == "2026-01-01"


def test_a_run_knows_the_tables_it_was_trained_and_tested_on(registry: Registry, client: MlflowClient) -> None:
    frame = INPUTS.assign(as_of=pd.Timestamp("2026-01-01", tz="UTC"), device=pd.Series([None] * 40, dtype="str"))
    with registry.run("ecom/conversion", "2026-01-01") as run:
        run.log_input(frame, "snapshots", "a" * 64, "train")
        run.log_input(frame, "snapshots", "b" * 64, "test")

    inputs = client.get_run(run.run_id).inputs
    assert inputs is not None
    assert sorted(
        (table.tags[0].value, table.dataset.name, table.dataset.digest) for table in inputs.dataset_inputs
    ) == [
        ("test", "snapshots", "b" * 36),
        ("train", "snapshots", "a" * 36),
    ]


def test_figures_and_dictionaries_are_files_of_a_run(registry: Registry) -> None:
    with registry.run("ecom/conversion", "2026-01-01") as run:
        run.log_figure(Figure(), "gains.png")
        run.log_dict({"S01": "Frequent buyers"}, "segments.json")

    assert files_of(registry, run.run_id) == ["gains.png", "segments.json"]


def test_what_a_training_logged_is_read_back(registry: Registry) -> None:
    with registry.run("ecom/churn", "2026-01-02") as run:
        run.log_dict({"reason": "Promoted."}, "decision.json")
        run.log_model(MODEL, "logged", "abc", INPUTS)
    assert registry.read_dict("logged", 1, "decision.json") == {"reason": "Promoted."}
    assert registry.read_dict("logged", 1, "other.json") == registry.read_dict("logged", 2, "decision.json") == {}


def test_texts_are_recorded_under_a_key(registry: Registry) -> None:
    assert registry.find_run("ecom/report", "2026-01-01-abc") is None
    run = registry.record_texts("ecom/report", "version 1", "2026-01-01-abc", {"report.json": "{}"})
    assert registry.find_run("ecom/report", "2026-01-01-abc") == run
    assert registry.find_run("ecom/report", "2026-01-01-abd") is None
    assert files_of(registry, run) == ["report.json"]


def test_a_run_that_dies_is_marked_and_leaves_no_version(registry: Registry, client: MlflowClient) -> None:
    def die() -> None:
        with registry.run("ecom/churn", "2026-01-01") as run:
            runs.append(run.run_id)
            run.log_model(MODEL, "half", "abc", INPUTS)
            raise KeyboardInterrupt

    runs: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        die()

    assert client.get_run(runs[0]).info.status == "KILLED"
    assert registry.find("half", "abc") is None


def running(client: MlflowClient, name: str) -> list[str]:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    return sorted(run.info.run_name for run in found)


def test_runs_that_a_killed_process_left_are_ended_by_whoever_has_its_lake(
    registry: Registry, client: MlflowClient
) -> None:
    mlruns = registry.artifacts.folder.parent
    lakes = {"mine": mlruns.parent / "lake", "another's": mlruns.parent / "other"}
    left = [Registry(mlruns, lake).run("ecom/killed", name) for name, lake in lakes.items()]
    for one in left:
        one.__enter__()

    assert registry.end_interrupted(["ecom/killed"]) == 0  # it is of no lake
    assert Registry(mlruns, lakes["mine"]).end_interrupted(["ecom/killed", "ecom/absent"]) == 1
    assert running(client, "ecom/killed") == ["another's"]


def test_the_lake_of_which_ours_is_a_copy_is_found_as_long_as_it_is_there(registry: Registry) -> None:
    folder = registry.artifacts.folder.parent
    lakes = [folder.parent / name for name in ("original", "copy")]
    for lake in lakes:
        lake.mkdir()
    original, copy = (Registry(folder, lake) for lake in lakes)
    with original.run("ecom/copied", "2024-02-05"):
        pass

    assert original.find_original(["ecom/copied"]) is None
    assert copy.find_original(["ecom/copied", "ecom/absent"]) == lakes[0]
    lakes[0].rename(folder.parent / "moved")
    assert copy.find_original(["ecom/copied"]) is None


def test_a_version_says_what_it_takes_and_what_it_needs(registry: Registry, client: MlflowClient) -> None:
    described = client.get_model_version("described", str(train(registry, "described")))
    folder = registry.artifacts.of_source(str(described.source))
    assert folder is not None

    signature = Model.load(str(folder)).signature
    assert signature is not None
    assert signature.inputs.input_names() == ["recency_days", "session_count"]
    needed = Path(folder, "requirements.txt").read_text()
    assert f"scikit-learn=={version('scikit-learn')}" in needed.split()


# --- the store ---


def test_the_store_is_one_folder(registry: Registry) -> None:
    train(registry, "stored")
    mlruns = registry.artifacts.folder.parent

    assert sorted(path.name for path in mlruns.iterdir()) == ["artifacts", "mlflow.db"]


def test_the_store_is_no_global(registry: Registry) -> None:
    train(registry, "private")

    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_store_is_silent(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    Registry(registry.artifacts.folder.parent)
    train(registry, "silent")

    assert capfd.readouterr() == ("", "")
