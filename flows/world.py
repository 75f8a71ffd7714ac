"""How tasks that touch the world are retried, and what their errors may say."""

import errno
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import duckdb
from deltalake.exceptions import CommitFailedError
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task
from sqlalchemy.exc import OperationalError

from features.attributes import DuplicateUserError
from features.damage import DamagedError, find_damage, may_be_of_damage
from features.delta import ConflictError
from features.discretion import where
from features.lake import LakeInUseError, MovedError
from features.sources import SourceError
from features.table import ContractError
from flows.configuration import Configuration, ConfigurationError, load
from flows.temporary_server import ServerError
from models.store import StoreError
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
ELSEWHERE = (
    DeliveryError,
    DestinationError,
    LockedError,
    LakeInUseError,
    MovedError,
    ConflictError,
    DamagedError,
    StoreError,
    ServerError,
)
"""What is to be put right elsewhere, and tried again with the same command: shown in one line."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SAYS_FULL = re.compile(
    "No space left on device|database or disk is full|Disk quota exceeded|File too large|max_temp_directory_size"
)
"""What the system, SQLite and DuckDB, which spills, say of a full disk."""
NESTED = re.compile(r"\s*\x1b\[\d+m\S\x1b\[0m\s*")
"""What deltalake puts between an error and what it came from: an arrow in colour, on a line of its own."""
PACKAGES = ("features", "models", "publish", "flows")
_ALLOW = "allow this user to write there, or name another folder in the configuration"
_MOVE = "a file is where a folder is to be: move it away, or name another folder in the configuration"
TO_DO = {errno.EACCES: _ALLOW, errno.EPERM: _ALLOW, errno.EROFS: _ALLOW, errno.EEXIST: _MOVE, errno.ENOTDIR: _MOVE}
"""By the number of an error of the system."""
PASSING = (OSError, duckdb.IOException, CommitFailedError, ConflictError, OperationalError, PassingError)
"""Of files, networks, another's commit to a table, and MLflow's store that another has locked."""
LASTING = (
    *MISTAKES,
    *(kind for kind in ELSEWHERE if kind not in PASSING),
    *(PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError),
)


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
    """Have a task, whose first parameter is a configuration's path, raise only what may be stored.

    Prefect keeps errors, and logs those that they came from. Our own say nothing of users, nor does the system. Of all
    others the message may hold what a row does, and goes.
    """

    @wraps(function)
    def discreetly(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
                raise error.__cause__ from None  # a signal, which DuckDB says is its own error
            config = kwargs.get("config", args[0] if args else None)
            raise in_discreet_words(error, config if isinstance(config, str) else None) from None

    return discreetly


def in_discreet_words(error: Exception, config: str | None) -> Exception:
    """Return an error that may be stored and shown in the place of another.

    Of a full disk it says which, and of a broken lake or file of it what mends it.
    """
    configuration = None
    if config is not None and not isinstance(error, (ConfigurationError, *ELSEWHERE)):
        configuration = load(config)
    if _is_of_full_disk(error):
        return OSError(_explain_full(configuration))
    if configuration is not None and (may_be_of_damage(error) or not isinstance(error, MISTAKES)):
        in_content = may_be_of_damage(error)
        damage = find_damage(configuration.lake, configuration.file, in_content=in_content)
        if damage is not None:
            return damage
    if isinstance(error, OSError) and NESTED.search(str(error)):
        return OSError(NESTED.sub(": ", str(error)))
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in PACKAGES:
        return error
    unexpected = PassingError if may_pass(error) else UnexpectedError
    return unexpected(where(error)).with_traceback(error.__traceback__)


def _is_of_full_disk(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it came from, is of a disk that takes no more."""
    if error is None:
        return False
    is_full = isinstance(error, OSError) and error.errno in FULL
    return is_full or SAYS_FULL.search(str(error)) is not None or _is_of_full_disk(error.__cause__)


def _explain_full(configuration: Configuration | None) -> str:
    """Say which disk takes no more: of those that are written to, the one with the least space left."""
    folders = [Path(tempfile.gettempdir()), Path.cwd()]  # for what is made on the way, and Prefect's database
    if configuration is not None:
        folders = [configuration.lake, configuration.mlruns, configuration.published, *folders]
    there = [folder for folder in folders if folder.exists()]
    folder = min(there, key=lambda one: shutil.disk_usage(one).free)
    return f"the disk of {folder} is full: free some space, and run the same command again; nothing is half-written"
