"""Promotion: a challenger serves only if it earned it on later rows, beside the champion and what is simplest."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from models.evaluation import (
    Bootstrap,
    CalibrationSettings,
    Estimate,
    Probabilities,
    calibration_bins,
    compare,
    evaluate,
    top_users,
)
from models.propensities import Budget, Learned, OnTrial, fit, fit_baselines, predict, refit

RIVALS = {
    "base_rate": "the base rate",
    "recency": "recency alone",
    "rfm": "RFM with logistic regression",
    "champion": "the champion",
}
MUST_BEAT = ("base_rate", "recency", "champion")
"""RFM is told of, but a model may serve that does not beat it: part of it is in the blend."""
ROWS_OF_SEGMENT = 50
"""With fewer rows a segment has no say."""


@dataclass(frozen=True)
class Decision:
    """Hold whether a challenger is promoted, why, and by how much its log loss is below each rival's.

    `segments` has the gain on the champion by segment, and `withheld` says why probabilities are not published.
    """

    promoted: bool
    reason: str
    gains: dict[str, Estimate]
    segments: dict[str, Estimate] = field(default_factory=dict)
    withheld: str | None = None


@dataclass(frozen=True)
class Contest:
    """Hold a challenger, what it and its rivals predicted on the same later rows, how good that was, the decision."""

    learned: Learned
    predicted: dict[str, Probabilities]
    measured: dict[str, dict[str, Estimate]]
    by_segment: dict[str, dict[str, Estimate]]
    top_users: list[dict[str, Any]]
    decision: Decision
    calibration: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON has them: NaN is null."""
        told = {
            "decision": asdict(self.decision),
            "metrics": {who: _plain(metrics) for who, metrics in self.measured.items()},
            "calibration_by_segment": {name: _plain(metrics) for name, metrics in self.by_segment.items()},
            "top_users": self.top_users,
            "calibration": self.calibration,
            "learned": {
                "settings": self.learned.settings,
                "constrained": self.learned.constrained,
                "share_of_trees": self.learned.share_of_trees,
                "calibration": self.learned.calibration,
                "calibration_losses": self.learned.calibration_losses,
                "trials": [asdict(trial) for trial in self.learned.trials],
            },
        }
        return {name: _without_nan(value) for name, value in told.items()}


def compete(
    train: pd.DataFrame,
    validation: pd.DataFrame,
    test: pd.DataFrame,
    label: str,
    *,
    champion: BaseEstimator | None = None,
    segments: pd.Series | None = None,
    seed: int = 0,
    budget: Budget = Budget(),  # noqa: B008
    limits: CalibrationSettings = CalibrationSettings(),  # noqa: B008
    rises: bool = True,
    estimator: BaseEstimator | None = None,
    on_trial: OnTrial = lambda trial: None,
) -> Contest:
    """Fit a challenger and judge it on later rows, beside what it has to beat.

    The frames hold labelled snapshots, each later than the one before; `label` names the bool column. The challenger is
    chosen by the validation, and then learns from it too; the baselines are learnt from the same rows. `segments` names
    the segment of each test row, by position. An `estimator` of one's own is fitted instead of trees, and judged alike.
    """
    chosen = fit(train, validation, label, seed, budget, rises=rises, estimator=estimator, on_trial=on_trial)
    learned = refit(chosen, train, validation, label, seed)
    baselines = fit_baselines(pd.concat([train, validation]), label)
    predicted = {"model": predict(learned.model, test)} | {who: rates(test) for who, rates in baselines.items()}
    if champion is not None:
        predicted["champion"] = predict(champion, test)
    bootstrap = Bootstrap(test["user_id"], seed)
    measured = {who: evaluate(test[label], probabilities, bootstrap) for who, probabilities in predicted.items()}
    decision = decide(test[label], predicted, measured, bootstrap, segments, limits)
    return Contest(
        learned,
        predicted,
        measured,
        _by_segment(test, label, predicted["model"], segments, seed),
        top_users(test[label], predicted["model"], bootstrap),
        decision,
        calibration_bins(test[label], predicted["model"]),
    )


