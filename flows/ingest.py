"""Ingest: the files that are not known yet become EVENTS and REJECTED; users become ATTRIBUTES."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from prefect import task

from features.attributes import ATTRIBUTES, describe_users
from features.discretion import form_of
from features.erasures import Erased, find_erased
from features.event_names import EventNames, count_names, list_names
from features.event_names import hints as name_hints
from features.events import (
    DUPLICATE_ID,
    DUPLICATE_LINE,
    EVENTS,
    FUTURE,
    OUT_OF_RANGE,
    REASONS,
    REJECTED,
    Reconciled,
    accept,
    events_in,
    reconcile,
    reject_events,
)
from features.files import FILES, ID_RULE, content_of, count_rows, fingerprint
from features.lake import Lake
from features.limits import END_OF_INSTANTS, FIRST_INSTANT
from features.lines import contest, find_repeated
from features.odd_times import hints as time_hints
from features.placeholders import count_placeholders, without_placeholders
from features.placeholders import in_words as placeholders_in_words
from features.places import place_of
from features.sources import (
    Raw,
    SourceError,
    UnreadableError,
    check_is_file,
    find_failing,
    find_files,
    find_unreadable,
    forget_files,
    listed,
    name_of,
    read_files,
    read_users,
    reason_of,
    row_text,
    why_of,
)
from features.table import TIME, materialize, stack
from features.unusable import refuse_unusable
from features.user_match import UsersFound, match_users
from features.user_match import hints as user_hints
from features.user_match import in_words as users_in_words
from features.values import as_instant, as_text, is_beyond_instants, is_no_day
from features.zones import write_instant
from flows.configuration import Configuration, load
from flows.instant import scheduled_start
from flows.stage import stage
from flows.world import TOUCHES_THE_WORLD, discreet

logger = logging.getLogger("habitus")

File = dict[str, Any]
"""A row of FILES."""
PLACES_MAX = 3
"""Rows that an error names, by file and line."""
BAD_TIMES = {
    "unparseable_time": "a time that can be read",
    OUT_OF_RANGE: f"a time from {FIRST_INSTANT.year} to {END_OF_INSTANTS.year - 1}",
}
"""What no row has where all are rejected for their times."""


@dataclass(frozen=True)
class Batch:
    """Count what became of the rows of new files: accepted, rejected by reason, and known add up to read and due.

    Known are rows that the same file gave before; due are events that were held back as in the future before, and are
    no longer. `merged` duplicates are of another user than the event whose id they have. `placeholders` counts rows
    whose user is none by what they say, and `names` the accepted events by name. An accepted event is late if it is
    older than the watermark, the latest event before this run: null where there was none, or none was accepted.
    """

    files: int = 0
    read: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    known: int = 0
    due: int = 0
    merged: int = 0
    placeholders: dict[str, int] = field(default_factory=dict)
    names: EventNames = field(default_factory=EventNames)
    watermark: datetime | None = None
    late_share: float | None = None
    late_by_max_s: float | None = None


@dataclass(frozen=True)
class Ingested:
    """Count what the tables hold: accepted, and rejected by reason, add up to read. `batch` is what this run added.

    `users` tells which users of the users' file have events; None without such a file. `hints` say what is probably
    meant otherwise than it was read, and what to write.
    """

    known_files: int
    read: int
    accepted: int
    rejected: dict[str, int]
    watermark: datetime
    batch: Batch
    users: UsersFound | None
    hints: list[str]
    changed: bool


@dataclass(frozen=True)
class _Judged:
    """Hold files by their content, what became of their rows, the columns that each has, and users that are none.

    `due` are events that earlier runs held back, which are judged with the files' rows.
    """

    files: dict[str, Path]
    events: ir.Table
    rejected: ir.Table
    columns: dict[Path, dict[str, str]]
    retyped: bool
    due: ir.Table | None
    placeholders: dict[str, int]


@dataclass(frozen=True)
class _Described:
    """Hold what the users' file says: ATTRIBUTES, the users (user_id, each once), and rows whose user is none."""

    attributes: ir.Table
    users: ir.Table
    placeholders: dict[str, int]


