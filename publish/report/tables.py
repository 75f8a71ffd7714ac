"""A report as CSV tables, one for each kind of table, for spreadsheets and scripts."""

import csv
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from publish.formulas import escape
from publish.report.content import SUPPRESSED, Breakdown, Changes, Estimate, Rate, Report

ALL = ""
"""The segment_id of all users."""
INTERVAL = ("value", "low", "high")

Rows = Iterable[tuple[Any, ...]]


def write_tables(report: Report, folder: Path) -> dict[str, int]:
    """Write the tables of a report to a folder that is there, and return how many rows each file has.

    Null is an empty field; what is suppressed says so; no spreadsheet program runs a text as a formula. Files are UTF-8
    with newlines, and have a header.
    """
    counts = {}
    for name, (columns, rows) in _tables(report).items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            count = 0
            for row in rows:
                writer.writerow([escape(value) if isinstance(value, str) else _written(value) for value in row])
                count += 1
        counts[f"{name}.csv"] = count
    return counts


def _tables(report: Report) -> dict[str, tuple[tuple[str, ...], Rows]]:
    """Return columns and rows by name. Rows without a segment_id are of all users."""
    segments = report.segments
    whole = report.overview
    return {
        "overview": (("what", "value"), _overview(report)),
        "segments": (
            ("segment_id", "name", "kind", "description", "users", "share", "active_7d", "active_28d", "stability"),
            (
                (
                    one.segment_id,
                    one.name,
                    one.kind,
                    one.description,
                    one.users,
                    _value(one.share),
                    one.active_7d,
                    one.active_28d,
                    one.stability,
                )
                for one in segments
            ),
        ),
        "trend": (
            ("segment_id", "version", "as_of", "users", "share"),
            (
                (name, point.version, point.as_of, point.users, _value(point.share))
                for name, trend in ((ALL, whole.trend), *((one.segment_id, one.trend) for one in segments))
                for point in trend
            ),
        ),
        "typical": (
            (
                "segment_id",
                "feature",
                "category",
                "statistic",
                "value",
                "low",
                "high",
                "others",
                "others_low",
                "others_high",
                "difference",
                "q",
                "words",
            ),
            (
                (
                    one.segment_id,
                    told.feature,
                    told.category,
                    told.statistic,
                    *_interval(told.here),
                    *_interval(told.others),
                    told.difference,
                    told.q,
                    told.words,
                )
                for one in segments
                for told in one.typical
            ),
        ),
        "metrics": (
            ("segment_id", "metric", "unit", *INTERVAL),
            (
                (name, metric.name, metric.unit, *_interval(metric.here))
                for name, metrics in ((ALL, whole.metrics), *((one.segment_id, one.metrics) for one in segments))
                for metric in metrics
            ),
        ),
        "breakdowns": (
            ("segment_id", "breakdown", "counted", "value", "label", "count", "share", "low", "high", "share_of_all"),
            _breakdowns([(ALL, whole.breakdowns), *((one.segment_id, one.breakdowns) for one in segments)]),
        ),
        "probabilities": (
            ("segment_id", "label", "from", "until", "users"),
            (
                (one.segment_id, of.label, of.edges[i], of.edges[i + 1], count)
                for one in segments
                for of in one.propensities
                for i, count in enumerate(of.histogram)
            ),
        ),
        "changes": (
            ("segment_id", "since_version", "reason", "entered", "left"),
            _changes([(ALL, whole.changes), *((one.segment_id, one.changes) for one in segments)]),
        ),
        "top_users": (
            ("segment_id", "user_id", "user_number", "session_count_28d", "last_seen_at"),
            (
                (one.segment_id, user.user_id, user.user_number, user.session_count_28d, user.last_seen_at)
                for one in segments
                for user in one.top_users
            ),
        ),
        "rules": (
            ("segment_id", "rule", "words", "precision", "recall", "coverage", "sample_size"),
            (
                (
                    one.segment_id,
                    one.rule.text,
                    one.rule.words,
                    one.rule.precision,
                    one.rule.recall,
                    one.rule.coverage,
                    one.rule.sample_size,
                )
                for one in segments
                if one.rule
            ),
        ),
        "features": (
            ("feature", "segment_id", "median", "mean", "known"),
            (
                (feature.name, name, compared.median, compared.mean, compared.known)
                for feature in report.comparison.features
                for name, compared in ((ALL, feature.everyone), *feature.segments.items())
            ),
        ),
        "overlap": (
            ("segment_id", "discovered_segment_id", "users"),
            (
                (one.segment_id, other, count)
                for one in report.comparison.overlap
                for other, count in one.discovered.items()
            ),
        ),
        "models": (("label", "what", *INTERVAL), _models(report)),
        "calibration": (
            ("label", "predicted", "happened", "low", "high", "users"),
            (
                (model.label, one.predicted, *_interval(one.happened), one.users)
                for model in report.models
                for one in model.calibration
            ),
        ),
        "drivers": (
            ("label", "feature", "share"),
            ((model.label, one.feature, one.share) for model in report.models for one in model.drivers),
        ),
    }


def _overview(report: Report) -> Iterator[tuple[Any, ...]]:
    whole = report.overview
    yield from (("source", report.source), ("version", report.version), ("as_of", report.as_of))
    for name in ("users", "sessions", "active_7d", "active_28d", "new_28d", "returning_28d", "lost_28d"):
        yield name, getattr(whole, name)
    yield from ((f"rejected_rows: {reason}", count) for reason, count in whole.rejected_rows.items())
    yield from ((f"lifecycle: {bar.value}", bar.count) for bar in whole.lifecycle)
    yield from ((f"model: {kind}", number) for kind, number in report.model_versions.items())
    yield from (("withheld", note) for note in report.withheld)


def _breakdowns(of: Iterable[tuple[str, list[Breakdown]]]) -> Iterator[tuple[Any, ...]]:
    for name, breakdowns in of:
        for one in breakdowns:
            for bar in one.bars:
                yield (
                    *(name, one.name, one.counted, bar.value, bar.label, bar.count),
                    *_interval(bar.share),
                    _value(bar.share_of_all),
                )


def _changes(of: Iterable[tuple[str, Changes | None]]) -> Iterator[tuple[Any, ...]]:
    for name, changes in of:
        if changes:
            yield name, changes.version, ALL, changes.entered, changes.left
            yield from ((name, changes.version, one.reason, one.entered, one.left) for one in changes.reasons)


def _models(report: Report) -> Iterator[tuple[Any, ...]]:
    for model in report.models:
        yield model.label, "base_rate", *_interval(model.base_rate)
        yield from ((model.label, name, *_interval(one)) for name, one in model.metrics.items() if name != "base_rate")
        yield from ((model.label, f"gain over {one.rival}", *_interval(one.gain)) for one in model.gains)


def _interval(given: Estimate | Rate) -> tuple[Any, Any, Any]:
    if isinstance(given, Estimate):
        return given.value, given.low, given.high
    return (given, given, given) if given == SUPPRESSED else (None, None, None)


def _value(given: Rate) -> Any:
    return _interval(given)[0]


def _written(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
