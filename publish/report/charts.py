"""The report's charts: drawn with Altair without a network, as SVG that takes its colours from the page."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from textwrap import wrap
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup, escape

FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""vl-convert brings the first, so text is measured alike everywhere; readers without it have one as wide."""
HUES = 10
"""Colours of segments in the page's style: --s0, --s1, ..."""
WIDTH = 352
"""Of every drawing, so that all have letters of one size; a phone shows them as they are."""
DRAWN_MAX = 1_000
"""Drawings that are remembered."""
LETTERS_MAX, LINES_MAX = 22, 2
"""Of a label beside a chart; the table below it has it whole."""

# Vega writes colours as they are given. These stand for the page's variables, and are replaced in what it draws.
_STAND_INS = {"#0a0b0c": "ink", "#0a0b0d": "pale", "#0a0b0e": "grid", "#0a0b0f": "other", "#0a0b10": "paper"}
_STAND_INS |= {f"#0a0c{hue:02x}": f"s{hue}" for hue in range(HUES)}
_COLOUR = {name: colour for colour, name in _STAND_INS.items()}
_INK, _PALE, _GRID, _OTHER, _PAPER = (_COLOUR[name] for name in ("ink", "pale", "grid", "other", "paper"))
_GAP = "\N{NO-BREAK SPACE}"

# A kind of chart is described once, for rows and numbers that follow: Altair takes longer than drawing does.
_ROWS = alt.NamedData("rows")
_SAYS = alt.Description("says:N")
_HUE = alt.Color("colour:N", scale=None)
_NUMBERS = ("bottom", "top", "reach")
_LABEL_WIDTH, _PLOT_WIDTH, _STEP, _STEP_OF_TWO_LINES = 140, 120, 24, 32


@dataclass(frozen=True)
class Drawing:
    """Hold what a reader gets: a title, the numbers in words and as a table, and what Vega is to draw."""

    title: str
    words: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    spec: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """Hold a bar: its share with its interval, if known, and what it is compared with.

    `text` is the share in words, and `whole` with its interval. A share of None is one that is not shown; its text says
    so.
    """

    label: str
    share: float | None
    text: str
    low: float | None = None
    high: float | None = None
    other: float | None = None
    other_text: str = ""
    hue: str = "s0"
    whole: str = ""


@dataclass(frozen=True)
class Dot:
    """Hold a difference from everyone else in standard deviations, and its values in words."""

    label: str
    difference: float
    text: str
    other_text: str


@dataclass(frozen=True)
class Spread:
    """Hold a value and its interval, both as numbers and in words."""

    label: str
    value: float
    low: float
    high: float
    text: str
    whole: str


@dataclass(frozen=True)
class Cell:
    """Hold the shares of one hour or weekday, here and among everyone; None where it is not shown."""

    label: str
    share: float | None
    text: str
    other: float | None
    other_text: str


@dataclass(frozen=True)
class Bin:
    """Hold how many users have a probability from `low` to `high`; None where it is not shown."""

    low: float
    high: float
    users: int | None
    text: str

    def name(self) -> str:
        """Write the bounds."""
        return f"{100 * self.low:.0f} to {100 * self.high:.0f}{_GAP}%"


@dataclass(frozen=True)
class Move:
    """Hold how many entered and left for a reason; None where it is not shown."""

    reason: str
    entered: int | None
    entered_text: str
    left: int | None
    left_text: str


def hue(slot: int) -> str:
    """Return the name of a segment's colour by its place; it is the same wherever the segment is shown."""
    return f"s{slot % HUES}"


