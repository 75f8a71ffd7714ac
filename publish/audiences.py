"""AUDIENCES: which users each destination may know of, and in which segments. All that leaves goes through here."""

from collections.abc import Mapping, Sequence
from functools import reduce

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from features.table import Table, materialize
from publish.destination import DestinationSettings
from publish.holdout import is_held_out

AUDIENCES = Table(
    name="audiences",
    schema=ibis.schema(
        {
            "destination": "!string",
            "user_id": "!string",
            "refused": "string",
            "segments": "!array<string>",
            "held_out": "!array<string>",
            "held_back": "!array<string>",
        }
    ),
    key=("destination", "user_id"),
)
"""What the present version is at each destination: a row for each of its users, all of them.

`refused` says why a destination must not know of a user (consent, holdout), null where it may: then `segments` are
those that it knows the user to be in, without those that the user is `held_out` of, and whose audience is `held_back`.
"""
MASKED = ("segment_id", "segment_name", "segment_strength", "segment_strengths", "runner_up_segment_id")
"""Columns of ASSIGNMENTS that say the discovered segment; a list is emptied, all else null where that is not known."""
NO_TEXTS = ibis.literal([], "array<string>")


def allow(
    assignments: ir.Table, consents: ir.Table, destinations: Mapping[str, DestinationSettings], salt: str
) -> ir.Table:
    """Return AUDIENCES: what each destination may know of the users of ASSIGNMENTS.

    `consents` has user_id, purpose and granted; without a row there is no consent. A user has to have granted all
    purposes of a destination, and must not be held out of everything. Of the segments that a destination gets, users
    are held out of some by a salted hash, and audiences that are then too small are held back.
    """
    users = assignments.select("user_id", "holdout", segments=segments_of(assignments))
    granted = consents.filter(consents.granted).group_by("user_id").agg(purposes=lambda t: t.purpose.collect())
    known = users.left_join(granted, "user_id").drop("user_id_right")
    known = materialize(known.mutate(purposes=known.purposes.fill_null(NO_TEXTS)))
    parts = [_allow(known, name, settings, salt) for name, settings in destinations.items()]
    if not parts:
        return _nobody(known)
    return AUDIENCES.check(reduce(lambda one, other: one.union(other), parts))


def _nobody(users: ir.Table) -> ir.Table:
    none = users.filter(ibis.literal(False))
    return none.select(
        destination=none.user_id,
        user_id=none.user_id,
        refused=none.user_id,
        segments=none.segments,
        held_out=none.segments,
        held_back=none.segments,
    )


def segments_of(assignments: ir.Table) -> ir.ArrayColumn:
    """Return the ids of all segments that users of ASSIGNMENTS are in: the discovered one, then the named ones."""
    discovered = ibis.ifelse(
        assignments.segment_id.isnull(), NO_TEXTS, ibis.array([assignments.segment_id]).cast("array<string>")
    )
    return discovered.concat(assignments.rule_segments)


def _allow(users: ir.Table, destination: str, settings: DestinationSettings, salt: str) -> ir.Table:
    lacking = [~users.purposes.contains(purpose) for purpose in settings.purposes or ()]
    refused = ibis.cases(
        (ibis.or_(ibis.literal(False), *lacking), "consent"), (users.holdout, "holdout"), else_=ibis.null("string")
    )
    asked = users.segments if settings.segments is None else _only(users.segments, settings.segments)
    rows = users.select("user_id", refused=refused, asked=refused.isnull().ifelse(asked, NO_TEXTS))
    held_out = (
        rows.asked.filter(lambda segment_id: is_held_out(rows.user_id, segment_id, destination, settings, salt))
        if settings.holdout_share
        else NO_TEXTS
    )
    rows = rows.mutate(held_out=held_out)
    rows = rows.mutate(segments=_without(rows, "asked", "held_out") if settings.holdout_share else rows.asked)
    small = _small(rows, settings.members_min)
    return rows.select(
        "user_id",
        "refused",
        "held_out",
        destination=ibis.literal(destination),
        held_back=_only(rows.segments, small),
        segments=rows.segments.filter(lambda segment_id: ~segment_id.isin(small)) if small else rows.segments,
    ).select(*AUDIENCES.schema.names)


def _only(segments: ir.ArrayColumn, kept: Sequence[str]) -> ir.ArrayColumn:
    return segments.filter(lambda segment_id: segment_id.isin(kept)) if kept else NO_TEXTS


def _without(rows: ir.Table, segments: str, others: str) -> ir.ArrayColumn:
    return rows[segments].filter(lambda segment_id: ~rows[others].contains(segment_id))


def _small(rows: ir.Table, members_min: int) -> list[str]:
    """List the audiences with fewer members."""
    if members_min < 2:
        return []
    sizes = rows.select(segment_id=rows.segments.unnest()).segment_id.value_counts(name="members")
    small: list[str] = sizes.filter(sizes.members < members_min).segment_id.to_pyarrow().to_pylist()
    return sorted(small)


def is_member(audiences: ir.Table) -> ir.BooleanColumn:
    """Tell whom a destination knows of: not those it is refused, nor those who are held out of all their segments."""
    return audiences.refused.isnull() & ((audiences.segments.length() > 0) | (audiences.held_out.length() == 0))


def rows_for(destination: str, released: ir.Table, audiences: ir.Table, settings: DestinationSettings) -> ir.Table:
    """Return the ASSIGNMENTS that a destination may have, as it may have them.

    Segments that the user is not in at this destination are left out, and nothing says who is held out. Where the
    destination gets only some segments, only their users are there.
    """
    mine = audiences.filter(audiences.destination == destination, is_member(audiences))
    if settings.segments is not None:
        mine = mine.filter(mine.segments.length() > 0)
    both = released.inner_join(mine.select("user_id", allowed="segments"), "user_id")
    is_known = both.allowed.contains(both.segment_id).fill_null(False)
    masked = {name: is_known.ifelse(both[name], _nothing(both[name].type())) for name in MASKED}
    return both.mutate(
        **masked,
        held_out_of=NO_TEXTS,
        rule_segments=both.rule_segments.filter(lambda name: both.allowed.contains(name)),
        holdout=ibis.literal(False),
    ).select(*released.columns)


def _nothing(dtype: dt.DataType) -> ir.Value:
    return ibis.literal([], dtype.copy(nullable=True)) if dtype.is_array() else ibis.null(dtype)


def members_of(destination: str, audiences: ir.Table) -> ir.Table:
    """Return user_id and segment_id of a destination's audiences, a row for each segment of a user."""
    mine = audiences.filter(audiences.destination == destination)
    return mine.select("user_id", segment_id=mine.segments.unnest())


def count_refused(destination: str, audiences: ir.Table) -> dict[str, object]:
    """Count what a destination does not get: users by reason, and by segment those that are held out or held back."""
    mine = audiences.filter(audiences.destination == destination)
    refused = mine.filter(mine.refused.notnull()).refused.value_counts(name="users").to_pyarrow().to_pylist()
    counts: dict[str, object] = {"users": {row["refused"]: row["users"] for row in sorted(refused, key=str)}}
    for kind in ("held_out", "held_back"):
        segments = mine.select(segment_id=mine[kind].unnest()).segment_id.value_counts(name="users")
        found = segments.order_by("segment_id").to_pyarrow().to_pylist()
        counts[kind] = {row["segment_id"]: row["users"] for row in found}
    return counts