def decide(
    labels: pd.Series,
    predicted: Mapping[str, Probabilities],
    measured: Mapping[str, Mapping[str, Estimate]],
    bootstrap: Bootstrap,
    segments: pd.Series | None = None,
    limits: CalibrationSettings = CalibrationSettings(),  # noqa: B008
) -> Decision:
    """Promote a challenger whose log loss is below that of each rival, surely: by the paired 95 % interval.

    `predicted` and `measured` are of "model" and its rivals, on the same later rows. An equal champion keeps serving,
    or two equal models would take turns. Nor may any segment get clearly worse than with the champion (by intervals
    that are as much wider as there are more of them: Bonferroni), or the calibration go beyond the limits where the
    champion's does not.
    """
    gains = {
        who: compare(labels, predicted["model"], theirs, bootstrap)
        for who, theirs in predicted.items()
        if who != "model"
    }
    of_segments = _gains_by_segment(labels, predicted, bootstrap, segments)
    withheld = miscalibration(measured["model"], limits)
    own, rows = measured["model"]["log_loss"].value, f"on the same {len(labels):,} later rows"
    unbeaten = [who for who in MUST_BEAT if who in gains and not gains[who].is_positive]
    worse = [name for name, gain in of_segments.items() if gain.is_negative]
    reasons = []
    if unbeaten:
        rivals = " and ".join(_gain_in_words(who, gains[who]) for who in unbeaten)
        reasons.append(f"log loss {own:.4f} is not surely below that of {rivals}")
    reasons += [f"segment {name} gets worse by {-of_segments[name].value:.4f}" for name in worse]
    if withheld and "champion" in measured and not miscalibration(measured["champion"], limits):
        reasons.append(f"{withheld}, and the champion's calibration is within the limits")
    if reasons:
        return Decision(False, f"Not promoted: {'; '.join(reasons)}, {rows}.", gains, of_segments, withheld)
    beaten = ", ".join(_gain_in_words(who, gain) for who, gain in gains.items() if who in MUST_BEAT)
    reason = f"Promoted: log loss {own:.4f} is below that of {beaten}, {rows}."
    if withheld:
        reason += f" Only ranks are published: {withheld}."
    return Decision(True, reason, gains, of_segments, withheld)


def miscalibration(metrics: Mapping[str, Estimate], limits: CalibrationSettings) -> str | None:
    """Say why probabilities are not to be trusted, or return None if they are within the limits."""
    ece, slope = metrics["ece"], metrics["calibration_slope"]
    if ece.value > limits.ece_max:
        interval = f"{ece.low:.3f} to {ece.high:.3f}"
        return f"probabilities are off by {ece.value:.3f} on average ({interval}), {limits.ece_max:g} is allowed"
    if slope.high < limits.slope_min or slope.low > limits.slope_max:
        allowed = f"{limits.slope_min:g} to {limits.slope_max:g} is allowed"
        return f"the calibration slope is {slope.value:.2f} ({slope.low:.2f} to {slope.high:.2f}), {allowed}"
    return None


def _gains_by_segment(
    labels: pd.Series, predicted: Mapping[str, Probabilities], bootstrap: Bootstrap, segments: pd.Series | None
) -> dict[str, Estimate]:
    if segments is None or "champion" not in predicted:
        return {}
    sizes = segments.value_counts()
    names = sorted(sizes[sizes >= ROWS_OF_SEGMENT].index)
    found = {}
    for name in names:
        rows = (segments == name).to_numpy()
        found[str(name)] = compare(
            labels[rows],
            predicted["model"][rows],
            predicted["champion"][rows],
            Bootstrap(bootstrap.users[rows], bootstrap.seed, bootstrap.draws),
            confidence=1 - 0.05 / len(names),
        )
    return found


def _by_segment(
    test: pd.DataFrame, label: str, probabilities: Probabilities, segments: pd.Series | None, seed: int
) -> dict[str, dict[str, Estimate]]:
    """Measure each segment that has both classes."""
    if segments is None:
        return {}
    found = {}
    for name in sorted(segments.dropna().unique()):
        rows = (segments == name).to_numpy()
        if rows.sum() >= ROWS_OF_SEGMENT and test[label][rows].nunique() == 2:
            metrics = evaluate(test[label][rows], probabilities[rows], Bootstrap(test["user_id"][rows], seed))
            kept = ("base_rate", "log_loss", "ece", "calibration_slope")
            found[str(name)] = {metric: metrics[metric] for metric in kept}
    return found


def _gain_in_words(rival: str, gain: Estimate) -> str:
    return f"{RIVALS[rival]} (by {gain.value:.4f}, {gain.low:.4f} to {gain.high:.4f})"


def _plain(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in metrics.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
