"""Why a user's score is high: what each feature adds to it, exactly, and what adds most in sentences."""

import itertools
import math
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from features.snapshots import format_value, in_words, quantity, title
from models.forest import ROWS_AT_ONCE, Leaf, opened
from models.propensities import Blend

LEAVES_AT_ONCE = 8  # half a tree of 15: of more leaves there are fewer tables, but much larger ones
ADDED_MIN = 0.01  # log odds: what raises the odds by less than 1 % is no reason
DEPTH_MAX = 5  # of trees that have tables, which double in size with each level


class NoTreesError(TypeError):
    """Say of which type a model is that is not made of LightGBM's trees, so that its reasons are not known."""


Matrix = NDArray[np.float64]


def contributions(model: Pipeline | Blend, frame: pd.DataFrame) -> tuple[Matrix, float]:
    """Return what each feature adds to the raw score (log odds) of each row, and the base it is added to.

    `model` is a pipeline of a ColumnTransformer and a fitted LGBMClassifier of two classes, or a blend of one with a
    line. The matrix has a row for each of `frame` and a column for each feature, in the ColumnTransformer's order. A
    row's sum and the base are its raw score. These are Shapley values of the trees (path-dependent TreeSHAP; Lundberg
    et al. 2020), as LightGBM's own `pred_contrib` has them, in a small part of its time where trees have at most 5
    levels; and of the line, where a feature adds its weight times how far it is from the mean.

    Raises NoTreesError where the model has no LightGBM's trees.
    """
    columns, names, explain, base = _opened(model)
    found = np.empty((len(frame), len(names)))

    def fill(first: int) -> None:
        rows = slice(first, first + ROWS_AT_ONCE)
        found[rows] = explain(columns.transform(frame.iloc[rows])).T

    Parallel(n_jobs=-1, prefer="threads")(delayed(fill)(first) for first in range(0, len(frame), ROWS_AT_ONCE))
    return found, base


def reasons(
    model: Pipeline | Blend, frame: pd.DataFrame, top: int = 3, personal: Collection[str] = ()
) -> list[list[str]]:
    """Return what raises each row's score most, the strongest first and at most `top`, in sentences with its values.

    Features of one topic are one reason, as strong as the sum of their contributions; the one that adds most speaks.
    What raises the odds by less than 1 % is none. That no session was in a window is said by recency_days.
    A null speaks where it means that the user never did something. Where it means that a value is not known, it
    does not count; nor does a category that is new to the trees, an infinite value, nor any `personal` feature, since
    reasons go wherever scores go. Equal strings are shared.

    `model` and errors are as in `contributions`.
    """
    columns, names, explain, _ = _opened(model)
    topics: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        topics.setdefault(_topic(name), []).append(i)
    recency = names.index("recency_days") if "recency_days" in names else None
    sessions = [i for i, name in enumerate(names) if quantity(name) == "session_count" and recency is not None]
    mute_if_null = np.array([[not sentence(name, None)] for name in names])
    is_personal = np.array([[name in personal] for name in names])
    say = cache(sentence)

    def of_rows(first: int) -> list[list[str]]:
        rows = frame.iloc[first : first + ROWS_AT_ONCE]
        matrix = columns.transform(rows)
        added = explain(matrix)
        added[np.isinf(matrix.T) | (np.isnan(matrix.T) & mute_if_null) | is_personal] = 0
        for i in sessions:
            away = (matrix[:, i] == 0) & np.isfinite(matrix[:, recency])
            added[recency, away] += added[i, away]
            added[i, away] = 0
        sums = np.array([added[members].sum(axis=0) for members in topics.values()])
        speakers = np.array([np.take(members, added[members].argmax(axis=0)) for members in topics.values()])
        strongest = np.argsort(-sums, axis=0, kind="stable")[:top]
        raises = np.take_along_axis(sums, strongest, axis=0) >= ADDED_MIN
        speakers = np.where(raises, np.take_along_axis(speakers, strongest, axis=0), -1)
        said = np.full(speakers.shape, None, dtype=object)
        for i in np.unique(speakers[raises]):
            speaks = speakers == i
            codes, values = pd.factorize(_rounded(names[i], rows)[speaks.nonzero()[1]], use_na_sentinel=False)
            said[speaks] = np.array([say(names[i], value) for value in values], dtype=object)[codes]
        return [[words for words in of_row if words is not None] for of_row in said.T.tolist()]

    firsts = range(0, len(frame), ROWS_AT_ONCE)
    return list(itertools.chain(*Parallel(n_jobs=-1, prefer="threads")(delayed(of_rows)(first) for first in firsts)))