@stage()
def ingest(config: str, rebuild: bool = False) -> Ingested:
    """Accept or reject every row of the files that are not known yet; to rebuild, of all files."""
    now = scheduled_start() or datetime.now(UTC)
    logger.debug("reading %s", Path(config).name)
    ingested = accept_files(config, now, rebuild)
    batch = ingested.batch
    known = f"{ingested.known_files:,} file{'' if ingested.known_files == 1 else 's'} known"
    logger.info("ingest: %s, %s new%s", known, f"{batch.files:,}", _rows_in_words(batch))
    for line in _rejected_in_words(batch):
        logger.info("  rejected %s", line)
    if batch.merged:
        are = "duplicate is" if batch.merged == 1 else "duplicates are"
        logger.warning("  %s %s of another user than the event with that id", f"{batch.merged:,}", are)
    for line in [*list_names(batch.names), *(users_in_words(ingested.users) if ingested.users else ())]:
        logger.info("  %s", line)
    for line in ingested.hints:
        logger.warning("  %s", line)
    watermark = write_instant(ingested.watermark, load(config).time_zone)
    logger.info("  %swatermark %s", _lateness_in_words(batch), watermark)
    return ingested


@task(**TOUCHES_THE_WORLD)
@discreet
def accept_files(config: str, now: datetime, rebuild: bool) -> Ingested:
    """Read, judge and store the rows of new files; nothing is stored if any of it goes wrong."""
    configuration = load(config)
    # Source files are read with DuckDB, whatever works on the tables.
    with configuration.open_lake("duckdb") as lake:
        known: list[File] = lake.read(FILES).to_pyarrow().to_pylist()
        known_paths = [] if rebuild else [file["path"] for file in known]
        paths = find_files(configuration.events.files, configuration.folder, known_paths)
        stamps = {path: _stamp(path) for path in paths}
        contents = _contents_of(configuration, paths)
        anew = rebuild or _is_outdated(lake, configuration, known)
        if anew and not rebuild:
            _refuse_to_lose(lake, configuration, known, contents)
        known_contents = set() if anew else {file["content"] for file in known}
        # Of files with the same content, the first.
        new = {content: path for path, content in reversed(contents.items()) if content not in known_contents}
        erased = find_erased(lake)
        withdrawn = _withdraw_out_of_range(lake)
        judged = _judge(lake, configuration, new, now, [] if anew else known, erased)
        if judged and judged.retyped and not anew:  # expressions give other values now for rows of before, too
            anew = True
            _refuse_to_lose(lake, configuration, known, contents)
            new = {content: path for path, content in reversed(contents.items())}
            judged = _judge(lake, configuration, new, now, [], erased)
        forget_files(lake.engine)
        _refuse_changed(stamps, judged)
        described = _describe_users(lake, configuration)
        users = _match_users(lake, described, judged, anew, erased) if described is not None else None
        batch, changed = Batch(), False
        if judged and anew:
            batch, changed = _replace(lake, configuration, judged, known)
        elif judged:
            batch, changed = _add(lake, configuration, judged, known)
        changed |= withdrawn
        if described is not None:
            attributes = described.attributes
            if erased is not None:
                attributes = _without_erased(lake, attributes, erased)
            changed |= lake.write(ATTRIBUTES, attributes)
        elif lake.has(ATTRIBUTES):  # what was read before, contacts among it, is not to stay
            changed |= lake.write(ATTRIBUTES, lake.read(ATTRIBUTES).limit(0))
        rejected = _count_by_reason(lake.read(REJECTED))
        accepted = lake.row_count(EVENTS)
        total = accepted + sum(rejected.values())
        hints = [
            *(time_hints(judged.events, now) if judged else ()),
            *name_hints(batch.names, configuration.events.names),
            *(user_hints(users) if users else ()),
        ]
        known_files, watermark = len(contents) - len(new), _watermark(lake)
        return Ingested(known_files, total, accepted, rejected, watermark, batch, users, hints, changed)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what another content of a file shows by: its size and when it was written; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _refuse_changed(stamps: Mapping[Path, tuple[int, int] | None], judged: _Judged | None) -> None:
    """Stop where a file is no longer what it was when its content was looked at: its rows may be of either."""
    for path in sorted(judged.files.values()) if judged else ():
        if _stamp(path) != stamps[path]:
            raise UnreadableError(
                f"{path.name}: changed while it was read: nothing was stored; ingest it again when it is whole"
            )


