"""What segments tell about the future: of outcomes after them, learnt in the past and told in time's order.

Each segment's mean outcome is learnt on the users of one instant and told about those of a later one, after the first
one's outcomes are complete. Beside it stand the simplest ways to cut the same users into as many segments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.preprocessing import StandardScaler

from models.evaluation import Estimate

DRAWS = 400
DRAWS_OF_CHOICE = 200
STANDARD_ERRORS = 3
EACH_MIN = 10
"""Users of each kind that an outcome needs, to be one."""
SAMPLE_MAX = 20_000
"""Users of whom is told: intervals are then narrow enough."""
REVENUE, EVENT_COUNT = "revenue", "event_count"
KEY = ("user_id", "as_of")
RIVALS = {
    "rfm_kmeans": "k-means on RFM",
    "rfm_terciles": "RFM terciles, added up",
    "spending": "quantiles of spending or active days",
}
"""The simplest ways to cut users into as many segments; where nothing is spent, active days stand for money."""

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True)
class Past:
    """Hold a snapshot of the past, and what its users did after it: a row per user in both, in the same order.

    The `outcomes` are OUTCOMES: labels, asked of all users, and the sums `revenue` and `event_count`; all windows are
    complete. `horizon_days` says how long each one's window is.
    """

    users: pd.DataFrame
    outcomes: pd.DataFrame
    horizon_days: Mapping[str, float] = field(default_factory=dict)

    @property
    def as_of(self) -> datetime:
        """Return the snapshot's instant."""
        instant: datetime = self.users["as_of"].iloc[0].to_pydatetime()
        return instant

    @property
    def labels(self) -> list[str]:
        """Return the outcomes that are true or false."""
        return [str(name) for name in self.outcomes.columns if name not in (*KEY, REVENUE, EVENT_COUNT)]

    def matrix(self, names: Sequence[str]) -> Matrix:
        """Return outcomes side by side: labels as 0 and 1, values compressed by the inverse hyperbolic sine."""
        values = {name: self.outcomes[name].to_numpy(dtype=np.float64) for name in names}
        return np.column_stack([one if name in self.labels else np.arcsinh(one) for name, one in values.items()])

    def sample(self, rows: Labels) -> "Past":
        """Return some of the users."""
        return replace(
            self,
            users=self.users.iloc[rows].reset_index(drop=True),
            outcomes=self.outcomes.iloc[rows].reset_index(drop=True),
        )


def outcomes_of(past: Sequence[Past]) -> list[str]:
    """Return the outcomes by which users of all snapshots differ: labels, and last what they are worth, if known.

    Of a label at least ten users have it and ten don't. Users are worth the revenue, if as many spent something, or
    else the events that they have.
    """

    def tells_apart(name: str) -> bool:
        counts = [int((one.outcomes[name] > 0).sum()) for one in past]
        return all(EACH_MIN <= count <= len(one.outcomes) - EACH_MIN for count, one in zip(counts, past, strict=True))

    labels = [name for name in past[0].labels if tells_apart(name)]
    values = [name for name in (REVENUE, EVENT_COUNT) if tells_apart(name)]
    return [*labels, *values[:1]]


def told(of_then: Labels, then: Matrix, of_now: Labels, k: int) -> Matrix:
    """Tell each user of now the mean outcomes of their segment's users then; of an empty segment, everyone's."""
    members = np.eye(k)[of_then]
    counts = members.sum(axis=0)[:, None]
    means = np.where(counts > 0, members.T @ then / np.maximum(counts, 1), then.mean(axis=0))
    found: Matrix = means[of_now]
    return found


def telling(told_outcomes: Matrix, outcomes: Matrix) -> tuple[float, float]:
    """Return the share of the outcomes' variance that was told (R²), on average over outcomes, and what is sure of it.

    That is three standard errors less: of some thirty candidates one would otherwise tell something by chance.
    """
    first, *drawn = _r2(told_outcomes, outcomes, _weights(len(outcomes), DRAWS_OF_CHOICE)).mean(axis=1)
    return float(first), float(first - STANDARD_ERRORS * np.std(drawn))