def importance(model: Pipeline | Blend, frame: pd.DataFrame) -> dict[str, float]:
    """Return how much of all that moves the scores of these rows is due to each feature, the most first; they sum to 1.

    That is the mean of the contributions' sizes (Lundberg et al. 2020). Empty without rows, or where nothing moves.
    `model` and errors are as in `contributions`.
    """
    _, names, _, _ = _opened(model)
    sizes = np.abs(contributions(model, frame)[0]).mean(axis=0) if len(frame) else np.zeros(len(names))
    total = float(sizes.sum())
    order = np.argsort(-sizes, kind="stable")
    return {names[i]: float(sizes[i] / total) for i in order if sizes[i] > 0} if total else {}


# --- sentences ---


class Words(NamedTuple):
    """What a feature is about, and how to say its value: in general, of 0, of 1, and of null ("": not at all)."""

    topic: str
    any: str
    zero: str = ""
    one: str = ""
    null: str = ""


WORDS = {
    "recency_days": Words("recency", "last visit {} ago"),
    "tenure_days": Words("tenure", "first visit {} ago"),
    "session_count": Words("activity", "came {} times", "did not come", "came once"),
    "active_day_count": Words("activity", "active on {} days", "active on no day", "active on 1 day"),
    "session_trend_28d": Words(
        "activity",
        "{} in the 28 before",
        "as many sessions in the last 28 days as in the 28 before",
        "came in the last 28 days, and not in the 28 before",
        "no session in the last 56 days",
    ),
    "return_absence_days": Words("return", "came back after {}"),
    "duration_mean_s": Words("depth", "{} per session on average"),
    "duration_median_s": Words("depth", "typical session of {}"),
    "pages_per_session": Words("depth", "{} pages per session", one="1 page per session"),
    "bounce_rate": Words("depth", "{} sessions bounced"),
    "engaged_rate": Words("depth", "{} sessions engaged"),
    "search_count": Words("search", "{} searches", "no search", "1 search"),
    "item_count": Words("range", "{} different items", "no item", "1 item"),
    "category_count": Words("range", "{} different categories", "no category", "1 category"),
    "support_visit_count": Words("support", "{} support visits", "no support visit", "1 support visit"),
    "support_session_share": Words("support", "{} sessions with a support visit"),
    "support_recency_days": Words("support", "last support visit {} ago", null="never sought support"),
    "campaign_session_count": Words(
        "campaign", "{} visits from a campaign", "no visit from a campaign", "1 visit from a campaign"
    ),
    "cart_count": Words("cart", "{} carts filled", "no cart filled", "1 cart filled"),
    "cart_abandonment_rate": Words("cart", "{} carts abandoned", null="never filled a cart"),
    "cart_abandoned_recency_days": Words("cart", "abandoned a cart {} ago", null="never abandoned a cart"),
    "purchase_count": Words("buying", "{} purchases", "no purchase", "1 purchase"),
    "purchase_recency_days": Words("buying", "last purchase {} ago", null="never bought"),
    "revenue_total": Words("buying", "revenue of {} so far", "no revenue so far"),
    "revenue_per_purchase": Words("buying", "revenue of {} per purchase", null="never bought"),
    "conversion_rate": Words("buying", "{} sessions with a purchase"),
    "night_session_share": Words("hours", "{} sessions at night"),
    "morning_session_share": Words("hours", "{} sessions in the morning"),
    "afternoon_session_share": Words("hours", "{} sessions in the afternoon"),
    "evening_session_share": Words("hours", "{} sessions in the evening"),
    "weekend_session_share": Words("days", "{} sessions at the weekend"),
    "device": Words("device", "mostly on {}"),
    "source": Words("source", "source mostly {}"),
    "country": Words("country", "mostly from {}"),
}
"""By feature, or by quantity for all its windows."""


