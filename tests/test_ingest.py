"""Ingest by increments: whatever the files, their batches and their order, the tables are those of one batch."""

import json
import random
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from laws import law
from shops import habitus

import flows.ingest
from features.attributes import ATTRIBUTES
from features.events import EVENTS, REJECTED
from features.files import FILES
from features.lake import Lake
from features.sources import SourceError, UnreadableError
from features.table import Table
from flows.ingest import Ingested, accept_files
from flows.sessions import sessionize
from flows.snapshot import store_snapshots

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = """
name = "shop"
[events]
files = ["{files}"]
rejected_max = 1
[events.columns]
event_id = "id"
user_id = "user"
occurred_at = "at"
event_name = "event"
"""
HEADER = "id,user,at,event"

Row = dict[str, Any]


@dataclass(frozen=True)
class Shop:
    """A folder with a configuration, files and a lake."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "habitus.toml"

    def configure(self, text: str = CONFIG, files: str = "*.csv") -> None:
        self.folder.mkdir(exist_ok=True)
        self.config.write_text(text.replace("{files}", files))

    def put(self, name: str, *lines: str, header: str = HEADER) -> None:
        (self.folder / name).write_text("\n".join([header, *lines]) + "\n")

    def ingest(self, rebuild: bool = False, now: datetime = NOW) -> Ingested:
        return accept_files.fn(str(self.config), now, rebuild)

    def copy(self, folder: Path) -> "Shop":
        """Return the same shop elsewhere, with what it has ingested."""
        return Shop(Path(shutil.copytree(self.folder, folder)))

    def rows(self, table: Table, *columns: str) -> list[Any]:
        """Return the rows of a table in the order of their key; of one column, its values."""
        stored = DeltaTable(str(self.folder / "lake" / table.name)).to_pyarrow_table().to_pylist()
        stored.sort(key=lambda row: [row[name] for name in table.key])
        rows: list[Row] = [{name: row[name] for name in columns or table.schema.names} for row in stored]
        return [row[columns[0]] for row in rows] if len(columns) == 1 else rows

    def ids(self) -> list[str]:
        return self.rows(EVENTS, "event_id")

    def partitions(self) -> dict[str, str]:
        """Return the file of each day."""
        with Lake(self.folder / "lake") as lake:
            return {Path(file).parent.name: Path(file).name for file in lake.files(EVENTS)}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path / "shop")
    shop.configure()
    return shop


# What many tests begin with is ingested once: they read it, or go on with a copy.

FIRST = ("1,ada,2024-03-01 10:00:00,home", "1,ada,2024-03-01 11:00:00,home", "2,,2024-03-01,home")
"""An event, a duplicate and a row without a user."""


@dataclass(frozen=True)
class Past:
    """A shop that has ingested its files, and what was said of the last time."""

    shop: Shop
    said: Ingested


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Ingest a.csv, which holds the FIRST rows."""
    shop = Shop(tmp_path_factory.mktemp("past") / "shop")
    shop.configure()
    shop.put("a.csv", *FIRST)
    return Past(shop, shop.ingest())


@pytest.fixture
def begun(past: Past, tmp_path: Path) -> Shop:
    """Return a copy of the shop that has ingested a.csv."""
    return past.shop.copy(tmp_path / "begun")


@dataclass(frozen=True)
class Week:
    """Two batches: what was said of each, and the file of each day after it."""

    shop: Shop
    first: Ingested
    first_days: dict[str, str]
    second: Ingested
    second_days: dict[str, str]


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Week:
    """Ingest six days, then events of which some are older."""
    shop = Shop(tmp_path_factory.mktemp("week") / "shop")
    shop.configure()
    shop.put("a.csv", "0,,2024-03-01,home", *(f"{day},ada,2024-03-0{day} 10:00:00,home" for day in range(1, 7)))
    first, first_days = shop.ingest(), shop.partitions()
    shop.put(
        "b.csv",
        "7,ada,2024-03-06 09:59:59,late by a second",
        "8,ada,2024-03-06 10:00:00,not late",
        "9,ben,2024-03-02 10:00:00,late by four days",
        "4,ada,2024-03-03 10:00:00,moves its event to another day",
        "5,ada,2024-03-07 10:00:00,a twin that comes too late",
        "A,ben,2024-03-08 10:00:00,home",
    )
    return Week(shop, first, first_days, shop.ingest(), shop.partitions())


# --- which files are read ---


def test_only_new_files_are_read(week: Week) -> None:
    first, second = week.first, week.second

    assert (first.known_files, first.batch.files, first.batch.read) == (0, 1, 7)
    assert (second.known_files, second.batch.files, second.batch.read) == (1, 1, 6)
    assert (second.read, second.accepted, second.rejected) == (13, 10, {"no_user": 1, "duplicate_id": 2})
    assert week.shop.ids() == [*"123456789A"]


def test_without_new_files_nothing_is_read_and_nothing_changes(past: Past, begun: Shop) -> None:
    first, again = past.said, begun.ingest()

    assert (again.known_files, again.batch.files, again.batch.read, again.changed) == (1, 0, 0, False)
    assert (again.read, again.accepted, again.rejected) == (first.read, first.accepted, first.rejected)
    assert again.watermark == first.watermark == datetime(2024, 3, 1, 10, tzinfo=UTC)


