"""A report as a page for people: one HTML file that needs no network, and whose charts and lists need no server."""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import jinja2
import pyarrow as pa
from markupsafe import Markup

from features.snapshots import format_value
from features.zones import day_of, write_instant
from models import telling_words
from publish.report import charts
from publish.report.charts import Drawing, hue
from publish.report.content import (
    SUPPRESSED,
    Bar,
    Breakdown,
    Changes,
    Compared,
    Estimate,
    Metric,
    Model,
    Propensity,
    Rate,
    Report,
    Segment,
    TrendPoint,
)
from publish.report.user_list import pack

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 5_000_000
"""What a page is to stay below; a list that would not fit has its numbers rounded."""
NOT_SHOWN, NONE = "hidden", "–"
BARS_MAX = 12
"""Of a breakdown's chart; the table below it has all values."""
PICKED = 5
"""Segments that a comparison begins with."""
MEASURED = {
    "base_rate": "How often it happened",
    "log_loss": "Log loss (less is better)",
    "auc": "AUC: how often the likelier of two is the right one",
    "average_precision": "Average precision",
    "brier": "Brier score (less is better)",
    "ece": "How far predictions are off on average",
    "precision": "How often it happened",
    "lift": "How many times as often as at random it happened",
}
GAIN = "nats of log loss"
GAIN_NOTE = "Right of the line the model is better; lines are 95 % intervals."
STRIPS = ("hour", "weekday")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_GAP = "\N{NO-BREAK SPACE}"