def signed(number: float, digits: int = 1) -> str:
    """Write a difference with its sign."""
    return f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def bars(title: str, bars: Sequence[Bar], what: str, other: str = "", rest: Sequence[Bar] = ()) -> Drawing:
    """Draw shares as bars with their values, and ticks for those of `other`; `rest` is in the table only."""
    labels = _labels([bar.label for bar in bars])
    rows = [
        {
            "label": label,
            "share": bar.share or 0.0,
            "low": bar.share if bar.low is None else bar.low,
            "high": bar.share if bar.high is None else bar.high,
            "other": bar.other,
            "text": bar.text,
            "colour": _COLOUR[bar.hue],
            "says": f"{bar.label}: {bar.text}" + (f"; {other}: {bar.other_text}" if other else ""),
        }
        for bar, label in zip(bars, labels, strict=True)
    ]
    numbers = [number for bar in bars for number in (bar.share, bar.high, bar.other) if number]
    has_interval = any(bar.low is not None and bar.high is not None for bar in bars)
    note = [f"Bars: {what}. Ticks: {other}."] if other else []
    note += [f"{len(rest)} more are among the numbers."] if rest else []
    return Drawing(
        title,
        _words(f"{bar.label} {bar.text}" + (f" ({other} {bar.other_text})" if other else "") for bar in bars),
        ("", what, other) if other else ("", what),
        tuple((bar.label, bar.whole or bar.text, *([bar.other_text] if other else [])) for bar in (*bars, *rest)),
        _filled(_bars(has_interval, bool(other), _step(labels)), rows, top=max(numbers, default=1.0)),
        " ".join(note),
    )


@cache
def _bars(has_interval: bool, is_compared: bool, step: int) -> dict[str, Any]:
    y, scale = _beside(), alt.Scale(domainMin=0, domainMax=alt.ExprRef("top"), nice=False)
    x = alt.X("share:Q", scale=scale, axis=None)
    layers = [alt.Chart(_ROWS).mark_bar(height=14).encode(x, y, _HUE, _SAYS)]
    if has_interval:
        layers.append(alt.Chart(_ROWS).mark_rule(color=_INK, strokeWidth=1.5).encode(alt.X("low:Q"), y, x2="high:Q"))
    if is_compared:
        ticks = alt.Chart(_ROWS).mark_tick(color=_INK, thickness=2.5, height=20)
        layers.append(ticks.encode(alt.X("other:Q"), y, _SAYS))
    return _kind(alt.layer(*layers, _texts(y)), _PLOT_WIDTH, step=step)


def dots(title: str, dots: Sequence[Dot], slot: str, here: str, other: str) -> Drawing:
    """Draw how far a segment is from everyone else, feature by feature, in standard deviations."""
    labels = _labels([dot.label for dot in dots])
    rows = [
        {
            "label": label,
            "difference": dot.difference,
            "text": dot.text,
            "zero": 0,
            "colour": _COLOUR[slot],
            "says": f"{dot.label}: {dot.text}; {other}: {dot.other_text}; {signed(dot.difference)} standard deviations",
        }
        for dot, label in zip(dots, labels, strict=True)
    ]
    reach = 1.08 * max(1.0, *(abs(dot.difference) for dot in dots))
    return Drawing(
        title,
        _words(f"{dot.label} {dot.text} ({other} {dot.other_text})" for dot in dots),
        ("", here, other, "difference, standard deviations"),
        tuple((dot.label, dot.text, dot.other_text, signed(dot.difference)) for dot in dots),
        _filled(_dots(_step(labels)), rows, reach=reach),
    )


@cache
def _dots(step: int) -> dict[str, Any]:
    y = _beside(grid=True)
    scale = alt.Scale(domainMin=alt.ExprRef("-reach"), domainMax=alt.ExprRef("reach"), nice=False)
    axis = alt.Axis(tickCount=4, format="+.1~f", labelExpr="datum.value ? datum.label : '0'", grid=False)
    x = alt.X("difference:Q", scale=scale, title="difference in standard deviations", axis=axis)
    lines = alt.Chart(_ROWS).mark_rule(strokeWidth=2, opacity=0.6).encode(x, y, _HUE, x2="zero:Q")
    points = alt.Chart(_ROWS).mark_point(filled=True, size=90, opacity=1).encode(x, y, _HUE, _SAYS)
    return _kind(alt.layer(_zero(), lines, points, _texts(y)), _PLOT_WIDTH, step=step)


def spreads(title: str, values: Sequence[Spread], what: str, note: str) -> Drawing:
    """Draw values with their intervals, beside zero."""
    labels = _labels([value.label for value in values])
    rows = [
        {
            "label": label,
            "value": value.value,
            "low": value.low,
            "high": value.high,
            "text": value.text,
            "says": f"{value.label}: {value.whole}",
        }
        for value, label in zip(values, labels, strict=True)
    ]
    ends = [0.0, *(number for value in values for number in (value.low, value.high))]
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return Drawing(
        title,
        _words(f"{value.label} {value.whole}" for value in values),
        ("", what),
        tuple((value.label, value.whole) for value in values),
        _filled(_spreads(_step(labels), what), rows, bottom=min(ends) - margin, top=max(ends) + margin),
        note,
    )


