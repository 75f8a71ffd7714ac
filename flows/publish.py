"""Publish: assignments leave for the configured destinations."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
from prefect import flow, task

from features.table import ContractError
from flows.configuration import Configuration, ConfigurationError, load
from flows.instant import name_run, resolve_as_of
from flows.train import model_name
from flows.world import TOUCHES_THE_WORLD
from models.registry import Registry
from publish.assignments import assignments_table, from_arrow, labels_in
from publish.destinations import files

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Published:
    """Say where a version is, and where the latest always is."""

    version: Path
    latest: Path
    users: int


@flow(flow_run_name=name_run)
def publish(config: str, as_of: datetime | None = None) -> Published:
    """Publish the assignments at `as_of`."""
    logger.debug("publishing")
    published = write_files(config, as_of)
    logger.info("publish: %s users in %s", f"{published.users:,}", published.version.name)
    return published


@task(**TOUCHES_THE_WORLD)
def write_files(config: str, as_of: datetime | None) -> Published:
    """Read assignments, write their files, switch the latest version."""
    configuration = load(config)
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        try:
            assignments = lake.read(assignments_table(configuration.labels.named))
        except ContractError as error:
            raise ConfigurationError(f"{error}: run `habitus score {configuration.file}` first") from error
        rows = from_arrow(assignments.filter(assignments.as_of == as_of).to_pyarrow())
    if rows.empty:
        asked = f"{as_of:%Y-%m-%dT%H:%M:%SZ}"
        raise ConfigurationError(f"no assignments at {asked}: run `habitus score {configuration.file}` first")
    version = files.publish(rows, configuration.name, configuration.published, _withheld(configuration, rows))
    return Published(version, configuration.published / files.LATEST, int((~rows["holdout"]).sum()))


def _withheld(configuration: Configuration, rows: pd.DataFrame) -> dict[str, str]:
    """Return by label what its model says of why users have ranks and no probabilities."""
    reasons = {}
    for label in labels_in(rows.columns):
        if rows[f"{label}_percentile"].notna().any() and rows[f"{label}_probability"].isna().all():
            number = int(rows[f"{label}_version"].dropna().iloc[0])
            version = Registry(configuration.mlruns).load(model_name(configuration, label), number)
            reasons[label] = version.metadata.get("withheld") if version else None
    return {label: reason or "not said" for label, reason in reasons.items()}
