"""The label card: what a label means, how often it was true, whom it left out, and whether it can be trusted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from math import sqrt
from statistics import NormalDist
from typing import Any

import pandas as pd

from features.labels import Label
from features.zones import day_of, write_instant
from models.pages import page, table

CONFIDENCE = 0.95
TRAIN = "train"
STALE = "they were made at another time or under other settings, so take the snapshots again"
"""What is wrong with labels, if it is not how they are made."""
DID = {
    "recency_days": "came",
    "tenure_days": "came for the first time",
    "cart_abandoned_recency_days": "abandoned a cart",
    "support_recency_days": "went to support",
    "purchase_recency_days": "bought",
}
"""What a user did so many days ago, by the feature that says so."""


@dataclass(frozen=True)
class Rate:
    """Hold a share of rows and its 95 % interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Counts:
    """Count the rows at one instant by what became of the label; `part` is what they are for, such as train or test.

    The base rate, of those that have the label, is None where none has.
    """

    as_of: datetime
    part: str
    users: int
    incomplete: int
    ineligible: int
    labelled: int
    positive: int
    base_rate: Rate | None


@dataclass(frozen=True)
class Rule:
    """Hold a rule that a label has to keep, whether it does, and what was found, in numbers."""

    rule: str
    held: bool
    found: str


@dataclass(frozen=True)
class Excluded:
    """Hold a reason for which rows are left out, and how many are."""

    reason: str
    rows: int
    why: str


