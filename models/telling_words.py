"""What segments tell about the future, in words and as rows of a table to read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from features.outcomes import LABEL
from features.snapshots import title
from models.telling import RIVALS

UNKNOWN = (
    "what they say about the future is not known: that takes two past snapshots, one after the other, whose labels are "
    "complete, with enough users who differ in what they did next"
)
METRICS = {"auc": "AUC", "r2": "R²", "gini": "Gini"}
VALUES = {"revenue": "revenue", "event_count": "events"}
AGAINST = "rfm_kmeans"
HEADINGS = ("outcome", "figure", "these segments", *RIVALS.values(), f"ahead of {RIVALS[AGAINST]}")


class Told(NamedTuple):
    """One figure of one outcome: of the segments, of each rival by name, and how far ahead of k-means on RFM it is."""

    outcome: str
    metric: str
    segments: float
    rivals: dict[str, float]
    ahead: Mapping[str, float]

    def written(self) -> list[str]:
        """Return the row as texts: the outcome, the metric, the segments' figure, the rivals', and how far ahead."""
        figures = [f"{value:.3f}".replace("-", "\N{MINUS SIGN}") for value in (self.segments, *self.rivals.values())]
        return [self.outcome, self.metric, *figures, _ahead(self.ahead)]


def table(tells: Mapping[str, Any]) -> list[Told]:
    """Return what segments tell, a row for each outcome and metric."""
    return [
        Told(
            _outcome(name),
            METRICS[metric],
            ours["value"],
            {rival: told["metrics"][rival][metric]["value"] for rival in RIVALS},
            told["gains"][AGAINST][metric],
        )
        for name, told in tells["outcomes"].items()
        for metric, ours in told["metrics"]["segments"].items()
    ]


def days(tells: Mapping[str, Any]) -> str:
    """Say how many days were told of.

    >>> days({"outcomes": {"label_churn": {"horizon_days": 28.0}, "label_conversion": {"horizon_days": 7.0}}})
    '7 to 28 days'
    >>> days({"outcomes": {"label_churn": {"horizon_days": 1.0}}})
    'day'
    """
    horizons = sorted({told["horizon_days"] for told in tells["outcomes"].values()})
    if horizons == [1]:
        return "day"
    return " to ".join(f"{horizon:g}" for horizon in dict.fromkeys((horizons[0], horizons[-1]))) + " days"


def headline(tells: Mapping[str, Any] | None, day: str) -> str:
    """Say in two sentences how much segments tell of what users were worth after a `day`, and how that was measured."""
    if tells is None:
        return f"{UNKNOWN[0].upper()}{UNKNOWN[1:]}."
    *_, (name, told) = tells["outcomes"].items()
    ours, theirs = (told["metrics"][way]["r2"]["value"] for way in ("segments", AGAINST))
    what, horizon = _outcome(name), days({"outcomes": {name: told}})
    compared = f"{RIVALS[AGAINST]}, {_percent(theirs)}: {_compared(told['gains'][AGAINST]['r2'])}"
    return (
        f"They explain {_percent(ours)} of the differences in {what} over the next {horizon}; as many segments by "
        f"{compared}. This was measured with segments found in the same way on {day}."
    )


def _compared(gain: Mapping[str, float]) -> str:
    """Say by how many points of R² segments are ahead or behind, if that is sure."""
    if gain["low"] <= 0 <= gain["high"]:
        return "no clear difference"
    value, low, high = (100 * abs(gain[one]) for one in ("value", "low", "high"))
    more = "more" if gain["value"] > 0 else "less"
    return f"{value:.1f} points {more} ({min(low, high):.1f} to {max(low, high):.1f})"


def _outcome(name: str) -> str:
    if name in VALUES:
        return VALUES[name]
    said = title(name.removeprefix(LABEL))
    return f"label {said}" if said in VALUES.values() else said


def _ahead(gain: Mapping[str, float]) -> str:
    value, low, high = (f"{gain[one] + 0.0:+.3f}".replace("-", "\N{MINUS SIGN}") for one in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _percent(share: float) -> str:
    return "nothing" if share < 0.005 else f"{100 * share:.0f} %"
