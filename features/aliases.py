"""ALIASES: which session goes on under the id of one that a late event made part of it."""

import ibis
import ibis.expr.types as ir

from features.table import Table

ALIASES = Table(
    name="session_aliases",
    schema=ibis.schema({"alias_id": "!string", "session_id": "!string", "user_id": "!string"}),
    key=("alias_id",),
)


def alias(aliases: ir.Table, gone: ir.Table, made: ir.Table) -> ir.Table:
    """Return ALIASES after the sessions `gone` gave way to those `made`, both SESSIONS.

    An id that is gone becomes an alias of the session that holds the instant at which it began; where none does, as
    its events are no more, it has no alias. What was an alias of it follows; an id that is back is no alias.
    """
    now = made.select("user_id", now_id=made.session_id, now_started_at=made.started_at, now_ended_at=made.ended_at)
    held = gone.join(
        now,
        [
            gone.user_id == now.user_id,
            gone.started_at >= now.now_started_at,
            gone.started_at <= now.now_ended_at,
        ],
    ).select(alias_id=gone.session_id, session_id=now.now_id, user_id=gone.user_id)
    moved = held.select(session_id=held.alias_id, now_id=held.session_id)
    before = aliases.left_join(moved, "session_id")
    followed = before.select("alias_id", session_id=before.now_id.fill_null(before.session_id), user_id=before.user_id)
    followed = followed.anti_join(held, "alias_id").anti_join(made, [("alias_id", "session_id")])
    return ALIASES.check(ibis.union(*(part.cast(ALIASES.schema) for part in (followed, held))))
