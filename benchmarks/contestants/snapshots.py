"""Snapshots of every feature at many instants, and at one: from EVENTS and SESSIONS to the commit of SNAPSHOTS."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import ibis

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.increments import update_sessions
from features.lake import Lake
from features.sessions import SESSIONS
from features.snapshots import WINDOWS_DAYS, snapshots_table, take_snapshots
from features.table import materialize

GAP = timedelta(minutes=30)
WEEKS = 12


def prepare(lake: Path, folder: Path) -> int:
    """Make a lake with the EVENTS of another and their SESSIONS; return how many sessions there are."""
    shutil.copytree(lake / EVENTS.name, folder / EVENTS.name, copy_function=os.link)
    with Lake(folder) as prepared:
        return update_sessions(prepared, GAP).sessions


def take_one(folder: Path) -> None:
    """Take the latest snapshot."""
    _take(folder, 1)


def take_weekly(folder: Path) -> None:
    """Take the latest snapshot and those of the weeks before."""
    _take(folder, WEEKS)


def _take(folder: Path, count: int) -> None:
    shutil.rmtree(folder / "snapshots", ignore_errors=True)
    with Lake(folder) as lake:
        latest = max(lake.partitions(EVENTS))
        instants = [latest - week * timedelta(days=7) for week in range(count)]
        events, sessions, attributes = (lake.read(table) for table in (EVENTS, SESSIONS, ATTRIBUTES))
        taken = [materialize(rows) for _, rows in take_snapshots(events, sessions, attributes, instants, gap=GAP)]
        lake.write(snapshots_table(WINDOWS_DAYS, ()), ibis.union(*taken))
