"""Clusters of users that behave alike: what they are made of, how many there are, and how surely.

What was chosen, and why, is in docs/segments.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import kurtosis, skew
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from features.snapshots import quantity

USERS_PER_SEGMENT_MIN = 10
LEARNT_MAX = 100_000  # users that the preparation and the final fit learn from
JUDGED_MAX = 5_000  # users that candidates are fitted to and judged by: a silhouette costs the square
REFITTED_MAX = 2_000  # users that candidates are fitted to again and again
REFIT_COUNT = 20
REFIT_STARTS = 5
CORRELATION_MAX = 0.9
CORRELATION_MIN = 0.2  # with many users; with few, three standard errors
BIMODALITY_MIN = 0.7  # a normal distribution has 0.33, a uniform one 0.56, two equal heaps 1
DEVIATION_MAX = 3.0  # standard deviations: a handful of heavy users must not become the axis of every segment
VARIANCE_SHARE = 0.9
TOLERANCE = 0.05  # of the best score: to so little more, fewer clusters are preferred
KEPT_TOLERANCE = 0.15  # of the best score: to so little more, the clusters that serve are preferred
SEPARATION_MIN = 1.35  # noise of more than three features stays below 1.25
HEAP_COUNT = 3
JACCARD_MIN = 0.5  # below it a cluster is dissolved (Hennig 2007)
PRIOR_COUNT = 5  # a rate of so many sessions, or carts, counts half as what it is and half as the average
DENOMINATORS = {"cart_abandonment_rate": "cart_count"}
SHARE_MIN = 0.02
STABILITY_MIN = 0.6

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]
Method = Literal["k-means", "mixture"]
METHODS: tuple[Method, ...] = ("k-means", "mixture")


class NotEnoughUsers(ValueError):  # noqa: N818
    """The snapshot has too few users, or too few different ones, for the segments asked for."""


@dataclass(frozen=True)
class Candidate:
    """Tell of clusters that were found: how, how many, and how they were judged; `kept` are those that serve already.

    `silhouette` is the mean one (-1 to 1; Rousseeuw 1987), `separation` its ratio to that of as many clusters in one
    heap, a normal distribution with the same variances (after Liu et al. 2008), `stability` the mean adjusted Rand
    index between pairs of refits to bootstrap samples (Hubert and Arabie 1985), `jaccard` for each cluster the mean
    Jaccard similarity to its best match in refits (Hennig 2007), `smallest_share` that of the smallest cluster.
    `refused` says why it was not eligible.
    """

    method: Method
    k: int
    kept: bool
    silhouette: float
    separation: float
    stability: float
    jaccard: tuple[float, ...]
    smallest_share: float
    refused: str | None = None

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "Candidate":
        """Return the candidate that `asdict` told."""
        return cls(**(told | {"jaccard": tuple(told["jaccard"])}))

    @property
    def score(self) -> float:
        """Return separation times stability."""
        return max(self.separation, 0) * self.stability

    @property
    def name(self) -> str:
        """Say how it was found."""
        return f"{self.method} {self.k}{', kept' if self.kept else ''}"


@dataclass(frozen=True)
class Incumbent:
    """Hold how the clusters that serve were found, and each user's, by position."""

    method: Method
    of_users: Labels


@dataclass(frozen=True)
class Clusters:
    """Hold a fitted pipeline and each user's cluster, and how it was chosen.

    `doubt` says why these clusters are not to be relied on; None if they are.
    """

    pipeline: Pipeline
    of_users: Labels
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    doubt: str | None


