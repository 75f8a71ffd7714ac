"""Score: everyone in a snapshot gets segments and propensities, as ASSIGNMENTS."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd
from prefect import task

from features.engines import DuckDB
from features.lake import Lake
from features.table import ContractError, Table
from features.zones import write_instant
from flows.configuration import Configuration, ConfigurationError, load
from flows.identity import named
from flows.instant import resolve_as_of
from flows.snapshot import stored_snapshots, table_of
from flows.stage import read_as_of, stage
from flows.train import find_serving, model_name, read_snapshots
from flows.world import TOUCHES_THE_WORLD, discreet
from models import lifecycle, rfm, rules, segments
from models.lifecycle import STAGES
from models.registry import Registry
from models.rules import ReadyRule
from models.segment_rules import SegmentRule
from publish import scoring
from publish.assignments import assignments_table, labels_in

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class SegmentNow:
    """Describe a segment with the users who are in it now: how many, and which share of all.

    `summary`, `typical` and the rule, with its precision, recall and coverage, are of the training; so are the flags,
    which say why a segment is of little use.
    """

    segment_id: str
    name: str
    users: int
    share: float
    summary: str
    typical: list[str]
    flags: list[str]
    rule: SegmentRule | None


@dataclass(frozen=True)
class RuleNow:
    """Describe a named segment with how many users are in it now, and which share of all.

    `flag` says why it is of no use, None if it may be; `thresholds` what its percentiles and grades are. A condition on
    what is personal is empty.
    """

    name: str
    title: str
    sentence: str
    condition: str
    users: int
    share: float
    flag: str | None
    thresholds: dict[str, float | None]


@dataclass(frozen=True)
class Lifecycle:
    """Count users by stage, and by the stages then and now since the snapshot before: null where they were not there.

    `since` is the instant of that snapshot, None without one.
    """

    stages: dict[str, int]
    since: datetime | None
    transitions: list[dict[str, Any]]


@dataclass(frozen=True)
class Scored:
    """Count the users, and those with a probability, by label; describe the segments and named ones, largest first.

    `rules_off` says by name why a named segment is off, `withheld` by label why there are ranks and no probabilities.
    """

    as_of: datetime
    users: int
    scored: dict[str, int]
    segments: list[SegmentNow]
    rules: list[RuleNow]
    rules_off: dict[str, str]
    lifecycle: Lifecycle
    withheld: dict[str, str]


@stage()
def score(config: str, as_of: datetime | str | None = None) -> Scored:
    """Assign every user of the snapshot at `as_of`."""
    logger.debug("scoring")
    scored = assign_users(config, read_as_of(config, as_of))
    parts = [f"{count:,} with a probability of {label}" for label, count in scored.scored.items()]
    logger.info("score: %s users assigned, %s", f"{scored.users:,}", ", ".join(parts))
    for label, reason in scored.withheld.items():
        logger.info("  %s: ranks without probabilities: %s", label, reason)
    return scored


@task(**TOUCHES_THE_WORLD)
@discreet
def assign_users(config: str, as_of: datetime | None) -> Scored:
    """Read a snapshot and the models that serve, store assignments."""
    configuration = load(config)
    table = assignments_table(configuration.labels.named)
    with configuration.open_lake() as lake:
        as_of = resolve_as_of(as_of, configuration, lake)
        if isinstance(lake.engine, DuckDB):
            snapshot = read_snapshots(lake, configuration, [as_of])
            before = read_previous(lake, configuration, as_of).to_pandas().set_index("user_id")
            snapshot[scoring.PREVIOUS] = snapshot["user_id"].map(before[scoring.PREVIOUS])
            serving, off = _find_all_serving(configuration, as_of, snapshot)
            assigned = ibis.memtable(scoring.score(snapshot, serving))
        else:  # which may hold more users than this process can: parts are scored where they are
            users = _read_snapshot(lake, configuration, as_of)
            serving, off = _find_all_serving(configuration, as_of, users)
            users = users.left_join(read_previous(lake, configuration, as_of), "user_id").drop("user_id_right")
            parts = lake.engine.map_frames(users, partial(scoring.score_part, serving=serving), table.schema)
            assigned = scoring.rank(parts)
        lake.write(table, assigned, only=[as_of])
        return _sum_up(lake, table, as_of, serving, off, configuration)


def _read_snapshot(lake: Lake, configuration: Configuration, as_of: datetime) -> ir.Table:
    table = table_of(configuration)
    if as_of not in lake.partitions(table):
        asked = write_instant(as_of, configuration.time_zone)
        raise ConfigurationError(f"no snapshot at {asked}: run `habitus snapshot {configuration.file}` first")
    return stored_snapshots(lake, configuration, [as_of])


def read_previous(lake: Lake, configuration: Configuration, as_of: datetime) -> ir.Table:
    """Return the segments of the latest scoring before `as_of`: user_id and PREVIOUS; none without one."""
    table = assignments_table(configuration.labels.named)
    latest = [instant for instant in lake.partitions(table) if instant < as_of][-1:]
    try:
        previous = lake.read(table, only=latest)
    except ContractError:  # of a version of Habitus with other columns: nobody stays for that, this once
        previous = lake.read(table, only=[])
    return previous.select("user_id", **{scoring.PREVIOUS: "segment_id"})


def _find_all_serving(
    configuration: Configuration, as_of: datetime, users: pd.DataFrame | ir.Table
) -> tuple[scoring.Serving, dict[str, str]]:
    """Load what serves at an instant, and make the rules ready; say why the others are off."""
    snapshot = users if isinstance(users, pd.DataFrame) else users.limit(0).to_pandas()
    registry = Registry(configuration.mlruns)
    lines = find_lines(registry, configuration, as_of)
    ready, off = rules.prepare(configuration.rules.rules, users, lines)
    labels = configuration.labels.named
    found = {
        kind: find_serving(registry, model_name(configuration, kind), as_of, snapshot) for kind in ("segments", *labels)
    }
    discovered = found.pop("segments")
    serving = scoring.Serving(
        segments=(
            named(registry, model_name(configuration, "segments"), discovered, configuration.personal)
            if discovered
            else None
        ),
        segments_version=discovered.number if discovered else None,
        dwell_margin=configuration.segments.dwell_margin,
        rfm=lines,
        propensities={
            label: scoring.Propensity(one.model, one.number, labels[label], one.metadata.get("withheld"))
            for label, one in found.items()
            if one is not None
        },
        rules=ready,
        lifecycle=configuration.lifecycle,
        holdout_share=configuration.publish.holdout_share,
        salt=configuration.name,
        labels=tuple(labels),
        destinations=configuration.all_destinations,
        personal=configuration.personal,
    )
    return serving, off | dict.fromkeys(configuration.rules.switched_off, "switched off")


def find_lines(registry: Registry, configuration: Configuration, as_of: datetime) -> rfm.Lines | None:
    """Return the lines of RFM at an instant: of the training whose segments serve, or else of the latest by then.

    So they stay from one training that is promoted to the next, and are there where none was. None before the first.
    """
    name = model_name(configuration, "segments")
    serving = registry.serving(name, as_of)
    instants = {number: datetime.fromisoformat(at) for number, at in registry.tags(name, "as_of").items() if at}
    numbers = sorted((number for number, at in instants.items() if at <= as_of), key=lambda one: (instants[one], one))
    for number in [*numbers, *([serving] if serving is not None else [])][::-1]:
        lines = rfm.lines_of(registry.read_dict(name, number, "segments.json"))
        if lines is not None:
            return lines
    return None


def _sum_up(
    lake: Lake,
    table: Table,
    as_of: datetime,
    serving: scoring.Serving,
    off: dict[str, str],
    configuration: Configuration,
) -> Scored:
    assigned = lake.read(table, only=[as_of])
    counts = {label: assigned[f"{label}_probability"].count() for label in labels_in(assigned.columns)}
    [scored] = assigned.agg(**counts).to_pyarrow().to_pylist()
    users = int(assigned.count().to_pyarrow().as_py())
    withheld = {label: one.withheld for label, one in serving.propensities.items() if one.withheld}
    return Scored(
        as_of,
        users,
        scored,
        _segments(serving.segments, assigned, users),
        _rules(serving.rules, assigned, users, configuration),
        off,
        _lifecycle(lake, table, as_of),
        withheld,
    )


def _rules(
    ready: Sequence[ReadyRule], assigned: ir.Table, everyone: int, configuration: Configuration
) -> list[RuleNow]:
    if not ready:
        return []
    counts = {one.rule.name: assigned.rule_segments.contains(one.rule.name).cast("int64").sum() for one in ready}
    [sizes] = assigned.agg(**counts).to_pyarrow().to_pylist()
    now = []
    for one in ready:
        rule, users = rules.without(one.rule, configuration.personal), sizes[one.rule.name] or 0
        flag = configuration.rules.flag(users, everyone)
        share = users / everyone if everyone else 0
        known = dict(one.thresholds) if rule.condition else {}
        now.append(RuleNow(rule.name, rule.title, rule.sentence, rule.condition, users, share, flag, known))
    return sorted(now, key=lambda one: (-one.users, one.name))


def _lifecycle(lake: Lake, table: Table, as_of: datetime) -> Lifecycle:
    assigned = lake.read(table, only=[as_of])
    counts = {stage: (assigned.lifecycle_stage == stage).cast("int64").sum() for stage in STAGES}
    [stages] = assigned.agg(**counts).to_pyarrow().to_pylist()
    since = max((instant for instant in lake.partitions(table) if instant < as_of), default=None)
    if since is None:
        return Lifecycle(stages, None, [])
    changes = lifecycle.transitions(lake.read(table, only=[since]), assigned)
    return Lifecycle(stages, since, changes.to_pyarrow().to_pylist())


def _segments(model: segments.SegmentModel | None, assigned: ir.Table, everyone: int) -> list[SegmentNow]:
    if model is None:
        return []
    counts: list[dict[str, Any]] = assigned.segment_id.value_counts(name="users").to_pyarrow().to_pylist()
    sizes = {row["segment_id"]: row["users"] for row in counts}
    now = []
    for segment in model.segments:
        users = sizes.get(segment.segment_id, 0)
        now.append(
            SegmentNow(
                segment.segment_id,
                segment.name,
                users,
                users / everyone,
                segment.summary,
                [trait.in_words() for trait in segment.typical],
                list(segment.flags),
                segment.rule,
            )
        )
    return sorted(now, key=lambda one: (-one.users, one.segment_id))
