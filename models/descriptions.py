"""What is typical of a segment, in words, and what is to be said about it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.snapshots import format_value, quantity, title
from models.populations import TREND, meaningful, whom
from models.reasons import WORDS, in_days, sentence

MOST = 0.6
"""What applies to a smaller share of a segment is not typical of it; a name promises what holds of as many."""
DIFFERENCE_SMALL, DIFFERENCE_MEDIUM = 0.2, 0.5
"""Standard deviations (Cohen 1988): less than the first is not told, less than the second makes no name."""
TYPICAL_SHARE, OTHERS_SHARE = 0.3, 0.5
"""A value is typical of a segment if at least the first share has it, or the second of all others, and more than it."""
KNOWN_MIN = 0.9
"""That users do not have a value tells only where a value is known of so many."""
DEVIATION_MAX = 3.0
"""Standard deviations at which a feature is cut, or a handful of heavy users would be all that tells."""
CORRELATION_MAX = 0.7
"""Of two features that correlate by more, only the one that tells more is typical."""
SAMPLE_MAX = 20_000
"""Users by whom it is judged which features say the same."""
TRAIT_MAX = 12
PLACES = {"device": "on", "source": "via", "country": "from"}
SAID_OF_SHARE = {0.0: "none", 1.0: "all"}
DID = {
    "session_count": "came",
    "active_day_count": "came",
    "search_count": "searched",
    "support_visit_count": "sought support",
    "campaign_session_count": "came from a campaign",
    "cart_count": "filled a cart",
    "purchase_count": "bought",
    "item_count": "had to do with items",
    "category_count": "had to do with categories",
}
"""What users did of whom a quantity is above 0."""
SUMMARY_MAX = 3
GAP_MIN = 0.05
"""Of a share, or half of what other values must differ by in relation to the larger: less is nothing to tell."""
TEXT_MAX = 40
"""Characters of an attribute's value that are shown."""
USERS_MIN, SHARE_MIN, SHARE_MAX = 10, 0.005, 0.6
"""A segment of fewer users, or a smaller share, is too small for a campaign; of a larger share, too broad."""

Matrix = NDArray[np.float64]
Members = NDArray[np.bool_]
Statistic = Literal["median", "mean", "any", "below", "share"]


