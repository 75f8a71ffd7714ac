"""Segments side by side, discovered or named: any table of users and segments will do."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.descriptions import cut

EVERYONE = "all users"
VALUES_MAX = 20
OTHERS = "all other values"

Rows = NDArray[np.intp]


def by_feature(snapshot: pd.DataFrame, members: pd.DataFrame, column: str = "segment_name") -> pd.DataFrame:
    """Compare segments by the float64 features of a snapshot.

    `members` has a row for each user_id and segment (`column`): a user may be in many, or in none. Users that the
    snapshot does not have don't count, nor does a null segment. Returns a row per feature and statistic (median and
    mean of known values, null where there are none; null_share, from 0 to 1), after one of the number of users
    ("users", "count"); a column per segment, the largest first, and one of all users. Raises ValueError where a column
    is missing, or a segment is called as that last column.
    """
    features = snapshot.select_dtypes("float64")
    compared = {}
    for name, rows in _groups(snapshot, members, column).items():
        of_one = features.iloc[rows]
        table = pd.DataFrame({"median": of_one.median(), "mean": of_one.mean(), "null_share": of_one.isna().mean()})
        count = pd.Series([float(len(rows))], pd.MultiIndex.from_tuples([("users", "count")]))
        compared[name] = pd.concat([count, table.stack(future_stack=True)])
    return pd.DataFrame(compared).rename_axis(["feature", "statistic"])


def by_attribute(
    snapshot: pd.DataFrame,
    members: pd.DataFrame,
    column: str = "segment_name",
    attributes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Compare segments by attributes: text columns of a snapshot, all of them unless `attributes` names some.

    `members`, `column` and errors are as in `by_feature`. Returns a row per attribute, value and segment, the most
    frequent value and the largest segment first: attribute, value, segment, users, share (of the segment) and
    share_of_all (of all users), both from 0 to 1. A user without a value counts under the value null. Of more than 20
    values the less frequent ones are one; a long value is cut.
    """
    texts = [str(name) for name in snapshot.select_dtypes(exclude=["number", "datetimetz"]) if name != "user_id"]
    groups = _groups(snapshot, members, column)
    rows = []
    for attribute in texts if attributes is None else attributes:
        if attribute not in texts:
            raise ValueError(f"the snapshot has no attribute {attribute!r}; there are {', '.join(texts) or 'none'}")
        codes, values = _coded(snapshot[attribute])
        overall = np.bincount(codes, minlength=len(values)) / max(1, len(codes))
        counts = {name: np.bincount(codes[of_one], minlength=len(values)) for name, of_one in groups.items()}
        for i, value in enumerate(values):
            for name, of_one in groups.items():
                users = int(counts[name][i])
                if overall[i] and name != EVERYONE:
                    rows.append((attribute, value, name, users, users / len(of_one), overall[i]))
    return pd.DataFrame(rows, columns=["attribute", "value", "segment", "users", "share", "share_of_all"])


def _coded(column: pd.Series) -> tuple[Rows, list[str | None]]:
    """Return the position of each row's value among the most frequent ones, all others together, and null."""
    codes, values = pd.factorize(column, sort=True)
    known = codes >= 0
    order = np.argsort(-np.bincount(codes[known], minlength=len(values)), kind="stable")
    kept = len(values) if len(values) <= VALUES_MAX else VALUES_MAX - 1
    place = np.empty(len(values) + 1, dtype=np.intp)  # the last is of null, which is coded as -1
    place[order] = np.minimum(np.arange(len(values)), kept)
    place[-1] = kept + 1
    shown: list[str | None] = [cut(str(values[i])) for i in order[:kept]]
    return place[codes], [*shown, OTHERS, None]


def _groups(snapshot: pd.DataFrame, members: pd.DataFrame, column: str) -> dict[str, Rows]:
    """Return the snapshot's rows of each segment, the largest first, and of all users."""
    for what, table, needed in (
        ("snapshot", snapshot, ["user_id"]),
        ("table of members", members, ["user_id", column]),
    ):
        for name in needed:
            if name not in table:
                raise ValueError(f"the {what} has no column {name!r}; there are {', '.join(map(str, table.columns))}")
    pairs = members[["user_id", column]].dropna().drop_duplicates()
    if (pairs[column] == EVERYONE).any():
        raise ValueError(f"a segment is called {EVERYONE!r}, as the column that it is compared with: rename it")
    pairs["row"] = pd.Index(snapshot["user_id"]).get_indexer(pairs["user_id"])
    known = pairs[pairs["row"] >= 0]
    found = {str(name): rows.to_numpy() for name, rows in known.groupby(column, sort=True)["row"]}
    largest_first = sorted(found, key=lambda name: -len(found[name]))
    return {name: found[name] for name in largest_first} | {EVERYONE: np.arange(len(snapshot))}