def test_a_file_with_another_name_is_known_by_its_content(begun: Shop) -> None:
    (begun.folder / "a.csv").rename(begun.folder / "b.csv")

    assert begun.ingest().known_files == 1
    assert begun.rows(EVENTS, "source_file") == ["a.csv"]


def test_of_files_with_the_same_content_the_first_is_read(shop: Shop) -> None:
    for name in ("b.csv", "a.csv", "c.csv"):
        shop.put(name, "1,ada,2024-03-01 10:00:00,home")

    ingested = shop.ingest()
    assert (ingested.known_files, ingested.batch.files, ingested.read) == (2, 1, 1)
    assert shop.rows(EVENTS, "source_file") == ["a.csv"]


def test_events_of_files_that_were_taken_away_stay(begun: Shop) -> None:
    (begun.folder / "a.csv").unlink()
    assert begun.ingest().accepted == 1  # no file is there at all

    begun.put("b.csv", "2,ben,2024-03-01 11:00:00,home")
    assert begun.ingest().known_files == 0
    assert begun.ids() == ["1", "2"]


def test_a_name_that_never_named_a_file_is_still_an_error(begun: Shop) -> None:
    begun.configure(files='*.csv", "b/*.tsv')

    with pytest.raises(SourceError, match=r"^b/\*\.tsv: no such file"):
        begun.ingest()


def test_what_is_known_of_a_file_is_its_content_and_what_became_of_its_rows(past: Past) -> None:
    [file] = past.shop.rows(FILES, "path", "content", "read", "accepted", "rejected", "known")
    assert file["path"] == "a.csv"
    assert len(file["content"]) == 64
    assert (file["read"], file["accepted"], file["rejected"], file["known"]) == (3, 1, 2, 0)


def test_the_same_files_give_the_same_bytes(shop: Shop, past: Past) -> None:
    shop.put("a.csv", *FIRST)
    shop.ingest()

    with Lake(shop.folder / "lake") as here, Lake(past.shop.folder / "lake") as there:
        assert [here.content(table) == there.content(table) for table in (EVENTS, REJECTED, FILES)] == [True] * 3


# --- a file that is read again ---


