"""Turns: whoever changes a lake, publishes or reports waits until it is their turn, and says for whom."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from flows.configuration import Configuration
from publish.lock import WAIT_S, Work, publishing_lock, working_lock

logger = logging.getLogger("habitus")

_lakes: ContextVar[frozenset[Path]] = ContextVar("lakes", default=frozenset())
"""The lakes that it is our turn on."""


@contextmanager
def turn(configuration: Configuration, stage: str) -> Iterator[None]:
    """Be the only one who changes a lake, with the stages that are called meanwhile. Open the lake only then.

    Raises LockedError where another does not end in time.
    """
    lake = configuration.lake
    if lake in _lakes.get():
        yield
        return
    with working_lock(lake, _work(configuration, stage), WAIT_S, logger.info):
        token = _lakes.set(_lakes.get() | {lake})
        try:
            yield
        finally:
            _lakes.reset(token)


@contextmanager
def publishing(configuration: Configuration, stage: str) -> Iterator[None]:
    """Be the only one who publishes, erases or reports from a lake. Open the lake only then.

    Raises LockedError where another does not end in time.
    """
    with publishing_lock(configuration.lake, _work(configuration, stage), WAIT_S, logger.info):
        yield


def _work(configuration: Configuration, stage: str) -> Work:
    return Work(f"{stage} of {configuration.name}", configuration.time_zone)
