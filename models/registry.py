"""The door to MLflow: what was trained, on what, how good it was, and which version serves.

MLflow's fluent interface keeps its store in a global and in the environment, so only the client is used here. Where
the files of runs and models are, it does not know: the store may be moved, copied, or be there under two names.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow.sklearn
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelOutput, Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature

from features.addresses import file_address, sqlite_address
from features.labels import Purpose
from features.lake import staging_folder
from models.artifacts import ADDRESS, Artifacts, forget_places
from models.store import MEND, StoreError, check_store

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it raises what it logs
logging.getLogger("alembic").setLevel(logging.ERROR)

REQUIREMENTS = [f"{name}=={version(name)}" for name in ("lightgbm", "numpy", "pandas", "scikit-learn", "skops")]
TRUSTED_TYPES = [
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "models.clusters.project",
    "models.clusters.shrunk",
    "models.propensities.Blend",
    "models.propensities._signed_log1p",
    "models.spaces.project",
    "models.spaces.shrunk",
    "numpy.clip",
    "numpy.dtype",
    "scipy.interpolate._interpolate.interp1d",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
]
SIGNATURE_ROWS = 100
DIGEST_LENGTH = 36  # MLflow stores no more


DATABASE = "mlflow.db"
PROMOTIONS = "promotions"
SEGMENT_NAME = "segment_name."


OWNER = "habitus.lake"
"""The tag of a run that names the lake it works on, of which whoever holds its lock is the only one."""
INTERRUPTED = "KILLED"


class UnknownVersionError(Exception):
    """Name a version that is not registered, and those that are."""


@dataclass(frozen=True)
class Promotion:
    """Hold which version serves from which instant on, when that was decided, and which version it took back."""

    number: int
    as_of: datetime
    decided_at: datetime
    undone: int | None = None


@dataclass(frozen=True)
class GivenName:
    """A name that a person gave to a segment, and when."""

    name: str
    given_at: datetime


def promotion_tag(promotion: Promotion) -> list[Any]:
    """Return what a version's tag says of one of its promotions."""
    return [promotion.as_of.isoformat(), promotion.decided_at.isoformat(), promotion.undone]


@dataclass(frozen=True)
class Version:
    """A registered model as it was trained: its version, the fingerprint of its inputs, and its metadata."""

    number: int
    fingerprint: str
    model: Any
    metadata: dict[str, Any]


TrialStatus = Literal["FINISHED", "KILLED"]
"""A trial that was given up early is killed."""