@pytest.fixture(scope="module")
def grown(past: Past, tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Ingest a.csv again, to which an event was added."""
    shop = past.shop.copy(tmp_path_factory.mktemp("grown") / "shop")
    shop.put("a.csv", *FIRST, "3,ben,2024-03-02 10:00:00,home")
    return Past(shop, shop.ingest())


@pytest.fixture(scope="module")
def replaced(grown: Past, tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Ingest a.csv again, in which nothing is left of what it held before."""
    shop = grown.shop.copy(tmp_path_factory.mktemp("replaced") / "shop")
    shop.put("a.csv", "4,ada,2024-03-03 10:00:00,home")
    return Past(shop, shop.ingest())


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Ingest a.csv again, of which both rows were mended, beside b.csv, which stays as it is."""
    shop = Shop(tmp_path_factory.mktemp("mended") / "shop")
    shop.configure()
    shop.put("a.csv", "1,ada,2024-03-01 10:00:00,home", "2,,2024-03-01,home")
    shop.put("b.csv", "3,,2024-03-01 10:00:00,home")
    shop.ingest()
    shop.put("a.csv", "1,ada,2024-03-01 09:00:00,home", "2,ben,2024-03-01,home")
    return Past(shop, shop.ingest())


def test_rows_that_a_file_gave_before_are_known(grown: Past) -> None:
    said, rejected = grown.said, {"no_user": 1, "duplicate_id": 1}

    assert (said.batch.read, said.batch.accepted, said.batch.rejected, said.batch.known) == (4, 1, rejected, 1)
    assert (said.read, said.accepted, said.rejected) == (4, 2, rejected)
    assert grown.shop.ids() == ["1", "3"]


def test_rejected_rows_of_a_file_that_was_mended_are_gone(mended: Past) -> None:
    assert (mended.said.accepted, mended.said.rejected) == (2, {"no_user": 1})
    assert mended.shop.rows(REJECTED, "source_file") == ["b.csv"]


def test_a_row_that_was_mended_under_its_id_is_a_twin_like_any_other(mended: Past, tmp_path: Path) -> None:
    assert mended.said.batch.accepted == 2
    assert mended.said.batch.rejected == {}  # what it was is in no file now
    assert mended.shop.rows(EVENTS, "occurred_at")[0] == datetime(2024, 3, 1, 9, tzinfo=UTC)
    shop = mended.shop.copy(tmp_path / "shop")
    shop.put("a.csv", "1,ada,2024-03-01 11:00:00,home")
    assert shop.ingest().batch.rejected == {"duplicate_id": 1}

    assert shop.rows(EVENTS, "occurred_at")[0] == datetime(2024, 3, 1, 9, tzinfo=UTC)


def test_a_grown_file_takes_the_place_of_what_it_was(grown: Past, replaced: Past) -> None:
    assert grown.shop.rows(FILES, "read") == [4]

    assert sorted(replaced.shop.rows(FILES, "read")) == [1, 4]  # what it held before is in no file now
    assert replaced.shop.ids() == ["1", "3", "4"]


# --- twins ---


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Ingest two files, one after the other, that share their ids."""
    shop = Shop(tmp_path_factory.mktemp("twins") / "shop")
    shop.configure(CONFIG + 'ingested_at = "known"\n')
    header = HEADER + ",known"
    twice = "3,cat,2024-03-02,home,2024-03-02"
    shop.put(
        *("a.csv", "1,ada,2024-03-05,late,2024-03-09", "2,ben,2024-03-05,early,2024-03-06", twice, twice),
        header=header,
    )
    assert shop.ingest().rejected == {"duplicate_id": 1}
    shop.put(
        *("b.csv", "1,ada,2024-03-01,early,2024-03-08", "2,ben,2024-03-07,late,2024-03-08"),
        "3,cat,2024-03-01,home,2024-03-01",
        header=header,
    )
    return Past(shop, shop.ingest())


def rejected_of(past: Past, event_id: str) -> list[tuple[str, str]]:
    """Return the file and the name of each event that was rejected for its id."""
    rows = [(row["source_file"], json.loads(row["row"])) for row in past.shop.rows(REJECTED)]
    return sorted((file, event["event_name"]) for file, event in rows if event["event_id"] == event_id)


def test_of_twins_in_two_batches_the_first_to_be_ingested_is_kept(twins: Past) -> None:
    assert twins.shop.rows(EVENTS, "event_name", "source_file")[:2] == [
        {"event_name": "early", "source_file": "b.csv"},
        {"event_name": "early", "source_file": "a.csv"},
    ]
    assert rejected_of(twins, "1") == [("a.csv", "late")]
    assert rejected_of(twins, "2") == [("b.csv", "late")]
    assert (twins.said.read, twins.said.accepted, twins.said.rejected) == (7, 3, {"duplicate_id": 4})


def test_equal_rows_of_a_file_are_all_counted_when_the_accepted_one_gives_way(twins: Past) -> None:
    assert (twins.said.read, twins.said.accepted, twins.said.rejected) == (7, 3, {"duplicate_id": 4})
    assert rejected_of(twins, "3") == [("a.csv", "home"), ("a.csv", "home")]


def test_only_days_that_change_are_written(week: Week) -> None:
    before, after = week.first_days, week.second_days

    assert {day for day in before if before[day] != after.get(day)} == {f"day=2024-03-0{day}" for day in (2, 3, 4, 6)}
    assert after.keys() - before.keys() == {"day=2024-03-08"}
    assert "day=2024-03-04" not in after


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_ids_of_content_tell_twins_in_two_batches(shop: Shop, order: str) -> None:
    shop.configure(CONFIG.replace('event_id = "id"\n', ""))
    rows = {"a": ["ada,2024-03-01,home"], "b": ["ada,2024-03-01,home", "ada,2024-03-01,home", "ada,2024-03-02,home"]}
    for name in order:
        shop.put(f"{name}.csv", *rows[name], header="user,at,event")
        ingested = shop.ingest()

    assert (ingested.read, ingested.accepted, ingested.rejected) == (4, 3, {"duplicate_id": 1})
    assert sorted(shop.rows(EVENTS, "source_file")) == ["a.csv", "b.csv", "b.csv"]


HOUR = st.integers(0, 5).map(lambda number: f"2024-03-0{1 + number // 3} {23 * (number % 3 == 2):02}:00:00")
LINE = st.tuples(
    st.sampled_from(["", *"123456"]),
    st.sampled_from(["ada", "ada", "ben", ""]),
    HOUR | st.just("soon"),
    st.sampled_from(["home", "cart"]),
    st.sampled_from(["", "2024-03-05", "2024-03-06"]),
).map(",".join)
FILE = st.lists(LINE, min_size=1, max_size=8).map(tuple)


@given(files=st.lists(FILE, min_size=2, max_size=3, unique=True), seed=st.integers(0, 10**6))
@law(1)
def test_any_batches_in_any_order_give_the_tables_of_one_batch(files: list[tuple[str, ...]], seed: int) -> None:
    chance = random.Random(seed)
    names = [f"{number}.csv" for number in range(len(files))]
    lines = dict(zip(names, files, strict=True)) | {"good.csv": ("good,ada,2024-03-01,home,",)}
    with TemporaryDirectory() as folder:
        once, often = Shop(Path(folder) / "once"), Shop(Path(folder) / "often")
        for shop in (once, often):
            shop.configure(CONFIG + 'ingested_at = "known"\n')
            shop.put("good.csv", *lines["good.csv"], header=HEADER + ",known")
        for name in names:
            once.put(name, *lines[name], header=HEADER + ",known")
        counted = once.ingest()
        for position, name in enumerate(chance.sample(names, len(names))):
            often.put(name, *lines[name], header=HEADER + ",known")
            if chance.random() < 0.7 or position == len(names) - 1:
                batch = often.ingest().batch
                assert batch.read == batch.accepted + sum(batch.rejected.values()) + batch.known

        assert often.rows(EVENTS) == once.rows(EVENTS)
        assert often.rows(REJECTED) == once.rows(REJECTED)
        assert counted.read == len(often.rows(EVENTS)) + len(often.rows(REJECTED)) == sum(map(len, lines.values()))


# --- breaking off ---


@pytest.mark.slow
def test_a_run_that_breaks_off_between_commits_is_repaired_by_the_next(shop: Shop, tmp_path: Path) -> None:
    undisturbed = Shop(tmp_path / "undisturbed")
    undisturbed.configure()
    for one in (shop, undisturbed):
        one.put("a.csv", "1,ada,2024-03-01 10:00:00,home", "2,,2024-03-01,home", "3,ada,2024-03-02 10:00:00,home")
        one.ingest()
        # A twin that displaces, one that loses, two that are equal, a file that has grown.
        one.put("b.csv", "1,ada,2024-03-01 09:00:00,home", "3,ada,2024-03-03,home", "4,,2024-03-01,home")
        one.put("c.csv", "5,ben,2024-03-04,home", "5,ben,2024-03-04,home")
    undisturbed.ingest()
    for table in (REJECTED, EVENTS, FILES):
        in_the_way = shop.folder / "lake" / table.name / "_delta_log" / f"{1:020}.json"
        in_the_way.mkdir()
        with pytest.raises(Exception, match="commit"):
            shop.ingest()
        in_the_way.rmdir()
    shop.ingest()

    assert shop.rows(EVENTS) == undisturbed.rows(EVENTS)
    assert shop.rows(REJECTED) == undisturbed.rows(REJECTED)
    counts = ("path", "content", "read", "rejected")
    assert shop.rows(FILES, *counts) == undisturbed.rows(FILES, *counts)


def test_files_that_vanish_before_a_first_run_is_repaired_are_not_lost(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.put("a.csv", "1,ada,2024-03-01 10:00:00,home")

    def die(*arguments: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(flows.ingest, "_write_files", die)
        with pytest.raises(KeyboardInterrupt):
            shop.ingest()
    (shop.folder / "a.csv").rename(shop.folder / "a.done")
    shop.put("b.csv", "2,ada,2024-03-01 10:00:00,home")

    with pytest.raises(SourceError, match=r"1 that were ingested are gone or changed, first a\.csv: .*--rebuild"):
        shop.ingest()
    assert shop.ids() == ["1"]


# --- reading all files again ---


def test_another_mapping_reads_all_files_again(week: Week, tmp_path: Path) -> None:
    shop = week.shop.copy(tmp_path / "shop")
    shop.configure(CONFIG + "[events.names]\nhome = 'page_view'\n")
    again = shop.ingest()

    assert (again.known_files, again.batch.files, again.accepted) == (0, 2, 10)
    assert shop.rows(EVENTS, "event_name").count("page_view") == 6  # of ids 1, 2, 3, 5, 6 and A
    assert shop.rows(EVENTS, "event_name").count("home") == 0


def test_another_time_zone_reads_all_files_again(begun: Shop) -> None:
    begun.configure('time_zone = "Europe/Berlin"\n' + CONFIG)
    begun.ingest()

    assert begun.rows(EVENTS, "occurred_at") == [datetime(2024, 3, 1, 9, tzinfo=UTC)]


def test_other_names_of_files_read_none_again(begun: Shop) -> None:
    begun.configure(CONFIG.replace("[events]", "[events]\nskip_unreadable = true"), files="[ab].csv")

    assert begun.ingest().known_files == 1


def test_files_that_are_gone_stop_another_mapping(shop: Shop) -> None:
    for number, name in enumerate(("c", "b", "a")):
        shop.put(f"{name}.csv", f"{number},ada,2024-03-01 10:00:00,home")
    shop.ingest()
    (shop.folder / "c.csv").unlink()
    (shop.folder / "b.csv").unlink()
    shop.configure(CONFIG.replace('"event"', '"id"'))

    with pytest.raises(SourceError, match=r"2 that were ingested are gone or changed, first b\.csv: .*--rebuild"):
        shop.ingest()
    assert shop.ids() == ["0", "1", "2"]
    assert shop.ingest(rebuild=True).accepted == 1
    assert shop.rows(EVENTS, "event_name") == ["2"]
    assert shop.rows(FILES, "path") == ["a.csv"]


def test_a_file_that_has_grown_since_does_not_stop_another_mapping(grown: Past, tmp_path: Path) -> None:
    shop = grown.shop.copy(tmp_path / "shop")
    shop.configure(CONFIG.replace('"event"', '"id"'))

    assert shop.ingest().accepted == 2


def test_a_rebuild_leaves_what_only_gone_files_held_out_of_every_table(replaced: Past, tmp_path: Path) -> None:
    shop = replaced.shop.copy(tmp_path / "shop")
    rebuilt = shop.ingest(rebuild=True)

    assert (rebuilt.read, rebuilt.accepted, rebuilt.rejected, rebuilt.batch.watermark) == (1, 1, {}, None)
    assert (shop.ids(), shop.rows(REJECTED), shop.rows(FILES, "read")) == (["4"], [], [1])


def test_a_rebuild_of_the_same_files_changes_nothing(begun: Shop) -> None:
    assert not begun.ingest(rebuild=True).changed


def test_a_rebuild_without_files_is_an_error(begun: Shop) -> None:
    (begun.folder / "a.csv").unlink()

    with pytest.raises(SourceError, match="no such file"):
        begun.ingest(rebuild=True)
    assert begun.ids() == ["1"]


# --- lateness ---


def test_the_first_run_knows_no_lateness(week: Week) -> None:
    first = week.first

    assert first.watermark == datetime(2024, 3, 6, 10, tzinfo=UTC)
    assert (first.batch.watermark, first.batch.late_share, first.batch.late_by_max_s) == (None, None, None)


def test_events_from_before_the_watermark_are_late(week: Week) -> None:
    second = week.second

    assert second.batch.watermark == datetime(2024, 3, 6, 10, tzinfo=UTC)
    assert (second.batch.accepted, second.batch.late_share) == (5, 0.6)
    assert second.batch.late_by_max_s == 4 * 86400
    assert second.watermark == datetime(2024, 3, 8, 10, tzinfo=UTC)


# --- files that cannot be read ---


def parquet(path: Path, first_id: int, damaged: bool = False) -> None:
    """Write a thousand events, whose second row group is damaged where only reading its rows finds out."""
    ids = [f"{first_id + number}" for number in range(1000)]
    columns = {"id": ids, "user": ids, "at": ["2024-03-01 10:00:00"] * 1000, "event": ids}
    pq.write_table(pa.table(columns), path, row_group_size=500, use_dictionary=False)
    if damaged:
        start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
        content = bytearray(path.read_bytes())
        content[start : start + 1000] = b"\xff" * 1000
        path.write_bytes(content)


def test_a_file_that_is_damaged_in_its_middle_is_named(shop: Shop) -> None:
    shop.configure(files="*.parquet")
    for number, name in enumerate(("a", "b", "c")):
        parquet(shop.folder / f"{name}.parquet", 1000 * number, damaged=name == "b")

    with pytest.raises(UnreadableError, match=r"b\.parquet: cannot be read: "):
        shop.ingest()
    assert not (shop.folder / "lake" / "events").exists()


def test_files_that_cannot_be_read_are_skipped_if_so_said_and_tried_again(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.configure(CONFIG.replace("[events]", "[events]\nskip_unreadable = true"), files="*.parquet")
    parquet(shop.folder / "a.parquet", 0)
    parquet(shop.folder / "b.parquet", 1000, damaged=True)
    (shop.folder / "c.parquet").write_bytes(b"")
    assert shop.ingest().accepted == 1000
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [next(name for name in ("a", "b", "c") if f"{name}.parquet" in line) for line in warned] == ["b", "c"]
    assert shop.rows(FILES, "path") == ["a.parquet"]

    assert shop.ingest().accepted == 1000
    parquet(shop.folder / "b.parquet", 1000)
    assert shop.ingest().accepted == 2000


def test_files_of_which_none_can_be_read_are_an_error(shop: Shop) -> None:
    shop.configure(CONFIG.replace("[events]", "[events]\nskip_unreadable = true"), files="*.parquet")
    parquet(shop.folder / "b.parquet", 1000, damaged=True)

    with pytest.raises(SourceError, match="no file that can be read"):
        shop.ingest()


# --- odd files ---


def test_an_optional_column_that_a_new_file_lacks_is_null_in_it(shop: Shop) -> None:
    shop.configure(CONFIG + 'page = { column = "url", optional = true }\n')
    shop.put("a.csv", "1,ada,2024-03-01,home,/home", header=HEADER + ",url")
    shop.ingest()
    shop.put("b.csv", "2,ada,2024-03-02,home")
    shop.ingest()

    assert shop.rows(EVENTS, "page") == ["/home", None]


def test_fields_that_new_json_lines_lack_are_null_in_them(shop: Shop) -> None:
    mapping = CONFIG.replace('"user"', '"who.id"') + 'revenue = { sql = "price * 2" }\n'
    shop.configure(mapping, files="*.jsonl")
    line = {"id": "1", "who": {"id": "ada", "name": "Ada"}, "at": "2024-03-01", "event": "home"}
    (shop.folder / "a.jsonl").write_text(json.dumps(line | {"price": 1.5}))
    shop.ingest()
    lines = [line | {"id": "2"}, line | {"id": "3", "who": {"name": "ada"}}]
    (shop.folder / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (shop.folder / "d.jsonl").write_text("")
    shop.ingest()

    assert shop.rows(EVENTS, "event_id", "revenue") == [
        {"event_id": "1", "revenue": 3.0},
        {"event_id": "2", "revenue": None},
    ]
    assert shop.rows(REJECTED, "reason") == ["no_user"]


def test_a_new_column_that_no_file_has_is_still_an_error(begun: Shop) -> None:
    begun.configure(CONFIG + 'page = "url"\n')

    with pytest.raises(SourceError, match=r"^events\.columns\.page: a\.csv has no column 'url'"):
        begun.ingest()


def test_days_without_rows_and_days_without_files_are_fine(shop: Shop) -> None:
    shop.put("2024-03-01.csv", "1,ada,2024-03-01,home")
    shop.put("2024-03-02.csv")
    (shop.folder / "2024-03-03.csv").write_text("")
    shop.put("2024-03-05.csv", "2,ada,2024-03-05,home")
    assert shop.ingest().read == 2
    (shop.folder / "2024-03-06.csv").write_bytes(b"")
    shop.put("2024-03-07.csv", "3,,2024-03-07,home")

    ingested = shop.ingest()
    assert (ingested.accepted, ingested.rejected) == (2, {"no_user": 1})
    assert shop.rows(FILES, "read") == [1, 0, 0, 1, 1]


def test_clocks_of_1970_are_accepted_and_those_of_2099_are_not(shop: Shop) -> None:
    shop.put("a.csv", "1,ada,1970-01-01 00:00:00,home", "2,ada,2099-01-01 00:00:00,home", "3,ada,2024-03-01,home")
    ingested = shop.ingest()

    assert shop.ids() == ["1", "3"]
    assert ingested.rejected == {"time_in_the_future": 1}
    assert shop.partitions().keys() == {"day=1970-01-01", "day=2024-03-01"}


def test_a_megabyte_in_any_column_is_kept(shop: Shop) -> None:
    long = "x" * 1_000_000
    shop.put("a.csv", f"{long},ada,2024-03-01,home", f"2,{long},2024-03-01,home", f"3,ada,2024-03-01,{long}")
    shop.put("b.csv", f"4,ada,{long},home", f"{long},ben,2024-03-02,home")
    ingested = shop.ingest()

    assert (ingested.accepted, ingested.rejected) == (3, {"unparseable_time": 1, "duplicate_id": 1})
    assert [max(map(len, (row["event_id"], row["user_id"], row["event_name"]))) for row in shop.rows(EVENTS)] == [
        1_000_000
    ] * 3
    assert all(len(row) > 1_000_000 for row in shop.rows(REJECTED, "row"))


def test_a_user_may_have_very_many_events(shop: Shop) -> None:
    shop.put("a.csv", *(f"{number},ada,2024-03-01,home" for number in range(50_000)))
    shop.put("b.csv", *(f"{number},ada,2024-03-01,home" for number in range(49_000, 51_000)))

    assert shop.ingest().batch.accepted == 51_000


def test_all_files_are_read_again_where_a_field_that_an_expression_names_has_another_type(shop: Shop) -> None:
    shop.configure(CONFIG + "page = { sql = \"place || ''\" }\n", files="*.jsonl")
    line = {"id": "1", "user": "ada", "at": "2024-03-01", "event": "home"}
    (shop.folder / "a.jsonl").write_text(json.dumps(line | {"place": 1.0}))
    shop.ingest()
    (shop.folder / "b.jsonl").write_text(json.dumps(line | {"id": "2", "place": "x"}))
    assert shop.ingest().batch.files == 2
    (shop.folder / "c.jsonl").write_text(json.dumps(line | {"id": "3", "place": 2}))
    assert shop.ingest().batch.files == 1
    assert (shop.rows(EVENTS), shop.rows(REJECTED)) == as_at_once(shop, NOW)


def test_an_expression_that_fails_on_a_row_is_named(shop: Shop) -> None:
    shop.configure(CONFIG + "page = { sql = \"strptime(url, '%d.%m.%Y')\" }\n")
    shop.put("a.csv", "1,ada,2024-03-01,home,31.03.2024", "2,ada,2024-03-01,home,SECRET", header=HEADER + ",url")
    with pytest.raises(SourceError, match=r"^events\.columns\.page: .* fails on a row of a\.csv: .*try_") as caught:
        shop.ingest()
    assert "SECRET" not in str(caught.value)


def test_times_that_no_business_has_are_hinted_at(shop: Shop) -> None:
    shop.configure(CONFIG + 'ingested_at = "learned"\n')
    odd = ["2024-03-01,home,1970-01-20", "2024-03-02,home,2138-11-16", "1970-01-20,home,1970-01-20"]
    shop.put("a.csv", *(f"{i},ada,{rest}" for i, rest in enumerate(odd)), header=HEADER + ",learned")
    assert shop.ingest().hints[:3] == [
        "events before 1990: 1; check the time_unit of events.columns.occurred_at",
        "events learned of more than a year before they happened: 1; check the time_unit of events.columns.ingested_at",
        "events learned of more than a year from now: 1; check the time_unit of events.columns.ingested_at",
    ]


# --- the future ---

BEFORE, AFTER = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 3, tzinfo=UTC)
AHEAD = ("1,ada,2024-02-29,home", "2,ada,2024-03-02,home", "2,ada,2024-03-02,home", "3,ben,2024-03-09,home")
"""An event, one that comes twice of a clock ahead, and one further ahead."""


@pytest.fixture
def ahead(shop: Shop) -> Shop:
    shop.put("a.csv", *AHEAD)
    shop.ingest(now=BEFORE)
    return shop


def as_at_once(shop: Shop, now: datetime) -> tuple[list[Row], list[Row]]:
    """Return EVENTS and REJECTED as a rebuild in another folder makes them."""
    other = shop.copy(shop.folder.parent / "other")
    other.ingest(rebuild=True, now=now)
    return other.rows(EVENTS), other.rows(REJECTED)


def test_an_event_in_the_future_is_held_back_as_the_event_it_will_be(ahead: Shop) -> None:
    assert ahead.ids() == ["1"]
    held = [row["row"] for row in ahead.rows(REJECTED) if row["reason"] == "time_in_the_future"]
    assert sorted(json.loads(row)["event_id"] for row in held) == ["2", "2", "3"]


def test_an_event_is_judged_again_when_it_is_no_longer_in_the_future(ahead: Shop) -> None:
    batch = ahead.ingest(now=AFTER).batch
    assert (batch.files, batch.read, batch.due, batch.accepted, batch.rejected) == (0, 0, 2, 1, {"duplicate_id": 1})
    assert ahead.ids() == ["1", "2"]


def test_events_that_were_held_back_make_the_tables_what_they_are_at_once(ahead: Shop) -> None:
    ahead.put("b.csv", "2,ada,2024-02-28,home", "4,ben,2024-03-01,home")
    ahead.ingest(now=AFTER)
    assert (ahead.rows(EVENTS), ahead.rows(REJECTED)) == as_at_once(ahead, AFTER)


def test_an_event_that_is_held_back_is_known_where_its_file_grows(ahead: Shop) -> None:
    ahead.put("a.csv", *AHEAD, "5,ada,2024-02-28,home")
    ahead.ingest(now=AFTER)
    assert (ahead.rows(EVENTS), ahead.rows(REJECTED)) == as_at_once(ahead, AFTER)


def test_an_event_that_is_held_back_outlives_its_file(ahead: Shop) -> None:
    (ahead.folder / "a.csv").unlink()
    ahead.ingest(now=AFTER)
    assert ahead.ids() == ["1", "2"]


# --- lines of orders ---

LINES = CONFIG + 'order_id = "order"\nitem_id = "item"\nquantity = "count"\nrevenue = "price"\n'
ORDER_HEADER = HEADER + ",order,item,count,price"


@pytest.fixture
def orders(shop: Shop) -> Shop:
    shop.configure(LINES)
    shop.put("b.csv", "b,ada,2024-03-01 10:00:05,purchase,o1,lamp,1,20", header=ORDER_HEADER)
    shop.ingest()
    return shop


def test_a_line_of_an_order_with_two_event_ids_counts_once(orders: Shop) -> None:
    orders.put("c.csv", "c,ada,2024-03-01 10:00:09,purchase,o1,lamp,1,20.00", header=ORDER_HEADER)
    assert orders.ingest().batch.rejected == {"duplicate_line": 1}
    assert orders.ids() == ["b"]


def test_of_two_equal_lines_the_earliest_stays_whenever_it_comes(orders: Shop) -> None:
    orders.put("c.csv", "z,ada,2024-03-01 10:00:00,purchase,o1,lamp,1,20", header=ORDER_HEADER)
    orders.ingest()
    assert orders.ids() == ["z"]
    assert (orders.rows(EVENTS), orders.rows(REJECTED)) == as_at_once(orders, NOW)


@pytest.mark.parametrize(
    "line",
    [
        "c,ada,2024-03-01 10:00:05,purchase,o1,chair,1,20",
        "c,ada,2024-03-01 10:00:05,purchase,o1,lamp,2,20",
        "c,ada,2024-03-01 10:00:05,purchase,o1,lamp,1,19",
        "c,ada,2024-03-01 10:00:05,refund,o1,lamp,1,20",
        "c,ada,2024-03-01 10:00:05,purchase,o2,lamp,1,20",
    ],
)
def test_other_lines_and_refunds_of_an_order_count(orders: Shop, line: str) -> None:
    orders.put("c.csv", line, header=ORDER_HEADER)
    orders.ingest()
    assert orders.ids() == ["b", "c"]


def test_events_without_an_order_are_no_lines(orders: Shop) -> None:
    same = [f"{event_id},ada,2024-03-01 10:00:05,purchase,,lamp,1,20" for event_id in "cd"]
    orders.put("c.csv", *same, header=ORDER_HEADER)
    orders.ingest()
    assert orders.ids() == ["b", "c", "d"]


def test_events_without_ids_of_their_own_are_no_repeated_lines(orders: Shop) -> None:
    orders.put("c.csv", *[",ada,2024-03-01 10:00:05,purchase,o3,lamp,1,20"] * 2, header=ORDER_HEADER)
    orders.ingest()
    assert len(orders.ids()) == 3


def test_a_repeated_line_counts_where_the_one_it_repeats_turns_out_to_be_another(orders: Shop) -> None:
    orders.put("c.csv", "c,ada,2024-03-01 10:00:09,purchase,o1,lamp,1,20", header=ORDER_HEADER)
    orders.ingest()
    orders.put("d.csv", "b,ada,2024-03-01 10:00:01,purchase,o1,lamp,1,25", header=ORDER_HEADER)
    orders.ingest()
    assert orders.rows(EVENTS, "event_id", "revenue") == [
        {"event_id": "b", "revenue": 25.0},
        {"event_id": "c", "revenue": 20.0},
    ]
    assert (orders.rows(EVENTS), orders.rows(REJECTED)) == as_at_once(orders, NOW)


@pytest.mark.slow
@pytest.mark.parametrize("table", [REJECTED, EVENTS, FILES])
def test_what_was_held_back_or_repeated_is_not_lost_where_a_run_breaks_off(orders: Shop, table: Table) -> None:
    orders.put(
        "c.csv",
        "c,ada,2024-03-01 10:00:09,purchase,o1,lamp,1,20",
        "d,ada,2024-03-02 10:00:00,purchase,o2,lamp,1,20",
        header=ORDER_HEADER,
    )
    orders.ingest(now=datetime(2024, 3, 2, tzinfo=UTC))
    orders.put("e.csv", "b,ada,2024-03-01 10:00:01,purchase,o1,lamp,1,25", header=ORDER_HEADER)
    version = DeltaTable(str(orders.folder / "lake" / table.name)).version()
    in_the_way = orders.folder / "lake" / table.name / "_delta_log" / f"{version + 1:020}.json"
    in_the_way.mkdir()
    with pytest.raises(Exception, match=r"[Cc]ommit"):
        orders.ingest()
    in_the_way.rmdir()
    orders.ingest()

    assert orders.ids() == ["b", "c", "d"]
    assert (orders.rows(EVENTS), orders.rows(REJECTED)) == as_at_once(orders, NOW)


# --- as a command ---


def test_the_command_says_what_was_new_and_how_late(begun: Shop) -> None:
    begun.put("b.csv", "3,ada,2024-02-27 10:00:00,home", "4,ben,2024-03-02 10:00:00,home", "1,ben,2024-03-02,home")
    done = habitus("ingest", str(begun.config))

    assert done.exit_code == 0
    assert [line.split(" s  ")[1] for line in done.stderr.splitlines()] == [
        "ingest: 1 file known, 1 new; 2 accepted + 1 rejected = 3 rows read",
        "  rejected 1: an event id that was there already",
        "  1 duplicate is of another user than the event with that id",
        "  without a standard name: 'home' 2",
        "  50.0 % of new events were late, by up to 3 days; watermark 2024-03-02 10:00 UTC",
    ]


def test_the_command_rebuilds(begun: Shop) -> None:
    begun.put("a.csv", "2,ada,2024-03-05 10:00:00,home")
    done = habitus("ingest", "--rebuild", str(begun.config), "--json")

    assert json.loads(done.stdout)["accepted"] == 1
    assert begun.ids() == ["2"]


# --- users ---

PEOPLE = """
[users]
files = "people.txt"
user_id = "user"
"""
CONTACTS = (
    PEOPLE
    + """
attributes = ["plan"]
email = "mail"
phone = "tel"
[publish]
purposes = ["news"]
[purposes.news]
attribute = "letters"
"""
)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Ingest two users, and a users' file that has contacts and a consent."""
    shop = Shop(tmp_path_factory.mktemp("people") / "shop")
    shop.configure(CONFIG + CONTACTS)
    shop.put("a.csv", "1,ada,2024-03-01 10:00:00,home", "2,ben,2024-03-02 10:00:00,home")
    shop.put("people.txt", "ada,pro,Ada@Example.org,020,yes", "ben,free,,,", header="user,plan,mail,tel,letters")
    shop.ingest()
    return shop


@pytest.fixture
def described(people: Shop, tmp_path: Path) -> Shop:
    return people.copy(tmp_path / "described")


def attributes_of(shop: Shop, user: str = "ada") -> dict[str, str]:
    return {row["attribute"]: row["value"] for row in shop.rows(ATTRIBUTES) if row["user_id"] == user}


def test_contacts_and_consents_are_stored_under_reserved_names(people: Shop) -> None:
    assert attributes_of(people) == {
        "plan": "pro",
        "habitus.email": "Ada@Example.org",
        "habitus.phone": "020",
        "habitus.consent.letters": "yes",
    }
    assert attributes_of(people, "ben") == {"plan": "free"}


def test_a_withdrawal_in_the_users_file_is_read_without_new_events(described: Shop) -> None:
    described.put("people.txt", "ada,pro,Ada@Example.org,020,no", header="user,plan,mail,tel,letters")
    assert described.ingest().changed
    assert attributes_of(described)["habitus.consent.letters"] == "no"


def test_other_columns_of_users_are_read_without_new_events(described: Shop) -> None:
    described.configure(CONFIG + PEOPLE + 'email = "mail"\n')
    assert described.ingest().changed
    assert attributes_of(described) == {"habitus.email": "Ada@Example.org"}


def test_nothing_of_users_stays_without_a_users_file(described: Shop) -> None:
    described.configure()
    assert described.ingest().changed
    assert described.rows(ATTRIBUTES) == []
    assert not described.ingest().changed


def test_a_users_row_that_cannot_be_read_is_named_by_its_line(described: Shop) -> None:
    described.put("people.txt", "ada,pro,Ada@Example.org,020,yes,extra", header="user,plan,mail,tel,letters")
    with pytest.raises(SourceError, match=r"^users\.files: 1 row cannot be read, such as people\.txt, line 2; mend"):
        described.ingest()


def test_contacts_and_consents_are_in_no_other_table(described: Shop) -> None:
    sessionize.fn(str(described.config))
    store_snapshots.fn(str(described.config), None, False)
    stored = {folder.name for folder in (described.folder / "lake").iterdir() if folder.is_dir()}
    assert "snapshots" in stored
    with Lake(described.folder / "lake") as lake:
        for name in stored - {ATTRIBUTES.name}:
            rows = lake.engine.read_parquet(f"{described.folder}/lake/{name}/**/*.parquet").to_pyarrow()
            assert not {"Ada@Example.org", "020"} & {str(value) for row in rows.to_pylist() for value in row.values()}
            assert not {column for column in rows.column_names if "habitus" in column or "letters" in column}
