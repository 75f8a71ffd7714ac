"""Two at once: what is written on the ground of what was read never replaces what another wrote in between.

A lock keeps two commands apart. These tests have none, as on a disk that locks no files, or in a notebook.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import crowd
import ibis
import pytest
from deltalake import DeltaTable
from messages import assert_documented
from prefect_server import await_server, started
from shops import Ran
from test_ingest import Shop
from test_lake import BALANCES, JULY, JUNE, MAY, PLANS, read, rows_of

import features.lake
from features.delta import ConflictError
from features.events import EVENTS, REJECTED
from features.files import FILES
from features.lake import Lake
from features.table import Table
from flows.configuration import load
from flows.forget import begin, finish
from flows.ingest import accept_files
from flows.publish import publish_version
from flows.score import assign_users
from flows.sessions import sessionize
from flows.snapshot import store_snapshots

Act = Callable[[Lake], Any]

# --- each way to change a table ---

PLANS_WITH_TAX = replace(PLANS, schema=ibis.schema({**PLANS.schema, "tax": "float64"}))
ORIGINAL = [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]
THEIRS = [("ada", MAY, 1.0), ("ada", JUNE, 1.0), ("bob", JUNE, 2.0)]


def write_balances(lake: Lake, *rows: Any, **options: Any) -> bool:
    return lake.write(BALANCES, rows_of(BALANCES, [*rows]), **options)


WAYS: dict[str, tuple[Table, Act]] = {
    "write": (BALANCES, lambda lake: write_balances(lake, ("ada", MAY, 5.0))),
    "write some partitions": (BALANCES, lambda lake: write_balances(lake, ("ada", MAY, 5.0), only=[MAY])),
    "write what is there": (BALANCES, lambda lake: write_balances(lake, *ORIGINAL)),
    "write in parts": (
        BALANCES,
        lambda lake: lake.write_in_parts(BALANCES, [(rows_of(BALANCES, [("ada", MAY, 5.0)]), JUNE)]),
    ),
    "remove": (
        BALANCES,
        lambda lake: lake.remove(BALANCES, ibis.memtable({"user_id": ["ada"]})),
    ),
    "note": (BALANCES, lambda lake: lake.note(BALANCES, {"made_of": 1})),
    "upgrade": (
        replace(BALANCES, contract=2),
        lambda lake: lake.upgrade(replace(BALANCES, contract=2), lambda rows: rows.mutate(amount=rows.amount * 2)),
    ),
    "purge": (BALANCES, lambda lake: lake.purge(BALANCES)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_table_that_another_changed_since_it_was_read_stays_as_the_other_left_it(lake: Lake, way: str) -> None:
    write_balances(lake, *ORIGINAL)
    with Lake(lake.folder) as ours:
        assert read(ours, BALANCES) == ORIGINAL
        write_balances(lake, *THEIRS)
        with pytest.raises(ConflictError) as refused:
            WAYS[way][1](ours)
        assert read(ours, BALANCES) == ORIGINAL

    assert_documented("another process changed a table since it was read", str(refused.value), lake.folder.parent)
    with Lake(lake.folder) as anew:
        assert read(anew, BALANCES) == THEIRS
        assert anew.version(BALANCES) == 1


def test_who_is_refused_leaves_no_files(lake: Lake) -> None:
    write_balances(lake, *ORIGINAL)
    with Lake(lake.folder) as ours:
        read(ours, BALANCES)
        write_balances(lake, *THEIRS)
        before = {*lake.folder.rglob("*")}
        with pytest.raises(ConflictError):
            write_balances(ours, ("ada", MAY, 5.0))
    assert {*lake.folder.rglob("*")} == before


@pytest.mark.parametrize(
    "rows", [[*ORIGINAL, ("bob", JULY, 2.0)], [("bob", MAY, 2.0)]], ids=["of another partition", "of all"]
)
@pytest.mark.parametrize("way", ["write", "write some partitions", "write in parts", "remove"])
def test_a_commit_between_the_last_look_and_ours_is_noticed(
    lake: Lake, way: str, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delta itself would let ours follow, where theirs was of a partition that was not there."""
    write_balances(lake, *ORIGINAL)
    interrupt(monkeypatch, "_move", BALANCES, lambda: write_balances(lake, *rows))
    with Lake(lake.folder) as ours, pytest.raises(ConflictError):
        WAYS[way][1](ours)
    with Lake(lake.folder) as anew:
        assert read(anew, BALANCES) == rows


