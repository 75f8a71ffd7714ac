"""The brake: a version that changes audiences or users more than is usual is held until a person releases it."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
from pydantic import Field

from features.limits import COUNT_MAX
from features.snapshots import format_value, title
from features.sources import Settings
from features.zones import write_instant

EXCHANGE_DAYS = 14
"""In so many days any audience is taken to exchange its members, until `EARLIER_MIN` changes tell how it does."""
EARLIER_MIN = 3
WHOLE = 2.0
"""The change of an audience in which everybody left and as many others entered."""

LEVELS = ("revenue_total", "pages_per_session")
"""Features of which users have twice as much where their events count twice, and a hundred times where units change."""


class BrakeSettings(Settings):
    """Say which version is held.

    `audience_change_max` is the largest share of an audience's members of before, 1 for as many as there were, by
    which those who enter and leave may exceed what is usual for it. Another model or rule may move no larger share,
    nor may more members be lost. An audience of fewer members than `audience_min` is judged as if it had so many,
    since a few users are a large share of it. `users_loss_max` is the largest share by which there may be fewer users.
    No level may change by more than `audience_change_max` either.
    """

    audience_change_max: float = Field(default=0.5, ge=0, le=COUNT_MAX)
    audience_min: int = Field(default=100, ge=0, le=COUNT_MAX)
    users_loss_max: float = Field(default=0.2, ge=0, le=1)


@dataclass(frozen=True)
class Step:
    """Hold what a version changes: from which instant to which, how many users there are, and who moves.

    `audiences` has a row for each destination and segment: destination, segment_id, segment_name, members_before,
    entered, left; and `made`, how many of those another model or rule moved. Removals that must not wait (consent,
    erased, holdout) are not in it, and erased users not in `users_before`. `levels` are medians of features, before and
    now, over the users who have any; none is 0. Times are in UTC.
    """

    since: datetime
    as_of: datetime
    users_before: int
    users: int
    audiences: pd.DataFrame
    levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def days(self) -> float:
        """Return how many days there are between the instants; 0 back in time."""
        return max((self.as_of - self.since) / timedelta(days=1), 0.0)


def judge(
    step: Step,
    earlier: pd.DataFrame,
    staying_days: Mapping[str, float],
    settings: BrakeSettings,
    time_zone: str = "UTC",
) -> list[str]:
    """Say why a version is to be held, compared with the released one: a line for each reason; none for none.

    `earlier` are what audiences did before, as `turnover.steps` has it. `staying_days` says of segments by their
    definition how long a user who does nothing stays at most. Of what had no members before, only what another rule or
    model made is judged. A share that is exactly at its limit passes. The largest changes come first.
    """
    findings = []
    if back := find_step_back(step.as_of, step.since, time_zone):
        findings.append(back)
    if step.users_before:
        loss = (step.users_before - step.users) / step.users_before
        if loss > settings.users_loss_max:
            shares = _compare(loss, settings.users_loss_max, "fewer")
            findings.append(f"users: {step.users_before:,} before, {step.users:,} now ({shares})")
    findings += _judge_levels(step.levels, settings)
    usual = _usual(step.audiences, earlier, staying_days, step.days, settings)
    changed = _shares(step.audiences, settings).assign(**usual)
    for row in changed.sort_values("change", ascending=False, kind="stable").to_dict("records"):
        if why := _excess(row, settings.audience_change_max):
            before, entered, left = (f"{row[name]:,.0f}" for name in ("members_before", "entered", "left"))
            audience = " ".join(dict.fromkeys((row["segment_id"], row["segment_name"])))
            moves = f"{left} would leave and {entered} enter{_in_days(step.days)}"
            findings.append(f"{row['destination']}: {audience}: {before} members, {moves} ({why})")
    return findings


def find_step_back(as_of: datetime, since: datetime, time_zone: str) -> str | None:
    """Say that an instant is before that of the released version, if it is."""
    if as_of >= since:
        return None
    now, before = (write_instant(instant, time_zone) for instant in (as_of, since))
    return f"as of {now}, which is before {before}, the released one"


def _judge_levels(levels: Mapping[str, tuple[float, float]], settings: BrakeSettings) -> Iterator[str]:
    for name, (before, now) in levels.items():
        change = abs(now - before) / before
        if change > settings.audience_change_max:
            values = f"{format_value(name, before)} before, {format_value(name, now)} now"
            shares = _compare(change, settings.audience_change_max, "more" if now > before else "less")
            yield f"{title(name)}, the median of users with any: {values} ({shares})"


def _shares(moved: pd.DataFrame, settings: BrakeSettings) -> pd.DataFrame:
    """Add what share of its members an audience changed by, lost, and had moved by other definitions."""
    members = moved["members_before"].clip(lower=max(settings.audience_min, 1))
    return moved.assign(
        change=(moved["entered"] + moved["left"]) / members,
        loss=(moved["left"] - moved["entered"]) / members,
        redefined=moved["made"] / members,
    )


def _usual(
    audiences: pd.DataFrame,
    earlier: pd.DataFrame,
    staying_days: Mapping[str, float],
    days: float,
    settings: BrakeSettings,
) -> dict[str, list[float]]:
    """Return for each audience which share of its members changes as a rule in so many days, and which it loses.

    It is the most that the audience did at an earlier step, for longer ones in proportion, up to a whole exchange;
    and what its definition makes of it, as members leave who do nothing.
    """
    before = _shares(earlier, settings)
    change = before["change"] - before["redefined"]
    before["change"] = change.combine((change * days / before["days"]).clip(upper=WHOLE), max)
    before["loss"] -= before["redefined"]
    known = {key: rows for key, rows in before.groupby(["destination", "segment_id"]) if len(rows) >= EARLIER_MIN}
    changes, losses = [], []
    for destination, segment_id in audiences[["destination", "segment_id"]].itertuples(index=False):
        rows = known.get((destination, segment_id))
        staying = min(staying_days.get(segment_id, float("inf")), EXCHANGE_DAYS if rows is None else float("inf"))
        by_definition = WHOLE * (days / staying if days < staying else 1)
        changes.append(max(by_definition, 0 if rows is None else rows["change"].max()))
        losses.append(0 if rows is None else max(rows["loss"].max(), 0))
    return {"usual_change": changes, "usual_loss": losses}


def _excess(row: Mapping[Hashable, Any], most: float) -> str:
    """Say by what an audience changes too much: nothing, where it does not."""
    if row["redefined"] > most:
        return f"{row['made']:,.0f} of them by another rule or model, {_compare(row['redefined'], most)}"
    if not row["members_before"]:
        return ""
    if row["change"] > row["usual_change"] + most:
        return _compare(row["change"], row["usual_change"] + most, usual=row["usual_change"])
    if row["loss"] > row["usual_loss"] + most:
        return _compare(row["loss"], row["usual_loss"] + most, "fewer", row["usual_loss"])
    return ""


def _compare(share: float, limit: float, of_what: str = "", usual: float | None = None) -> str:
    """Write a share beside the limit that it is beyond, with as many decimals as tell them apart.

    >>> _compare(0.681, 0.5), _compare(0.2004, 0.2, "fewer")
    ('68 %; at most 50 %', '20.04 % fewer; at most 20 %')
    >>> _compare(0.68, 0.675, usual=0.175)
    '68 %; usual is 17.5 %, at most 67.5 %'
    """
    decimals = next((places for places in range(10) if _percent(share, places) != _percent(limit, places)), 10)
    words = " ".join(filter(None, [_percent(share, decimals), of_what]))
    said = "" if usual is None else f"usual is {_percent(usual, decimals)}, "
    return f"{words}; {said}at most {_percent(limit, decimals)}"


def _percent(share: float, decimals: int) -> str:
    text = f"{100 * share:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if decimals else text} %"


def _in_days(days: float) -> str:
    """Say a span.

    >>> _in_days(7.0), _in_days(1.0), _in_days(0.25), _in_days(0.0)
    (' in 7 days', ' in 1 day', ' in 0.25 days', '')
    """
    if not days:
        return ""
    return f" in {days:.3g} day" + ("" if f"{days:.3g}" == "1" else "s")
