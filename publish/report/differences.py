"""Differences: what is typical of a segment against everyone else, found anew among the users of a version.

Differences and their words are those of `models.descriptions`. Here each is tested, too (Welch 1947; of shares the
normal approximation), and of all tests of a version those are kept among which at most 5 % are expected to be false
(Benjamini and Hochberg 1995). Discovered segments were made of the same features, so for them this only keeps chance
out of what is told; that the segments are there is what their stability says.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from models import descriptions, populations
from models.comparison import OTHERS
from models.descriptions import DIFFERENCE_SMALL, KNOWN_MIN, MOST, OTHERS_SHARE, SAMPLE_MAX, TYPICAL_SHARE, Trait, cut
from publish.report.content import Difference, Estimate
from publish.report.groups import Counted, Groups
from publish.report.metrics import rounded, share

Q_MAX = 0.05
TOLD_MAX = 24
"""Differences of a segment of which it is asked whether they say the same."""
FEATURES_AT_ONCE = 16

Values = NDArray[np.float64]


@dataclass(frozen=True)
class _Tested:
    """A difference in standard deviations, and how likely it would be by chance; of a text column, of a value."""

    feature: str
    difference: float
    p: float
    category: str | None = None
    here: int = 0
    others: int = 0


def find(
    snapshot: pd.DataFrame,
    groups: Groups,
    texts: Mapping[str, tuple[Sequence[str | None], Counted]],
    may_tell: Callable[[str], Counted],
    personal: Collection[str],
) -> dict[str, list[Difference]]:
    """Return what is typical of each segment that is shown, the strongest first.

    `snapshot` has the features of the groups' users, in their order, as `models.populations.meaningful` leaves them;
    `texts` the values and counts of text columns, and `may_tell` counts a feature's users by whether it is above 0,
    not, or null: what is hidden of both is not told.
    """
    compressed = {
        name: values
        for name in map(str, snapshot.select_dtypes("float64"))
        if (values := descriptions.compressed_values(snapshot[name].to_numpy())) is not None
    }
    tested = _test_numbers(compressed, groups)
    for name, (categories, counted) in texts.items():
        for segment_id, found in _test_texts(name, categories, counted, groups).items():
            tested[segment_id] += found
    every = [(segment_id, one) for segment_id, found in tested.items() for one in found]
    q = stats.false_discovery_control([one.p for _, one in every]) if every else []
    sure: dict[str, list[tuple[_Tested, float]]] = {name: [] for name in groups.shown}
    for (segment_id, one), rate in zip(every, q, strict=True):
        if rate <= Q_MAX and abs(one.difference) >= DIFFERENCE_SMALL:
            sure[segment_id].append((one, float(rate)))
    rows = np.linspace(0, len(snapshot) - 1, min(SAMPLE_MAX, len(snapshot))).astype(int)
    sample = {name: np.nan_to_num(values[rows]) for name, values in compressed.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.abs(np.atleast_2d(np.corrcoef(list(sample.values())))) if sample else np.empty((0, 0))
    position = {name: i for i, name in enumerate(sample)}
    return {
        name: _tell(snapshot, groups, name, found, may_tell, personal, position, correlations)
        for name, found in sure.items()
    }


def _test_numbers(compressed: Mapping[str, Values], groups: Groups) -> dict[str, list[_Tested]]:
    tested: dict[str, list[_Tested]] = {name: [] for name in groups.shown}
    names = list(compressed)
    for first in range(0, len(names), FEATURES_AT_ONCE):
        some = names[first : first + FEATURES_AT_ONCE]
        values = np.column_stack([compressed[name] for name in some])
        filled = np.nan_to_num(values)
        everyone, by_segment = groups.sum(np.hstack([~np.isnan(values), filled, filled**2]))
        for segment_id, sums in by_segment.items():
            here, others = (np.split(one, 3) for one in (sums, everyone - sums))
            with np.errstate(invalid="ignore", divide="ignore"):
                means, variances = zip(*(_moments(*part) for part in (here, others)), strict=True)
                errors = [variance / part[0] for variance, part in zip(variances, (here, others), strict=True)]
                t = (means[0] - means[1]) / np.sqrt(errors[0] + errors[1])
                freedom = (errors[0] + errors[1]) ** 2 / (
                    errors[0] ** 2 / (here[0] - 1) + errors[1] ** 2 / (others[0] - 1)
                )
                p = 2 * stats.t.sf(np.abs(t), freedom)
            known = (here[0] >= MOST * groups.sizes[segment_id]) & (here[0] >= groups.k) & (others[0] >= groups.k)
            for i in np.flatnonzero(known & np.isfinite(p)):
                tested[segment_id].append(_Tested(some[i], float(means[0][i] - means[1][i]), float(p[i])))
    return tested


def _moments(count: Values, total: Values, squares: Values) -> tuple[Values, Values]:
    mean = total / count
    return mean, np.maximum(squares - count * mean**2, 0) / (count - 1)


def _test_texts(name: str, values: Sequence[str | None], counted: Counted, groups: Groups) -> dict[str, list[_Tested]]:
    """Test how often each value is had, where that is shown and the value is frequent enough to be typical."""
    known = np.array([value is not None for value in values], dtype=bool)
    single = known & np.array([value != OTHERS for value in values], dtype=bool)
    found: dict[str, list[_Tested]] = {}
    for segment_id in groups.shown:
        here, hidden = counted.segments[segment_id], counted.hidden[segment_id] | counted.everyone_hidden
        others = counted.everyone - here
        n, m = int(here[known].sum()), int(others[known].sum())
        size = groups.sizes[segment_id]
        found[segment_id] = []
        if not n or not m or n < MOST * size or hidden[~known].any():
            continue
        for i in map(int, np.flatnonzero(single & ~hidden)):
            one, other, overall = here[i] / n, others[i] / m, (here[i] + others[i]) / (n + m)
            spread = np.sqrt(overall * (1 - overall))
            is_typical = here[i] >= TYPICAL_SHARE * size
            if one < other:
                is_typical = others[i] >= OTHERS_SHARE * (groups.user_count - size) and n >= KNOWN_MIN * size
            if spread > 0 and is_typical:
                difference = (one - other) / spread
                p = 2 * stats.norm.sf(abs(difference) / np.sqrt(1 / n + 1 / m))
                category = cut(str(values[i]))
                found[segment_id].append(
                    _Tested(name, float(difference), float(p), category, int(here[i]), int(others[i]))
                )
    return found


def _tell(
    snapshot: pd.DataFrame,
    groups: Groups,
    segment_id: str,
    found: list[tuple[_Tested, float]],
    may_tell: Callable[[str], Counted],
    personal: Collection[str],
    position: dict[str, int],
    correlations: Values,
) -> list[Difference]:
    """Say the differences that say different things, with the values here and of everyone else."""
    rates = dict(found)
    strongest = sorted(rates, key=lambda one: -abs(one.difference))[:TOLD_MAX]
    by_trait = {Trait(one.feature, one.difference, "mean", 0, 0, one.category): one for one in strongest}
    told: list[Difference] = []
    is_here = groups.members[groups.ids.index(segment_id)]
    for stub in descriptions.once(list(by_trait), position, correlations):
        one, q = by_trait[stub], rates[by_trait[stub]]
        if one.category is None:
            counted = may_tell(one.feature)
            if counted.everyone_hidden[2] or counted.hidden[segment_id][2]:
                continue
            values = snapshot[one.feature].to_numpy()
            here, others = (part[np.isfinite(part)] for part in (values[is_here], values[~is_here]))
            trait = descriptions.trait(
                one.feature,
                one.difference,
                descriptions.statistics(here),
                descriptions.statistics(others),
                populations.whom(one.feature, np.isfinite(values)),
            )
            if trait is None:
                continue
            is_counted = trait.statistic in ("any", "below") or one.feature.endswith(("_rate", "_share"))
            if is_counted and (counted.hidden[segment_id].any() or counted.everyone_hidden.any()):
                continue
            counts = len(here), len(others)
        else:
            n, m = counts = int(is_here.sum()), int((~is_here).sum())
            trait = Trait(one.feature, one.difference, "share", one.here / n, one.others / m, one.category)
            if not trait.is_telling():
                continue
        told.append(_in_words(trait, q, counts, one.feature in personal))
    return told


def _in_words(trait: Trait, q: float, counts: tuple[int, int], is_personal: bool) -> Difference:
    is_share = trait.statistic in ("any", "below", "share")
    here, others = (
        share(value, count) if is_share else Estimate(value=rounded(value))
        for value, count in zip((trait.value, trait.overall), counts, strict=True)
    )
    here_text, others_text = trait.written()
    return Difference(
        feature=trait.feature,
        category=trait.category,
        title=trait.what(),
        statistic=trait.statistic,
        here=here,
        others=others,
        here_text=here_text,
        others_text=others_text,
        difference=rounded(trait.difference),
        q=rounded(q),
        words=f"{trait.what()}: {here_text} (everyone else: {others_text})",
        clause=trait.clause(),
        among=trait.among,
        personal=is_personal,
    )


def to_trait(told: Difference) -> Trait:
    """Return the trait that a difference tells, compared with everyone else."""
    values = told.here.value, told.others.value
    return Trait(told.feature, told.difference, told.statistic, *values, told.category, told.among)