@pytest.mark.parametrize("moment", ["_move", "_name_by_content"])
def test_of_two_who_make_a_table_one_is_refused(lake: Lake, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, moment, BALANCES, lambda: write_balances(lake, *THEIRS))
    with Lake(lake.folder) as ours:
        assert not ours.has(BALANCES)
        with pytest.raises(ConflictError):
            write_balances(ours, *ORIGINAL)
    with Lake(lake.folder) as anew:
        assert read(anew, BALANCES) == THEIRS
        assert anew.version(BALANCES) == 0


def test_a_table_with_other_columns_does_not_replace_what_another_wrote(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    theirs: list[Any] = [("free", 0.0, []), ("pro", 9.0, [])]
    interrupt(monkeypatch, "_move", PLANS, lambda: lake.write(PLANS, rows_of(PLANS, theirs)))
    with Lake(lake.folder) as ours, pytest.raises(ConflictError):
        ours.write(PLANS_WITH_TAX, rows_of(PLANS_WITH_TAX, [("free", 0.0, [], 0.2)]))
    with Lake(lake.folder) as anew:
        assert read(anew, PLANS) == theirs


def test_who_wrote_a_table_goes_on_with_what_they_wrote(lake: Lake) -> None:
    with Lake(lake.folder) as other:
        for amount in (1.0, 2.0, 3.0):
            write_balances(other, ("ada", MAY, amount))
            other.note(BALANCES, {"amount": amount})
            assert read(other, BALANCES) == [("ada", MAY, amount)]
        assert other.version(BALANCES) == 5
        assert other.origin(BALANCES) == {"amount": 3.0}


def test_a_table_says_what_was_said_of_it_when_it_was_read(lake: Lake) -> None:
    write_balances(lake, *ORIGINAL, origin={"made_of": 1})
    with Lake(lake.folder) as other:
        assert other.origin(BALANCES) == {"made_of": 1}
        for number in (2, 3):
            lake.note(BALANCES, {"made_of": number})
        assert other.origin(BALANCES) == {"made_of": 1}


def test_tables_that_another_did_not_change_are_written(lake: Lake) -> None:
    with Lake(lake.folder) as other:
        other.tables()
        write_balances(lake, *ORIGINAL)
        assert other.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))


def test_who_waited_to_have_a_lake_alone_sees_what_others_did_until_then(lake: Lake) -> None:
    with Lake(lake.folder, held=False) as other:
        other.tables()
        write_balances(lake, *ORIGINAL)
        lake.close()
        with other.alone(0):
            assert read(other, BALANCES) == ORIGINAL
            assert write_balances(other, *THEIRS)


def interrupt(monkeypatch: pytest.MonkeyPatch, moment: str, table: Table, by: Callable[[], Any]) -> None:
    """Have another do something once, when a lake has read what it is about to write to a table.

    That is at `_name_by_content`, before it looks for commits of others, or at `_move`, after it.
    """
    original, done = getattr(features.lake, moment), list[bool]()

    def interrupted(*arguments: Any) -> Any:
        is_it = any(table.name in (getattr(one, "name", None),) for one in arguments)
        if is_it and not done:
            done.append(True)
            by()
        return original(*arguments)

    monkeypatch.setattr(features.lake, moment, interrupted)


# --- ingest ---

FIRST = ("1,ada,2024-03-01 10:00:00,home", "2,,2024-03-01 10:00:00,home")
OURS = ("3,ada,2024-03-01 11:00:00,home", "4,,2024-03-01 11:00:00,home", "1,ada,2024-03-01 10:00:00,home")
OTHERS = ("5,bob,2024-03-01 12:00:00,home", "6,,2024-03-01 12:00:00,home", "3,ada,2024-03-01 11:00:00,home")


