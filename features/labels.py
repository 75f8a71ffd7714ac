"""LABELS: what users did after an instant, as far as that is known."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
from pydantic import Field

from features.events import PURCHASE, epoch_us
from features.history import count_before
from features.sources import Settings
from features.table import TIME, Table

LABELS = Table(
    name="labels",
    schema=ibis.schema(
        {
            "user_id": "!string",
            "as_of": TIME.copy(nullable=False),
            "churned": "boolean",
            "converted": "boolean",
        }
    ),
    key=("user_id", "as_of"),
    partition="as_of",
)

KEY = LABELS.key


class ChurnSettings(Settings):
    """Define churn: an eligible user has none of the events (none given: no event at all) in the horizon."""

    horizon_days: float = Field(default=28, gt=0)
    eligible_days: float | None = Field(default=28, gt=0)
    events: list[str] = Field(default_factory=list)


class ConversionSettings(Settings):
    """Define conversion: an eligible user has one of the events in the horizon."""

    horizon_days: float = Field(default=7, gt=0)
    eligible_days: float | None = Field(default=None, gt=0)
    events: list[str] = Field(default=[PURCHASE], min_length=1)


class LabelSettings(Settings):
    """Define the labels. A label's window is [as_of + delay, as_of + delay + horizon)."""

    delay_days: float = Field(default=0, ge=0)
    churn: ChurnSettings = ChurnSettings()
    conversion: ConversionSettings = ConversionSettings()

    @property
    def reach(self) -> timedelta:
        """Return how long after as_of the last label is complete."""
        return timedelta(days=self.delay_days + max(self.churn.horizon_days, self.conversion.horizon_days))


class SnapshotDates(NamedTuple):
    """Hold the instants of the snapshots to learn from, oldest first, to choose and calibrate by, and to test on."""

    train: tuple[datetime, ...]
    validation: datetime
    test: datetime

    @property
    def all(self) -> list[datetime]:
        """List all instants, oldest first."""
        return [*self.train, self.validation, self.test]


def snapshot_dates(
    as_of: datetime, first_event_at: datetime, reach: timedelta, every: timedelta, count: int
) -> SnapshotDates:
    """Choose past instants: all labels are complete at `as_of`, and those of each purpose before the next begins.

    The test is the latest instant whose labels are complete, the validation is one `reach` before it, and training ends
    one `reach` before that, so that no label of one overlaps another's; it goes back `count` times by `every`, though
    not to before the first event.
    """
    test = as_of - reach
    validation = test - reach
    train = tuple(validation - reach - number * every for number in reversed(range(count)))
    return SnapshotDates(tuple(instant for instant in train if instant > first_event_at), validation, test)


def label(snapshot: ir.Table, events: ir.Table, known_at: datetime, settings: LabelSettings) -> ir.Table:
    """Label the users of SNAPSHOTS with what they did after their as_of, by EVENTS known at `known_at`.

    A user with no event in the window is churned, always. Null: the user is not eligible. A label whose window ends
    after `known_at` does not exist: rows without any complete label are left out.
    """
    instant = ibis.literal(known_at, TIME)
    known = events.filter(events.occurred_at < instant, events.ingested_at <= instant)
    begin_us = _us(settings.delay_days)
    churn_end_us = begin_us + _us(settings.churn.horizon_days)
    conversion_end_us = begin_us + _us(settings.conversion.horizon_days)
    instants = sorted(snapshot.select("as_of").distinct().to_pyarrow()["as_of"].to_pylist())
    stayed = _acted(snapshot, instants, known, settings.churn.events, begin_us, churn_end_us)
    bought = _acted(snapshot, instants, known, settings.conversion.events, begin_us, conversion_end_us)
    labels = snapshot.select("user_id", "as_of", "recency_days", known_us=epoch_us(instant) - epoch_us(snapshot.as_of))
    labels = labels.left_join(stayed.mutate(stayed=True), KEY).drop("user_id_right", "as_of_right")
    labels = labels.left_join(bought.mutate(bought=True), KEY).drop("user_id_right", "as_of_right")
    is_churn_complete = labels.known_us >= churn_end_us
    is_conversion_complete = labels.known_us >= conversion_end_us
    is_churn_known = is_churn_complete & _is_eligible(labels, settings.churn.eligible_days)
    is_conversion_known = is_conversion_complete & _is_eligible(labels, settings.conversion.eligible_days)
    return LABELS.check(
        labels.mutate(
            churned=ibis.ifelse(is_churn_known, labels.stayed.isnull(), None),
            converted=ibis.ifelse(is_conversion_known, labels.bought.notnull(), None),
        ).filter(is_churn_complete | is_conversion_complete)
    )


def _acted(
    snapshot: ir.Table, instants: Sequence[datetime], events: ir.Table, names: list[str], begin_us: int, end_us: int
) -> ir.Table:
    """Return the (user_id, as_of) that have an event, of these names if any are given, in the window."""
    acts = events.filter(events.event_name.isin(names)) if names else events
    if instants:
        begin, end = (at + timedelta(microseconds=us) for at, us in ((instants[0], begin_us), (instants[-1], end_us)))
        acts = acts.filter(acts.occurred_at >= ibis.literal(begin, TIME), acts.occurred_at < ibis.literal(end, TIME))
    # Of a user's events between the beginnings of two windows, the first is in every window that any of them is in.
    begun = count_before(epoch_us(acts.occurred_at) - begin_us + 1, instants)
    firsts = acts.group_by("user_id", begun=begun).agg(occurred_at=acts.occurred_at.min())
    joined = snapshot.select(*KEY).join(firsts.drop("begun"), "user_id")
    after_us = epoch_us(joined.occurred_at) - epoch_us(joined.as_of)
    return joined.filter(after_us >= begin_us, after_us < end_us).select(*KEY).distinct()


def _is_eligible(labels: ir.Table, days: float | None) -> ir.BooleanValue:
    return ibis.literal(True) if days is None else labels.recency_days <= days


def _us(days: float) -> int:
    return timedelta(days=days) // timedelta(microseconds=1)
