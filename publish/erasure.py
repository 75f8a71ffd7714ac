"""Erasure: users go from every table, version and destination, and a receipt says so without naming them.

It takes many commits. So what is to be done is written down first, for its owner's eyes only, and stays until all of it
is: the users, and what they were at each destination, which no table says any more by then. Any step may be repeated.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.aliases import ALIASES
from features.attributes import ATTRIBUTES
from features.erasures import ERASURES, find_naming, hash_id, record, reject_erased, write_private
from features.events import EVENTS, REJECTED
from features.increments import follow_erasure
from features.labels import LABELS
from features.lake import Lake
from features.sessions import SESSIONS
from features.snapshots import SNAPSHOTS
from features.table import Table, materialize, stack
from publish.assignments import ASSIGNMENTS
from publish.audiences import AUDIENCES
from publish.changes import CHANGES
from publish.destination import Destination, DestinationError
from publish.versions import released_table

RECEIPTS = "receipts"
PENDING = "pending-"
RELEASED = released_table([])
KNOWN = (EVENTS, SESSIONS, ALIASES, ATTRIBUTES, SNAPSHOTS, LABELS, ASSIGNMENTS, CHANGES, RELEASED, AUDIENCES)
"""The tables whose rows belong to users. Of others that have users, the lake itself says what is needed."""
ORDERED = ("sessions", "events", "released", "audiences")
"""The tables that come last, in this order, as one says which commit of another it was made of."""

LAKE = "lake"
NOT_SEARCHED = (
    "MLflow's store: it has models, and figures about many users, and is given no id",
    "Prefect's store: its runs are given no id, and its errors and logs name rows by file and line",
    "source files, backups, and destinations that are not configured any more",
)
"""Stores in which nobody looks for users, and why there should be nothing, or nothing that Habitus may change."""

Memberships = dict[str, dict[str, list[str]]]
"""By destination and user, the segments that the user was in."""


@dataclass(frozen=True)
class TrainedModel:
    """Name a version of a model that users were in the training of, and when it was trained; tell whether it serves."""

    name: str
    version: int
    trained_at: datetime
    serving: bool


@dataclass(frozen=True)
class Receipt:
    """Say what was erased, and of whom by a salted hash; `completed_at` is None until nothing is left.

    `rows` counts by table, `texts` the rejected rows that lost their text. `memberships` counts, by destination, the
    segments that users were in, `places` where they were removed; `failures` say why a destination has not done so.
    `unconfigured` are destinations that nobody can reach, as the configuration lacks them. `next_training` is when the
    models are learnt anew, null where nothing is scheduled. `searched` are the stores where users are looked for, of a
    destination also what waits to be sent there; `not_searched` are others, and why.
    """

    receipt: str
    configuration: str
    habitus: str
    begun_at: datetime
    users: list[str]
    rows: dict[str, int]
    texts: int
    memberships: dict[str, int]
    unconfigured: list[str]
    models: list[TrainedModel]
    next_training: datetime | None
    places: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    completed_at: datetime | None = None
    searched: list[str] = field(default_factory=list)
    not_searched: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=2, default=datetime.isoformat) + "\n"

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        times = {name: given[name] and datetime.fromisoformat(given[name]) for name in TIMES}
        models = [
            TrainedModel(**one | {"trained_at": datetime.fromisoformat(one["trained_at"])}) for one in given["models"]
        ]
        return cls(**{**given, **times, "models": models})


TIMES = ("begun_at", "next_training", "completed_at")


@dataclass(frozen=True)
class Pending:
    """Hold what an erasure that has begun has still to do."""

    users: list[str]
    memberships: Memberships
    receipt: Receipt


@dataclass(frozen=True)
class Found:
    """Hold what there is of some users: rows by table, rejected rows that name them, their memberships.

    `first_at` is when the first of them did anything, or the first snapshot that one of them is in.
    """

    rows: dict[str, int]
    texts: int
    memberships: Memberships
    first_at: datetime | None
    unknown: list[str]


def unfinished(lake: Lake) -> list[str]:
    """List the receipts of erasures that have begun and are not done."""
    files = sorted((lake.folder / RECEIPTS).glob(f"{PENDING}*.json"))
    return [file.stem.removeprefix(PENDING) for file in files]


def receipt_file(lake: Lake, receipt: str) -> Path:
    """Return where a receipt is."""
    return lake.folder / RECEIPTS / f"{receipt}.json"


def read_pending(lake: Lake, receipt: str) -> Pending:
    """Return what an unfinished erasure has still to do."""
    given = json.loads(_pending_file(lake, receipt).read_text())
    return Pending(given["users"], given["memberships"], Receipt.from_dict(given["receipt"]))


def find(lake: Lake, users: Sequence[str]) -> Found:
    """Look for users in all tables; those who are in none, nor named by a rejected row, are unknown."""
    ids = users_table(users)
    rows: dict[str, int] = {}
    known: set[str] = set()
    for table in tables_of_users(lake):
        theirs = lake.read(lake.stored(table)).semi_join(ids, "user_id")
        counts = theirs.group_by("user_id").agg(rows=theirs.count()).to_pyarrow().to_pylist()
        known |= {row["user_id"] for row in counts}
        rows[table.name] = sum(row["rows"] for row in counts)
    texts = 0
    if lake.has(REJECTED):
        rejected = lake.read(REJECTED)
        naming = find_naming(rejected, users)
        texts = int(naming.count().to_pyarrow().as_py())
        named = materialize(rejected.semi_join(naming, "rejected_id"))
        others = [user for user in users if user not in known]
        known |= {user for user in others if find_naming(named, [user]).count().to_pyarrow().as_py()}
    memberships = _memberships(lake, ids)
    firsts = [
        lake.read(lake.stored(table)).semi_join(ids, "user_id")[column].min().to_pyarrow().as_py()
        for table, column in ((EVENTS, "occurred_at"), (SNAPSHOTS, "as_of"))
        if rows.get(table.name)
    ]
    unknown = [user for user in users if user not in known]
    return Found(rows, texts, memberships, min(firsts, default=None), unknown)


def _memberships(lake: Lake, ids: ir.Table) -> Memberships:
    """Return all segments that users are or ever were in: a destination that was away may not know that they left."""
    audiences = lake.read(AUDIENCES)
    now = audiences.select("destination", "user_id", segment_id=audiences.segments.unnest())
    ever = stack(now, lake.read(CHANGES).select(*now.columns)).semi_join(ids, "user_id").distinct()
    memberships: Memberships = {}
    for row in ever.order_by("destination", "user_id", "segment_id").to_pyarrow().to_pylist():
        memberships.setdefault(row["destination"], {}).setdefault(row["user_id"], []).append(row["segment_id"])
    return memberships


def begin(lake: Lake, users: Sequence[str], found: Found, destinations: Iterable[str], receipt: Receipt) -> Pending:
    """Write down what is to be done, and a receipt that says so; from here on it will be done.

    Every destination is told of every user, also of those it has none of now: it may keep versions that have them.
    """
    memberships: Memberships = {
        name: {user: found.memberships.get(name, {}).get(user, []) for user in users} for name in destinations
    }
    pending = Pending(list(users), memberships, receipt)
    _keep(lake, pending)
    return pending


def begin_receipt(
    receipt: str,
    begun_at: datetime,
    users: Sequence[str],
    found: Found,
    destinations: Collection[str],
    salt: str,
    *,
    configuration: str,
    habitus: str,
    models: list[TrainedModel],
    next_training: datetime | None,
) -> Receipt:
    """Make the receipt of an erasure that begins."""
    of_segments = {name: sum(map(len, by_user.values())) for name, by_user in sorted(found.memberships.items())}
    return Receipt(
        receipt=receipt,
        configuration=configuration,
        habitus=habitus,
        begun_at=begun_at,
        users=sorted(hash_id(user, salt) for user in users),
        rows=found.rows,
        texts=found.texts,
        memberships={name: of_segments.get(name, 0) for name in destinations},
        unconfigured=sorted({name for name, count in of_segments.items() if count} - set(destinations)),
        models=models,
        next_training=next_training,
        searched=[LAKE, *sorted(destinations)],
        not_searched=[*NOT_SEARCHED],
    )


def erase(lake: Lake, pending: Pending, salt: str) -> None:
    """Remove users from all tables and all their versions; have the lake alone.

    Who was erased is written down first, so that what is ingested from here on does not bring them back. Files that
    earlier versions had are deleted, and so no earlier version can be read any more.
    """
    receipt = pending.receipt
    users = lake.engine.create_table("erased_users", users_table(pending.users).to_pyarrow(), temp=True, overwrite=True)
    record(lake, pending.users, receipt.begun_at, receipt.receipt, salt)
    follow_erasure(lake)
    reject_erased(lake, users, pending.users, salt)
    tables = tables_of_users(lake)
    for table in tables:
        if table.name not in ORDERED:
            lake.remove(table, users)
    _erase_events(lake, users)
    _erase_released(lake, users)
    for table in (*tables, REJECTED):
        lake.purge(table)


def conclude(lake: Lake, pending: Pending, destinations: Mapping[str, Destination], now: datetime) -> Receipt:
    """Have each destination forget the users, and complete the receipt if all do; one that fails is asked again later.

    A destination that is not configured any more cannot be reached: the receipt says so.
    """
    receipt = pending.receipt
    for name in sorted(pending.memberships):
        if name not in destinations:
            receipt = replace(receipt, unconfigured=sorted({*receipt.unconfigured, name}))
        else:
            try:
                places = destinations[name].forget(pending.memberships[name])
            except DestinationError as error:
                receipt = replace(receipt, failures={**receipt.failures, name: str(error)})
                pending = replace(pending, receipt=receipt)
                continue
            failures = {other: why for other, why in receipt.failures.items() if other != name}
            receipt = replace(receipt, places={**receipt.places, name: places}, failures=failures)
        left = {other: by_user for other, by_user in pending.memberships.items() if other != name}
        pending = Pending(pending.users, left, receipt)
        _keep(lake, pending)
    if pending.memberships:
        _keep(lake, pending)
        return receipt
    receipt = replace(receipt, failures={}, completed_at=now)
    write_private(receipt_file(lake, receipt.receipt), receipt.to_json())
    _pending_file(lake, receipt.receipt).unlink()
    return receipt


def tables_of_users(lake: Lake) -> list[Table]:
    """List the tables of a lake that have users, but ERASURES, which has their hashes."""
    known = {table.name: table for table in KNOWN}
    tables = [known.get(name) or lake.find_contract(name) for name in lake.tables() if name != ERASURES.name]
    return [table for table in tables if table.name in known or "user_id" in table.schema]


def users_table(users: Sequence[str]) -> ir.Table:
    """Return users as a table: user_id."""
    return ibis.memtable(pa.table({"user_id": pa.array(users, pa.string())}))


def _erase_events(lake: Lake, users: ir.Table) -> None:
    """Remove users' sessions and events; the sessions of others are those of their events still, and say so."""
    lake.remove(SESSIONS, users)
    if lake.has(EVENTS):
        lake.remove(EVENTS, users, origin={"erased_from": lake.version(EVENTS)})
        follow_erasure(lake)


def _erase_released(lake: Lake, users: ir.Table) -> None:
    """Remove users from the present version, which is the commit of RELEASED that AUDIENCES name, or is none.

    A commit after it is of a publish that was killed, and is not kept.
    """
    origin = lake.origin(AUDIENCES)
    if "released" not in origin:
        lake.remove(RELEASED, users)
        lake.remove(AUDIENCES, users)
        return
    table = lake.stored(RELEASED, origin["released"])
    lake.write(table, lake.read(table, version=origin["released"]).anti_join(users, "user_id"))
    origin = {**origin, "released": lake.version(RELEASED)}
    if not lake.remove(AUDIENCES, users, origin=origin):
        lake.note(AUDIENCES, origin)


def _keep(lake: Lake, pending: Pending) -> None:
    """Write what is still to be done, and the receipt as it is."""
    (lake.folder / RECEIPTS).mkdir(exist_ok=True)
    write_private(_pending_file(lake, pending.receipt.receipt), json.dumps(asdict(pending), default=datetime.isoformat))
    write_private(receipt_file(lake, pending.receipt.receipt), pending.receipt.to_json())


def _pending_file(lake: Lake, receipt: str) -> Path:
    return lake.folder / RECEIPTS / f"{PENDING}{receipt}.json"
