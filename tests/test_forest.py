from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from numpy.typing import NDArray

from models.forest import LEAVES_MAX, ROWS_WORTH_OPENING, opened, scorer

Matrix = NDArray[np.float64]


def rows(count: int = 3_000) -> Matrix:
    """Draw two numbers with nulls, one with few values, and a category."""
    random = np.random.default_rng(3)
    heavy, few = np.exp(random.normal(size=count)), random.integers(0, 4, count).astype("float64")
    gappy = np.where(random.random(count) < 0.3, np.nan, random.normal(size=count))
    category = random.integers(0, 12, count).astype("float64")
    return np.column_stack([heavy, few, gappy, category])


def grow(matrix: Matrix, **given: Any) -> lgb.LGBMClassifier:
    settings = {"n_estimators": 40, "num_leaves": 15, "max_depth": 4, "min_child_samples": 5} | given
    odds = np.log(matrix[:, 0]) + np.isnan(matrix[:, 2]) + (matrix[:, 3] % 3 == 1) * matrix[:, 1]
    happened = odds + np.random.default_rng(4).logistic(size=len(matrix)) > 1
    return lgb.LGBMClassifier(verbose=-1, n_jobs=1, **settings).fit(matrix, happened, categorical_feature=[3])


def by_lightgbm(trees: lgb.LGBMClassifier, matrix: Matrix) -> bytes:
    return np.asarray(trees.predict(matrix, raw_score=True)).tobytes()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_leaves": 2},
        {"num_leaves": LEAVES_MAX, "max_depth": -1},
        {"min_child_samples": 3_000},  # no split at all
        {"use_missing": False},
        {"n_estimators": 1},
    ],
)
def test_scores_are_lightgbms_to_the_last_bit(settings: dict[str, Any]) -> None:
    trees = grow(rows(), **settings)
    odd = np.array([[np.inf, -np.inf, np.nan, np.nan], [0, -1, 0, 99], [1e300, 2.5, -0.0, -1], [np.nan] * 4])
    asked = np.vstack([rows(), odd])

    forest = opened(trees.booster_)
    assert forest is not None
    assert forest.raw_scores(asked).tobytes() == by_lightgbm(trees, asked)


def test_a_value_on_a_threshold_and_the_next_number_are_told_apart() -> None:
    trees = grow(rows())
    forest = opened(trees.booster_)
    assert forest is not None
    thresholds = forest.ends[0][:-2]
    asked = np.tile(rows(1), (2 * len(thresholds), 1))
    asked[:, 0] = np.concatenate([thresholds, np.nextafter(thresholds, np.inf)])

    assert forest.raw_scores(asked).tobytes() == by_lightgbm(trees, asked)


@pytest.mark.parametrize("settings", [{}, {"num_leaves": 31, "max_depth": -1}, {"zero_as_missing": True}])
@pytest.mark.parametrize("row_count", [1, ROWS_WORTH_OPENING])
def test_the_way_that_scores_are_made_depends_on_the_number_of_rows_and_the_scores_do_not(
    settings: dict[str, Any], row_count: int
) -> None:
    trees = grow(rows(), **settings)

    assert scorer(trees, row_count)(rows()).tobytes() == by_lightgbm(trees, rows())


def test_trees_that_take_zero_for_null_are_left_to_lightgbm() -> None:
    assert opened(grow(rows(), zero_as_missing=True).booster_) is None


def test_no_rows_have_no_scores() -> None:
    forest = opened(grow(rows()).booster_)

    assert forest is not None
    assert forest.raw_scores(np.empty((0, 4))).shape == (0,)
