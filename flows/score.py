"""Score: everyone in a snapshot gets segments and propensities, as ASSIGNMENTS."""

import logging
from dataclasses import dataclass
from datetime import datetime

import ibis
import pandas as pd
from prefect import flow, task

from features.lake import Lake
from features.snapshots import in_words
from flows.configuration import Configuration, load
from flows.instant import name_run, resolve_as_of
from flows.train import find_serving, model_name, read_snapshots
from flows.world import TOUCHES_THE_WORLD
from models import propensities, rules, segments
from models.registry import Registry, Version
from publish.assignments import ASSIGNMENTS, PROPENSITIES, Scores, assign, to_arrow

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class SegmentNow:
    """Describe a segment with the users who are in it now: how many, and which share of all."""

    segment_id: str
    name: str
    users: int
    share: float
    typical: list[str]


@dataclass(frozen=True)
class Scored:
    """Count the users, and those with a probability, by propensity; describe the segments, largest first."""

    as_of: datetime
    users: int
    scored: dict[str, int]
    segments: list[SegmentNow]


@flow(flow_run_name=name_run)
def score(config: str, as_of: datetime | None = None) -> Scored:
    """Assign every user of the snapshot at `as_of`."""
    logger.debug("scoring")
    scored = assign_users(config, as_of)
    parts = [f"{count:,} with a probability of {kind}" for kind, count in scored.scored.items()]
    logger.info("score: %s users assigned, %s", f"{scored.users:,}", ", ".join(parts))
    return scored


@task(**TOUCHES_THE_WORLD)
def assign_users(config: str, as_of: datetime | None) -> Scored:
    """Read a snapshot and the models that serve, store assignments."""
    configuration = load(config)
    registry = Registry(configuration.mlruns)
    with Lake(configuration.lake) as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        snapshot = read_snapshots(lake, configuration, [as_of])
        serving = find_serving(registry, model_name(configuration, "segments"), as_of, snapshot)
        model = segments.SegmentModel.from_dict(serving.model, serving.metadata) if serving else None
        scores = {}
        for kind in PROPENSITIES:
            version = find_serving(registry, model_name(configuration, kind), as_of, snapshot)
            if version is not None:
                scores[kind] = _score(configuration, kind, version, snapshot)
        assigned = assign(
            snapshot,
            None if model is None else segments.assign(model, snapshot),
            None if serving is None else serving.number,
            rules.match(snapshot),
            scores,
            configuration.publish.holdout_share,
            configuration.name,
        )
        lake.write(ASSIGNMENTS, ibis.memtable(to_arrow(assigned)), only=[as_of])
    counts = {kind: int(assigned[f"{kind}_probability"].notna().sum()) for kind in PROPENSITIES}
    return Scored(as_of, len(assigned), counts, _segments(model, assigned))


def _score(configuration: Configuration, kind: str, version: Version, snapshot: pd.DataFrame) -> Scores:
    """Score the users whom the label applies to."""
    days = getattr(configuration.labels, kind).eligible_days
    eligible = snapshot if days is None else snapshot[snapshot["recency_days"] <= days]
    eligible = eligible.reset_index(drop=True)
    if eligible.empty:
        return Scores(pd.DataFrame(columns=["probability", "percentile", "reasons"]), version.number)
    probability = propensities.predict(version.model, eligible)
    by_user = pd.DataFrame(
        {
            "probability": probability,
            "percentile": propensities.percentiles(probability),
            "reasons": propensities.reasons(version.model, eligible),
        },
        index=pd.Index(eligible["user_id"], name="user_id"),
    )
    return Scores(by_user, version.number)


def _segments(model: segments.SegmentModel | None, assigned: pd.DataFrame) -> list[SegmentNow]:
    if model is None:
        return []
    sizes = assigned["segment_id"].value_counts()
    now = []
    for segment in model.segments:
        users = int(sizes.get(segment.segment_id, 0))
        typical = [in_words(trait.feature, trait.value) for trait in segment.typical]
        now.append(SegmentNow(segment.segment_id, segment.name, users, users / len(assigned), typical))
    return sorted(now, key=lambda one: (-one.users, one.segment_id))