def _contents_of(configuration: Configuration, paths: list[Path]) -> dict[Path, str]:
    """Hash the content of files, without those that cannot be read, where these are to be skipped."""
    with ThreadPoolExecutor() as pool:
        found = dict(zip(paths, pool.map(_content_or_why_not, paths), strict=True))
    unreadable = {path: str(content) for path, content in found.items() if isinstance(content, UnreadableError)}
    if unreadable:
        _skip(configuration, unreadable)
    return {path: content for path, content in found.items() if isinstance(content, str)}


def _content_or_why_not(path: Path) -> str | UnreadableError:
    try:
        check_is_file(path)
        return content_of(path)
    except UnreadableError as error:
        return error
    except OSError as error:
        return UnreadableError(f"{path.name}: cannot be read: {why_of(error)}")


def _skip(configuration: Configuration, unreadable: Mapping[Path, str]) -> None:
    """Say which files are skipped, and why. Raises UnreadableError where none is to be."""
    if not configuration.events.skip_unreadable:
        raise UnreadableError(f"{min(unreadable.values())}; mend or remove it, or set events.skip_unreadable = true")
    for said in unreadable.values():
        logger.warning("  skipped %s", said)


def _is_outdated(lake: Lake, configuration: Configuration, known: list[File]) -> bool:
    """Tell whether what is known was read otherwise than it would be now, or nothing is, or not what was rejected."""
    mapping = fingerprint(configuration.events, configuration.time_zone)
    return not lake.row_count(EVENTS) or not lake.has(REJECTED) or {file["fingerprint"] for file in known} != {mapping}


def _refuse_to_lose(lake: Lake, configuration: Configuration, known: list[File], contents: Mapping[Path, str]) -> None:
    """Stop where reading all files again would lose events of files that are no longer there."""
    here = set(contents.values())
    gone = [file["path"] for file in known if file["content"] not in here]
    if not known and lake.has(EVENTS):  # a run broke off before it could say what it had read
        here = {name_of(path, configuration.folder) for path in contents}
        gone = [path for path in _sources(lake) if path not in here]
    if gone:
        raise SourceError(
            f"events: rows are read otherwise than before, so all files have to be read again, but {len(gone):,} that "
            f"were ingested are gone or changed, first {min(gone)}: put them back, or make the tables what the files "
            "hold now with `habitus ingest --rebuild`"
        )


def _sources(lake: Lake) -> list[str]:
    """List the files that events came from."""
    names: list[str] = lake.read(EVENTS).source_file.value_counts().source_file.to_pyarrow().to_pylist()
    return names


def _judge(
    lake: Lake,
    configuration: Configuration,
    files: dict[str, Path],
    now: datetime,
    known: list[File],
    erased: Erased | None,
) -> _Judged | None:
    """Judge the rows of files, given by their content, without those that cannot be read; None without any."""
    if not files and not known:
        raise SourceError(f"events.files: {listed(configuration.events.files)} names no file that can be read")
    source, folder = configuration.events, configuration.folder
    columns = _columns_of(known)
    paths = sorted(files.values())
    due = _due(lake, [name_of(path, folder) for path in paths], now) if known else None
    if not files and due is None:
        return None
    try:
        first = _columns_of(known, rule=1)
        raw = read_files(lake.engine, source, folder, paths, columns, first) if paths else Raw([], {}, False)
        among = None if erased is None else erased.among
        stored = partial(_stored_among, lake) if first else None
        events, rejected = accept(raw.parts, source, configuration.time_zone, now, among, due, stored)
    except (UnreadableError, duckdb.Error) as error:
        unreadable = find_unreadable(source, paths)
        if not unreadable:
            if failing := find_failing(lake.engine, source, paths, columns):
                raise SourceError(f"{failing}; a function that begins with try_ gives null instead") from error
            raise SourceError(f"events.files: {listed(source.files)} cannot be read: {reason_of(error)}") from error
        _skip(configuration, unreadable)
        readable = {content: path for content, path in files.items() if path not in unreadable}
        return _judge(lake, configuration, readable, now, known, erased)
    rejected = materialize(rejected)
    by_reason, accepted = _count_by_reason(rejected), _count(events)
    if not known and not accepted:
        raise SourceError(_explain_nothing(configuration, raw.parts, by_reason))
    placeholders = {}
    if "no_user" in by_reason:
        ids = reduce(ir.Table.union, (part.select(user_id=as_text(part.user_id)) for part in raw.parts))
        placeholders = count_placeholders(ids.user_id, source.no_user)
    by_name = {name_of(path, folder): path for path in paths}
    refuse_unusable(raw.parts, rejected, accepted, by_name, source.rejected_max, placeholders)
    if erased is not None:
        rejected = materialize(erased.withhold(rejected))
    return _Judged(files, events, rejected, raw.columns, raw.retyped, due, placeholders)


