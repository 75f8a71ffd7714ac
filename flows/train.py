"""Train: segments from the latest snapshot, churn and conversion from past ones; promote what earned it."""

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

import pandas as pd
from prefect import flow, task

from features.labels import COLUMNS, SnapshotDates, column_of, labels_table
from features.lake import Lake
from flows.configuration import Configuration, ConfigurationError, load
from flows.instant import name_run, resolve_as_of
from flows.snapshot import past_dates, table_of
from flows.world import TOUCHES_THE_WORLD
from models import evaluation, propensities, segments
from models.registry import Registry, Version

logger = logging.getLogger("habitus")

LABEL_OF = COLUMNS
MINIMUM_ROWS = 50
MINIMUM_OF_EACH_CLASS = 10
LEARNT_WITH = ("habitus", "lightgbm", "scikit-learn", "numpy", "pandas")


@dataclass(frozen=True)
class Trained:
    """Say what became of one model: the new version (none: not trained), whether it serves, and why."""

    kind: str
    version: int | None
    serving: int | None
    reason: str
    metrics: dict[str, Any]


@flow(flow_run_name=name_run)
def train(config: str, as_of: datetime | None = None) -> dict[str, Trained]:
    """Train, test and promote the segments and the propensity of each label."""
    logger.debug("training segments")
    trained = {"segments": train_segments(config, as_of)}
    logger.info("train: segments: %s", trained["segments"].reason)
    for kind in load(config).labels.named:
        logger.debug("training %s", kind)
        trained[kind] = train_propensity(config, as_of, kind)
        logger.info("train: %s: %s", kind, trained[kind].reason)
    return trained


@task(task_run_name="segments", **TOUCHES_THE_WORLD)
def train_segments(config: str, as_of: datetime | None) -> Trained:
    """Discover segments in the latest snapshot; keep the ids of those that serve."""
    configuration = load(config)
    registry = Registry(configuration.mlruns)
    name = model_name(configuration, "segments")
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        snapshot = read_snapshots(lake, configuration, [as_of])
        content = lake.content(table_of(configuration), [as_of])
    params = {**configuration.segments.model_dump(), "seed": configuration.training.seed}
    fingerprint = _fingerprint(content, params)
    number = registry.find(name, fingerprint)
    if number is None:
        try:
            model = segments.fit(snapshot, **params)
        except segments.NotEnoughUsers as error:
            return _conclude(registry, name, "segments", None, as_of, snapshot, f"Not trained: {error}.")
        serving = find_serving(registry, name, as_of, snapshot)
        if serving is not None:
            champion = segments.SegmentModel.from_dict(serving.model, serving.metadata)
            new, old = (_segment_ids(one, snapshot) for one in (model, champion))
            model = segments.align(model, new, old, champion.next_number)
        with registry.run(f"{configuration.name}/segments", _run_name("segments", as_of)) as run:
            run.log_params(params)
            run.log_input(snapshot, f"{configuration.name}/snapshots", content, "train")
            run.log_metrics({"silhouette": model.silhouette, "segments": len(model.segments)})
            run.log_metrics({f"stability_{one.segment_id}": one.stability for one in model.segments})
            run.log_figure(evaluation.plot_silhouettes(model.silhouettes), "silhouettes.png")
            run.log_figure(evaluation.plot_profiles(segments.profiles(model)), "profiles.png")
            run.log_dict(model.to_dict(), "segments.json")
            run.log_model(
                model.pipeline, name, fingerprint, snapshot, model.to_dict(), tags=version_tags(as_of, promoted=True)
            )
        number = run.version
    return _conclude(registry, name, "segments", number, as_of, snapshot)


@task(task_run_name="{kind}", **TOUCHES_THE_WORLD)
def train_propensity(config: str, as_of: datetime | None, kind: str) -> Trained:
    """Learn a propensity from past snapshots, test it on a later one beside what it has to beat."""
    configuration = load(config)
    registry = Registry(configuration.mlruns)
    name = model_name(configuration, kind)
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        dates = past_dates(configuration, lake, as_of)
        if dates is None or not dates.train:
            reason = _explain_short_history(configuration, as_of)
            return Trained(kind, None, None, reason, {})
        frame = read_labelled(lake, configuration, [*dates.train, dates.test], column_of(kind))
        instants = [*dates.train, dates.test]
        content = lake.content(table_of(configuration), instants) + lake.content(
            labels_table(configuration.labels.named), instants
        )
    is_test = frame["as_of"] == pd.Timestamp(dates.test)
    rows_train, rows_test = frame[~is_test], frame[is_test]
    number = None
    blocked = propensities.data_gate(
        rows_train[column_of(kind)], rows_test[column_of(kind)], MINIMUM_ROWS, MINIMUM_OF_EACH_CLASS
    )
    if blocked is None:
        params = {
            **{f"label_{key}": value for key, value in getattr(configuration.labels, kind).model_dump().items()},
            "delay_days": configuration.labels.delay_days,
            "seed": configuration.training.seed,
        }
        fingerprint = _fingerprint(content, params)
        number = registry.find(name, fingerprint)
        if number is None:
            number = _train(configuration, registry, kind, as_of, dates, rows_train, rows_test, params, fingerprint)
    snapshot = frame.drop(columns=column_of(kind))
    return _conclude(registry, name, kind, number, as_of, snapshot, f"Not trained: {blocked}.")


