"""RFM: grades of recency, frequency and money, by lines that a training draws and that stay until the next.

A grade is from 1 to 3 or 1 to 5, and higher is better for all three. Where the source has purchases, they are those of
customers, as Fader and Hardie count occasions: days since the last purchase, purchases, and revenue; who never bought
has no grade. Otherwise they are those of visits: days since the last session, sessions, and active days, which also
stand for money where nothing was spent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.conditions import And, Comparison, Condition, ConditionError, Kind, Not, Or, Value, comparisons, holds

Floats = NDArray[np.float64]
Told = tuple[str, str, str, str, tuple[str, ...]]
Bounds = tuple[float | None, ...]
"""From which value on each grade above the first is reached, ascending by grade; None: nobody reached it."""

RECENCY, FREQUENCY, MONEY = "rfm_recency_grade", "rfm_frequency_grade", "rfm_money_grade"
TOP = "rfm_top_percent"
WORDS: dict[str, Kind] = dict.fromkeys((RECENCY, FREQUENCY, MONEY, TOP), "number")
"""What conditions may speak of beside features: grades from 1 to 5, and the least of SHARES that a customer is in."""
SHARES = (20, 5, 1)
"""Percent of the customers, by revenue."""

# The grid of recency and frequency that is in common use; see docs/named-segments.md.
GROUPS = (
    ("rfm_champions", "Champions", 5, 5, 4, 5),
    ("rfm_loyal", "Loyal", 3, 4, 4, 5),
    ("rfm_potential_loyalists", "Potential loyalists", 4, 5, 2, 3),
    ("rfm_new", "New by RFM", 5, 5, 1, 1),
    ("rfm_promising", "Promising", 4, 4, 1, 1),
    ("rfm_need_attention", "Need attention", 3, 3, 3, 3),
    ("rfm_about_to_sleep", "About to sleep", 3, 3, 1, 2),
    ("rfm_cannot_lose", "Cannot lose them", 1, 2, 5, 5),
    ("rfm_at_risk", "At risk by RFM", 1, 2, 3, 4),
    ("rfm_hibernating", "Hibernating", 1, 2, 1, 2),
)
"""Name, title, lowest and highest grade of recency, and of frequency."""


def _grades(low: int, high: int) -> tuple[str, str]:
    """Return how a condition and a sentence say grades."""
    if low == high:
        return f"= {low}", str(low)
    return f"between {low} and {high}", f"{low} or {high}"


def _told(name: str, title: str, *grades: int) -> Told:
    (recency, r), (frequency, f) = _grades(*grades[:2]), _grades(*grades[2:])
    sentence = f"have the grade {r} for recency and {f} for frequency, of 5"
    return name, title, sentence, f"{RECENCY} {recency} and {FREQUENCY} {frequency}", ()


DEFINED: tuple[Told, ...] = (
    *(_told(*group) for group in GROUPS),
    *(
        (
            f"top_{percent}_percent",
            f"Top {percent} % by revenue",
            f"are in the {percent} % of customers who have spent most",
            f"{TOP} <= {percent}",
            ("revenue_total",),
        )
        for percent in reversed(SHARES)
    ),
)
"""What rules are made of: name, title, sentence, condition, needs."""


@dataclass(frozen=True)
class Scale:
    """Say which feature is graded, and the bounds of the grades; of a `falling` one, less is better."""

    feature: str
    thirds: Bounds
    fifths: Bounds
    falling: bool = False

    def bounds(self, grades: int) -> Bounds:
        """Return the bounds for so many grades."""
        return self.thirds if grades == 3 else self.fifths


@dataclass(frozen=True)
class Lines:
    """Hold the scales of recency, frequency and money, and from which revenue on customers are in each of SHARES."""

    recency: Scale
    frequency: Scale
    money: Scale
    top: Bounds = (None, None, None)

    @property
    def scales(self) -> tuple[Scale, Scale, Scale]:
        """List the scales in the order of their letters."""
        return self.recency, self.frequency, self.money

    def to_dict(self) -> dict[str, Any]:
        """Return the lines, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "Lines":
        """Return the lines that `to_dict` told."""
        recency, frequency, money = (
            Scale(one["feature"], tuple(one["thirds"]), tuple(one["fifths"]), one["falling"])
            for one in (told["recency"], told["frequency"], told["money"])
        )
        return cls(recency, frequency, money, tuple(told["top"]))


