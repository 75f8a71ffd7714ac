"""The outbox: what waits to be sent to receivers, what was sent, and what none of them took."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.configuration import Configuration, ConfigurationError
from publish.destinations import open_outbox
from publish.outbox import Count, Entry, State

SHOWN_MAX = 20
STATES: tuple[State, ...] = ("pending", "sent", "failed")


@dataclass(frozen=True)
class Sent:
    """Count messages by destination and state; list those that have failed, which wait for a person."""

    counts: dict[str, dict[State, Count]]
    failed: list[Entry]


def find_messages(configuration: Configuration) -> Sent:
    """Return what is in the outbox of a configuration."""
    outbox = open_outbox(configuration.lake)
    if outbox is None:
        return Sent({}, [])
    with outbox:
        counts = {name: outbox.count(name) for name in configuration.destinations}
        used = {name: states for name, states in counts.items() if any(one.message_count for one in states.values())}
        return Sent(used, outbox.entries("failed"))


def retry(configuration: Configuration, destination: str | None) -> int:
    """Have what failed sent again by the next publish; return how many messages that are.

    Raises ConfigurationError for a destination that there is not.
    """
    if destination is not None and destination not in configuration.destinations:
        known = ", ".join(configuration.destinations) or "none"
        raise ConfigurationError(f"there is no destination {destination!r}; there are {known}")
    outbox = open_outbox(configuration.lake)
    if outbox is None:
        return 0
    with outbox:
        return outbox.retry(destination)


def show(sent: Sent, console: Console) -> None:
    """Print what waits, what was sent and what failed, and why."""
    if not sent.counts:
        console.print("nothing was ever queued")
        return
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("messages (changes)", style="bold")
    for state in STATES:
        table.add_column(state, justify="right")
    for name, states in sent.counts.items():
        counts = (states[state] for state in STATES)
        table.add_row(name, *(f"{count.message_count:,} ({count.change_count:,})" for count in counts))
    console.print(table)
    for one in sent.failed[:SHOWN_MAX]:
        what = f"{one.destination} version {one.version}: {one.change_count:,} changes"
        console.print(Text(f"{what}, after {one.attempts} attempts: {one.reason}", style="yellow"))
    if len(sent.failed) > SHOWN_MAX:
        console.print(f"and {len(sent.failed) - SHOWN_MAX:,} more")
