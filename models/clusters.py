"""Clusters of users that behave alike: what they are made of, how many there are, and how surely."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import silhouette_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from features.snapshots import quantity

USERS_PER_SEGMENT_MIN = 10
SAMPLE_MAX = 5_000  # users that choose k and judge stability: both cost the square or a multiple of a fit
BOOTSTRAP_COUNT = 5
CORRELATION_MAX = 0.9
DEVIATION_MAX = 3.0  # standard deviations: a handful of heavy users must not become the axis of every segment

Matrix = NDArray[np.float64]


class NotEnoughUsers(ValueError):  # noqa: N818
    """The snapshot has too few users, or too few different ones, for the segments asked for."""


@dataclass(frozen=True)
class Clusters:
    """Hold a fitted pipeline, its prepared features by user and each user's cluster.

    Also the silhouette of each number of clusters that was tried, and each cluster's stability, from 0 to 1.
    """

    pipeline: Pipeline
    matrix: Matrix
    of_users: NDArray[np.intp]
    silhouettes: dict[int, float]
    stability: list[float]


def find(users: pd.DataFrame, k_min: int, k_max: int, seed: int, n_jobs: int = -1) -> Clusters:
    """Find the clusters of users, by k-means on the float64 features; see `models.segments.fit`."""
    needed = k_min * USERS_PER_SEGMENT_MIN
    if len(users) < needed:
        raise NotEnoughUsers(f"{k_min} segments need at least {needed} users, the snapshot has {len(users)}")
    # k-means differs in the last bits with another number of threads: fits run beside each other, each on one
    with threadpool_limits(limits=1):
        features = _features(users)
        preparation = _preparation(users, features).fit(users[features])
        matrix = preparation.transform(users)
        rows = np.random.default_rng(seed).permutation(len(users))[:SAMPLE_MAX]
        sample = matrix[np.sort(rows)]
        distinct = len(np.unique(sample, axis=0))
        if distinct < k_min:
            raise NotEnoughUsers(f"{k_min} segments need as many different users, the snapshot has {distinct}")
        candidates = range(k_min, min(k_max, distinct, len(users) // USERS_PER_SEGMENT_MIN) + 1)
        parallel = Parallel(n_jobs=n_jobs, prefer="threads")
        scores = parallel(delayed(_silhouette)(sample, k, seed) for k in candidates)
        silhouettes = dict(zip(candidates, scores, strict=True))
        k = max(candidates, key=lambda k: silhouettes[k])
        kmeans = _kmeans(matrix, k, seed)
        clusters = distances(matrix, kmeans).argmin(axis=1)
        refits = parallel(delayed(_recovered)(sample, kmeans, seed + i) for i in range(1, BOOTSTRAP_COUNT + 1))

    return Clusters(
        Pipeline([*preparation.steps, ("clusters", kmeans)]),
        matrix,
        clusters,
        silhouettes,
        [float(np.mean([refit[i] for refit in refits])) for i in range(k)],
    )


def distances(matrix: Matrix, kmeans: KMeans) -> Matrix:
    """Return the distance of each row of prepared features to each centre."""
    # cdist takes each pair for itself, where a matrix product rounds by the number of rows
    found: Matrix = cdist(matrix, kmeans.cluster_centers_)
    return found


def columns_of(pipeline: Pipeline) -> list[str]:
    """Return the features that a pipeline takes, in the order of its prepared ones."""
    return [column for _, _, columns in pipeline[0].transformers for column in columns]


def _features(users: pd.DataFrame) -> list[str]:
    numeric = users.select_dtypes("float64")
    varying = [str(feature) for feature in numeric if numeric[feature].nunique() > 1]
    if not varying:
        raise NotEnoughUsers(f"segments need users that differ, the {len(users)} of the snapshot do not")

    def window_days(feature: str) -> float:
        return float(feature.removeprefix(quantity(feature))[1:-1] or "inf")

    longest: dict[str, str] = {}
    for feature in varying:
        longest[quantity(feature)] = max(longest.get(quantity(feature), feature), feature, key=window_days)
    candidates = list(longest.values())
    preparation = _preparation(users, candidates)
    prepared = pd.DataFrame(preparation.fit_transform(users), columns=columns_of(preparation))
    correlations = prepared.corr().abs()
    chosen: list[str] = []
    for feature in candidates:
        if not (correlations.loc[feature, chosen] > CORRELATION_MAX).any():
            chosen.append(feature)
    return chosen


def _preparation(users: pd.DataFrame, features: list[str]) -> Pipeline:
    bounded = [feature for feature in features if users[feature].abs().max() <= 1]  # shares, rates, trends
    unbounded = [feature for feature in features if feature not in bounded]
    compress = ColumnTransformer(
        [("compressed", FunctionTransformer(np.arcsinh), unbounded), ("as_is", "passthrough", bounded)]
    )
    cut = FunctionTransformer(np.clip, kw_args={"a_min": -DEVIATION_MAX, "a_max": DEVIATION_MAX})
    fill = SimpleImputer(strategy="constant", fill_value=0.0)
    return Pipeline([("compress", compress), ("standardise", StandardScaler()), ("cut", cut), ("fill", fill)])


def _kmeans(matrix: Matrix, k: int, seed: int) -> KMeans:
    # OpenMP's limit belongs to the thread that sets it, so every thread of the fan-out sets its own
    with threadpool_limits(limits=1, user_api="openmp"):
        return KMeans(n_clusters=k, n_init=10, random_state=seed).fit(matrix)


def _silhouette(sample: Matrix, k: int, seed: int) -> float:
    labels = distances(sample, _kmeans(sample, k, seed)).argmin(axis=1)
    return float(silhouette_score(sample, labels))


def _recovered(sample: Matrix, kmeans: KMeans, seed: int) -> Matrix:
    """Return per cluster the Jaccard similarity to its best match in a bootstrap's refit (Hennig 2007)."""
    rows = np.random.default_rng(seed).integers(len(sample), size=len(sample))
    k = min(kmeans.n_clusters, len(np.unique(sample[rows], axis=0)))
    refit = _kmeans(sample[rows], k, seed)
    seen = sample[np.unique(rows)]
    original = np.eye(kmeans.n_clusters)[distances(seen, kmeans).argmin(axis=1)]
    again = np.eye(k)[distances(seen, refit).argmin(axis=1)]
    both = original.T @ again
    either = original.sum(axis=0)[:, None] + again.sum(axis=0) - both
    best: Matrix = (both / np.maximum(either, 1)).max(axis=1)
    return best
