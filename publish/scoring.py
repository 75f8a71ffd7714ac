"""Scoring: the users of a snapshot and the models that serve become ASSIGNMENTS, at once or part by part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ibis
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
from sklearn.calibration import CalibratedClassifierCV

from features.labels import Label
from models import lifecycle, propensities, rfm, rules, segments
from models.lifecycle import LifecycleSettings
from models.reasons import NoTreesError, reasons
from models.rfm import Lines
from models.rules import ReadyRule
from models.segments import SegmentModel
from publish.assignments import PROPENSITIES, Scores, assign, labels_in, to_arrow
from publish.destination import DestinationSettings
from publish.holdout import held_out_of

PREVIOUS = "previous_segment_id"
"""The column of a snapshot that says which segment a user had at the scoring before; it need not be there."""


@dataclass(frozen=True)
class Propensity:
    """Hold a propensity's model, its version, and the label, which says whom it applies to.

    `withheld` says why its probabilities are not published, where its ranks are.
    """

    model: CalibratedClassifierCV
    version: int
    label: Label
    withheld: str | None = None


@dataclass(frozen=True)
class Serving:
    """Hold what serves at an instant, rules made ready for all users, the labels that have columns, who is held out.

    With `dwell_margin`, users stay in the segment that the snapshot's column PREVIOUS says unless another is nearer by
    that share. `rfm` are the lines of a training's grades. `destinations` say which share of a segment's users is held
    out of them. No reason says a `personal` attribute.
    """

    segments: SegmentModel | None = None
    segments_version: int | None = None
    dwell_margin: float = 0
    rfm: Lines | None = None
    propensities: Mapping[str, Propensity] = field(default_factory=dict)
    rules: Sequence[ReadyRule] = ()
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    holdout_share: float = 0
    salt: str = ""
    labels: Sequence[str] = PROPENSITIES
    destinations: Mapping[str, DestinationSettings] = field(default_factory=dict)
    personal: Sequence[str] = ()


def score(snapshot: pd.DataFrame, serving: Serving) -> pa.Table:
    """Assign the users of a snapshot: ASSIGNMENTS, sorted by user; percentiles are among these users."""
    return _assign(snapshot, serving, in_part=False)


def score_part(snapshot: pd.DataFrame, serving: Serving) -> pa.Table:
    """Assign some of a snapshot's users, as `score` does; for `rank`, their percentiles still are probabilities."""
    return _assign(snapshot, serving, in_part=True)


def rank(parts: ir.Table) -> ir.Table:
    """Return ASSIGNMENTS that were made part by part with percentiles among all users, as `percentiles` has them."""
    columns = parts.columns
    return parts.mutate(**{f"{name}_percentile": _percentile(parts, name) for name in labels_in(columns)}).select(
        *columns
    )


def _assign(snapshot: pd.DataFrame, serving: Serving, in_part: bool) -> pa.Table:
    model, previous = serving.segments, snapshot.get(PREVIOUS)
    discovered = None if model is None else segments.assign(model, snapshot, previous, serving.dwell_margin)
    named = rules.match(snapshot, serving.rules)
    users = snapshot[["user_id", "as_of"]]
    if serving.rfm is not None:
        users = pd.concat([users, rfm.grade(serving.rfm, snapshot)], axis=1)
    assigned = assign(
        users,
        discovered,
        serving.segments_version,
        named,
        lifecycle.assign(snapshot, serving.lifecycle),
        {name: _score(snapshot, one, in_part, serving.personal) for name, one in serving.propensities.items()},
        serving.holdout_share,
        serving.salt,
        serving.labels,
        _held_out_of(discovered, named, serving),
    )
    return to_arrow(assigned)


def _held_out_of(discovered: pd.DataFrame | None, named: pd.Series, serving: Serving) -> pd.Series | None:
    """List by user the segments that they are held out of, and where; None where nobody is."""
    if not any(destination.holdout_share for destination in serving.destinations.values()):
        return None
    if discovered is not None:
        own = discovered.set_index("user_id")["segment_id"].reindex(named.index)
        named = pd.Series([[one, *others] for one, others in zip(own, named, strict=True)], index=named.index)
    return held_out_of(named, serving.destinations, serving.salt)


def _percentile(parts: ir.Table, name: str) -> ir.FloatingColumn:
    probability = parts[f"{name}_percentile"]
    scored = ibis.window(group_by=probability.isnull())
    below = ibis.rank().over(scored.order_by(probability))
    others = ibis.greatest(probability.count().over(scored) - 1, 1)
    # In this order: 100 * (below / others) would differ in the last bit.
    percentile: ir.FloatingColumn = probability.notnull().ifelse(100 * below / others, ibis.null("float64"))
    return percentile


def _score(snapshot: pd.DataFrame, propensity: Propensity, in_part: bool, personal: Sequence[str]) -> Scores:
    """Score the users whom the label applies to."""
    eligible = snapshot[propensity.label.is_eligible(snapshot)].reset_index(drop=True)
    if eligible.empty:
        by_user = pd.DataFrame(columns=["probability", "percentile", "reasons"])
        return Scores(by_user, propensity.version, propensity.withheld)
    probability = propensities.predict(propensity.model, eligible)
    by_user = pd.DataFrame(
        {
            "probability": probability,
            "percentile": probability if in_part else propensities.percentiles(probability),
            "reasons": _reasons(propensity.model, eligible, personal),
        },
        index=pd.Index(eligible["user_id"], name="user_id"),
    )
    return Scores(by_user, propensity.version, propensity.withheld)


def _reasons(model: CalibratedClassifierCV, users: pd.DataFrame, personal: Sequence[str]) -> list[list[str]]:
    """Return the reasons for users' scores; none of a model that is not of trees."""
    fitted = model.estimator.estimator  # what was calibrated, frozen
    try:
        return reasons(fitted, users, personal=personal)
    except NoTreesError:
        return [[] for _ in range(len(users))]
