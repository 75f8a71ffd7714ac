"""Segments keep their ids from one training to the next."""

from dataclasses import replace

import pandas as pd
from scipy.optimize import linear_sum_assignment

from models.segments import SegmentModel, numbered


def align(model: SegmentModel, new: pd.Series, old: pd.Series, next_number: int) -> SegmentModel:
    """Give a new model's segments the ids under which they are known.

    `new` and `old` are segment ids by user_id, of the new model and of the one that serves; users that only
    one of them knows don't count. The pairs are those that keep most users under their old id (Kuhn 1955). A
    segment without a pair, or without a user in common with it, gets a fresh id from the old model's
    `next_number` on: an id is never used twice.
    """
    overlap = pd.crosstab(new, old.reindex(new.index))
    counts = overlap.to_numpy()
    pairs = zip(*linear_sum_assignment(counts, maximize=True), strict=True)
    kept = {str(overlap.index[i]): str(overlap.columns[j]) for i, j in pairs if counts[i, j] > 0}
    fresh = [segment for segment in model.segments if segment.segment_id not in kept]
    numbers = numbered([segment.size for segment in fresh], first=next_number)
    known = kept | {segment.segment_id: number for segment, number in zip(fresh, numbers, strict=True)}
    return replace(
        model,
        segments=tuple(replace(segment, segment_id=known[segment.segment_id]) for segment in model.segments),
        next_number=next_number + len(fresh),
    )
