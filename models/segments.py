"""Segments that the users' behaviour itself suggests: found, judged, named, and kept the same over time.

A *cluster* is a fit's arbitrary index, a *segment* what it is called in public: the segment at position i of
`SegmentModel.segments` is cluster i of the pipeline.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import silhouette_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from features.snapshots import in_words, title

USERS_PER_SEGMENT_MIN = 10
SAMPLE_MAX = 5_000  # users that choose k and judge stability: both cost the square or a multiple of a fit
BOOTSTRAP_COUNT = 5
CORRELATION_MAX = 0.9
DEVIATION_MAX = 3.0  # standard deviations: a handful of heavy users must not become the axis of every segment
DIFFERENCE_MIN = 0.5  # standard deviations: a medium effect (Cohen 1988); less does not make a name
TRAIT_MAX = 6

Matrix = NDArray[np.float64]


class NotEnoughUsers(ValueError):  # noqa: N818
    """The snapshot has too few users, or too few different ones, for the segments asked for."""


@dataclass(frozen=True)
class Trait:
    """What is typical of a segment: a feature's value there and over all users.

    `difference` is the mean among its users less the mean among everyone else, in standard deviations of the
    prepared feature (Cohen's d with the overall deviation). `statistic` says what `value` and `overall` are:
    the median, or the mean where the medians are equal, as with rare events.
    """

    feature: str
    difference: float
    statistic: str
    value: float
    overall: float


@dataclass(frozen=True)
class Segment:
    """A segment at the time of the fit: `size` in users, `share` and `stability` from 0 to 1."""

    segment_id: str
    name: str
    size: int
    share: float
    stability: float
    typical: tuple[Trait, ...]


@dataclass(frozen=True)
class SegmentModel:
    """A fitted pipeline with its segments; `next_number` is the first number no segment ever had."""

    pipeline: Pipeline
    segments: tuple[Segment, ...]
    silhouettes: dict[int, float]
    next_number: int

    @property
    def silhouette(self) -> float:
        """Return the mean silhouette of the chosen number of segments, from -1 to 1."""
        return self.silhouettes[len(self.segments)]

    @property
    def features(self) -> list[str]:
        """Return the features that the segments are made of, in the pipeline's order."""
        return _columns(self.pipeline)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pipeline, ready for JSON."""
        return {
            "segments": [asdict(segment) for segment in self.segments],
            "silhouettes": {str(k): silhouette for k, silhouette in self.silhouettes.items()},
            "next_number": self.next_number,
        }

    @classmethod
    def from_dict(cls, pipeline: Pipeline, metadata: dict[str, Any]) -> "SegmentModel":
        """Return the model that `to_dict` described, around its pipeline."""
        segments = tuple(
            Segment(**(segment | {"typical": tuple(Trait(**trait) for trait in segment["typical"])}))
            for segment in metadata["segments"]
        )
        silhouettes = {int(k): silhouette for k, silhouette in metadata["silhouettes"].items()}
        return cls(pipeline, segments, silhouettes, metadata["next_number"])


def fit(snapshot: pd.DataFrame, k_min: int, k_max: int, seed: int, n_jobs: int = -1) -> SegmentModel:
    """Find the segments of one snapshot, by k-means on the float64 features.

    Counts, durations and amounts are compressed by the inverse hyperbolic sine, a logarithm that also takes 0
    and refunds; all features are standardised and cut at three deviations. A null is then filled with 0, the
    average, so that what does not apply to a user pulls nowhere. Of one quantity over several windows only
    the longest counts, and of two features that correlate by more than 0.9 only the first.

    The number of segments, from `k_min` (at least 2) to `k_max`, is the one with the highest mean silhouette
    (Rousseeuw 1987). The result depends neither on the order of the rows nor on the number of threads. Ids
    are new, S01 being the largest segment; `align` brings back those that are known.

    Raises NotEnoughUsers with fewer than 10 users per segment, or fewer different users than segments.
    """
    users = snapshot.sort_values("user_id", ignore_index=True)
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
        clusters = _distances(matrix, kmeans).argmin(axis=1)
        refits = parallel(delayed(_recovered)(sample, kmeans, seed + i) for i in range(1, BOOTSTRAP_COUNT + 1))

    pipeline = Pipeline([*preparation.steps, ("clusters", kmeans)])
    traits = [_traits(users[_columns(pipeline)], matrix, clusters == i) for i in range(k)]
    sizes = np.bincount(clusters, minlength=k)
    numbers = _numbered(sizes, first=1)
    names = _names(traits, sizes)
    segments = tuple(
        Segment(
            segment_id=numbers[i],
            name=names[i],
            size=int(sizes[i]),
            share=float(sizes[i] / len(users)),
            stability=float(np.mean([refit[i] for refit in refits])),
            typical=tuple(traits[i][:TRAIT_MAX]),
        )
        for i in range(k)
    )
    return SegmentModel(pipeline, segments, silhouettes, next_number=k + 1)


def assign(model: SegmentModel, snapshot: pd.DataFrame) -> pd.DataFrame:
    """Assign every user of a snapshot to the nearest segment, each for itself.

    Returns one row per user in the snapshot's order: user_id, segment_id, segment_name, segment_strength and
    runner_up_segment_id. The strength is 1 - d1 / d2 with the distances to the nearest and the second nearest
    segment's centre: 1 at the centre, 0 on the border between two.
    """
    # cdist takes each pair for itself, where a matrix product rounds by the number of rows
    distances = _distances(model.pipeline[:-1].transform(snapshot), model.pipeline[-1])
    order = np.argsort(distances, axis=1, kind="stable")[:, :2]
    nearest, second = np.take_along_axis(distances, order, axis=1).T
    ids = np.array([segment.segment_id for segment in model.segments])
    names = np.array([segment.name for segment in model.segments])
    return pd.DataFrame(
        {
            "user_id": snapshot["user_id"].to_numpy(),
            "segment_id": ids[order[:, 0]],
            "segment_name": names[order[:, 0]],
            "segment_strength": 1 - np.divide(nearest, second, out=np.ones_like(nearest), where=second > 0),
            "runner_up_segment_id": ids[order[:, 1]],
        }
    )


def align(model: SegmentModel, new: pd.Series, old: pd.Series, next_number: int) -> SegmentModel:
    """Give a new model's segments the ids under which they are known.

    `new` and `old` are segment ids by user_id, of the new model and of the one that serves; users that only
    one of them knows don't count. The pairs are those that keep most users under their old id (Kuhn 1955). A
    segment without a pair, or without a user in common with it, gets a fresh id from the old model's
    `next_number` on: an id is never used twice.
    """
    overlap = pd.crosstab(new, old.reindex(new.index))
    counts = overlap.to_numpy()
    pairs = zip(*linear_sum_assignment(counts, maximize=True), strict=True)
    kept = {str(overlap.index[i]): str(overlap.columns[j]) for i, j in pairs if counts[i, j] > 0}
    fresh = [segment for segment in model.segments if segment.segment_id not in kept]
    numbers = _numbered([segment.size for segment in fresh], first=next_number)
    known = kept | {segment.segment_id: number for segment, number in zip(fresh, numbers, strict=True)}
    return replace(
        model,
        segments=tuple(replace(segment, segment_id=known[segment.segment_id]) for segment in model.segments),
        next_number=next_number + len(fresh),
    )


def describe(model: SegmentModel) -> pd.DataFrame:
    """Return the segments as a table to read, the largest first, with what is typical of each in words."""
    return pd.DataFrame(
        {
            "segment_id": segment.segment_id,
            "segment_name": segment.name,
            "user_count": segment.size,
            "user_share": segment.share,
            "stability": segment.stability,
            "typical": [in_words(trait.feature, trait.value) for trait in segment.typical],
        }
        for segment in sorted(model.segments, key=lambda segment: (-segment.size, segment.segment_id))
    )


def profiles(model: SegmentModel) -> pd.DataFrame:
    """Return the segments' centres: a row per segment name, a column per feature, in standard deviations.

    0 is the average user; the segments are in the order of their ids.
    """
    order = sorted(range(len(model.segments)), key=lambda i: model.segments[i].segment_id)
    centres = model.pipeline[-1].cluster_centers_[order]
    return pd.DataFrame(centres, index=[model.segments[i].name for i in order], columns=model.features)


def quantity(feature: str) -> str:
    """Return a feature's name without its window: session_count for session_count_28d."""
    return re.sub(r"_\d+d$", "", feature)


# --- the fit ---


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
    prepared = pd.DataFrame(preparation.fit_transform(users), columns=_columns(preparation))
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


def _columns(pipeline: Pipeline) -> list[str]:
    return [column for _, _, columns in pipeline[0].transformers for column in columns]


def _kmeans(matrix: Matrix, k: int, seed: int) -> KMeans:
    # OpenMP's limit belongs to the thread that sets it, so every thread of the fan-out sets its own
    with threadpool_limits(limits=1, user_api="openmp"):
        return KMeans(n_clusters=k, n_init=10, random_state=seed).fit(matrix)


def _distances(matrix: Matrix, kmeans: KMeans) -> Matrix:
    distances: Matrix = cdist(matrix, kmeans.cluster_centers_)
    return distances


def _silhouette(sample: Matrix, k: int, seed: int) -> float:
    labels = _distances(sample, _kmeans(sample, k, seed)).argmin(axis=1)
    return float(silhouette_score(sample, labels))


def _recovered(sample: Matrix, kmeans: KMeans, seed: int) -> Matrix:
    """Return per cluster the Jaccard similarity to its best match in a bootstrap's refit (Hennig 2007)."""
    rows = np.random.default_rng(seed).integers(len(sample), size=len(sample))
    k = min(kmeans.n_clusters, len(np.unique(sample[rows], axis=0)))
    refit = _kmeans(sample[rows], k, seed)
    seen = sample[np.unique(rows)]
    original = np.eye(kmeans.n_clusters)[_distances(seen, kmeans).argmin(axis=1)]
    again = np.eye(k)[_distances(seen, refit).argmin(axis=1)]
    both = original.T @ again
    either = original.sum(axis=0)[:, None] + again.sum(axis=0) - both
    best: Matrix = (both / np.maximum(either, 1)).max(axis=1)
    return best


def _numbered(sizes: Sequence[int] | NDArray[np.int_], first: int) -> list[str]:
    rank = np.argsort(np.argsort(-np.asarray(sizes), kind="stable"))
    return [f"S{first + int(position):02d}" for position in rank]


# --- what is typical, and what to call it ---


def _traits(features: pd.DataFrame, matrix: Matrix, member: NDArray[np.bool_]) -> list[Trait]:
    differences = pd.Series(matrix[member].mean(axis=0) - matrix[~member].mean(axis=0), features.columns)
    traits = []
    for feature in differences.abs().sort_values(ascending=False, kind="stable").index:
        inside, everyone = features.loc[member, feature], features[feature]
        statistic = "mean" if inside.median() == everyone.median() else "median"
        value, overall = inside.agg(statistic), everyone.agg(statistic)
        if not np.isnan(value):
            traits.append(Trait(feature, float(differences[feature]), statistic, float(value), float(overall)))
    return traits


class Phrases(NamedTuple):
    """How a marketer says that a quantity is high or low: as the name's head, and as what follows a comma."""

    topic: str
    high: str
    high_after: str
    low: str
    low_after: str


# A name takes at most one phrase of a topic: "Frequent buyers, big spenders" would say the same thing twice.
PHRASES = {
    "recency_days": Phrases("recency", "Lapsed visitors", "long gone", "Recent visitors", "here lately"),
    "tenure_days": Phrases("tenure", "Long-standing visitors", "known for long", "New visitors", "new here"),
    "session_count": Phrases("activity", "Frequent visitors", "often here", "Rare visitors", "seldom here"),
    "active_day_count": Phrases("activity", "Regulars", "here on many days", "Rare visitors", "here on few days"),
    "session_trend": Phrases("trend", "Warming visitors", "coming more often", "Cooling visitors", "coming less often"),
    "duration_mean_s": Phrases("depth", "Lingering visitors", "staying long", "Hasty visitors", "soon off again"),
    "duration_median_s": Phrases("depth", "Lingering visitors", "staying long", "Hasty visitors", "soon off again"),
    "pages_per_session": Phrases("depth", "Deep browsers", "seeing many pages", "Skimmers", "seeing few pages"),
    "bounce_rate": Phrases("depth", "Bouncers", "often bouncing", "Attentive visitors", "seldom bouncing"),
    "engaged_rate": Phrases("depth", "Engaged visitors", "engaged", "Hasty visitors", "barely engaged"),
    "item_count": Phrases("range", "Catalogue browsers", "seeing many items", "Few-item browsers", "seeing few items"),
    "category_count": Phrases("range", "All-round browsers", "in many categories", "Specialists", "in few categories"),
    "search_count": Phrases("search", "Researchers", "searching a lot", "Non-searchers", "not searching"),
    "support_visit_count": Phrases(
        "support", "Support seekers", "seeking support", "Self-reliant visitors", "no support"
    ),
    "support_session_share": Phrases(
        "support", "Support seekers", "seeking support", "Self-reliant visitors", "no support"
    ),
    "support_recency_days": Phrases(
        "support", "Past support seekers", "support long ago", "Recent support seekers", "support lately"
    ),
    "cart_count": Phrases("cart", "Cart fillers", "filling carts", "Browsers without a cart", "no carts"),
    "cart_abandonment_rate": Phrases("cart", "Cart abandoners", "leaving carts", "Cart finishers", "finishing carts"),
    "cart_abandoned_recency_days": Phrases(
        "cart", "Past cart abandoners", "cart left long ago", "Recent cart abandoners", "cart left lately"
    ),
    "purchase_count": Phrases("buying", "Frequent buyers", "buying often", "Non-buyers", "not buying"),
    "purchase_recency_days": Phrases("buying", "Past buyers", "bought long ago", "Recent buyers", "bought lately"),
    "revenue_total": Phrases("buying", "Big spenders", "spending a lot", "Small spenders", "spending little"),
    "revenue_per_purchase": Phrases(
        "basket", "Big-basket buyers", "big baskets", "Small-basket buyers", "small baskets"
    ),
    "conversion_rate": Phrases(
        "buying", "Determined buyers", "buying on most visits", "Window-shoppers", "just looking"
    ),
    "night_session_share": Phrases("hours", "Night visitors", "at night", "Day visitors", "never at night"),
    "morning_session_share": Phrases(
        "hours", "Morning visitors", "in the morning", "Later-day visitors", "not in the morning"
    ),
    "afternoon_session_share": Phrases(
        "hours", "Afternoon visitors", "in the afternoon", "Off-afternoon visitors", "not in the afternoon"
    ),
    "evening_session_share": Phrases(
        "hours", "Evening visitors", "in the evening", "Daytime visitors", "not in the evening"
    ),
    "weekend_session_share": Phrases("days", "Weekend visitors", "at the weekend", "Weekday visitors", "on weekdays"),
}


def _phrases(trait: Trait) -> tuple[str, str, str]:
    """Return a trait's topic, and how to say it as a name's head and after a comma."""
    name = quantity(trait.feature)
    if trait.feature == "session_count" and trait.difference < 0 and trait.value <= 1:
        return "activity", "One-time visitors", "here only once"
    if name not in PHRASES:
        words = f"{'high' if trait.difference > 0 else 'low'} {title(trait.feature)}"
        return name, f"Users with {words}", words
    topic, high, high_after, low, low_after = PHRASES[name]
    return (topic, high, high_after) if trait.difference > 0 else (topic, low, low_after)


def _names(traits: list[list[Trait]], sizes: NDArray[np.int_]) -> list[str]:
    """Name the segments by their strongest traits, the largest first; one more tells equal names apart."""
    names: dict[int, str] = {}
    for i in np.argsort(-sizes, kind="stable"):
        phrases: dict[str, tuple[bool, str, str]] = {}
        for trait in sorted(traits[i], key=_telling, reverse=True):
            topic, head, after = _phrases(trait)
            phrases.setdefault(topic, (abs(trait.difference) >= DIFFERENCE_MIN, head, after))
        marked = [(head, after) for strong, head, after in phrases.values() if strong]
        weak = [after for strong, _, after in phrases.values() if not strong]
        name = ", ".join([marked[0][0], *(after for _, after in marked[1:2])]) if marked else "Average users"
        more = [after for _, after in marked[2:]] + weak + [f"group {i + 1}"]
        while name in names.values():
            name = f"{name}, {more.pop(0)}"
        names[int(i)] = name
    return [names[i] for i in range(len(sizes))]


def _telling(trait: Trait) -> float:
    """Return a trait's weight in a name: what users do tells more than what they leave, but for their coming."""
    comes = _phrases(trait)[0] in {"recency", "tenure", "activity", "trend"}
    return abs(trait.difference) * (1 if comes or trait.difference > 0 else 0.5)