def sentence(name: str, value: float | str | None) -> str:
    """Say a feature's value as a reason; a feature without words of its own has its title before the value.

    A null is empty unless it means that the user never did something.

    >>> sentence("recency_days", 34.2)
    'last visit 34 days ago'
    >>> sentence("purchase_count_90d", 0.0)
    'no purchase in the last 90 days'
    >>> sentence("bounce_rate", 0.3)
    '30 % of sessions bounced'
    """
    words = _words(name)
    if pd.isna(value):
        return words.null if words else ""
    if words is None:
        return in_words(name, value) if isinstance(value, float) else f"{title(name)}: {value}"
    said = (words.zero if value == 0 else words.one if value == 1 else "") or words.any.format(_amount(name, value))
    if name in WORDS:
        return f"{said} so far" if name.endswith("_count") else said
    window = title(name).partition(" in the last ")
    return said + "".join(window[1:])


def _words(name: str) -> Words | None:
    return WORDS.get(name) or WORDS.get(quantity(name))


def _topic(name: str) -> str:
    words = _words(name)
    return words.topic if words else quantity(name)


def _amount(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if name.endswith("_days"):
        return in_days(value)
    if name.endswith(("_rate", "_share")):
        return "no" if value == 0 else "all" if value == 1 else f"{format_value(name, value)} of"
    if name == "session_trend_28d":
        return _change((1 + value) / (1 - value))
    return format_value(name, value)


def in_days(value: float) -> str:
    """Write days, rounded to whole ones.

    >>> in_days(34.2), in_days(1.4), in_days(0.3)
    ('34 days', '1 day', 'less than a day')
    """
    days = f"{value:,.0f}"
    return {"0": "less than a day", "1": "1 day"}.get(days, f"{days} days")


def _change(times: float) -> str:
    """Say how many times as many sessions there were in the last 28 days."""
    if times == 0:
        return "no session in the last 28 days but some"
    if times >= 2:
        return f"{format_value('times', times)} times as many sessions in the last 28 days as"
    return f"{abs(times - 1):.0%} {'more' if times > 1 else 'fewer'} sessions in the last 28 days than".replace(
        "%", " %"
    )


def _rounded(name: str, rows: pd.DataFrame) -> NDArray[Any]:
    """Return a feature's values, rounded where its sentence will round them too, so that there are few to say."""
    values = rows[name].to_numpy()
    if values.dtype != np.float64:
        return values
    return np.where(name.endswith("_days") | (np.abs(values) >= 10), np.round(values), values)


# --- contributions ---


class Part(NamedTuple):
    """Of some leaves, for a feature: what each of its codes adds to a row's key, and the contribution by key."""

    feature: int
    key_of_code: NDArray[np.intp]
    contribution_of_key: Matrix


def _opened(model: Pipeline | Blend) -> tuple[Any, list[str], Callable[[Matrix], Matrix], float]:
    """Return what makes a matrix of rows, its columns' names, what turns it into contributions, and the base."""
    pipeline = model.trees if isinstance(model, Blend) else model
    if not isinstance(pipeline, Pipeline):
        raise NoTreesError(f"reasons need LightGBM's trees, and the model is {type(model).__name__}")
    explain, base = _explainer(pipeline[-1])
    names = [name for _, _, columns in pipeline[0].transformers for name in columns]
    if not isinstance(model, Blend):
        return pipeline[0], names, explain, base
    share = model.share
    logarithm, standardise, logistic = model.line
    places = [names.index(name) for name in model.line.feature_names_in_]

    def explain_blend(matrix: Matrix) -> Matrix:
        found = share * explain(matrix)
        logarithms = logarithm.transform(pd.DataFrame(matrix[:, places], columns=model.line.feature_names_in_))
        found[places] += (1 - share) * (logistic.coef_[0] * standardise.transform(logarithms)).T
        return found

    return pipeline[0], names, explain_blend, share * base + (1 - share) * float(logistic.intercept_[0])


def _explainer(trees: Any) -> tuple[Callable[[Matrix], Matrix], float]:
    """Return what turns a matrix into its contributions, a row for each feature, and the base.

    Trees see a value through its code only (`models.forest`). Codes decide which conditions on the path to a leaf a row
    meets, and these decide what the leaf gives to the features on its path, which can be worked out beforehand (Yang
    2021). Here some leaves of a tree have one table, of what they give together for all combinations of codes that they
    tell apart. So a row takes two look-ups for each feature of a table, where LightGBM weighs each path of each tree
    anew.
    """
    if not isinstance(trees, lgb.LGBMClassifier):
        raise NoTreesError(f"reasons need LightGBM's trees, and the model ends in {type(trees).__name__}")
    booster = trees.booster_

    def explain_by_lightgbm(matrix: Matrix) -> Matrix:
        return np.asarray(booster.predict(matrix, pred_contrib=True)).T.copy()

    base = float(explain_by_lightgbm(np.zeros((1, trees.n_features_in_)))[-1, 0])
    forest = opened(booster)
    if forest is None or forest.depth > DEPTH_MAX:
        return lambda matrix: explain_by_lightgbm(matrix)[:-1], base
    tables = [
        _table(leaves[first : first + LEAVES_AT_ONCE])
        for leaves in forest.trees
        if len(leaves) > 1
        for first in range(0, len(leaves), LEAVES_AT_ONCE)
    ]

    def explain(matrix: Matrix) -> Matrix:
        codes = forest.codes(matrix)
        found = np.zeros(matrix.shape[::-1])
        key, added = np.empty((2, len(matrix)), dtype=np.intp)
        contribution = np.empty(len(matrix))
        for table in tables:
            key[:] = 0
            for feature, key_of_code, _ in table:  # mode: the default would copy `out`
                key += np.take(key_of_code, codes[feature], out=added, mode="clip")
            for feature, _, contribution_of_key in table:
                found[feature] += np.take(contribution_of_key, key, out=contribution, mode="clip")
        return found

    return explain, base


def _table(leaves: list[Leaf]) -> list[Part]:
    """Return what leaves give together, for all combinations of codes that they tell apart."""
    features = sorted({feature for leaf in leaves for feature in leaf.path})
    passed = {feature: np.zeros(1, dtype=np.intp) for feature in features}  # by code: the leaves, a bit each
    for number, leaf in enumerate(leaves):
        for feature, (passing, _) in leaf.path.items():
            passed[feature] = passed[feature] | passing.astype(np.intp) << number
    told_apart = {feature: np.unique(of_feature, return_inverse=True) for feature, of_feature in passed.items()}
    shape = [len(kinds) for kinds, _ in told_apart.values()]
    keys = np.indices(shape).reshape(len(shape), -1)
    passed_by_key = {feature: told_apart[feature][0][kind] for feature, kind in zip(features, keys, strict=True)}
    given = {feature: np.zeros(keys.shape[1]) for feature in features}
    for number, leaf in enumerate(leaves):
        met = sum((passed_by_key[feature] >> number & 1) << bit for bit, feature in enumerate(leaf.path))
        for feature, of_leaf in zip(leaf.path, _given(leaf).T, strict=True):
            given[feature] += of_leaf[met]
    return [
        Part(feature, told_apart[feature][1] * math.prod(shape[axis + 1 :]), given[feature])
        for axis, feature in enumerate(features)
    ]


def _given(leaf: Leaf) -> Matrix:
    """Return what a leaf gives to the features on its path: a row for each set of conditions met, a bit each."""
    shares = [share for _, share in leaf.path.values()]
    expected = [
        leaf.value * math.prod(share for bit, share in enumerate(shares) if not known >> bit & 1)
        for known in range(2 ** len(shares))
    ]
    given: Matrix = np.tensordot(expected, _shapley_weights(len(shares)), axes=1)
    return given


@cache
def _shapley_weights(count: int) -> Matrix:
    """Return the weights of expectations in Shapley values, by the set of features known, the set met, the feature.

    What is expected of a leaf when some features are known is nothing unless they meet their conditions.
    """
    weights = np.zeros((2**count, 2**count, count))
    for known, met, feature in itertools.product(range(2**count), range(2**count), range(count)):
        if known & met == known:
            joined = known >> feature & 1
            weight = 1 / (count * math.comb(count - 1, known.bit_count() - joined))
            weights[known, met, feature] = weight if joined else -weight
    return weights