def measure(segments: Callable[[pd.DataFrame], Labels], k: int, past: Sequence[Past]) -> dict[str, Any]:
    """Measure what segments tell beside what their rivals tell with as many segments, of all users of a snapshot.

    `segments` gives users the segment that a model puts them in which was fitted to the last of `past`, with no outcome
    of these. Means are learnt on the one before, whose outcomes were complete by then. Of each outcome there are its
    mean, the metrics of the segments and of the rivals, and by how much the segments are ahead of each rival (`gains`),
    with 95 % intervals of a paired bootstrap of users: of labels `auc` (area under the ROC curve) and `r2`; of the
    value, compressed by the inverse hyperbolic sine, `r2` and `gini` (normalised: 1 is the order of what came).
    """
    before, then = (one.sample(positions(len(one.users), SAMPLE_MAX)) for one in past[-2:])
    names = outcomes_of(past[-2:])
    ways = {"segments": (segments(before.users), segments(then.users))}
    ways |= {name: cut(before.users, then.users, k) for name, cut in _RIVALS.items()}
    outcomes_before, outcomes_then = (one.matrix(names) for one in (before, then))
    expected = {name: told(one, outcomes_before, other, k) for name, (one, other) in ways.items()}
    weights = _weights(len(then.users), DRAWS)
    found = {}
    for place, name in enumerate(names):
        actual = outcomes_then[:, place]
        measured = {
            way: _metrics(predicted[:, place], actual, weights, is_label=name in then.labels)
            for way, predicted in expected.items()
        }
        ours = measured["segments"]
        found[name] = {
            "horizon_days": then.horizon_days.get(name),
            "mean": float(then.outcomes[name].mean()),
            "metrics": {
                way: {one: asdict(_estimate(drawn)) for one, drawn in m.items()} for way, m in measured.items()
            },
            "gains": {
                way: {one: asdict(_estimate(ours[one] - drawn)) for one, drawn in m.items()}
                for way, m in measured.items()
                if way != "segments"
            },
        }
    return {
        "learnt_as_of": before.as_of.isoformat(),
        "as_of": then.as_of.isoformat(),
        "users": len(then.users),
        "segments": k,
        "outcomes": found,
    }


# --- rivals ---


def _by_kmeans(before: pd.DataFrame, then: pd.DataFrame, k: int) -> tuple[Labels, Labels]:
    rfm = [np.arcsinh(users[_rfm(then)].fillna(0).to_numpy()) for users in (before, then)]
    scale = StandardScaler().fit(rfm[1])
    one, other = (scale.transform(values) for values in rfm)
    k = min(k, len(np.unique(other, axis=0)))
    fitted = KMeans(n_clusters=k, n_init=10, random_state=0).fit(other)
    return fitted.predict(one), fitted.predict(other)


def _by_terciles(before: pd.DataFrame, then: pd.DataFrame, k: int) -> tuple[Labels, Labels]:
    """Cut the sums of three grades from 1 to 3 into as many parts of about equally many users."""
    signs = np.array([-1, 1, 1])  # the more recent, the better
    rfm = [users[_rfm(then)].fillna(0).to_numpy() * signs for users in (before, then)]
    lines = np.quantile(rfm[1], [1 / 3, 2 / 3], axis=0)
    scores = [(values[:, None, :] > lines[None]).sum(axis=(1, 2)).astype(np.float64) for values in rfm]
    return _quantiles(scores[0], scores[1], k)


def _by_spending(before: pd.DataFrame, then: pd.DataFrame, k: int) -> tuple[Labels, Labels]:
    one, other = (users[_rfm(then)[2]].fillna(0).to_numpy() for users in (before, then))
    return _quantiles(one, other, k)