@dataclass(frozen=True)
class Trait:
    """What is typical of a segment: a feature's value there and over all users.

    `difference` is the mean among its users less the mean among everyone else, in standard deviations over all (as
    Cohen's d), of users whose value is known. Numbers are compressed by the inverse hyperbolic sine before, and cut at
    three deviations. `statistic` says what `value` and `overall` are: the median; the mean; "any": the share of users
    above 0; "below": of those below 0; or, of a text column, the "share" of users with this `category`, of all.
    `among` says of whom these are, where a feature does not apply to all users. `of_most` is what at least 60 % of all
    users of the segment have or exceed, or, if the difference is below 0, do not exceed; None in older models.
    """

    feature: str
    difference: float
    statistic: Statistic
    value: float
    overall: float
    category: str | None = None
    among: str | None = None
    of_most: float | None = None

    def in_words(self) -> str:
        """Say the value here and over all users.

        >>> Trait("session_count", 1.4, "median", 14.0, 3.0).in_words()
        'sessions: 14 (all users: 3)'
        >>> Trait("support_visit_count", 1.4, "any", 0.62, 0.04).in_words()
        'sought support: 62 % (all users: 4 %)'
        >>> Trait("purchase_recency_days", 1.4, "median", 64.0, 12.0, among="those who bought").in_words()
        'days since the last purchase among those who bought: 64 (all users: 12)'
        >>> Trait("device", 0.6, "share", 0.72, 0.41, "mobile").in_words()
        'on mobile: 72 % (all users: 41 %)'
        """
        value, overall = self.written()
        return f"{self.what()}: {value} (all users: {overall})"

    def clause(self) -> str:
        """Say the value here as a part of a sentence.

        >>> Trait("session_count", 1.4, "median", 14.0, 3.0).clause()
        'came 14 times'
        >>> Trait("cart_abandonment_rate", 0.8, "mean", 0.45, 0.3, among="those who filled a cart").clause()
        '45 % of carts abandoned on average among those who filled a cart'
        >>> Trait("device", 0.6, "share", 0.72, 0.41, "mobile").clause()
        '72 % on mobile'
        """
        value, _ = self.written()
        if self._is_of_users():
            attribute = self.category is not None and self.feature not in PLACES
            return f"{SAID_OF_SHARE.get(self.value, value)} {'with ' if attribute else ''}{self.what()}"
        is_old = self.feature == TREND or (self.statistic == "median" and self._is_share())  # of an older model
        if is_old or not {self.feature, quantity(self.feature)} & WORDS.keys():
            return f"{self.what()}: {value}"
        said = sentence(self.feature, self.value).removesuffix(" so far")
        if self.statistic == "mean":
            said += " on average" if not (self._is_share() and self.value in (0, 1)) else ""
        elif self._says_statistic() and "ypical" not in said:
            said = said.removesuffix(" on average") + " typically"
        return said + self._among()

    def compared(self) -> str | None:
        """Say the value over all users in short; None where only a sentence could, as of a trend in an older model.

        >>> Trait("recency_days", 1.4, "median", 64.0, 12.0).compared()
        '12 days'
        """
        if self.feature == TREND and not self._is_of_users():
            return None
        return in_days(self.overall) if self.feature.endswith("_days") else self.written()[1]

    def is_telling(self) -> bool:
        """Return whether the values differ as the difference does, and enough to be worth telling."""
        gap, largest = self.value - self.overall, max(abs(self.value), abs(self.overall))
        enough = GAP_MIN if self._is_share() else GAP_MIN * 2 * largest
        goes = (self.difference > 0) != (self.statistic == "below")
        return (gap > 0) == goes and abs(gap) >= enough and len(set(self.written())) == 2

    def _is_of_users(self) -> bool:
        return self.statistic in ("any", "below", "share")

    def _is_share(self) -> bool:
        return self._is_of_users() or self.feature.endswith(("_rate", "_share"))

    def _says_statistic(self) -> bool:
        """Tell whether a number could be taken for that of all sessions together, or the users'."""
        return not self.feature.endswith("_days") and not quantity(self.feature).endswith("_count")

    def _among(self) -> str:
        return f" among {self.among}" if self.among else ""

    def written(self) -> tuple[str, str]:
        """Return the value here and over all users, with their units; days are whole.

        >>> Trait("bounce_rate", 0.6, "mean", 0.72, 0.41).written()
        ('72 %', '41 %')
        """
        if self.feature.endswith("_days"):
            return f"{self.value:,.0f}", f"{self.overall:,.0f}"
        name = "_share" if self._is_of_users() else self.feature
        return format_value(name, self.value), format_value(name, self.overall)

    def what(self) -> str:
        """Say what the value is of.

        >>> Trait("session_count_28d", 0.6, "median", 3.0, 1.0).what()
        'sessions in the last 28 days'
        """
        if self.category is not None:
            return place(self.feature, self.category)
        named = title(self.feature)
        if self._is_of_users():
            if self.feature == TREND:
                way = "more" if self.statistic == "any" else "less"
                return f"came {way} often in the last 28 days than in the 28 before{self._among()}"
            did = DID.get(quantity(self.feature))
            return f"with {named}" if did is None else did + "".join(named.partition(" in the")[1:])
        if self.statistic == "mean" or self._says_statistic():
            return f"{named}, {self.statistic} of {self.among or 'users'}"
        return named + self._among()


def place(column: str, category: str) -> str:
    """Say that users have a value of a text column, cut to what fits on a line.

    >>> place("device", "mobile"), place("country", "France"), place("age_band", "35-55"), place("newsletter", "yes")
    ('on mobile', 'from France', 'age band 35-55', 'newsletter yes')
    """
    return f"{PLACES.get(column) or title(column)} {cut(category)}"


def cut(text: str) -> str:
    """Return a value on one line, without control characters, and no more of it than fits there.

    >>> cut("a" * 100)
    'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'
    """
    line = "".join(filter(str.isprintable, " ".join(text[: 10 * TEXT_MAX].split())))
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - 1] + "…"


def traits(users: pd.DataFrame, of_users: NDArray[np.intp], count: int) -> list[list[Trait]]:
    """Return what is typical of each of `count` segments, the strongest first.

    `of_users` is the position of each user's segment. The traits are of the float64 columns and of those of text, of
    which only the value that tells most counts. Nulls don't, nor does what `populations.meaningful` leaves out: what
    applies to less than 60 % of a segment is not typical of it. Nor is a difference within two standard errors of
    chance, or one that rounding hides. Features that say the same are told once: one of a quantity's windows, one of
    those that correlate.
    """
    users = meaningful(users)
    order = np.argsort(of_users, kind="stable")
    ends = np.searchsorted(of_users[order], np.arange(count + 1))
    numbers = [str(name) for name in users.select_dtypes("float64")]
    texts = [str(name) for name in users.columns if name not in ("user_id", "as_of", *numbers)]
    found: list[list[Trait]] = [[] for _ in range(count)]
    rows = np.linspace(0, len(users) - 1, min(SAMPLE_MAX, len(users))).astype(int)
    sample = {}
    for name in numbers:
        values = users[name].to_numpy()
        compressed = compressed_values(values)
        if compressed is not None:
            sample[name] = np.nan_to_num(compressed[rows])
            _add(found, _of_number(name, values[order], compressed[order], ends))
    for name in texts:
        _add(found, _of_text(name, users[name], of_users, count))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.abs(np.atleast_2d(np.corrcoef(list(sample.values())))) if sample else np.empty((0, 0))
    position = {name: i for i, name in enumerate(sample)}
    return [once(of_one, position, correlations) for of_one in found]


