"""Ingest: the configured files become EVENTS, REJECTED and ATTRIBUTES."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import ibis.expr.types as ir
from prefect import flow, task

from features.attributes import ATTRIBUTES, describe_users
from features.events import EVENTS, REASONS, REJECTED, accept
from features.lake import Lake
from features.sources import SourceError, first_line, read_events, read_users
from flows.configuration import Configuration, load
from flows.instant import name_run, scheduled_start
from flows.world import TOUCHES_THE_WORLD

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Ingested:
    """Count what became of the rows: accepted and rejected, by reason, add up to what was read."""

    read: int
    accepted: int
    rejected: dict[str, int]
    users: int
    changed: bool


@flow(flow_run_name=name_run)
def ingest(config: str) -> Ingested:
    """Accept or reject every row of the configured files."""
    now = scheduled_start() or datetime.now(UTC)
    logger.debug("reading %s", Path(config).name)
    ingested = accept_files(config, now)
    rejected = ingested.read - ingested.accepted
    counts = tuple(f"{count:,}" for count in (ingested.accepted, rejected, ingested.read, ingested.users))
    logger.info("ingest: %s accepted + %s rejected = %s rows read, %s users", *counts)
    for reason, count in ingested.rejected.items():
        logger.info("  rejected %s: %s", f"{count:,}", REASONS[reason])
    return ingested


@task(**TOUCHES_THE_WORLD)
def accept_files(config: str, now: datetime) -> Ingested:
    """Read, judge and store the rows; nothing is stored if any of it goes wrong."""
    configuration = load(config)
    source = configuration.events
    with Lake(configuration.lake) as lake:
        raw = read_events(lake.engine, source, configuration.folder)
        try:
            events, rejected = accept(raw, source, configuration.time_zone, now)
        except duckdb.ConversionException as error:
            raise SourceError(f"events.columns: {first_line(error)}") from error
        except duckdb.Error as error:
            raise SourceError(f"events.files: {source.files} cannot be read: {first_line(error)}") from error
        counts = rejected.reason.value_counts(name="count").to_pandas().set_index("reason")["count"]
        by_reason = {reason: int(counts[reason]) for reason in REASONS if reason in counts}
        accepted = int(events.count().to_pyarrow().as_py())
        if not accepted:
            raise SourceError(_explain_nothing(configuration, raw, by_reason))
        attributes = None
        if configuration.users:
            users = read_users(lake.engine, configuration.users, configuration.folder)
            _refuse_malformed(configuration, users)
            attributes = describe_users(users, configuration.attributes)
        changed = lake.write(EVENTS, events)
        changed |= lake.write(REJECTED, rejected)
        if attributes is not None:
            changed |= lake.write(ATTRIBUTES, attributes)
        user_count = int(events.user_id.nunique().to_pyarrow().as_py())
    return Ingested(accepted + sum(by_reason.values()), accepted, by_reason, user_count, changed)


def _refuse_malformed(configuration: Configuration, users: ir.Table) -> None:
    """Stop at rows of the users' file that cannot be read: unlike events, there is no table for them."""
    malformed = users.filter(users.malformed)
    count = int(malformed.count().to_pyarrow().as_py())
    if count:
        row = malformed.row.min().to_pyarrow().as_py()
        raise SourceError(f"users.files: {count} rows cannot be read, such as {row!r}; mend or remove them")


def _explain_nothing(configuration: Configuration, raw: ir.Table, by_reason: dict[str, int]) -> str:
    """Say why no row was accepted, by the most frequent reason."""
    if not by_reason:
        return f"events.files: {configuration.events.files} has no rows"
    reason = max(by_reason, key=lambda name: by_reason[name])
    if reason == "unparseable_time":
        found = raw.filter(raw.occurred_at.notnull()).select("occurred_at").limit(1).to_pyarrow().to_pylist()
        return (
            f"events.columns.occurred_at: no row has a time that can be read, but {str(found[0]['occurred_at'])!r}: "
            "name the column of the times, set events.time_unit (s, ms, us, ns) for numbers, "
            "or give an expression: { sql = \"try_strptime(column, '%d/%m/%Y %H:%M')\" }"
        )
    counts = ", ".join(f"{count:,} with {REASONS[name]}" for name, count in by_reason.items())
    return f"events.files: no row of {configuration.events.files} was accepted: {counts}"
