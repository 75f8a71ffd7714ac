"""How good probabilities are: metrics with 95 % intervals, on rows that the model has not seen.

Intervals are percentiles of a bootstrap that draws users, not rows (Efron 1979; Field and Welsh 2007), since the rows
of a user are alike. The same draws serve all models, so that differences are paired.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import logit

from features.sources import Settings
from models.label_card import wilson

Probabilities = NDArray[np.float64]

DRAWS = 400
SHARES = (0.01, 0.05, 0.1, 0.2)
BINS = 10
MOST_SURE = 1e-15
NEWTON_STEPS = 25
TOP_USERS = (100, 500, 1_000, 5_000, 10_000)


class CalibrationSettings(Settings):
    """Say how far probabilities may be off on the test snapshot; if they are further, only ranks are published."""

    ece_max: float = Field(default=0.05, gt=0, le=1)
    slope_min: float = Field(default=0.7, ge=0, le=100)
    slope_max: float = Field(default=1.4, gt=0, le=100)


@dataclass(frozen=True)
class Estimate:
    """Hold a figure and its 95 % interval; NaN where it has no meaning for these rows."""

    value: float
    low: float
    high: float

    @property
    def is_positive(self) -> bool:
        """Tell whether the whole interval is above 0."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Tell whether the whole interval is below 0."""
        return self.high < 0


@dataclass(frozen=True)
class Bootstrap:
    """Draw users with replacement, the same ones each time it is gone through: how often each row was drawn."""

    users: pd.Series
    seed: int = 0
    draws: int = DRAWS

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        codes, distinct = pd.factorize(self.users)
        count = len(distinct)
        random = np.random.default_rng(self.seed)
        for _ in range(self.draws):
            yield np.bincount(random.integers(0, count, count), minlength=count)[codes]


