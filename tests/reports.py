"""Reports as large as wanted, and the users on their lists."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from publish.report.content import (
    Bar,
    Breakdown,
    Change,
    Changes,
    Compared,
    ComparedFeature,
    Comparison,
    Difference,
    Estimate,
    Overlap,
    Report,
    Segment,
    TrendPoint,
)

EXAMPLE = Path(__file__).parent / "data" / "report" / "report.json"
AS_OF = datetime(2024, 6, 29, tzinfo=UTC)
NAMES = (
    "Frequent visitors", "One-time visitors", "Cart abandoners on mobile", "Long-standing support seekers",
    "Occasional buyers", "Searchers without a purchase", "Bargain hunters at the weekend", "New visitors",
    "Readers of reviews", "Lapsed frequent buyers", "Recent buyers on desktop", "Evening visitors",
)  # fmt: skip
VALUES = {
    "device": ("mobile", "desktop", "tablet"),
    "source": ("organic", "paid_search", "newsletter", "direct", "social"),
    "country": ("DE", "FR", "GB", "US", "NL", "AT"),
    "hour": tuple(map(str, range(24))),
    "weekday": tuple(map(str, range(1, 8))),
    "age_band": ("18 to 24", "25 to 34", "35 to 44", "45 to 54", "55 and over"),
}
FEATURES = (
    ("session_count", "sessions"), ("recency_days", "days since the last session"),
    ("bounce_rate", "share of sessions that bounced"), ("duration_median_s", "median length of a session"),
    ("cart_abandonment_rate", "share of carts that were abandoned"), ("revenue_total", "revenue"),
    ("search_count", "searches"), ("support_visit_count_90d", "support visits in the last 90 days"),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a page needs to know."""

    personal: Sequence[str] = ()
    user_lists: bool = True


def example() -> Report:
    """Return the report of the contract's example."""
    return Report.model_validate_json(EXAMPLE.read_text())