def _add(found: list[list[Trait]], more: list[Trait | None]) -> None:
    for of_one, trait in zip(found, more, strict=True):
        if trait is not None and abs(trait.difference) >= DIFFERENCE_SMALL and trait.is_telling():
            of_one.append(trait)


def compressed_values(values: Matrix) -> Matrix | None:
    """Return values in standard deviations, compressed and cut, null where not finite; None of a constant."""
    compressed: Matrix = np.arcsinh(np.where(np.isfinite(values), values, np.nan))
    for limit in (DEVIATION_MAX, np.inf):  # what is cut has a deviation of its own
        known = compressed[~np.isnan(compressed)]
        if not len(known) or known.min() == known.max():
            return None
        compressed = np.clip((compressed - known.mean()) / known.std(), -limit, limit)
    return compressed


def _of_number(name: str, values: Matrix, compressed: Matrix, ends: NDArray[np.intp]) -> list[Trait | None]:
    """Return the trait that a feature is of each segment, whose users' rows lie between two ends."""
    known = ~np.isnan(compressed)
    parts = [slice(first, end) for first, end in pairwise(ends)]
    counts = np.array([known[part].sum() for part in parts])
    sums = np.array([np.nansum(compressed[part]) for part in parts])
    [differences] = _differences(sums[:, None], counts, np.diff(ends)).T
    everyone, among = statistics(values[known]), whom(name, known)
    found: list[Trait | None] = []
    for part, difference in zip(parts, differences, strict=True):
        here = values[part][known[part]]
        told = None if np.isnan(difference) else trait(name, float(difference), statistics(here), everyone, among)
        most = math.ceil(MOST * (part.stop - part.start))  # users; as many are known
        found.append(told and replace(told, of_most=_of_most(here, most, difference > 0)))
    return found


def _of_most(values: Matrix, most: int, high: bool) -> float:
    """Return what so many values are at least, or at most."""
    place = len(values) - most if high else most - 1
    return float(np.partition(values, place)[place])


def statistics(values: Matrix) -> dict[Statistic, float]:
    """Return what may be said of known values of a feature."""
    return {
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "any": float((values > 0).mean()),
        "below": float((values < 0).mean()),
    }


def trait(
    name: str,
    difference: float,
    here: dict[Statistic, float],
    overall: dict[Statistic, float],
    among: str | None = None,
) -> Trait | None:
    """Return what tells a difference of a feature best, by its statistics here and over others; None: nothing does.

    The median is what is typical, and no single user makes it. Of shares, which often are 0 or 1, it tells nothing:
    their mean does, and of a trend, whose mean is a number without a meaning, the share of users who came more often.
    """
    options: tuple[Statistic, ...] = ("median",)
    if name == TREND:
        options = ("any",) if difference > 0 else ("below",)
    elif name.endswith(("_rate", "_share")):
        options = ("mean",)
    elif name.endswith("_days"):
        options = ("median", "mean")
    elif quantity(name).endswith("_count") or name == "revenue_total":
        is_any = here["median"] == (0 if difference < 0 else overall["median"])
        options = ("any", "median") if is_any else ("median", "any")
    made = [Trait(name, difference, option, here[option], overall[option], among=among) for option in options]
    return next((one for one in made if one.is_telling()), None)


