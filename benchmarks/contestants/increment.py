"""A day's increment of sessions, and the rebuild that gives the same, on copies of a lake that a day was added to."""

import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import ibis
import ibis.expr.types as ir

from features.events import EVENTS
from features.increments import update_sessions
from features.lake import Lake
from features.sessions import SESSIONS
from features.table import TIME

GAP = timedelta(minutes=30)
KINDS = ("increment", "rebuild")


def add_a_day(lake: Path, folder: Path) -> int:
    """Make a lake of what had arrived before the last whole day, make its sessions, then add what arrived on that day.

    Return how many events that day brought.
    """
    with Lake(lake) as whole:
        days = list(whole.partitions(EVENTS))
    begin = days[-2]
    shutil.copytree(lake / EVENTS.name, folder / EVENTS.name, copy_function=os.link)
    late_days = [day for day in days if day >= begin - timedelta(days=8)]
    with Lake(folder) as growing:
        version = growing.version(EVENTS)

        def arrived(instant: datetime) -> ir.Table:
            events = growing.read(EVENTS, version, only=late_days)
            return events.filter(events.ingested_at < ibis.literal(instant, TIME))

        growing.write(EVENTS, arrived(begin), only=late_days)
        count = growing.row_count(EVENTS)
        update_sessions(growing, GAP)
        growing.write(EVENTS, arrived(begin + timedelta(days=1)), only=late_days)
        return growing.row_count(EVENTS) - count


def copy(grown: Path, out: Path, *, with_sessions: bool) -> None:
    """Copy a lake; its data files are linked, not copied."""
    for table in (EVENTS, SESSIONS) if with_sessions else (EVENTS,):
        shutil.copytree(grown / table.name, out / table.name, copy_function=os.link)


def increment(out: Path) -> None:
    """Bring the sessions of a lake up to date."""
    with Lake(out) as lake:
        assert not update_sessions(lake, GAP).rebuilt


def rebuild(out: Path) -> None:
    """Make all sessions of a lake."""
    with Lake(out) as lake:
        assert update_sessions(lake, GAP).rebuilt


def content(out: Path) -> str:
    """Return a hash of the sessions of a lake."""
    with Lake(out) as lake:
        return lake.content(SESSIONS)
