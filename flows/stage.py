"""DOOR: what a stage is to Prefect: how it reads its instant, waits for its turn on a lake, and ends.

A run ends Completed; Held, where the brake held a version; or Failed. What a person has to know of that is one line,
the same on Prefect's page as on the screen. Only what nobody foresaw is shown with its traceback.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Flow, flow
from prefect.client.schemas.objects import State, StateType
from prefect.states import Failed

from flows.configuration import Configuration, load, parse_as_of
from flows.instant import name_run
from flows.turns import turn
from flows.world import ELSEWHERE, MISTAKES, in_discreet_words, in_one_line

P = ParamSpec("P")
R = TypeVar("R")

KNOWN = (*MISTAKES, *ELSEWHERE, OSError)
"""What is said in one line."""


class HeldError(Exception):
    """Say why a version is held and how to release it; `result` is what the stage made all the same."""

    def __init__(self, why: str, result: Any) -> None:
        super().__init__(why)
        self.result = result


def stage(*, takes_turns: bool = True) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a flow of a function whose first parameter is a configuration's path.

    Only one stage of those that take turns works on a lake at a time, with the stages that it calls: others wait, and
    fail where it is not done in time. One that only reads takes none. To call the flow raises what the function raises.
    """

    def make_flow(work: Callable[P, R]) -> Flow[P, R]:
        @functools.wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> R | State[Any]:
            config: str = inspect.signature(work).bind(*args, **kwargs).arguments["config"]
            try:
                with turn(load(config), work.__name__) if takes_turns else nullcontext():
                    return work(*args, **kwargs)
            except HeldError as held:
                return State(type=StateType.FAILED, name="Held", message=in_one_line(held), data=held)
            except Exception as error:
                said = in_discreet_words(error, config)
                if not isinstance(said, KNOWN):
                    raise
                return Failed(message=in_one_line(said), data=said)

        return cast("Flow[P, R]", flow(flow_run_name=name_run)(run))

    return make_flow


def read_as_of(config: str, as_of: datetime | str | None) -> datetime | None:
    """Read the instant that a flow is given as the command line does: without an offset, in the configuration's zone.

    Raises ConfigurationError for a text that is no instant.
    """
    return None if as_of is None else parse_as_of(str(as_of), load(config).time_zone)


def artifact_key(configuration: Configuration, what: str) -> str:
    """Name what a run leaves on Prefect's pages, where every configuration has its own."""
    return f"{configuration.name}-{what}".replace("_", "-")


def _shorten(record: logging.LogRecord) -> bool:
    """Have Prefect log a known failure as one line, and say nothing more of a version that is held."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, KNOWN):
        record.msg, record.args, record.exc_info = in_one_line(error), (), None
    return not isinstance(error, HeldError)


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_shorten)
