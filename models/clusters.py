"""Clusters of users that behave alike: how they are found, how many there are, and how surely.

What was chosen, and why, is in docs/segments.md; in which spaces they are looked for is said in `models.spaces`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from models.candidates import BROAD_SHARE, SHARE_MIN, STABILITY_MIN, Candidate, Method, choose, judge
from models.descriptions import DIFFERENCE_MEDIUM
from models.spaces import SPACES, Lessons, Space, UsersAlike, prepare, project, shrunk
from models.telling import Past, outcomes_of, positions, telling, told

__all__ = ["Clusters", "Incumbent", "NotEnoughUsers", "distances", "find", "project", "shrunk"]
"""`project` and `shrunk` are here for the models that were stored when they were defined here."""

USERS_PER_SEGMENT_MIN = 10
LEARNT_MAX = 100_000  # users that the preparation and the final fit learn from
JUDGED_MAX = 5_000  # users that candidates are fitted to and judged by: a silhouette costs the square
REFITTED_MAX = 2_000  # users that candidates are fitted to again and again
REFIT_COUNT = 20
REFIT_STARTS = 5
HEAP_COUNT = 3

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]


class NotEnoughUsers(ValueError):  # noqa: N818
    """The snapshot has too few users, or too few different ones, for the segments asked for."""


@dataclass(frozen=True)
class Incumbent:
    """Hold how the clusters that serve were found, and each user's, by position."""

    method: Method
    of_users: Labels
    space: Space = "behaviour"


@dataclass(frozen=True)
class Clusters:
    """Hold a fitted pipeline and each user's cluster, and how it was chosen.

    `then` is the pipeline that was fitted in the same way at an earlier instant, to see what it would have told; None
    where there is none. `doubt` says why these clusters are not to be relied on; None if they are.
    """

    pipeline: Pipeline
    of_users: Labels
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    doubt: str | None
    then: Pipeline | None = None


class _Judged:
    """Hold users by whom candidates are judged, as they are in a space."""

    def __init__(self, space: Space, preparation: Pipeline, users: pd.DataFrame) -> None:
        self.space = space
        self.standardised = preparation[:-1].transform(users)
        self.projected = preparation.transform(users)
        self.distinct = len(np.unique(self.projected, axis=0))


@dataclass(frozen=True)
class _Found:
    """Hold clusters that were found, how they are judged, and those found in the same way at an earlier instant."""

    model: KMeans | GaussianMixture
    labels: Labels
    candidate: Candidate
    then: KMeans | GaussianMixture | None = None

    def judged(self, **judgement: Any) -> "_Found":
        return replace(self, candidate=replace(self.candidate, **judgement))


@dataclass(frozen=True)
class _Earlier:
    """Hold what candidates are compared with: users of two past snapshots, and what they did, and today's users."""

    before: Past
    then: Past
    now: pd.DataFrame
    names: list[str]

    def outcomes(self, past: Past) -> Matrix:
        return past.matrix(self.names)


