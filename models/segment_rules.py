"""A rule for each segment, short enough to be read, by which another tool finds nearly the same users."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

DEPTH_MAX = 4
TREE_LEAVES_MAX = 16
LEAF_USERS_MIN = 5
LEAVES_MAX = 3
"""Leaves of the tree that a rule is made of: one more makes it longer than it makes it better."""
SAMPLE_MAX = 30_000
"""Users that a tree is grown on; what it is worth is measured on all."""
LEAF_GAIN_MIN, CONDITION_GAIN_MIN = 0.05, 0.01
"""By how much a further leaf, or a condition, must raise F1 on the sample to be worth its words."""
ROUNDED_MAX = 0.01
"""The share of users that rounding a threshold to two digits may move; three digits are taken where it moves more."""
CATEGORY_MAX = 10
"""Values of a text column that a rule may name, the most frequent ones."""
NAME = re.compile(r"[a-z_][a-z0-9_]*")
QUOTABLE = re.compile(r"[^'\"\\\x00-\x1f\x7f]{1,40}")

Mask = NDArray[np.bool_]
Columns = dict["Column", NDArray[np.float64]]


@dataclass(frozen=True)
class SegmentRule:
    """A condition with the share of users it finds that are of the segment, and of the segment that it finds.

    `text` is in the language of named segments; `coverage` is the share of all users that it holds for, and
    `sample_size` the number of users that it was learnt from.
    """

    text: str
    precision: float
    recall: float
    coverage: float
    sample_size: int


@dataclass(frozen=True)
class Column:
    """A feature, or whether a text column has a value: 1 or 0, and never null."""

    name: str
    category: str | None = None


@dataclass(frozen=True)
class _Range:
    """Values from `low` on (above it, unless it is whole) up to `high`, and whether null."""

    low: float = -np.inf
    high: float = np.inf
    null: bool = True
    whole: bool = False

    def holds(self, values: NDArray[np.float64]) -> Mask:
        if self.low == np.inf:  # what a tree parts from all that is known
            return np.isnan(values)
        within: Mask = ((values >= self.low) if self.whole else (values > self.low)) & (values <= self.high)
        if self.low == -np.inf:
            within |= values == -np.inf
        return within | np.isnan(values) if self.null else within & ~np.isnan(values)

    def in_words(self, column: Column, nullable: bool) -> str:
        name = column.name
        if column.category is not None:
            has_it = self.high > 1
            return f"{name} = '{column.category}'" if has_it else f"({name} is null or {name} != '{column.category}')"
        if self.low > self.high or self.low == np.inf:
            return f"{name} is null"
        if self.low == -np.inf and self.high == np.inf:
            return f"{name} is not null"
        if self.whole and self.low == self.high:
            said = f"{name} = {_number(self.low)}"
        elif self.whole and np.isfinite([self.low, self.high]).all():
            said = f"{name} between {_number(self.low)} and {_number(self.high)}"
        else:
            above = f"{name} {'>=' if self.whole else '>'} {_number(self.low)}" if self.low > -np.inf else ""
            up_to = f"{name} <= {_number(self.high)}" if self.high < np.inf else ""
            said = " and ".join(filter(None, (above, up_to)))
            if above and up_to and self.null and nullable:
                said = f"({said})"
        return f"({name} is null or {said})" if self.null and nullable else said


_Leaf = dict[Column, _Range]


def find(users: pd.DataFrame, of_users: NDArray[np.intp], count: int) -> list[SegmentRule | None]:
    """Return a rule for each of `count` segments, from the leaves of a shallow tree on the columns of `users`.

    `of_users` is the position of each user's segment. Trees (CART; Breiman et al. 1984) of at most four levels are
    grown on a sample of users, evenly spaced; of their leaves the few are taken that find the segment best (F1), and
    conditions that add next to nothing are left out. Thresholds are rounded to two or three digits. Precision, recall
    and coverage are of the text as it is, over all users. None for a segment without users, or of all of them.
    """
    columns = _columns(users)
    rows = np.linspace(0, len(users) - 1, min(SAMPLE_MAX, len(users))).astype(int)
    sample = {column: values[rows] for column, values in columns.items()}
    whole = {column for column, values in columns.items() if _is_whole(values)}
    nullable = {column for column, values in columns.items() if np.isnan(values).any()}
    found: list[SegmentRule | None] = []
    for i in range(count):
        member = of_users == i
        leaves = _learn(sample, member[rows], whole) if columns and member[rows].any() and not member.all() else []
        if not leaves:
            found.append(None)
            continue
        matched = _holds(leaves, columns)
        right = int((matched & member).sum())
        found.append(
            SegmentRule(
                _in_words(leaves, nullable),
                precision=right / max(1, int(matched.sum())),
                recall=right / int(member.sum()),
                coverage=float(matched.mean()),
                sample_size=len(rows),
            )
        )
    return found


def _columns(users: pd.DataFrame) -> Columns:
    """Return what a rule may speak of, as numbers: columns whose names, and values that, can be written."""
    found: Columns = {}
    for name in map(str, users.columns):
        if not NAME.fullmatch(name) or name in ("user_id", "as_of"):
            continue
        if users[name].dtype == np.float64:
            found[Column(name)] = users[name].to_numpy()
        else:
            for value in users[name].value_counts().index[:CATEGORY_MAX]:
                if QUOTABLE.fullmatch(str(value)):
                    found[Column(name, str(value))] = (users[name] == value).fillna(False).to_numpy(np.float64)
    return found


def _is_whole(values: NDArray[np.float64]) -> bool:
    known = values[np.isfinite(values)]
    return bool((known == np.round(known)).all())


def _learn(sample: Columns, member: Mask, whole: set[Column]) -> list[_Leaf]:
    """Return the leaves that together find the members best, without conditions that are not needed."""
    matrix = np.column_stack(list(sample.values()))
    limit = np.finfo(np.float32).max  # of what trees take
    tree = DecisionTreeClassifier(
        max_depth=DEPTH_MAX,
        max_leaf_nodes=TREE_LEAVES_MAX,
        min_samples_leaf=max(LEAF_USERS_MIN, len(member) // 1000),
        random_state=0,
    ).fit(np.clip(matrix, -limit, limit), member)
    leaves = [(leaf, _holds([leaf], sample)) for leaf in _leaves_of(tree, sample, whole) if leaf]
    chosen: list[_Leaf] = []
    matched, best = np.zeros(len(member), dtype=bool), 0.0
    while leaves:
        scores = [_f1(matched | mask, member) for _, mask in leaves]
        place = int(np.argmax(scores))
        if scores[place] < best + LEAF_GAIN_MIN:
            break
        leaf, mask = leaves.pop(place)
        merged = _merged([*chosen, leaf])
        if len(merged) > LEAVES_MAX:
            break
        chosen, matched, best = merged, matched | mask, scores[place]
    return _pruned(chosen, sample, member)


def _leaves_of(classifier: DecisionTreeClassifier, sample: Columns, whole: set[Column]) -> list[_Leaf]:
    tree, columns = classifier.tree_, list(sample)

    def below(node: int, path: _Leaf) -> list[_Leaf]:
        if tree.children_left[node] < 0:
            return [path]
        column = columns[tree.feature[node]]
        before = path.get(column, _Range(whole=column in whole))
        limit = _rounded(float(tree.threshold[node]), sample[column], column in whole)
        null_left = bool(tree.missing_go_to_left[node])
        above = limit + 1 if column in whole else limit
        left = replace(before, high=min(before.high, limit), null=before.null and null_left)
        right = replace(before, low=max(before.low, above), null=before.null and not null_left)
        return [
            *below(tree.children_left[node], path | {column: left}),
            *below(tree.children_right[node], path | {column: right}),
        ]

    return below(0, {})


def _rounded(threshold: float, values: NDArray[np.float64], whole: bool) -> float:
    """Round a threshold to as few digits as leave nearly all users on their side."""
    if not np.isfinite(threshold):
        return threshold
    if whole:
        return float(np.floor(threshold))
    for digits in (1, 2, 3):
        unit = 10.0 ** (np.floor(np.log10(abs(threshold) or 1)) - digits + 1)
        nearest = round(threshold / unit)
        moved = {}
        for times in (nearest, nearest - 1, nearest + 1):
            rounded = float(f"{times * unit:.12g}")
            low, high = sorted((threshold, rounded))
            moved[rounded] = float(((values > low) & (values <= high)).mean())
        best = min(moved, key=lambda rounded: moved[rounded])
        if moved[best] <= (ROUNDED_MAX if digits > 1 else 0):
            break
    return best


def _merged(leaves: Sequence[_Leaf]) -> list[_Leaf]:
    """Join leaves that lie beside each other."""
    for one, second in combinations(leaves, 2):
        differing = [column for column in one.keys() | second.keys() if one.get(column) != second.get(column)]
        if len(differing) == 1 and differing[0] in one and differing[0] in second:
            [column] = differing
            low, high = sorted((one[column], second[column]), key=lambda part: (part.low, part.high))
            if low.high >= (high.low - 1 if low.whole else high.low):
                joined = replace(low, high=max(low.high, high.high), null=low.null or high.null)
                leaf = {**one, column: joined}
                if joined == _Range(whole=joined.whole):  # says nothing
                    del leaf[column]
                if leaf:
                    return _merged([*(other for other in leaves if other is not one and other is not second), leaf])
    return list(leaves)


def _pruned(leaves: list[_Leaf], sample: Columns, member: Mask) -> list[_Leaf]:
    """Leave out, one after the other, the conditions that matter least."""
    while True:
        enough = _f1(_holds(leaves, sample), member) - CONDITION_GAIN_MIN
        fewer = [
            [*leaves[:i], {one: leaf[one] for one in leaf if one != column}, *leaves[i + 1 :]]
            for i, leaf in enumerate(leaves)
            for column in leaf
            if len(leaf) > 1
        ]
        fewer += [[*leaves[:i], *leaves[i + 1 :]] for i in range(len(leaves)) if len(leaves) > 1]
        scores = [_f1(_holds(some, sample), member) for some in fewer]
        if not scores or max(scores) < enough:
            return leaves
        leaves = _merged(fewer[int(np.argmax(scores))])


def _f1(matched: Mask, member: Mask) -> float:
    return float(2 * (matched & member).sum() / max(1, matched.sum() + member.sum()))


def _holds(leaves: Sequence[_Leaf], columns: Columns) -> Mask:
    found = np.zeros(len(next(iter(columns.values()))), dtype=bool)
    for leaf in leaves:
        in_leaf = np.ones_like(found)
        for column, values in leaf.items():
            in_leaf &= values.holds(columns[column])
        found |= in_leaf
    return found


def _in_words(leaves: Sequence[_Leaf], nullable: set[Column]) -> str:
    told = [" and ".join(part.in_words(column, column in nullable) for column, part in leaf.items()) for leaf in leaves]
    return told[0] if len(told) == 1 else " or ".join(f"({text})" if " and " in text else text for text in told)


def _number(value: float) -> str:
    """Write a number without an exponent, where that can be read.

    >>> _number(1500.0), _number(0.46), _number(-2.0), _number(1e30)
    ('1500', '0.46', '-2', '1e+30')
    """
    return np.format_float_positional(value, trim="-") if 1e-6 < abs(value) < 1e15 or value == 0 else repr(value)
