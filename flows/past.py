"""Past snapshots whose outcomes are known: what segments may learn from, and are judged by."""

import hashlib
from collections.abc import Sequence
from datetime import datetime

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd

from features.events import EVENTS
from features.lake import Lake
from features.outcomes import LABEL, outcomes
from flows.configuration import Configuration
from flows.snapshot import complete_dates, stored_snapshots, table_of
from models.clusters import LEARNT_MAX
from models.telling import EVENT_COUNT, REVENUE, Past


def read_past(configuration: Configuration, lake: Lake, as_of: datetime) -> list[Past]:
    """Read the snapshots at complete dates, as far as the lake holds them, and what their users did until `as_of`.

    Of very many users it is a sample, the same for all instants.
    """
    there = lake.partitions(table_of(configuration))
    instants, labels = complete_dates(configuration, lake, as_of)
    horizons = {f"{LABEL}{name}": label.horizon_days for name, label in labels.items()}
    horizons |= dict.fromkeys((REVENUE, EVENT_COUNT), next(iter(horizons.values()), 0.0))
    found = []
    for instant in instants:
        if there.get(instant, 0):
            snapshot = _sample(stored_snapshots(lake, configuration, [instant]))
            then = outcomes(snapshot, lake.read(EVENTS), as_of, labels).to_pandas()
            users = snapshot.to_pandas().sort_values("user_id", ignore_index=True)
            found.append(Past(users, then.sort_values("user_id", ignore_index=True), horizons))
    return found


def digest(past: Sequence[Past]) -> str:
    """Return what tells these snapshots and outcomes from others."""
    content = hashlib.sha256()
    for one in past:
        for frame in (one.users, one.outcomes):
            content.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return content.hexdigest()


def _sample(snapshot: ir.Table) -> ir.Table:
    if int(snapshot.count().to_pyarrow().as_py()) <= LEARNT_MAX:
        return snapshot
    user_ids = np.sort(snapshot.user_id.to_pyarrow().to_numpy(zero_copy_only=False))
    chosen = np.random.default_rng(0).permutation(user_ids)[:LEARNT_MAX]
    return snapshot.semi_join(ibis.memtable(pd.DataFrame({"user_id": chosen})), "user_id")
