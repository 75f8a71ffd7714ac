"""Train: segments from the latest snapshot, churn and conversion from past ones; promote what earned it."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from prefect import task

from features.labels import Purpose, column_of, labels_table
from features.lake import Lake
from features.zones import write_instant
from flows.audit import find_leaks
from flows.configuration import Configuration, ConfigurationError, load
from flows.identity import NEXT_NUMBER, align, explain, measure_flapping
from flows.instant import event_span, resolve_as_of
from flows.past import digest, read_past
from flows.snapshot import describe_label, past_dates, stored_labels, stored_snapshots, table_of
from flows.stage import read_as_of, stage
from flows.world import TOUCHES_THE_WORLD, discreet
from models import figures, promotion, propensities, segment_card, segments
from models.candidates import Candidate
from models.label_card import LabelCard
from models.registry import PROMOTIONS, Promotion, Registry, TrialStatus, Version, promotion_tag

logger = logging.getLogger("habitus")

MINIMUM_ROWS = 50
MINIMUM_OF_EACH_CLASS = 10
PURPOSES: tuple[Purpose, ...] = ("train", "validation", "test")
LAST_SNAPSHOT = "last_snapshot"
"""The tag of a version that names the last instant of the snapshots it was made from: who came later is in none."""
LEARNT_WITH = ("habitus", "lightgbm", "optuna", "scikit-learn", "numpy", "pandas")


@dataclass(frozen=True)
class Trained:
    """Say what became of one model: the new version (none: not trained), whether it serves, and why."""

    kind: str
    version: int | None
    serving: int | None
    reason: str
    metrics: dict[str, Any]


@stage()
def train(config: str, as_of: datetime | str | None = None) -> dict[str, Trained]:
    """Train, test and promote the segments and the propensity of each label."""
    as_of = read_as_of(config, as_of)
    if as_of is None:
        configuration = load(config)
        with configuration.open_lake() as lake:
            as_of = resolve_as_of(None, configuration, lake)
    logger.debug("training segments")
    trained = {"segments": train_segments(config, as_of)}
    logger.info("train: segments: %s", trained["segments"].reason)
    for line in explain(trained["segments"].metrics, load(config).time_zone):
        logger.info("  %s", line)
    logger.debug("looking for leaks")
    findings = audit_features(config, as_of)
    for finding in findings:
        logger.warning("  %s", finding)
    for kind in load(config).labels.named:
        logger.debug("training %s", kind)
        trained[kind] = train_propensity(config, as_of, kind, len(findings))
        logger.info("train: %s: %s", kind, trained[kind].reason)
    return trained


@task(task_run_name="audit", **TOUCHES_THE_WORLD)
@discreet
def audit_features(config: str, as_of: datetime | None) -> list[str]:
    """Say which features know the future or name a label."""
    configuration = load(config)
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        if past_dates(configuration, lake, as_of) is None:
            return []
        return find_leaks(configuration, lake, as_of).findings


@task(task_run_name="segments", **TOUCHES_THE_WORLD)
@discreet
def train_segments(config: str, as_of: datetime | None) -> Trained:
    """Discover segments in the latest snapshot; keep the ids of those that serve."""
    configuration = load(config)
    registry = Registry(configuration.mlruns, configuration.lake)
    experiments = [f"{configuration.name}/{kind}" for kind in ("segments", *configuration.labels.named)]
    original = registry.find_original(experiments)
    if original is not None:
        raise ConfigurationError(
            f"storage.mlruns: {configuration.mlruns} has models of {configuration.name} that were trained on "
            f"{original}; a copy needs a folder of its own for its models, or another name"
        )
    registry.end_interrupted(experiments)
    name = model_name(configuration, "segments")
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        snapshot = read_snapshots(lake, configuration, [as_of])
        content = lake.content(table_of(configuration), [as_of])
        past = read_past(configuration, lake, as_of)
    params = {**configuration.segments.model_dump(exclude={"dwell_margin"}), "seed": configuration.training.seed}
    # What is personal changes what is said of segments: then they are recorded anew.
    personal = {"personal": configuration.personal} if configuration.personal else {}
    fingerprint = _fingerprint({"snapshot": content, "past": digest(past)}, params | personal)
    number = registry.find(name, fingerprint)
    if number is None:
        serving = find_serving(registry, name, as_of, snapshot)
        champion = segments.SegmentModel.from_dict(serving.model, serving.metadata) if serving else None
        try:
            model = segments.fit(snapshot, **params, champion=champion, personal=configuration.personal, past=past)
        except segments.NotEnoughUsers as error:
            return _conclude(registry, name, "segments", None, as_of, snapshot, f"Not trained: {error}.")
        with configuration.open_lake() as lake:
            model, known = align(model, serving, registry, name, snapshot, as_of, lake, configuration)
            flapping = measure_flapping(model, configuration, lake, as_of, snapshot["user_id"])
        metadata = model.to_dict() | {"flapping": flapping}
        with registry.run(f"{configuration.name}/segments", _run_name("segments", as_of, configuration)) as run:
            run.log_params(params)
            run.log_input(snapshot, f"{configuration.name}/snapshots", content, "train")
            assert model.chosen is not None  # which only versions of before do not tell
            run.log_metrics(_judgement(model.chosen))
            run.log_metrics({f"stability_{one.segment_id}": one.stability for one in model.segments})
            for one in model.candidates:
                way = {"space": one.space, "method": one.method, "k": one.k, "kept": one.kept}
                run.log_trial(one.name, way, _judgement(one), "FINISHED")
            if model.tells:
                run.log_metrics(_telling(model.tells))
            run.log_figure(figures.plot_candidates(model.candidates, model.chosen), "candidates.png")
            run.log_figure(figures.plot_profiles(segments.profiles(model, snapshot)), "profiles.png")
            run.log_metrics({f"segments_{kind}": count for kind, count in known.count().items()})
            run.log_metrics({metric: rate for metric, rate in flapping.items() if metric.startswith("flap_rate")})
            if known.size_changes:
                run.log_figure(figures.plot_size_changes(known.size_changes), "size_changes.png")
            run.log_dict(known.to_dict(), "lineage.json")
            run.log_dict(metadata, "segments.json")
            run.log_text(
                segment_card.to_html(model, configuration.name, as_of, configuration.time_zone), "segments.html"
            )
            tags = version_tags(as_of, promoted=model.doubt is None)
            tags |= {LAST_SNAPSHOT: as_of.isoformat(), NEXT_NUMBER: str(model.next_number)}
            run.log_model(model.pipeline, name, fingerprint, snapshot, metadata, tags=tags)
        number = run.version
    return _conclude(registry, name, "segments", number, as_of, snapshot)


@task(task_run_name="{kind}", **TOUCHES_THE_WORLD)
@discreet
def train_propensity(config: str, as_of: datetime | None, kind: str, leaks: int = 0) -> Trained:
    """Learn a propensity from past snapshots, test it on a later one beside what it has to beat.

    With leaks in the features nothing is learnt.
    """
    configuration = load(config)
    registry = Registry(configuration.mlruns, configuration.lake)
    name, label = model_name(configuration, kind), column_of(kind)
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        dates = past_dates(configuration, lake, as_of)
        if dates is None:
            return Trained(kind, None, None, _explain_short_history(configuration, lake, as_of), {})
        frame = read_labelled(lake, configuration, list(dates.purposes), label)
        partitions = {
            f"{table.name}/{instant:%Y-%m-%dT%H:%M:%SZ}": lake.content(table, [instant])
            for table in (table_of(configuration), labels_table(configuration.labels.named))
            for instant in dates.purposes
        }
        card = describe_label(lake, configuration, kind, as_of, dates.purposes)
    purposes = frame["as_of"].map(dates.purposes)
    slices = {purpose: frame[purposes == purpose].reset_index(drop=True) for purpose in PURPOSES}
    number = None
    blocked = propensities.data_gate(slices, label, MINIMUM_ROWS, MINIMUM_OF_EACH_CLASS) or card.broken
    if leaks:
        blocked = f"the audit found {leaks}: see `habitus audit {configuration.file}`"
    if blocked is None:
        params = _params(configuration, kind)
        fingerprint = _fingerprint(partitions, params)
        number = registry.find(name, fingerprint)
        if number is None:
            number = _train(configuration, registry, kind, as_of, slices, params, fingerprint, partitions, card)
    return _conclude(registry, name, kind, number, as_of, frame.drop(columns=label), f"Not trained: {blocked}.")


def _params(configuration: Configuration, kind: str) -> dict[str, Any]:
    """Return what a propensity is learnt with, beside the rows."""
    training = configuration.training
    return {
        **{f"label_{key}": value for key, value in asdict(configuration.labels.named[kind]).items()},
        **{f"calibration_{key}": value for key, value in configuration.calibration.model_dump().items()},
        "recipe": propensities.RECIPE,
        "seed": training.seed,
        "trials": training.trials,
        "trial_seconds": training.trial_seconds,
    }


def _train(
    configuration: Configuration,
    registry: Registry,
    kind: str,
    as_of: datetime,
    slices: Mapping[Purpose, pd.DataFrame],
    params: dict[str, Any],
    fingerprint: str,
    partitions: Mapping[str, str],
    card: LabelCard,
) -> int | None:
    """Let a challenger compete, and record and register it."""
    name, label = model_name(configuration, kind), column_of(kind)
    train, validation, test = slices.values()
    serving = find_serving(registry, name, as_of, test)
    with registry.run(f"{configuration.name}/{kind}", _run_name(kind, as_of, configuration)) as run:
        run.log_params(params)
        for purpose, rows in slices.items():
            run.log_input(rows, f"{configuration.name}/snapshots", fingerprint, purpose)
        run.log_dict(dict(partitions), "partitions.json")
        run.log_dict(card.to_dict(), "label_card.json")
        run.log_text(card.to_html(), "label_card.html")

        def log_trial(trial: propensities.Trial) -> None:
            logger.debug("training %s: trial %s of %s", kind, trial.number + 1, configuration.training.trials)
            measured = {"seconds": trial.seconds} | ({} if trial.log_loss is None else {"log_loss": trial.log_loss})
            status: TrialStatus = "KILLED" if trial.log_loss is None else "FINISHED"
            run.log_trial(f"trial {trial.number}", trial.settings | {"trees": trial.trees}, measured, status)

        contest = promotion.compete(
            train,
            validation,
            test,
            label,
            champion=None if serving is None else serving.model,
            segments=_segments_of(registry, configuration, as_of, test),
            seed=params["seed"],
            budget=propensities.Budget(configuration.training.trials, configuration.training.trial_seconds),
            limits=configuration.calibration,
            rises=configuration.labels.named[kind].kind == "churn",
            on_trial=log_trial,
        )
        for who, metrics in contest.measured.items():
            known = {f"{who}_{metric}": one.value for metric, one in metrics.items() if np.isfinite(one.value)}
            run.log_metrics(known)
        happened, predicted = test[label], contest.predicted
        curves = {"model": predicted["model"], "recency alone": predicted["recency"], "RFM": predicted["rfm"]}
        run.log_figure(figures.plot_gains(happened, curves), "gains.png")
        run.log_figure(figures.plot_calibration(happened, predicted["model"]), "calibration.png")
        told = contest.to_dict()
        metadata = {
            "metrics": told["metrics"],
            "gains": told["decision"]["gains"],
            "top_users": told["top_users"],
            "reason": contest.decision.reason,
            "withheld": contest.decision.withheld,
            "rows": {purpose: len(rows) for purpose, rows in slices.items()},
            "test_as_of": test["as_of"].iloc[0].isoformat(),
        }
        run.log_dict({**told, **metadata}, "decision.json")
        tags = version_tags(as_of, promoted=contest.decision.promoted) | {LAST_SNAPSHOT: metadata["test_as_of"]}
        run.log_model(contest.learned.model, name, fingerprint, train, metadata, tags=tags)
    return run.version


def _segments_of(
    registry: Registry, configuration: Configuration, as_of: datetime, users: pd.DataFrame
) -> pd.Series | None:
    """Assign users to the segments that serve; None without any."""
    serving = find_serving(registry, model_name(configuration, "segments"), as_of, users)
    if serving is None:
        return None
    assigned = _segment_ids(segments.SegmentModel.from_dict(serving.model, serving.metadata), users)
    return assigned.reindex(users["user_id"]).reset_index(drop=True)


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
    """Return what a version says of itself: the instant it was trained at, and whether it serves from then on."""
    # Of the instant, not of the clock: the same training again says the same.
    earned = [promotion_tag(Promotion(0, as_of, as_of))] if promoted else []
    return {"as_of": as_of.isoformat(), PROMOTIONS: json.dumps(earned)}


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
    frame: pd.DataFrame = stored_snapshots(lake, configuration, instants).to_pandas()
    if frame.empty:
        asked = ", ".join(write_instant(instant, configuration.time_zone) for instant in instants)
        raise ConfigurationError(f"no snapshot at {asked}: run `habitus snapshot {configuration.file}` first")
    return frame.sort_values(["as_of", "user_id"], ignore_index=True)


def read_labelled(lake: Lake, configuration: Configuration, instants: list[datetime], label: str) -> pd.DataFrame:
    """Read snapshots with a label, of users who have one."""
    labels = stored_labels(lake, configuration, instants)
    known = labels.filter(labels[label].notnull()).select("user_id", "as_of", label)
    frame = read_snapshots(lake, configuration, instants).merge(known.to_pandas(), on=["user_id", "as_of"])
    return frame.astype({label: bool})


def _segment_ids(model: segments.SegmentModel, snapshot: pd.DataFrame) -> pd.Series:
    return segments.assign(model, snapshot).set_index("user_id")["segment_id"]


def _fingerprint(content: str | Mapping[str, str], params: dict[str, Any]) -> str:
    """Hash what a model is learnt from and with: the same gives the same model."""
    versions = {name: version(name) for name in LEARNT_WITH}
    return hashlib.sha256(json.dumps([content, params, versions], sort_keys=True).encode()).hexdigest()


def _run_name(kind: str, as_of: datetime, configuration: Configuration) -> str:
    return f"{kind} as of {write_instant(as_of, configuration.time_zone)}"


def _judgement(candidate: Candidate) -> dict[str, float]:
    """Return how clusters were judged, as metrics."""
    found = {
        "silhouette": candidate.silhouette,
        "separation": candidate.separation,
        "stability": candidate.stability,
        "jaccard_min": min(candidate.jaccard),
        "smallest_share": candidate.smallest_share,
        "score": candidate.score,
        "segments": candidate.k,
        "steadiness": candidate.steadiness,
        "telling": candidate.telling,
        "telling_low": candidate.telling_low,
        "kept_share": candidate.kept_share,
    }
    return {name: value for name, value in found.items() if value is not None}


def _telling(tells: Mapping[str, Any]) -> dict[str, float]:
    """Return what segments and their rivals told, as metrics."""
    return {
        f"tells_{outcome}_{metric}_{way}": figure["value"]
        for outcome, told in tells["outcomes"].items()
        for way, metrics in told["metrics"].items()
        for metric, figure in metrics.items()
    }


def _explain_segments(metadata: dict[str, Any]) -> str:
    if metadata["doubt"]:
        return f"Not promoted: {metadata['doubt']}."
    chosen = Candidate.from_dict(metadata["chosen"])
    stable = f"stability {chosen.stability:.2f} (1: the same in every refit)"
    if chosen.steadiness is not None:
        stable += f", steadiness {chosen.steadiness:.2f} (1: the same from an earlier snapshot)"
    return (
        f"Promoted: {chosen.k} segments by {chosen.space}, {stable}, "
        f"{chosen.separation:.1f} times as separate as parts of one heap."
    )


def _explain_short_history(configuration: Configuration, lake: Lake, as_of: datetime) -> str:
    reach_days = configuration.labels.reach.total_seconds() / 86_400
    span = event_span(lake)
    days = (as_of - span[0]).total_seconds() / 86_400 if span else 0
    until = write_instant(as_of, configuration.time_zone)
    return (
        f"Not trained: there are {days:,.0f} days of events before {until}, and more than "
        f"{3 * reach_days:,.0f} are needed: {reach_days:,.0f} each after a snapshot to test on, one to validate and "
        "one to learn from."
    )