def _withdraw_out_of_range(lake: Lake) -> bool:
    """Reject the EVENTS of times out of range, which earlier releases accepted, and say whether there were any.

    REJECTED have them before EVENTS no longer do: if this breaks off, the next run does it again.
    """
    days = [day for day in lake.partitions(EVENTS) if is_no_day(day)]
    if not days:
        return False
    events = materialize(lake.read(EVENTS, only=days))
    withdrawn = reject_events(events, OUT_OF_RANGE)
    others = lake.read(REJECTED).anti_join(withdrawn, "rejected_id")
    lake.write(REJECTED, materialize(stack(withdrawn, others)))
    lake.write(EVENTS, events.limit(0), only=days)
    logger.warning("  rejected %s of before: %s", f"{_count(events):,}", REASONS[OUT_OF_RANGE])
    return True


def _columns_of(files: list[File], rule: int | None = None) -> list[dict[str, str]]:
    """List the columns that files had, of those whose ids were made by a rule or of all, each once."""
    return [json.loads(text) for text in sorted({file["columns"] for file in files if rule in (None, file["id_rule"])})]


def _stored_among(lake: Lake, ids: ir.Table) -> ir.Table:
    """Return event_id and properties of those of some ids that EVENTS have."""
    return materialize(lake.read(EVENTS).select("event_id", "properties").semi_join(ids, "event_id"))


def _due(lake: Lake, names: list[str], now: datetime) -> ir.Table | None:
    """Return the EVENTS of files that are not read now that were held back as in the future, and are no longer."""
    rejected = lake.read(REJECTED)
    held = events_in(rejected.filter((rejected.reason == FUTURE) & rejected.source_file.notin(names)))
    due = materialize(held.filter(held.occurred_at <= ibis.literal(now, TIME)))
    return due if _count(due) else None


def _replace(lake: Lake, configuration: Configuration, judged: _Judged, known: list[File]) -> tuple[Batch, bool]:
    """Make the tables what the files hold."""
    events, rejected = judged.events, judged.rejected
    if configuration.events.columns.order_id is not None:
        events = materialize(events)
        repeated = find_repeated(events)
        events = events.anti_join(repeated, "event_id")
        rejected = materialize(stack(rejected, reject_events(repeated, DUPLICATE_LINE)))
    none = events.filter(ibis.literal(False))
    batch, files = _sum_up(configuration, judged, events, rejected, none, [], None)
    lake.claim(FILES)
    if known and sorted(known, key=_key) != files:
        _write_files(lake, [])  # if this breaks off, the next run begins anew
    changed = lake.write(REJECTED, rejected)
    changed |= lake.write(EVENTS, events)
    changed |= _write_files(lake, files)
    return replace(batch, merged=_count_merged(lake, rejected)), changed


