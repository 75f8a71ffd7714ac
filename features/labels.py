"""LABELS: what users did after an instant, as far as that is known."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple

import ibis
import ibis.expr.types as ir
from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from features.events import PURCHASE, epoch_us
from features.history import count_before
from features.limits import DAYS_MAX, DAYS_MIN
from features.sessions import us
from features.sources import Settings
from features.table import TIME, Table

KEY = ("user_id", "as_of")
CHURN, CONVERSION = "churn", "conversion"
COLUMNS = {CHURN: "churned", CONVERSION: "converted"}
"""Of the labels that every configuration has. Another's column has the label's name."""

Since = Literal[
    "recency_days", "tenure_days", "cart_abandoned_recency_days", "support_recency_days", "purchase_recency_days"
]
"""The features that count days up to as_of."""


def column_of(name: str) -> str:
    """Return the column that holds a label."""
    return COLUMNS.get(name, name)


def labels_table(names: Iterable[str]) -> Table:
    """Return the contract for these labels, by name; churn and conversion are there always."""
    columns = [*COLUMNS.values(), *(name for name in names if name not in COLUMNS)]
    return Table(
        name="labels",
        schema=ibis.schema(
            {"user_id": "!string", "as_of": TIME.copy(nullable=False)} | dict.fromkeys(columns, "boolean")
        ),
        key=KEY,
        partition="as_of",
    )


LABELS = labels_table(())


@dataclass(frozen=True)
class Label:
    """Define a label: what is asked, of whom, and in which window: [as_of + delay, as_of + delay + horizon).

    Of kind churn: has the user none of the events (none given: no event at all) in the window? Of kind conversion: at
    least one of them? It is asked of users of whose snapshot the feature `eligible_by` is at most `eligible_days`, or,
    if that is None, of whom it is not null.
    """

    name: str
    kind: Literal["churn", "conversion"]
    delay_days: float
    horizon_days: float
    eligible_days: float | None
    eligible_by: Since
    events: tuple[str, ...]

    @property
    def column(self) -> str:
        """Return the column of LABELS."""
        return column_of(self.name)

    @property
    def delay(self) -> timedelta:
        """Return how long after as_of the window begins."""
        return timedelta(days=self.delay_days)

    @property
    def reach(self) -> timedelta:
        """Return how long after as_of the window ends and the label is complete."""
        return self.delay + timedelta(days=self.horizon_days)

    def is_eligible(self, users: Any) -> Any:
        """Tell of SNAPSHOTS, as a table or as a frame, which users the label is asked of; never null."""
        days = users[self.eligible_by]
        return days.notnull() if self.eligible_days is None else days.notnull() & (days <= self.eligible_days)


class ChurnSettings(Settings):
    """Define churn: an eligible user has none of the events (none given: no event at all) in the horizon."""

    kind: Literal["churn"] = "churn"
    delay_days: float | None = Field(default=None, ge=0, le=DAYS_MAX)
    horizon_days: float = Field(default=28, ge=DAYS_MIN, le=DAYS_MAX)
    eligible_days: float | None = Field(default=28, gt=0, le=DAYS_MAX)
    eligible_by: Since = "recency_days"
    events: list[str] = Field(default_factory=list)


class ConversionSettings(Settings):
    """Define conversion: an eligible user has one of the events in the horizon."""

    kind: Literal["conversion"] = "conversion"
    delay_days: float | None = Field(default=None, ge=0, le=DAYS_MAX)
    horizon_days: float = Field(default=7, ge=DAYS_MIN, le=DAYS_MAX)
    eligible_days: float | None = Field(default=None, gt=0, le=DAYS_MAX)
    eligible_by: Since = "recency_days"
    events: list[str] = Field(default=[PURCHASE], min_length=1)


def _tag(given: Any) -> str:
    kind = given.get("kind") if isinstance(given, dict) else getattr(given, "kind", None)
    return f"[{kind}]"  # bracketed, as everything in an error's location that is no key


LABEL_KIND = "label_kind"
"""The type of a validation error: a further section does not say which kind of label it defines."""
FurtherSettings = Annotated[
    Annotated[ChurnSettings, Tag("[churn]")] | Annotated[ConversionSettings, Tag("[conversion]")],
    Discriminator(_tag, LABEL_KIND, 'write kind = "churn" (none of the events) or "conversion" (at least one of them)'),
]


class LabelSettings(Settings):
    """Define the labels: churn, conversion, and any further section by its name, which says of which kind it is.

    `delay_days` is that of labels which have none of their own. `base_rate_jump_max` is by how much the share of true
    labels may differ between one snapshot and the next before the label is no longer trusted.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FurtherSettings] = Field(init=False)

    delay_days: float = Field(default=0, ge=0, le=DAYS_MAX)
    base_rate_jump_max: float = Field(default=0.75, gt=0, le=1)
    churn: ChurnSettings = ChurnSettings()
    conversion: ConversionSettings = ConversionSettings()

    @model_validator(mode="before")
    @classmethod
    def _names_are_names(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of a label: write small letters, digits and _, a letter first")
        return given

    @property
    def named(self) -> dict[str, Label]:
        """Return the labels by name: churn, conversion, then the others as they are given."""
        return {
            name: Label(
                name,
                section.kind,
                self.delay_days if section.delay_days is None else section.delay_days,
                section.horizon_days,
                section.eligible_days,
                section.eligible_by,
                tuple(section.events),
            )
            for name, section in {CHURN: self.churn, CONVERSION: self.conversion, **self.__pydantic_extra__}.items()
        }

    @property
    def reach(self) -> timedelta:
        """Return how long after as_of the last label is complete."""
        return max(label.reach for label in self.named.values())


Purpose = Literal["train", "validation", "test"]
"""What the rows of a snapshot are for."""


class SnapshotDates(NamedTuple):
    """Hold the instants of the snapshots to learn from, oldest first, to choose and calibrate by, and to test on."""

    train: tuple[datetime, ...]
    validation: datetime
    test: datetime

    @property
    def purposes(self) -> dict[datetime, Purpose]:
        """Say what each instant is for, oldest first."""
        return {**dict.fromkeys(self.train, "train"), self.validation: "validation", self.test: "test"}


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
    last = validation - reach
    reached = min(count, -((first_event_at - last) // every))
    return SnapshotDates(tuple(last - number * every for number in reversed(range(reached))), validation, test)


def label(snapshot: ir.Table, events: ir.Table, known_at: datetime, settings: LabelSettings) -> ir.Table:
    """Label the users of SNAPSHOTS with what they did after their as_of, by EVENTS known at `known_at`.

    A user with no event in the window is churned, always. Null: the user is not eligible. A label whose window ends
    after `known_at` does not exist: it is null, and rows without any complete label are left out.
    """
    named = settings.named
    instant = ibis.literal(known_at, TIME)
    known = events.filter(events.occurred_at < instant, events.ingested_at <= instant)
    instants = sorted(snapshot.select("as_of").distinct().to_pyarrow()["as_of"].to_pylist())
    since = dict.fromkeys(one.eligible_by for one in named.values())
    labels = snapshot.select(*KEY, *since, known_us=epoch_us(instant) - epoch_us(snapshot.as_of))
    for number, one in enumerate(named.values()):
        those = acted(snapshot, instants, known, one).mutate(**{f"acted_{number}": True})
        labels = labels.left_join(those, KEY).drop("user_id_right", "as_of_right")
    answers, complete = {}, []
    for number, one in enumerate(named.values()):
        acted_at_all = labels[f"acted_{number}"].notnull()
        complete.append(labels.known_us >= us(one.reach))
        answer = ~acted_at_all if one.kind == "churn" else acted_at_all
        answers[one.column] = ibis.ifelse(complete[-1] & one.is_eligible(labels), answer, None)
    # A label may have the name of any column that only this needs.
    return labels_table(named).check(labels.filter(ibis.or_(*complete)).select(*KEY, **answers))


def acted(snapshot: ir.Table, instants: Sequence[datetime], events: ir.Table, label: Label) -> ir.Table:
    """Return the (user_id, as_of) that have an event of the label's in its window."""
    begin_us, end_us = us(label.delay), us(label.reach)
    acts = events.filter(events.event_name.isin(label.events)) if label.events else events
    if instants:
        begin, end = instants[0] + label.delay, instants[-1] + label.reach
        acts = acts.filter(acts.occurred_at >= ibis.literal(begin, TIME), acts.occurred_at < ibis.literal(end, TIME))
    # Of a user's events between the beginnings of two windows, the first is in every window that any of them is in.
    begun = count_before(epoch_us(acts.occurred_at) - begin_us + 1, instants)
    firsts = acts.group_by("user_id", begun=begun).agg(occurred_at=acts.occurred_at.min())
    joined = snapshot.select(*KEY).join(firsts.drop("begun"), "user_id")
    after_us = epoch_us(joined.occurred_at) - epoch_us(joined.as_of)
    return joined.filter(after_us >= begin_us, after_us < end_us).select(*KEY).distinct()
