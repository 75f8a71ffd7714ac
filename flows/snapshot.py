"""Snapshot: every user's features now and at the past instants to learn from, and what they did after those."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

import ibis
from prefect import flow, task

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.labels import LABELS, SnapshotDates, label, snapshot_dates
from features.lake import Lake
from features.sessions import SESSIONS
from features.snapshots import snapshots_table, take_snapshot
from features.table import Table, materialize
from flows.configuration import Configuration, load
from flows.instant import event_span, name_run, resolve_as_of
from flows.world import TOUCHES_THE_WORLD

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Snapshots:
    """Name the instants of the snapshots taken, and count the users in the latest."""

    as_of: datetime
    users: int
    train: tuple[datetime, ...]
    test: datetime | None


@flow(flow_run_name=name_run)
def snapshot(config: str, as_of: datetime | None = None, training: bool = True) -> Snapshots:
    """Take the snapshot at `as_of` and, unless `training` is off, those to train and to test on, with their labels."""
    taken = take_snapshots(config, as_of, training)
    past = len(taken.train) + (taken.test is not None)
    logger.info(
        "snapshot: %s users at %s; %s past snapshots with labels",
        f"{taken.users:,}",
        f"{taken.as_of:%Y-%m-%d %H:%M}",
        past,
    )
    return taken


@task(**TOUCHES_THE_WORLD)
def take_snapshots(config: str, as_of: datetime | None, training: bool) -> Snapshots:
    """Read events and sessions, store snapshots and labels, each table by one commit."""
    configuration = load(config)
    table = table_of(configuration)
    with Lake(configuration.lake) as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        past = past_dates(configuration, lake, as_of) if training else None
        events, sessions, attributes = lake.read(EVENTS), lake.read(SESSIONS), lake.read(ATTRIBUTES)
        events, sessions = materialize(events), materialize(sessions)

        def take(instant: datetime) -> ibis.Table:
            return materialize(
                take_snapshot(
                    events,
                    sessions,
                    attributes,
                    instant,
                    gap=configuration.sessions.gap,
                    windows_days=configuration.features.windows_days,
                    attribute_names=configuration.attributes,
                    time_zone=configuration.time_zone,
                    day_level=configuration.events.time_unit == "day",
                )
            )

        instants = [] if past is None else [*past.train, past.test]
        taken = []
        for number, instant in enumerate([*instants, as_of], start=1):
            logger.debug("snapshot %s of %s", number, len(instants) + 1)
            taken.append(take(instant))
        *earlier, now = taken
        lake.write(table, ibis.union(now, *earlier) if earlier else now, only=[as_of, *instants])
        if earlier:
            labels = label(
                ibis.union(*earlier) if len(earlier) > 1 else earlier[0], events, as_of, configuration.labels
            )
            lake.write(LABELS, labels, only=instants)
        users = int(now.count().to_pyarrow().as_py())
    return Snapshots(as_of, users, past.train if past else (), past.test if past else None)


def table_of(configuration: Configuration) -> Table:
    """Return the contract of snapshots under a configuration."""
    return snapshots_table(configuration.features.windows_days, configuration.attributes)


def past_dates(configuration: Configuration, lake: Lake, as_of: datetime) -> SnapshotDates | None:
    """Return the past instants to learn from and to test on; None where the history is too short for a test."""
    span = event_span(lake)
    if span is None:
        return None
    training = configuration.training
    dates = snapshot_dates(
        as_of, span[0], configuration.labels.reach, timedelta(days=training.every_days), training.snapshots
    )
    return dates if dates.test > span[0] else None
