"""Segments side by side: feature by feature, and named ones by the discovered ones of their users."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.snapshots import title
from publish.report.content import SUPPRESSED, Compared, ComparedFeature, Count, Overlap
from publish.report.groups import Counted, Groups
from publish.report.metrics import rounded, shown_count
from publish.report.suppression import is_small


def compare_features(
    snapshot: pd.DataFrame, groups: Groups, order: Sequence[str], may_tell: Callable[[str], Counted]
) -> list[ComparedFeature]:
    """Compare the numbers of the snapshot between segments, in an order, and with everyone's.

    `snapshot` has the groups' users in their order; `may_tell` counts them by what a feature tells of them.
    """
    shown = [name for name in order if name in groups.shown]
    rows = {name: groups.rows(name) for name in shown}
    found = []
    for feature in map(str, snapshot.select_dtypes("float64")):
        values, counted = snapshot[feature].to_numpy(), may_tell(feature)
        everyone = _compared(values, counted.everyone_hidden[2], groups.k)
        segments = {name: _compared(values[rows[name]], counted.hidden[name][2], groups.k) for name in shown}
        found.append(ComparedFeature(name=feature, title=title(feature), everyone=everyone, segments=segments))
    return found


def count_overlap(groups: Groups, order: Sequence[str]) -> list[Overlap]:
    """Count the users of named segments by discovered one; what a hidden segment has is hidden."""
    if not groups.discovered:
        return []
    members = groups.members[: len(groups.discovered)]
    own = np.where(members.any(axis=0), members.argmax(axis=0), len(members))
    counted = groups.count_values(own, len(members) + 1)
    found = []
    for name in order:
        if name not in groups.named:
            continue
        is_shown = name in groups.shown
        cells: dict[str, Count] = {}
        for i, other in enumerate(groups.discovered):
            is_hidden = groups.sizes[name] > 0
            if is_shown:
                is_hidden = bool(counted.hidden[name][i]) or (other not in groups.shown and groups.sizes[other] > 0)
            cells[other] = shown_count(counted.segments[name][i] if is_shown else 0, is_hidden)
        users = shown_count(groups.sizes[name], not is_shown and groups.sizes[name] > 0)
        found.append(Overlap(segment_id=name, users=users, discovered=cells))
    return found


def _compared(values: NDArray[np.float64], is_hidden: bool, k: int) -> Compared:
    known = values[np.isfinite(values)]
    if is_hidden or is_small(np.array([len(known), len(values)]), k).any():
        return Compared(median=SUPPRESSED, mean=SUPPRESSED, known=SUPPRESSED)
    if not len(known):
        return Compared(median=None, mean=None, known=0.0)
    return Compared(
        median=rounded(float(np.median(known))),
        mean=rounded(float(known.mean())),
        known=rounded(len(known) / len(values)),
    )