def large(user_count: int = 100_000, segment_count: int = 12, seed: int = 0) -> Report:
    """Return a report with so many discovered segments, and two named ones."""
    random = np.random.default_rng(seed)
    model = example()
    sizes = np.sort(random.dirichlet(np.full(segment_count, 2.0)))[::-1]
    counts = np.floor(sizes * user_count).astype(int)
    counts[0] += user_count - counts.sum()
    discovered = [
        _segment(model.segments[0], f"S{at + 1:02d}", NAMES[at % len(NAMES)], int(count), user_count, random)
        for at, count in enumerate(counts)
    ]
    named = [
        _segment(model.segments[3], name, title, user_count // part, user_count, random)
        for name, title, part in (("frequent_buyers", "Frequent buyers", 5), ("won_back", "Won back", 20))
    ]
    segments = [*discovered, *named]
    overview = model.overview.model_copy(
        update={
            "users": user_count,
            "sessions": 7 * user_count,
            "breakdowns": [_breakdown(name, user_count, random) for name in VALUES],
            "trend": _trend(user_count, user_count),
            "changes": _changes(user_count, random),
        }
    )
    comparison = Comparison(
        features=[
            ComparedFeature(
                name=name,
                title=title,
                everyone=_compared(name, random),
                segments={one.segment_id: _compared(name, random) for one in segments},
            )
            for name, title in FEATURES
        ],
        overlap=[
            Overlap(
                segment_id=one.segment_id,
                users=one.users,
                discovered={other.segment_id: int(other.users) // 9 for other in discovered},
            )
            for one in named
        ],
    )
    update = {"overview": overview, "segments": segments, "comparison": comparison, "users_listed": user_count}
    return Report.model_validate(model.model_copy(update=update).model_dump())


def listed(report: Report, seed: int = 0, ids: Sequence[str] | None = None) -> pa.Table:
    """Return users.parquet of a report: as many users as it lists, of its segments; with ids such as UUIDs."""
    random = np.random.default_rng(seed)
    n = report.users_listed if ids is None else len(ids)
    if ids is None:
        ids = [str(uuid.UUID(bytes=random.bytes(16))) for _ in range(n)]
    discovered = [one for one in report.segments if one.kind == "discovered"]
    names = {one.segment_id: one.name for one in discovered}
    of = random.choice([one.segment_id for one in discovered], n)
    rules = [["frequent_buyers", "won_back"][: int(draw < 0.3) + int(draw < 0.1)] for draw in random.random(n)]
    reasons = [["few sessions", "long since the last session"], ["no purchase yet"], []]
    columns: dict[str, Any] = {
        "user_id": sorted(ids),
        "user_number": random.permutation(n) + 1,
        "segment_id": of,
        "segment_name": [names[one] for one in of],
        "segment_strength": random.random(n),
        "runner_up_segment_id": random.choice(sorted(names), n),
        "rule_segments": rules,
        "lifecycle_stage": random.choice(["active", "cooling", "dormant", "new"], n),
    }
    for label in ("churn", "conversion"):
        asked = random.random(n) < 0.7
        columns[f"{label}_probability"] = pa.array(random.beta(2, 5, n), mask=~asked)
        columns[f"{label}_percentile"] = pa.array(random.random(n) * 100, mask=~asked)
        columns[f"{label}_reasons"] = [reasons[at] for at in random.integers(0, 3, n)]
    us = int(AS_OF.timestamp()) * 10**6 - random.integers(1, 90 * 86_400 * 10**6, n)
    columns |= {
        "last_seen_at": pa.array(us, pa.timestamp("us", "UTC")),
        "session_count": random.poisson(7, n),
        "session_count_28d": random.poisson(2, n),
        "attribute_age_band": random.choice(VALUES["age_band"], n),
        "attribute_region": random.choice(["North", "South"], n),
    }
    return pa.table(columns)


def _segment(
    model: Segment, segment_id: str, name: str, users: int, everyone: int, random: np.random.Generator
) -> Segment:
    differences = [
        Difference(
            feature=feature, category=None, title=title, statistic="median", here=Estimate(value=4),
            others=Estimate(value=2), here_text="4", others_text="2", difference=round(float(random.normal(0, 1)), 2),
            q=0.001, words=f"{title}: 4 (everyone else: 2)", clause="",
        )
        for feature, title in FEATURES[:5]
    ]  # fmt: skip
    update = {
        "segment_id": segment_id,
        "name": name,
        "users": users,
        "share": _estimate(users / everyone),
        "active_7d": users // 4,
        "active_28d": users // 2,
        "trend": _trend(users, everyone),
        "typical": differences,
        "breakdowns": [_breakdown(name, users, random) for name in VALUES],
        "changes": _changes(users, random),
        "top_users": [one.model_copy(update={"user_id": f"user-{at}"}) for at, one in enumerate(model.top_users * 4)],
    }
    return model.model_copy(update=update)


def _estimate(share: float) -> Estimate:
    return Estimate(value=share, low=max(0.0, share - 0.01), high=min(1.0, share + 0.01))


def _breakdown(name: str, users: int, random: np.random.Generator) -> Breakdown:
    values = VALUES[name]
    here, everywhere = random.dirichlet(np.full(len(values), 3.0)), random.dirichlet(np.full(len(values), 6.0))
    if name not in ("hour", "weekday", "age_band"):
        here = np.sort(here)[::-1]
    bars = [
        Bar(value=value, label=value, count=int(users * share), share=_estimate(float(share)),
            share_of_all=_estimate(float(other)))
        for value, share, other in zip(values, here, everywhere, strict=True)
    ]  # fmt: skip
    counted = "sessions" if name in ("hour", "weekday") else "users"
    return Breakdown.model_validate(
        {"name": name, "title": name.replace("_", " "), "counted": counted, "personal": False, "bars": bars}
    )


def _trend(users: int, everyone: int) -> list[TrendPoint]:
    weeks = 10
    return [
        TrendPoint(version=week + 1, as_of=AS_OF - timedelta(weeks=weeks - week - 1), users=round(users * part),
                   share=_estimate(users / everyone * (part if users < everyone else 1)))
        for week in range(weeks)
        for part in [1 - 0.02 * (weeks - week - 1)]
    ]  # fmt: skip


def _changes(users: int, random: np.random.Generator) -> Changes:
    reasons = (
        ("behaviour", "the user behaved otherwise"),
        ("new_user", "the user was not there before"),
        ("retraining", "the segments were learnt anew"),
    )
    moves = [
        Change(reason=reason, words=words, entered=int(users * random.random() / 20),
               left=0 if reason == "new_user" else int(users * random.random() / 20))
        for reason, words in reasons
    ]  # fmt: skip
    entered, left = sum(int(one.entered) for one in moves), sum(int(one.left) for one in moves)
    return Changes(version=9, as_of=AS_OF - timedelta(weeks=1), entered=entered, left=left, reasons=moves)


def _compared(name: str, random: np.random.Generator) -> Compared:
    scale = 1.0 if name.endswith("_rate") else 200.0 if name.endswith("_s") else 20.0
    value = float(random.random()) * scale
    return Compared(median=value, mean=min(value * 1.2, scale), known=float(random.uniform(0.5, 1)))
