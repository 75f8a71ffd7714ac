"""Sessions: EVENTS become SESSIONS."""

import logging
from dataclasses import dataclass

from prefect import flow, task

import features.sessions
from features.events import EVENTS
from features.lake import Lake
from features.sessions import SESSIONS
from flows.configuration import load
from flows.instant import name_run
from flows.world import TOUCHES_THE_WORLD

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Sessionized:
    """Count the sessions."""

    sessions: int
    users: int
    changed: bool


@flow(flow_run_name=name_run)
def sessions(config: str) -> Sessionized:
    """Group all events into sessions."""
    logger.debug("sessionizing")
    made = sessionize(config)
    logger.info("sessions: %s sessions of %s users", f"{made.sessions:,}", f"{made.users:,}")
    return made


@task(**TOUCHES_THE_WORLD)
def sessionize(config: str) -> Sessionized:
    """Read events, store their sessions."""
    configuration = load(config)
    with Lake(configuration.lake) as lake:
        changed = lake.write(SESSIONS, features.sessions.sessionize(lake.read(EVENTS), configuration.sessions.gap))
        stored = lake.read(SESSIONS)
        [counts] = stored.agg(sessions=stored.count(), users=stored.user_id.nunique()).to_pyarrow().to_pylist()
    return Sessionized(**counts, changed=changed)