def lines_of(metadata: Mapping[str, Any]) -> Lines | None:
    """Return the lines that a model or a version tells under "rfm"; None where it had none, or is of before them."""
    return Lines.from_dict(metadata["rfm"]) if metadata.get("rfm") else None


def fit(snapshot: pd.DataFrame) -> Lines | None:
    """Draw the lines for the users of a snapshot; None where nobody can be graded.

    Equal values have the same grade. From the lowest on, each grade takes whole values until it is as near as it gets
    to its share of the users who are left, at least one: without ties, these are the quantiles. Where few values are
    left, nobody reaches the highest grades.
    """
    features = {"purchase_recency_days", "purchase_count", "revenue_total", "recency_days", "session_count"}
    if not features | {"active_day_count"} <= set(snapshot):
        return None
    recency, frequency, users = "recency_days", "session_count", snapshot
    if snapshot["purchase_count"].gt(0).any():
        recency, frequency = "purchase_recency_days", "purchase_count"
        users = snapshot[snapshot[recency].notna()]
    if users.empty:
        return None
    revenue = users["revenue_total"].fillna(0)
    has_money = recency == "purchase_recency_days" and revenue.gt(0).any()
    money = "revenue_total" if has_money else "active_day_count"
    top = tuple(_top(revenue.to_numpy(dtype=np.float64), share / 100) if has_money else None for share in SHARES)
    return Lines(_scale(users, recency, falling=True), _scale(users, frequency), _scale(users, money), top)


def _scale(users: pd.DataFrame, feature: str, *, falling: bool = False) -> Scale:
    sign = -1.0 if falling else 1.0
    values = sign * users[feature].dropna().to_numpy(dtype=np.float64)
    thirds, fifths = (
        tuple(None if one is None else sign * one for one in _divide(values, grades)) for grades in (3, 5)
    )
    return Scale(feature, thirds, fifths, falling)