def _of_text(name: str, column: pd.Series, of_users: NDArray[np.intp], count: int) -> list[Trait | None]:
    """Return the trait that a value of a text column is of each segment: the one that tells most."""
    codes, values = pd.factorize(column)
    known = codes >= 0
    sizes = np.bincount(of_users, minlength=count)
    cells = np.bincount(of_users[known] * len(values) + codes[known], minlength=count * len(values))
    table = cells.reshape(count, len(values))
    counts = table.sum(axis=1)
    often = np.asarray((table >= TYPICAL_SHARE * np.maximum(sizes, 1)[:, None]).any(axis=0))
    table, values = table[:, often], values[often]
    if not len(values):
        return [None] * count
    overall = table.sum(axis=0) / known.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = _differences(table / np.sqrt(overall * (1 - overall)), counts, sizes)  # 0 / 0 where all have it
        shares = table / sizes[:, None]
        others = (table.sum(axis=0) - table) / (sizes.sum() - sizes)[:, None]
        is_known = (counts >= KNOWN_MIN * sizes)[:, None]
    is_typical = np.where(differences > 0, shares >= TYPICAL_SHARE, (others >= OTHERS_SHARE) & is_known)
    strength = np.where(is_typical, np.nan_to_num(np.abs(differences)), 0)
    told: list[Trait | None] = []
    for i, best in enumerate(strength.argmax(axis=1)):
        share, of_all = float(shares[i, best]), float(table[:, best].sum() / len(column))
        trait = Trait(name, float(differences[i, best]), "share", share, of_all, cut(str(values[best])))
        told.append(trait if strength[i, best] > 0 else None)
    return told


def _differences(sums: Matrix, counts: NDArray[np.int_], sizes: NDArray[np.int_]) -> Matrix:
    """Return each segment's means less those of everyone else; null where too few are known, or it may be chance.

    `sums` has a row for each segment and a column for each feature, `counts` the segment's known and `sizes` all users.
    """
    here, others = counts[:, None], (counts.sum() - counts)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Matrix = sums / here - (sums.sum(axis=0) - sums) / others
        chance = 2 * np.sqrt(1 / here + 1 / others)
        found[(here < MOST * sizes[:, None]) | ~(np.abs(found) > chance) | ~np.isfinite(found)] = np.nan
    return found


def once(found: list[Trait], position: dict[str, int], correlations: Matrix) -> list[Trait]:
    """Return the strongest traits that say different things.

    `correlations` are of the sizes of features' values, at the `position` of each feature that is a number.
    """

    def weight(trait: Trait) -> float:
        if trait.difference > 0 and trait.feature == "recency_days":  # of what correlates, long absence tells most
            return 1.25 * abs(trait.difference)
        if trait.difference < 0 and trait.feature.endswith("_share"):  # when users don't come tells least
            return 0.8 * abs(trait.difference)
        return abs(trait.difference)

    chosen: list[Trait] = []
    for trait in sorted(found, key=weight, reverse=True):
        said = any(
            _about(trait.feature) == _about(other.feature)
            or (
                trait.category is None
                and other.category is None
                and correlations[position[trait.feature], position[other.feature]] > CORRELATION_MAX
            )
            for other in chosen
        )
        if not said:
            chosen.append(trait)
    return chosen[:TRAIT_MAX]


def _about(feature: str) -> str:
    return re.sub(r"_(mean|median)_s$", "", quantity(feature))


def summarise(typical: Sequence[Trait], first: Sequence[Trait] = (), others: str = "all users") -> str:
    """Say in two or three clauses what is typical of a segment; traits of the features of `first` come first.

    A third has at least a medium effect. `others` says whom the traits compare with.

    >>> summarise([Trait("session_count", 1.4, "median", 14.0, 3.0), Trait("device", 0.6, "share", 0.72, 0.41, "iOS")])
    'Came 14 times (all users: 3), 72 % on iOS (41 %)'
    """
    foremost = {quantity(trait.feature) for trait in first}
    ordered = sorted(typical, key=lambda trait: quantity(trait.feature) not in foremost)
    strong = [trait for trait in ordered if abs(trait.difference) >= DIFFERENCE_MEDIUM]
    told = strong[:SUMMARY_MAX] if len(strong) > 1 else ordered[:2]
    clauses, before = [], f"{others}: "
    for trait in told:
        compared = trait.compared()
        clauses.append(trait.clause() + (f" ({before}{compared})" if compared else ""))
        before = "" if compared else before
    said = ", ".join(clauses) or f"no clear difference from {others}"
    return said[0].upper() + said[1:]


def flags(user_count: int, share: float, typical: Sequence[Trait]) -> tuple[str, ...]:
    """Say why a segment is of little use: too small for a campaign, too broad, or with nothing of its own."""
    counted = f"{user_count:,} user{'' if user_count == 1 else 's'}"
    of_all = f"{counted}, {format_value('_share', share)} of all"
    found = []
    if user_count < USERS_MIN or share < SHARE_MIN:
        found.append(f"too small for a campaign: {of_all}")
    if share > SHARE_MAX:
        found.append(f"too broad to say much: {of_all}")
    if not any(abs(trait.difference) >= DIFFERENCE_MEDIUM for trait in typical):
        found.append("nothing distinctive: no difference from all others of at least medium size was found")
    return tuple(found)
