"""The brake: a version that changes audiences or users more than is usual is held until a person releases it."""

from datetime import UTC, datetime

import pandas as pd
from pydantic import Field

from features.sources import Settings


class BrakeSettings(Settings):
    """Say which version is held.

    `audience_change_max` is the largest share of an audience's members of before that may enter and leave together, 1
    for as many as there were. An audience that had fewer members than `audience_min` never brakes, since a few users
    are a large share of it. `users_loss_max` is the largest share by which there may be fewer users than before.
    """

    audience_change_max: float = Field(default=0.5, ge=0)
    audience_min: int = Field(default=100, ge=0)
    users_loss_max: float = Field(default=0.2, ge=0, le=1)


def judge(
    audiences: pd.DataFrame,
    users_before: int | None,
    users_after: int,
    as_of_before: datetime | None,
    as_of_after: datetime,
    settings: BrakeSettings,
) -> list[str]:
    """Say why a version is to be held, compared with the released one: a line for each reason; none for none.

    `audiences` has a row for each destination and segment: destination, segment_id, segment_name, members_before,
    entered, left; a null count is 0. Removals that must not wait (consent, erased, holdout) are not in `left`, and
    erased users not in `users_before`. What had no members before, such as a new destination, is not judged; nothing
    is before the first version, where `users_before` and `as_of_before` are None. A share that is exactly at its
    limit passes. Times are in UTC. The largest changes come first.
    """
    findings = []
    if as_of_before is not None and as_of_after < as_of_before:
        findings.append(f"as of {_instant(as_of_after)}, which is before {_instant(as_of_before)}, the released one")
    if users_before:
        loss = (users_before - users_after) / users_before
        if loss > settings.users_loss_max:
            shares = _compare(loss, settings.users_loss_max, "fewer")
            findings.append(f"users: {users_before:,} before, {users_after:,} now ({shares})")
    counts = audiences.fillna({"members_before": 0, "entered": 0, "left": 0})
    counts = counts[(counts["members_before"] > 0) & (counts["members_before"] >= settings.audience_min)]
    counts = counts.assign(change=(counts["entered"] + counts["left"]) / counts["members_before"])
    counts = counts[counts["change"] > settings.audience_change_max]
    for row in counts.sort_values("change", ascending=False, kind="stable").to_dict("records"):
        before, entered, left = (f"{row[name]:,.0f}" for name in ("members_before", "entered", "left"))
        audience = " ".join(dict.fromkeys((row["segment_id"], row["segment_name"])))
        shares = _compare(row["change"], settings.audience_change_max, f"of {before}")
        findings.append(
            f"{row['destination']}: {audience}: {before} members, {left} would leave and {entered} enter ({shares})"
        )
    return findings


def _compare(share: float, limit: float, of_what: str) -> str:
    """Write a share beside the limit that it is beyond, with as many decimals as tell them apart.

    >>> _compare(0.681, 0.5, "of 1,204"), _compare(0.2004, 0.2, "fewer")
    ('68 % of 1,204; at most 50 %', '20.04 % fewer; at most 20 %')
    """
    most = f"{100 * limit:.10g}"
    texts = (f"{100 * share:.{decimals}f}" for decimals in range(10))
    return f"{next((text for text in texts if float(text) > float(most)), most)} % {of_what}; at most {most} %"


def _instant(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
