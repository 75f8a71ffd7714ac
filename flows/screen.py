"""What a person sees at the end of a run, and the same numbers for programs."""

import shlex
from itertools import zip_longest
from pathlib import Path

import pydantic_core
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from features.as_of import DAY, GIVEN, Decision
from features.events import REASONS
from features.snapshots import format_value
from features.zones import write_instant
from flows.configuration import LOCAL
from flows.publish import Published
from flows.run import Result
from publish.changes import ENTERED, LEFT
from publish.report.reports import FOLDER, PAGE


def to_json(result: object) -> str:
    """Write a stage's result as JSON: instants in ISO 8601, paths as text."""
    return pydantic_core.to_json(result, indent=2).decode()


def show(result: Result, config: str, program: str, console: Console) -> None:
    """Print the closing screen of a run of `program` on a configuration."""
    console.print()
    _show_data(result, console)
    show_segments(result, console)
    _show_rules(result, console)
    _show_models(result, console)
    show_published(result.published, config, program, console)
    _show_next(result, config, program, console)


def _show_data(result: Result, console: Console) -> None:
    ingested = result.ingested
    rejected = ingested.read - ingested.accepted
    as_of = write_instant(result.as_of, result.published.time_zone)
    console.print(_heading(f"{result.name} as of {as_of}"))
    rows = f"{ingested.accepted:,} rows accepted + {rejected:,} rejected = {ingested.read:,} read"
    console.print(Padding(rows, (0, 0, 0, 2)))
    for reason, count in ingested.rejected.items():
        console.print(Padding(f"{count:>9,}  {REASONS[reason]}", (0, 0, 0, 4)), style="yellow")
    show_hints(ingested.hints, console)
    counts = f"{result.sessionized.sessions:,} sessions"
    console.print(Padding(f"{counts}; {result.scored.users:,} users before {as_of}", (0, 0, 0, 2)))
    show_decision(result.decision, result.published.time_zone, console)
    console.print()


def show_decision(decision: Decision, time_zone: str, console: Console) -> None:
    """Print how old the newest event is, where it is older than a day, and what a person may want to decide otherwise.

    That is nothing about a run whose instant was given.
    """
    if decision.why == GIVEN:
        return
    if decision.newest_at is not None and decision.now - decision.newest_at > DAY:
        age_days = (decision.now - decision.newest_at) / DAY
        newest = write_instant(decision.newest_at, time_zone)
        console.print(Padding(f"the newest event is of {newest}, {age_days:,.0f} days ago", (0, 0, 0, 2)))
    for note in decision.notes:
        console.print(Padding(Text(note), (0, 0, 0, 2)), style="yellow")


def show_hints(hints: list[str], console: Console) -> None:
    """Print what was probably meant otherwise than it was read."""
    for hint in hints:
        console.print(Padding(Text(hint), (0, 0, 0, 2)), style="yellow")


def show_segments(result: Result, console: Console) -> None:
    """Print a row for each segment: its id, name, users, share and summary."""
    console.print(_heading("Segments"))
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("segment", style="bold", overflow="fold", ratio=2)
    table.add_column("users", justify="right")
    table.add_column("share", justify="right")
    table.add_column("what is typical", overflow="fold", ratio=4)
    for segment in result.scored.segments:
        table.add_row(
            segment.segment_id,
            Text(segment.name),  # a name may have brackets, which would be markup
            f"{segment.users:,}",
            format_value("_share", segment.share),
            Text.assemble(segment.summary, *((f"\n{flag}", "yellow") for flag in segment.flags)),
        )
    console.print(table if result.scored.segments else Padding("none: no segments were found yet", (0, 0, 0, 2)))
    console.print()


def _show_rules(result: Result, console: Console) -> None:
    """Print named segments side by side, those that nobody is in or that are off in a line, and the lifecycle."""
    console.print(_heading("Named segments"))
    scored = result.scored
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, show_header=False)
    cells: list[list[str | Text]] = [
        [
            Text(one.title, style="bold"),
            f"{one.users:,}",
            format_value("_share", one.share),
            Text((one.flag or "").partition(":")[0], style="yellow"),
        ]
        for one in scored.rules
        if one.users
    ]
    half = (len(cells) + 1) // 2
    for _ in range(2):
        table.add_column()
        table.add_column(justify="right")
        table.add_column(justify="right")
        table.add_column()
    for left, right in zip_longest(cells[:half], cells[half:]):
        table.add_row(*left, *(right or ()))
    console.print(Padding(table, (0, 0, 0, 2)))
    empty = [one.title for one in scored.rules if not one.users]
    by_reason: dict[str, list[str]] = {}
    for name, why in scored.rules_off.items():
        by_reason.setdefault(why, []).append(name.replace("_", " "))
    off = [f"{', '.join(names)} ({why})" for why, names in by_reason.items()]
    for said, names in (("nobody: ", empty), ("off: ", off)):
        if names:
            console.print(Padding(said + ", ".join(names), (0, 0, 0, 2)), style="dim")
    stages = [f"{users:,} {stage.replace('_', ' ')}" for stage, users in scored.lifecycle.stages.items()]
    console.print(Padding(Text.assemble(("Lifecycle: ", "bold"), ", ".join(stages)), (0, 0, 0, 2)))
    console.print()


