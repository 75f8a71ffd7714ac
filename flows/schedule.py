"""When models are learnt anew: the next scheduled run of everything, as prefect.yaml has it."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from pydantic import TypeAdapter

TRAINS = "flows.run.run"
"""The entrypoint of deployments that train."""
SCHEDULE: TypeAdapter[CronSchedule | IntervalSchedule | RRuleSchedule] = TypeAdapter(
    CronSchedule | IntervalSchedule | RRuleSchedule
)


def next_training(configuration: Path, folder: Path, now: datetime) -> datetime | None:
    """Return when a deployment of `folder`'s prefect.yaml trains a configuration next; None where none is scheduled.

    Paths in prefect.yaml are relative to the folder. What cannot be read schedules nothing.
    """
    try:
        deployments = yaml.safe_load((folder / "prefect.yaml").read_text())["deployments"]
        schedules = [
            schedule
            for deployment in deployments
            if deployment.get("entrypoint") == TRAINS
            and (folder / str(deployment.get("parameters", {}).get("config"))).resolve() == configuration.resolve()
            for schedule in deployment.get("schedules") or [deployment.get("schedule")]
        ]
        times = [time for schedule in schedules if schedule for time in _next_of(schedule, now)]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        return None
    return min(times, default=None)


def _next_of(schedule: Mapping[str, Any], now: datetime) -> list[datetime]:
    """Return the next time of a schedule, none where it is paused."""
    if not schedule.get("active", True):
        return []
    given = {name: value for name, value in schedule.items() if name not in ("active", "parameters", "slug")}
    parsed = SCHEDULE.validate_python(given)

    async def get() -> list[datetime]:
        return [*await parsed.get_dates(n=1, start=now)]

    return asyncio.run(get())
