"""CHANGES: who entered and who left which audience, at which version, and why. Replayed, they give the present one."""

import ibis

from features.table import TIME, Table

CHANGES = Table(
    name="changes",
    schema=ibis.schema(
        {
            "version": "!int64",
            "as_of": TIME.copy(nullable=False),
            "destination": "!string",
            "user_id": "!string",
            "segment_id": "!string",
            "segment_name": "!string",
            "change": "!string",
            "reason": "!string",
            "from_segment_id": "string",
            "to_segment_id": "string",
        }
    ),
    key=("version", "destination", "user_id", "segment_id"),
    partition="as_of",
)
ENTERED, LEFT = "entered", "left"
REASONS = {
    "behaviour": "the user behaved otherwise",
    "model": "another model of segments serves, which puts the same behaviour elsewhere",
    "rule": "the rule was made, changed or removed",
    "new_user": "the user was not there before",
    "gone": "the user is not there any more",
    "consent": "consent was given or withdrawn",
    "erased": "the user was erased",
    "holdout": "the share that is held out was changed",
    "audience_size": "the audience has become large enough, or too small, to be released",
    "selection": "the segment was added to, or taken from, those that the destination gets",
}
"""Why a user entered or left, in words."""