def _divide(values: Floats, grades: int) -> Bounds:
    """Return the least value of each grade above the first."""
    distinct, counts = np.unique(values, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    place = 0
    bounds: list[float | None] = []
    for left in range(grades, 1, -1):
        if place < len(distinct):
            wanted = below[place] + (below[-1] - below[place]) / left
            place += 1 + int(np.abs(below[place + 1 :] - wanted).argmin())
        bounds.append(float(distinct[place]) if place < len(distinct) else None)
    return tuple(bounds)


def _top(revenue: Floats, share: float) -> float | None:
    """Return from which revenue on users are as near as it gets to a share of all; None where they had to be none."""
    distinct, counts = np.unique(revenue, return_counts=True)
    reached = np.append(np.cumsum(counts[::-1])[::-1][distinct > 0], 0)
    best = int(np.abs(reached - share * len(revenue)).argmin())
    return float(distinct[distinct > 0][best]) if reached[best] else None


def grade(lines: Lines, snapshot: pd.DataFrame) -> pd.DataFrame:
    """Return rfm_3 and rfm_5 of the users of a snapshot, such as "3-1-2"; null where one of the three is unknown."""
    values = [snapshot[scale.feature].to_numpy(dtype=np.float64) for scale in lines.scales]
    known = np.logical_and.reduce([~np.isnan(value) for value in values])
    columns = {}
    for grades in (3, 5):
        code = np.zeros(len(snapshot), dtype=np.intp)
        for scale, value in zip(lines.scales, values, strict=True):
            code = code * grades + _grade(value, scale.bounds(grades), falling=scale.falling)
        numbers = range(1, grades + 1)
        texts = np.array([f"{r}-{f}-{m}" for r in numbers for f in numbers for m in numbers], dtype=object)
        columns[f"rfm_{grades}"] = pd.Series(texts[np.where(known, code, 0)], snapshot.index, "str").where(known)
    return pd.DataFrame(columns)


def _grade(values: Floats, bounds: Bounds, *, falling: bool) -> NDArray[np.intp]:
    """Return how many bounds each value reaches."""
    sign = -1.0 if falling else 1.0
    reached = [np.inf if bound is None else sign * bound for bound in bounds]
    return np.searchsorted(reached, sign * values, side="right")


# --- conditions ---


def check(condition: Condition) -> None:
    """Raise ConditionError where a grade, or what a customer is in, is not compared with numbers."""
    for one in comparisons(condition):
        names = {one.feature, *(getattr(value, "name", "") for value in one.values)} & WORDS.keys()
        if names and not all(isinstance(value, float) for value in one.values):
            raise ConditionError(one.column, f"{sorted(names)[0]} is compared with numbers only")


def is_about(condition: Condition) -> bool:
    """Tell whether a condition speaks of grades, or of the share that a customer is in."""
    return any(one.feature in WORDS for one in comparisons(condition))


def resolve(condition: Condition, lines: Lines) -> Condition:
    """Return a condition with comparisons of features in place of those of grades; it is false of who has no grade."""
    match condition:
        case Comparison(feature=name) if name == TOP:
            return _reaching(condition, Scale("revenue_total", (), lines.top), [math.nan, *SHARES], lines)
        case Comparison(feature=name) if name in WORDS:
            scale = dict(zip((RECENCY, FREQUENCY, MONEY), lines.scales, strict=True))[name]
            return _reaching(condition, scale, [1, 2, 3, 4, 5], lines)
        case Comparison():
            return condition
        case Not(inner):
            return Not(resolve(inner, lines))
        case And(parts):
            return And(tuple(resolve(part, lines) for part in parts))
        case Or(parts):
            return Or(tuple(resolve(part, lines) for part in parts))


def thresholds(condition: Condition, lines: Lines) -> dict[str, float | None]:
    """Return the lines that a condition speaks of, by feature and grade; null where nobody reached one."""
    told: dict[str, float | None] = {}
    for asked in comparisons(condition):
        if asked.feature == TOP:
            tops = zip(SHARES, lines.top, strict=True)
            told |= {f"revenue_total top {share} %": one for share, one in tops if share in asked.values}
        elif asked.feature in WORDS:
            scale = dict(zip((RECENCY, FREQUENCY, MONEY), lines.scales, strict=True))[asked.feature]
            told |= {f"{scale.feature} grade {number}": one for number, one in enumerate(scale.fifths, start=2)}
    return told


def _reaching(asked: Comparison, scale: Scale, names: Sequence[float], lines: Lines) -> Condition:
    """Say by a feature what is asked of what its values are called, from the least reached on; NaN is null."""
    known = Comparison(lines.recency.feature, "is not null")
    column = pd.Series([*names, math.nan], dtype="float64")
    *is_asked, is_null_asked = holds(asked, pd.DataFrame({asked.feature: column}))
    edges = [None, *scale.fifths, None]
    low, high = ("<=", ">") if scale.falling else (">=", "<")
    parts: list[Condition] = []
    for place, is_met in enumerate(is_asked):
        if not is_met or (place and edges[place] is None):
            continue
        if parts and is_asked[place - 1]:
            parts.pop()
        else:
            start = place
        within = [(low, edges[start]), (high, edges[place + 1])]
        limits = [_than(scale.feature, operator, bound) for operator, bound in within if bound is not None]
        parts.append(And((known, *limits)) if limits else known)
    if is_null_asked:
        parts.append(Not(known))
    if not parts:
        return And((known, Not(known)))
    return Or(tuple(parts)) if parts[1:] else parts[0]


def _than(feature: str, operator: str, bound: Value) -> Comparison:
    return Comparison(feature, operator, (bound,))