def evaluate(labels: pd.Series, probabilities: Probabilities, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Measure probabilities against what happened; the labels (bool) must hold both classes.

    Returns base_rate (share of true labels); auc (area under the ROC curve); average_precision; log_loss (nats); brier;
    precision_Npct and lift_Npct among the N % of rows with the highest probability, where rows with equal probability
    count in equal parts; ece (expected calibration error over ten groups of equally many rows); and calibration_slope
    (1: as sure as it should be; below 1: too sure; Cox 1958).
    """
    return _estimate(_Ranked(labels.to_numpy(dtype=bool), probabilities).measure, len(labels), bootstrap)


def compare(
    labels: pd.Series, ours: Probabilities, theirs: Probabilities, bootstrap: Bootstrap, confidence: float = 0.95
) -> Estimate:
    """Return by how much our log loss is below theirs on the same rows, paired."""
    gain = losses(labels, theirs) - losses(labels, ours)

    def measure(weights: NDArray[Any]) -> dict[str, float]:
        return {"gain": float(np.average(gain, weights=weights))} if weights.any() else {}

    return _estimate(measure, len(labels), bootstrap, confidence)["gain"]


def losses(labels: pd.Series | NDArray[np.bool_], probabilities: Probabilities) -> NDArray[np.float64]:
    """Return the log loss (nats) of each row."""
    sure = np.clip(probabilities, MOST_SURE, 1 - MOST_SURE)
    return -np.log(np.where(np.asarray(labels, dtype=bool), sure, 1 - sure))


def top_users(labels: pd.Series, probabilities: Probabilities, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Count, of the users with the highest probability, those whom it happened to though nobody intervened.

    Returns for each number of users that there are: users, happened (with low and high), and at_random: of as many
    users taken at random.
    """
    ranked = _Ranked(labels.to_numpy(dtype=bool), probabilities)
    numbers = [number for number in TOP_USERS if number < len(labels)]

    def measure(weights: NDArray[Any]) -> dict[str, float]:
        positives = (weights * ranked.actual).sum() * len(labels) / weights.sum()
        if not positives:
            return dict.fromkeys(map(str, numbers), 0.0)
        approached, found = ranked.gains(weights)
        shares = np.interp(np.array(numbers) / len(labels), approached, found)
        return {str(number): float(share * positives) for number, share in zip(numbers, shares, strict=True)}

    happened = _estimate(measure, len(labels), bootstrap)
    return [
        {
            "users": number,
            "happened": round(happened[str(number)].value),
            "low": round(happened[str(number)].low),
            "high": round(happened[str(number)].high),
            "at_random": round(number * float(ranked.actual.mean())),
        }
        for number in numbers
    ]


def gains(labels: pd.Series, probabilities: Probabilities) -> tuple[Probabilities, Probabilities]:
    """Return the cumulative shares of rows and of positives, by falling probability; ties are one step."""
    return _Ranked(labels.to_numpy(dtype=bool), probabilities).gains(np.ones(len(labels)))


def calibration_bins(labels: pd.Series, probabilities: Probabilities, each_min: int = 10) -> list[dict[str, Any]]:
    """Compare predictions with what happened in groups of equally many rows, by rising probability.

    There are ten groups, or the most of which each has `each_min` rows of both classes; none where all rows together do
    not. Rows with equal probability are in one group. Returns for each the mean prediction, how often it happened with
    its interval (Wilson 1927), and how many rows: predicted, happened, low, high and rows.
    """
    actual = labels.to_numpy(dtype=bool)
    for count in range(BINS, 0, -1):
        edges = np.unique(np.quantile(probabilities, np.arange(1, count) / count))
        codes = np.searchsorted(edges, probabilities, side="left")
        rows = np.bincount(codes, minlength=len(edges) + 1)
        positives = np.bincount(codes, actual, minlength=len(edges) + 1)
        if (np.minimum(positives, rows - positives)[rows > 0] < each_min).any():
            continue
        means = np.bincount(codes, probabilities, minlength=len(edges) + 1) / np.maximum(rows, 1)
        rates = {i: wilson(int(positives[i]), int(rows[i])) for i in np.flatnonzero(rows)}
        return [
            {
                "predicted": float(means[i]),
                "happened": rate.share,
                "low": rate.low,
                "high": rate.high,
                "rows": int(rows[i]),
            }
            for i, rate in rates.items()
        ]
    return []


def _estimate(
    measure: Callable[[NDArray[Any]], dict[str, float]],
    row_count: int,
    bootstrap: Bootstrap,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Measure all rows once, for the figures, and each draw, for their intervals."""
    values = measure(np.ones(row_count))
    drawn = [found for weights in bootstrap if (found := measure(weights))]
    intervals = {name: _interval([found[name] for found in drawn], confidence) for name in values}
    return {name: Estimate(float(value), *intervals[name]) for name, value in values.items()}


def _interval(values: list[float], confidence: float) -> tuple[float, float]:
    known = np.array(values)[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


class _Ranked:
    """Rows by falling probability, so that a draw is measured by running sums."""

    def __init__(self, actual: NDArray[np.bool_], probabilities: Probabilities) -> None:
        order = np.argsort(-probabilities, kind="stable")
        self.actual = actual
        self._order, self._sorted = order, actual[order].astype(np.float64)
        ranked = probabilities[order]
        self._steps = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        self._probabilities = probabilities
        self._losses = losses(actual, probabilities)
        self._squares = (probabilities - actual) ** 2
        self._log_odds = logit(np.clip(probabilities, MOST_SURE, 1 - MOST_SURE))
        # Of equal probabilities none is in another group than the next.
        ranks = np.searchsorted(ranked[::-1], probabilities, side="left")
        self._bins = np.minimum(ranks * BINS // len(actual), BINS - 1)

    def gains(self, weights: NDArray[Any]) -> tuple[Probabilities, Probabilities]:
        """Return the cumulative shares of drawn rows and of positives, from 0 to 1; ties are one step."""
        rows, positives = self._by_step(weights)
        return (np.r_[0.0, np.cumsum(sums) / sums.sum()] for sums in (rows, positives))  # type: ignore[return-value]

    def measure(self, weights: NDArray[Any]) -> dict[str, float]:
        """Measure a draw; empty if it holds one class only."""
        rows, positives = self._by_step(weights)
        row_count, positive_count = rows.sum(), positives.sum()
        if not 0 < positive_count < row_count:
            return {}
        negatives = rows - positives
        found = np.cumsum(positives)
        lower = negatives.sum() - np.cumsum(negatives)
        approached = np.cumsum(rows)
        base_rate = positive_count / row_count
        at = np.interp(SHARES, np.r_[0.0, approached / row_count], np.r_[0.0, found / positive_count])
        lifts = dict(zip(SHARES, at / np.array(SHARES), strict=True))
        return {
            "base_rate": base_rate,
            "auc": (positives * (lower + negatives / 2)).sum() / (positive_count * negatives.sum()),
            "average_precision": (found / np.maximum(approached, 1) * positives).sum() / positive_count,
            "log_loss": float(np.average(self._losses, weights=weights)),
            "brier": float(np.average(self._squares, weights=weights)),
            **{f"precision_{share:.0%}".replace("%", "pct"): lift * base_rate for share, lift in lifts.items()},
            **{f"lift_{share:.0%}".replace("%", "pct"): lift for share, lift in lifts.items()},
            "ece": self._ece(weights),
            "calibration_slope": self._slope(weights),
        }

    def _by_step(self, weights: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count drawn rows and positives at each distinct probability, the highest first."""
        drawn = weights[self._order].astype(np.float64)
        return np.add.reduceat(drawn, self._steps), np.add.reduceat(drawn * self._sorted, self._steps)

    def _ece(self, weights: NDArray[Any]) -> float:
        """Return how far off the groups are, on average (Naeini, Cooper and Hauskrecht 2015)."""
        difference = np.bincount(self._bins, weights * (self._probabilities - self.actual), BINS)
        return float(np.abs(difference).sum() / weights.sum())

    def _slope(self, weights: NDArray[Any]) -> float:
        """Regress what happened on the log odds, by Newton's steps; NaN where there is no one slope."""
        x, y = self._log_odds, self.actual
        if np.ptp(x) == 0:
            return float("nan")
        intercept, slope = 0.0, 0.0  # from 1, the steps would go astray where probabilities are far too sure
        for _ in range(NEWTON_STEPS):
            p = 1 / (1 + np.exp(-np.clip(intercept + slope * x, -30, 30)))
            residual, spread = weights * (y - p), weights * p * (1 - p)
            moment = spread * x
            a, b, c = spread.sum(), moment.sum(), (moment * x).sum()
            determinant = a * c - b * b
            if determinant <= 1e-12 * max(a * c, 1e-300):
                return float("nan")
            u, v = residual.sum(), (residual * x).sum()
            steps = (c * u - b * v) / determinant, (a * v - b * u) / determinant
            intercept, slope = intercept + steps[0], slope + steps[1]
            if max(map(abs, steps)) < 1e-6:
                return float(slope)
        return float("nan")