def _show_models(result: Result, console: Console) -> None:
    if not result.trained:
        return
    console.print(_heading("Propensities, tested on a later snapshot"))
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("AUC", "AUC of\nrecency", "gain on\nrecency", "off by\n(ECE)", "rows", "base\nrate"):
        table.add_column(column, justify="right", vertical="bottom", no_wrap=True)
    reasons = []
    for kind, trained in result.trained.items():
        if kind == "segments":
            continue
        reasons.append(Text.assemble((f"{kind}: ", "bold"), trained.reason))
        measured = trained.metrics.get("metrics")
        if measured is None:
            continue
        model, recency, gain = measured["model"], measured["recency"], trained.metrics["gains"]["recency"]
        table.add_row(
            Text(kind, style="bold"),
            _estimate(model["auc"], 2),
            f"{recency['auc']['value']:.2f}",
            _estimate(gain, 3),
            f"{model['ece']['value']:.3f}",
            f"{trained.metrics['rows']['test']:,}",
            f"{model['base_rate']['value']:.1%}".replace("%", " %"),
        )
    if table.row_count:
        console.print(table)
    for reason in reasons:
        console.print(Padding(reason, (0, 0, 0, 2)))
    console.print()


def _estimate(estimate: dict[str, float], digits: int) -> str:
    """Write a figure, and its 95 % interval below."""
    value, low, high = (f"{estimate[part]:.{digits}f}" for part in ("value", "low", "high"))
    return f"{value}\n{low}–{high}".replace("-", "\N{MINUS SIGN}")


def show_published(published: Published, config: str, program: str, console: Console) -> None:
    """Print where the present version is, who entered and left and why, and what is held and how to release it."""
    if published.as_of is None:
        console.print(_heading("Published: nothing yet"))
    else:
        as_of = write_instant(published.as_of, published.time_zone)
        console.print(_heading(f"Published: version {published.version}, as of {as_of}"))
    for delivery in published.deliveries:
        where = str(_relative(published.latest)) if delivery.destination == LOCAL else delivery.where
        style = {"failed": "red", "pending": "yellow"}.get(delivery.state, "green")
        count = f"{delivery.count:,} {delivery.counted}"
        note = f"  {delivery.note}" if delivery.note else ""
        name, state = (f"  {delivery.destination}: ", "bold"), (f"{delivery.state}  ", style)
        console.print(Text.assemble(name, state, where, f"  {count}", (note, "yellow")), soft_wrap=True)
    for change in (ENTERED, LEFT):
        if said := _changes(published, change):
            console.print(Padding(f"{change}: {said}", (0, 0, 0, 2)))
    if published.held:
        console.print()
        console.print(_heading(f"Held: {published.held}"), style="yellow")
        for finding in published.findings:
            console.print(Padding(Text(finding), (0, 0, 0, 2)), style="yellow")
        console.print(Padding("It is built and not released. If that is right:", (0, 0, 0, 2)))
        console.print(
            f"  {program} release {shlex.quote(config)} {published.held}", soft_wrap=True, markup=False, style="cyan"
        )
    console.print()


def _changes(published: Published, change: str) -> str:
    """Say how many memberships began or ended in the local folder, and why."""
    rows = [row for row in published.changes if row["destination"] == LOCAL and row["change"] == change]
    rows.sort(key=lambda row: -row["users"])
    said = [f"{row['users']:,} ({row['reason'].replace('_', ' ')})" for row in rows]
    if rows:
        said[0] = said[0].replace(" ", " membership " if rows[0]["users"] == 1 else " memberships ", 1)
    return ", ".join(said)


def _show_next(result: Result, config: str, program: str, console: Console) -> None:
    latest = _relative(result.published.latest)
    report = latest.parent / FOLDER / latest.name / PAGE
    console.print(_heading("Next"))
    there = (
        (f"xdg-open {shlex.quote(str(report))}", "the User Segment Report, in the browser"),
        (f"head -3 {shlex.quote(str(latest / 'assignments.csv'))}", "what marketing tools read"),
    )
    for line, purpose in (
        *(there if result.published.version is not None else ()),
        (f"{program} segments {shlex.quote(config)}", "the segments that serve, since when, and how stable they are"),
        (f"{program} serve {shlex.quote(config)} --open-local", "the same live, a page for each user, and an API"),
        (f"make serve CONFIG={shlex.quote(config)}", "schedules, past runs and models in the browser"),
    ):
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False, style="cyan")
        console.print(f"      {purpose}", style="dim")


def _heading(text: str) -> Text:
    return Text(text, style="bold underline")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