def find(
    users: pd.DataFrame,
    k_min: int,
    k_max: int,
    seed: int,
    *,
    share_min: float = SHARE_MIN,
    stability_min: float = STABILITY_MIN,
    incumbent: Incumbent | None = None,
    past: Sequence[Past] = (),
) -> Clusters:
    """Find the clusters of users, one row each, by their float64 features; see `models.segments.fit`."""
    needed = k_min * USERS_PER_SEGMENT_MIN
    if len(users) < needed:
        raise NotEnoughUsers(f"{k_min} segments need at least {needed} users, the snapshot has {len(users)}")
    # k-means differs in the last bits with another number of threads; of so few rows one thread makes the most
    with threadpool_limits(limits=1):
        # Preparation, samples and refits have a seed of their own, the same for all: another training's shall not judge
        # the same clusters otherwise.
        learnt = positions(len(users), LEARNT_MAX)
        judged = positions(len(users), JUDGED_MAX)
        try:
            preparations = _preparations(users.iloc[learnt], past)
        except UsersAlike as error:
            raise NotEnoughUsers(str(error)) from error
        earlier, preparations_then = _look_back(users.iloc[judged], past, needed, list(preparations))
        served = None if incumbent is None else replace(incumbent, of_users=incumbent.of_users[judged])
        found: list[_Found] = []
        for space, preparation in preparations.items():
            sample = _Judged(space, preparation, users.iloc[judged])
            if space == "behaviour" and sample.distinct < k_min:
                few = f"{k_min} segments need as many different users, the snapshot has {sample.distinct}"
                raise NotEnoughUsers(few)
            counts = range(k_min, min(k_max, sample.distinct, len(users) // USERS_PER_SEGMENT_MIN) + 1)
            of_space = served if served is not None and space == _space_of(served, preparations) else None
            for one in _search(sample, counts, of_space, seed):
                if served is not None:
                    one = one.judged(kept_share=same_share(one.labels, served.of_users))
                if earlier is not None and space in preparations_then:
                    one = _compare(one, preparations_then[space], earlier, seed)
                found.append(one)
        candidates = judge([one.candidate for one in found], share_min, stability_min)
        chosen = choose(candidates)
        best = found[candidates.index(chosen)]
        preparation, model = preparations[chosen.space], best.model
        if len(users) > JUDGED_MAX:
            centres = _centres_of(model)
            model = _fit(preparation.transform(users.iloc[learnt]), chosen.method, chosen.k, seed, centres)
        pipeline = _with_clusters(preparation, model)
        of_users = clusters_of(pipeline, users)
    return Clusters(
        pipeline,
        of_users,
        chosen,
        tuple(candidates),
        f"{chosen.name}, the best of {len(candidates)} candidates: {chosen.refused}" if chosen.refused else None,
        None if best.then is None else _with_clusters(preparations_then[chosen.space], best.then),
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


def clusters_of(pipeline: Pipeline, users: pd.DataFrame) -> Labels:
    """Return the nearest cluster of each user."""
    found: Labels = distances(pipeline[:-1].transform(users), pipeline[-1]).argmin(axis=1)
    return found


def method_of(pipeline: Pipeline) -> Method:
    """Say how a pipeline's clusters were found."""
    return "k-means" if isinstance(pipeline[-1], KMeans) else "mixture"


def same_share(labels: Labels, others: Labels) -> float:
    """Return the share of rows that two labellings put into the same cluster, clusters being matched (Kuhn 1955).

    A negative label is none, and never the same.
    """
    known = others >= 0
    counts = np.zeros((int(labels.max()) + 1, int(others.max(initial=0)) + 1))
    np.add.at(counts, (labels[known], others[known]), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(labels))


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


# --- candidates ---


def _preparations(users: pd.DataFrame, past: Sequence[Past]) -> dict[Space, Pipeline]:
    """Prepare users in each space that there is; without lessons there is the one of behaviour alone."""
    names = outcomes_of(past) if past else []
    if not names:
        return {"behaviour": prepare(users, "behaviour")}
    lessons = Lessons.of([(one.users, one.matrix(names)) for one in past])
    return {space: prepare(users, space, lessons) for space in SPACES}


def _look_back(
    now: pd.DataFrame, past: Sequence[Past], needed: int, spaces: Sequence[Space]
) -> tuple[_Earlier | None, dict[Space, Pipeline]]:
    """Prepare the users of the latest past snapshot as if it were then, by lessons of before it."""
    if len(past) < 2 or min(len(one.users) for one in past[-2:]) < needed:
        return None, {}
    names = outcomes_of(past[-2:])
    if not names:
        return None, {}
    *_, before, then = past
    try:
        preparations = _preparations(then.users, past[:-1])
    except UsersAlike:
        return None, {}
    return _Earlier(before, then, now, names), {space: one for space, one in preparations.items() if space in spaces}


def _space_of(incumbent: Incumbent, preparations: Mapping[Space, Pipeline]) -> Space:
    return incumbent.space if incumbent.space in preparations else "behaviour"


def _with_clusters(preparation: Pipeline, model: KMeans | GaussianMixture) -> Pipeline:
    return Pipeline([*preparation.steps, ("clusters", model)])


def _search(sample: _Judged, counts: Sequence[int], served: Incumbent | None, seed: int) -> Iterator[_Found]:
    """Find clusters of each number, and those that serve from where they are."""
    by_chance = {k: _silhouette_of_heap(sample.projected, k) for k in counts}
    for k in counts:
        yield _judge(sample, "k-means", k, None, by_chance[k], seed)
    if served is not None:
        centres = _centres(sample.projected, served.of_users)
        if len(centres) in counts:
            yield _judge(sample, served.method, len(centres), centres, by_chance[len(centres)], seed)


def _judge(sample: _Judged, method: Method, k: int, centres: Matrix | None, by_chance: float, seed: int) -> _Found:
    projected = sample.projected
    model = _fit(projected, method, k, seed, centres)
    labels = distances(projected, model).argmin(axis=1)
    sizes = np.bincount(labels, minlength=k)
    silhouette = float(silhouette_score(projected, labels)) if (sizes > 0).sum() > 1 else -1.0
    again = projected[positions(len(projected), REFITTED_MAX)]
    refits = [_refit(again, method, k, number) for number in range(REFIT_COUNT)]
    original = distances(again, model).argmin(axis=1)
    jaccard = np.mean([_recovered(original, refit, k) for refit in refits], axis=0)
    candidate = Candidate(
        method=method,
        k=k,
        kept=centres is not None,
        silhouette=silhouette,
        separation=silhouette / by_chance,
        stability=mean_adjusted_rand(refits),
        jaccard=tuple(jaccard.tolist()),
        smallest_share=float(sizes.min() / len(projected)),
        space=sample.space,
        broad=_is_broad(sample.standardised, labels, sizes),
    )
    return _Found(model, labels, candidate)


def _is_broad(standardised: Matrix, labels: Labels, sizes: Labels) -> bool:
    """Tell whether the largest cluster has most of the users, or differs from all others by nothing."""
    in_largest = labels == sizes.argmax()
    if in_largest.mean() > BROAD_SHARE:
        return True
    differences = standardised[in_largest].mean(axis=0) - standardised[~in_largest].mean(axis=0)
    return bool(np.abs(differences).max() < DIFFERENCE_MEDIUM)


def _is_told(labels: Labels, outcomes: Matrix) -> bool:
    """Tell whether the largest cluster's users did other things next than all others."""
    in_largest = labels == np.bincount(labels).argmax()
    differences = outcomes[in_largest].mean(axis=0) - outcomes[~in_largest].mean(axis=0)
    return bool((np.abs(differences) / np.maximum(outcomes.std(axis=0), 1e-12)).max() >= DIFFERENCE_MEDIUM)


def _compare(found: _Found, preparation: Pipeline, earlier: _Earlier, seed: int) -> _Found:
    """Find clusters in the same way at an earlier instant, and see what these tell, and whether they are the same."""
    before = earlier.before.sample(positions(len(earlier.before.users), JUDGED_MAX))
    then = earlier.then.sample(positions(len(earlier.then.users), JUDGED_MAX))
    candidate, projected = found.candidate, preparation.transform(then.users)
    k = min(candidate.k, len(np.unique(projected, axis=0)))
    model = _fit(projected, candidate.method, k, seed)

    def clusters(users: pd.DataFrame) -> Labels:
        return clusters_of(_with_clusters(preparation, model), users)

    of_then, outcomes = clusters(then.users), earlier.outcomes(then)
    value, low = telling(told(clusters(before.users), earlier.outcomes(before), of_then, candidate.k), outcomes)
    return replace(found, then=model).judged(
        steadiness=same_share(found.labels, clusters(earlier.now)),
        broad=candidate.broad and not _is_told(of_then, outcomes),
        telling=value,
        telling_low=low,
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


def _centres(projected: Matrix, labels: Labels) -> Matrix:
    """Return the means of clusters that have users."""
    return np.array([projected[labels == i].mean(axis=0) for i in np.unique(labels)])


def _centres_of(model: KMeans | GaussianMixture) -> Matrix:
    centres: Matrix = model.cluster_centers_ if isinstance(model, KMeans) else model.means_
    return centres
