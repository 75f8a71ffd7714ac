"""The instant a run is about: given, scheduled, or the end of the last complete day in the data."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from prefect.runtime import deployment, flow_run

from features.events import EVENTS
from features.lake import Lake
from flows.configuration import Configuration, ConfigurationError


def resolve_as_of(as_of: datetime | None, configuration: Configuration, lake: Lake) -> datetime:
    """Return `as_of` if given; in a deployment the scheduled start; else the end of the last complete day of events.

    Raises ConfigurationError where there are no events, and for an instant before all of them.
    """
    span = event_span(lake)
    if span is None:
        raise ConfigurationError(f"{configuration.lake} holds no events: run `habitus ingest {configuration.file}`")
    first_event_at, last_event_at = span
    if as_of is None:
        as_of = scheduled_start()
    if as_of is None:
        day_level = configuration.events.is_by_day
        as_of = last_complete_day_end(last_event_at, configuration.time_zone, day_level)
        if as_of <= first_event_at:  # a single day, complete or not, is all there is
            as_of += timedelta(days=1)
    if as_of <= first_event_at:
        raise ConfigurationError(
            f"as_of {as_of:%Y-%m-%d %H:%M} is not after the first event ({first_event_at:%Y-%m-%d %H:%M}, UTC); "
            "name a later one with --as-of"
        )
    return as_of.astimezone(UTC)


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


def last_complete_day_end(last_event_at: datetime, time_zone: str, day_level: bool) -> datetime:
    """Return the midnight, in a time zone, up to which the data has whole days.

    That is the midnight before the last event, whose day may go on; the one after it where the source has whole days.

    >>> last_complete_day_end(datetime(2024, 6, 29, 20, 50, tzinfo=UTC), "Europe/London", False).isoformat()
    '2024-06-29T00:00:00+01:00'
    """
    local = last_event_at.astimezone(ZoneInfo(time_zone))
    midnight = datetime(local.year, local.month, local.day, tzinfo=local.tzinfo)
    return midnight + timedelta(days=1) if day_level else midnight


def name_run() -> str:
    """Name a flow's run after its stage, its configuration and its instant, for `flow_run_name`."""
    given = flow_run.parameters
    name = f"{flow_run.flow_name} {Path(given['config']).resolve().parent.name}"
    as_of = given.get("as_of")
    if as_of is None:
        return name
    return f"{name} as of {as_of}" if isinstance(as_of, str) else f"{name} as of {as_of:%Y-%m-%d %H:%M}"
