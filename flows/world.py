"""How tasks that touch the world are retried."""

from typing import Any

import duckdb
from deltalake.exceptions import CommitFailedError
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task
from sqlalchemy.exc import OperationalError

from features.attributes import DuplicateUserError
from features.lake import LakeInUseError
from features.sources import SourceError
from features.table import ContractError
from flows.configuration import ConfigurationError
from publish.lock import LockedError


class DeliveryError(Exception):
    """Say which destinations did not take the present version, and why."""


MISTAKES = (ConfigurationError, SourceError, ContractError, DuplicateUserError)
"""What a person has to put right: shown in one line, and not tried again."""
ELSEWHERE = (DeliveryError, LockedError, LakeInUseError)
"""What is to be put right elsewhere, and tried again with the same command: shown in one line."""
LASTING = (*MISTAKES, *ELSEWHERE, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)
PASSING = (OSError, duckdb.IOException, CommitFailedError, OperationalError)
"""Of files, networks, another's commit to a table, and MLflow's store that another has locked."""


def may_pass(error: BaseException | None) -> bool:
    """Tell whether trying again may help, be it for what an error came from: a mistake in code does not pass."""
    if error is None or isinstance(error, LASTING):
        return False
    return isinstance(error, PASSING) or may_pass(error.__cause__)


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