def _train(
    configuration: Configuration,
    registry: Registry,
    kind: str,
    as_of: datetime,
    dates: SnapshotDates,
    rows_train: pd.DataFrame,
    rows_test: pd.DataFrame,
    params: dict[str, Any],
    fingerprint: str,
) -> int | None:
    """Let a challenger compete, and record and register it."""
    name = model_name(configuration, kind)
    label = column_of(kind)
    serving = find_serving(registry, name, as_of, rows_test)
    champion = None if serving is None else serving.model
    with registry.run(f"{configuration.name}/{kind}", _run_name(kind, as_of)) as run:
        run.log_params(params)
        run.log_input(rows_train, f"{configuration.name}/snapshots", fingerprint, "train")
        run.log_input(rows_test, f"{configuration.name}/snapshots", fingerprint, "test")
        contest = propensities.compete(rows_train, rows_test, label, champion, params["seed"])
        for who, metrics in contest.measured.items():
            run.log_metrics({f"{who}_{metric}": value for metric, value in metrics.items()})
        run.log_params({"trees": str(contest.model.estimator[-1].get_params()), "test_as_of": dates.test.isoformat()})
        happened, predicted = rows_test[label], contest.predicted
        curves = {"model": predicted["model"], "recency alone": predicted["recency"]}
        run.log_figure(evaluation.plot_gains(happened, curves), "gains.png")
        run.log_figure(evaluation.plot_calibration(happened, predicted["model"]), "calibration.png")
        metadata = {
            "metrics": contest.measured,
            "reason": contest.decision.reason,
            "rows_train": len(rows_train),
            "snapshots_train": len(dates.train),
            "test_as_of": dates.test.isoformat(),
        }
        run.log_dict(metadata, "decision.json")
        tags = version_tags(as_of, promoted=contest.decision.promoted)
        run.log_model(contest.model, name, fingerprint, rows_train, metadata, tags=tags)
    return run.version


def _conclude(
    registry: Registry,
    name: str,
    kind: str,
    number: int | None,
    as_of: datetime,
    snapshot: pd.DataFrame,
    reason: str = "",
) -> Trained:
    """Point the aliases to the new version and to the one that serves, and say what happened."""
    metrics: dict[str, Any] = {}
    if number is not None:
        registry.set_alias(name, "challenger", number)
        if latest := registry.serving(name):
            registry.set_alias(name, "champion", latest)
        loaded = registry.load(name, number)
        assert loaded is not None
        metrics = loaded.metadata
        reason = metrics.get("reason") or _explain_segments(metrics)
    serving = find_serving(registry, name, as_of, snapshot)
    return Trained(kind, number, serving.number if serving else None, reason, metrics)


def model_name(configuration: Configuration, kind: str) -> str:
    """Return the name under which a model is registered."""
    return f"{configuration.name}-{kind}"


def version_tags(as_of: datetime, *, promoted: bool) -> dict[str, str]:
    """Return what a version says of itself: the instant it was trained at, and whether it earned to serve."""
    return {"as_of": as_of.isoformat(), "promoted": str(promoted).lower()}


def find_serving(registry: Registry, name: str, as_of: datetime, snapshot: pd.DataFrame) -> Version | None:
    """Load the version that serves at an instant: of those promoted by then the latest that these columns suffice for.

    A version from after `as_of` would know its future.
    """
    number = registry.serving(name, as_of)
    version = None if number is None else registry.load(name, number)
    if version is None or not set(version.model.feature_names_in_) <= set(snapshot.columns):
        return None
    return version


def read_snapshots(lake: Lake, configuration: Configuration, instants: list[datetime]) -> pd.DataFrame:
    """Read snapshots at instants, sorted by key. Raises ConfigurationError where there are none."""
    table = lake.read(table_of(configuration))
    frame: pd.DataFrame = table.filter(table.as_of.isin(instants)).to_pandas()
    if frame.empty:
        asked = ", ".join(f"{instant:%Y-%m-%dT%H:%M:%SZ}" for instant in instants)
        raise ConfigurationError(f"no snapshot at {asked}: run `habitus snapshot {configuration.file}` first")
    return frame.sort_values(["as_of", "user_id"], ignore_index=True)


def read_labelled(lake: Lake, configuration: Configuration, instants: list[datetime], label: str) -> pd.DataFrame:
    """Read snapshots with a label, of users who have one."""
    labels = lake.read(labels_table(configuration.labels.named))
    known = labels.filter(labels.as_of.isin(instants), labels[label].notnull()).select("user_id", "as_of", label)
    frame = read_snapshots(lake, configuration, instants).merge(known.to_pandas(), on=["user_id", "as_of"])
    return frame.astype({label: bool})


def _segment_ids(model: segments.SegmentModel, snapshot: pd.DataFrame) -> pd.Series:
    return segments.assign(model, snapshot).set_index("user_id")["segment_id"]


def _fingerprint(content: str, params: dict[str, Any]) -> str:
    """Hash what a model is learnt from and with: the same gives the same model."""
    versions = {name: version(name) for name in LEARNT_WITH}
    return hashlib.sha256(json.dumps([content, params, versions], sort_keys=True).encode()).hexdigest()


def _run_name(kind: str, as_of: datetime) -> str:
    return f"{kind} as of {as_of:%Y-%m-%d %H:%M}"


def _explain_segments(metadata: dict[str, Any]) -> str:
    found = metadata["segments"]
    stability = sum(segment["stability"] * segment["share"] for segment in found)
    silhouette = metadata["silhouettes"][str(len(found))]
    return (
        f"{len(found)} segments, silhouette {silhouette:.2f}, stability {stability:.2f} (1: the same in every refit)."
    )


def _explain_short_history(configuration: Configuration, as_of: datetime) -> str:
    reach_days = configuration.labels.reach.days
    return (
        f"Not trained: the history before {as_of:%Y-%m-%d} is too short: a snapshot to test on needs {reach_days} days "
        f"after it, one to learn from {reach_days} days more."
    )
