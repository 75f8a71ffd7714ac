"""CHANGES: who entered and who left which audience, at which version, and why. Replayed, they give the present one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import ibis
import ibis.expr.types as ir

from features.table import TIME, Table, materialize
from publish.audiences import NO_TEXTS

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
"""A row for each user who entered or left an audience. From and to are the discovered segments of who moved."""
ENTERED, LEFT = "entered", "left"
REASONS = {
    "behaviour": "the user behaved otherwise",
    "model": "another model of segments serves, which puts the same behaviour elsewhere",
    "rule": "the rule was made, changed or removed",
    "new_user": "the user was not there before",
    "gone": "the user is not there any more",
    "consent": "consent was given or withdrawn",
    "erased": "the user was erased",
    "holdout": "the user, or the segment's share of users, is held out or no longer",
    "audience_size": "the audience has become large enough, or too small, to be released",
    "selection": "the segment was added to, or taken from, those that the destination gets",
}
"""Why a user entered or left, in words."""
DECIDED = ("consent", "erased", "holdout", "selection")
"""Reasons that a person decided on, which no brake holds."""


@dataclass(frozen=True)
class Causes:
    """Hold what changed between two versions beside users, for `compare` to tell reasons apart.

    `discovered` are the ids of discovered segments of both, `names` those of all segments. `redefined` are the segments
    that another model or rule makes, `otherwise` (user_id, segments) what the model and rules of before would say of
    users now. `deselected` are, by destination, the segments that only one of both versions gives to it.
    """

    names: Mapping[str, str]
    discovered: Collection[str] = ()
    redefined: Collection[str] = ()
    otherwise: ir.Table | None = None
    deselected: Mapping[str, Collection[str]] = field(default_factory=dict)


def compare(before: ir.Table, after: ir.Table, causes: Causes, version: int, as_of: datetime) -> ir.Table:
    """Return the CHANGES from AUDIENCES before to those after.

    What the model and rules of before would still say of a user has changed because of them; what they would say as
    well has changed because of behaviour.
    """
    changed = materialize(_pair(before, after, causes))
    parts = [_side(changed, ENTERED, causes), _side(changed, LEFT, causes)]
    both = parts[0].union(parts[1])
    names = ibis.memtable(
        [{"segment_id": key, "name": name} for key, name in causes.names.items()],
        schema=ibis.schema({"segment_id": "string", "name": "string"}),
    )
    named = both.left_join(names, "segment_id").drop("segment_id_right")
    return CHANGES.check(
        named.mutate(
            version=ibis.literal(version, "int64"),
            as_of=ibis.literal(as_of, TIME),
            segment_name=named.name.fill_null(named.segment_id),
        )
    )


def _pair(before: ir.Table, after: ir.Table, causes: Causes) -> ir.Table:
    """Return the users whose segments changed, with what is known of them on both sides."""
    keys = ["destination", "user_id"]
    both = before.outer_join(after, keys, lname="{name}_before", rname="{name}_after")
    lists = {
        f"{name}_{side}": both[f"{name}_{side}"].fill_null(NO_TEXTS)
        for name in ("segments", "held_out", "held_back")
        for side in ("before", "after")
    }
    both = both.mutate(
        **{key: ibis.coalesce(both[f"{key}_before"], both[f"{key}_after"]) for key in keys},
        was_there=both.user_id_before.notnull(),
        is_there=both.user_id_after.notnull(),
        **lists,
    )
    changed = both.filter(both.segments_before != both.segments_after)
    if causes.otherwise is None:
        return changed.mutate(otherwise=NO_TEXTS)
    otherwise = causes.otherwise.select("user_id", otherwise="segments")
    joined = changed.left_join(otherwise, "user_id", rname="{name}_then")
    return joined.mutate(otherwise=joined.otherwise.fill_null(NO_TEXTS))


def _side(changed: ir.Table, change: str, causes: Causes) -> ir.Table:
    """Return the changes of one kind, with their reasons. Of who left, before and after change places."""
    here, there = ("after", "before") if change == ENTERED else ("before", "after")
    own, other = changed[f"segments_{here}"], changed[f"segments_{there}"]
    rows = changed.mutate(
        segment_id=own.filter(lambda segment_id: ~other.contains(segment_id)).unnest(),
        from_segment_id=_discovered(changed.segments_before, causes),
        to_segment_id=_discovered(changed.segments_after, causes),
    )
    is_moved = _isin(rows.segment_id, causes.discovered)
    is_redefined = _isin(rows.segment_id, causes.redefined)
    is_same_behaviour = rows.otherwise.contains(rows.segment_id) == (change == LEFT)
    is_deselected = ibis.or_(
        ibis.literal(False),
        *(
            (rows.destination == destination) & _isin(rows.segment_id, segments)
            for destination, segments in causes.deselected.items()
        ),
    )
    is_present = rows.was_there if change == ENTERED else rows.is_there
    reason = ibis.cases(
        (~is_present, "new_user" if change == ENTERED else "gone"),
        (rows[f"refused_{there}"].notnull(), rows[f"refused_{there}"]),
        (rows[f"held_out_{there}"].contains(rows.segment_id), "holdout"),
        (is_deselected, "selection"),
        (rows[f"held_back_{there}"].contains(rows.segment_id), "audience_size"),
        (is_redefined & is_same_behaviour & is_moved, "model"),
        (is_redefined & is_same_behaviour, "rule"),
        else_="behaviour",
    )
    return rows.select(
        "destination",
        "user_id",
        "segment_id",
        change=ibis.literal(change),
        reason=reason,
        from_segment_id=is_moved.ifelse(rows.from_segment_id, ibis.null("string")),
        to_segment_id=is_moved.ifelse(rows.to_segment_id, ibis.null("string")),
    )


def _discovered(segments: ir.ArrayColumn, causes: Causes) -> ir.StringColumn:
    if not causes.discovered:
        return ibis.null("string")
    return segments.filter(lambda segment_id: _isin(segment_id, causes.discovered))[0]


def _isin(segment_id: ir.StringValue, ids: Collection[str]) -> ir.BooleanValue:
    return segment_id.isin(sorted(ids)) if ids else ibis.literal(False)


def has_mark(changes: ir.Table, marks: Sequence[str]) -> ir.BooleanValue:
    """Return whether the name of a segment has one of some marks, which are those of what is personal."""
    return ibis.or_(ibis.literal(False), *(changes.segment_name.contains(mark) for mark in marks))


def without_names(changes: ir.Table, marks: Sequence[str]) -> ir.Table:
    """Return CHANGES with a segment's id in the place of a name that has one of some marks."""
    return changes.mutate(segment_name=has_mark(changes, marks).ifelse(changes.segment_id, changes.segment_name))


def replay(changes: ir.Table) -> ir.Table:
    """Return destination, user_id and segment_id of who is in an audience after these CHANGES, from the first on."""
    last = changes.group_by(["destination", "user_id", "segment_id"]).agg(change=changes.change.argmax(changes.version))
    return last.filter(last.change == ENTERED).drop("change")
