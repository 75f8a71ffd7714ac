"""Habitus: the tables of a lake, as `habitus sessions` makes them, from reading EVENTS to the commit of SESSIONS."""

from datetime import timedelta
from pathlib import Path

from features.increments import update_sessions
from features.lake import Lake


def sessionize(lake: Path, out: Path) -> None:
    """Write SESSIONS of a lake's EVENTS to another lake."""
    (out / "events").symlink_to((lake / "events").resolve())
    with Lake(out) as working:
        update_sessions(working, timedelta(minutes=30))


def sessionize_in_1_gb(lake: Path, out: Path) -> None:
    """Write them with little memory for the engine."""
    (out / "events").symlink_to((lake / "events").resolve())
    with Lake(out, memory_limit_bytes=10**9) as working:
        update_sessions(working, timedelta(minutes=30))
