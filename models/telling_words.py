"""What segments tell about the future, in words and as rows of a table to read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from features.outcomes import LABEL
from features.snapshots import title
from models.telling import RIVALS

UNKNOWN = (
    "what they say about the future is not known yet: that takes two past snapshots whose labels are complete, one "
    "after the other"
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
    """
    horizons = sorted({told["horizon_days"] for told in tells["outcomes"].values()})
    return " to ".join(f"{horizon:g}" for horizon in dict.fromkeys((horizons[0], horizons[-1]))) + " days"


def headline(tells: Mapping[str, Any] | None, day: str) -> str:
    """Say in a sentence how much the segments would have told of what users were worth after a `day`."""
    if tells is None:
        return UNKNOWN
    *_, (name, told) = tells["outcomes"].items()
    ours, theirs = (told["metrics"][way]["r2"]["value"] for way in ("segments", AGAINST))
    return (
        f"found in the same way on {day}, they would have told {_percent(ours)} of the differences in {_outcome(name)} "
        f"over the next {told['horizon_days']:g} days; as many segments by {RIVALS[AGAINST]}, {_percent(theirs)}. "
        f"R² is {_ahead(told['gains'][AGAINST]['r2'])} ahead"
    )


def _outcome(name: str) -> str:
    return VALUES.get(name) or title(name.removeprefix(LABEL))


def _ahead(gain: Mapping[str, float]) -> str:
    value, low, high = (f"{gain[one]:+.3f}".replace("-", "\N{MINUS SIGN}") for one in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "\N{MINUS SIGN}")