@cache
def _spreads(step: int, what: str) -> dict[str, Any]:
    y = _beside(grid=True)
    scale = alt.Scale(domainMin=alt.ExprRef("bottom"), domainMax=alt.ExprRef("top"), nice=False)
    axis = alt.Axis(tickCount=3, grid=False, labelFlush=False, labelOverlap=True, labelSeparation=6)
    x = alt.X("value:Q", title=what, scale=scale, axis=axis)
    colour = _COLOUR["s0"]
    lines = alt.Chart(_ROWS).mark_rule(color=colour, strokeWidth=3, opacity=0.45)
    points = alt.Chart(_ROWS).mark_point(color=colour, filled=True, size=80, opacity=1).encode(x, y, _SAYS)
    lines = lines.encode(alt.X("low:Q", title=what), y, x2="high:Q")
    return _kind(alt.layer(_zero(), lines, points, _texts(y)), _PLOT_WIDTH, step=step)


def trend(title: str, points: Sequence[tuple[str, float | None, str]], slot: str) -> Drawing:
    """Draw a share over versions, the oldest first: the version's name, the share, and the same in words."""
    rows = [
        {"version": version, "share": share, "colour": _COLOUR[slot], "says": f"{version}: {text}"}
        for version, share, text in points
    ]
    top = max((share for _, share, _ in points if share is not None), default=1.0) or 1.0
    return Drawing(
        title,
        _words(f"{version} {text}" for version, _, text in points),
        ("version", "share"),
        tuple((version, text) for version, _, text in points),
        _filled(_trend(top < 0.1), rows, top=1.15 * top),
    )


@cache
def _trend(is_small: bool) -> dict[str, Any]:
    axis = alt.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=12, ticks=False)
    x = alt.X("version:O", sort=None, title=None, scale=alt.Scale(type="point", padding=0.2), axis=axis)
    scale = alt.Scale(domainMin=0, domainMax=alt.ExprRef("top"), nice=False)
    y = alt.Y("share:Q", title=None, scale=scale, axis=alt.Axis(format=".1~%" if is_small else ".0%", tickCount=3))
    line = alt.Chart(_ROWS).mark_line(strokeWidth=2).encode(x, y, _HUE)
    points = alt.Chart(_ROWS).mark_point(filled=True, size=36, opacity=1).encode(x, y, _HUE, _SAYS)
    return _kind(alt.layer(line, points), 290, 90)


def histogram(title: str, bins: Sequence[Bin], slot: str, of: str) -> Drawing:
    """Draw how many users have which probability, with a cross for a number that is not shown."""
    rows = [
        {
            "low": one.low,
            "high": one.high,
            "middle": (one.low + one.high) / 2,
            "zero": 0,
            "users": one.users or 0,
            "hidden": one.users is None,
            "colour": _COLOUR[slot],
            "says": f"{one.name()}: {one.text} users",
        }
        for one in bins
    ]
    return Drawing(
        title,
        _words(f"{one.name()}: {one.text}" for one in bins),
        (of, "users"),
        tuple((one.name(), one.text) for one in bins),
        _filled(_histogram(of), rows, bottom=bins[0].low, top=bins[-1].high),
        "×: a number that is not shown." if any(one.users is None for one in bins) else "",
    )


@cache
def _histogram(of: str) -> dict[str, Any]:
    scale = alt.Scale(domainMin=alt.ExprRef("bottom"), domainMax=alt.ExprRef("top"), nice=False)
    x = alt.X("low:Q", title=of, scale=scale, axis=alt.Axis(format=".0%", tickCount=6, grid=False))
    y = alt.Y("zero:Q", title="users", axis=alt.Axis(format=",.0~f", tickCount=4, tickMinStep=1))
    filled = alt.Chart(_ROWS).mark_rect(stroke=_PAPER, strokeWidth=1)
    crosses = alt.Chart(_ROWS).transform_filter("datum.hidden").mark_text(text="×", color=_INK, fontSize=14, dy=-8)
    boxes = filled.encode(x, y, _HUE, _SAYS, x2="high:Q", y2="users:Q")
    return _kind(alt.layer(boxes, crosses.encode(alt.X("middle:Q", title=of), y)), 280, 140)