def _add(lake: Lake, configuration: Configuration, judged: _Judged, known: list[File]) -> tuple[Batch, bool]:
    """Add to the tables what is new.

    Each step may be repeated: if this breaks off anywhere, EVENTS and REJECTED are the same after another run. So
    REJECTED hold what the last reading of a file rejected, and its events that gave way to those of other files since;
    and what they no longer hold leaves them only when EVENTS have it.
    """
    names = [name_of(path, configuration.folder) for path in judged.files.values()]
    before = lake.read(REJECTED)
    others = before.filter(before.source_file.notin(names))
    waiting = materialize(events_in(others.filter(others.reason == DUPLICATE_LINE)))
    repeated = waiting
    if _count(waiting):  # a run that broke off may have left some that are events again, or still
        repeated = materialize(waiting.anti_join(lake.read(EVENTS).select("event_id"), "event_id"))
    events = materialize(judged.events)
    twins = stack(_twins(lake, configuration, events), repeated.semi_join(events, "event_id").drop("rejected_id"))
    found = reconcile(events, materialize(twins))
    lines = contest(found.added, found.displaced, lake.read(EVENTS), EVENTS.check(repeated))
    rejected = stack(judged.rejected, reject_events(found.lost, DUPLICATE_ID))
    entered = lines.entering.semi_join(found.added, "event_id")
    again_repeated = lines.repeated.semi_join(found.added, "event_id")
    counted = stack(rejected, reject_events(again_repeated, DUPLICATE_LINE))
    batch, files = _sum_up(configuration, judged, entered, counted, found.known, known, _watermark(lake))
    again = {file["path"] for file in known}.intersection(names)
    superseded = _superseded(lake, again, found)

    theirs = found.displaced.filter(found.displaced.source_file.notin(names))
    gave_way = stack(reject_events(theirs, DUPLICATE_ID), reject_events(lines.repeated, DUPLICATE_LINE))
    fresh = materialize(stack(rejected, gave_way).distinct())
    kept = materialize(others.anti_join(fresh, "rejected_id"))
    lake.claim(FILES)
    changed = lake.write(REJECTED, stack(fresh, kept))

    days = _days(stack(lines.entering, lines.leaving))
    if days:
        stored = lake.read(EVENTS, only=days).anti_join(lines.leaving, "event_id")
        changed |= lake.write(EVENTS, stack(lines.entering, stored.anti_join(lines.entering, "event_id")), only=days)
    gone = stack(lines.entering, found.displaced)
    taken_up = waiting.filter(waiting.event_id.notin(repeated.event_id) | waiting.event_id.isin(gone.event_id))
    taken_up = taken_up.select("rejected_id")
    if judged.due is not None:
        taken_up = taken_up.union(judged.due.select("rejected_id"))
    taken_up = materialize(taken_up)
    if _count(taken_up):
        changed |= lake.write(REJECTED, stack(fresh, kept.anti_join(taken_up, "rejected_id")))
    kept_files = [file for file in known if file["path"] not in superseded]
    changed |= _write_files(lake, [*kept_files, *files])
    return replace(batch, merged=_count_merged(lake, fresh)), changed


def _count_merged(lake: Lake, rejected: ir.Table) -> int:
    """Count the duplicates whose id an event of another user has: a hint of merged identities, and no replay."""
    duplicates = materialize(events_in(rejected.filter(rejected.reason == DUPLICATE_ID)).select("event_id", "user_id"))
    if not _count(duplicates):
        return 0
    kept = lake.read(EVENTS).select("event_id", kept_user_id="user_id")
    both = duplicates.join(kept, "event_id")
    return _count(both.filter(both.user_id != both.kept_user_id))


def _twins(lake: Lake, configuration: Configuration, events: ir.Table) -> ir.Table:
    """Read the EVENTS of the lake that have the ids of others."""
    # An id of content is made of the time too: its twin is of the same day.
    is_made = configuration.events.columns.event_id is None
    stored = lake.read(EVENTS, only=_days(events) if is_made else None)
    ids = materialize(stored.select("event_id", "occurred_at").semi_join(events, "event_id"))
    return materialize(lake.read(EVENTS, only=_days(ids)).semi_join(ids, "event_id"))


def _superseded(lake: Lake, again: set[str], found: Reconciled) -> set[str]:
    """Find the files, of those read again, whose events of before are all in what they hold now, or gave way to it."""
    if not again:
        return set()
    events = lake.read(EVENTS)
    before = _count_by_source(events.filter(events.source_file.isin(again)))
    accounted = _count_by_source(stack(found.known, found.displaced))
    return {name for name in again if before.get(name, 0) == accounted.get(name, 0)}


def _sum_up(
    configuration: Configuration,
    judged: _Judged,
    accepted: ir.Table,
    rejected: ir.Table,
    known: ir.Table,
    before: list[File],
    watermark: datetime | None,
) -> tuple[Batch, list[File]]:
    """Count what became of the rows, together and for each file."""
    counts = count_rows(accepted, rejected, known)
    # A file that has grown still has its first rows, whose ids are as they were.
    kept = ("columns", "id_rule")
    first = {file["path"]: {name: file[name] for name in kept} for file in before if file["id_rule"] < ID_RULE}
    mapping = fingerprint(configuration.events, configuration.time_zone)
    files: list[File] = []
    for content, path in judged.files.items():
        name = name_of(path, configuration.folder)
        rows = {"read": sum(counts[name].values()), **counts[name]}
        columns = json.dumps(judged.columns.get(path, {}), sort_keys=True)
        how = {"fingerprint": mapping, "columns": columns, "id_rule": ID_RULE}
        how |= first.get(name, {})
        files.append({"path": name, "content": content, **how, **rows})
    batch = Batch(
        files=len(files),
        read=sum(file["read"] for file in files),
        accepted=_count(accepted),
        rejected=_count_by_reason(rejected),
        known=sum(file["known"] for file in files),
        due=0 if judged.due is None else _count(judged.due),
        placeholders=judged.placeholders,
        names=count_names(accepted, configuration.events.names),
        **_lateness(accepted, watermark),
    )
    return batch, sorted(files, key=_key)


