"""The instant a run is about: given, or what `features.as_of` decides from the events there are."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import ibis
from prefect.runtime import deployment, flow_run

from features.as_of import Decision, choose_as_of, days_of
from features.events import EVENTS
from features.lake import Lake
from features.table import TIME
from features.zones import write_instant
from flows.configuration import Configuration, ConfigurationError, load

logger = logging.getLogger("habitus")


def resolve_as_of(as_of: datetime | None, configuration: Configuration, lake: Lake) -> datetime:
    """Return `as_of` if given; else what `decide` finds, and say why.

    Raises ConfigurationError where there are no events, and for an instant before all of them.
    """
    if as_of is None:
        decision = decide(None, configuration, lake)
        tell(decision, configuration.time_zone)
        return decision.as_of
    _check_after_first(as_of, configuration, lake)
    return as_of.astimezone(UTC)


def decide(as_of: datetime | None, configuration: Configuration, lake: Lake) -> Decision:
    """Decide what a run is about: `as_of` if given, else what the events known at the scheduled start, or now, say.

    Raises as `resolve_as_of` does.
    """
    events, now, scheduled_at = lake.read(EVENTS), datetime.now(UTC), scheduled_start()
    until = (as_of or scheduled_at or now).astimezone(UTC)
    at = ibis.literal(until, TIME)
    decision = choose_as_of(
        days_of(events.filter(events.occurred_at < at, events.ingested_at <= at), configuration.time_zone),
        configuration.time_zone,
        now,
        scheduled_at=scheduled_at,
        given=as_of,
        day_level=configuration.events.is_by_day,
    )
    _check_after_first(decision.as_of, configuration, lake)
    return decision


def tell(decision: Decision, time_zone: str) -> None:
    """Log what a run is about, why, and what a person may want to decide otherwise."""
    logger.info("instant: %s, %s", write_instant(decision.as_of, time_zone), decision.why)
    for note in decision.notes:
        logger.warning("  %s", note)


def _check_after_first(as_of: datetime, configuration: Configuration, lake: Lake) -> None:
    span = event_span(lake)
    if span is None:
        raise ConfigurationError(f"{configuration.lake} holds no events: run `habitus ingest {configuration.file}`")
    if as_of <= span[0]:
        asked, first = (write_instant(instant, configuration.time_zone) for instant in (as_of, span[0]))
        raise ConfigurationError(f"as_of {asked} is not after the first event ({first}); name a later one with --as-of")


def scheduled_start() -> datetime | None:
    """Return when a deployment meant this run to start; None outside of one."""
    if deployment.id is None:
        return None
    # Prefect's own kind of datetime does not calculate with Python's.
    return datetime.fromisoformat(flow_run.scheduled_start_time.isoformat()).astimezone(UTC)


def event_span(lake: Lake) -> tuple[datetime, datetime] | None:
    """Return the first and the last time of an event, or None without events."""
    events = lake.read(EVENTS)
    span = events.agg(first=events.occurred_at.min(), last=events.occurred_at.max()).to_pyarrow().to_pylist()[0]
    return None if span["first"] is None else (span["first"], span["last"])


def name_run() -> str:
    """Name a flow's run after its stage, its configuration and its instant, for `flow_run_name`."""
    given = flow_run.parameters
    name = f"{flow_run.flow_name} {Path(given['config']).resolve().parent.name}"
    as_of = given.get("as_of")
    if as_of is None:
        return name
    said = as_of if isinstance(as_of, str) else write_instant(as_of, _zone_of(given["config"]))
    return f"{name} as of {said}"


def _zone_of(config: str) -> str:
    try:
        return load(config).time_zone
    except ConfigurationError:  # which the run itself will say
        return "UTC"