def calibration(title: str, points: Sequence[tuple[float, Spread]], happened: str) -> Drawing:
    """Draw how often it happened against how likely it was said to be."""
    rows = [
        {
            "predicted": predicted,
            "actual": actual.value,
            "low": actual.low,
            "high": actual.high,
            "says": f"predicted {actual.label}, happened {actual.whole}",
        }
        for predicted, actual in points
    ]
    top = max(0.05, *(max(predicted, actual.high) for predicted, actual in points))
    return Drawing(
        title,
        _words(f"predicted {actual.label}, happened {actual.whole}" for _, actual in points),
        ("predicted", happened),
        tuple((actual.label, actual.whole) for _, actual in points),
        _filled(_calibration(happened), rows, top=min(1.05 * top, 1.0)),
        "On the dashed line it happens as often as predicted; lines through dots are 95 % intervals.",
    )


@cache
def _calibration(happened: str) -> dict[str, Any]:
    scale = alt.Scale(domainMin=0, domainMax=alt.ExprRef("top"), nice=False)
    axis = alt.Axis(format=".0%", tickCount=5)
    x = alt.X("predicted:Q", title="predicted", scale=scale, axis=axis)
    y = alt.Y("actual:Q", title=happened, scale=scale, axis=axis)
    colour = _COLOUR["s0"]
    perfect = alt.Chart(_once()).mark_rule(color=_PALE, strokeDash=[4, 3], strokeWidth=1.2)
    ends = {"x": alt.datum(0), "y": alt.datum(0), "x2": alt.datum(alt.expr("top")), "y2": alt.datum(alt.expr("top"))}
    lines = (
        alt.Chart(_ROWS)
        .mark_rule(color=colour, strokeWidth=3, opacity=0.4)
        .encode(x, alt.Y("low:Q", title=happened), y2="high:Q")
    )
    dots = alt.Chart(_ROWS).mark_point(color=colour, filled=True, size=60, opacity=1).encode(x, y, _SAYS)
    return _kind(alt.layer(perfect.encode(**ends), lines, dots), 290, 200)


def strip(title: str, cells: Sequence[Cell], slot: str, here: str, other: str) -> Drawing:
    """Draw shares by hour or weekday as a strip of heat, and one below of `other`, if it has a name."""
    rows = [
        {"at": cell.label, "who": who, "share": share or 0.0, "hidden": share is None, "colour": _COLOUR[slot],
         "says": f"{cell.label}, {who}: {text}"}
        for cell in cells
        for who, share, text in ((here, cell.share, cell.text), (other, cell.other, cell.other_text))
        if who
    ]  # fmt: skip
    top = max((share for cell in cells for share in (cell.share, cell.other) if share), default=1.0)
    return Drawing(
        title,
        _words(f"{one.label} {one.text}" + (f" ({other} {one.other_text})" if other else "") for one in cells),
        ("", here, other) if other else ("", here),
        tuple((one.label, one.text, *([one.other_text] if other else [])) for one in cells),
        _filled(_strip(), rows, top=top),
        "The stronger the colour, the more sessions begin then."
        + (" ×: a number that is not shown." if any(row["hidden"] for row in rows) else ""),
    )


