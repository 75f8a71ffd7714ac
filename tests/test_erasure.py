"""Erasure: nothing of a user is left, in no version and nowhere; nothing of others is different."""

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from histories import events_of

from features.attributes import ATTRIBUTES
from features.erasures import ERASURES, find_erased, hash_id
from features.events import DUPLICATE_ID, EVENTS, REJECTED, reject_events
from features.increments import update_sessions
from features.lake import Lake, LakeInUseError
from features.sessions import SESSIONS
from features.snapshots import SNAPSHOTS, snapshots_table, take_snapshot
from features.table import ContractError, Table, stack
from publish.assignments import ASSIGNMENTS
from publish.audiences import AUDIENCES
from publish.changes import CHANGES
from publish.destination import Delivery, DestinationError, Release
from publish.erasure import (
    Found,
    Pending,
    Receipt,
    begin,
    begin_receipt,
    conclude,
    erase,
    find,
    read_pending,
    receipt_file,
    unfinished,
)
from publish.versions import released_table

Row = dict[str, Any]

GAP = timedelta(minutes=30)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)
AS_OF = datetime(2024, 1, 10, tzinfo=UTC)
SALT = "salt"
ANN, BOB, ANNE = "ann-7f3", "bob", "xann-7f3x"
"""Who is erased, who stays, and whose id contains the first."""
RELEASED = released_table([])


@dataclass
class Folder:
    """A destination: a file for each user in a folder, and what it was asked to forget."""

    folder: Path
    is_away: bool = False
    asked: list[Mapping[str, Sequence[str]]] = field(default_factory=list)

    def deliver(self, release: Release) -> Delivery:
        raise NotImplementedError

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        if self.is_away:
            raise DestinationError("the disk is not there: mount it")
        self.asked.append(memberships)
        files = [self.folder / user for user in memberships if (self.folder / user).exists()]
        for file in files:
            file.unlink()
        return len(files)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "lake"
    with Lake(folder) as lake:
        fill(lake)
    return folder


@contextmanager
def copied(lake: Path, folder: Path) -> Iterator[Lake]:
    with Lake(shutil.copytree(lake, folder / "lake")) as copy:
        yield copy


@pytest.fixture
def shop(tmp_path: Path, filled: Path) -> Iterator[Lake]:
    with copied(filled, tmp_path) as lake:
        yield lake


@dataclass(frozen=True)
class Done:
    """What an erasure left: the lake, the receipt, and the destinations that were asked."""

    lake: Lake
    receipt: Receipt
    asked: dict[str, Folder]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, filled: Path) -> Iterator[Done]:
    """Erase the first user once, for tests that only look; one of two destinations is not configured any more."""
    folder = tmp_path_factory.mktemp("erased")
    with copied(filled, folder) as lake:
        asked = {"ads": Folder(folder)}
        yield Done(lake, forget(lake, ANN, **asked), asked)


@pytest.fixture
def erased(done: Done) -> Lake:
    return done.lake


@pytest.fixture(scope="module")
def all_gone(tmp_path_factory: pytest.TempPathFactory, filled: Path) -> Iterator[Done]:
    """Erase all users once."""
    folder = tmp_path_factory.mktemp("all_gone")
    with copied(filled, folder) as lake:
        asked = {"crm": Folder(folder), "ads": Folder(folder)}
        yield Done(lake, forget(lake, ANN, BOB, ANNE, **asked), asked)


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory, filled: Path) -> Iterator[Done]:
    """Erase the first user once, while one of two destinations is away."""
    folder = tmp_path_factory.mktemp("away")
    with copied(filled, folder) as lake:
        asked = {"ads": Folder(folder), "crm": Folder(folder, is_away=True)}
        yield Done(lake, forget(lake, ANN, **asked), asked)


@pytest.fixture
def waiting(away: Done, tmp_path: Path) -> Iterator[Lake]:
    """Copy the lake of an erasure that waits for a destination."""
    with copied(away.lake.folder, tmp_path) as lake:
        yield lake


