"""Publish: assignments leave for the configured destinations."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from prefect import flow, task

from flows.configuration import ConfigurationError, load
from flows.instant import name_run, resolve_as_of
from flows.world import TOUCHES_THE_WORLD
from publish.assignments import ASSIGNMENTS, from_arrow
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
        assignments = lake.read(ASSIGNMENTS)
        rows = from_arrow(assignments.filter(assignments.as_of == as_of).to_pyarrow())
    if rows.empty:
        asked = f"{as_of:%Y-%m-%dT%H:%M:%SZ}"
        raise ConfigurationError(f"no assignments at {asked}: run `habitus score {configuration.file}` first")
    version = files.publish(rows, configuration.name, configuration.published)
    return Published(version, configuration.published / files.LATEST, int((~rows["holdout"]).sum()))
