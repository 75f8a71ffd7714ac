"""What is typical of a segment, in words, and what is to be said about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.snapshots import format_value, quantity, title
from models.reasons import sentence

TREND = "session_trend_28d"
DIFFERENCE_SMALL, DIFFERENCE_MEDIUM = 0.2, 0.5
"""Standard deviations (Cohen 1988): less than the first is not told, less than the second makes no name."""
TYPICAL_SHARE, OTHERS_SHARE = 0.3, 0.5
"""A value is typical of a segment if at least the first share has it, or the second of all others, and more than it."""
DEVIATION_MAX = 3.0
"""Standard deviations at which a feature is cut, or a handful of heavy users would be all that tells."""
CORRELATION_MAX = 0.7
"""Of two features that correlate by more, only the one that tells more is typical."""
SAMPLE_MAX = 20_000
"""Users by whom it is judged which features say the same."""
TRAIT_MAX = 12
PLACES = {"device": "on", "source": "via", "country": "from"}
SAID_OF_SHARE = {"0 %": "none", "100 %": "all"}
DID = {
    "session_count": "came",
    "active_day_count": "came",
    "search_count": "searched",
    "support_visit_count": "sought support",
    "campaign_session_count": "came from a campaign",
    "cart_count": "filled a cart",
    "purchase_count": "bought",
    "item_count": "looked at items",
    "category_count": "looked into categories",
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
Statistic = Literal["median", "mean", "any", "share"]


@dataclass(frozen=True)
class Trait:
    """What is typical of a segment: a feature's value there and over all users.

    `difference` is the mean among its users less the mean among everyone else, in standard deviations over all (as
    Cohen's d), of users whose value is known. Numbers are compressed by the inverse hyperbolic sine before, and cut at
    three deviations. `statistic` says what `value` and `overall` are: the median; the mean; "any": the share of users
    above 0; or, of a text column, the "share" of users with this `category`.
    """

    feature: str
    difference: float
    statistic: Statistic
    value: float
    overall: float
    category: str | None = None

    def in_words(self) -> str:
        """Say the value here and over all users.

        >>> Trait("session_count", 1.4, "median", 14.0, 3.0).in_words()
        'sessions: 14 (all users: 3)'
        >>> Trait("support_visit_count", 1.4, "any", 0.62, 0.04).in_words()
        'sought support: 62 % (all users: 4 %)'
        >>> Trait("device", 0.6, "share", 0.72, 0.41, "mobile").in_words()
        'on mobile: 72 % (all users: 41 %)'
        """
        value, overall = self.written()
        return f"{self.what()}: {value} (all users: {overall})"

    def clause(self) -> str:
        """Say the value here as a part of a sentence.

        >>> Trait("session_count", 1.4, "median", 14.0, 3.0).clause()
        'came 14 times'
        >>> Trait("device", 0.6, "share", 0.72, 0.41, "mobile").clause()
        '72 % on mobile'
        """
        value, _ = self.written()
        if self.statistic in ("any", "share"):
            attribute = self.category is not None and self.feature not in PLACES
            return f"{SAID_OF_SHARE.get(value, value)} {'with ' if attribute else ''}{self.what()}"
        if self.feature == TREND and self.value == -1:
            return "no session in the last 28 days but some in the 28 before"
        said = sentence(self.feature, self.value).removesuffix(" so far")
        return said + self._on_average()

    def compared(self) -> str | None:
        """Say the value over all users in short; None where only a sentence could, as of a trend.

        >>> Trait("recency_days", 1.4, "median", 64.0, 12.0).compared()
        '12 days'
        """
        if self.feature == TREND:
            return None
        _, overall = self.written()
        return overall + (" days" if self.feature.endswith("_days") and overall != "1" else "")

    def is_telling(self) -> bool:
        """Return whether the values differ as the difference does, and enough to be worth telling."""
        gap, largest = self.value - self.overall, max(abs(self.value), abs(self.overall))
        enough = GAP_MIN if self._is_share() else GAP_MIN * 2 * largest
        return (gap > 0) == (self.difference > 0) and abs(gap) >= enough and len(set(self.written())) == 2

    def _is_share(self) -> bool:
        return self.statistic in ("any", "share") or self.feature.endswith(("_rate", "_share"))

    def _on_average(self) -> str:
        return " on average" if self.statistic == "mean" and not self._is_share() else ""

    def written(self) -> tuple[str, str]:
        """Return the value here and over all users, with their units.

        >>> Trait("bounce_rate", 0.6, "median", 0.72, 0.41).written()
        ('72 %', '41 %')
        """
        name = "_share" if self.statistic in ("any", "share") else self.feature
        return format_value(name, self.value), format_value(name, self.overall)

    def what(self) -> str:
        """Say what the value is of.

        >>> Trait("session_count_28d", 0.6, "median", 3.0, 1.0).what()
        'sessions in the last 28 days'
        """
        if self.category is not None:
            return place(self.feature, self.category)
        if self.statistic != "any":
            return title(self.feature) + self._on_average()
        did, named = DID.get(quantity(self.feature)), title(self.feature)
        return f"with {named}" if did is None else did + "".join(named.partition(" in the")[1:])


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
    which only the value that tells most counts. Nulls don't: what applies to less than half of a segment is not
    typical of it. Nor is a difference within two standard errors of chance, or one that rounding hides. Features that
    say the same are told once: one of a quantity's windows, one of those that correlate.
    """
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
    everyone = statistics(values[known])
    return [
        None
        if np.isnan(difference)
        else trait(name, float(difference), statistics(values[part][known[part]]), everyone)
        for part, difference in zip(parts, differences, strict=True)
    ]


def statistics(values: Matrix) -> dict[Statistic, float]:
    """Return what may be said of known values of a feature."""
    return {"median": float(np.median(values)), "mean": float(values.mean()), "any": float((values > 0).mean())}


def trait(name: str, difference: float, here: dict[Statistic, float], overall: dict[Statistic, float]) -> Trait | None:
    """Return what tells a difference of a feature best, by its statistics here and over others; None: nothing does."""
    counted = quantity(name).endswith("_count") or name == "revenue_total"
    options: tuple[Statistic, ...] = ("median", "any") if counted else ("median", "mean")
    if name.endswith("_s"):
        options = ("median",)
    elif counted and here["median"] == (0 if difference < 0 else overall["median"]):
        options = ("any", "median")
    made = [Trait(name, difference, option, here[option], overall[option]) for option in options]
    return next((one for one in made if one.is_telling()), None)


def _of_text(name: str, column: pd.Series, of_users: NDArray[np.intp], count: int) -> list[Trait | None]:
    """Return the trait that a value of a text column is of each segment: the one that tells most."""
    codes, values = pd.factorize(column)
    known = codes >= 0
    sizes = np.bincount(of_users, minlength=count)
    cells = np.bincount(of_users[known] * len(values) + codes[known], minlength=count * len(values))
    table = cells.reshape(count, len(values))
    counts = table.sum(axis=1)
    often = (table >= TYPICAL_SHARE * np.maximum(counts, 1)[:, None]).any(axis=0)
    table, values = table[:, often], values[often]
    if not len(values):
        return [None] * count
    overall = table.sum(axis=0) / known.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = _differences(table / np.sqrt(overall * (1 - overall)), counts, sizes)  # 0 / 0 where all have it
        shares = table / counts[:, None]
        others = (table.sum(axis=0) - table) / (counts.sum() - counts)[:, None]
    telling = np.where(differences > 0, shares >= TYPICAL_SHARE, others >= OTHERS_SHARE)
    strength = np.where(telling, np.nan_to_num(np.abs(differences)), 0)
    told: list[Trait | None] = []
    for i, best in enumerate(strength.argmax(axis=1)):
        share, of_all = float(shares[i, best]), float(overall[best])
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
        found[(2 * here < sizes[:, None]) | ~(np.abs(found) > chance) | ~np.isfinite(found)] = np.nan
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
    said = ", ".join(clauses) or "much like all users"
    return said[0].upper() + said[1:]


def flags(user_count: int, share: float, typical: Sequence[Trait]) -> tuple[str, ...]:
    """Say why a segment is of little use: too small for a campaign, too broad, or with nothing of its own."""
    of_all = f"{user_count:,} users, {share:.1%} of all".replace("%", " %")
    found = []
    if user_count < USERS_MIN or share < SHARE_MIN:
        found.append(f"too small for a campaign: {of_all}")
    if share > SHARE_MAX:
        found.append(f"too broad to say much: {of_all}")
    if not any(abs(trait.difference) >= DIFFERENCE_MEDIUM for trait in typical):
        found.append("nothing distinctive: in every feature its users are much like all others")
    return tuple(found)
