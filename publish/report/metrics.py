"""Metrics of sessions: what a segment's sessions are like on average, with intervals that know that users are alike.

A metric is a sum over users by another one: pages by sessions. Sessions of a user are alike, so intervals are of users:
the variance of a ratio of sums by linearization (Cochran 1977, Sampling Techniques, section 6.3), and of a share the
interval of Wilson (1927) for as many rows as would have that variance (Korn and Graubard 1998).
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from publish.report.content import SUPPRESSED, Count, Estimate, Metric, Rate
from publish.report.groups import Groups

Unit = Literal["seconds", "share", "number"]
Z = NormalDist().inv_cdf(0.975)
DIGITS = 6
"""Significant digits of a figure: what is more differs between machines."""
PERCENT = 2
"""Decimals of a share among users of a training, so that nobody counts in it."""


@dataclass(frozen=True)
class Ratio:
    """A metric as one sum over users by another; of a share the first counts some of what the second counts."""

    name: str
    title: str
    unit: Unit
    part: str
    whole: str


RATIOS = (
    Ratio("duration_mean_s", "mean length of a session", "seconds", "duration_s", "session_count"),
    Ratio("pages_per_session", "pages per session", "number", "page_view_count", "with_page"),
    Ratio("bounce_rate", "share of sessions that bounced", "share", "bounced", "with_page"),
    Ratio("engaged_rate", "share of sessions that were engaged", "share", "engaged", "with_page"),
    Ratio("conversion_rate", "share of sessions with a purchase", "share", "converted", "session_count"),
    Ratio("cart_abandonment_rate", "share of carts that were abandoned", "share", "abandoned", "carts"),
    Ratio("support_session_share", "share of sessions with a support visit", "share", "with_support", "session_count"),
)

OF_LENGTHS = ("duration_mean_s", "bounce_rate", "engaged_rate")
"""What a source that has days tells nothing of: whether a session is engaged depends on its length."""


def measure(activity: pd.DataFrame, groups: Groups, day_level: bool) -> dict[str | None, list[Metric]]:
    """Measure the sessions of each segment that is shown, and (None) of all users.

    `activity` has the sums of each user, in the order of the groups' users. A share is hidden where what it counts, or
    what it does not count, may not be shown.
    """
    found: dict[str | None, list[Metric]] = {name: [] for name in (None, *groups.shown)}
    ratios = [Ratio("sessions_per_user", "sessions per user", "number", "session_count", "users"), *RATIOS]
    sums = activity.assign(users=1.0)
    for ratio in ratios:
        if day_level and ratio.name in OF_LENGTHS:
            continue
        part, whole = (sums[name].to_numpy(dtype=np.float64) for name in (ratio.part, ratio.whole))
        of_all, by_name = _estimates(part, whole, groups, ratio.unit == "share")
        everyone, segments = _hidden(part, whole, groups) if ratio.unit == "share" else (False, {})
        overall = SUPPRESSED if everyone or groups.user_count < groups.k else of_all
        for name, metrics in found.items():
            hidden = everyone if name is None else segments.get(name, False)
            here: Rate = overall if name is None else SUPPRESSED if hidden else by_name[name]
            metrics.append(Metric(name=ratio.name, title=ratio.title, unit=ratio.unit, here=here, everyone=overall))
    return found


def _hidden(part: NDArray[np.float64], whole: NDArray[np.float64], groups: Groups) -> tuple[bool, dict[str, bool]]:
    counted = groups.count(np.column_stack([part, whole - part]).astype(np.int64))
    return bool(counted.everyone_hidden.any()), {name: bool(mask.any()) for name, mask in counted.hidden.items()}


def _estimates(
    part: NDArray[np.float64], whole: NDArray[np.float64], groups: Groups, is_share: bool
) -> tuple[Estimate | None, dict[str, Estimate | None]]:
    """Return the ratio over all users and over each segment's; null where there is nothing to divide by."""
    columns = np.column_stack([part, whole, part**2, part * whole, whole**2, whole > 0])
    everyone, by_name = groups.sum(columns)
    return _ratio(everyone, is_share), {name: _ratio(sums, is_share) for name, sums in by_name.items()}


def _ratio(sums: NDArray[np.float64], is_share: bool) -> Estimate | None:
    part, whole, squares, products, whole_squares, users = (float(one) for one in sums)
    if not whole:
        return None
    ratio = part / whole
    spread = max(squares - 2 * ratio * products + ratio**2 * whole_squares, 0.0)
    variance = spread / whole**2 * users / (users - 1) if users > 1 else float("nan")
    if is_share:
        spread_out = whole if 0 < ratio < 1 else users  # where all users are alike, and where all are at an end
        return share(ratio, min(ratio * (1 - ratio) / variance, whole) if variance > 0 else spread_out)
    half = Z * sqrt(variance) if users > 1 else None
    if half is None:
        return Estimate(value=rounded(ratio))
    return Estimate(value=rounded(ratio), low=rounded(max(ratio - half, 0.0)), high=rounded(ratio + half))


def share(value: float, rows: float) -> Estimate:
    """Return a share of so many rows, which need not be whole, with its interval (Wilson 1927)."""
    shrink = 1 + Z**2 / rows
    middle = (value + Z**2 / (2 * rows)) / shrink
    half = Z / shrink * sqrt(max(value * (1 - value), 0.0) / rows + Z**2 / (4 * rows**2))
    return Estimate(value=rounded(value), low=rounded(max(0.0, middle - half)), high=rounded(min(1.0, middle + half)))


def rounded(value: float) -> float:
    """Return a figure with as many digits as are the same on every machine."""
    return float(f"{value:.{DIGITS}g}")


def shown_count(count: Any, is_hidden: Any) -> Count:
    """Return a count, or that it is not shown."""
    return SUPPRESSED if is_hidden else int(count)


def shown_share(count: Any, total: int, is_hidden: Any) -> Rate:
    """Return the share of a count with its interval, or that it is not shown; None of nothing."""
    if is_hidden:
        return SUPPRESSED
    return share(int(count) / total, total) if total else None
