"""The spaces in which clusters are looked for: what of the features counts there, and how much.

In the space of *behaviour* all that users do counts alike. In the others counts what, by past outcomes that are
complete, goes with what users did next: see `Lessons`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kurtosis, skew
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from features.snapshots import quantity

Space = Literal["behaviour", "weighted", "outlook"]
SPACES: tuple[Space, ...] = ("behaviour", "weighted", "outlook")

CORRELATION_MAX = 0.9
CORRELATION_MIN = 0.2  # with many users; with few, three standard errors
BIMODALITY_MIN = 0.7  # a normal distribution has 0.33, a uniform one 0.56, two equal heaps 1
DEVIATION_MAX = 3.0  # standard deviations: a handful of heavy users must not become the axis of every segment
VARIANCE_SHARE = 0.9
PRIOR_MIN, PRIOR_MAX = 5.0, 100.0
"""A rate of so many sessions, or carts, counts half as what it is and half as the average; beyond it says nothing."""
DENOMINATORS = {"cart_abandonment_rate": "cart_count"}
PENALTY = 1.0  # of the ridge regression, per row: strong, since the next months are never quite like the last ones

Matrix = NDArray[np.float64]
Places = NDArray[np.intp]


class UsersAlike(ValueError):  # noqa: N818
    """The users do not differ, so that nothing could tell them apart."""


@dataclass(frozen=True)
class Lessons:
    """Hold what users did after snapshots of the past, to learn what tells it from.

    `users` has the rows of all these snapshots, `outcomes` a column for each outcome, standardised within each of the
    snapshots, so that a good season is no outcome.
    """

    users: pd.DataFrame
    outcomes: Matrix

    @classmethod
    def of(cls, snapshots: Sequence[tuple[pd.DataFrame, Matrix]]) -> "Lessons":
        """Return the lessons of snapshots and what their users did."""
        outcomes = [_standardised(values) for _, values in snapshots]
        return cls(pd.concat([users for users, _ in snapshots], ignore_index=True), np.vstack(outcomes))


def prepare(users: pd.DataFrame, space: Space, lessons: Lessons | None = None) -> Pipeline:
    """Learn how to prepare users: from their float64 features to coordinates in which those who are alike are near.

    The space of behaviour needs no `lessons`, the others do. The *weighted* space has all features, each by the square
    of its strongest correlation with an outcome; the *outlook* has, for each outcome, what a ridge regression (Hoerl
    and Kennard 1970) expects of it. Raises UsersAlike where no feature varies.
    """
    varying = [str(feature) for feature in users.select_dtypes("float64") if users[feature].nunique() > 1]
    if not varying:
        raise UsersAlike(f"segments need users that differ, the {len(users)} of the snapshot do not")
    if space == "behaviour":
        return _behaviour(users, varying)
    assert lessons is not None
    gappy = [feature for feature in varying if users[feature].isna().any()]
    standardise = _standardise(users, varying, gappy)
    learnt = standardise.transform(lessons.users)
    if space == "outlook":
        regression = Ridge(PENALTY * len(learnt)).fit(learnt, lessons.outcomes)
        return _projected(standardise, np.atleast_2d(regression.coef_))
    weights = _strongest_correlations(learnt, lessons.outcomes) ** 2
    pca = PCA(VARIANCE_SHARE, svd_solver="full").fit(standardise.transform(users) * weights)
    return _projected(standardise, pca.components_ * weights)


def columns_of(pipeline: Pipeline) -> list[str]:
    """Return the features that a pipeline takes, in the order of its prepared ones."""
    found = []
    for name, transformer, columns in pipeline[0].transformers:
        if name != "null":
            found += columns[: len(transformer.kw_args["averages"])] if name == "shrunk" else columns
    return found


def standardised(pipeline: Pipeline, users: pd.DataFrame) -> pd.DataFrame:
    """Return the features that a pipeline takes, in standard deviations from the average user's."""
    columns = columns_of(pipeline)
    return pd.DataFrame(pipeline[:4].transform(users)[:, : len(columns)], columns=columns)


