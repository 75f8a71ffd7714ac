"""[report]: what is personal, how small a count may be, and whether lists of users are in the page."""

from pydantic import Field

from features.limits import COUNT_MAX
from features.sources import Settings

USER_ID = "user_id"


class ReportSettings(Settings):
    """Say from how many users on a count is shown, and what only those see who may see what is personal.

    `personal` names attributes of users, or "user_id": in the page users are then numbers. `user_lists` says whether
    the page has lists of users at all.
    """

    k: int = Field(default=10, ge=1, le=COUNT_MAX)
    personal: list[str] = Field(default_factory=list)
    user_lists: bool = True
