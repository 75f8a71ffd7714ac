"""What is typical of a segment, and what to call it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.snapshots import title

DIFFERENCE_MIN = 0.5  # standard deviations: a medium effect (Cohen 1988); less does not make a name

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Trait:
    """What is typical of a segment: a feature's value there and over all users.

    `difference` is the mean among its users less the mean among everyone else, in standard deviations of the
    prepared feature (Cohen's d with the overall deviation). `statistic` says what `value` and `overall` are:
    the median, or the mean where the medians are equal, as with rare events.
    """

    feature: str
    difference: float
    statistic: str
    value: float
    overall: float


def quantity(feature: str) -> str:
    """Return a feature's name without its window: session_count for session_count_28d."""
    return re.sub(r"_\d+d$", "", feature)


def traits(features: pd.DataFrame, matrix: Matrix, member: NDArray[np.bool_]) -> list[Trait]:
    """Return what tells members from everyone else, the strongest first; `matrix` holds the prepared features."""
    differences = pd.Series(matrix[member].mean(axis=0) - matrix[~member].mean(axis=0), features.columns)
    found = []
    for feature in differences.abs().sort_values(ascending=False, kind="stable").index:
        inside, everyone = features.loc[member, feature], features[feature]
        statistic = "mean" if inside.median() == everyone.median() else "median"
        value, overall = inside.agg(statistic), everyone.agg(statistic)
        if not np.isnan(value):
            found.append(Trait(feature, float(differences[feature]), statistic, float(value), float(overall)))
    return found


class Phrases(NamedTuple):
    """How a marketer says that a quantity is high or low: as the name's head, and as what follows a comma."""

    topic: str
    high: str
    high_after: str
    low: str
    low_after: str


# A name takes at most one phrase of a topic: "Frequent buyers, big spenders" would say the same thing twice.
PHRASES = {
    "recency_days": Phrases("recency", "Lapsed visitors", "long gone", "Recent visitors", "here lately"),
    "tenure_days": Phrases("tenure", "Long-standing visitors", "known for long", "New visitors", "new here"),
    "session_count": Phrases("activity", "Frequent visitors", "often here", "Rare visitors", "seldom here"),
    "active_day_count": Phrases("activity", "Regulars", "here on many days", "Rare visitors", "here on few days"),
    "session_trend": Phrases("trend", "Warming visitors", "coming more often", "Cooling visitors", "coming less often"),
    "return_absence_days": Phrases(
        "return", "Returned visitors", "back after a long time", "Steady visitors", "never away for long"
    ),
    "duration_mean_s": Phrases("depth", "Lingering visitors", "staying long", "Hasty visitors", "soon off again"),
    "duration_median_s": Phrases("depth", "Lingering visitors", "staying long", "Hasty visitors", "soon off again"),
    "pages_per_session": Phrases("depth", "Deep browsers", "seeing many pages", "Skimmers", "seeing few pages"),
    "bounce_rate": Phrases("depth", "Bouncers", "often bouncing", "Attentive visitors", "seldom bouncing"),
    "engaged_rate": Phrases("depth", "Engaged visitors", "engaged", "Hasty visitors", "barely engaged"),
    "item_count": Phrases("range", "Catalogue browsers", "seeing many items", "Few-item browsers", "seeing few items"),
    "category_count": Phrases("range", "All-round browsers", "in many categories", "Specialists", "in few categories"),
    "search_count": Phrases("search", "Researchers", "searching a lot", "Non-searchers", "not searching"),
    "support_visit_count": Phrases(
        "support", "Support seekers", "seeking support", "Self-reliant visitors", "no support"
    ),
    "support_session_share": Phrases(
        "support", "Support seekers", "seeking support", "Self-reliant visitors", "no support"
    ),
    "support_recency_days": Phrases(
        "support", "Past support seekers", "support long ago", "Recent support seekers", "support lately"
    ),
    "campaign_session_count": Phrases(
        "campaign", "Campaign visitors", "coming from campaigns", "Visitors without campaigns", "not from campaigns"
    ),
    "cart_count": Phrases("cart", "Cart fillers", "filling carts", "Browsers without a cart", "no carts"),
    "cart_abandonment_rate": Phrases("cart", "Cart abandoners", "leaving carts", "Cart finishers", "finishing carts"),
    "cart_abandoned_recency_days": Phrases(
        "cart", "Past cart abandoners", "cart left long ago", "Recent cart abandoners", "cart left lately"
    ),
    "purchase_count": Phrases("buying", "Frequent buyers", "buying often", "Non-buyers", "not buying"),
    "purchase_recency_days": Phrases("buying", "Past buyers", "bought long ago", "Recent buyers", "bought lately"),
    "revenue_total": Phrases("buying", "Big spenders", "spending a lot", "Small spenders", "spending little"),
    "revenue_per_purchase": Phrases(
        "basket", "Big-basket buyers", "big baskets", "Small-basket buyers", "small baskets"
    ),
    "conversion_rate": Phrases(
        "buying", "Determined buyers", "buying on most visits", "Window-shoppers", "just looking"
    ),
    "night_session_share": Phrases("hours", "Night visitors", "at night", "Day visitors", "never at night"),
    "morning_session_share": Phrases(
        "hours", "Morning visitors", "in the morning", "Later-day visitors", "not in the morning"
    ),
    "afternoon_session_share": Phrases(
        "hours", "Afternoon visitors", "in the afternoon", "Off-afternoon visitors", "not in the afternoon"
    ),
    "evening_session_share": Phrases(
        "hours", "Evening visitors", "in the evening", "Daytime visitors", "not in the evening"
    ),
    "weekend_session_share": Phrases("days", "Weekend visitors", "at the weekend", "Weekday visitors", "on weekdays"),
}


def _phrases(trait: Trait) -> tuple[str, str, str]:
    """Return a trait's topic, and how to say it as a name's head and after a comma."""
    name = quantity(trait.feature)
    if trait.feature == "session_count" and trait.difference < 0 and trait.value <= 1:
        return "activity", "One-time visitors", "here only once"
    if name not in PHRASES:
        words = f"{'high' if trait.difference > 0 else 'low'} {title(trait.feature)}"
        return name, f"Users with {words}", words
    topic, high, high_after, low, low_after = PHRASES[name]
    return (topic, high, high_after) if trait.difference > 0 else (topic, low, low_after)


def names(typical: Sequence[Sequence[Trait]], sizes: NDArray[np.int_]) -> list[str]:
    """Name the segments by their strongest traits, the largest first; one more tells equal names apart."""
    named: dict[int, str] = {}
    for i in np.argsort(-sizes, kind="stable"):
        phrases: dict[str, tuple[bool, str, str]] = {}
        for trait in sorted(typical[i], key=_telling, reverse=True):
            topic, head, after = _phrases(trait)
            phrases.setdefault(topic, (abs(trait.difference) >= DIFFERENCE_MIN, head, after))
        marked = [(head, after) for strong, head, after in phrases.values() if strong]
        weak = [after for strong, _, after in phrases.values() if not strong]
        name = ", ".join([marked[0][0], *(after for _, after in marked[1:2])]) if marked else "Average users"
        more = [after for _, after in marked[2:]] + weak + [f"group {i + 1}"]
        while name in named.values():
            name = f"{name}, {more.pop(0)}"
        named[int(i)] = name
    return [named[i] for i in range(len(sizes))]


def _telling(trait: Trait) -> float:
    """Return a trait's weight in a name: what users do tells more than what they leave, but for their coming."""
    comes = _phrases(trait)[0] in {"recency", "tenure", "activity", "trend"}
    return abs(trait.difference) * (1 if comes or trait.difference > 0 else 0.5)
