"""Audit: does a feature know the future, tell a label suspiciously well alone, or name it? Nothing is stored."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import ibis.expr.types as ir
import numpy as np
import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from features.attributes import ATTRIBUTES
from features.discretion import HIDDEN
from features.events import EVENTS
from features.increments import is_current
from features.labels import labels_table
from features.lake import Lake
from features.sessions import SESSIONS
from features.snapshots import take_snapshot
from features.table import ContractError, materialize
from features.time_travel import (
    Changed,
    ExtraFeature,
    Journey,
    Take,
    count_changed,
    forgetting,
    sample_users,
    travel,
    with_features,
)
from features.zones import day_of, write_instant
from flows.configuration import Configuration, ConfigurationError
from flows.instant import resolve_as_of
from flows.snapshot import past_dates, stored_labels, stored_snapshots, table_of
from models import leaks
from models.leaks import Alone, Naming

logger = logging.getLogger("habitus")

USERS, INSTANTS = 1_000, 4
USERS_IN_TRAINING, INSTANTS_IN_TRAINING = 300, 1
ROWS = 100_000
"""Labelled rows to measure by: as many as take a second or two for each label."""


@dataclass(frozen=True)
class Audited:
    """Hold what was found, first in sentences that say what to do (none: nothing), and what was looked at.

    `users` were sampled of `user_count`; `best` is, for each label, what tells it best alone; `notes` say what could
    not be looked at.
    """

    as_of: datetime
    time_zone: str
    findings: list[str]
    changed: list[Changed]
    too_good: list[Alone]
    naming: list[Naming]
    users: int
    user_count: int
    instants: list[datetime]
    features: list[str]
    events_after: int
    events_made_up: int
    labels: list[str]
    labelled_rows: int
    best: list[Alone]
    notes: list[str]


@dataclass(frozen=True)
class Sample:
    """Hold EVENTS and SESSIONS of some users, and how many users there are in all."""

    events: ir.Table
    sessions: ir.Table
    users: int
    user_count: int


def audit(configuration: Configuration, as_of: datetime | None, extra: Sequence[ExtraFeature] = ()) -> Audited:
    """Look for leaks in the features of a configuration, and in `extra` ones by time travel, as far as takes a minute.

    Raises ConfigurationError where sessions or past snapshots are missing, or not those of the events.
    """
    try:
        with configuration.open_lake() as lake:
            as_of = resolve_as_of(as_of, configuration, lake)
            sample = _sample(configuration, lake, USERS)
            past = _past_instants(configuration, lake, as_of)
            if past:
                logger.debug("audit: comparing the snapshot of %s", write_instant(past[-1], configuration.time_zone))
                _check_stored(configuration, lake, sample, past[-1])
            found = _find(configuration, lake, as_of, sample, INSTANTS, extra)
    except ContractError as error:
        raise ConfigurationError(str(error)) from error
    logger.info("audit: %s", f"{len(found.findings)} found" if found.findings else "nothing found")
    return found


def find_leaks(
    configuration: Configuration, lake: Lake, as_of: datetime, extra: Sequence[ExtraFeature] = ()
) -> Audited:
    """Look for leaks as `audit` does, but with few users and at the latest of the past instants only: in seconds."""
    with forgetting(lake.engine):
        sample = _sample(configuration, lake, USERS_IN_TRAINING)
        return _find(configuration, lake, as_of, sample, INSTANTS_IN_TRAINING, extra)


def _find(
    configuration: Configuration,
    lake: Lake,
    as_of: datetime,
    sample: Sample,
    instants: int,
    extra: Sequence[ExtraFeature],
) -> Audited:
    past = _past_instants(configuration, lake, as_of)
    chosen = [past[place] for place in np.linspace(len(past) - 1, 0, min(instants, len(past)), dtype=int)[::-1]]
    chosen = chosen or [as_of]
    labels = [label.column for label in configuration.labels.named.values()]
    frame = _read_labelled(configuration, lake, past, labels)
    take = with_features(taker(configuration, lake), *extra)
    journeys = []
    for number, instant in enumerate(chosen, start=1):
        said = write_instant(instant, configuration.time_zone)
        logger.debug("audit: travelling to %s, %s of %s", said, number, len(chosen))
        gap, day_level = configuration.sessions.gap, configuration.events.is_by_day
        journeys.append(travel(take, sample.events, sample.sessions, instant, gap, day_level))
    logger.debug("audit: looking at each feature alone")
    measured = leaks.measure_alone(frame, labels)
    too_good, naming = leaks.too_good(measured), leaks.find_naming(frame, labels)
    naming = [replace(one, value=HIDDEN) if one.feature in configuration.personal else one for one in naming]
    changed = [change for journey in journeys for change in journey.changed]
    best = {alone.label: alone for alone in reversed(measured)}
    return Audited(
        as_of=as_of,
        time_zone=configuration.time_zone,
        findings=[
            *_explain_changed(changed, {journey.as_of: journey.users for journey in journeys}, configuration.time_zone),
            *map(_explain_too_good, too_good),
            *map(_explain_naming, naming),
        ],
        changed=changed,
        too_good=too_good,
        naming=naming,
        users=sample.users,
        user_count=sample.user_count,
        instants=chosen,
        features=list(journeys[-1].features),
        events_after=sum(journey.events_after for journey in journeys),
        events_made_up=sum(journey.events_made_up for journey in journeys),
        labels=labels,
        labelled_rows=len(frame),
        best=[best[label] for label in labels if label in best],
        notes=_notes(configuration, past, frame, labels, journeys),
    )


def taker(configuration: Configuration, lake: Lake) -> Take:
    """Return what takes a snapshot as a configuration says."""
    attributes = lake.read(ATTRIBUTES)

    def take(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
        return take_snapshot(
            events,
            sessions,
            attributes,
            as_of,
            **configuration.snapshot_definitions,
        )

    return take


def show(found: Audited, console: Console) -> None:
    """Print what was found and what to do, and what was looked at."""
    console.print(Text(f"Audit as of {write_instant(found.as_of, found.time_zone)}", style="bold underline"))
    console.print()
    if found.findings:
        table = Table(box=None, padding=(0, 2), show_edge=False, show_header=False)
        table.add_column(justify="right", style="bold red")
        table.add_column(overflow="fold")
        for number, finding in enumerate(found.findings, start=1):
            table.add_row(str(number), Text(finding))
        console.print(table)
    else:
        console.print(Padding("Nothing found.", (0, 0, 0, 2)), style="bold green")
    console.print()
    for line in _looked_at(found):
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    for note in found.notes:
        console.print(Padding(Text(note), (0, 0, 0, 2)), style="yellow")
    console.print(Padding("Nothing was stored.", (0, 0, 0, 2)))


def _looked_at(found: Audited) -> Iterable[str]:
    """Say what was looked at."""
    days = (day_of(instant, found.time_zone) for instant in (found.instants[0], found.instants[-1]))
    span = " to ".join(dict.fromkeys(map(str, days)))
    sample = f"all {found.users:,}" if found.users == found.user_count else f"{found.users:,} of {found.user_count:,}"
    count = len(found.instants)
    yield (
        f"Time travel: {count} snapshot{'s' if count > 1 else ''} ({span}) of {sample} users, "
        f"{len(found.features)} features; {found.events_after:,} later events cut, moved and shuffled, "
        f"{found.events_made_up:,} made up."
    )
    if found.labelled_rows:
        yield f"Labels: {', '.join(found.labels)}, in {found.labelled_rows:,} rows of past snapshots."
    for best in found.best:
        yield (
            f"Best alone for {best.label}: {best.feature}, AUC {best.auc:.3f} ({best.low:.3f} to {best.high:.3f}); "
            f"suspicious above {leaks.ALONE_MAX}."
        )


def _explain_changed(changed: Sequence[Changed], users: dict[datetime, int], time_zone: str) -> Iterable[str]:
    """Say which features know the future: once each, by the instant at which most users have another value."""
    of_feature = defaultdict(list)
    for change in changed:
        of_feature[change.feature].append(change)
    for feature, changes in of_feature.items():
        most = max(changes, key=lambda change: change.users)
        how = ", ".join(dict.fromkeys(change.change for change in changes))
        what = "who is in the snapshot depends on" if feature == "user_id" else f"{feature} knows"
        yield (
            f"{what} the future: for {most.users:,} of {users[most.as_of]:,} users it is another at "
            f"{write_instant(most.as_of, time_zone)} when events that were not known then are others ({how}). "
            "Use events with occurred_at < as_of and ingested_at <= as_of only."
        )


def _explain_too_good(alone: Alone) -> str:
    return (
        f"{alone.feature} alone tells {alone.label} with an AUC of {alone.auc:.3f} ({alone.low:.3f} to "
        f"{alone.high:.3f}). Leave it out if it is written after the fact; if it is honest, the label asks what is "
        "known already, as of users who left long ago: set eligible_days."
    )


def _explain_naming(naming: Naming) -> str:
    outcome = naming.label if naming.outcome else f"not {naming.label}"
    return (
        f"{naming.feature} = {naming.value} names {naming.label}: {_percent(naming.share)} of the rows of its "
        f"{naming.users:,} users are {outcome}, and {_percent(naming.share_of_others)} of the others. "
        f"Leave {naming.feature} out if it is written after the fact."
    )


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _notes(
    configuration: Configuration,
    past: Sequence[datetime],
    frame: pd.DataFrame,
    labels: Sequence[str],
    journeys: Sequence[Journey],
) -> list[str]:
    """Say what could not be looked at, and why."""
    if not past:
        return [
            "No labels were looked at: the history is too short for a past snapshot with labels that are complete "
            f"({configuration.labels.reach.days} days)."
        ]
    notes = [f"Not to be told by any feature: {reason}." for reason in leaks.unmeasured(frame, labels)]
    features = [name for name in frame.columns if name not in (*leaks.KEY, *labels)]
    empty = [name for name in features if frame[name].isna().all()]
    same = [name for name in features if name not in empty and frame[name].nunique(dropna=False) == 1]
    notes += [f"Null in every row: {', '.join(empty)}."] if empty else []
    notes += [f"The same in every row: {', '.join(same)}."] if same else []
    nobody = [journey.as_of for journey in journeys if not journey.users]
    return notes + [
        f"No user of the sample was there before {day_of(instant, configuration.time_zone)}." for instant in nobody
    ]


def _past_instants(configuration: Configuration, lake: Lake, as_of: datetime) -> list[datetime]:
    """List the instants of the past snapshots that training learns from and tests on, oldest first."""
    dates = past_dates(configuration, lake, as_of)
    return [] if dates is None else list(dates.purposes)


def _sample(configuration: Configuration, lake: Lake, count: int) -> Sample:
    """Choose so many users. Raises ConfigurationError where sessions are not up to date."""
    if not is_current(lake, configuration.sessions.gap, configuration.events.is_by_day):
        raise ConfigurationError(f"sessions are not up to date: run `habitus sessions {configuration.file}` first")
    sessions = lake.read(SESSIONS)
    user_count = int(sessions.user_id.nunique().to_pyarrow().as_py())
    logger.debug("audit: reading %s of %s users", f"{min(count, user_count):,}", f"{user_count:,}")
    users = materialize(sample_users(sessions, count, configuration.training.seed))
    events, sessions = (materialize(lake.read(table).semi_join(users, "user_id")) for table in (EVENTS, SESSIONS))
    return Sample(events, sessions, min(count, user_count), user_count)


def _read_labelled(
    configuration: Configuration, lake: Lake, instants: Sequence[datetime], labels: Sequence[str]
) -> pd.DataFrame:
    """Read past snapshots with their labels: of very many rows a sample, by a hash of the key.

    Raises ConfigurationError where a snapshot is not there.
    """
    table, labelled = table_of(configuration), labels_table(configuration.labels.named)
    stored = lake.partitions(table).keys() & lake.partitions(labelled).keys()
    missing = [instant for instant in instants if instant not in stored]
    if missing:
        raise ConfigurationError(
            f"no snapshot with labels at {write_instant(missing[-1], configuration.time_zone)}: "
            f"run `habitus snapshot {configuration.file}` first"
        )
    snapshots, known = (read(lake, configuration, instants) for read in (stored_snapshots, stored_labels))
    rows = snapshots.join(known.select(*leaks.KEY, *labels), leaks.KEY)
    if sum(lake.partitions(labelled)[instant] for instant in instants) > ROWS:
        place = (rows.user_id + rows.as_of.cast("string")).hexdigest("md5")
        rows = rows.mutate(place=place).order_by("place").limit(ROWS).drop("place")
    frame: pd.DataFrame = rows.to_pandas()
    return frame.sort_values(leaks.KEY, ignore_index=True)


def _check_stored(configuration: Configuration, lake: Lake, sample: Sample, instant: datetime) -> None:
    """Raise ConfigurationError where a stored snapshot is not that of the events and settings of now."""
    if instant not in lake.partitions(table_of(configuration)):
        return  # what is missing is said where it is read
    stored = stored_snapshots(lake, configuration, [instant])
    stored = stored.semi_join(sample.sessions.select("user_id").distinct(), "user_id")
    taken = taker(configuration, lake)(sample.events, sample.sessions, instant)
    if count_changed(materialize(stored), materialize(taken)):
        raise ConfigurationError(
            f"the snapshot at {write_instant(instant, configuration.time_zone)} is not that of the events and settings "
            f"of now: run `habitus snapshot {configuration.file}` first"
        )