def _lateness(accepted: ir.Table, watermark: datetime | None) -> dict[str, Any]:
    if watermark is None:
        return {}
    is_late = accepted.occurred_at < ibis.literal(watermark, TIME)
    found = accepted.agg(rows=accepted.count(), late=is_late.sum(), first=accepted.occurred_at.min())
    [row] = found.to_pyarrow().to_pylist()
    share = row["late"] / row["rows"] if row["rows"] else None
    by = (watermark - row["first"]).total_seconds() if row["late"] else None
    return {"watermark": watermark, "late_share": share, "late_by_max_s": by}


def _watermark(lake: Lake) -> datetime:
    """Return the time of the latest event."""
    latest: datetime = lake.read(EVENTS, only=[max(lake.partitions(EVENTS))]).occurred_at.max().to_pyarrow().as_py()
    return latest


def _days(events: ir.Table) -> list[datetime]:
    # A day that is cut off has lost its zone, and Python would take it for the machine's.
    day = events.occurred_at.truncate("D").cast(TIME)
    days: list[datetime] = events.select(day=day).distinct().day.to_pyarrow().to_pylist()
    return sorted(days)


def _key(file: File) -> tuple[str, str]:
    return file["path"], file["content"]


def _write_files(lake: Lake, files: list[File]) -> bool:
    return lake.write(FILES, ibis.memtable(pa.Table.from_pylist(files, schema=FILES.schema.to_pyarrow())))


def _count(rows: ir.Table) -> int:
    return int(rows.count().to_pyarrow().as_py())


def _count_by_source(events: ir.Table) -> dict[str, int]:
    counts = events.source_file.value_counts(name="rows").to_pyarrow().to_pylist()
    return {row["source_file"]: row["rows"] for row in counts}


def _count_by_reason(rejected: ir.Table) -> dict[str, int]:
    """Count rejected rows, in the order in which reasons are looked for."""
    counts = rejected.reason.value_counts(name="rows").to_pyarrow().to_pylist()
    found = {row["reason"]: row["rows"] for row in counts}
    return {reason: found[reason] for reason in REASONS if reason in found}


def _describe_users(lake: Lake, configuration: Configuration) -> _Described | None:
    """Read the users' attributes; stop at rows that cannot be read: unlike for events, there is no table for them."""
    if configuration.users is None:
        return None
    consents = configuration.consent_columns
    users = read_users(lake.engine, configuration.users, configuration.folder, consents)
    for part in users:
        malformed = part.filter(part.malformed)
        count = _count(malformed)
        if count:
            places = _places_of(configuration, malformed)
            rows = f"{count:,} row{'' if count == 1 else 's'}"
            raise SourceError(f"users.files: {rows} cannot be read, such as {places}; mend or remove what is wrong")
    no_user = configuration.events.no_user
    ids = reduce(ir.Table.union, (part.select(user_id=as_text(part.user_id)) for part in users))
    placeholders = count_placeholders(ids.user_id, no_user)
    users = [part.mutate(user_id=without_placeholders(as_text(part.user_id), no_user)) for part in users]
    attributes = describe_users(users, list(configuration.users.columns(consents)), partial(_places_of, configuration))
    known = ids.select(user_id=without_placeholders(ids.user_id, no_user))
    named = materialize(known.filter(known.user_id.notnull()).distinct())
    if not _count(named):
        raise SourceError(
            f"users.files: {listed(configuration.users.files)} has no row with a user, so nothing would be known of "
            "anybody: mend it, or remove [users]"
        )
    return _Described(attributes, named, placeholders)


def _places_of(configuration: Configuration, rows: ir.Table) -> str:
    """Say where the first of some rows of the source are: their content is nothing for errors and logs."""
    some = rows.select("source_file", text=row_text(rows)).order_by("source_file", "text").limit(PLACES_MAX)
    places = [place_of(configuration.folder, row["source_file"], row["text"]) for row in some.to_pyarrow().to_pylist()]
    return "; ".join(sorted(set(places), key=lambda place: (len(place), place)))


