import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.models import Model
from sklearn.linear_model import LogisticRegression

from models import propensities, segments
from models.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's

INPUTS = pd.DataFrame({"recency_days": np.linspace(0, 30, 40), "session_count": np.linspace(20, 1, 40)})
LABELS = INPUTS["recency_days"] > 15
MODEL = LogisticRegression().fit(INPUTS, LABELS)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("a folder") / "mlruns")


@pytest.fixture
def client(registry: Registry) -> MlflowClient:
    return MlflowClient(registry.tracking_uri, registry_uri=registry.tracking_uri)


def train(registry: Registry, name: str, fingerprint: str = "abc", **tags: str) -> int:
    with registry.run("ecom/churn", "2026-01-01") as run:
        run.log_model(MODEL, name, fingerprint, INPUTS, {"users": 40}, tags)
    assert run.version is not None
    return run.version


# --- versions ---


def test_a_model_comes_back_as_it_was(registry: Registry) -> None:
    number = train(registry, "whole")

    loaded = registry.load("whole", number)
    assert loaded is not None
    assert (loaded.number, loaded.fingerprint, loaded.metadata) == (number, "abc", {"users": 40})
    assert np.array_equal(loaded.model.predict_proba(INPUTS), MODEL.predict_proba(INPUTS))


def test_a_propensity_comes_back_as_it_was(registry: Registry) -> None:
    frame = INPUTS.assign(
        user_id=[f"u{i:02d}" for i in range(40)],
        as_of=pd.Timestamp("2026-01-01", tz="UTC"),
        device=pd.Series(["mobile", "desktop", None, "tablet"] * 10, dtype="str"),
    )
    model = propensities.fit(frame, LABELS, frame["user_id"], seed=1, n_jobs=1)
    with registry.run("ecom/churn", "2026-01-01") as run:
        run.log_model(model, "propensity", "abc", frame)

    loaded = registry.load("propensity", 1)
    assert loaded is not None
    assert propensities.predict(loaded.model, frame).tobytes() == propensities.predict(model, frame).tobytes()


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


def test_the_latest_version_that_was_promoted_serves(registry: Registry) -> None:
    train(registry, "served", promoted="true", as_of="2026-02-01T00:00:00+00:00")
    train(registry, "served", promoted="true", as_of="2026-01-01T00:00:00+00:00")
    train(registry, "served", promoted="false", as_of="2026-03-01T00:00:00+00:00")

    assert registry.serving("served") == 1


def test_the_past_is_served_by_the_version_of_then(registry: Registry) -> None:
    train(registry, "past", promoted="true", as_of="2026-01-01T00:00:00+00:00")
    train(registry, "past", promoted="true", as_of="2026-02-01T00:00:00+00:00")

    assert registry.serving("past", datetime(2026, 1, 31, tzinfo=UTC)) == 1
    assert registry.serving("past", datetime(2026, 2, 1, tzinfo=UTC)) == 2


def test_before_the_first_promotion_nothing_serves(registry: Registry) -> None:
    train(registry, "early", promoted="true", as_of="2026-01-01T00:00:00+00:00")

    assert registry.serving("early", datetime(2025, 12, 31, tzinfo=UTC)) is None
    assert registry.serving("absent") is None


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


def test_figures_and_dictionaries_are_files_of_a_run(registry: Registry, client: MlflowClient) -> None:
    with registry.run("ecom/conversion", "2026-01-01") as run:
        run.log_figure(Figure(), "gains.png")
        run.log_dict({"S01": "Frequent buyers"}, "segments.json")

    assert [file.path for file in client.list_artifacts(run.run_id)] == ["gains.png", "segments.json"]


def test_a_run_that_dies_is_marked_and_leaves_no_version(registry: Registry, client: MlflowClient) -> None:
    def die() -> None:
        with registry.run("ecom/churn", "2026-01-01") as run:
            runs.append(run.run_id)
            run.log_model(MODEL, "half", "abc", INPUTS)
            raise KeyboardInterrupt

    runs: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        die()

    assert client.get_run(runs[0]).info.status == "FAILED"
    assert registry.find("half", "abc") is None


def test_a_version_says_what_it_takes_and_what_it_needs(registry: Registry, client: MlflowClient) -> None:
    described = client.get_model_version("described", str(train(registry, "described")))
    folder = download_artifacts(artifact_uri=described.source)

    signature = Model.load(folder).signature
    assert signature is not None
    assert signature.inputs.input_names() == ["recency_days", "session_count"]
    needed = Path(folder, "requirements.txt").read_text()
    assert f"scikit-learn=={version('scikit-learn')}" in needed.split()


# --- the store ---


def test_the_store_is_one_folder(registry: Registry) -> None:
    mlruns = Path(registry.tracking_uri.removeprefix("sqlite:///")).parent

    assert sorted(path.name for path in mlruns.iterdir()) == ["artifacts", "mlflow.db"]


def test_the_store_is_no_global(registry: Registry) -> None:
    train(registry, "private")

    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_store_is_silent(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    Registry(Path(registry.tracking_uri.removeprefix("sqlite:///")).parent)
    train(registry, "silent")

    assert capfd.readouterr() == ("", "")
