"""Populations: of which users a feature tells something, and what these are called."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.snapshots import TREND_DAYS, window_of

TREND, TREND_HISTORY_DAYS = "session_trend_28d", 2 * TREND_DAYS
"""Of users who first came more recently than so many days ago, a trend tells that they are new."""
HABITS = tuple(f"{when}_session_share" for when in ("night", "morning", "afternoon", "evening", "weekend"))
HABIT_SESSIONS_MIN = 3
"""Of users with fewer sessions, hours and weekdays are chance and no habit."""
AMONG = {
    TREND: f"those known for {TREND_HISTORY_DAYS} days",
    "return_absence_days": "those who came in the last 28 days and before",
    "pages_per_session": "those with a page view",
    "bounce_rate": "those with a page view",
    "engaged_rate": "those with a page view",
    "support_recency_days": "those who sought support",
    "cart_abandonment_rate": "those who filled a cart",
    "cart_abandoned_recency_days": "those who abandoned a cart",
    "purchase_recency_days": "those who bought",
    "revenue_per_purchase": "those who bought",
    **dict.fromkeys(HABITS, f"those with {HABIT_SESSIONS_MIN} sessions or more"),
}
"""Whom a feature applies to, where it does not apply to all."""
KNOWN = "those of whom it is known"


def whom(name: str, known: NDArray[np.bool_]) -> str | None:
    """Say whom a feature applies to; None where it applies to all.

    >>> whom("purchase_recency_days", np.array([True, False]))
    'those who bought'
    """
    return None if known.all() else AMONG.get(name, KNOWN)


def meaningful(users: pd.DataFrame) -> pd.DataFrame:
    """Return users with those features only that tell something of them, null of users of whom they don't.

    A trend is of users who first came 56 days ago or earlier, and 0 where they came in none of these days; hours and
    weekdays are of users with three sessions or more. A window longer than the history that there is, is left out.
    """
    enough = pd.Series(np.inf, users.index)  # in a table that is no whole snapshot
    tenure, sessions = users.get("tenure_days", enough), users.get("session_count", enough)
    told = {name: users[name].where(sessions >= HABIT_SESSIONS_MIN) for name in HABITS if name in users}
    if TREND in users:
        told[TREND] = users[TREND].fillna(0.0).where(tenure >= TREND_HISTORY_DAYS)
    beyond = [str(name) for name in users if (window_of(str(name)) or 0) > tenure.max()]
    return users.assign(**told).drop(columns=beyond)
