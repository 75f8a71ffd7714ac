"""Leaks: features that tell a label so well alone, and categories that name it, that they may know it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

KEY = ["user_id", "as_of"]
ALONE_MAX = 0.99
"""No feature should tell a label that well alone. Of students who were there within 28 days (examples/oulad), days
since the last session tell with an AUC of 0.83 who will not come back, and with 0.989 of all who ever were there, most
of whom left long ago."""
NAMED_MIN = 0.95
"""A category names a label if more than so many with it have the same outcome, which most others have not."""
FOLDS = 5
Z = float(norm.isf(0.025))
NO_VALUE = "(none)"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Alone:
    """Hold how well a feature tells a label alone: AUC with its 95 % interval, by so many users."""

    label: str
    feature: str
    auc: float
    low: float
    high: float
    users: int


@dataclass(frozen=True)
class Naming:
    """Name a value of a category with which nearly all have one outcome of a label, by shares of rows.

    `users` have the value.
    """

    label: str
    feature: str
    value: str
    outcome: bool
    share: float
    share_of_others: float
    users: int


def measure_alone(frame: pd.DataFrame, labels: Sequence[str]) -> list[Alone]:
    """Measure how well each feature of labelled snapshots tells each label alone, the best first.

    `frame` holds one row per (user_id, as_of) with columns for the features and for `labels` (bool; null: the row does
    not count). A float64 feature is ranked by its values, whichever direction and whichever end for nulls is best;
    any other by the rate that its value, or its absence, has with other users. A feature with one value tells nothing
    and is left out, as are labels without both outcomes. The interval is Newcombe's (2006, method 5) with users for
    rows, since the rows of a user are alike.
    """
    measured = []
    for label in labels:
        rows, happened = _labelled(frame, label)
        if happened.all() or not happened.any():
            continue
        users, user_count = _codes(rows["user_id"])
        positive, negative = (len(np.unique(users[part])) for part in (happened, ~happened))
        for feature in _features(frame, labels):
            if rows[feature].nunique(dropna=False) < 2:
                continue
            values = rows[feature]
            if values.dtype == "float64":
                auc = _auc_of_numbers(values.to_numpy(), happened)
            else:
                auc = _auc(_rates_of_others(values, happened, users % FOLDS), happened)
            low, high = newcombe(auc, positive, negative)
            measured.append(Alone(label, feature, auc, low, high, user_count))
    return sorted(measured, key=lambda alone: (-alone.auc, alone.label, alone.feature))


def too_good(measured: Sequence[Alone]) -> list[Alone]:
    """Return those that tell a label suspiciously well alone: whose interval lies above ALONE_MAX."""
    return [alone for alone in measured if alone.low > ALONE_MAX]


def find_naming(frame: pd.DataFrame, labels: Sequence[str]) -> list[Naming]:
    """Find values of categories that name a label, in a frame as for `measure_alone`; null is a value.

    That is one with which an outcome's share is above NAMED_MIN, as that of all other rows is not above one half. Both
    by the ends of Wilson's (1927) intervals, with users for rows, and with as much more certainty as there are values.
    """
    found = []
    for label in labels:
        rows, happened = _labelled(frame, label)
        users, user_count = _codes(rows["user_id"])
        for feature in _features(frame, labels):
            if rows[feature].dtype == "float64":
                continue
            groups = pd.DataFrame({"value": _text(rows[feature]), "happened": happened, "user": users})
            by_value = groups.groupby("value", sort=True).agg(
                rows=("happened", "size"), happened=("happened", "sum"), users=("user", "nunique")
            )
            z = float(norm.isf(0.025 / max(len(by_value), 1)))
            enough = z**2 * NAMED_MIN / (1 - NAMED_MIN)  # fewer users could not show it
            for value, group in by_value[by_value["users"] > enough].iterrows():
                others = len(rows) - group["rows"]
                if not others:
                    continue
                share, share_of_others = (
                    group["happened"] / group["rows"],
                    (happened.sum() - group["happened"]) / others,
                )
                for outcome in (True, False):
                    this, rest = (share, share_of_others) if outcome else (1 - share, 1 - share_of_others)
                    low, _ = wilson(this, group["users"], z)
                    _, high = wilson(rest, max(user_count - group["users"], 1), z)
                    if low > NAMED_MIN and high < 0.5:
                        found.append(
                            Naming(label, feature, str(value), outcome, float(this), float(rest), int(group["users"]))
                        )
    return sorted(found, key=lambda naming: (-naming.users, naming.label, naming.feature, naming.value))


def unmeasured(frame: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Say in words which labels no feature can be measured by: one outcome, or too few users for any verdict."""
    reasons = []
    for label in labels:
        rows, happened = _labelled(frame, label)
        positive, negative = (rows["user_id"][part].nunique() for part in (happened, ~happened))
        if not len(rows):
            reasons.append(f"{label}: no row has this label")
        elif not positive or not negative:
            reasons.append(f"{label}: it is {'true' if positive else 'false'} of all {len(rows):,} rows")
        elif newcombe(1.0, positive, negative)[0] <= ALONE_MAX:
            reasons.append(
                f"{label}: {positive:,} users with it and {negative:,} without are too few to tell a leak from luck, "
                "even if a feature separated them"
            )
    return reasons


