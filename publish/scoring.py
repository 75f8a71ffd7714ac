"""Scoring: the users of a snapshot and the models that serve become ASSIGNMENTS, at once or part by part."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import ibis
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
from sklearn.calibration import CalibratedClassifierCV

from models import propensities, rules, segments
from models.segments import SegmentModel
from publish.assignments import ASSIGNMENTS, PROPENSITIES, Scores, assign, to_arrow


@dataclass(frozen=True)
class Propensity:
    """Hold a propensity's model, its version, and for how many days after a session it applies; None for ever."""

    model: CalibratedClassifierCV
    version: int
    eligible_days: float | None


@dataclass(frozen=True)
class Serving:
    """Hold what serves at an instant, and who is held out."""

    segments: SegmentModel | None = None
    segments_version: int | None = None
    propensities: Mapping[str, Propensity] = field(default_factory=dict)
    holdout_share: float = 0
    salt: str = ""


def score(snapshot: pd.DataFrame, serving: Serving) -> pa.Table:
    """Assign the users of a snapshot: ASSIGNMENTS, sorted by user; percentiles are among these users."""
    assigned = assign(
        snapshot,
        None if serving.segments is None else segments.assign(serving.segments, snapshot),
        serving.segments_version,
        rules.match(snapshot),
        {kind: _score(snapshot, propensity) for kind, propensity in serving.propensities.items()},
        serving.holdout_share,
        serving.salt,
    )
    return to_arrow(assigned)


def rank(assigned: ir.Table) -> ir.Table:
    """Return ASSIGNMENTS that were made part by part with percentiles among all users, as `percentiles` has them."""
    return assigned.mutate(**{f"{kind}_percentile": _percentile(assigned, kind) for kind in PROPENSITIES}).select(
        *ASSIGNMENTS.schema.names
    )


def _percentile(assigned: ir.Table, kind: str) -> ir.FloatingColumn:
    probability = assigned[f"{kind}_probability"]
    scored = ibis.window(group_by=probability.isnull())
    below = ibis.rank().over(scored.order_by(probability))
    others = ibis.greatest(probability.count().over(scored) - 1, 1)
    # In this order: 100 * (below / others) would differ in the last bit.
    percentile: ir.FloatingColumn = probability.notnull().ifelse(100 * below / others, ibis.null("float64"))
    return percentile


def _score(snapshot: pd.DataFrame, propensity: Propensity) -> Scores:
    """Score the users whom the label applies to."""
    days = propensity.eligible_days
    eligible = snapshot if days is None else snapshot[snapshot["recency_days"] <= days]
    eligible = eligible.reset_index(drop=True)
    if eligible.empty:
        return Scores(pd.DataFrame(columns=["probability", "percentile", "reasons"]), propensity.version)
    probability = propensities.predict(propensity.model, eligible)
    by_user = pd.DataFrame(
        {
            "probability": probability,
            "percentile": propensities.percentiles(probability),
            "reasons": propensities.reasons(propensity.model, eligible),
        },
        index=pd.Index(eligible["user_id"], name="user_id"),
    )
    return Scores(by_user, propensity.version)
