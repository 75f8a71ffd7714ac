"""Named segments that marketing already has in mind, written as conditions on features."""

from collections.abc import Callable

import pandas as pd

# name: (who they are, the condition). A comparison with a null is false: what does not apply never matches.
RULES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "cart_abandoners": (
        "left a cart in the last 28 days and has bought nothing since",
        lambda users: (
            (users["cart_abandoned_recency_days"] <= 28)
            & (users["purchase_recency_days"].fillna(float("inf")) > users["cart_abandoned_recency_days"])
        ),
    ),
    "support_seekers": (
        "went to support at least twice in the last 28 days",
        lambda users: users["support_visit_count_28d"] >= 2,
    ),
    "frequent_visitors": (
        "came at least 8 times in the last 28 days",
        lambda users: users["session_count_28d"] >= 8,
    ),
    "frequent_buyers": (
        "bought at least 3 times in the last 90 days",
        lambda users: users["purchase_count_90d"] >= 3,
    ),
    "one_time_visitors": (
        "came once, and not again for at least a week",
        lambda users: (users["session_count"] == 1) & (users["recency_days"] >= 7),
    ),
    "new_visitors": (
        "came for the first time in the last 7 days",
        lambda users: users["tenure_days"] < 7,
    ),
    "researchers": (
        "searched at least 5 times and never filled a cart",
        lambda users: (users["search_count"] >= 5) & (users["cart_count"] == 0),
    ),
    "at_risk": (
        "came at least 8 times in the last 90 days, but not in the last 14",
        lambda users: (users["session_count_90d"] >= 8) & (users["recency_days"] > 14),
    ),
    "dormant": (
        "has not come for more than 90 days",
        lambda users: users["recency_days"] > 90,
    ),
}


def match(snapshot: pd.DataFrame) -> pd.Series:
    """Return the sorted names of the rules that each user of a snapshot meets, as a list by user_id.

    A rule on a feature that the snapshot does not have, such as another window, is left out.
    """
    met = pd.DataFrame(index=snapshot["user_id"])
    for name, (_, condition) in sorted(RULES.items()):
        try:
            met[name] = condition(snapshot).to_numpy(dtype=bool)
        except KeyError:
            continue
    names = [[name for name, is_met in zip(met, row, strict=True) if is_met] for row in met.to_numpy()]
    return pd.Series(names, index=met.index, name="rule_segments", dtype=object)