_RIVALS: Mapping[str, Callable[[pd.DataFrame, pd.DataFrame, int], tuple[Labels, Labels]]] = {
    "rfm_kmeans": _by_kmeans,
    "rfm_terciles": _by_terciles,
    "spending": _by_spending,
}


def _quantiles(before: Matrix, then: Matrix, k: int) -> tuple[Labels, Labels]:
    lines = np.quantile(then, np.arange(1, k) / k)
    return np.searchsorted(lines, before, side="left"), np.searchsorted(lines, then, side="left")


def _rfm(users: pd.DataFrame) -> list[str]:
    """Return the features of recency, frequency and money."""
    spent = "revenue_total" in users and users["revenue_total"].nunique() > 1
    return ["recency_days", "session_count", "revenue_total" if spent else "active_day_count"]


# --- figures ---


def _metrics(predicted: Matrix, actual: Matrix, weights: Matrix, *, is_label: bool) -> dict[str, Matrix]:
    """Measure each drawing; the first is of all users as they are."""
    r2 = _r2(predicted[:, None], actual[:, None], weights)[:, 0]
    if is_label:
        return {"auc": _auc(predicted, actual, weights), "r2": r2}
    return {"r2": r2, "gini": _gini(predicted, actual, weights) / _gini(actual, actual, weights)}


def _steps(predicted: Matrix, values: Matrix, weights: Matrix) -> tuple[Matrix, Matrix]:
    """Add up weights and values of users with equal predictions, the highest first: a row for each drawing."""
    levels, groups = np.unique(-predicted, return_inverse=True)
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(len(levels)))
    ranked = weights[:, order]
    return np.add.reduceat(ranked, starts, axis=1), np.add.reduceat(ranked * values[order], starts, axis=1)


def _auc(predicted: Matrix, actual: Matrix, weights: Matrix) -> Matrix:
    users, positives = _steps(predicted, actual, weights)
    negatives = users - positives
    below = negatives.sum(axis=1, keepdims=True) - np.cumsum(negatives, axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a drawing may hold one kind of users only
        found: Matrix = (positives * (below + negatives / 2)).sum(axis=1) / pairs
    return found


def _gini(predicted: Matrix, actual: Matrix, weights: Matrix) -> Matrix:
    """Return the area between the Lorenz curve of what came, by falling prediction, and the diagonal."""
    users, values = (np.cumsum(one, axis=1) for one in _steps(predicted, actual, weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = users / users[:, -1:], values / values[:, -1:]
    x, y = (np.hstack([np.zeros((len(one), 1)), one]) for one in (x, y))
    found: Matrix = (np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1]) / 2).sum(axis=1) - 0.5
    return found


def _r2(told_outcomes: Matrix, outcomes: Matrix, weights: Matrix) -> Matrix:
    """Return the share of variance that was told: a row for each drawing, a column for each outcome."""
    totals = weights.sum(axis=1, keepdims=True)
    means = weights @ outcomes / totals
    around = weights @ outcomes**2 - totals * means**2
    missed = weights @ (outcomes - told_outcomes) ** 2
    found: Matrix = 1 - missed / np.maximum(around, 1e-12)
    return found


def _weights(count: int, draws: int) -> Matrix:
    """Draw users with replacement: how often each was drawn, a row for each drawing; in the first, each once."""
    random = np.random.default_rng(0)
    drawn = [np.bincount(random.integers(0, count, count), minlength=count) for _ in range(draws)]
    return np.array([np.ones(count), *drawn], dtype=np.float64)


def _estimate(drawn: Matrix) -> Estimate:
    """Return the first drawing's figure, and the 95 % interval of the others'."""
    known = drawn[1:][np.isfinite(drawn[1:])]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (0.0, 0.0)
    return Estimate(float(np.nan_to_num(drawn[0])), float(low), float(high))


def positions(count: int, most: int) -> Labels:
    """Draw positions in order, all if there are no more than `most`; the same each time."""
    return np.sort(np.random.default_rng(0).permutation(count)[:most])