class PageSettings(Protocol):
    """What a page needs of `[report]`: attributes, or user_id, that it leaves out, and whether it holds lists."""

    @property
    def personal(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def user_lists(self) -> bool: ...  # noqa: D102


def to_html(report: Report, users: pa.Table | None, settings: PageSettings, nonce: str | None = None) -> str:
    """Return a report as a page, with the lists of its users (see `publish.report.content`) where these are given.

    The file says itself what it may run, by hashes. With a `nonce`, for a server that sends a policy, it does not. The
    same report, users and settings give the same text.
    """
    personal = set(settings.personal)
    if personal:
        report = report.without_personal()
    body = _Body(report)
    views = [body.segment(segment) for segment in report.segments]
    context = {
        "report": report,
        "views": views,
        "overview": body.overview(),
        "models": [body.model(model) for model in report.models],
        "comparison": _comparison(report, views),
        "untold": telling_words.headline(None, ""),
        "has_lists": users is not None and settings.user_lists,
        "picked": PICKED,
    }
    style = (TEMPLATES / "style.css").read_text() + _picks(len(views))
    script = (TEMPLATES / "script.js").read_text()
    html = (
        _environment(report.time_zone)
        .get_template("report.html")
        .render(
            context,
            figures=body.figures,
            drawn=charts.draw(body.figures),
            style=Markup(style),
            script=Markup(script),
            nonce=nonce,
            policy=None if nonce else _policy(style, script),
        )
    )
    if users is None or not settings.user_lists:
        return html
    data, is_rounded = pack(_listed(users, personal), PAGE_BYTES - len(html.encode()))
    last = html.rindex("</body>")
    rounded = ' data-rounded="yes"' if is_rounded else ""
    return f'{html[:last]}<script type="application/json" id="users"{rounded}>{data}</script>\n{html[last:]}'


def policy(html: str) -> str:
    """Return the content security policy of a page's file, for the header of a server that sends it as it is."""
    style, script = (re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[0] for tag in ("style", "script"))
    return _policy(style, script)


def _policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _listed(users: pa.Table, personal: set[str]) -> pa.Table:
    """Leave out what is personal, and the many numbers of degrees. A user's number is told where the id is not."""
    hidden = {"user_id", "segment_strengths"} if "user_id" in personal else {"user_number", "segment_strengths"}
    hidden |= {f"attribute_{name}" for name in personal}
    first = [name for name in ("user_id", "user_number") if name in users.column_names and name not in hidden]
    return users.select([*first, *(name for name in users.column_names if name not in hidden | set(first))])


# Numbers as people read them


def count(value: int | str) -> str:
    """Write a count; or that it is not shown."""
    return NOT_SHOWN if isinstance(value, str) else f"{value:,}"


def percent(share: float) -> str:
    r"""Write a share in percent with as many decimals as tell something.

    >>> percent(0.1234), percent(1.0), percent(0.00042)
    ('12.3\xa0%', '100\xa0%', '0.04\xa0%')
    """
    return f"{_points(share)}{_GAP}%"


def _points(share: float) -> str:
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 0.1 else f"{value:.2f}"


def rate(value: Rate, interval: bool = True) -> str:
    r"""Write a share with its interval.

    >>> rate(Estimate(value=0.123, low=0.11, high=0.137))
    '12.3\xa0% (11.0 to 13.7)'
    >>> rate("suppressed"), rate(None)
    ('hidden', '–')
    """
    if not isinstance(value, Estimate):
        return NONE if value is None else NOT_SHOWN
    if not interval or value.low is None or value.high is None:
        return percent(value.value)
    return f"{percent(value.value)} ({_points(value.low)} to {_points(value.high)})"


def figure(value: Estimate | None, digits: int = 3) -> str:
    """Write a figure with its interval."""
    if value is None:
        return NONE
    low, high = value.low, value.high
    text = f"{value.value:,.{digits}f}"
    if low is not None and high is not None:
        text += f" ({low:,.{digits}f} to {high:,.{digits}f})"
    return text.replace("-", "\N{MINUS SIGN}")


def measure(metric: Metric, everyone: bool = False) -> str:
    """Write a measure of sessions in its unit, with its interval."""
    value = metric.everyone if everyone else metric.here
    if metric.unit == "share" or not isinstance(value, Estimate):
        return rate(value)
    write = _seconds if metric.unit == "seconds" else _number
    if value.low is None or value.high is None:
        return write(value.value)
    return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"


def _seconds(value: float) -> str:
    return format_value("duration_s", value).replace(" ", _GAP)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"


def instant(time_zone: str, at: datetime | None) -> str:
    """Write an instant as the clocks of a zone show it."""
    return NONE if at is None else write_instant(at, time_zone)


def day(time_zone: str, at: datetime | None) -> str:
    """Write an instant's local day."""
    return NONE if at is None else f"{day_of(at, time_zone)}"


def measured(name: str) -> str:
    """Return what people call a measure of a model.

    >>> measured("lift_10pct"), measured("calibration_slope")
    ('How many times as often as at random it happened, in the first 10 %', 'Calibration slope')
    """
    stem, _, share = name.rpartition("_")
    if share.endswith("pct") and stem in MEASURED:
        return f"{MEASURED[stem]}, in the first {share.removesuffix('pct')} %"
    return MEASURED.get(name, _upper(name.replace("_", " ")))


def _environment(time_zone: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "rate": rate,
        "percent": percent,
        "figure": figure,
        "instant": partial(instant, time_zone),
        "day": partial(day, time_zone),
        "signed": charts.signed,
    }
    environment.globals |= {"measure": measure, "measured": measured}
    return environment


# What stands where. A figure is its place in `figures`; all are drawn at once.


@dataclass(frozen=True)
class SegmentView:
    """A segment and what the page shows of it: the fragment that leads there, its colour, and figures by section."""

    of: Segment
    anchor: str
    hue: str
    at: int
    typical: list[int]
    breakdowns: list[int]
    propensities: list[tuple[Propensity, int | None]]
    changes: list[int]
    trend: list[int]


@dataclass(frozen=True)
class ModelView:
    """A model and its figures."""

    of: Model
    figures: list[int]


@dataclass
class _Body:
    report: Report
    figures: list[Drawing] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = ("discovered", "named")
        known = sorted(self.report.segments, key=lambda one: (kinds.index(one.kind), one.segment_id))
        self.hues = {one.segment_id: hue(slot) for slot, one in enumerate(known)}
        self.anchors: dict[str, str] = {}

    def add(self, drawing: Drawing) -> int:
        self.figures.append(drawing)
        return len(self.figures) - 1

    def anchor(self, segment_id: str) -> str:
        """Return the fragment of a segment: its id, as far as that can stand in an address."""
        stem = found = "segment-" + (re.sub(r"[^A-Za-z0-9_-]+", "-", segment_id)[:60].strip("-") or "x")
        number = 2
        while found in self.anchors.values():
            found, number = f"{stem}-{number}", number + 1
        self.anchors[segment_id] = found
        return found

    def overview(self) -> dict[str, list[int]]:
        overview = self.report.overview
        shown = [one for one in self.report.segments if one.withheld is None]
        sizes = []
        for kind, name in (("discovered", "Discovered segments"), ("named", "Named segments")):
            some = [one for one in shown if one.kind == kind]
            if some:
                bars = [_bar(one.name, one.share, hue=self.hues[one.segment_id]) for one in some]
                sizes.append(self.add(charts.bars(f"{name}: share of all users", bars, "share of all users")))
        trends = [
            self.add(_trend(one.name, one.trend, self.hues[one.segment_id])) for one in shown if len(one.trend) > 1
        ]
        return {
            "sizes": sizes,
            "trends": trends,
            "changes": self.changes(overview.changes, "s0"),
            "lifecycle": self.breakdown(_stages(overview.lifecycle), "s0", False),
            "breakdowns": [at for one in overview.breakdowns for at in self.breakdown(one, "s0", False)],
        }

    def segment(self, segment: Segment) -> SegmentView:
        slot = self.hues[segment.segment_id]
        dots = [
            charts.Dot(one.title, one.difference, one.here_text, one.others_text)
            for one in sorted(segment.typical, key=lambda one: -abs(one.difference))
        ]
        return SegmentView(
            of=segment,
            anchor=self.anchor(segment.segment_id),
            hue=slot,
            at=len(self.anchors) - 1,
            typical=[self.add(charts.dots("Difference from everyone else", dots, slot, "here", "everyone else"))]
            if dots
            else [],
            breakdowns=[at for one in segment.breakdowns for at in self.breakdown(one, slot, True)],
            propensities=[(one, self.propensity(one, slot)) for one in segment.propensities],
            changes=self.changes(segment.changes, slot),
            trend=[self.add(_trend("Share of all users", segment.trend, slot))] if len(segment.trend) > 1 else [],
        )

    def breakdown(self, breakdown: Breakdown, slot: str, is_compared: bool) -> list[int]:
        title = f"{_upper(breakdown.title)} ({breakdown.counted})"
        if not _tells(breakdown):
            return []
        if breakdown.name in STRIPS:
            return [self.add(_strip(title, breakdown, slot, is_compared))]
        bars = [_bar(one.label, one.share, one.share_of_all if is_compared else None, slot) for one in breakdown.bars]
        other = "everyone" if is_compared else ""
        drawing = charts.bars(title, bars[:BARS_MAX], "here" if is_compared else "share", other, bars[BARS_MAX:])
        return [self.add(drawing)]

    def propensity(self, propensity: Propensity, slot: str) -> int | None:
        if not propensity.histogram or propensity.withheld:
            return None
        edges = zip(propensity.edges, propensity.edges[1:], propensity.histogram, strict=False)
        bins = [charts.Bin(low, high, _known(users), count(users)) for low, high, users in edges]
        of = f"probability of {propensity.title}"
        return self.add(charts.histogram(_upper(of), bins, slot, of))

    def changes(self, changes: Changes | None, slot: str) -> list[int]:
        if changes is None or not changes.reasons:
            return []
        rows = [
            charts.Move(_upper(one.words), _known(one.entered), count(one.entered), _known(one.left), count(one.left))
            for one in changes.reasons
        ]
        return [self.add(charts.moves(f"Entered and left since version {changes.version}", rows, slot))]

    def model(self, model: Model) -> ModelView:
        gains = [
            _spread(_upper(one.title), one.gain, charts.signed(one.gain.value, 3), figure(one.gain))
            for one in model.gains
        ]
        points = [
            (one.predicted, _spread(percent(one.predicted), one.happened, "", rate(one.happened)))
            for one in model.calibration
        ]
        drivers = [charts.Bar(_upper(one.title), one.share, percent(one.share)) for one in model.drivers]
        found = []
        if gains:
            found.append(charts.spreads("How much better than simpler rivals", gains, GAIN, GAIN_NOTE))
        if points:
            found.append(charts.calibration("Predicted and happened", points, "happened"))
        if drivers:
            found.append(charts.bars("What moves predictions", drivers, "share of all that moves them"))
        return ModelView(model, [self.add(drawing) for drawing in found])


def _spread(label: str, value: Estimate, text: str, whole: str) -> charts.Spread:
    low, high = (value.value if end is None else end for end in (value.low, value.high))
    return charts.Spread(label, value.value, low, high, text, whole)


def _known(value: int | str) -> int | None:
    return None if isinstance(value, str) else value


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bar(label: str, share: Rate, other: Rate = None, hue: str = "s0") -> charts.Bar:
    here = share if isinstance(share, Estimate) else None
    return charts.Bar(
        label,
        here.value if here else None,
        rate(share, interval=False),
        here.low if here else None,
        here.high if here else None,
        other.value if isinstance(other, Estimate) else None,
        rate(other, interval=False),
        hue,
        rate(share),
    )


def _tells(breakdown: Breakdown) -> bool:
    """Say whether a value is known of anybody."""
    return any(bar.value is not None for bar in breakdown.bars)


def _stages(bars: list[Bar]) -> Breakdown:
    return Breakdown(name="lifecycle", title="stage of the lifecycle", counted="users", personal=False, bars=bars)


def _strip(title: str, breakdown: Breakdown, slot: str, is_compared: bool) -> Drawing:
    cells = [
        charts.Cell(
            DAYS[int(bar.value) - 1] if breakdown.name == "weekday" else bar.value.zfill(2),
            bar.share.value if isinstance(bar.share, Estimate) else None,
            rate(bar.share, interval=False),
            bar.share_of_all.value if isinstance(bar.share_of_all, Estimate) else None,
            rate(bar.share_of_all, interval=False),
        )
        for bar in breakdown.bars
        if bar.value is not None
    ]
    here, other = ("here", "everyone") if is_compared else ("everyone", "")
    return charts.strip(title, cells, slot, here, other)


def _trend(title: str, points: Sequence[TrendPoint], slot: str) -> Drawing:
    shares = [
        (f"v{one.version}", one.share.value if isinstance(one.share, Estimate) else None, rate(one.share))
        for one in points
    ]
    return charts.trend(title, shares, slot)


# Comparison


@dataclass(frozen=True)
class Cell:
    """A number of a table, and its tint: h1 to h4 the higher it is than everyone's, l1 to l4 the lower."""

    text: str
    tint: str = ""


def _comparison(report: Report, views: Sequence[SegmentView]) -> dict[str, object]:
    """Return tables with a cell for each segment: features (median, mean, share of known), breakdowns, overlap."""
    ids = [view.of.segment_id for view in views]
    nothing = Compared(median=None, mean=None, known=0.0)
    features = []
    for one in report.comparison.features:
        found = {}
        for what in ("median", "mean", "known"):
            values = [getattr(one.segments.get(segment_id, nothing), what) for segment_id in ids]
            everyone = getattr(one.everyone, what)
            write = percent if what == "known" else lambda value, name=one.name: format_value(name, value)
            found[what] = (_text(everyone, write), _cells(values, everyone, write))
        features.append((_upper(one.title), found))
    breakdowns = []
    for breakdown in filter(_tells, report.overview.breakdowns):
        labels = {bar.value: bar.label for bar in breakdown.bars}
        rows = []
        for value, name in labels.items():
            shares = [_share_of(view.of, breakdown.name, value) for view in views]
            everyone = next(bar.share for bar in breakdown.bars if bar.value == value)
            of_all = everyone.value if isinstance(everyone, Estimate) else None
            label = DAYS[int(value) - 1] if breakdown.name == "weekday" and value else name
            rows.append((label, rate(everyone, interval=False), _cells(shares, of_all, percent)))
        breakdowns.append((_upper(breakdown.title), breakdown.counted, rows))
    names = {one.of.segment_id: one for one in views}
    discovered = [one for one in views if one.of.kind == "discovered"]
    overlap = [
        (
            names[one.segment_id],
            one.users,
            [count(one.discovered.get(other.of.segment_id, 0)) for other in discovered],
        )
        for one in report.comparison.overlap
        if one.segment_id in names
    ]
    return {"features": features, "breakdowns": breakdowns, "overlap": overlap, "discovered": discovered}


def _share_of(segment: Segment, name: str, value: str | None) -> float | str | None:
    for breakdown in segment.breakdowns:
        for bar in breakdown.bars:
            if breakdown.name == name and bar.value == value:
                return bar.share.value if isinstance(bar.share, Estimate) else bar.share
    return SUPPRESSED if segment.withheld else None


def _text(value: float | str | None, write: Callable[[float], str]) -> str:
    if value is None:
        return NONE
    return NOT_SHOWN if isinstance(value, str) else write(value)


def _cells(
    values: Sequence[float | str | None], everyone: float | str | None, write: Callable[[float], str]
) -> list[Cell]:
    return [Cell(_text(value, write), _tint(value, everyone)) for value in values]


def _tint(value: float | str | None, everyone: float | str | None) -> str:
    """Return how deep a number is tinted: deepest from twice, or down to half, of everyone's.

    >>> _tint(0.2, 0.1), _tint(0.9, 1.0), _tint(0, 1.0), _tint(1.02, 1.0)
    ('h4', 'l1', 'l4', '')
    """
    if not isinstance(value, (int, float)) or not isinstance(everyone, (int, float)) or min(value, everyone) < 0:
        return ""
    if value == everyone:
        return ""
    doublings = math.log2(value / everyone) if value and everyone else math.copysign(1, value - everyone)
    depth = round(4 * min(abs(doublings), 1))
    return f"{'h' if doublings > 0 else 'l'}{depth}" if depth else ""


def _picks(segments: int) -> str:
    """Return the style by which a reader chooses the segments of a comparison; it needs no script."""
    return "".join(f"#comparison:has(#pick{at}:not(:checked)) .k{at}{{display:none}}\n" for at in range(segments))
