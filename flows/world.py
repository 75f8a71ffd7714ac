"""How tasks that touch the world are retried."""

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

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
