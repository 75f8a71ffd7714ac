"""Snapshot: every user's features now and at the past instants to learn from, and what they did after those."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import ibis
import ibis.expr.types as ir
from prefect import task

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.increments import is_current
from features.label_counts import count_labels
from features.labels import Label, SnapshotDates, label, labels_table, snapshot_dates
from features.lake import Lake
from features.sessions import SESSIONS
from features.snapshots import snapshots_table, take_snapshots
from features.table import ContractError, Table, materialize
from features.zones import write_instant
from flows.configuration import Configuration, ConfigurationError, load
from flows.instant import event_span, resolve_as_of
from flows.stage import read_as_of, stage
from flows.world import TOUCHES_THE_WORLD, discreet
from models.label_card import LabelCard, make_card

logger = logging.getLogger("habitus")

COMPLETE_DATES = 3
"""Past instants for segments: two to see what they would have told, and one more to learn from."""
FIRST_DAYS = timedelta(days=7)
"""So much history is needed before the first of them."""


@dataclass(frozen=True)
class Snapshots:
    """Name the instants of the snapshots taken, and count the users in the latest."""

    as_of: datetime
    users: int
    train: tuple[datetime, ...]
    validation: datetime | None
    test: datetime | None


@stage()
def snapshot(config: str, as_of: datetime | str | None = None, training: bool = True) -> Snapshots:
    """Take the snapshot at `as_of` and, unless `training` is off, those to train and to test on, with their labels."""
    taken = store_snapshots(config, read_as_of(config, as_of), training)
    past = len(taken.train) + 2 if taken.train else 0
    logger.info(
        "snapshot: %s users at %s; %s past snapshots with labels",
        f"{taken.users:,}",
        write_instant(taken.as_of, load(config).time_zone),
        past,
    )
    return taken


@task(**TOUCHES_THE_WORLD)
@discreet
def store_snapshots(config: str, as_of: datetime | None, training: bool) -> Snapshots:
    """Read events and sessions, store snapshots and labels, each table by one commit.

    Raises ConfigurationError where the sessions are not those of the events.
    """
    configuration = load(config)
    table = table_of(configuration)
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        if not is_current(lake, configuration.sessions.gap, configuration.events.is_by_day):
            raise ConfigurationError(f"sessions are not up to date: run `habitus sessions {configuration.file}` first")
        past = past_dates(configuration, lake, as_of) if training else None
        labelled = [] if past is None else list(past.purposes)
        earlier = sorted({*labelled, *(complete_dates(configuration, lake, as_of)[0] if training else ())})
        instants = [*earlier, as_of]
        logger.debug("recalling what was known at %s instants", len(instants))
        taken: list[ir.Table] = []
        count = 0
        for some, rows in take_snapshots(
            lake.read(EVENTS),
            lake.read(SESSIONS),
            lake.read(ATTRIBUTES),
            instants,
            **configuration.snapshot_definitions,
        ):
            count += len(some)
            logger.debug("snapshot %s of %s", count, len(instants))
            taken.append(materialize(rows))
        lake.write(table, ibis.union(*taken), only=instants)
        if labelled:
            labels = label(lake.read(table, only=labelled), lake.read(EVENTS), as_of, configuration.labels)
            lake.write(labels_table(configuration.labels.named), labels, only=labelled)
        users = lake.partitions(table).get(as_of, 0)
    if past is None:
        return Snapshots(as_of, users, (), None, None)
    return Snapshots(as_of, users, *past)


def table_of(configuration: Configuration) -> Table:
    """Return the contract of snapshots under a configuration."""
    return snapshots_table(configuration.features.windows_days, configuration.attributes)


def stored_snapshots(lake: Lake, configuration: Configuration, only: Collection[datetime]) -> ir.Table:
    """Read snapshots at instants. Raises ConfigurationError where they lack a column that is configured."""
    return _read(lake, configuration, table_of(configuration), only)


def stored_labels(lake: Lake, configuration: Configuration, only: Collection[datetime]) -> ir.Table:
    """Read labels at instants, as `stored_snapshots` does."""
    return _read(lake, configuration, labels_table(configuration.labels.named), only)


def _read(lake: Lake, configuration: Configuration, table: Table, only: Collection[datetime]) -> ir.Table:
    try:
        return lake.read(table, only=only)
    except ContractError as error:
        raise ConfigurationError(
            f"{error}: run `habitus snapshot {configuration.file}`, which adds what the configuration asks for"
        ) from error


def past_dates(configuration: Configuration, lake: Lake, as_of: datetime) -> SnapshotDates | None:
    """Return the past instants to learn from, to validate and to test on; None where the history is too short."""
    span = event_span(lake)
    if span is None:
        return None
    training = configuration.training
    dates = snapshot_dates(
        as_of, span[0], configuration.labels.reach, timedelta(days=training.every_days), training.snapshots
    )
    return dates if dates.train else None


def complete_dates(
    configuration: Configuration, lake: Lake, as_of: datetime
) -> tuple[list[datetime], dict[str, Label]]:
    """Return past instants, the oldest first, each with labels that are complete before the next begins; and these.

    They are all labels, or those of shorter windows where the history is too short for two instants with all of them.
    """
    span, labels = event_span(lake), configuration.labels.named
    for reach in sorted({one.reach for one in labels.values()}, reverse=True):
        instants = [as_of - number * reach for number in range(COMPLETE_DATES, 0, -1)]
        known = [one for one in instants if span is not None and one >= span[0] + FIRST_DAYS]
        if len(known) > 1:
            return known, {name: one for name, one in labels.items() if one.reach <= reach}
    return [], {}


def describe_label(
    lake: Lake, configuration: Configuration, name: str, known_at: datetime, parts: Mapping[datetime, str]
) -> LabelCard:
    """Make the card of a label as it is stored, of the snapshots of a training: `parts` says what each is for."""
    asked = configuration.labels.named[name]
    snapshots, labels = stored_snapshots(lake, configuration, parts), stored_labels(lake, configuration, parts)
    counts = count_labels(snapshots, labels, lake.read(EVENTS), known_at, asked).to_pandas()
    user_count = labels.filter(labels[asked.column].notnull()).user_id.nunique().to_pyarrow().as_py()
    jump_max = configuration.labels.base_rate_jump_max
    return make_card(asked, counts, user_count, known_at, parts, jump_max, configuration.time_zone)
