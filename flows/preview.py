"""Preview: what other settings of sessions and features would change. Nothing is stored."""

import dataclasses
import logging
import math
import tomllib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import ibis.expr.types as ir
from rich.console import Console
from rich.table import Table

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.increments import is_current, update_sessions
from features.lake import Lake, staging_folder
from features.preview import Difference, FeatureDifference, compare_features, compare_sessions
from features.sessions import SESSIONS
from features.snapshots import feature_names, format_value, take_snapshot, title
from features.table import materialize
from features.zones import write_instant
from flows.configuration import Configuration, ConfigurationError, validate
from flows.instant import resolve_as_of
from flows.sessions import show_progress

logger = logging.getLogger("habitus")

SESSIONS_NOW = dataclasses.replace(SESSIONS, name="sessions_now")
SECTIONS = ("sessions", "features")
UNITS = {"s": 1 / 60, "m": 1, "min": 1, "h": 60}
FEATURES_SHOWN = 12


@dataclass(frozen=True)
class Preview:
    """Hold the settings that would change, and what they would change."""

    as_of: datetime
    time_zone: str
    settings: dict[str, list[Any]]
    sessions: list[Difference]
    features: list[FeatureDifference]


def parse_gap(text: str) -> float:
    """Read a duration as people write it, in minutes.

    >>> parse_gap("45m"), parse_gap("90s"), parse_gap("1.5h")
    (45.0, 1.5, 90.0)
    """
    number = text.strip().rstrip("hmins").strip()
    unit = text.strip()[len(number) :].strip() or "m"
    try:
        return float(number) * UNITS[unit]
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"--gap {text!r} is no duration: write 45m, 90s or 1.5h") from error


def parse_setting(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE, the value as in TOML.

    >>> parse_setting("features.windows_days=[7, 30]")
    ('features.windows_days', [7, 30])
    """
    key, _, value = text.partition("=")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"--set {text!r}: write KEY=VALUE, such as features.windows_days=[7,30]") from error


def preview(configuration: Configuration, settings: dict[str, Any], as_of: datetime | None) -> Preview:
    """Compare sessions and features under other settings with those under the configuration, on all events.

    Raises ConfigurationError for a setting that is not one of sessions or features, or a value that is wrong.
    """
    other = _with(configuration, settings)
    with configuration.open_lake() as lake:
        instant = resolve_as_of(as_of, configuration, lake)
        if not is_current(lake, configuration.sessions.gap, configuration.events.is_by_day):
            raise ConfigurationError(f"sessions are not up to date: run `habitus sessions {configuration.file}` first")
    with staging_folder(configuration.lake) as folder:
        for table, link in ((EVENTS, EVENTS), (ATTRIBUTES, ATTRIBUTES), (SESSIONS, SESSIONS_NOW)):
            (folder / link.name).symlink_to(configuration.lake / table.name)
        with Lake(folder, configuration.engine.memory_limit_bytes) as lake:
            if other.sessions == configuration.sessions:
                before = after = lake.read(SESSIONS_NOW)
            else:
                update_sessions(lake, other.sessions.gap, show_progress, other.events.is_by_day)
                before, after = lake.read(SESSIONS_NOW), lake.read(SESSIONS)
            logger.debug("comparing sessions")
            sessions = compare_sessions(before, after)
            logger.debug("comparing features")
            features = compare_features(
                _snapshot(lake, before, configuration, instant), _snapshot(lake, after, other, instant)
            )
    values = {key: [_get(configuration, key), _get(other, key)] for key in settings}
    return Preview(instant, configuration.time_zone, values, sessions, features)


def show(found: Preview, console: Console) -> None:
    """Print a preview as tables: what changes first."""
    for key, (now, then) in found.settings.items():
        console.print(f"[bold]{key}[/bold]: {now} now, {then} then")
    console.print()
    table = _table("sessions", "now", "then", "difference")
    for row in found.sessions:
        table.add_row(row.name.replace("_", " "), *_figures(row))
    console.print(table, "")
    changed = [row for row in found.features if row.changed_share != 0]
    if not changed:
        console.print("\nNo feature of any user changes. Nothing was stored.")
        return
    as_of = write_instant(found.as_of, found.time_zone)
    table = _table(f"features at {as_of}, mean", "now", "then", "difference", "users changed")
    for row in changed[:FEATURES_SHOWN]:
        share = "" if row.changed_share is None else format_value("_share", row.changed_share)
        table.add_row(title(row.name), *_figures(row), share)
    console.print(table)
    unshown, unchanged = len(changed[FEATURES_SHOWN:]), len(found.features) - len(changed)
    more = f"{unshown} more change (--json lists them), " if unshown else ""
    console.print(f"\n{more}{unchanged} features do not change. Nothing was stored.")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _figures(row: Difference) -> list[str]:
    """Write what is now, what would be and by how much they differ."""
    now, then = (format_value(row.name, math.nan if value is None else value) for value in (row.now, row.then))
    if row.now is None or row.then is None or row.now == row.then:
        return [now, then, ""]
    return [now, then, f"{(row.then - row.now) / abs(row.now):+.1%}".replace("%", " %") if row.now else ""]


def _with(configuration: Configuration, settings: dict[str, Any]) -> Configuration:
    """Return a configuration with other settings."""
    given = configuration.model_dump()
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if section not in SECTIONS or not name:
            raise ConfigurationError(f"--set {key}: only settings of {' and '.join(SECTIONS)} can be previewed")
        given[section] = {**given[section], name: value}
    return validate(given)


def _get(configuration: Configuration, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(configuration, section), name)


def _snapshot(lake: Lake, sessions: ir.Table, configuration: Configuration, instant: datetime) -> ir.Table:
    snapshot = take_snapshot(
        lake.read(EVENTS),
        sessions,
        lake.read(ATTRIBUTES),
        instant,
        **configuration.snapshot_definitions,
    )
    return materialize(snapshot.select("user_id", *feature_names(configuration.features.windows_days)))
