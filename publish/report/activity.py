"""Activity: what each user's sessions add up to until an instant, from which a report counts and measures."""

from datetime import datetime

import ibis
import ibis.expr.types as ir

from features.events import utc_to_local

HOURS = [f"hour_{hour}" for hour in range(24)]
WEEKDAYS = [f"weekday_{day}" for day in range(1, 8)]
RECENT_DAYS = (7, 28, 56)


def measure_activity(sessions: ir.Table, as_of: datetime, time_zone: str, day_level: bool) -> ir.Table:
    """Return a row for each user of SESSIONS as they were known at `as_of`.

    Columns: user_id; first_seen_at and last_seen_at, the start of the first session and the end of the last; sums over
    sessions: session_count, session_count_28d (begun then), duration_s, page_view_count, with_page (sessions with a
    page view), bounced and engaged (of these), converted, carts, abandoned (carts), with_support; and sessions by
    hour_0 to hour_23 and weekday_1 (Monday) to weekday_7 of their start, local time. `day_level` sources have no times
    of day: all hours are 0.
    """
    local = utc_to_local(time_zone, sessions.started_at)
    hour, weekday = local.hour(), local.day_of_week.index() + 1
    counted = {
        "with_page": sessions.page_view_count > 0,
        "bounced": sessions.bounced,
        "engaged": sessions.engaged & (sessions.page_view_count > 0),
        "converted": sessions.converted,
        "carts": sessions.cart_add_count > 0,
        "abandoned": sessions.cart_abandoned.fill_null(False),
        "with_support": sessions.support_count > 0,
        "session_count_28d": sessions.started_at >= ibis.literal(as_of) - ibis.interval(days=28),
    }
    if not day_level:
        counted |= {name: hour == number for number, name in enumerate(HOURS)}
    counted |= {name: weekday == number for number, name in enumerate(WEEKDAYS, start=1)}
    rows = sessions.mutate(**{f"is_{name}": is_counted for name, is_counted in counted.items()})
    activity = rows.group_by("user_id").agg(
        first_seen_at=rows.started_at.min(),
        last_seen_at=rows.ended_at.max(),
        session_count=rows.count(),
        duration_s=rows.duration_s.sum(),
        page_view_count=rows.page_view_count.sum().cast("int64"),
        **{name: rows.count(where=rows[f"is_{name}"]) for name in counted},
    )
    return activity.mutate(**dict.fromkeys(HOURS, ibis.literal(0, "int64"))) if day_level else activity
