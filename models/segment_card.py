"""The segments of a training as a page for people: what is typical, the rule, and how far either is to be trusted."""

from datetime import datetime
from html import escape

from features.snapshots import format_value
from features.zones import day_of, write_instant
from models import telling_words
from models.descriptions import Trait
from models.pages import page, table
from models.segment_rules import SegmentRule
from models.segments import Segment, SegmentModel


def to_html(model: SegmentModel, name: str, as_of: datetime, time_zone: str) -> str:
    """Return the segments of a model called `name`, of the snapshot at `as_of`, the largest first."""
    segments = sorted(model.segments, key=lambda segment: (-segment.size, segment.segment_id))
    overview = [
        (one.segment_id, one.name, f"{one.size:,}", _percent(one.share), f"{one.stability:.2f}") for one in segments
    ]
    users = sum(segment.size for segment in segments)
    return page(
        f"Segments of {name}",
        [
            f"<p>{len(segments)} segments of {users:,} users, as of {write_instant(as_of, time_zone)}. A "
            "difference is that of a segment's users to everyone else, in standard deviations: 0.2 is small, 0.5 is "
            "medium, 0.8 is large. Stability is 1 where every refit finds the same users.</p>",
            table(("", "segment", "users", "share", "stability"), overview, "numbers"),
            *_telling(model, time_zone),
            *(line for segment in segments for line in _segment(segment)),
        ],
    )


def _telling(model: SegmentModel, time_zone: str) -> list[str]:
    """Say how the segments were chosen, and what they tell about the future."""
    lines = []
    if model.chosen is not None:
        lines.append(f"<p>Chosen among {len(model.candidates)} candidates: {model.chosen.judgement()}.</p>")
    if model.tells is None:
        return [*lines, f"<p>{telling_words.headline(None, '')}</p>"]
    day = str(day_of(datetime.fromisoformat(model.tells["as_of"]), time_zone))
    return [
        *lines,
        f"<h2>What these segments say about the next {telling_words.days(model.tells)}</h2>",
        f"<p>{telling_words.headline(model.tells, day)}</p>",
        table(telling_words.HEADINGS, [tuple(row.written()) for row in telling_words.table(model.tells)], "numbers"),
    ]


def _segment(segment: Segment) -> list[str]:
    return [
        f'<h2 id="{escape(segment.segment_id)}">{escape(segment.segment_id)} {escape(segment.name)}</h2>',
        f"<p class='definition'>{escape(segment.summary)}.</p>",
        *(f"<p class='broken'>{escape(flag[0].upper() + flag[1:])}.</p>" for flag in segment.flags),
        table(("what is typical", "here", "all users", "difference"), [_row(trait) for trait in segment.typical]),
        *([] if segment.rule is None else _rule(segment.rule)),
    ]


def _row(trait: Trait) -> tuple[str, str, str, str]:
    return trait.what(), *trait.written(), f"{trait.difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def _rule(rule: SegmentRule) -> list[str]:
    return [
        f"<p>A rule that finds nearly the same users:</p><p><code>{escape(rule.text)}</code></p>",
        f"<p>It holds for {_percent(rule.coverage)} of all users. Of those it finds, {_percent(rule.precision)} are of "
        f"the segment (precision), and it finds {_percent(rule.recall)} of the segment (recall).</p>",
    ]


def _percent(share: float) -> str:
    return format_value("_share", share)
