"""The dwell rule: a user at the border of two segments stays where he was, and does not flap between them."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Indices = NDArray[np.intp]


def stay(distances: NDArray[np.float64], previous: Indices, margin: float) -> Indices:
    """Return each user's segment: the nearest one, or the previous one where the nearest is not clearly nearer.

    `distances` has a row per user and a column per segment, `previous` a column's number per user, -1 for none. A user
    leaves where the nearest is nearer than the previous one by at least the share `margin`, from 0 to below 1, of the
    distance to the previous one; with 0, whenever another is nearer. So is hysteresis in a thermostat.
    """
    found: Indices = distances.argmin(axis=1)
    known = np.flatnonzero(previous >= 0)
    nearest, own = (distances[known, segment[known]] for segment in (found, previous))
    found[known] = np.where(nearest > (1 - margin) * own, previous[known], found[known])
    return found


def flap_rate(segments: pd.DataFrame) -> float:
    """Return the share of users who leave a segment and are back in it at the next snapshot but one.

    `segments` has a row per user and a column per snapshot, equally far apart; null where a user is not in it. Each
    three snapshots in a row count for themselves, with the users who are in all of them: A, B, A is a flap. NaN without
    any.
    """
    ids = segments.to_numpy()
    first, second, third = ids[:, :-2], ids[:, 1:-1], ids[:, 2:]
    is_known = pd.notna(first) & pd.notna(second) & pd.notna(third)
    return float(((first == third) & (first != second))[is_known].mean()) if is_known.any() else float("nan")
