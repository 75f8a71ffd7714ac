"""A lake of an earlier release is upgraded without its source files: no event is lost or doubled, and ids stay."""

import importlib
import pkgutil
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pytest
from deltalake import DeltaTable
from deltalake.transaction import create_table_with_add_actions
from histories import events_of
from ibis.backends.duckdb import Backend as DuckDB
from shops import habitus

import features
import features.delta
import features.lake
import flows.upgrade
import publish
from features.aliases import ALIASES
from features.attributes import ATTRIBUTES
from features.erasures import ERASURES
from features.events import EVENTS, REJECTED
from features.files import FILES, ID_RULE, fingerprint
from features.increments import update_sessions
from features.lake import Lake, LakeInUseError
from features.sessions import SESSIONS, sessionize
from features.snapshots import SNAPSHOTS
from features.sources import Source, SourceError
from features.table import Table
from features.upgrades import STEPS, Beside, Upgrade, first_fingerprints
from flows.configuration import Configuration, ConfigurationError, load
from flows.forget import begin, finish
from flows.ingest import Ingested, accept_files
from flows.snapshot import store_snapshots
from flows.upgrade import Upgraded, upgrade_lake
from publish.changes import CHANGES

LAKES = Path(__file__).parent / "data" / "lakes"
NOW = datetime(2026, 12, 1, tzinfo=UTC)
Row = dict[str, Any]


