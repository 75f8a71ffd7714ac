"""Zones: days and instants as the business says them. Its days have 23 or 25 hours where its clocks change."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo


def day_of(instant: datetime, time_zone: str) -> date:
    """Return the local day of an instant."""
    return instant.astimezone(ZoneInfo(time_zone)).date()


def start_of_day(day: date, time_zone: str) -> datetime:
    """Return the instant, in UTC, at which a local day begins.

    >>> start_of_day(date(2024, 3, 31), "Europe/Berlin").isoformat()
    '2024-03-30T23:00:00+00:00'
    >>> start_of_day(date(2024, 4, 1), "Europe/Berlin").isoformat()
    '2024-03-31T22:00:00+00:00'
    """
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(time_zone)).astimezone(UTC)


def write_instant(instant: datetime, time_zone: str) -> str:
    """Write an instant for people: to the minute, as the clocks of a zone show it, with the zone.

    >>> write_instant(datetime(2024, 6, 29, 22, tzinfo=UTC), "Europe/Berlin")
    '2024-06-30 00:00 Europe/Berlin'
    """
    return f"{instant.astimezone(ZoneInfo(time_zone)):%Y-%m-%d %H:%M} {time_zone}"