def find(
    users: pd.DataFrame,
    k_min: int,
    k_max: int,
    seed: int,
    *,
    share_min: float = SHARE_MIN,
    stability_min: float = STABILITY_MIN,
    incumbent: Incumbent | None = None,
) -> Clusters:
    """Find the clusters of users, one row each, by their float64 features; see `models.segments.fit`."""
    needed = k_min * USERS_PER_SEGMENT_MIN
    if len(users) < needed:
        raise NotEnoughUsers(f"{k_min} segments need at least {needed} users, the snapshot has {len(users)}")
    # k-means differs in the last bits with another number of threads; of so few rows one thread makes the most
    with threadpool_limits(limits=1):
        # Preparation, samples and refits have a seed of their own, the same for all: another training's shall not judge
        # the same clusters otherwise.
        learnt = _sample(len(users), LEARNT_MAX)
        preparation = _prepare(users.iloc[learnt])
        projected = preparation.transform(users)
        judged = _sample(len(users), JUDGED_MAX)
        sample = projected[judged]
        distinct = len(np.unique(sample, axis=0))
        if distinct < k_min:
            raise NotEnoughUsers(f"{k_min} segments need as many different users, the snapshot has {distinct}")
        counts = range(k_min, min(k_max, distinct, len(users) // USERS_PER_SEGMENT_MIN) + 1)
        starts: list[tuple[Method, int, Matrix | None]] = [(method, k, None) for method in METHODS for k in counts]
        if incumbent is not None:
            centres = _centres(projected, incumbent.of_users)
            if len(centres) in counts:
                starts.append((incumbent.method, len(centres), centres))
        by_chance = {k: _silhouette_of_heap(sample, k) for k in counts}
        found = [_judge(sample, method, k, centres, by_chance[k], seed) for method, k, centres in starts]
        candidates = [replace(one, refused=_refuse(one, share_min, stability_min)) for _, one in found]
        chosen = _choose(candidates)
        model = found[candidates.index(chosen)][0]
        if len(users) > JUDGED_MAX:
            model = _fit(projected[learnt], chosen.method, chosen.k, seed, _centres_of(model))
        of_users = distances(projected, model).argmin(axis=1)
    return Clusters(
        Pipeline([*preparation.steps, ("clusters", model)]),
        of_users,
        chosen,
        tuple(candidates),
        f"{chosen.name}, the best of {len(candidates)} candidates: {chosen.refused}" if chosen.refused else None,
    )


def distances(matrix: Matrix, model: KMeans | GaussianMixture) -> Matrix:
    """Return how far each row of prepared features is from each cluster, each row for itself.

    For k-means it is the distance to the centre; for a mixture 1 / p with the probability p of being in the cluster.
    """
    # cdist takes each pair for itself, where a matrix product rounds by the number of rows
    if isinstance(model, KMeans):
        found: Matrix = cdist(matrix, model.cluster_centers_)
        return found
    logs = np.empty((len(matrix), model.n_components))
    for i, (mean, precision) in enumerate(zip(model.means_, model.precisions_, strict=True)):
        squared = cdist(matrix, mean[None], "mahalanobis", VI=precision)[:, 0] ** 2
        logs[:, i] = np.log(model.weights_[i]) + np.linalg.slogdet(precision)[1] / 2 - squared / 2
    logs -= logs.max(axis=1, keepdims=True)
    odds = np.exp(np.maximum(logs, -700))  # 1 / p stays finite
    return np.asarray(odds.sum(axis=1, keepdims=True) / odds)


def method_of(pipeline: Pipeline) -> Method:
    """Say how a pipeline's clusters were found."""
    return "k-means" if isinstance(pipeline[-1], KMeans) else "mixture"


def columns_of(pipeline: Pipeline) -> list[str]:
    """Return the features that a pipeline takes, in the order of its prepared ones."""
    found = []
    for name, transformer, columns in pipeline[0].transformers:
        if name != "null":
            found += columns[: len(transformer.kw_args["averages"])] if name == "shrunk" else columns
    return found


def profiles_of(pipeline: Pipeline) -> pd.DataFrame:
    """Return the clusters' centres: a row for each, a column for each feature, in standard deviations."""
    columns = columns_of(pipeline)
    if "project" in pipeline.named_steps:
        given = pipeline.named_steps["project"].kw_args
        centres = _centres_of(pipeline[-1]) @ given["components"] + given["mean"]
    else:  # of a version before there were projections
        centres = _centres_of(pipeline[-1])
    return pd.DataFrame(centres[:, : len(columns)], columns=columns)


def shrunk(rates_and_counts: Any, averages: Matrix, places: Labels, prior: float) -> Matrix:
    """Draw rates towards their averages, the more the fewer sessions, or carts, they are of.

    Of a user with one session every rate is 0 or 1, which says next to nothing (empirical Bayes; Efron and Morris
    1975). The columns are the rates and then what they are of; `places` says for each rate which of these.
    """
    given = np.asarray(rates_and_counts, dtype=np.float64)
    rates, counts = given[:, : len(averages)], given[:, len(averages) :][:, places]
    found: Matrix = (rates * counts + averages * prior) / (counts + prior)
    return found


def mean_adjusted_rand(labellings: Sequence[Labels]) -> float:
    """Return the mean adjusted Rand index of all pairs of labellings of the same rows (Hubert and Arabie 1985).

    All pairs are counted by one matrix product: one by one, as scikit-learn does it, they take as long as the refits.
    """
    k = max(int(labels.max()) for labels in labellings) + 1
    members = np.hstack([np.eye(k)[labels] for labels in labellings])
    shared = _pairs(members.T @ members).reshape(len(labellings), k, len(labellings), k).sum(axis=(1, 3))
    alone = _pairs(members.sum(axis=0)).reshape(len(labellings), k).sum(axis=1)
    one, other = np.triu_indices(len(labellings), 1)
    by_chance = alone[one] * alone[other] / _pairs(len(members))
    most = (alone[one] + alone[other]) / 2
    is_same = most == by_chance  # both are all in one cluster, or each row in its own
    index = (shared[one, other] - by_chance) / np.where(is_same, 1, most - by_chance)
    return float(np.where(is_same, 1, index).mean())


def project(matrix: Matrix, components: Matrix, mean: Matrix) -> Matrix:
    """Project rows on principal components, each row for itself."""
    found: Matrix = np.einsum("ij,kj->ik", matrix - mean, components)  # a product would round by the number of rows
    return found


# --- preparation ---


def _prepare(users: pd.DataFrame) -> Pipeline:
    """Learn how to prepare users: from their float64 features to coordinates in which the near behave alike."""
    numeric = users.select_dtypes("float64")
    varying = [str(feature) for feature in numeric if numeric[feature].nunique() > 1]
    if not varying:
        raise NotEnoughUsers(f"segments need users that differ, the {len(users)} of the snapshot do not")
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
    pca = PCA(VARIANCE_SHARE, svd_solver="full").fit(standardise.transform(users))
    projection = FunctionTransformer(project, kw_args={"components": pca.components_, "mean": pca.mean_})
    return Pipeline([*standardise.steps, ("project", projection)])


def _standardise(users: pd.DataFrame, features: list[str], nulls: list[str]) -> Pipeline:
    """Fit what brings features on one scale; a null becomes the average, and `nulls` tell in columns of their own."""
    bounded = [feature for feature in features if users[feature].abs().max() <= 1]  # shares, rates, trends
    counts = {rate: count for rate in bounded if (count := _denominator(rate)) and count in users}
    rates, different = list(counts), sorted(set(counts.values()))
    averages = users[rates].mean().to_numpy()
    places = np.array([different.index(count) for count in counts.values()], dtype=np.intp)
    shrink = FunctionTransformer(shrunk, kw_args={"averages": averages, "places": places, "prior": PRIOR_COUNT})
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


def _sample(count: int, most: int) -> Labels:
    """Draw positions in order, all if there are no more than `most`."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


# --- choosing ---


def _judge(
    sample: Matrix, method: Method, k: int, centres: Matrix | None, by_chance: float, seed: int
) -> tuple[KMeans | GaussianMixture, Candidate]:
    model = _fit(sample, method, k, seed, centres)
    labels = distances(sample, model).argmin(axis=1)
    sizes = np.bincount(labels, minlength=k)
    silhouette = float(silhouette_score(sample, labels)) if (sizes > 0).sum() > 1 else -1.0
    again = sample[_sample(len(sample), REFITTED_MAX)]
    refits = [_refit(again, method, k, number) for number in range(REFIT_COUNT)]
    original = distances(again, model).argmin(axis=1)
    jaccard = np.mean([_recovered(original, refit, k) for refit in refits], axis=0)
    return model, Candidate(
        method=method,
        k=k,
        kept=centres is not None,
        silhouette=silhouette,
        separation=silhouette / by_chance,
        stability=mean_adjusted_rand(refits),
        jaccard=tuple(jaccard.tolist()),
        smallest_share=float(sizes.min() / len(sample)),
    )


def _pairs(counts: Any) -> Any:
    """Count the pairs among so many."""
    return counts * (counts - 1) / 2


def _silhouette_of_heap(sample: Matrix, k: int) -> float:
    """Return the mean silhouette of clusters in a normal distribution with the sample's variances."""
    random = np.random.default_rng(0)
    silhouettes = []
    for number in range(HEAP_COUNT):
        heap = random.normal(size=(min(len(sample), REFITTED_MAX), sample.shape[1])) * sample.std(axis=0)
        silhouettes.append(silhouette_score(heap, _fit(heap, "k-means", k, number).labels_))
    return float(np.mean(silhouettes))


def _fit(
    matrix: Matrix, method: Method, k: int, seed: int, centres: Matrix | None = None, starts: int = 10
) -> KMeans | GaussianMixture:
    """Fit clusters, from given centres or from the best of several random starts."""
    if method == "k-means":
        if centres is None:
            return KMeans(n_clusters=k, n_init=starts, random_state=seed).fit(matrix)
        return KMeans(n_clusters=k, init=centres, n_init=1).fit(matrix)
    settings = {"reg_covar": 1e-2, "max_iter": 300, "random_state": seed}
    return GaussianMixture(k, means_init=centres, **settings).fit(matrix)


def _refit(sample: Matrix, method: Method, k: int, seed: int) -> Labels:
    """Fit to a bootstrap of the sample, and return the clusters of all of it."""
    rows = np.random.default_rng(seed).integers(len(sample), size=len(sample))
    distinct = len(np.unique(sample[rows], axis=0))
    model = _fit(sample[rows], method, min(k, distinct), seed, starts=REFIT_STARTS)
    labels: Labels = distances(sample, model).argmin(axis=1)
    return labels


def _recovered(original: Labels, refit: Labels, k: int) -> Matrix:
    """Return per cluster the Jaccard similarity to its best match in a refit."""
    one, other = np.eye(k)[original], np.eye(k)[refit]
    both = one.T @ other
    either = one.sum(axis=0)[:, None] + other.sum(axis=0) - both
    best: Matrix = (both / np.maximum(either, 1)).max(axis=1)
    return best


def _refuse(candidate: Candidate, share_min: float, stability_min: float) -> str | None:
    if candidate.stability < stability_min:
        return f"its stability is {candidate.stability:.2f}, at least {stability_min:g} is needed"
    if candidate.separation < SEPARATION_MIN:
        found = f"its segments are {candidate.separation:.2f} times as separate as parts of one heap"
        return f"{found}, at least {SEPARATION_MIN:g} is needed"
    if min(candidate.jaccard) < JACCARD_MIN:
        found = f"refits find one of its segments again by {min(candidate.jaccard):.2f}"
        return f"{found}, at least {JACCARD_MIN:g} is needed"
    if candidate.smallest_share < share_min:
        few = f"its smallest segment has {100 * candidate.smallest_share:.1f} % of users"
        return f"{few}, at least {100 * share_min:g} % is needed"
    return None


def _choose(candidates: Sequence[Candidate]) -> Candidate:
    """Choose the fewest clusters whose score is near the best, but those that serve if theirs is not far from it.

    Where none is eligible it is the best by score.
    """
    eligible = [one for one in candidates if one.refused is None]
    if not eligible:
        return max(candidates, key=lambda one: one.score)
    best = max(one.score for one in eligible)
    near = [one for one in eligible if one.score >= (1 - (KEPT_TOLERANCE if one.kept else TOLERANCE)) * best]
    return min(near, key=lambda one: (not one.kept, one.k, -one.score))


def _centres(projected: Matrix, labels: Labels) -> Matrix:
    """Return the means of clusters that have users."""
    return np.array([projected[labels == i].mean(axis=0) for i in np.unique(labels)])


def _centres_of(model: KMeans | GaussianMixture) -> Matrix:
    centres: Matrix = model.cluster_centers_ if isinstance(model, KMeans) else model.means_
    return centres
