"""LightGBM's trees, opened: what they make of a value, and their scores, exactly as LightGBM gives them but sooner.

Trees see a value through their thresholds only, so what matters is its *code*: its place between all thresholds of its
feature.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE = 16_384  # what is looked up for them stays in a processor's cache
ROWS_WORTH_OPENING = 50_000
LEAVES_MAX = 16  # of trees that are scored here: a row's leaves are the bits of a number

Matrix = NDArray[np.float64]
Node = dict[str, Any]


class Leaf(NamedTuple):
    """A leaf's value; and of each feature on its path, which codes pass and which share of the training rows did."""

    value: float
    path: dict[int, tuple[NDArray[np.bool_], float]]


@dataclass(frozen=True)
class Forest:
    """Hold the last value of each code by feature, the leaves of each tree from left to right, and the levels."""

    ends: dict[int, Matrix]
    trees: list[list[Leaf]]
    depth: int

    def codes(self, matrix: Matrix) -> dict[int, NDArray[np.intp]]:
        """Return the code of each row's value, by feature."""
        return {feature: np.searchsorted(ends, matrix[:, feature]) for feature, ends in self.ends.items()}

    def raw_scores(self, matrix: Matrix) -> Matrix:
        """Return the raw score (log odds) of each row, to the last bit as LightGBM gives it.

        Which leaves a value leaves open is known for each code beforehand, a bit for each leaf; of a row's values
        together one leaf is left (QuickScorer; Lucchese et al. 2015).
        """
        codes = self.codes(matrix)
        found = np.zeros(len(matrix))
        left, told = np.empty((2, len(matrix)), dtype=np.uint16)
        for values, open_by_feature in self._open_leaves:
            left[:] = (1 << len(values)) - 1
            for feature, open_by_code in open_by_feature.items():
                left &= np.take(open_by_code, codes[feature], out=told, mode="clip")  # the default would copy `out`
            found += values[LEAF_OF_BIT[left]]
        return found

    @cached_property
    def _open_leaves(self) -> list[tuple[Matrix, dict[int, NDArray[np.uint16]]]]:
        """Return for each tree its leaves' values, and by feature and code which leaves are open, a bit each."""
        return [(np.array([leaf.value for leaf in leaves]), self._open(leaves)) for leaves in self.trees]

    def _open(self, leaves: list[Leaf]) -> dict[int, NDArray[np.uint16]]:
        found: dict[int, NDArray[np.uint16]] = {}
        for feature in sorted({feature for leaf in leaves for feature in leaf.path}):
            everywhere = np.ones(len(self.ends[feature]), dtype=bool)
            passing = [leaf.path[feature][0] if feature in leaf.path else everywhere for leaf in leaves]
            found[feature] = np.zeros(len(everywhere), dtype=np.uint16)
            for number, of_leaf in enumerate(passing):
                found[feature] |= of_leaf.astype(np.uint16) << number
        return found


LEAF_OF_BIT = np.zeros(1 << LEAVES_MAX, dtype=np.uint8)
LEAF_OF_BIT[1 << np.arange(LEAVES_MAX)] = np.arange(LEAVES_MAX)


def opened(booster: lgb.Booster) -> Forest | None:
    """Open a booster's trees; None where they take zero for null, or average, which is told by LightGBM alone."""
    dumped = booster.dump_model()
    roots = [tree["tree_structure"] for tree in dumped["tree_info"]]
    splits = [split for root in roots for split in _splits(root)]
    if dumped["average_output"] or any(split["missing_type"] == "Zero" for split in splits):
        return None
    ends = _ends(splits)
    return Forest(ends, [list(_leaves(root, ends, {})) for root in roots], max(map(_depth, roots), default=0))


def scorer(trees: lgb.LGBMClassifier, row_count: int) -> Callable[[Matrix], Matrix]:
    """Return what turns a matrix into raw scores (log odds), the same in either way.

    Opening trees takes as long as LightGBM's own way with some ten thousand rows.
    """
    forest = opened(trees.booster_) if row_count >= ROWS_WORTH_OPENING else None
    if forest is None or max(map(len, forest.trees), default=0) > LEAVES_MAX:
        return lambda matrix: np.asarray(trees.predict(matrix, raw_score=True))
    return forest.raw_scores


def _splits(node: Node) -> Iterator[Node]:
    if "split_feature" in node:
        yield node
        yield from _splits(node["left_child"])
        yield from _splits(node["right_child"])


def _depth(node: Node) -> int:
    return 1 + max(_depth(node["left_child"]), _depth(node["right_child"])) if "split_feature" in node else 0


def _ends(splits: list[Node]) -> dict[int, Matrix]:
    """Return the last value of each code of each feature, in order; null, which sorts last, has the last code."""
    ends: dict[int, set[float]] = {}
    for split in splits:
        of_feature = ends.setdefault(split["split_feature"], {np.inf})
        if split["decision_type"] == "==":
            of_feature.update(end for category in _categories(split) for end in (category - 0.5, category))
        else:
            of_feature.add(_threshold(split))
    return {feature: np.array([*sorted(of_feature), np.nan]) for feature, of_feature in ends.items()}


def _threshold(split: Node) -> float:
    """Return a number's threshold; where it parts nulls from all numbers, LightGBM dumps infinity as 1e300."""
    return np.inf if split["threshold"] >= 1e300 else split["threshold"]


def _categories(split: Node) -> list[float]:
    return [float(category) for category in split["threshold"].split("||")]


def _goes_left(split: Node, values: Matrix) -> NDArray[np.bool_]:
    """Say which values go left, as LightGBM does it: of categories, those that are named."""
    if split["decision_type"] == "==":
        return np.isin(values, _categories(split))
    null_goes_left = split["default_left"] if split["missing_type"] == "NaN" else _threshold(split) >= 0
    left: NDArray[np.bool_] = np.where(np.isnan(values), null_goes_left, values <= _threshold(split))
    return left


def _leaves(node: Node, ends: dict[int, Matrix], path: dict[int, tuple[Any, float]]) -> Iterator[Leaf]:
    """List the leaves below a node from left to right; conditions on one feature are taken as one."""
    if "split_feature" not in node:
        yield Leaf(node["leaf_value"], path)
        return
    feature = node["split_feature"]
    left = _goes_left(node, ends[feature])
    passing, share = path.get(feature, (True, 1.0))
    for child, goes in ((node["left_child"], left), (node["right_child"], ~left)):
        count = child["internal_count"] if "split_feature" in child else child["leaf_count"]
        condition = passing & goes, share * count / node["internal_count"]
        yield from _leaves(child, ends, path | {feature: condition})
