"""Lifecycle: the stage that each user is in, exactly one, and who went from which to which."""

from typing import Self

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from features.limits import DAYS_MAX, DAYS_MIN
from features.snapshots import RETURN_DAYS
from features.sources import Settings
from models.conditions import Condition, holds, parse

STAGES = ("new", "active", "cooling", "at_risk", "dormant", "returned")


class LifecycleSettings(Settings):
    """Say in days how long a user is new, and after how long a silence cooling, at risk and dormant."""

    new_days: float = Field(default=7, ge=DAYS_MIN, le=DAYS_MAX)
    active_days: float = Field(default=14, ge=DAYS_MIN, le=DAYS_MAX)
    cooling_days: float = Field(default=28, ge=DAYS_MIN, le=DAYS_MAX)
    dormant_days: float = Field(default=90, ge=DAYS_MIN, le=DAYS_MAX)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.active_days < self.cooling_days < self.dormant_days:
            given = f"{self.active_days:g}, {self.cooling_days:g} and {self.dormant_days:g}"
            raise ValueError(f"active_days, cooling_days and dormant_days must ascend, and are {given}")
        if self.dormant_days < RETURN_DAYS:
            raise ValueError(f"dormant_days ({self.dormant_days:g}) must be at least {RETURN_DAYS}")
        return self


def definitions(settings: LifecycleSettings) -> dict[str, tuple[str, str]]:
    """Return the stages in the order in which they are asked for: who they are, in words, and the condition.

    The first that holds is a user's stage. The last has no condition: it is for everybody else.
    """
    new, active = f"{settings.new_days:g}", f"{settings.active_days:g}"
    cooling, dormant = f"{settings.cooling_days:g}", f"{settings.dormant_days:g}"
    return {
        "new": (f"came for the first time in the last {new} days", f"tenure_days <= {new}"),
        "returned": (
            f"came back in the last {RETURN_DAYS} days, after more than {dormant} days away",
            f"return_absence_days > {dormant}",
        ),
        "active": (f"came in the last {active} days", f"recency_days <= {active}"),
        "cooling": (f"came in the last {cooling} days", f"recency_days <= {cooling}"),
        "at_risk": (f"came in the last {dormant} days", f"recency_days <= {dormant}"),
        "dormant": (f"have not come for more than {dormant} days", ""),
    }


def assign(users: pd.DataFrame, settings: LifecycleSettings) -> pd.Series:
    """Return the stage of each user of a frame, never null, by user_id."""
    *asked, last = definitions(settings).items()
    conditions: list[Condition] = [parse(condition) for _, (_, condition) in asked]
    stages = np.select(
        [holds(condition, users).to_numpy(dtype=bool) for condition in conditions],
        [name for name, _ in asked],
        default=last[0],
    )
    return pd.Series(stages, pd.Index(users["user_id"], name="user_id"), dtype="str", name="lifecycle_stage")


def transitions(before: ir.Table, after: ir.Table) -> ir.Table:
    """Count users by the stages that they were in and are in now: `before`, `after` and `users`.

    Both tables have user_id and lifecycle_stage. `before` is null for users who are only in the second (they
    appeared), `after` for those who are only in the first (they are gone).
    """
    then = before.select("user_id", before=before.lifecycle_stage)
    now = after.select("user_id", after=after.lifecycle_stage)
    both = then.outer_join(now, "user_id")
    counted = both.group_by("before", "after").agg(users=both.count())
    return counted.order_by(ibis.asc("before", nulls_first=False), ibis.asc("after", nulls_first=False))
