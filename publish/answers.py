"""What the API answers, as its OpenAPI document describes it."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from publish.report.content import Count, Rate, Segment


class Model(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "there is no such segment"}
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str


class Health(Model):
    """That the server answers."""

    status: Literal["ok"] = "ok"


class SegmentSummary(Model):
    """A segment: how many users of the version are in it, and which share of all."""

    segment_id: str
    name: str
    kind: Literal["discovered", "named"]
    description: str
    users: Count
    share: Rate
    active_28d: Count
    withheld: str | None


class Segments(Model):
    """The segments of a version."""

    version: int
    as_of: datetime
    k: int = Field(description="the smallest count that is shown")
    segments: list[SegmentSummary]


class OneSegment(Model):
    """A segment, and all that the report says of it."""

    version: int
    as_of: datetime
    segment: Segment


class User(BaseModel):
    """A user: the row of users.parquet, without the columns that the key is too narrow for."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "user_id": "user_0001",
                    "user_number": 17,
                    "segment_id": "S01",
                    "segment_name": "Weekend browsers",
                    "segment_strength": 0.62,
                    "rule_segments": ["cart_abandoners"],
                    "churn_probability": 0.31,
                    "churn_reasons": ["last session 12 days ago"],
                }
            ]
        },
    )

    user_id: str | None = Field(default=None, description="not there where ids are personal and the key is not")
    user_number: int = Field(description="stands for the user within the version")
    segment_id: str | None
    rule_segments: list[str]


class Users(Model):
    """A part of a list of users."""

    version: int
    segment_id: str
    users: int = Field(description="how many are in the whole list")
    next: str | None = Field(description="the cursor of what follows; null at the end")
    items: list[User]


class Session(BaseModel):
    """A session, as SESSIONS of the lake has it."""

    model_config = ConfigDict(extra="allow")

    session_id: str
    started_at: datetime
    ended_at: datetime


class OneUser(Model):
    """A user, and the sessions before as_of, the latest first."""

    version: int
    as_of: datetime
    user: User
    sessions: list[Session] | None = Field(description="null where the key's scope is not personal")


class LookUp(Model):
    """Whom to look up."""

    user_id: str = Field(max_length=100_000, examples=["user_0001"])
    version: int | None = Field(default=None, ge=1)


class Change(Model):
    """Who entered or left which segment, at which version, and why."""

    version: int
    as_of: datetime
    user_id: str
    segment_id: str
    segment_name: str
    change: Literal["entered", "left"]
    reason: str
    from_segment_id: str | None
    to_segment_id: str | None


class ChangeFeed(Model):
    """A part of the changes after one version until another."""

    since: int
    until: int
    changes: int = Field(description="how many there are in all")
    next: str | None = Field(description="the cursor of what follows; null at the end")
    items: list[Change]


class OneVersion(Model):
    """A version that is kept."""

    version: int
    as_of: datetime
    latest: bool


class Versions(Model):
    """The versions that are kept, the latest first."""

    versions: list[OneVersion]
    broken: list[str] = Field(description="folders of versions that cannot be read; publish again")
