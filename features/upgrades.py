"""Upgrades: how rows of an earlier contract become those of the next, for every table whose contract has changed.

A step knows the rows and the configuration, and needs no source file. It stays as it is once it is released: lakes of
that release are out there.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import ibis
import ibis.expr.types as ir

from features.events import EVENTS
from features.files import FILES, fingerprint
from features.first_ids import FIRST_COLUMNS
from features.lake import Lake
from features.sessions import SESSIONS
from features.sources import Source
from features.table import Table, stack


@dataclass(frozen=True)
class Beside:
    """Hold what a step may know beside its rows: the present configuration's, and EVENTS, which are upgraded first."""

    source: Source
    time_zone: str
    events: ir.Table


Step = Callable[[ir.Table, Beside], ir.Table]
"""Makes rows of the next contract."""


@dataclass(frozen=True)
class Upgrade:
    """Say from which contract a table goes to which, and how many rows it has."""

    table: str
    before: int
    after: int
    rows: int


def find_upgrades(lake: Lake) -> list[Upgrade]:
    """List the tables of a lake that are of an earlier contract. Raises ContractError for one of a later contract."""
    found = []
    for table, _ in STEPS:
        contract = lake.contract(table) or table.contract
        if contract > table.contract:
            raise table.refuse(contract)
        if contract < table.contract:
            found.append(Upgrade(table.name, contract, table.contract, lake.row_count(lake.stored(table))))
    return found


def upgrade(lake: Lake, wanted: Upgrade, source: Source, time_zone: str) -> None:
    """Do an upgrade, in one commit. Have the lake alone."""
    [(table, steps)] = [(table, steps) for table, steps in STEPS if table.name == wanted.table]
    missing = steps[wanted.before - 1 :]
    events = lake.read(lake.stored(EVENTS) if lake.has(EVENTS) else EVENTS)
    beside = Beside(source, time_zone, events)
    lake.upgrade(table, lambda rows: reduce(lambda before, step: step(before, beside), missing, rows))


def _add_order_id(events: ir.Table, beside: Beside) -> ir.Table:
    """Say nothing of orders, and of a file only what is known: the very first events did not name theirs."""
    if "source_file" not in events.columns:
        events = events.mutate(source_file=ibis.literal(UNKNOWN_FILE))
    return events.mutate(order_id=ibis.null("string"))


def _say_rule_of_ids(files: ir.Table, beside: Beside) -> ir.Table:
    """Say that ids were made by the first rule; what was read as it would be now is known by the new fingerprint.

    An ingest that broke off left events of files that are not there: of them only that rule is known. Where there are
    no files at all, it was a rebuild, which begins anew.
    """
    before, now = first_fingerprints(beside.source, beside.time_zone)
    rule = ibis.literal(1, "int64")
    same = files.fingerprint == before
    known = files.mutate(id_rule=rule, fingerprint=ibis.ifelse(same, now, files.fingerprint))
    mapping = known.fingerprint.max().to_pyarrow().as_py()
    if mapping is None:
        return known
    texts = {"content": "", "fingerprint": mapping, "columns": "{}"}
    broken_off = beside.events.select(path="source_file").distinct().anti_join(files, "path")
    broken_off = broken_off.mutate(
        id_rule=rule,
        **{name: ibis.literal(text) for name, text in texts.items()},
        **{name: ibis.literal(0, "int64") for name in ("read", "accepted", "rejected", "known")},
    )
    return stack(known, broken_off)


def first_fingerprints(source: Source, time_zone: str) -> tuple[str, str]:
    """Return the fingerprint of a mapping by the formula of then and of now, as far as there were such keys then."""
    known: Any = dict.fromkeys(FIRST_KEYS, True) | {"columns": {"event_id", *FIRST_COLUMNS}}
    settings: dict[str, Any] = source.model_dump(mode="json", include=known)
    settings["columns"] = {
        name: {key: given[key] for key in ("sql", "value")} if isinstance(given, dict) else given
        for name, given in settings["columns"].items()
    }
    now = fingerprint(Source.model_validate({**settings, "files": source.files}), time_zone)
    settings |= {"time_zone": source.time_zone or time_zone, "events": FIRST_EVENTS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(), now


def _let_pages_tell(sessions: ir.Table, beside: Beside) -> ir.Table:
    """Leave open what nothing tells of a session without page views. Of refunds the next `habitus sessions` knows."""
    no_page = sessions.page_view_count == 0
    untold = no_page & ~sessions.engaged & (sessions.duration_s == 0)
    unknown = ibis.null("boolean")
    return sessions.mutate(
        bounced=ibis.ifelse(no_page, unknown, sessions.bounced),
        engaged=ibis.ifelse(untold, unknown, sessions.engaged),
    )


STEPS: tuple[tuple[Table, tuple[Step, ...]], ...] = (
    (EVENTS, (_add_order_id,)),
    (FILES, (_say_rule_of_ids,)),
    (SESSIONS, (_let_pages_tell,)),
)
"""For each table, what leads from contract 1 to 2, from 2 to 3, and so on. All other tables are of contract 1."""

UNKNOWN_FILE = "unknown"
FIRST_KEYS = ("format", "time_unit", "time_zone", "names")
FIRST_EVENTS = """\
ibis.Schema {
  event_id      !string
  user_id       !string
  anonymous_id  string
  account_id    string
  occurred_at   !timestamp('UTC')
  ingested_at   !timestamp('UTC')
  event_name    !string
  page          string
  element       string
  item_id       string
  category      string
  quantity      float64
  revenue       float64
  source        string
  medium        string
  campaign      string
  device        string
  country       string
  properties    string
  source_file   !string
}"""
"""What EVENTS were when their columns were part of the fingerprint."""
