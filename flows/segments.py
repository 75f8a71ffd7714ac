"""`habitus segments`: those that serve, and the names that people give to them."""

import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from features.zones import day_of, write_instant
from flows.configuration import Configuration, ConfigurationError
from flows.identity import named
from flows.train import model_name
from models import telling_words
from models.candidates import Candidate
from models.lineage import Lineage
from models.registry import GivenName, Registry

NAME_LENGTH_MAX = 80
_NONE = "no segments serve: run `habitus train {}` first"


@dataclass(frozen=True)
class Known:
    """A segment that serves: its users and their share at the training, since when it is there, and its last event."""

    segment_id: str
    name: str
    users: int
    share: float
    stability: float
    since: datetime | None
    event: str | None


@dataclass(frozen=True)
class Serving:
    """The version of the segments that serves, the instant it was trained at, and its segments, largest first.

    `chosen` tells how they were found and judged, `tells` what they say about the future (`models.telling.measure`);
    None where that is not known.
    """

    model: str
    version: int
    as_of: datetime
    time_zone: str
    segments: list[Known]
    chosen: Candidate | None = None
    tells: dict[str, Any] | None = None


def find_segments(configuration: Configuration) -> Serving:
    """Return the segments that serve. Raises ConfigurationError where there are none."""
    registry, name = _open(configuration), model_name(configuration, "segments")
    number = registry.serving(name)
    version = None if number is None else registry.load(name, number)
    if version is None:
        raise ConfigurationError(_NONE.format(configuration.file))
    model = named(registry, name, version, configuration.personal)
    lineage = model.lineage or Lineage((), (), {})
    events = {event.segment_id: str(event) for event in lineage.events}
    since = {segment_id: datetime.fromisoformat(instant) for segment_id, instant in lineage.since.items()}
    found = [
        Known(one.segment_id, one.name, one.size, one.share, one.stability, since.get(one.segment_id), event)
        for one in model.segments
        for event in [events.get(one.segment_id)]
    ]
    as_of = registry.trained_at(name, version.number)
    found.sort(key=lambda one: (-one.users, one.segment_id))
    chosen = model.chosen
    return Serving(name, version.number, as_of, configuration.time_zone, found, chosen, model.tells)


def rename(configuration: Configuration, segment_id: str, name: str) -> Known:
    """Give a segment that serves a name, which stays with its id from now on; return the segment as it was.

    Raises ConfigurationError for an id that there is not, and for a name that is empty, long, another one's, or holds
    characters that cannot be seen.
    """
    serving = find_segments(configuration)
    before = {one.segment_id: one for one in serving.segments}
    if segment_id not in before:
        known = ", ".join(
            f"{one.segment_id} {one.name}" for one in sorted(serving.segments, key=lambda one: one.segment_id)
        )
        raise ConfigurationError(f"there is no segment {segment_id!r}; there are {known}")
    name = _checked(name)
    for one in serving.segments:
        if one.segment_id != segment_id and one.name.casefold() == name.casefold():
            raise ConfigurationError(f"{one.segment_id} has the name {one.name!r} already; choose another")
    given = GivenName(name, datetime.now(UTC))
    _open(configuration).give_name(serving.model, segment_id, given)
    return before[segment_id]


def _open(configuration: Configuration) -> Registry:
    if not configuration.mlruns.is_dir():
        raise ConfigurationError(_NONE.format(configuration.file))
    return Registry(configuration.mlruns)


def _checked(name: str) -> str:
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise ConfigurationError("the name is empty")
    if len(name) > NAME_LENGTH_MAX:
        raise ConfigurationError(f"the name has {len(name):,} characters; at most {NAME_LENGTH_MAX} fit")
    for position, character in enumerate(name, start=1):
        # Other, such as control characters and text that runs backwards, and separators of lines and paragraphs
        if unicodedata.category(character)[0] == "C" or unicodedata.category(character) in ("Zl", "Zp"):
            raise ConfigurationError(
                f"the name's character {position} (U+{ord(character):04X}) cannot be seen; leave it out"
            )
    return name


def show(serving: Serving, console: Console) -> None:
    """Print the segments that serve."""
    as_of = write_instant(serving.as_of, serving.time_zone)
    console.print(f"{serving.model} version {serving.version}, as of {as_of}")
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("")
    table.add_column("segment", style="bold", overflow="fold")
    for heading in ("users", "share", "stability"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("since", no_wrap=True)
    table.add_column("last event", overflow="fold")
    for one in serving.segments:
        table.add_row(
            one.segment_id,
            Text(one.name),  # a name that a person gave may have brackets, which would be markup
            f"{one.users:,}",
            f"{one.share:.0%}".replace("%", " %"),
            f"{one.stability:.2f}",
            str(day_of(one.since, serving.time_zone)) if one.since else "unknown",
            one.event or "unknown",
        )
    console.print(table)
    if serving.chosen is not None:
        console.print(f"  {serving.chosen.judgement()}")
    if serving.tells is None:
        console.print(f"  {telling_words.headline(None, '')}")
        return
    console.print(f"\nWhat these segments say about the next {telling_words.days(serving.tells)}")
    told = Table(box=None, padding=(0, 1), show_edge=False)
    for number, heading in enumerate(telling_words.HEADINGS):
        told.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    for row in telling_words.table(serving.tells):
        told.add_row(*row.written())
    console.print(told)
    day = day_of(datetime.fromisoformat(serving.tells["as_of"]), serving.time_zone)
    console.print(f"  found in the same way on {day}, with the means of the snapshot before; 95 % intervals")
