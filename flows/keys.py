"""`habitus keys`: who may ask the API for what."""

from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from features.zones import write_instant
from flows.configuration import Configuration, ConfigurationError
from publish.keys import SCOPES, Key, Keys, KeysError, Scope

FILE = "keys.db"
"""Beside the lake's tables."""
NAME_LENGTH_MAX = 80


def open_keys(configuration: Configuration) -> Keys:
    """Open the keys of a configuration. Raises ConfigurationError where they cannot be."""
    try:
        return Keys(configuration.lake / FILE)
    except KeysError as error:
        raise ConfigurationError(str(error)) from error


def find_keys(configuration: Configuration) -> list[Key]:
    """Return all keys, revoked ones, too."""
    return open_keys(configuration).all()


def create(configuration: Configuration, scope: str, name: str) -> tuple[Key, str]:
    """Make a key; return what is known of it, and the key. Raises ConfigurationError for a scope that there is not."""
    if scope not in SCOPES:
        raise ConfigurationError(f"--scope {scope!r}: there is no such scope; there are {', '.join(SCOPES)}")
    if not name.isprintable() or len(name) > NAME_LENGTH_MAX:
        raise ConfigurationError(f"--name: at most {NAME_LENGTH_MAX} characters that can be printed")
    chosen: Scope = scope
    return open_keys(configuration).create(chosen, name)


def revoke(configuration: Configuration, key_id: str) -> Key:
    """Let a key be worth nothing from now on. Raises ConfigurationError where there is none."""
    try:
        return open_keys(configuration).revoke(key_id)
    except KeysError as error:
        raise ConfigurationError(str(error)) from error


def write_time(text: str, time_zone: str) -> str:
    """Write what Key has of a time for people."""
    return write_instant(datetime.fromisoformat(text), time_zone)


def show(keys: list[Key], time_zone: str, console: Console) -> None:
    """Print what is known of keys; times as the clocks of a zone show them."""
    if not keys:
        console.print("there are no keys; make one with `habitus keys create --scope aggregate`")
        return
    table = Table(box=None, padding=(0, 1), show_edge=False)
    for heading in ("id", "name", "scope", "created", "last used", "revoked"):
        table.add_column(heading, style="bold" if heading == "id" else "")
    for key in keys:
        times = (key.created_at, key.last_used_at, key.revoked_at)
        table.add_row(
            key.id, Text(key.name), key.scope, *(write_time(at, time_zone) if at else "never" for at in times)
        )
    console.print(table)