@dataclass(frozen=True)
class LabelCard:
    """Describe a label as it was used in one training."""

    label: Label
    known_at: datetime
    user_count: int
    snapshots: tuple[Counts, ...]
    rules: tuple[Rule, ...]
    time_zone: str = "UTC"

    @property
    def definition(self) -> str:
        """Return what the label says and of whom it is asked, in words."""
        return define(self.label)

    @property
    def row_count(self) -> int:
        """Return how many rows have the label."""
        return sum(one.labelled for one in self.snapshots)

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        """List why rows of the snapshots are left out, and how many."""
        unknown = "the events do not tell, so nobody is left out for it"
        return (
            Excluded("window incomplete", sum(one.incomplete for one in self.snapshots), "it ends after what is known"),
            Excluded("not eligible", sum(one.ineligible for one in self.snapshots), f"not {asked_of(self.label)}"),
            Excluded("robot", 0, unknown),
            Excluded("no consent", 0, unknown),
        )

    @property
    def broken(self) -> str | None:
        """Say in numbers which rules are broken, so that nothing may be learnt from the label; None if none is."""
        return "; ".join(rule.found for rule in self.rules if not rule.held) or None

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON; instants are ISO 8601, in UTC."""
        return {
            "label": self.label.name,
            "column": self.label.column,
            "definition": self.definition,
            "settings": asdict(self.label) | {"events": list(self.label.events)},
            "known_at": _iso(self.known_at),
            "rows": self.row_count,
            "users": self.user_count,
            "excluded": [asdict(one) for one in self.excluded],
            "confidence": CONFIDENCE,
            "snapshots": [asdict(one) | {"as_of": _iso(one.as_of)} for one in self.snapshots],
            "rules": [asdict(rule) for rule in self.rules],
            "broken": self.broken,
        }

    def to_html(self) -> str:
        """Return the card as a page that needs nothing else: no network, light and dark, and fit to print."""
        verdict = f"Not to be trusted: {self.broken}" if self.broken else "Every rule held."
        columns = (
            "as of",
            "part",
            "users",
            "not complete",
            "not eligible",
            "labelled",
            "true",
            "base rate",
            "95 % interval",
        )
        rates = [
            (
                write_instant(one.as_of, self.time_zone),
                one.part,
                *(f"{count:,}" for count in (one.users, one.incomplete, one.ineligible, one.labelled, one.positive)),
                _percent(one.base_rate.share) if one.base_rate else "",
                _interval(one.base_rate) if one.base_rate else "",
            )
            for one in self.snapshots
        ]
        return page(
            f"Label card: {self.label.column}",
            [
                f"<p class='definition'>{escape(self.definition)}.</p>",
                f"<p>{self.row_count:,} rows of {self.user_count:,} users, at {len(self.snapshots):,} snapshots, "
                f"by what was known at {write_instant(self.known_at, self.time_zone)}.</p>",
                f"<p class='{'broken' if self.broken else 'held'}'>{escape(verdict)}</p>",
                "<h2>Base rate</h2>",
                _chart(self.snapshots, self.time_zone),
                "<h2>Rules</h2>",
                table(
                    ("rule", "", "found"),
                    [(one.rule, "held" if one.held else "broken", one.found) for one in self.rules],
                ),
                "<h2>Rows left out</h2>",
                table(("reason", "rows", "why"), [(one.reason, f"{one.rows:,}", one.why) for one in self.excluded]),
                "<h2>By snapshot</h2>",
                table(columns, rates, "numbers"),
            ],
        )


def make_card(
    label: Label,
    counts: pd.DataFrame,
    user_count: int,
    known_at: datetime,
    parts: Mapping[datetime, str],
    jump_max: float,
    time_zone: str = "UTC",
) -> LabelCard:
    """Make the card of a label from what `features.label_counts.count_labels` found at the instants of a training.

    `user_count` is of different users who have the label, `parts` says what each instant's rows are for ("train": to
    learn from), and `jump_max` by how much the share of true labels may differ between one snapshot and the next.
    People read instants as the clocks of `time_zone` show them.
    """
    snapshots = tuple(_counts(row, parts) for row in counts.sort_values("as_of").to_dict("records"))
    rules = (
        _agrees_with_events(label, snapshots, int(counts["contradicted"].sum())),
        _adds_up(snapshots),
        _has_both_answers(snapshots),
        _does_not_jump(snapshots, jump_max, time_zone),
    )
    return LabelCard(label, known_at, user_count, snapshots, rules, time_zone)


def define(label: Label) -> str:
    """Say in words what a label says, and of whom it is asked.

    >>> from features.labels import LabelSettings
    >>> define(LabelSettings().named["churn"])
    'churned: no event of any kind in the 28 days from as_of; asked of those who came in the 28 days before'
    """
    events = " or ".join(label.events) or "event of any kind"
    amount = "no" if label.kind == "churn" else "at least one"
    begin = f"{_days(label.delay_days)} after as_of" if label.delay_days else "as_of"
    window = f"in the {_days(label.horizon_days)} from {begin}"
    return f"{label.column}: {amount} {events} {window}; asked of {asked_of(label)}"


def asked_of(label: Label) -> str:
    """Say in words of whom a label is asked."""
    if label.eligible_days is not None:
        return f"those who {DID[label.eligible_by]} in the {_days(label.eligible_days)} before"
    return (
        "everyone"
        if label.eligible_by in ("recency_days", "tenure_days")
        else f"those who ever {DID[label.eligible_by]}"
    )


def wilson(positive: int, total: int) -> Rate:
    """Return a share with its 95 % interval (Wilson 1927), which holds for few rows and for shares near 0 and 1.

    >>> found = wilson(8, 10)
    >>> round(found.low, 3), round(found.high, 3)
    (0.49, 0.943)
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, shrink = positive / total, 1 + z**2 / total
    middle = (share + z**2 / (2 * total)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return Rate(share, max(0.0, middle - half), min(1.0, middle + half))


def _counts(row: Mapping[Any, Any], parts: Mapping[datetime, str]) -> Counts:
    as_of = row["as_of"].to_pydatetime().astimezone(UTC)
    names = ("users", "incomplete", "ineligible", "labelled", "positive")
    users, incomplete, ineligible, labelled, positive = (int(row[name]) for name in names)
    base_rate = wilson(positive, labelled) if labelled else None
    return Counts(as_of, parts.get(as_of, ""), users, incomplete, ineligible, labelled, positive, base_rate)


def _agrees_with_events(label: Label, snapshots: tuple[Counts, ...], contradicted: int) -> Rule:
    who = "without" if label.kind == "churn" else "with"
    rule = f"the label is true of those {who} such an event in the window, and of nobody else"
    labelled = sum(one.labelled for one in snapshots)
    if contradicted:
        return Rule(rule, False, f"{contradicted:,} of {labelled:,} labels say otherwise than the events: {STALE}")
    return Rule(rule, True, f"{labelled:,} labels, none of which the events contradict")


def _adds_up(snapshots: tuple[Counts, ...]) -> Rule:
    rule = "every user of a snapshot has the label, or a reason to have none"
    users = sum(one.users for one in snapshots)
    off = sum(abs(one.users - one.incomplete - one.ineligible - one.labelled) for one in snapshots)
    if off:
        return Rule(rule, False, f"{off:,} of {users:,} rows do not add up: {STALE}")
    return Rule(rule, True, f"{users:,} rows add up")


def _has_both_answers(snapshots: tuple[Counts, ...]) -> Rule:
    rule = "among the rows to learn from, the label is true of some and false of some"
    rows = [one for one in snapshots if one.part == TRAIN]
    labelled, positive = sum(one.labelled for one in rows), sum(one.positive for one in rows)
    if not labelled:
        return Rule(rule, False, f"none of {sum(one.users for one in rows):,} rows to learn from has the label")
    found = f"the label is true of {positive:,} of {labelled:,} rows to learn from: {_percent(positive / labelled)}"
    return Rule(rule, 0 < positive < labelled, found)


def _does_not_jump(snapshots: tuple[Counts, ...], jump_max: float, time_zone: str) -> Rule:
    """Look for the largest difference of two that have no snapshot between them and whose intervals are apart."""
    rule = f"from one snapshot to the next, the base rate differs by at most {100 * jump_max:g} points"
    jumps = {
        abs(rate.share - other.share): f"from {_percent(rate.share)} at {day_of(one.as_of, time_zone)} to "
        f"{_percent(other.share)} at {day_of(after.as_of, time_zone)}"
        for one, after in pairwise(snapshots)
        if (rate := one.base_rate) and (other := after.base_rate) and (rate.high < other.low or other.high < rate.low)
    }
    if not jumps:
        return Rule(rule, True, "no two neighbours differ by more than their intervals")
    size = max(jumps)
    found = f"the base rate goes {jumps[size]}, by {100 * size:.1f} points"
    if size > jump_max:
        return Rule(rule, False, f"{found}, more than labels.base_rate_jump_max = {jump_max:g} allows")
    return Rule(rule, True, f"{found} at most")


def _days(days: float) -> str:
    return f"{days:g} day" if days == 1 else f"{days:g} days"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(rate: Rate) -> str:
    return f"{_percent(rate.low)} to {_percent(rate.high)}"


def _iso(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat()


# --- the page ---

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, MARGIN = 800, 240, 52, 12, 26, 12
SCALES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def _chart(snapshots: tuple[Counts, ...], time_zone: str) -> str:
    """Draw the base rate over time with its intervals; of what is not to learn from, hollow."""
    known = [(one, one.base_rate) for one in snapshots if one.base_rate]
    if not known:
        return "<p>No snapshot has the label.</p>"
    first, last = known[0][0].as_of, known[-1][0].as_of
    top = next(scale for scale in SCALES if scale >= max(rate.high for _, rate in known))

    def x(instant: datetime) -> float:
        share = (instant - first) / (last - first) if last > first else 0.5
        return LEFT + MARGIN + share * (WIDTH - LEFT - 2 * MARGIN)

    def y(share: float) -> float:
        return TOP + (1 - share / top) * (HEIGHT - TOP - BOTTOM)

    def text(at: float, height: float, anchor: str, words: str) -> str:
        return f'<text x="{at:.1f}" y="{height:.1f}" text-anchor="{anchor}">{words}</text>'

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Base rate by snapshot, with 95 % intervals">']
    for share in (0, top / 2, top):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(text(LEFT - 6, y(share) + 4, "end", f"{100 * share:g} %"))
    for one, rate in known:
        at = x(one.as_of)
        day = day_of(one.as_of, time_zone)
        words = f"{day} {one.part}: {_percent(rate.share)} ({_interval(rate)}), {one.labelled:,} rows"
        parts.append(
            f'<g class="{"mark" if one.part == TRAIN else "mark open"}"><title>{escape(words)}</title>'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(rate.low):.1f}" y2="{y(rate.high):.1f}"/>'
            f'<circle cx="{at:.1f}" cy="{y(rate.share):.1f}" r="3.5"/></g>'
        )
    if last > first:
        parts.append(text(LEFT, HEIGHT - 6, "start", f"{day_of(first, time_zone)}"))
    parts.append(text(WIDTH, HEIGHT - 6, "end", f"{day_of(last, time_zone)}"))
    return "\n".join([*parts, "</svg><p>Filled: to learn from. Hollow: not to learn from.</p>"])
