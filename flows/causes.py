"""What the model and rules of an earlier version would say of users now, which tells why they changed segments."""

from datetime import datetime

import ibis
import ibis.expr.types as ir
import pandas as pd

from features.lake import Lake
from flows.configuration import Configuration
from flows.identity import named
from flows.score import read_previous
from flows.snapshot import table_of
from flows.train import model_name
from models import rules, segments
from models.registry import Registry
from models.rules import Rule
from publish import scoring
from publish.versions import Version


def would_be(lake: Lake, configuration: Configuration, as_of: datetime, before: Version) -> ir.Table | None:
    """Return user_id and segments of the users at `as_of`, by the model and rules of a version before.

    None where the lake has no snapshot at that instant.
    """
    table = table_of(configuration)
    if as_of not in lake.partitions(table):
        return None
    snapshot = lake.read(table, only=[as_of]).to_pandas()
    conditions = before.manifest["rules"].items()
    ready, _ = rules.prepare([Rule(name, one["title"], "", one["condition"]) for name, one in conditions], snapshot)
    met = rules.match(snapshot, ready)
    found = snapshot[["user_id"]].assign(segments=snapshot["user_id"].map(met))
    discovered = _discover(lake, configuration, as_of, before.manifest["models"]["segments"], snapshot)
    if discovered is not None:
        found["segments"] = [[one, *others] for one, others in zip(discovered, found["segments"], strict=True)]
    return ibis.memtable(found, schema=ibis.schema({"user_id": "string", "segments": "array<string>"}))


def _discover(
    lake: Lake, configuration: Configuration, as_of: datetime, number: int | None, snapshot: pd.DataFrame
) -> pd.Series | None:
    """Return the segment of each user by a version of the model; None where there is no such version."""
    if number is None:
        return None
    registry, name = Registry(configuration.mlruns), model_name(configuration, "segments")
    version = registry.load(name, number)
    if version is None:
        return None
    previous = read_previous(lake, configuration, as_of).to_pandas().set_index("user_id")[scoring.PREVIOUS]
    stayed = snapshot["user_id"].map(previous)
    margin = configuration.segments.dwell_margin
    return segments.assign(named(registry, name, version, configuration.personal), snapshot, stayed, margin)[
        "segment_id"
    ]
