"""ERASURES: who was erased does not come back with the files that still hold their events."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.attributes import ATTRIBUTES
from features.erasures import SALT, ensure_salt, find_erased, hash_id, hash_ids, record
from features.events import EVENTS, REJECTED
from features.lake import Lake
from features.table import Table
from features.user_match import UsersFound
from flows.ingest import Ingested, accept_files

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ERASED_AT = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = """
name = "shop"
[events]
files = "events*.csv"
rejected_max = 1
[events.columns]
event_id = "id"
user_id = "user"
occurred_at = "at"
event_name = "event"
[users]
files = "users.csv"
user_id = "user"
attributes = ["plan"]
"""


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a shop that has erased ann and read nothing yet; only to be copied."""
    folder = tmp_path_factory.mktemp("erased")
    (folder / "habitus.toml").write_text(CONFIG)
    (folder / "users.csv").write_text("user,plan\nann,gold\nbob,silver\n")
    with Lake(folder / "lake") as lake:
        record(lake, ["ann"], ERASED_AT, "r1", ensure_salt(lake, lambda: "salt"))
    return folder


@pytest.fixture
def shop(erased: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(erased, tmp_path / "shop"))


def ingest(shop: Path, *lines: str) -> Ingested:
    (shop / "events.csv").write_text("\n".join(["id,user,at,event", *lines]) + "\n")
    return accept_files.fn(str(shop / "habitus.toml"), NOW, False)


def rows(shop: Path, table: Table, *columns: str) -> list[tuple[Any, ...]]:
    with Lake(shop / "lake") as lake:
        found = lake.read(table).order_by(*columns).select(*columns).to_pyarrow().to_pylist()
    return [tuple(row.values()) for row in found]


BOBS = "9,bob,2025-01-01,view"
MALFORMED = ["1,ann,yesterday,view", "1,ann,,view", "1,ann,2025-01-01,", '1,"ann",2025-01-01,view,more', "ann"]


@pytest.fixture(scope="module")
def ingested(erased: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ingested]:
    """Ingest what ann did before and after she was erased, beside bob's; only to be read."""
    folder = Path(shutil.copytree(erased, tmp_path_factory.mktemp("ingested") / "shop"))
    before = ["1,ann,2025-01-01,view", "2,ann,2025-12-31 23:59:59,view", "9,ann,2024-01-01,view"]
    return folder, ingest(folder, *before, "3,ann,2026-01-01 00:00:00,view", BOBS)


def test_what_the_erased_did_before_is_rejected_without_its_text(ingested: tuple[Path, Ingested]) -> None:
    shop, said = ingested
    assert rows(shop, REJECTED, "reason", "row") == [("erased", None)] * 3
    assert (said.batch.accepted, said.batch.rejected, said.batch.read) == (2, {"erased": 3}, 5)


def test_what_they_do_from_then_on_is_a_new_users(ingested: tuple[Path, Ingested]) -> None:
    shop, _ = ingested
    assert rows(shop, EVENTS, "event_id") == [("3",), ("9",)]


def test_an_event_of_theirs_is_no_twin_of_anothers(ingested: tuple[Path, Ingested]) -> None:
    shop, _ = ingested
    assert rows(shop, EVENTS, "event_id", "user_id") == [("3", "ann"), ("9", "bob")]


@pytest.fixture(scope="module")
def rejected(erased: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str | None]]:
    """Ingest each malformed line of theirs in a file of its own, beside one of anna's; return by line what is kept."""
    folder = Path(shutil.copytree(erased, tmp_path_factory.mktemp("rejected") / "shop"))
    lines = {f"events{number}.csv": line for number, line in enumerate(MALFORMED)}
    for file, line in lines.items():
        (folder / file).write_text(f"id,user,at,event\n{line}\n2,anna,yesterday,view\n")
    ingest(folder, BOBS)
    found = rows(folder, REJECTED, "source_file", "row")
    return {line: [text for source, text in found if source == file] for file, line in lines.items()}


@pytest.mark.parametrize("line", MALFORMED)
def test_a_row_of_theirs_that_is_rejected_for_another_reason_has_no_text(
    rejected: dict[str, list[str | None]], line: str
) -> None:
    first, second = rejected[line]
    assert second is None
    assert "anna" in str(first)


def test_the_attributes_of_the_erased_are_left_out_until_they_come_back(shop: Path) -> None:
    ingest(shop, BOBS)
    assert rows(shop, ATTRIBUTES, "user_id") == [("bob",)]
    ingest(shop, BOBS, "2,ann,2026-02-01,view")
    assert rows(shop, ATTRIBUTES, "user_id") == [("ann",), ("bob",)]


def test_a_users_file_of_none_but_the_erased_is_no_mistake(shop: Path) -> None:
    (shop / "users.csv").write_text("user,plan\nann,gold\n")

    assert ingest(shop, BOBS).users == UsersFound(read=0, matched=0, unmatched=0)


def test_who_is_erased_again_was_erased_then(shop: Path) -> None:
    with Lake(shop / "lake") as lake:
        record(lake, ["ann"], NOW, "r2", "salt")
        erased = find_erased(lake)
        assert erased is not None
        [row] = erased.erasures.to_pyarrow().to_pylist()
    assert (row["erased_at"], row["receipt"]) == (NOW, "r2")


def test_the_salt_is_made_once_and_is_its_owners(shop: Path) -> None:
    with Lake(shop / "lake") as lake:
        assert ensure_salt(lake, lambda: "another") == "salt"
    assert (shop / "lake" / SALT).stat().st_mode & 0o777 == 0o600


def test_the_engine_hashes_as_python_does(lake: Lake) -> None:
    users = ["ann", "ü-é", "", "a" * 10_000]
    table = lake.engine.create_table("users", pa.table({"user_id": users}), temp=True)
    hashes = table.select("user_id", hash=hash_ids(table.user_id, "s")).to_pyarrow().to_pylist()
    assert {row["user_id"]: row["hash"] for row in hashes} == {user: hash_id(user, "s") for user in users}


def test_a_lake_that_nobody_was_erased_from_has_no_salt(lake: Lake) -> None:
    assert find_erased(lake) is None
    assert not (lake.folder / SALT).exists()