class Run:
    """One training, as MLflow shows it; `version` is the registered version once the run has ended well."""

    def __init__(
        self, client: MlflowClient, artifacts: Artifacts, experiment_id: str, run_id: str, owner: str | None = None
    ) -> None:
        self.run_id = run_id
        self._owner = owner
        self.version: int | None = None
        self._client = client
        self._artifacts = artifacts
        self._experiment_id = experiment_id
        self._logged: tuple[str, LoggedModel, dict[str, str]] | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log what the training was told."""
        self._client.log_batch(self.run_id, params=[Param(name, str(value)) for name, value in params.items()])

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log what was measured."""
        now_ms = int(time.time() * 1000)
        self._client.log_batch(self.run_id, [Metric(name, value, now_ms, 0) for name, value in metrics.items()])

    def log_trial(
        self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float], status: TrialStatus
    ) -> None:
        """Log a trial as a run within this one."""
        tags = {"mlflow.parentRunId": self.run_id} | _owned_by(self._owner)
        trial_id = _created(self._client, self._experiment_id, name, tags)
        trial = Run(self._client, self._artifacts, self._experiment_id, trial_id)
        trial.log_params(params)
        trial.log_metrics(metrics)
        self._client.set_terminated(trial.run_id, status)

    def log_text(self, text: str, file: str) -> None:
        """Log a text under a file name such as label_card.html."""
        self._place(file).write_text(text, encoding="utf-8")

    def log_input(self, frame: pd.DataFrame, name: str, digest: str, context: Purpose) -> None:
        """Log a table that the model was trained or tested on: its schema, its size, and its digest's start."""
        table = Dataset(
            name=name,
            digest=digest[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": name}),
            schema=json.dumps({"mlflow_colspec": infer_signature(frame).inputs.to_dict()}),
            profile=json.dumps({"num_rows": len(frame), "num_elements": int(frame.size)}),
        )
        self._client.log_inputs(self.run_id, [DatasetInput(table, [InputTag("mlflow.data.context", context)])])

    def log_figure(self, figure: Figure, file: str) -> None:
        """Log a figure under a file name such as gains.png."""
        figure.savefig(self._place(file))

    def log_dict(self, content: dict[str, Any], file: str) -> None:
        """Log a dictionary under a file name such as segments.json."""
        self.log_text(json.dumps(content, indent=2, default=str), file)

    def log_model(
        self,
        model: Any,
        name: str,
        fingerprint: str,
        inputs: pd.DataFrame,
        metadata: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Store a fitted scikit-learn model, to be registered under a name when the run ends well.

        `fingerprint` tells what the model was trained from, `inputs` are rows it takes, and `metadata` is
        JSON that `Registry.load` brings back with it.
        """
        inputs = inputs[list(model.feature_names_in_)].head(SIGNATURE_ROWS)
        predict = "predict_proba" if hasattr(model, "predict_proba") else "predict"
        logged = self._client.create_logged_model(self._experiment_id, name, self.run_id)
        with TemporaryDirectory() as folder:
            path = Path(folder, "model")
            mlflow.sklearn.save_model(
                model,
                path,
                mlflow_model=Model(run_id=self.run_id, model_id=logged.model_id),
                signature=infer_signature(inputs, getattr(model, predict)(inputs)),
                serialization_format="skops",
                skops_trusted_types=TRUSTED_TYPES,
                pip_requirements=REQUIREMENTS,  # or MLflow spends seconds to find out
                pyfunc_predict_fn=predict,
            )
            (path / "metadata.json").write_text(json.dumps(dict(metadata or {}), allow_nan=False))
            shutil.copytree(path, self._artifacts.prepare(self._artifacts.of_model(logged.model_id)))
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        self._logged = name, logged, {**(tags or {}), "fingerprint": fingerprint}

    def _place(self, file: str) -> Path:
        return self._artifacts.prepare(self._artifacts.of_run(self.run_id, file))

    def _register(self) -> None:
        if self._logged is None:
            return
        name, logged, tags = self._logged
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        registered = self._client.create_model_version(
            name,
            source=logged.artifact_location,
            run_id=self.run_id,
            tags=tags,
            model_id=logged.model_id,
        )
        self.version = int(registered.version)


class Registry:
    """MLflow in a folder of its own: `mlruns`/mlflow.db and `mlruns`/artifacts."""

    def __init__(self, mlruns: Path, owner: Path | None = None) -> None:
        """Open the store, for work on the lake that is its `owner`. Raises StoreError where it is broken."""
        mlruns.mkdir(parents=True, exist_ok=True)
        check_store(mlruns)
        if not (mlruns / DATABASE).exists():
            _make_database(mlruns / DATABASE)
        # As seen from the store, so that both may be moved.
        self._owner = None if owner is None else os.path.relpath(owner, mlruns)
        self.tracking_uri = sqlite_address(mlruns / DATABASE)
        self.artifacts = Artifacts(mlruns)
        forget_places(mlruns / DATABASE)
        self._client = MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)

    @contextmanager
    def run(self, experiment: str, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
        """Record a training in an experiment such as ecom/churn.

        A model logged in it becomes a version when the block ends; where the block raises, the run is marked
        FAILED, or KILLED where it was stopped, and nothing is registered.
        """
        experiment_id = self._experiment(experiment)
        run_id = _created(self._client, experiment_id, name, {**(tags or {}), **_owned_by(self._owner)})
        run = Run(self._client, self.artifacts, experiment_id, run_id, self._owner)
        try:
            yield run
            run._register()
        except BaseException as error:
            with suppress(MlflowException):  # of a store that is gone, the first error says more
                self._client.set_terminated(run.run_id, "FAILED" if isinstance(error, Exception) else INTERRUPTED)
            raise
        self._client.set_terminated(run.run_id, "FINISHED")

    def find_original(self, experiments: Collection[str]) -> Path | None:
        """Return a lake that has finished runs in experiments, too, and is still there: ours is a copy of it."""
        finished = self._search(experiments, "FINISHED") if self._owner else []
        mlruns = self.artifacts.folder.parent
        for owner in sorted({run.data.tags[OWNER] for run in finished if OWNER in run.data.tags} - {self._owner}):
            lake, ours = mlruns / owner, mlruns / str(self._owner)
            if lake.is_dir() and not (ours.is_dir() and os.path.samefile(lake, ours)):
                return Path(os.path.normpath(lake))
        return None

    def end_interrupted(self, experiments: Collection[str]) -> int:
        """Mark the runs of experiments as KILLED that a killed process left as running; return how many.

        They are those of the owner: hold its lock, so that nobody else has any.
        """
        running = self._search(experiments, "RUNNING")
        left = [run.info.run_id for run in running if run.data.tags.get(OWNER) == self._owner is not None]
        for run_id in left:
            self._client.set_terminated(run_id, INTERRUPTED)
        return len(left)

    def _search(self, experiments: Collection[str], status: str) -> list[Any]:
        known = [found for name in experiments if (found := self._client.get_experiment_by_name(name)) is not None]
        ids = [one.experiment_id for one in known]
        return list(self._client.search_runs(ids, f"attributes.status = '{status}'")) if ids else []

    def runs(self, experiment: str) -> pd.DataFrame:
        """List the finished runs of an experiment, the latest first: run, started_at, and a column per metric.

        Trials within a run are left out.
        """
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            return pd.DataFrame(columns=["run", "started_at"])
        finished = self._client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'")
        return pd.DataFrame(
            {
                "run": run.info.run_name,
                "started_at": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
                **run.data.metrics,
            }
            for run in finished
            if "mlflow.parentRunId" not in run.data.tags
        )

    def find(self, name: str, fingerprint: str) -> int | None:
        """Return the latest version of a model with this fingerprint, or None."""
        found = self._client.search_model_versions(f"name = '{name}' and tags.fingerprint = '{fingerprint}'")
        return max((int(version.version) for version in found), default=None)

    def serving(self, name: str, as_of: datetime | None = None) -> int | None:
        """Return the version that serves at an instant, or None: of those promoted by then, the one promoted last.

        A promotion counts from an instant on, that of the training or of the version it follows, so that scoring the
        past again takes the model of then. Without an instant it is the one that serves now.
        """
        known = [one for one in self.promotions(name) if as_of is None or one.as_of <= as_of]
        return known[-1].number if known else None

    def promotions(self, name: str) -> list[Promotion]:
        """List the promotions of a model's versions in the order in which they count."""
        versions = self._client.search_model_versions(f"name = '{name}'")
        found = [
            Promotion(int(version.version), datetime.fromisoformat(as_of), datetime.fromisoformat(decided_at), undone)
            for version in versions
            for as_of, decided_at, undone in json.loads(version.tags.get(PROMOTIONS, "[]"))
        ]
        return sorted(found, key=lambda one: (one.as_of, one.decided_at, one.number))

    def promote(self, name: str, promotion: Promotion, decision: Mapping[str, Any]) -> None:
        """Let a version serve, and keep the decision with its run.

        Raises UnknownVersionError where there is no such version.
        """
        version = self._version(name, promotion.number)
        if version is None:
            raise UnknownVersionError(self._explain_unknown(name, promotion.number))
        before = json.loads(version.tags.get(PROMOTIONS, "[]"))
        file = f"promotions/{promotion.decided_at:%Y-%m-%dT%H%M%S}.json"
        path = self.artifacts.prepare(self.artifacts.of_run(str(version.run_id), file))
        path.write_text(json.dumps(dict(decision), indent=2), encoding="utf-8")
        tag = json.dumps([*before, promotion_tag(promotion)])
        self._client.set_model_version_tag(name, str(promotion.number), PROMOTIONS, tag)
        self.set_alias(name, "champion", promotion.number)

    def tags(self, name: str, tag: str) -> dict[int, str | None]:
        """Return what each version of a model has under a tag, by version; None where it lacks it."""
        found = self._client.search_model_versions(f"name = '{name}'")
        return {int(version.version): version.tags.get(tag) for version in found}

    def given_names(self, name: str) -> dict[str, GivenName]:
        """Return the names that people gave to segments of a model, by segment id; they outlive its versions."""
        try:
            tags = self._client.get_registered_model(name).tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        given = {key.removeprefix(SEGMENT_NAME): json.loads(tags[key]) for key in tags if key.startswith(SEGMENT_NAME)}
        return {key: GivenName(one["name"], datetime.fromisoformat(one["given_at"])) for key, one in given.items()}

    def give_name(self, name: str, segment_id: str, given: GivenName) -> None:
        """Keep a person's name for a segment with a registered model, in the place of one given before."""
        text = json.dumps({"name": given.name, "given_at": given.given_at.isoformat()})
        self._client.set_registered_model_tag(name, SEGMENT_NAME + segment_id, text)

    def trained_at(self, name: str, number: int) -> datetime:
        """Return the instant that a version was trained at. Raises UnknownVersionError where there is none."""
        version = self._version(name, number)
        if version is None:
            raise UnknownVersionError(self._explain_unknown(name, number))
        return datetime.fromisoformat(version.tags["as_of"])

    def read_dict(self, name: str, number: int, file: str) -> dict[str, Any]:
        """Return what a version's training logged under a file name such as decision.json; empty if it did not."""
        version = self._version(name, number)
        if version is None or not version.run_id:
            return {}
        path = self.artifacts.of_run(version.run_id, file)
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def find_run(self, experiment: str, key: str) -> str | None:
        """Return the id of the finished run of an experiment that was recorded under a key, or None."""
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            return None
        asked = f"tags.key = '{key}' and attributes.status = 'FINISHED'"
        known = self._client.search_runs([found.experiment_id], asked)
        return str(known[0].info.run_id) if known else None

    def record_texts(self, experiment: str, name: str, key: str, files: Mapping[str, str]) -> str:
        """Record texts, by file name, as a run of an experiment under a key, and return the run's id."""
        with self.run(experiment, name, {"key": key}) as run:
            for file, text in files.items():
                run.log_text(text, file)
        return run.run_id

    def _explain_unknown(self, name: str, number: int) -> str:
        known = sorted(int(version.version) for version in self._client.search_model_versions(f"name = '{name}'"))
        if known:
            return f"{name} has no version {number}; it has {', '.join(str(one) for one in known)}"
        names = sorted(model.name for model in self._client.search_registered_models())
        return f"there is no model {name}; there are {', '.join(names) or 'none'}"

    def load(self, name: str, which: str | int) -> Version | None:
        """Load a model by its alias, such as champion, or by its version; None where there is none.

        Raises StoreError where its files are missing or broken.
        """
        found = self._version(name, which)
        if found is None:
            return None
        folder = self.artifacts.of_source(str(found.source))
        try:
            if folder is None:
                raise FileNotFoundError(found.source)
            metadata = json.loads((folder / "metadata.json").read_text())
            model = mlflow.sklearn.load_model(file_address(folder))
        except Exception as error:
            raise StoreError(
                f"{name} version {found.version} cannot be loaded from {folder or found.source}: {MEND}; "
                f"or have another version serve with `habitus rollback {name}`"
            ) from error
        return Version(int(found.version), found.tags["fingerprint"], model, metadata)

    def aliased(self, name: str, alias: str) -> int | None:
        """Return the version under an alias, or None."""
        found = self._version(name, alias)
        return None if found is None else int(found.version)

    def set_alias(self, name: str, alias: Literal["challenger", "champion"], number: int) -> None:
        """Point an alias to a version."""
        self._client.set_registered_model_alias(name, alias, str(number))

    def _version(self, name: str, which: str | int) -> ModelVersion | None:
        try:
            if isinstance(which, int):
                return self._client.get_model_version(name, str(which))
            return self._client.get_model_version_by_alias(name, which)
        except MlflowException as error:
            # an unknown alias of a known model is an INVALID_PARAMETER_VALUE to MLflow
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise

    def _experiment(self, name: str) -> str:
        if experiment := self._client.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        try:
            return self._client.create_experiment(name, artifact_location=ADDRESS)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment(name)  # another task was quicker


def _make_database(file: Path) -> None:
    """Make a database elsewhere, then put it where it belongs: what is half-made MLflow can never use again."""
    with staging_folder(file.parent) as staging:
        MlflowClient(sqlite_address(staging / "made.db"))
        whole = Path(shutil.copy(staging / "made.db", staging / "whole.db"))  # which nobody has open
        try:
            os.link(whole, file)
        except FileExistsError:  # another process was quicker
            return
        except OSError:  # a disk without links
            whole.replace(file)


def _owned_by(owner: str | None) -> dict[str, str]:
    return {} if owner is None else {OWNER: owner}


def _created(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    run_id: str = client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id
    return run_id
