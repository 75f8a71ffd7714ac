"""How tasks that touch the world are retried, and what their errors may say."""

import errno
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import duckdb
from deltalake.exceptions import CommitFailedError
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task
from sqlalchemy.exc import OperationalError

from features.attributes import DuplicateUserError
from features.discretion import where
from features.lake import LakeInUseError
from features.sources import SourceError
from features.table import ContractError
from flows.configuration import ConfigurationError
from flows.temporary_server import ServerError
from publish.destination import DestinationError
from publish.lock import LockedError

Given = ParamSpec("Given")
Found = TypeVar("Found")


class DeliveryError(Exception):
    """Say which destinations did not take the present version, and why."""


class UnexpectedError(Exception):
    """Say of an error that nobody foresaw its type and where it was raised."""


class PassingError(UnexpectedError):
    """Say so of one that may pass."""


MISTAKES = (ConfigurationError, SourceError, ContractError, DuplicateUserError)
"""What a person has to put right: shown in one line, and not tried again."""
ELSEWHERE = (DeliveryError, DestinationError, LockedError, LakeInUseError, ServerError)
"""What is to be put right elsewhere, and tried again with the same command: shown in one line."""
FULL = "No space left on device"
PACKAGES = ("features", "models", "publish", "flows")
_ALLOW = "allow this user to write there, or name another folder in the configuration"
_MOVE = "a file is where a folder is to be: move it away, or name another folder in the configuration"
TO_DO = {errno.EACCES: _ALLOW, errno.EPERM: _ALLOW, errno.EROFS: _ALLOW, errno.EEXIST: _MOVE, errno.ENOTDIR: _MOVE}
"""By the number of an error of the system."""
LASTING = (*MISTAKES, *ELSEWHERE, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)
PASSING = (OSError, duckdb.IOException, CommitFailedError, OperationalError, PassingError)
"""Of files, networks, another's commit to a table, and MLflow's store that another has locked."""


def may_pass(error: BaseException | None) -> bool:
    """Tell whether trying again may help, be it for what an error came from: a mistake in code does not pass."""
    if error is None or isinstance(error, LASTING):
        return False
    return isinstance(error, PASSING) or may_pass(error.__cause__)


def in_one_line(error: BaseException) -> str:
    """Return what an error says, without line breaks; of one of the system, which file, and what to do."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        parts = (error.filename, error.strerror, TO_DO.get(error.errno or 0))
        said = ": ".join(str(part) for part in parts if part)
    return " ".join(said.split()) or type(error).__name__


async def _is_worth_another_try(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    try:
        await state.aresult()
    except Exception as error:
        return may_pass(error)
    return False


TOUCHES_THE_WORLD: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [1, 5],
    "retry_condition_fn": _is_worth_another_try,
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
            if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
                raise error.__cause__ from None  # a signal, which DuckDB says is its own error
            if FULL in str(error):
                raise OSError(errno.ENOSPC, f"{FULL}: free some space, and run the same command again") from None
            if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in PACKAGES:
                raise error from None
            unexpected = PassingError if may_pass(error) else UnexpectedError
            raise unexpected(where(error)).with_traceback(error.__traceback__) from None

    return discreetly
