"""Who a segment is: its id and its name through the trainings of a model, and how firmly users stay in it."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from features.lake import Lake
from features.zones import day_of
from flows.configuration import Configuration
from flows.snapshot import stored_snapshots, table_of
from models import names as naming
from models import segments, telling_words
from models.dwell import flap_rate
from models.lineage import Lineage
from models.registry import Registry, Version
from models.segments import SegmentModel

NEXT_NUMBER = "next_segment_number"
FOLLOWED_MAX = 2_000  # users on whom flapping is measured: a rate of 2 % is then known to a third of a percent
ROW_MIN = 3  # snapshots: to leave, and to be back


def align(
    model: SegmentModel,
    serving: Version | None,
    registry: Registry,
    name: str,
    snapshot: pd.DataFrame,
    as_of: datetime,
    lake: Lake,
    configuration: Configuration,
) -> tuple[SegmentModel, Lineage]:
    """Give a model of a snapshot the ids of those segments that serve, and the names that people gave to them.

    They are compared in the snapshot that the serving version was trained on, too, where the lake holds it.
    """
    old, before, table = None, None, table_of(configuration)
    if serving is not None:
        old = named(registry, name, serving, configuration.personal)
        trained_at = registry.trained_at(name, serving.number)
        if trained_at in lake.partitions(table):
            before = stored_snapshots(lake, configuration, [trained_at]).to_pandas()
    first, given = next_number(registry, name), given_names(registry, name)
    aligned = segments.align(model, old, before, snapshot, first, as_of.isoformat(), given)
    assert aligned.lineage is not None
    return aligned, aligned.lineage


def named(registry: Registry, name: str, version: Version, personal: Collection[str]) -> SegmentModel:
    """Return the segments of a version with the names that people gave to them; other words need nothing personal."""
    model = SegmentModel.from_dict(version.model, version.metadata)
    return segments.renamed(segments.without(model, personal), given_names(registry, name))


def tells_personal(configuration: Configuration, name: str, number: int | None, names: Collection[str]) -> bool:
    """Tell whether names are of before something was personal: made of it, and by nobody's hand.

    `number` is the version whose segments have them.
    """
    marks = naming.marks(configuration.personal)
    found = {one for one in names if any(mark in one for mark in marks)}
    if not found:
        return False
    registry = Registry(configuration.mlruns)
    version = None if number is None else registry.load(name, number)
    model = version and named(registry, name, version, configuration.personal)
    return not found <= {one.name for one in (model.segments if model else ())}


def given_names(registry: Registry, name: str) -> dict[str, str]:
    """Return the names that people gave to segments of a model, by id."""
    return {segment_id: given.name for segment_id, given in registry.given_names(name).items()}


def next_number(registry: Registry, name: str) -> int:
    """Return the first number that no segment of any version has, be it one that never served."""
    numbers = [1]
    for number, tag in registry.tags(name, NEXT_NUMBER).items():
        if tag is None:  # a version from before there was the tag
            version = registry.load(name, number)
            tag = None if version is None else version.metadata.get("next_number")
        numbers.append(int(tag or 1))
    return max(numbers)


def measure_flapping(
    model: SegmentModel, configuration: Configuration, lake: Lake, as_of: datetime, user_ids: pd.Series
) -> dict[str, Any]:
    """Follow some users through past snapshots, with the dwell rule and without it: which share of them flaps.

    The snapshots are those in the lake that follow one another as training takes them, the most there are in a row;
    empty where these are fewer than three.
    """
    table, step = table_of(configuration), timedelta(days=configuration.training.every_days)
    instants = _longest_row([instant for instant in lake.partitions(table) if instant <= as_of], step)
    if len(instants) < ROW_MIN:
        return {}
    chosen = np.random.default_rng(configuration.training.seed).permutation(np.sort(user_ids))[:FOLLOWED_MAX]
    users = stored_snapshots(lake, configuration, instants)
    found = users.filter(users.user_id.isin(chosen.tolist())).to_pandas().sort_values("user_id")
    past = [found[found["as_of"] == instant] for instant in instants]
    margin = configuration.segments.dwell_margin
    rate, without = (flap_rate(segments.follow(model, past, one)) for one in (margin, 0.0))
    if np.isnan(rate):
        return {}
    return {
        "flap_rate": rate,
        "flap_rate_without_dwell": without,
        "dwell_margin": margin,
        "users": len(chosen),
        "snapshots": [f"{instant:%Y-%m-%dT%H:%M:%SZ}" for instant in instants],
    }


def _longest_row(instants: list[datetime], step: timedelta) -> list[datetime]:
    """Return the most instants that are one step apart; of equally many the latest."""
    rows: list[list[datetime]] = [[]]
    for instant in instants:
        if rows[-1] and instant - rows[-1][-1] != step:
            rows.append([])
        rows[-1].append(instant)
    return max(reversed(rows), key=len)


def explain(metadata: Mapping[str, Any], time_zone: str = "UTC") -> list[str]:
    """Say of a training which segments are not just kept, a line for each, and how many users flap."""
    lines: list[str] = []
    if metadata.get("doubt"):  # it does not serve, so nothing became of any segment
        return lines
    if (known := metadata.get("lineage")) and known["size_changes"]:  # at the first training, all are born
        events = Lineage.from_dict(known).events
        lines = [f"{event.segment_id} {event.name}: {event}" for event in events if event.kind != "kept"]
    if known and known["size_changes"]:
        share = _percent(Lineage.from_dict(known).kept_share)
        lines.append(f"{share} of users keep the segment they have by the model before; the lines moved for the rest")
    tells = metadata.get("tells")
    day = "" if tells is None else str(day_of(datetime.fromisoformat(tells["as_of"]), time_zone))
    lines.append(telling_words.headline(tells, day))
    if flapping := metadata.get("flapping"):
        rate, without = (_percent(flapping[one]) for one in ("flap_rate", "flap_rate_without_dwell"))
        lines.append(f"{rate} of users flap between segments; without the dwell rule, {without} would")
    return lines


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