NOTES = Table("notes", ibis.schema({"user_id": "!string", "text": "string"}), ("user_id",))
OTHER_SNAPSHOTS = snapshots_table([3], ["plan"])


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory, filled: Path) -> Iterator[Lake]:
    """Erase the first user from a lake with all that is seldom there.

    That is a table that nobody named, one with columns of another configuration, a version that a killed publish left,
    and an event that came after sessions were made.
    """
    with copied(filled, tmp_path_factory.mktemp("unusual")) as lake:
        put(lake, NOTES, [{"user_id": ANN, "text": "vip"}, {"user_id": BOB, "text": None}])
        snapshot = take_snapshot(
            lake.read(EVENTS), lake.read(SESSIONS), lake.read(ATTRIBUTES), AS_OF,
            gap=GAP, windows_days=[3], attribute_names=["plan"],
        )  # fmt: skip
        lake.write(OTHER_SNAPSHOTS, snapshot)
        put(lake, RELEASED, [assigned(user) for user in (ANN, "newcomer")])
        came = events_of(lake.engine, [{"event_id": "new", "user_id": BOB, "occurred_at": "2024-01-03 10:05"}])
        lake.write(EVENTS, stack(lake.read(EVENTS), came))
        forget(lake, ANN)
        yield lake


def fill(lake: Lake) -> None:
    """Write every table, of three users, each in several versions."""
    for users in ([ANN, BOB], [ANN, BOB, ANNE]):
        rows = [
            {"event_id": f"{user}/{day}", "user_id": user, "occurred_at": f"2024-01-0{day} 10:00"}
            for user in users
            for day in (1, 2, 3)
            if user != BOB or day != 2
        ]
        events = events_of(lake.engine, rows)
        lake.write(EVENTS, events)
        update_sessions(lake, GAP)
        snapshot = take_snapshot(events, lake.read(SESSIONS), lake.read(ATTRIBUTES), AS_OF, gap=GAP)
        lake.write(SNAPSHOTS, snapshot, only=[AS_OF])
        put(lake, ATTRIBUTES, [{"user_id": user, "attribute": "plan", "value": "gold"} for user in users])
        late = events_of(
            lake.engine, [{"event_id": f"{user}/9", "user_id": user, "occurred_at": "2024-01-01"} for user in users]
        )
        lines = [(f'2,"{user}",yesterday', user) for user in users]
        broken = [
            {"rejected_id": f"r{i}", "source_file": "events.csv", "reason": "unparseable_time", "row": line}
            for i, (line, _) in enumerate(lines)
        ]
        duplicates = reject_events(late, DUPLICATE_ID).to_pyarrow().to_pylist()
        put(lake, REJECTED, [*broken, *duplicates])
        put(lake, ASSIGNMENTS, [assigned(user) for user in users])
        put(lake, RELEASED, [assigned(user) for user in users])
        put(
            lake,
            CHANGES,
            [
                {"version": 1, "as_of": AS_OF, "destination": "crm", "user_id": user, "segment_id": "S01",
                 "segment_name": "S", "change": "entered", "reason": "new_user"}
                for user in users
            ],
        )  # fmt: skip
        audiences = [
            {"destination": name, "user_id": user, "segments": ["S01"] if name == "crm" else [], "held_out": [],
             "held_back": []}
            for user in users
            for name in ("crm", "ads")
        ]  # fmt: skip
        put(lake, AUDIENCES, audiences, {"version": 1, "released": lake.version(RELEASED)})


def assigned(user: str) -> Row:
    lists: Row = {name: [] for name, dtype in ASSIGNMENTS.schema.items() if dtype.is_array()}
    return {"user_id": user, "as_of": AS_OF, "lifecycle_stage": "active", "holdout": False, **lists}


def put(lake: Lake, table: Table, rows: list[Row], origin: Row | None = None) -> None:
    lake.write(table, ibis.memtable(pa.Table.from_pylist(rows, schema=table.schema.to_pyarrow())), origin=origin)


def start(lake: Lake, users: Sequence[str], destinations: Sequence[str] = ()) -> Pending:
    found = find(lake, users)
    receipt = begin_receipt(
        "r1", NOW, users, found, destinations, SALT, configuration="shop", habitus="1", models=[], next_training=None
    )
    return begin(lake, users, found, destinations, receipt)


def forget(lake: Lake, *users: str, **destinations: Folder) -> Receipt:
    """Do all of it, as the flow does."""
    pending = start(lake, users, [*destinations])
    with lake.alone(0):
        erase(lake, pending, SALT)
    return conclude(lake, pending, destinations, LATER)