def _match_users(
    lake: Lake, described: _Described, judged: _Judged | None, anew: bool, erased: Erased | None
) -> UsersFound:
    """Match the users of the users' file with those of all events, as they will be."""
    events = ([] if anew else [lake.read(EVENTS)]) + ([judged.events] if judged else [])
    active = materialize(
        ibis.union(*(rows.select(user_id=rows.user_id.cast("string")) for rows in events), distinct=True)
    )
    users = described.users
    if erased is not None:
        users = users.anti_join(erased.among(users).anti_join(active, "user_id"), "user_id")
    return match_users(materialize(users), active, described.placeholders)


def _without_erased(lake: Lake, attributes: ir.Table, erased: Erased) -> ir.Table:
    """Leave out users who were erased, unless they have come back: then they have events."""
    gone = erased.among(attributes.select("user_id").distinct())
    return attributes.anti_join(gone.anti_join(lake.read(EVENTS), "user_id"), "user_id")


def _explain_nothing(configuration: Configuration, parts: list[ir.Table], by_reason: dict[str, int]) -> str:
    """Say why no row was accepted, by the most frequent reason."""
    if not by_reason:
        return f"events.files: {listed(configuration.events.files)} has no rows"
    reason = max(by_reason, key=lambda name: by_reason[name])
    if reason in BAD_TIMES:
        [column, example, places] = _find_bad_time(configuration, parts, reason)
        return (
            f"events.columns.{column}: no row has {BAD_TIMES[reason]}, but the likes of {form_of(example)!r} (9: a "
            f"digit, a: a letter; {places}): "
            "name the column of the times, set events.time_unit or that of the column (s, ms, us, ns) for numbers, "
            "or give an expression: { sql = \"try_strptime(column, '%d/%m/%Y %H:%M')\" }"
        )
    counts = "; ".join(f"{REASONS[name]}: {count:,}" for name, count in by_reason.items())
    return f"events.files: no row of {listed(configuration.events.files)} was accepted ({counts})"


def _find_bad_time(configuration: Configuration, parts: list[ir.Table], reason: str) -> tuple[str, str, str]:
    """Return the column of times that no row's can be used of, one of them, and where it is."""
    source = configuration.events
    names: tuple[Literal["occurred_at", "ingested_at"], ...] = ("occurred_at", "ingested_at")
    for name in names:
        for part in parts:
            if name in part.columns:
                instant = as_instant(part[name], source.unit_of(name), source.zone_of(name, configuration.time_zone))
                is_bad = is_beyond_instants(instant) if reason == OUT_OF_RANGE else instant.isnull()
                text = as_text(part[name])
                found = materialize(part.mutate(text=text).filter(is_bad & text.notnull()).limit(1))
                for example in found.text.to_pyarrow().to_pylist():
                    return name, example, _places_of(configuration, found)
    raise AssertionError("of rows with a time that cannot be used, one is found")


def _rows_in_words(batch: Batch) -> str:
    if not batch.files and not batch.due:
        return ""
    terms = {"accepted": batch.accepted, "rejected": sum(batch.rejected.values()), "known": batch.known}
    shown = [f"{count:,} {name}" for name, count in terms.items() if count or name != "known"]
    held = f" and {batch.due:,} held back before" if batch.due else ""
    return f"; {' + '.join(shown)} = {batch.read:,} rows read{held}"


def _rejected_in_words(batch: Batch) -> list[str]:
    of_which = placeholders_in_words(batch.placeholders)
    told = {"no_user": f", of which {of_which}" if of_which else ""}
    return [f"{count:,}: {REASONS[reason]}{told.get(reason, '')}" for reason, count in batch.rejected.items()]


def _lateness_in_words(batch: Batch) -> str:
    if batch.late_share is None:
        return ""
    late = f"{batch.late_share:.1%} of new events were late".replace("%", " %")
    return f"{late}, by up to {_duration(batch.late_by_max_s)}; " if batch.late_by_max_s else f"{late}; "


def _duration(seconds: float) -> str:
    """Say a duration in its largest unit.

    >>> [_duration(seconds) for seconds in (0.5, 60, 3 * 86400 + 7200)]
    ['1 second', '1 minute', '3 days']
    """
    units = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
    unit = next((name for name, length in units.items() if seconds >= length), "second")
    count = max(round(seconds / units[unit]), 1)
    return f"{count:,} {unit}{'' if count == 1 else 's'}"
