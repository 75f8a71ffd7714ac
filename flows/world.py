"""How tasks that touch the world are retried, and what their errors may say."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from features.attributes import DuplicateUserError
from features.discretion import where
from features.lake import LakeInUseError
from features.sources import SourceError
from features.table import ContractError
from flows.configuration import ConfigurationError
from publish.lock import LockedError

Given = ParamSpec("Given")
Found = TypeVar("Found")


class DeliveryError(Exception):
    """Say which destinations did not take the present version, and why."""


class UnexpectedError(Exception):
    """Say of an error that nobody foresaw its type and where it was raised."""


MISTAKES = (ConfigurationError, SourceError, ContractError, DuplicateUserError)
"""What a person has to put right: shown in one line, and not tried again."""
ELSEWHERE = (DeliveryError, LockedError, LakeInUseError)
"""What is to be put right elsewhere, and tried again with the same command: shown in one line."""
PACKAGES = ("features", "models", "publish", "flows")
LASTING = (*MISTAKES, *ELSEWHERE, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)


async def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    try:
        await state.aresult()
    except LASTING:
        return False
    except Exception:
        return True
    return False


TOUCHES_THE_WORLD: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [1, 5],
    "retry_condition_fn": _may_pass,
}


def discreet(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Have a task raise only what may be stored: Prefect keeps errors, and logs those that they came from.

    Our own say nothing of users, nor does the system. Of all others the message may hold what a row does, and goes.
    """

    @wraps(function)
    def discreetly(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in PACKAGES:
                raise error from None
            raise UnexpectedError(where(error)).with_traceback(error.__traceback__) from None

    return discreetly
