"""What a destination is, and what it gets of a version: only what `audiences` allows it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol, Self, runtime_checkable

import ibis.expr.types as ir
from pydantic import Field, model_validator

from features.limits import COUNT_MAX
from features.sources import Settings

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Of destinations and purposes."""
Share = Annotated[float, Field(ge=0, lt=1)]


class DestinationError(Exception):
    """Say in one line why a destination did not take a version, without any credential."""


GIVE = 'give { env = "VARIABLE" } or { block = "prefect-block" }'


class Credential(Settings):
    """Say where a password, key or address with one is: in an environment variable, or in a Prefect block."""

    env: str | None = None
    block: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_text(cls, given: object) -> object:
        if not isinstance(given, dict | Credential):
            raise ValueError(f"a credential does not belong in a file; {GIVE}")
        return given

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.block is None):
            raise ValueError(GIVE)
        return self


class DestinationSettings(Settings):
    """Say what a destination is for, which segments it gets, who is held out, and how small an audience may be.

    `purposes` are those that a user has to consent to, all of them. `segments` are ids of discovered segments and names
    of rules; None: all. `holdout_share` is of the users of each segment, or by segment. An audience with fewer users
    than `members_min` is held back.
    """

    purposes: list[str] | None = None
    segments: list[str] | None = None
    holdout_share: Share | dict[str, Share] = 0
    members_min: int = Field(default=0, ge=0, le=COUNT_MAX)

    def holdout_of(self, segment_id: str) -> float:
        """Return the share of a segment's users that this destination never gets."""
        share = self.holdout_share
        return share.get(segment_id, 0) if isinstance(share, dict) else share


@dataclass(frozen=True)
class Release:
    """Hold what one destination may have of a version; tables are lazy, and those of the lake's engine.

    `rows` are ASSIGNMENTS of the users it may know of, without segments that they are held out of. `members` are
    user_id, segment_id and segment_name, a row for each segment of a user. `contacts` are user_id, email and phone as
    they were given, null where they were not, of the users of `rows`. `changes(since)` are the CHANGES for this
    destination of versions after `since` (0: all) until this one. `manifest` says of the version what goes into its
    manifest, without files.
    """

    destination: str
    source: str
    version: int
    as_of: datetime
    rows: ir.Table
    members: ir.Table
    contacts: ir.Table
    changes: Callable[[int], ir.Table]
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Delivery:
    """Say what became of a version at a destination, where it is, and how many users, members or changes it has.

    What is `pending` waits for the next publish, and `note` says why; what has `failed` waits for a person.
    """

    destination: str
    state: Literal["released", "unchanged", "pending", "failed"]
    where: str
    count: int
    note: str = ""
    counted: Literal["users", "members", "changes"] = "users"


class Destination(Protocol):
    """Take versions. Both methods may be repeated after being killed anywhere, and raise DestinationError."""

    def deliver(self, release: Release) -> Delivery:
        """Make a version the present one, whole or not at all; do nothing where it is already."""
        ...

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        """Remove users from all versions that are kept, and tell receivers that they left; return in how many places.

        `memberships` has the erased users and the segments that each was in at this destination.
        """
        ...


@runtime_checkable
class Sending(Destination, Protocol):
    """Take versions by messages to others: `deliver` only queues them."""

    def send(self) -> Delivery:
        """Send what is queued, with nothing of the lake open or locked, since others may take their time."""
        ...
