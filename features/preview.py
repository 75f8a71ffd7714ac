"""Preview: what another definition would change in SESSIONS and SNAPSHOTS, before anything is changed."""

from dataclasses import dataclass

import ibis.expr.types as ir

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Difference:
    """Hold a figure under the definition of now and under another one; null where it does not apply."""

    name: str
    now: float | None
    then: float | None


@dataclass(frozen=True)
class FeatureDifference(Difference):
    """Hold a feature's mean over users, and the share of users whose value is another; null where it is new or gone."""

    changed_share: float | None


def compare_sessions(now: ir.Table, then: ir.Table) -> list[Difference]:
    """Compare SESSIONS under two definitions: counts, rates over sessions, lengths in seconds."""
    [before], [after] = (_measure(sessions).to_pyarrow().to_pylist() for sessions in (now, then))
    return [Difference(name, before[name], after[name]) for name in before]


def _measure(sessions: ir.Table) -> ir.Table:
    count = sessions.count()
    return sessions.agg(
        session_count=count.cast("float64"),
        sessions_per_user=count / sessions.user_id.nunique().nullif(0),
        events_per_session=sessions.event_count.mean(),
        duration_mean_s=sessions.duration_s.mean(),
        duration_median_s=sessions.duration_s.median(),
        bounce_rate=sessions.bounced.cast("int64").mean(),
        engaged_rate=sessions.engaged.cast("int64").mean(where=sessions.page_view_count > 0),
        conversion_rate=sessions.converted.cast("int64").mean(),
        cart_abandonment_rate=sessions.cart_abandoned.cast("int64").mean(),
    )


def compare_features(now: ir.Table, then: ir.Table) -> list[FeatureDifference]:
    """Compare features at one instant under two definitions, user by user: user_id and a column for each feature.

    Those that only one definition has come first, then those that change for most users.
    """
    names_now, names_then = ([name for name in table.columns if name != "user_id"] for table in (now, then))
    shared = [name for name in names_now if name in names_then]
    both = now.select("user_id", *shared).inner_join(then.select("user_id", *shared), "user_id", rname="{name}_then")
    changed = {name: _differs(both[name], both[f"{name}_then"]).cast("int64").mean() for name in shared}
    shares = both.agg(**changed).to_pyarrow().to_pylist()[0] if shared else {}
    means_now, means_then = (
        table.agg(**{name: table[name].mean() for name in names}).to_pyarrow().to_pylist()[0]
        for table, names in ((now, names_now), (then, names_then))
    )
    names = [*names_now, *(name for name in names_then if name not in names_now)]
    differences = [
        FeatureDifference(name, means_now.get(name), means_then.get(name), shares.get(name)) for name in names
    ]
    return sorted(
        differences, key=lambda difference: -2 if difference.changed_share is None else -difference.changed_share
    )


def _differs(left: ir.FloatingValue, right: ir.FloatingValue) -> ir.BooleanValue:
    return ((left - right).abs() > TOLERANCE).fill_null(False) | (left.isnull() != right.isnull())
