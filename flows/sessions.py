"""Sessions: EVENTS become SESSIONS, all of them or those that new events touch."""

import logging
from datetime import datetime

from prefect import task

from features.increments import Sessionized, update_sessions
from flows.configuration import load
from flows.stage import stage
from flows.world import TOUCHES_THE_WORLD, discreet

logger = logging.getLogger("habitus")


@stage()
def sessions(config: str) -> Sessionized:
    """Group events into sessions: those that changed since the last time, or all."""
    logger.debug("sessionizing")
    made = sessionize(config)
    if made.rebuilt:
        logger.info("sessions: %s sessions, all made anew", f"{made.sessions:,}")
    else:
        counts = tuple(f"{count:,}" for count in (made.sessions, made.added, made.revised, made.aliased))
        logger.info("sessions: %s sessions; %s new, %s revised, %s now part of another", *counts)
    return made


@task(**TOUCHES_THE_WORLD)
@discreet
def sessionize(config: str) -> Sessionized:
    """Store the sessions of the events that there are."""
    configuration = load(config)
    with configuration.open_lake() as lake:
        return update_sessions(lake, configuration.sessions.gap, show_progress, configuration.events.is_by_day)


def show_progress(day: datetime, last_day: datetime) -> None:
    """Say which day is being worked on."""
    logger.debug("sessionizing: %s of %s", f"{day:%Y-%m-%d}", f"{last_day:%Y-%m-%d}")
