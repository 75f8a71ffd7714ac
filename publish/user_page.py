"""The page of a user: why this segment, why these scores, and the sessions as a timeline. Nothing runs in it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from features.zones import write_instant
from publish.assignments import labels_in
from publish.catalogue import PERSONAL_ATTRIBUTE
from publish.report.content import Report

SHOWN_CHARACTERS = 60
"""Of an id; the rest is shown on demand."""
TYPICAL_MAX = 5
LINE_WIDTH = 1000
"""Of the timeline's drawing, in its own units."""

_templates = Environment(
    loader=PackageLoader("publish", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_lookup(nonce: str, missing: str | None) -> str:
    """Return the page to look up a user with; it says that a user was not found, where one was missing."""
    return _templates.get_template("lookup.html").render(nonce=nonce, missing=missing, shown=shorten)


def render_user(
    nonce: str, report: Report, user: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]] | None
) -> str:
    """Return the page of a user of users.parquet; `sessions`, the latest first, are null where they are not for show.

    `nonce` is what the page's own style carries.
    """
    segment = report.segment(user["segment_id"] or "")
    names = {one.segment_id: one.name for one in report.segments}
    labels = labels_in(user)
    titles = {model.label: model.title for model in report.models}
    scores = [
        {
            "title": titles.get(label, label.replace("_", " ")),
            "probability": user[f"{label}_probability"],
            "percentile": user[f"{label}_percentile"],
            "reasons": user[f"{label}_reasons"],
        }
        for label in labels
        if user[f"{label}_percentile"] is not None
    ]
    attributes = [
        (one.title, user.get(f"{PERSONAL_ATTRIBUTE}{one.name}"))
        for one in report.attributes
        if f"{PERSONAL_ATTRIBUTE}{one.name}" in user
    ]
    return _templates.get_template("user.html").render(
        nonce=nonce,
        report=report,
        user=user,
        segment=segment,
        typical=segment.typical[:TYPICAL_MAX] if segment else [],
        runner_up=names.get(user["runner_up_segment_id"] or ""),
        rules=[names.get(name, name) for name in user["rule_segments"]],
        scores=scores,
        attributes=attributes,
        sessions=sessions,
        timeline=_timeline(sessions or (), report.as_of),
        shown=shorten,
        instant=partial(write_instant, time_zone=report.time_zone),
    )


def shorten(text: str) -> str:
    """Return the beginning of a long text."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _timeline(sessions: Sequence[Mapping[str, Any]], as_of: datetime) -> dict[str, Any]:
    """Return where each session is on a line from the first one's day to as_of, and where months begin."""
    if not sessions:
        return {"width": LINE_WIDTH, "points": [], "months": []}
    first = min(one["started_at"] for one in sessions).replace(hour=0, minute=0, second=0, microsecond=0)
    span_s: float = max((as_of - first).total_seconds(), 1)

    def x(at: datetime) -> float:
        return float(round((at - first).total_seconds() / span_s * LINE_WIDTH, 1))

    months, at = [], first.replace(day=1)
    while (at := (at + timedelta(days=32)).replace(day=1)) < as_of:
        months.append({"x": x(at), "name": f"{at:%b %Y}"})
    every = -(-len(months) // 8)
    points = [{"x": x(one["started_at"]), "converted": one["converted"]} for one in sessions]
    return {"width": LINE_WIDTH, "points": points, "months": months[:: max(every, 1)]}