def shrunk(rates_and_counts: Any, averages: Matrix, places: Places, prior: Any) -> Matrix:
    """Draw rates towards their averages, the more the fewer sessions, or carts, they are of.

    Of a user with one session every rate is 0 or 1, which says next to nothing (empirical Bayes; Efron and Morris
    1975). The columns are the rates and then what they are of; `places` says for each rate which of these. Of as many
    as the `prior` a rate is half its own and half the average.
    """
    given = np.asarray(rates_and_counts, dtype=np.float64)
    rates, counts = given[:, : len(averages)], given[:, len(averages) :][:, places]
    found: Matrix = (rates * counts + averages * prior) / (counts + prior)
    return found


def project(matrix: Matrix, components: Matrix, mean: Matrix) -> Matrix:
    """Project rows on components, each row for itself."""
    found: Matrix = np.einsum("ij,kj->ik", matrix - mean, components)  # a product would round by the number of rows
    return found


def _behaviour(users: pd.DataFrame, varying: Sequence[str]) -> Pipeline:
    longest: dict[str, str] = {}
    for feature in varying:
        longest[quantity(feature)] = max(longest.get(quantity(feature), feature), feature, key=_window_days)
    candidates = list(longest.values())
    gappy = [feature for feature in candidates if users[feature].isna().any()]
    prepared = pd.DataFrame(_standardise(users, candidates, gappy).transform(users))
    prepared.columns = pd.Index([*candidates, *(f"null {feature}" for feature in gappy)])
    chosen = _select(prepared)
    features = [feature for feature in candidates if feature in chosen]
    nulls = [feature for feature in gappy if f"null {feature}" in chosen]
    standardise = _standardise(users, features, nulls)
    known = _known(standardise, users)
    pca = PCA(VARIANCE_SHARE, svd_solver="full").fit(standardise.transform(users) * known)
    return _projected(standardise, pca.components_ * known)


def _known(standardise: Pipeline, users: pd.DataFrame) -> Matrix:
    """Return how much of each prepared feature is known, on average, 0 to 1: of all but rates, everything.

    Otherwise the standard deviations would blow up again what shrinking took away.
    """
    weights: list[float] = []
    for name, transformer, columns in standardise[0].transformers_:
        if name == "shrunk":
            given = transformer.kw_args
            counts = users[columns[len(given["averages"]) :]].to_numpy()[:, given["places"]]
            weights += np.sqrt((counts / (counts + given["prior"])).mean(axis=0)).tolist()
        else:
            weights += [1.0] * len(columns)
    return np.array(weights)


def _projected(standardise: Pipeline, components: Matrix) -> Pipeline:
    centre = np.zeros(components.shape[1])  # prepared features have no other mean, but for what was cut
    projection = FunctionTransformer(project, kw_args={"components": components, "mean": centre})
    return Pipeline([*standardise.steps, ("project", projection)])


def _standardise(users: pd.DataFrame, features: Sequence[str], nulls: list[str]) -> Pipeline:
    """Fit what brings features on one scale; a null becomes the average, and `nulls` tell in columns of their own."""
    bounded = [feature for feature in features if users[feature].abs().max() <= 1]  # shares, rates, trends
    counts = {rate: count for rate in bounded if (count := _denominator(rate)) and count in users}
    rates, different = list(counts), sorted(set(counts.values()))
    averages = users[rates].mean().to_numpy()
    places = np.array([different.index(count) for count in counts.values()], dtype=np.intp)
    priors = np.array([prior_count(users[rate], users[count]) for rate, count in counts.items()])
    shrink = FunctionTransformer(shrunk, kw_args={"averages": averages, "places": places, "prior": priors})
    parts: list[tuple[str, Any, list[str]]] = [
        ("compressed", FunctionTransformer(np.arcsinh), [feature for feature in features if feature not in bounded]),
        ("as_is", "passthrough", [feature for feature in bounded if feature not in rates]),
        ("shrunk", shrink, [*rates, *different]),
    ]
    if nulls:
        parts.append(("null", MissingIndicator(features="all"), nulls))
    cut = FunctionTransformer(np.clip, kw_args={"a_min": -DEVIATION_MAX, "a_max": DEVIATION_MAX})
    fill = SimpleImputer(strategy="constant", fill_value=0.0)
    steps = [("compress", ColumnTransformer(parts)), ("standardise", StandardScaler()), ("cut", cut), ("fill", fill)]
    return Pipeline(steps).fit(users[list(dict.fromkeys([*features, *different, *nulls]))])