def places_of(folder: Path, text: str) -> list[str]:
    """List the files in which a text is: as bytes, or in any value of Parquet, be the file of a version or not."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        if file.suffix == ".parquet" and "_delta_log" not in file.parts:
            content += json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
        if text.encode() in content:
            found.append(file.relative_to(folder).as_posix())
    return found


CONTRACTS = {
    table.name: table
    for table in (
        EVENTS,
        SESSIONS,
        SNAPSHOTS,
        ATTRIBUTES,
        REJECTED,
        ASSIGNMENTS,
        RELEASED,
        CHANGES,
        AUDIENCES,
        ERASURES,
    )
}


def users_in(table: ir.Table) -> list[str]:
    return sorted({row["user_id"] for row in table.select("user_id").to_pyarrow().to_pylist()})


# --- what is gone ---


def test_no_byte_of_the_lake_holds_the_id_afterwards(filled: Path, erased: Lake) -> None:
    assert len(places_of(filled, ANN)) > 10  # there is something to find
    # Another's id contains it.
    assert [file for file in places_of(erased.folder, ANN) if not holds(erased.folder / file, ANNE)] == []


def holds(file: Path, text: str) -> bool:
    return bool(places_of(file.parent, text)) and text in json.dumps(pq.read_table(file).to_pylist(), default=str)


def test_only_the_named_are_gone_from_every_table(erased: Lake) -> None:
    for name, table in CONTRACTS.items():
        if "user_id" in table.schema:
            assert users_in(erased.read(table)) == [BOB, ANNE], name


def test_others_rows_are_as_they_were(filled: Path, erased: Lake) -> None:
    def others(lake: Lake) -> dict[str, list[Row]]:
        tables = {name: lake.read(table) for name, table in CONTRACTS.items() if "user_id" in table.schema}
        return {
            name: table.filter(table.user_id != ANN).order_by(*CONTRACTS[name].key).to_pyarrow().to_pylist()
            for name, table in tables.items()
        }

    with Lake(filled) as lake:
        assert others(erased) == others(lake)


def test_no_earlier_version_can_be_read(erased: Lake) -> None:
    files = [Path(file) for version in range(erased.version(EVENTS)) for file in erased.files(EVENTS, version)]
    assert files
    assert not any(file.exists() for file in files if file not in map(Path, erased.files(EVENTS)))


def test_each_table_changes_by_one_commit(filled: Path, erased: Lake) -> None:
    with Lake(filled) as lake:
        before = {name: lake.version(table) for name, table in CONTRACTS.items() if lake.has(table)}
    for name in ("events", "snapshots", "assignments", "changes", "released", "audiences", "rejected", "attributes"):
        assert erased.version(CONTRACTS[name]) == before[name] + 1, name


def test_a_table_with_columns_of_another_configuration_is_rewritten_with_them(unusual: Lake) -> None:
    assert users_in(unusual.read(OTHER_SNAPSHOTS)) == [BOB, ANNE]


def test_a_table_that_nobody_named_is_found_by_its_users(unusual: Lake) -> None:
    assert unusual.read(NOTES).to_pyarrow().to_pylist() == [{"user_id": BOB, "text": None}]


def test_the_last_user_leaves_empty_tables(all_gone: Done, tmp_path: Path) -> None:
    with copied(all_gone.lake.folder, tmp_path) as lake:
        assert {lake.row_count(table) for table in CONTRACTS.values() if "user_id" in table.schema} == {0}
        update_sessions(lake, GAP)
        assert lake.row_count(SESSIONS) == 0


# --- what was rejected ---


def test_rejected_rows_lose_the_text_that_names_the_user(erased: Lake) -> None:
    rejected = erased.read(REJECTED).to_pyarrow().to_pylist()
    by_reason = {
        reason: [row["row"] for row in rejected if row["reason"] == reason]
        for reason in ("unparseable_time", "duplicate_id")
    }
    assert sorted(by_reason["unparseable_time"], key=str) == [f'2,"{BOB}",yesterday', f'2,"{ANNE}",yesterday', None]
    assert len([text for text in by_reason["duplicate_id"] if text]) == 2


def test_accepted_and_rejected_rows_still_add_up(filled: Path, erased: Lake) -> None:
    def count(lake: Lake) -> int:
        return lake.row_count(EVENTS) + lake.row_count(REJECTED)

    with Lake(filled) as lake:
        assert count(erased) == count(lake)
    rejected = erased.read(REJECTED)
    rows = rejected.filter(rejected.reason == "erased").to_pyarrow().to_pylist()
    assert [(row["source_file"], row["row"]) for row in rows] == [("events.csv", None)] * 3


HARD_IDS = ['q"x', "ü-é", "a@b.c", "[x].*", "two\nlines", "back\\slash", "x" * 5000]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """Erase users whom the texts of rejected rows name; the rows of each are of a file of its own."""
    with Lake(tmp_path_factory.mktemp("named") / "lake") as lake:
        rows = []
        for user in HARD_IDS:
            texts = [user, f"1,{user},x", f'"{user.replace(chr(34), chr(34) * 2)}",x', json.dumps({"user": user})]
            texts.append(json.dumps({"user": user}, ensure_ascii=False))
            rows += [
                {"rejected_id": f"{user}/{i}", "source_file": user, "reason": "no_time", "row": text}
                for i, text in enumerate([*texts, "somebody else", f"z{user}"])
            ]
        put(lake, REJECTED, rows)
        forget(lake, *HARD_IDS)
        yield lake


@pytest.mark.parametrize("user", HARD_IDS)
def test_an_id_is_found_in_a_text_however_it_is_quoted(named: Lake, user: str) -> None:
    rows = [row for row in named.read(REJECTED).to_pyarrow().to_pylist() if row["source_file"] == user]
    kept = [row["row"] for row in rows if row["row"]]
    assert len(rows) == 7
    assert set(kept) <= {"somebody else", f"z{user}"}
    assert "somebody else" in kept


# --- what was made of what ---


def test_sessions_are_not_made_anew(erased: Lake, tmp_path: Path) -> None:
    with copied(erased.folder, tmp_path) as lake:
        assert lake.origin(SESSIONS)["events_version"] == lake.version(EVENTS)
        assert not update_sessions(lake, GAP).rebuilt
        came = events_of(lake.engine, [{"event_id": "new", "user_id": BOB, "occurred_at": "2024-01-03 10:05"}])
        lake.write(EVENTS, stack(lake.read(EVENTS), came))
        again = update_sessions(lake, GAP)
    assert (again.rebuilt, again.revised) == (False, 1)


def test_sessions_that_were_behind_their_events_are_made_anew_and_right(unusual: Lake, tmp_path: Path) -> None:
    with copied(unusual.folder, tmp_path) as lake:
        update_sessions(lake, GAP)
        sessions = lake.read(SESSIONS)
        assert users_in(sessions) == [BOB, ANNE]
        assert sessions.filter(sessions.user_id == BOB).event_count.sum().to_pyarrow().as_py() == 3


def test_audiences_name_the_commit_of_released_without_the_user(erased: Lake) -> None:
    origin = erased.origin(AUDIENCES)
    assert origin["version"] == 1
    assert users_in(erased.read(RELEASED, version=origin["released"])) == [BOB, ANNE]


def test_a_version_that_a_killed_publish_left_is_not_the_present_one(unusual: Lake) -> None:
    assert users_in(unusual.read(RELEASED, version=unusual.origin(AUDIENCES)["released"])) == [BOB, ANNE]
    assert places_of(unusual.folder, "newcomer") == []


# --- destinations and receipts ---


def test_a_destination_hears_what_each_user_was_in_and_of_those_in_nothing(all_gone: Done) -> None:
    assert all_gone.asked["crm"].asked == [{ANN: ["S01"], BOB: ["S01"], ANNE: ["S01"]}]
    assert all_gone.asked["ads"].asked == [{ANN: [], BOB: [], ANNE: []}]
    assert all_gone.receipt.memberships == {"crm": 3, "ads": 0}


def test_a_destination_that_is_away_is_asked_again(away: Done, waiting: Lake, tmp_path: Path) -> None:
    assert away.receipt.completed_at is None
    assert away.receipt.failures == {"crm": "the disk is not there: mount it"}
    assert away.asked["ads"].asked == [{ANN: []}]
    assert unfinished(waiting) == ["r1"]
    assert users_in(waiting.read(EVENTS)) == [BOB, ANNE]  # what can be done is
    crm, ads = Folder(tmp_path), Folder(tmp_path)
    receipt = conclude(waiting, read_pending(waiting, "r1"), {"crm": crm, "ads": ads}, LATER)
    assert (crm.asked, ads.asked) == ([{ANN: ["S01"]}], [])
    assert (receipt.completed_at, receipt.failures, unfinished(waiting)) == (LATER, {}, [])


def test_what_waits_is_for_its_owners_eyes_and_goes_when_done(waiting: Lake, tmp_path: Path) -> None:
    [file] = (waiting.folder / "receipts").glob("pending-*")
    assert file.stat().st_mode & 0o777 == 0o600
    conclude(waiting, read_pending(waiting, "r1"), {"crm": Folder(tmp_path)}, LATER)
    assert not file.exists()


def test_a_destination_that_is_not_configured_any_more_is_named(done: Done) -> None:
    assert done.receipt.unconfigured == ["crm"]
    assert done.receipt.completed_at == LATER


def test_a_destination_that_was_removed_from_the_configuration_meanwhile_is_named(waiting: Lake) -> None:
    receipt = conclude(waiting, read_pending(waiting, "r1"), {}, LATER)
    assert (receipt.unconfigured, receipt.completed_at) == (["crm"], LATER)


def test_a_receipt_says_what_went_and_names_nobody(done: Done) -> None:
    text = receipt_file(done.lake, "r1").read_text()
    assert ANN not in text
    written = json.loads(text)
    assert Receipt.from_dict(written) == done.receipt
    assert written["users"] == [hash_id(ANN, SALT)]
    assert (written["begun_at"], written["completed_at"]) == (NOW.isoformat(), LATER.isoformat())
    assert written["rows"] == {
        "assignments": 1, "attributes": 1, "audiences": 2, "changes": 1, "events": 3, "released": 1, "sessions": 3,
        "snapshots": 1,
    }  # fmt: skip
    assert written["texts"] == 2


# --- who is known ---


def test_somebody_of_whom_there_is_nothing_is_unknown(shop: Lake) -> None:
    assert find(shop, ["nobody", ANN, ANN[:-1], f"{ANN}x"]).unknown == ["nobody", ANN[:-1], f"{ANN}x"]


def test_somebody_whom_only_a_rejected_row_names_is_known(shop: Lake) -> None:
    put(shop, REJECTED, [{"rejected_id": "1", "source_file": "f", "reason": "no_time", "row": "carl,,view"}])
    found = find(shop, ["carl"])
    assert (found.unknown, found.texts, set(found.rows.values())) == ([], 1, {0})


def test_an_empty_lake_knows_nobody(lake: Lake) -> None:
    assert find(lake, [ANN]) == Found({}, 0, {}, None, [ANN])


# --- killed anywhere ---


class Killed(BaseException):
    """What SIGKILL is to a process."""


@pytest.fixture(scope="module")
def undisturbed(done: Done) -> dict[str, Any]:
    return state_of(done.lake)


def state_of(lake: Lake) -> dict[str, Any]:
    """Return all that the tables hold, and who is in the present version."""
    rows = {name: lake.read(CONTRACTS[name]).to_pyarrow().to_pylist() for name in lake.tables()}
    released = lake.read(RELEASED, version=lake.origin(AUDIENCES)["released"])
    return {"released now": users_in(released)} | {name: sorted(map(repr, found)) for name, found in rows.items()}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, filled: Path) -> Path:
    """Begin to erase the first user: what is to be done is written down."""
    with copied(filled, tmp_path_factory.mktemp("begun")) as lake:
        start(lake, [ANN])
        return lake.folder


@pytest.mark.parametrize(
    "before",
    [
        "_commit events",
        "purge events",
        *(pytest.param(f"_commit {name}", marks=pytest.mark.slow) for name in ("rejected", "sessions", "audiences")),
        pytest.param("note sessions", marks=pytest.mark.slow),
    ],
)
def test_killed_before_any_step_the_same_again_ends_in_the_same_state(
    begun: Path, undisturbed: dict[str, Any], before: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    method, name = before.split()
    step = getattr(Lake, method)

    def kill(lake: Lake, table: Table, *arguments: Any) -> Any:
        if table.name == name:
            raise Killed
        return step(lake, table, *arguments)

    with copied(begun, tmp_path) as lake:
        with monkeypatch.context() as patch:
            patch.setattr(Lake, method, kill)
            with pytest.raises(Killed):
                erase(lake, read_pending(lake, "r1"), SALT)
        erase(lake, read_pending(lake, "r1"), SALT)
        conclude(lake, read_pending(lake, "r1"), {}, LATER)
        assert state_of(lake) == undisturbed
        assert [file for file in places_of(lake.folder, ANN) if not holds(lake.folder / file, ANNE)] == []
        assert not update_sessions(lake, GAP).rebuilt


def test_killed_before_the_receipt_says_so_nothing_has_begun(shop: Lake) -> None:
    find(shop, [ANN])
    assert unfinished(shop) == []


# --- alone ---


def test_a_lake_that_others_have_open_is_waited_for_and_refused(shop: Lake) -> None:
    waited: list[float] = []
    with (
        Lake(shop.folder),
        pytest.raises(LakeInUseError, match="is in use by another process"),
        shop.alone(1, lambda: sum(waited), waited.append),
    ):
        pass
    with shop.alone(0):
        pass


def test_a_salt_that_is_gone_is_said(shop: Lake) -> None:
    put(shop, ERASURES, [{"user_hash": "h", "erased_at": NOW, "receipt": "r"}])
    with pytest.raises(ContractError, match=r"erasures\.salt is gone"):
        find_erased(shop)