@cache
def _strip() -> dict[str, Any]:
    axis = alt.Axis(labelAngle=0, ticks=False, domain=False, labelOverlap="greedy", grid=False)
    scale = alt.Scale(domainMin=0, domainMax=alt.ExprRef("top"), range=[0.06, 1], nice=False)
    x = alt.X("at:O", sort=None, title=None, axis=axis)
    y = alt.Y("who:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=6))
    heat = alt.Chart(_ROWS).mark_rect(stroke=_PAPER, strokeWidth=1)
    opacity = alt.FillOpacity("share:Q", scale=scale, legend=None)
    filled = heat.encode(x, y, alt.Fill("colour:N", scale=None), opacity, _SAYS)
    crosses = alt.Chart(_ROWS).transform_filter("datum.hidden").mark_text(text="×", color=_INK, fontSize=12)
    return _kind(alt.layer(filled, crosses.encode(x, y)), 280, step=_STEP)


def moves(title: str, moved: Sequence[Move], slot: str) -> Drawing:
    """Draw users who entered, to the right, and left, to the left, by reason."""
    labels = _labels([move.reason for move in moved])
    rows = [
        {"label": label, "users": sign * (users or 0), "text": text, "left": sign < 0, "colour": colour,
         "says": f"{move.reason}: {text} {how}"}
        for move, label in zip(moved, labels, strict=True)
        for sign, users, text, colour, how in (
            (1, move.entered, move.entered_text, _COLOUR[slot], "entered"),
            (-1, move.left, move.left_text, _OTHER, "left"),
        )
    ]  # fmt: skip
    reach = 1.6 * max((users for move in moved for users in (move.entered, move.left) if users), default=1)
    return Drawing(
        title,
        _words(f"{move.reason}: {move.entered_text} entered, {move.left_text} left" for move in moved),
        ("reason", "entered", "left"),
        tuple((move.reason, move.entered_text, move.left_text) for move in moved),
        _filled(_moves(_step(labels)), rows, reach=reach),
        "To the right: entered. To the left: left.",
    )


@cache
def _moves(step: int) -> dict[str, Any]:
    y = _beside()
    scale = alt.Scale(domainMin=alt.ExprRef("-reach"), domainMax=alt.ExprRef("reach"), nice=False)
    x = alt.X("users:Q", scale=scale, axis=None, stack=None)
    filled = alt.Chart(_ROWS).mark_bar(height=14).encode(x, y, _HUE, _SAYS)
    right = alt.Chart(_ROWS).transform_filter("!datum.left").mark_text(align="left", dx=5, color=_INK, fontSize=12)
    left = alt.Chart(_ROWS).transform_filter("datum.left").mark_text(align="right", dx=-5, color=_INK, fontSize=12)
    texts = [side.encode(x, y, text="text:N") for side in (right, left)]
    return _kind(alt.layer(filled, *texts, _zero()), 190, step=step)


def draw(drawings: Sequence[Drawing]) -> list[Markup]:
    """Return the SVG of each drawing. Without a network, and the same drawings give the same text."""
    return [_described(_svg(json.dumps(drawing.spec)), drawing, f"c{at}") for at, drawing in enumerate(drawings)]


def _described(svg: str, drawing: Drawing, name: str) -> Markup:
    """Put a title and the numbers in words into a drawing, for those who do not see it."""
    head = f'<svg role="img" aria-labelledby="{name}t" aria-describedby="{name}d"'
    texts = f'<title id="{name}t">{escape(drawing.title)}</title><desc id="{name}d">{escape(drawing.words)}</desc>'
    start = svg.index(">")
    return Markup(head + svg[len("<svg") : start] + ">" + texts + svg[start + 1 :])


_SPOKEN = re.compile(r'<path aria-label="([^"]*)"([^>]*)/>')
_NOT_NEEDED = re.compile(
    r'<path class="(?:background|foreground)"[^>]*/>| (?:aria-[a-z]+|role|class|pointer-events|version|font-family'
    r'|xmlns(?::xlink)?|stroke-miterlimit)="[^"]*"| font-size="12px"| (?:opacity|stroke-width)="1"'
    r'| transform="translate\(0,0\)"'
)
_UNSEEN = re.compile(r'<text[^>]* opacity="0">[^<]*</text>')
_EMPTY = re.compile(r"<g(?: [^>]*)?>\s*</g>")
_BARE = re.compile(r"<g>((?:(?!</?g[ >]).)*)</g>", re.DOTALL)
_PLACES = re.compile(r' (?:d|transform|[xy]2)="[^"]*"')
_LONG = re.compile(r"(\.\d)\d+")
_SIZE = re.compile(r'width="([\d.]+)" height="([\d.]+)" viewBox="[^"]*"')
_INKED = re.compile(rf'(<text[^>]*) fill="{_INK}"')  # as the page's style has texts
_STAND_IN = re.compile(r"#0a0[bc][0-9a-f]{2}")


@lru_cache(maxsize=DRAWN_MAX)  # a report is drawn with users and without
def _svg(spec: str) -> str:
    """Draw Vega's JSON, and keep what is seen: marks get tooltips, colours become the page's, and the rest goes."""
    svg: str = vl_convert.vega_to_svg(spec, allowed_base_urls=[])
    svg = _SPOKEN.sub(r"<path\2><title>\1</title></path>", svg)
    svg = _UNSEEN.sub("", _NOT_NEEDED.sub("", svg))
    for bare in (_EMPTY, _BARE):
        while (shorter := bare.sub(lambda found: found[1] if found.re is _BARE else "", svg)) != svg:
            svg = shorter
    svg = _PLACES.sub(lambda found: _LONG.sub(r"\1", found[0]), svg)
    svg = _SIZE.sub(lambda found: f'viewBox="0 0 {max(WIDTH, int(float(found[1])))} {found[2]}"', svg, count=1)
    svg = _INKED.sub(r"\1", svg)
    return _STAND_IN.sub(lambda found: f"var(--{_STAND_INS[found[0]]})", svg)


def _kind(chart: Any, width: int, height: int | None = None, step: int | None = None) -> dict[str, Any]:
    """Return a kind of chart as Vega has it, yet without its rows and numbers."""
    tall = alt.Step(step) if step else height
    sized = chart.properties(width=width, height=tall, padding=4, background="transparent")
    styled = (
        sized.configure(font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=_INK,
            titleColor=_PALE,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            gridColor=_GRID,
            domainColor=_GRID,
            tickColor=_GRID,
            labelLimit=400,
            titleLimit=400,
        )
    )
    params = [{"name": name, "value": 1.0} for name in _NUMBERS]
    lite = styled.to_dict()
    datasets = {**lite.get("datasets", {}), "rows": []}
    spec: dict[str, Any] = vl_convert.vegalite_to_vega({**lite, "datasets": datasets, "params": params})
    return spec


def _filled(kind: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **numbers: float) -> dict[str, Any]:
    data = [{**one, "values": list(rows)} if one["name"] == "rows" else one for one in kind["data"]]
    signals = [{**one, "value": numbers[one["name"]]} if one["name"] in numbers else one for one in kind["signals"]]
    return {**kind, "data": data, "signals": signals}


def _once() -> alt.InlineData:
    """Return the data of a mark that is there once."""
    return alt.InlineData(values=[{}])


def _zero() -> Any:
    return alt.Chart(_once()).mark_rule(color=_PALE, strokeDash=[3, 3]).encode(x=alt.datum(0))


def _texts(y: alt.Y) -> Any:
    """Write the values in a column at the right edge."""
    return alt.Chart(_ROWS).mark_text(align="left", color=_INK, fontSize=12, x="width", dx=10).encode(y, text="text:N")


def _beside(grid: bool = False) -> alt.Y:
    """Write the labels in a column at the left edge, those of two lines in the middle of their row."""
    is_two_lines = r"isString(datum.value) && indexof(datum.value, '\n') > 0"
    axis = alt.Axis(
        ticks=False,
        domain=False,
        grid=grid,
        labelPadding=8,
        labelExpr=r"split(datum.label, '\n')",
        labelLineHeight=13,
        labelOffset={"condition": {"test": is_two_lines, "value": -6.5}, "value": 0},
        minExtent=_LABEL_WIDTH,
        maxExtent=_LABEL_WIDTH,
    )
    return alt.Y("label:N", sort=None, title=None, axis=axis)


def _labels(texts: Sequence[str]) -> list[str]:
    """Break labels into lines, and keep them apart: bars with one label would lie on each other."""
    found: list[str] = []
    for text in texts:
        lines = wrap(" ".join(text.split()), LETTERS_MAX, max_lines=LINES_MAX, placeholder="…") or ["–"]
        label = "\n".join(lines)
        while label in found:
            label += "\N{ZERO WIDTH SPACE}"
        found.append(label)
    return found


def _step(labels: Sequence[str]) -> int:
    return _STEP_OF_TWO_LINES if any("\n" in label for label in labels) else _STEP


def _words(parts: Iterable[str]) -> str:
    return "; ".join(parts) + "."