def state(shop: Shop) -> dict[str, Any]:
    return {table.name: shop.rows(table) for table in (EVENTS, REJECTED, FILES)}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("first") / "shop")
    shop.configure()
    shop.put("1.csv", *FIRST)
    shop.ingest()
    return shop


@pytest.fixture(scope="module")
def after(first: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what there is to be after both, which one after the other makes."""
    shop = first.copy(tmp_path_factory.mktemp("after") / "shop")
    for name, lines in (("2.csv", OURS), ("3.csv", OTHERS)):
        shop.put(name, *lines)
        shop.ingest()
    return content(state(shop))


@pytest.mark.parametrize("table", [EVENTS, REJECTED, FILES], ids=lambda table: table.name)
@pytest.mark.parametrize("moment", ["_name_by_content", pytest.param("_move", marks=pytest.mark.ci)])
def test_of_two_ingests_at_once_one_is_refused_and_nothing_is_lost(
    tmp_path: Path, first: Shop, after: dict[str, Any], table: Table, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = first.copy(tmp_path / "shop")

    def ingest_too() -> None:
        shop.put("3.csv", *OTHERS)
        shop.ingest()

    shop.put("2.csv", *OURS)
    with monkeypatch.context() as patched:
        interrupt(patched, moment, table, ingest_too)
        with pytest.raises(ConflictError, match=rf"lake/{table.name} was changed by another process"):
            shop.ingest()
    assert {"1", "5"} <= {*shop.ids()}
    shop.ingest()

    assert shop.ids() == ["1", "3", "5"]
    assert content(state(shop)) == after


def content(tables: dict[str, Any]) -> dict[str, Any]:
    """Leave out which of two files with the same event has it, and is said to: that of the first to be read."""
    events, rejected, known = (tables[table.name] for table in (EVENTS, REJECTED, FILES))
    return {
        "events": [{**row, "source_file": None} for row in events],
        "rejected": sorted(row["reason"] for row in rejected),
        "files": [(row["path"], row["content"], row["read"]) for row in known],
    }


def test_an_ingest_that_began_while_another_was_at_work_does_not_end_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has said what it rejected and not yet what it accepted, so to the second the lake is still new."""
    shop = Shop(tmp_path / "shop")
    shop.configure(files="2.csv")
    later = shop.folder / "later.toml"
    later.write_text(shop.config.read_text().replace("2.csv", "3.csv"))
    shop.put("2.csv", *OURS)
    shop.put("3.csv", *OTHERS)
    refused, has_read, may_write = list[str](), threading.Event(), threading.Event()

    def ingest(config: Path) -> None:
        try:
            accept_files.fn(str(config), NOW, False)
        except ConflictError:
            refused.append(config.name)

    def pause() -> None:
        has_read.set()
        assert may_write.wait(60)

    def begin_another() -> None:
        interrupt(monkeypatch, "_name_by_content", REJECTED, pause)
        second.start()
        assert has_read.wait(60)

    second = threading.Thread(target=ingest, args=(later,))
    with monkeypatch.context() as patched:
        interrupt(patched, "_name_by_content", EVENTS, begin_another)
        ingest(shop.config)
        may_write.set()
        second.join()
    assert refused
    ingest(shop.config)
    ingest(later)

    assert shop.ids() == ["1", "3", "5"]
    assert sorted(shop.rows(REJECTED, "reason")) == ["duplicate_id", "no_user", "no_user"]
    assert sorted(shop.rows(FILES, "path")) == ["2.csv", "3.csv"]


@pytest.mark.parametrize(
    ("count", "locked"),
    [
        pytest.param(4, True, marks=pytest.mark.ci),
        pytest.param(4, False, marks=pytest.mark.ci),
        pytest.param(20, True, marks=pytest.mark.slow),
        pytest.param(20, False, marks=pytest.mark.slow),
    ],
)
def test_processes_that_ingest_at_once_lose_no_event_and_have_none_twice(
    tmp_path: Path, count: int, locked: bool
) -> None:
    shop = Shop(tmp_path / "shop")
    configs = crowd.write_files(shop.folder, count)
    with started():
        await_server()
        refused = crowd.ingest_at_once(configs, locked)

    assert bool(sum(refused)) is not locked
    own = {f"{number}-{event}" for number in range(count) for event in range(crowd.EVENTS_IN_FILE)}
    assert sorted(shop.ids()) == sorted([*own, "of all"])
    assert sorted(shop.rows(FILES, "path")) == sorted(f"{number}.csv" for number in range(count))
    reasons = shop.rows(REJECTED, "reason")
    assert (reasons.count("no_user"), reasons.count("duplicate_id"), len(reasons)) == (count, count - 1, 2 * count - 1)


# --- every stage, and every table that it writes ---

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def set_gap(config: Path) -> None:
    config.write_text(f"{config.read_text()}\n[sessions]\ngap_minutes = 20\n")


def add_destination(config: Path) -> None:
    config.write_text(f'{config.read_text()}\n[destinations.more]\nkind = "files"\nfolder = "more"\npurposes = []\n')


@dataclass(frozen=True)
class Stage:
    """Something that writes tables, what makes that necessary, and the least of the tables that it writes then."""

    run: Callable[[str], Any]
    tables: set[str]
    prepare: Callable[[Path], Any] = lambda config: None


STAGES = {
    "ingest": Stage(lambda config: accept_files.fn(config, NOW, True), {"events", "rejected", "files"}),
    "sessions": Stage(sessionize.fn, {"sessions"}, set_gap),
    "snapshot": Stage(lambda config: store_snapshots.fn(config, None, True), {"snapshots", "labels"}),
    "score": Stage(lambda config: assign_users.fn(config, None), {"assignments"}),
    "publish": Stage(
        lambda config: publish_version.fn(config, None, None),
        {"changes", "versions", "released", "audiences"},
        add_destination,
    ),
    "forget": Stage(
        finish.fn,
        {"erasures", "rejected", "snapshots", "labels", "assignments", "sessions", "events", "released", "audiences"},
        lambda config: begin(load(config), ["user_0001"], NOW),
    ),
}


@pytest.mark.ci
@pytest.mark.parametrize("name", STAGES)
def test_no_stage_replaces_what_another_wrote_to_any_table(
    ran: Ran, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = STAGES[name]
    config = Path(shutil.copytree(ran.configuration.folder, tmp_path / "shop", symlinks=True)) / "habitus.toml"
    stage.prepare(config)
    undisturbed = Path(shutil.copytree(config.parent, tmp_path / "undisturbed", symlinks=True)) / "habitus.toml"
    with monkeypatch.context() as patched:
        tables = tables_written(patched)
        stage.run(str(undisturbed))
    assert {table.name for table in tables} >= stage.tables

    for number, table in enumerate(tables):
        with monkeypatch.context() as patched:
            interrupt(patched, "_name_by_content", table, partial(change, config, table, number))
            with pytest.raises(ConflictError, match=f"lake/{table.name} was changed by another process"):
                stage.run(str(config))
        with Lake(load(config).lake) as lake:
            assert lake.origin(table)["other"] == number
    stage.run(str(config))
    assert contents(config) == contents(undisturbed)


def tables_written(monkeypatch: pytest.MonkeyPatch) -> list[Table]:
    """Be told of the tables that are written from here on, each once."""
    original, written = features.lake._name_by_content, dict[str, Table]()

    def name_by_content(table: Table, *arguments: Any) -> Any:
        written.setdefault(table.name, table)
        return original(table, *arguments)

    monkeypatch.setattr(features.lake, "_name_by_content", name_by_content)
    return cast("list[Table]", written.values())


def change(config: Path, table: Table, number: int) -> None:
    """Commit to a table, as another would where nothing locks the lake."""
    with Lake(load(config).lake, held=False) as lake:
        if not lake.has(table):
            lake.write(table, lake.read(table))
        lake.note(table, {**lake.origin(table), "other": number})


def contents(config: Path) -> dict[str, set[str]]:
    with Lake(load(config).lake) as lake:
        files = {name: DeltaTable(str(lake.folder / name)).file_uris() for name in lake.tables()}
    return {name: {Path(uri).name for uri in uris} for name, uris in files.items()}
