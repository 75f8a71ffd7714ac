"""Probabilities in a report: how segments are scored, and what is known of the models that score."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.labels import Label
from features.snapshots import title
from models import label_card
from models.promotion import RIVALS
from publish.report.content import SUPPRESSED, CalibrationBin, Driver, Estimate, Gain, Model, Propensity, Rate
from publish.report.groups import Groups
from publish.report.metrics import PERCENT, Z, rounded, shown_count
from publish.report.suppression import Mask, is_small

EDGES = [round(i / 20, 2) for i in range(21)]
"""Of histograms of probabilities."""


@dataclass(frozen=True)
class Trained:
    """Hold what the registry says of the model that gave a version its scores of a label.

    `decision` is what its training logged as decision.json, `importance` of which feature moves its scores how much.
    """

    version: int
    trained_at: datetime
    serves_since: datetime | None
    decision: Mapping[str, Any]
    importance: Mapping[str, float] = field(default_factory=dict)


def measure_propensities(
    users: pd.DataFrame,
    groups: Groups,
    labels: Mapping[str, Label],
    trained: Mapping[str, Trained],
    withheld: Mapping[str, str],
) -> dict[str, list[Propensity]]:
    """Return how a segment's users are scored for each label, by the segments that are shown.

    `users` has a column `<label>_probability` for each, null where a user has none; `withheld` says of which labels
    there are only ranks, and why.
    """
    found: dict[str, list[Propensity]] = {name: [] for name in groups.shown}
    for label in labels.values():
        probability = users[f"{label.name}_probability"].to_numpy(dtype=np.float64)
        bins = np.minimum(np.floor(np.nan_to_num(probability, nan=0) * (len(EDGES) - 1)), len(EDGES) - 2)
        bins = np.where(np.isnan(probability), len(EDGES) - 1, bins).astype(np.intp)
        counted = groups.count_values(bins, len(EDGES))
        _, sums = groups.sum(
            np.column_stack([np.nan_to_num(probability), np.nan_to_num(probability) ** 2, ~np.isnan(probability)])
        )
        model = trained.get(label.name)
        why = withheld.get(label.name) if model else "no model serves"
        for name in groups.shown:
            of_segment = counted.segments[name], counted.hidden[name], sums[name]
            tested = (model.decision.get("calibration_by_segment") or {}).get(name, {}) if model else {}
            found[name].append(_propensity(label, *of_segment, tested, why, groups.k))
    return found


def _propensity(
    label: Label,
    counts: NDArray[np.int64],
    hidden: Mask,
    sums: NDArray[np.float64],
    tested: Mapping[str, Any],
    withheld: str | None,
    k: int,
) -> Propensity:
    scored = int(counts[:-1].sum())
    is_hidden = bool(hidden[-1] or is_small(np.array([scored]), k)[0])
    mean: Rate = None
    if is_hidden:
        mean = SUPPRESSED
    elif scored:
        value, squares = sums[0] / scored, sums[1] / scored
        half = Z * np.sqrt(max(squares - value**2, 0.0) / scored)
        mean = Estimate(value=rounded(value), low=rounded(max(value - half, 0)), high=rounded(min(value + half, 1)))
    return Propensity(
        label=label.name,
        title=label.name.replace("_", " "),
        scored=shown_count(scored, is_hidden),
        mean=mean,
        edges=EDGES if scored else [],
        histogram=[*map(shown_count, counts[:-1], hidden[:-1])] if scored else [],
        happened=_estimate(tested.get("base_rate"), PERCENT),
        predicted_off=_estimate(tested.get("ece"), PERCENT),
        withheld=withheld,
    )


def describe_model(
    label: Label, trained: Trained | None, withheld: str | None, k: int, personal: Collection[str]
) -> Model:
    """Say what the model of a label predicts, how good it is on later users, and which features move its scores."""
    told: dict[str, Any] = {
        "label": label.name,
        "title": label.name.replace("_", " "),
        "kind": label.kind,
        "definition": label_card.define(label),
    }
    if trained is None:
        nothing: dict[str, Any] = dict.fromkeys(
            (
                "version",
                "trained_at",
                "serves_since",
                "tested_at",
                "tested_users",
                "base_rate",
                "reason",
                "withheld",
            )
        )
        return Model(metrics={}, gains=[], calibration=[], drivers=[], **told, **nothing)
    decision = trained.decision
    measured = (decision.get("metrics") or {}).get("model", {})
    tested = (decision.get("rows") or {}).get("test")
    known = {
        name: one for name, given in measured.items() if (one := _estimate(given)) and not _tells_few(name, tested, k)
    }
    gains = {who: one for who, given in (decision.get("gains") or {}).items() if (one := _estimate(given))}
    tested_at = decision.get("test_as_of")
    return Model(
        **told,
        version=trained.version,
        trained_at=trained.trained_at,
        serves_since=trained.serves_since,
        tested_at=datetime.fromisoformat(tested_at) if tested_at else None,
        tested_users=tested,
        base_rate=known.get("base_rate"),
        metrics=known,
        gains=[Gain(rival=who, title=RIVALS.get(who, who), gain=gain) for who, gain in gains.items()],
        calibration=_calibration(decision.get("calibration") or [], k),
        drivers=[
            Driver(feature=name, title=title(name), share=rounded(part), personal=name in personal)
            for name, part in trained.importance.items()
        ],
        reason=decision.get("reason"),
        withheld=withheld,
    )


def _calibration(bins: Sequence[Mapping[str, Any]], k: int) -> list[CalibrationBin]:
    """Return the bins; none where one of them counts too few whom it happened to, or did not."""
    counts = [round(one["happened"] * one["rows"]) for one in bins]
    both = np.array([*counts, *(one["rows"] - count for one, count in zip(bins, counts, strict=True))], dtype=int)
    if is_small(both, k).any():
        return []
    return [
        CalibrationBin(
            predicted=rounded(one["predicted"]),
            happened=Estimate(value=rounded(one["happened"]), low=rounded(one["low"]), high=rounded(one["high"])),
            users=one["rows"],
        )
        for one in bins
    ]


def _estimate(given: Mapping[str, Any] | None, digits: int | None = None) -> Estimate | None:
    """Return a figure as trainings log it, rounded to so many decimals; None where it has no meaning."""
    if not given or given.get("value") is None:
        return None
    value, low, high = (
        None if given.get(side) is None else rounded(given[side]) if digits is None else round(given[side], digits)
        for side in ("value", "low", "high")
    )
    assert value is not None
    return Estimate(value=value, low=low, high=high)


def _tells_few(metric: str, users: int | None, k: int) -> bool:
    """Tell whether a metric is of the first per cents of so many users, who are too few."""
    first = re.fullmatch(r".*_(\d+)pct", metric)
    return first is not None and (users or 0) * int(first[1]) < 100 * k