def prior_count(rates: pd.Series, counts: pd.Series) -> float:
    """Return of how many sessions, or carts, a rate says as much as that all users have the same.

    It is (1 - r) / r with the intraclass correlation r of a user's sessions, by an analysis of variance (Fleiss 1981):
    where a user's next session is as like the last as anybody's, a rate says nothing of the user.
    """
    known = rates.notna() & (counts > 0)
    p, n = rates[known].to_numpy(), counts[known].to_numpy()
    if len(n) < 2 or n.sum() <= len(n):
        return PRIOR_MAX
    mean = (n * p).sum() / n.sum()
    between = (n * (p - mean) ** 2).sum() / (len(n) - 1)
    within = (n * p * (1 - p)).sum() / (n.sum() - len(n))
    typical = (n.sum() - (n**2).sum() / n.sum()) / (len(n) - 1)
    alike = (between - within) / max(between + (typical - 1) * within, 1e-12)
    return float(np.clip((1 - alike) / max(alike, 1e-12), PRIOR_MIN, PRIOR_MAX))


def _select(prepared: pd.DataFrame) -> list[str]:
    """Choose columns that say something of kinds of users, each once.

    Of two that correlate by more than 0.9 only the first counts. One that goes with no other (below 0.2, or what chance
    gives few users), and has one heap only (by Sarle's bimodality coefficient), is noise to all the others; if all are,
    all count.
    """
    columns = [str(column) for column in prepared]
    correlations = np.nan_to_num(np.abs(np.corrcoef(prepared.to_numpy(), rowvar=False))).reshape(len(columns), -1)
    different: list[int] = []
    for i in range(len(columns)):
        if not (correlations[i, different] > CORRELATION_MAX).any():
            different.append(i)
    np.fill_diagonal(correlations, 0)
    strongest = correlations[np.ix_(different, different)].max(axis=1)
    values = prepared.to_numpy()[:, different]
    bimodality = (skew(values) ** 2 + 1) / kurtosis(values, fisher=False)
    is_telling = (strongest >= max(CORRELATION_MIN, 3 / np.sqrt(len(prepared)))) | (bimodality > BIMODALITY_MIN)
    return [columns[i] for i, telling in zip(different, is_telling, strict=True) if telling or not is_telling.any()]


def _denominator(feature: str) -> str | None:
    """Return of what a rate or a share is one, by the convention of names; None for other features."""
    return DENOMINATORS.get(feature) or ("session_count" if feature.endswith(("_rate", "_share")) else None)


def _window_days(feature: str) -> float:
    return float(feature.removeprefix(quantity(feature))[1:-1] or "inf")


def _standardised(values: Matrix) -> Matrix:
    """Return columns in standard deviations from their means; 0 where they do not vary."""
    deviations = values.std(axis=0)
    found: Matrix = (values - values.mean(axis=0)) / np.where(deviations > 0, deviations, 1)
    return found


def _strongest_correlations(columns: Matrix, outcomes: Matrix) -> Matrix:
    """Return how strongly each column goes with the outcome that it goes with most, 0 to 1."""
    found: Matrix = np.abs(_standardised(columns).T @ _standardised(outcomes)).max(axis=1) / len(columns)
    return found