def newcombe(auc: float, positive: int, negative: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUC by so many positives and negatives (Newcombe 2006, method 5).

    >>> [round(end, 3) for end in newcombe(1.0, 200, 200)]
    [0.99, 1.0]
    """
    half = (positive + negative) / 2 - 1

    def is_within(tried: float) -> bool:
        variance = tried * (1 - tried) * (1 + half * (1 - tried) / (2 - tried) + half * tried / (1 + tried))
        return (auc - tried) ** 2 <= Z**2 * variance / (positive * negative)

    def end(outside: float) -> float:
        inside = auc
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_within(middle) else (inside, middle)
        return inside

    return end(0.0), end(1.0)


def wilson(share: float, count: float, z: float = Z) -> tuple[float, float]:
    """Return the interval of a share of so many (Wilson 1927).

    >>> [round(end, 3) for end in wilson(1.0, 100)]
    [0.963, 1.0]
    """
    centre = share + z**2 / (2 * count)
    half = z * float(np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)))
    return max((centre - half) / (1 + z**2 / count), 0.0), min((centre + half) / (1 + z**2 / count), 1.0)


def _features(frame: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    return [str(name) for name in frame.columns if name not in (*KEY, *labels)]


def _labelled(frame: pd.DataFrame, label: str) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    rows = frame[frame[label].notna()]
    return rows, rows[label].to_numpy(dtype=bool)


def _codes(users: pd.Series) -> tuple[NDArray[np.intp], int]:
    """Return the users' numbers, in the order of their ids, and how many users there are."""
    codes, found = pd.factorize(users, sort=True)
    return codes, len(found)


def _text(values: pd.Series) -> pd.Series:
    return values.astype("string").fillna(NO_VALUE).astype(object)


def _auc(scores: Floats, happened: NDArray[np.bool_]) -> float:
    positive = int(happened.sum())
    pairs = positive * (len(happened) - positive)
    above = rankdata(scores)[happened].sum() - positive * (positive + 1) / 2
    return float(above / pairs)


def _auc_of_numbers(values: Floats, happened: NDArray[np.bool_]) -> float:
    """Return the best AUC with small values or large ones first, and nulls before or after them."""
    is_null = np.isnan(values)
    aucs = [_auc(np.where(is_null, end, values), happened) for end in (-np.inf, np.inf)]
    return max(max(auc, 1 - auc) for auc in aucs)


def _rates_of_others(values: pd.Series, happened: NDArray[np.bool_], folds: NDArray[np.intp]) -> Floats:
    """Return for each row how often it happened with its value, by the users of the other folds."""
    codes, found = pd.factorize(_text(values))
    cell = codes * FOLDS + folds
    size = len(found) * FOLDS
    count = np.bincount(cell, minlength=size).reshape(-1, FOLDS)
    times = np.bincount(cell, weights=happened, minlength=size).reshape(-1, FOLDS)
    base = (times.sum() - times.sum(axis=0)) / np.maximum(count.sum() - count.sum(axis=0), 1)
    rates = (times.sum(axis=1, keepdims=True) - times + base) / (count.sum(axis=1, keepdims=True) - count + 1)
    return np.asarray(rates.reshape(-1)[cell], dtype=np.float64)