@dataclass(frozen=True)
class Shop:
    """A folder with a configuration, the files that were ingested, and the lake of an earlier release."""

    folder: Path
    suffix: str

    @property
    def config(self) -> Path:
        return self.folder / "habitus.toml"

    @property
    def configuration(self) -> Configuration:
        return load(self.config)

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*.{self.suffix}"))

    def copy(self, folder: Path) -> "Shop":
        return Shop(Path(shutil.copytree(self.folder, folder / self.suffix)), self.suffix)

    def upgrade(self, dry_run: bool = False) -> Upgraded:
        return upgrade_lake(self.configuration, dry_run)

    def ingest(self, rebuild: bool = False) -> Ingested:
        return accept_files.fn(str(self.config), NOW, rebuild)

    def put(self, name: str, *rows: tuple[str, str, str]) -> None:
        """Write a file of users, times and events, with all columns that the configuration names."""
        if self.suffix == "csv":
            lines = ["user,at,event,page,product,pieces,amount,device,more"]
            lines += [f"{user},{at},{event},/,,,,phone," for user, at, event in rows]
        else:
            lines = [
                f'{{"user": "{user}", "at": "{at}", "event": "{event}", "page": "/", "product": null, "pieces": null, '
                '"amount": null, "device": "phone", "more": {"campaign": "spring", "rank": 1}}'
                for user, at, event in rows
            ]
        (self.folder / f"{name}.{self.suffix}").write_text("\n".join(lines) + "\n")

    def rows(self, table: Table) -> list[Row]:
        """Return the rows of a table, in the order of its key, with the columns that it has."""
        stored = DeltaTable(str(self.folder / "lake" / table.name)).to_pyarrow_table().to_pylist()
        return sorted(stored, key=lambda row: [str(row[name]) for name in table.key])

    def content(self) -> dict[str, bytes]:
        """Return all that is in the lake's folder but for the lock of those that take turns."""
        folder = self.folder / "lake"
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != "work.lock")
        return {f"{path.relative_to(folder)}": path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lakes")
    with tarfile.open(LAKES / "0.1.0-e962cc1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module", params=["csv", "jsonl"])
def before(unpacked: Path, request: pytest.FixtureRequest) -> Shop:
    """Return the shop as the earlier release left it: for reading."""
    return Shop(unpacked / request.param, request.param)


@pytest.fixture(scope="module")
def upgraded(before: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Return the shop with its lake upgraded, while no source file was there: for reading."""
    shop = before.copy(tmp_path_factory.mktemp("upgraded"))
    for file in shop.files:
        file.rename(f"{file}.away")
    assert [one.table for one in shop.upgrade().upgrades] == ["events", "files", "sessions"]
    for file in before.files:
        (shop.folder / f"{file.name}.away").rename(shop.folder / file.name)
    return shop


@pytest.fixture
def old(before: Shop, tmp_path: Path) -> Shop:
    return before.copy(tmp_path)


@pytest.fixture
def new(upgraded: Shop, tmp_path: Path) -> Shop:
    return upgraded.copy(tmp_path)


@pytest.fixture(scope="module")
def old_csv(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Return a shop with everything in its lake, as the earlier release left it: for commands that refuse it."""
    return Shop(unpacked / "csv", "csv").copy(tmp_path_factory.mktemp("old"))


def without(rows: list[Row], *names: str) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def tables() -> Iterator[Table]:
    for package in (features, publish):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name not in ("features.spark", "publish.destinations.sql"):  # which need an extra
                yield from (
                    one for one in vars(importlib.import_module(module.name)).values() if isinstance(one, Table)
                )


def test_a_contract_counts_the_steps_that_lead_to_it() -> None:
    steps = {table.name: len(steps) for table, steps in STEPS}
    assert {table.name: table.contract for table in tables()} == {
        table.name: 1 + steps.get(table.name, 0) for table in tables()
    }


# What an upgrade leaves as it was.


def test_every_event_is_there_once_under_its_id_with_nothing_known_of_orders(before: Shop, upgraded: Shop) -> None:
    found = upgraded.rows(EVENTS)
    assert len(found) == {"csv": 93, "jsonl": 104}[before.suffix]
    assert without(found, "order_id") == before.rows(EVENTS)
    assert {row["order_id"] for row in found} == {None}


def test_what_was_read_from_each_file_is_known_and_that_its_ids_were_made_by_the_first_rule(
    before: Shop, upgraded: Shop
) -> None:
    found = upgraded.rows(FILES)
    assert without(found, "id_rule", "fingerprint") == without(before.rows(FILES), "fingerprint")
    assert [row["id_rule"] for row in found] == [1, 1, 1]


@pytest.mark.parametrize("table", [REJECTED, ATTRIBUTES, ALIASES, SNAPSHOTS, CHANGES, ERASURES])
def test_no_other_table_is_touched(table: Table, before: Shop, upgraded: Shop) -> None:
    prefix = f"{table.name}/"
    files, now = (
        {name: content for name, content in shop.content().items() if name.startswith(prefix)}
        for shop in (before, upgraded)
    )
    assert now == files
    assert files or before.suffix == "jsonl"


def test_a_session_without_page_views_no_longer_tells_of_a_bounce_and_all_else_is_as_it_was(
    before: Shop, upgraded: Shop
) -> None:
    was, found = before.rows(SESSIONS), upgraded.rows(SESSIONS)
    assert without(found, "bounced", "engaged") == without(was, "bounced", "engaged")
    assert {row["bounced"] is None for row in found if row["page_view_count"] == 0} == {True}
    assert [row["bounced"] for row in found if row["page_view_count"]] == [
        row["bounced"] for row in was if row["page_view_count"]
    ]


def test_sessions_of_before_become_what_sessionizing_gives(engine: DuckDB) -> None:
    acts = [
        *(("login", "01T10:00:00"), ("login", "02T10:00:00"), ("click", "02T10:00:05"), ("purchase", "03T10:00:00")),
        *(("refund", "04T10:00:00"), ("page_view", "05T10:00:00"), ("page_view", "06T10:00:00"), ("click", "06T10:11")),
    ]
    rows = [{"event_name": name, "occurred_at": f"2024-03-{time}"} for name, time in acts]
    events = events_of(engine, rows)
    sessions = sessionize(events, timedelta(minutes=30))
    engaged = (sessions.duration_s > 10) | (sessions.page_view_count >= 2) | sessions.converted
    only_one = (sessions.page_view_count == 1) | (sessions.event_count == 1)
    columns = {name: name for name in ("user_id", "occurred_at", "event_name")}
    beside = Beside(Source.model_validate({"files": "a.csv", "columns": columns}), "UTC", events)
    [step] = [steps[0] for table, steps in STEPS if table is SESSIONS]

    stepped = step(sessions.mutate(engaged=engaged, bounced=only_one & ~engaged), beside)

    now = sessions.order_by("started_at").to_pyarrow().to_pylist()
    assert stepped.order_by("started_at").to_pyarrow().to_pylist() == now
    assert {row["engaged"] for row in now} == {row["bounced"] for row in now} == {True, False, None}


def test_read_accepted_and_rejected_still_add_up(upgraded: Shop) -> None:
    read = sum(row["read"] for row in upgraded.rows(FILES))
    assert read == len(upgraded.rows(EVENTS)) + len(upgraded.rows(REJECTED))


def test_days_are_upgraded_some_at_a_time(old: Shop, upgraded: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.lake, "MOST_ROWS_AT_ONCE", 15)
    seen = []
    step = Lake.upgrade

    def watch(lake: Lake, table: Table, make: Callable[[ir.Table], ir.Table]) -> None:
        def watched(rows: ir.Table) -> ir.Table:
            seen.append(rows.count().to_pyarrow().as_py())
            return make(rows)

        step(lake, table, watched)

    monkeypatch.setattr(Lake, "upgrade", watch)
    old.upgrade()

    assert len(seen) > 5
    assert max(seen) < 30
    assert old.rows(EVENTS) == upgraded.rows(EVENTS)


def test_the_first_fingerprint_of_a_mapping_is_as_0_1_0_made_it() -> None:
    columns = {"user_id": "u", "occurred_at": {"sql": "x+1"}, "event_name": {"value": "v"}, "event_id": ["a", "b"]}
    given = {"files": "a.csv", "time_unit": "s", "names": {"a": "b"}, "columns": columns}
    source = Source.model_validate(given)
    made_by_0_1_0 = "4cd22117e5117dfdcfd19da8863e0a8c1645a4ee1a7f6bd7f622c4d463b6cec0"
    assert first_fingerprints(source, "Europe/Berlin") == (made_by_0_1_0, fingerprint(source, "Europe/Berlin"))


# What goes on after it.


def test_files_that_were_ingested_before_add_nothing(new: Shop) -> None:
    tables = [new.rows(table) for table in (EVENTS, REJECTED, FILES)]

    ingested = new.ingest()

    assert (ingested.known_files, ingested.batch.files) == (3, 0)
    assert [new.rows(table) for table in (EVENTS, REJECTED, FILES)] == tables


def test_a_file_that_was_ingested_before_is_known_under_another_name(new: Shop) -> None:
    new.files[0].rename(new.folder / f"april.{new.suffix}")
    assert new.ingest().batch.files == 0


def test_a_new_file_adds_its_events_only_though_the_others_are_gone(new: Shop) -> None:
    rows = new.rows(EVENTS)
    for file in new.files:
        file.unlink()
    new.put("april", ("ada", "2024-04-01 12:00:00", "view"), ("gus", "2024-03-02 10:00:00", "view"))

    batch = new.ingest().batch

    assert (batch.read, batch.accepted) == (2, 2)
    added = [row for row in new.rows(EVENTS) if row["source_file"] == f"april.{new.suffix}"]
    assert [row for row in new.rows(EVENTS) if row not in added] == rows
    assert {row["user_id"] for row in added} == {"ada", "gus"}
    assert {row["path"]: row["id_rule"] for row in new.rows(FILES)} == {
        f"april.{new.suffix}": ID_RULE,
        **{f"march-{number}.{new.suffix}": 1 for number in (1, 2, 3)},
    }


def test_a_file_that_has_grown_since_adds_only_what_is_new_whenever_it_grows(new: Shop) -> None:
    ids = {row["event_id"] for row in new.rows(EVENTS)}
    new.put("april", ("ada", "2024-04-01 12:00:00", "view"))
    line = (new.folder / f"april.{new.suffix}").read_text().splitlines()[-1]
    (new.folder / f"april.{new.suffix}").unlink()
    file = new.files[0]
    for number in (1, 2):
        file.write_text(file.read_text() + line.replace("12:00:00", f"12:00:0{number}") + "\n")
        assert (new.ingest().batch.accepted, len(new.rows(EVENTS))) == (1, len(ids) + number)
    assert ids < {row["event_id"] for row in new.rows(EVENTS)}


def test_an_export_that_overlaps_with_those_of_before_adds_only_what_is_new(new: Shop) -> None:
    ids = {row["event_id"] for row in new.rows(EVENTS)}
    new.put("april", ("ada", "2024-04-01 12:00:00", "view"))
    april = new.folder / f"april.{new.suffix}"
    april.write_text(new.files[-1].read_text() + april.read_text().splitlines()[-1] + "\n")
    new.ingest()
    found = [row["event_id"] for row in new.rows(EVENTS)]
    assert len(found) == len(ids) + 1
    assert ids < set(found)


def test_sessions_are_those_of_before_and_are_updated_by_new_events(new: Shop) -> None:
    rows, gap = new.rows(SESSIONS), new.configuration.sessions.gap
    with new.configuration.open_lake() as lake:
        assert update_sessions(lake, gap).changed is False
    assert new.rows(SESSIONS) == rows

    new.put("april", ("ada", "2024-04-01 12:00:00", "view"))
    new.ingest()
    with new.configuration.open_lake() as lake:
        updated = update_sessions(lake, gap)

    assert (updated.rebuilt, updated.added) == (False, 1)
    assert [row for row in new.rows(SESSIONS) if row["started_at"].month == 3] == rows


def test_who_was_erased_does_not_come_back(unpacked: Path, tmp_path: Path) -> None:
    shop = Shop(unpacked / "csv", "csv").copy(tmp_path)
    shop.upgrade()
    shop.put("april", ("eve", "2024-03-01 12:00:00", "view"), ("ada", "2024-04-01 12:00:00", "view"))

    assert shop.ingest().batch.rejected == {"erased": 1}
    assert "eve" not in {row["user_id"] for row in shop.rows(EVENTS)}


def test_users_can_be_erased_after_it_and_leave_no_file_of_before(unpacked: Path, tmp_path: Path) -> None:
    shop = Shop(unpacked / "csv", "csv").copy(tmp_path)
    shop.upgrade()
    count = sum(row["user_id"] == "fay" for row in shop.rows(EVENTS))

    begin(shop.configuration, ["fay"], NOW)
    [receipt] = finish.fn(str(shop.config)).receipts.values()

    assert receipt.rows["events"] == count > 0
    with shop.configuration.open_lake() as lake:
        files = {path.name for path in (lake.folder / "events").glob("*/*.parquet")}
        assert files == {Path(file).name for file in lake.files(EVENTS)}


FIRST_FILES = replace(
    FILES,
    schema=ibis.schema({name: kind for name, kind in FILES.schema.items() if name != "id_rule"}),
    contract=1,
)


def test_events_of_an_ingest_that_broke_off_are_known_when_their_file_comes_again(old: Shop) -> None:
    late = f"march-2.{old.suffix}"
    with Lake(old.folder / "lake") as lake:
        lake.write(FIRST_FILES, lake.read(FIRST_FILES).filter(lambda files: files.path != late))
    old.upgrade()
    assert {row["path"]: (row["content"], row["id_rule"]) for row in old.rows(FILES)}[late] == ("", 1)
    rows = old.rows(EVENTS)

    assert (old.ingest().batch.files, old.rows(EVENTS)) == (1, rows)
    assert [row["path"] for row in old.rows(FILES)] == [f"march-{number}.{old.suffix}" for number in (1, 2, 3)]


def test_a_rebuild_that_broke_off_begins_anew(old: Shop) -> None:
    with Lake(old.folder / "lake") as lake:
        lake.write(FIRST_FILES, lake.read(FIRST_FILES).limit(0))
    old.upgrade()
    assert old.rows(FILES) == []
    assert old.ingest().batch.files == 3


@pytest.mark.slow
def test_snapshots_are_those_of_before(unpacked: Path, tmp_path: Path) -> None:
    shop = Shop(unpacked / "csv", "csv").copy(tmp_path)
    rows = shop.rows(SNAPSHOTS)
    shop.upgrade()
    with shop.configuration.open_lake() as lake:
        update_sessions(lake, shop.configuration.sessions.gap)
    store_snapshots.fn(str(shop.config), rows[0]["as_of"], False)
    assert shop.rows(SNAPSHOTS) == rows
    assert len(rows) == 5


# A mapping that was changed since the files were read.


@pytest.mark.parametrize(
    ("key", "changed"),
    [('buy = "purchase"', 'buy = "refund"'), ('item_id = "product"', 'item_id = "product"\norder_id = "more"')],
)
def test_files_that_were_read_by_another_mapping_are_read_again(
    key: str, changed: str, unpacked: Path, tmp_path: Path
) -> None:
    shop = Shop(unpacked / "csv", "csv").copy(tmp_path)
    shop.config.write_text(shop.config.read_text().replace(key, changed))
    shop.upgrade()

    shop.files[0].rename(shop.folder / "away")
    with pytest.raises(SourceError, match=r"rows are read otherwise than before, .* 1 that were ingested are gone"):
        shop.ingest()
    (shop.folder / "away").rename(shop.folder / "march-1.csv")
    assert shop.ingest().batch.files == 3


def test_events_that_do_not_name_their_file_stay_until_they_are_given_up(unpacked: Path, tmp_path: Path) -> None:
    """Lakes of 0.1.0 had neither the column nor the table files."""
    shop = Shop(unpacked / "csv", "csv").copy(tmp_path)
    shutil.rmtree(shop.folder / "lake")
    columns = {name: kind for name, kind in EVENTS.schema.items() if name not in ("source_file", "order_id")}
    first = replace(EVENTS, schema=ibis.schema(columns), contract=1)
    with Lake(shop.folder / "lake") as lake:
        lake.write(first, events_of(lake.engine, [{"event_id": "1", "occurred_at": "2024-03-01"}]))

    shop.upgrade()

    with pytest.raises(SourceError, match=r"1 that were ingested are gone or changed, first unknown: .* --rebuild"):
        shop.ingest()
    assert [row["event_id"] for row in shop.rows(EVENTS)] == ["1"]
    assert shop.ingest(rebuild=True).batch.files == 3


# Dry, twice, killed, and in the way of others.


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(old: Shop) -> None:
    content = old.content()
    count = {"csv": 93, "jsonl": 104}[old.suffix]

    assert old.upgrade(dry_run=True) == Upgraded(
        [Upgrade("events", 1, 2, count), Upgrade("files", 1, 2, 3), Upgrade("sessions", 1, 2, len(old.rows(SESSIONS)))],
        True,
    )
    assert old.content() == content


def test_a_second_upgrade_does_nothing(new: Shop) -> None:
    content = new.content()
    assert new.upgrade() == Upgraded([], False)
    assert new.content() == content


def test_a_new_lake_is_of_this_release(tmp_path: Path, unpacked: Path) -> None:
    shop = Shop(unpacked / "csv", "csv").copy(tmp_path)
    shutil.rmtree(shop.folder / "lake")
    assert shop.upgrade() == Upgraded([], False)
    assert not (shop.folder / "lake").exists()
    shop.ingest()
    assert shop.upgrade() == Upgraded([], False)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_upgrade_that_is_killed_goes_on_with_the_table_that_it_was_at(
    number: int, old: Shop, upgraded: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = []

    def die(*arguments: Any, **options: Any) -> None:
        commits.append(arguments)
        if len(commits) == number:
            raise KeyboardInterrupt
        create_table_with_add_actions(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(features.delta, "create_table_with_add_actions", die)
        with pytest.raises(KeyboardInterrupt):
            old.upgrade()
    with pytest.raises(ConfigurationError, match="habitus upgrade"):
        old.configuration.open_lake()

    assert [one.table for one in old.upgrade().upgrades] == ["events", "files", "sessions"][number - 1 :]
    for table in (EVENTS, FILES, SESSIONS):
        assert old.rows(table) == upgraded.rows(table)


def test_an_upgrade_has_the_lake_alone(old: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.upgrade, "WAIT_S", 0)
    content = old.content()
    with Lake(old.folder / "lake"), pytest.raises(LakeInUseError):
        old.upgrade()
    assert old.content() == content


def test_a_lake_of_a_later_release_is_refused(new: Shop) -> None:
    with Lake(new.folder / "lake") as lake:
        lake.upgrade(replace(EVENTS, contract=3), lambda rows: rows)
    for use in (new.ingest, new.upgrade):
        with pytest.raises(ConfigurationError, match=r"events: is of contract 3, .* 2: upgrade Habitus"):
            use()


# What people see.


@pytest.mark.parametrize(
    "arguments",
    [
        *(["ingest", "CONFIG"], ["forget", "ada", "--config", "CONFIG"], ["serve", "CONFIG", "--port", "0"]),
        *(
            pytest.param(arguments, marks=pytest.mark.slow)
            for arguments in (
                *(["run", "CONFIG"], ["sessions", "CONFIG"], ["snapshot", "CONFIG"], ["train", "CONFIG"]),
                *(["score", "CONFIG"], ["publish", "CONFIG"], ["report", "CONFIG"], ["audit", "CONFIG"]),
                ["preview", "CONFIG", "--gap", "45m"],
            )
        ),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_on_an_older_lake_says_to_upgrade_it(arguments: list[str], old_csv: Shop) -> None:
    content = old_csv.content()

    done = habitus(*(str(old_csv.config) if one == "CONFIG" else one for one in arguments))

    assert done.exit_code == 2
    complaints = [line for line in done.stderr.splitlines() if line.startswith("habitus: ")]
    assert complaints == [
        f"habitus: {old_csv.config}: events, files, sessions: made by an earlier release of Habitus; "
        f"run `habitus upgrade {old_csv.config}` first"
    ]
    assert "Traceback" not in done.stderr
    assert old_csv.content() == content


def test_the_command_says_what_it_would_do_and_what_it_did(unpacked: Path, tmp_path: Path) -> None:
    shop = Shop(unpacked / "csv", "csv").copy(tmp_path)
    dry = habitus("upgrade", str(shop.config), "--dry-run")
    assert dry.exit_code == 0
    assert dry.stdout == (
        "would upgrade events from contract 1 to 2, 93 rows\nwould upgrade files from contract 1 to 2, 3 rows\n"
        "would upgrade sessions from contract 1 to 2, 56 rows\n"
    )

    done = habitus("upgrade", str(shop.config))
    assert done.exit_code == 0
    assert "upgrade: events from contract 1 to 2, 93 rows" in done.stderr

    again = habitus("upgrade", str(shop.config))
    assert again.stdout == "nothing to upgrade: all tables are of this release\n"
