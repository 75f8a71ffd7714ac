"""Report: what people look at of the present version, as a page, as JSON and as tables."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import task
from prefect.artifacts import create_link_artifact

from features.addresses import file_address
from features.attributes import ATTRIBUTES, contacts
from features.events import EVENTS, REJECTED
from features.labels import Label
from features.lake import Lake
from features.sessions import SESSIONS, sessions_at
from features.table import ContractError, materialize
from features.zones import write_instant
from flows.configuration import LOCAL, Configuration, ConfigurationError, load
from flows.credentials import connect_reports
from flows.identity import named, tells_personal
from flows.snapshot import table_of
from flows.stage import artifact_key, stage
from flows.train import model_name
from flows.turns import publishing
from flows.world import TOUCHES_THE_WORLD, discreet
from models.reasons import NoTreesError, importance
from models.registry import Registry, UnknownVersionError
from models.segments import SegmentModel
from publish import versions
from publish.release import release_for
from publish.report.content import REPORT_VERSION, Report
from publish.report.numbers import Source, make_report
from publish.report.propensities import Trained
from publish.report.reports import CONTENT, PAGE, Reports, to_json, without_users
from publish.versions import Version

logger = logging.getLogger("habitus")

SAMPLE_MAX = 5_000
"""Users on whom is measured which features move scores."""


@dataclass(frozen=True)
class Reported:
    """Say of which version a report is, where, and with how many segments and listed users; what it leaves out.

    `run` is the MLflow run that has its page and JSON, without users.
    """

    version: int
    as_of: datetime
    time_zone: str
    where: str
    segments: int
    users_listed: int
    withheld: list[str]
    run: str


@stage(takes_turns=False)
def report(config: str) -> Reported:
    """Write the report of the present version."""
    logger.debug("reporting")
    return link(config, write_report(config, anew=True))


def link(config: str, reported: Reported) -> Reported:
    """Say where a report is, and link it from the run."""
    as_of = write_instant(reported.as_of, reported.time_zone)
    logger.info("report: version %s: %s/%s", reported.version, reported.where, PAGE)
    create_link_artifact(
        key=artifact_key(load(config), "report"),
        link=f"{reported.where}/{PAGE}" if "://" in reported.where else file_address(Path(reported.where, PAGE)),
        description=f"User Segment Report of version {reported.version}, as of {as_of}",
    )
    return reported


@task(**TOUCHES_THE_WORLD)
@discreet
def write_report(config: str, anew: bool = False) -> Reported:
    """Write the report of the present version, where it is not there yet, or (`anew`) in any case.

    Raises ConfigurationError where there is no version, or not what it was made of.
    """
    configuration = load(config)
    reports = connect_reports(configuration)
    with publishing(configuration, "report"), configuration.open_lake("duckdb") as lake:
        version = versions.present(lake)
        if version is None:
            raise ConfigurationError(f"nothing was published yet: run `habitus publish {configuration.file}` first")
        made_of = _fingerprint(configuration, version)
        name = None if anew else reports.find(made_of)
        if name is None:
            made, users = make_report(_collect(lake, configuration, version))
            name = reports.add(made, users, made_of)
        else:
            made = _read(reports, name)
    run = _log(configuration, reports, made, name)
    return Reported(
        made.version,
        made.as_of,
        made.time_zone,
        f"{reports.folder.where}/{name}",
        len(made.segments),
        made.users_listed,
        made.withheld,
        run,
    )


def _fingerprint(configuration: Configuration, version: Version) -> str:
    """Hash what decides on a report: the version, what may be shown of it, and the program."""
    said = [
        version.version,
        version.content,
        version.manifest,
        configuration.report.model_dump(),
        configuration.time_zone,
    ]
    program = [REPORT_VERSION, version_of("habitus")]
    return hashlib.sha256(json.dumps([*said, *program], sort_keys=True).encode()).hexdigest()


def _read(reports: Reports, name: str) -> Report:
    with reports.folder.staging() as staging:
        return Report.model_validate_json(reports.folder.fetch(name, CONTENT, staging).read_bytes())


def _collect(lake: Lake, configuration: Configuration, version: Version) -> Source:
    """Read all that a report is made of."""
    table, as_of = table_of(configuration), version.as_of
    asked = f"{as_of:%Y-%m-%dT%H:%M:%SZ}"
    try:
        if as_of not in lake.partitions(table):
            at = write_instant(as_of, configuration.time_zone)
            raise ContractError(f"no snapshot at {at}, of which version {version.version} is")
        snapshot = lake.read(table, only=[as_of])
    except ContractError as error:
        raise ConfigurationError(
            f"{error}: run `habitus snapshot {configuration.file} --as-of {asked}` first"
        ) from error
    try:
        released = versions.read_released(lake, version)
        known = contacts(lake.read(ATTRIBUTES))
        listed = release_for(lake, version, LOCAL, configuration.all_destinations[LOCAL], known).rows
    except (ContractError, KeyError) as error:
        raise ConfigurationError(
            f"version {version.version} was published by another version of Habitus ({error}): "
            f"run `habitus score {configuration.file}` and `habitus publish {configuration.file}` first"
        ) from error
    changes = versions.read_changes(lake, version.version)
    rejected = lake.read(REJECTED).reason.value_counts(name="rows").order_by("reason").to_pyarrow().to_pylist()
    names, number = version.manifest["segments"].values(), version.manifest["models"].get("segments")
    if tells_personal(configuration, model_name(configuration, "segments"), number, names):
        raise ConfigurationError(
            f"version {version.version} names segments by what is personal: "
            f"run `habitus score {configuration.file}` and `habitus publish {configuration.file}` first"
        )
    registry = Registry(configuration.mlruns) if configuration.mlruns.is_dir() else None
    labels = {name: label for name, label in configuration.labels.named.items() if name in version.manifest["labels"]}
    return Source(
        version=version,
        earlier=[one for one in versions.read_versions(lake) if one.version < version.version],
        released=released,
        listed=listed,
        sessions=sessions_at(
            lake.read(EVENTS), lake.read(SESSIONS), as_of, configuration.sessions.gap, configuration.events.is_by_day
        ),
        snapshot=materialize(snapshot),
        changes=changes.filter(changes.destination == LOCAL, changes.version == version.version),
        rejected={row["reason"]: row["rows"] for row in rejected},
        discovered=_find_segments(registry, configuration, version),
        trained=_find_trained(registry, configuration, version, labels, snapshot.to_pandas()),
        labels=labels,
        attributes=configuration.attributes,
        settings=configuration.report,
        time_zone=configuration.time_zone,
        day_level=configuration.events.is_by_day,
    )


def _find_segments(registry: Registry | None, configuration: Configuration, version: Version) -> SegmentModel | None:
    number = version.manifest["models"].get("segments")
    if registry is None or number is None:
        return None
    name = model_name(configuration, "segments")
    found = registry.load(name, number)
    return None if found is None else named(registry, name, found, configuration.personal)


def _find_trained(
    registry: Registry | None,
    configuration: Configuration,
    version: Version,
    labels: Mapping[str, Label],
    snapshot: pd.DataFrame,
) -> dict[str, Trained]:
    """Return what the registry says of the models of a version; of one that is gone, nothing."""
    found: dict[str, Trained] = {}
    for label in labels.values():
        name, number = model_name(configuration, label.name), version.manifest["models"].get(label.name)
        loaded = None if registry is None or number is None else registry.load(name, number)
        if registry is None or loaded is None:
            continue
        since = [one.as_of for one in registry.promotions(name) if one.number == number and one.as_of <= version.as_of]
        try:
            trained_at = registry.trained_at(name, loaded.number)
        except (UnknownVersionError, KeyError):
            continue
        decision: dict[str, Any] = registry.read_dict(name, loaded.number, "decision.json") or loaded.metadata
        eligible = snapshot[label.is_eligible(snapshot)].sort_values("user_id")
        found[label.name] = Trained(
            loaded.number, trained_at, max(since, default=None), decision, _importance(loaded.model, eligible)
        )
    return found


def _importance(model: Any, users: pd.DataFrame) -> dict[str, float]:
    if not set(model.feature_names_in_) <= set(users.columns) or users.empty:
        return {}
    rows = np.linspace(0, len(users) - 1, min(SAMPLE_MAX, len(users))).astype(int)
    try:
        return importance(model.estimator.estimator, users.iloc[rows].reset_index(drop=True))
    except (NoTreesError, AttributeError):  # of a model of one's own
        return {}


def _log(configuration: Configuration, reports: Reports, made: Report, name: str) -> str:
    """Record a report in MLflow, without users: nobody would be erased from there."""
    registry, experiment = Registry(configuration.mlruns, configuration.lake), f"{configuration.name}/report"
    registry.end_interrupted([experiment])
    known = registry.find_run(experiment, name)
    if known is not None:
        return known
    public = without_users(made.without_personal())
    files = {CONTENT: to_json(public), PAGE: reports.page(public, None, reports.settings)}
    title = f"version {made.version} as of {write_instant(made.as_of, made.time_zone)}"
    return registry.record_texts(experiment, title, name, files)
