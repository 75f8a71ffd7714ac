"""What the model and rules of an earlier version would say of users now, which tells why they changed segments."""

from datetime import datetime

import ibis
import pandas as pd

from features.lake import Lake
from flows.configuration import Configuration
from flows.identity import named
from flows.score import read_previous
from flows.snapshot import stored_snapshots, table_of
from flows.train import model_name
from models import rfm, rules, segments
from models.registry import Registry
from models.rules import Rule
from publish import scoring
from publish.changes import Otherwise
from publish.versions import Version


def would_be(lake: Lake, configuration: Configuration, as_of: datetime, before: Version) -> Otherwise | None:
    """Return the segments of the users at `as_of` by the model and rules of a version before.

    Rules that were off then say nothing; those on features that there are no more cannot be asked, nor can a model of
    segments that is gone. None where the lake has no snapshot at that instant.
    """
    table = table_of(configuration)
    if as_of not in lake.partitions(table):
        return None
    snapshot = stored_snapshots(lake, configuration, [as_of]).to_pandas()
    were_off = before.manifest.get("rules_off", ())
    were_on = [
        Rule(name, one["title"], "", one["condition"], tuple(one.get("needs", ())))
        for name, one in before.manifest["rules"].items()
        if name not in were_off
    ]
    ready, _ = rules.prepare(were_on, snapshot, rfm.lines_of(before.manifest))
    unasked = {rule.name for rule in were_on if {*rule.features} - {*snapshot, *rfm.WORDS}}
    met = rules.match(snapshot, ready)
    found = snapshot[["user_id"]].assign(segments=snapshot["user_id"].map(met))
    discovered = _discover(lake, configuration, as_of, before.manifest["models"]["segments"], snapshot)
    if discovered is None:
        unasked |= before.manifest["segments"].keys()
    else:
        found["segments"] = [[one, *others] for one, others in zip(discovered, found["segments"], strict=True)]
    segments_now = ibis.memtable(found, schema=ibis.schema({"user_id": "string", "segments": "array<string>"}))
    return Otherwise(segments_now, unasked)


def _discover(
    lake: Lake, configuration: Configuration, as_of: datetime, number: int | None, snapshot: pd.DataFrame
) -> pd.Series | None:
    """Return the segment of each user by a version of the model; None where it is gone, or features of it are."""
    if number is None:
        return None
    registry, name = Registry(configuration.mlruns), model_name(configuration, "segments")
    version = registry.load(name, number)
    if version is None:
        return None
    model = named(registry, name, version, configuration.personal)
    if {*model.features} - {*snapshot}:
        return None
    previous = read_previous(lake, configuration, as_of).to_pandas().set_index("user_id")[scoring.PREVIOUS]
    stayed = snapshot["user_id"].map(previous)
    return segments.assign(model, snapshot, stayed, configuration.segments.dwell_margin)["segment_id"]
