"""Belonging by degrees: how much of each segment a user has, so that those at the border can be taken, too."""

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from models.candidates import Method

LEAST_STRENGTH = 0.1
"""Of a segment that is listed."""
STEPS = 1000
"""Strengths are cut to so many steps from 0 to 1, downwards, so that they never sum to more than 1."""
STRENGTHS = pa.list_(pa.struct([("segment_id", pa.string()), ("strength", pa.float64())]))


def strengths(distances: NDArray[np.float64], ids: list[str], method: Method) -> pd.Series:
    """List for each user the segments of a strength of at least LEAST_STRENGTH, the strongest first, as STRENGTHS.

    `distances` has a row per user and a column per segment, as `models.clusters.distances` returns them. Of a mixture a
    strength is the probability of the segment. Of k-means it is the membership of fuzzy c-means with m = 2 (Bezdek
    1981): of all inverse squared distances, the share that is the segment's.
    """
    order = np.argsort(ids)
    nearest = distances.min(axis=1, keepdims=True)
    odds = np.divide(nearest, distances[:, order], out=np.ones_like(distances), where=distances[:, order] > 0)
    if method == "k-means":
        odds **= 2
    found = np.floor(odds / odds.sum(axis=1, keepdims=True) * STEPS + 1e-6) / STEPS
    ranked = np.argsort(-found, axis=1, kind="stable")
    found = np.take_along_axis(found, ranked, axis=1)
    is_listed = found >= LEAST_STRENGTH
    offsets = np.concatenate([[0], np.cumsum(is_listed.sum(axis=1))]).astype(np.int32)
    names = pa.array([ids[i] for i in order], pa.string()).take(pa.array(ranked[is_listed]))
    pairs = pa.StructArray.from_arrays([names, pa.array(found[is_listed])], fields=list(STRENGTHS.value_type))
    listed = pa.ListArray.from_arrays(pa.array(offsets), pairs, type=STRENGTHS)
    return pd.Series(listed, dtype=pd.ArrowDtype(STRENGTHS))
