"""Score: everyone in a snapshot gets segments and propensities, as ASSIGNMENTS."""

import logging
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd
from prefect import flow, task

from features.engines import DuckDB
from features.lake import Lake
from features.snapshots import in_words
from flows.configuration import Configuration, ConfigurationError, load
from flows.identity import named
from flows.instant import name_run, resolve_as_of
from flows.snapshot import table_of
from flows.train import find_serving, model_name, read_snapshots
from flows.world import TOUCHES_THE_WORLD
from models import segments
from models.registry import Registry
from publish import scoring
from publish.assignments import assignments_table, labels_in

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
    """Count the users, and those with a probability, by label; describe the segments, largest first.

    `withheld` says by label why there are ranks and no probabilities.
    """

    as_of: datetime
    users: int
    scored: dict[str, int]
    segments: list[SegmentNow]
    withheld: dict[str, str]


@flow(flow_run_name=name_run)
def score(config: str, as_of: datetime | None = None) -> Scored:
    """Assign every user of the snapshot at `as_of`."""
    logger.debug("scoring")
    scored = assign_users(config, as_of)
    parts = [f"{count:,} with a probability of {label}" for label, count in scored.scored.items()]
    logger.info("score: %s users assigned, %s", f"{scored.users:,}", ", ".join(parts))
    for label, reason in scored.withheld.items():
        logger.info("  %s: ranks without probabilities: %s", label, reason)
    return scored


@task(**TOUCHES_THE_WORLD)
def assign_users(config: str, as_of: datetime | None) -> Scored:
    """Read a snapshot and the models that serve, store assignments."""
    configuration = load(config)
    table = assignments_table(configuration.labels.named)
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        if isinstance(lake.engine, DuckDB):
            snapshot = read_snapshots(lake, configuration, [as_of])
            before = _read_previous(lake, configuration, as_of).to_pandas().set_index("user_id")
            snapshot[scoring.PREVIOUS] = snapshot["user_id"].map(before[scoring.PREVIOUS])
            serving = _find_all_serving(configuration, as_of, snapshot)
            assigned = ibis.memtable(scoring.score(snapshot, serving))
        else:  # which may hold more users than this process can: parts are scored where they are
            users = _read_snapshot(lake, configuration, as_of)
            serving = _find_all_serving(configuration, as_of, users.limit(0).to_pandas())
            users = users.left_join(_read_previous(lake, configuration, as_of), "user_id").drop("user_id_right")
            parts = lake.engine.map_frames(users, partial(scoring.score_part, serving=serving), table.schema)
            assigned = scoring.rank(parts)
        lake.write(table, assigned, only=[as_of])
        return _sum_up(lake.read(table, only=[as_of]), as_of, serving)


def _read_snapshot(lake: Lake, configuration: Configuration, as_of: datetime) -> ir.Table:
    table = table_of(configuration)
    if as_of not in lake.partitions(table):
        asked = f"{as_of:%Y-%m-%dT%H:%M:%SZ}"
        raise ConfigurationError(f"no snapshot at {asked}: run `habitus snapshot {configuration.file}` first")
    return lake.read(table, only=[as_of])


def _read_previous(lake: Lake, configuration: Configuration, as_of: datetime) -> ir.Table:
    """Return the segments of the latest scoring before `as_of`: user_id and PREVIOUS; none without one."""
    table = assignments_table(configuration.labels.named)
    latest = [instant for instant in lake.partitions(table) if instant < as_of][-1:]
    return lake.read(table, only=latest).select("user_id", **{scoring.PREVIOUS: "segment_id"})


def _find_all_serving(configuration: Configuration, as_of: datetime, snapshot: pd.DataFrame) -> scoring.Serving:
    """Load what serves at an instant; of a snapshot only the columns matter."""
    registry = Registry(configuration.mlruns)
    labels = configuration.labels.named
    found = {
        kind: find_serving(registry, model_name(configuration, kind), as_of, snapshot) for kind in ("segments", *labels)
    }
    discovered = found.pop("segments")
    return scoring.Serving(
        segments=named(registry, model_name(configuration, "segments"), discovered) if discovered else None,
        segments_version=discovered.number if discovered else None,
        dwell_margin=configuration.segments.dwell_margin,
        propensities={
            label: scoring.Propensity(one.model, one.number, labels[label], one.metadata.get("withheld"))
            for label, one in found.items()
            if one is not None
        },
        holdout_share=configuration.publish.holdout_share,
        salt=configuration.name,
        labels=tuple(labels),
    )


def _sum_up(assigned: ir.Table, as_of: datetime, serving: scoring.Serving) -> Scored:
    counts = {label: assigned[f"{label}_probability"].count() for label in labels_in(assigned.columns)}
    [scored] = assigned.agg(**counts).to_pyarrow().to_pylist()
    users = int(assigned.count().to_pyarrow().as_py())
    withheld = {label: one.withheld for label, one in serving.propensities.items() if one.withheld}
    return Scored(as_of, users, scored, _segments(serving.segments, assigned, users), withheld)


def _segments(model: segments.SegmentModel | None, assigned: ir.Table, everyone: int) -> list[SegmentNow]:
    if model is None:
        return []
    counts: list[dict[str, Any]] = assigned.segment_id.value_counts(name="users").to_pyarrow().to_pylist()
    sizes = {row["segment_id"]: row["users"] for row in counts}
    now = []
    for segment in model.segments:
        users = sizes.get(segment.segment_id, 0)
        typical = [in_words(trait.feature, trait.value) for trait in segment.typical]
        now.append(SegmentNow(segment.segment_id, segment.name, users, users / everyone, typical))
    return sorted(now, key=lambda one: (-one.users, one.segment_id))
