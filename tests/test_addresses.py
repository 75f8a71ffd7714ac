"""Folders of any name: what reads and writes takes the folder for what it is, and none beside it."""

import re
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import ibis
import pytest
from ibis.backends.duckdb import Backend as DuckDB
from messages import assert_documented
from sqlalchemy import create_engine, text

from features.addresses import delta_address, literal, sqlite_address
from features.lake import Lake
from features.table import ContractError, Table

HOSTILE = {
    "a number sign": "shop #1",
    "a question mark": "shop?x=1",
    "a percent sign": "100% of it",
    "brackets": "shop [x]",
    "asterisks": "**",
    "quotes": 'it\'s "it"',
    "braces": "{a,b};$HOME",
    "a tilde": "~",
    "a colon": "s3:",
    "a space at the end": "shop ",
    "letters of other scripts": "Caf\u00e9 Cafe\u0301 店 🛒",
    "200 letters": "x" * 200,
}
"""Names of a project's folder."""
REFUSED = {"a percent-encoded character": "a%20b", "a line break": "a\nb", "a backslash": "a\\b"}
"""Names of a lake's folder that Delta's library takes for another's."""
BALANCES = Table(
    "balances", ibis.schema({"user_id": "!string", "at": "!timestamp('UTC', 6)"}), ("user_id",), "day of at"
)
AT = datetime(2024, 1, 2, tzinfo=UTC)


def balances(*users: str) -> ibis.Table:
    return ibis.memtable([(user, AT) for user in users], schema=BALANCES.schema)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_lake_works_in_a_folder_of_any_name(name: str, engine: DuckDB, tmp_path: Path) -> None:
    lake = Lake(tmp_path / name / "lake", engine=engine)
    lake.write(BALANCES, balances("ann"), origin={"made_of": 1})
    lake.write(BALANCES, balances("ann", "ben"), origin={"made_of": 2})
    lake.note(BALANCES, {"made_of": 3})

    assert (lake.version(BALANCES), lake.origin(BALANCES)) == (2, {"made_of": 3})
    assert set(lake.read(BALANCES).to_pandas()["user_id"]) == {"ann", "ben"}
    assert set(lake.read(BALANCES, version=0).to_pandas()["user_id"]) == {"ann"}
    assert lake.changed(BALANCES, since=0) == [AT]
    assert lake.remove(BALANCES, ibis.memtable({"user_id": ["ben"]})) == 1
    assert lake.purge(BALANCES) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing went elsewhere


@pytest.mark.parametrize(("name", "beside"), [("a[bc]", "ab"), ("a*", "ab"), ("a?", "ab"), ("**", "ab")])
def test_a_lake_reads_none_of_the_lake_beside_it_that_its_name_would_match(
    name: str, beside: str, engine: DuckDB, tmp_path: Path
) -> None:
    lake, other = Lake(tmp_path / name, engine=engine), Lake(tmp_path / beside, engine=engine)
    lake.write(BALANCES, balances("ann"))
    other.write(BALANCES, balances("ben"))
    assert set(lake.read(BALANCES).to_pandas()["user_id"]) == {"ann"}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED.keys())
def test_a_lake_is_refused_where_its_tables_would_be_looked_for_elsewhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no tables can be kept in a folder") as no:
        delta_address(tmp_path / name / "lake" / "events")
    if name == "a%20b":
        assert_documented("a folder's name that no lake can be in", str(no.value), tmp_path)


def test_it_is_the_folder_itself_whose_name_counts_not_that_of_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "a%20b").symlink_to("plain")
    assert delta_address(tmp_path / "a%20b" / "events") == f"file://{tmp_path}/plain/events"


@pytest.mark.parametrize("name", [*HOSTILE.values(), *REFUSED.values()], ids=[*HOSTILE, *REFUSED])
def test_a_database_is_in_the_file_that_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with create_engine(sqlite_address(folder / "some.db")).begin() as database:
        database.execute(text("CREATE TABLE known (name TEXT)"))
    with sqlite3.connect(folder / "some.db") as found:
        assert found.execute("SELECT name FROM sqlite_master").fetchall() == [("known",)]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_is_no_pattern() -> None:
    assert literal(Path("/a[b]/c*?")) == "/a[[]b]/c[*][?]"


HOUSE = Path(__file__).parents[1]
MADE = re.compile(
    r"sqlite(\+\w+)?:///[{$]|file:/|as_uri\(|glob\.escape|DeltaTable(\.is_deltatable)?\((?!delta_address)"
)
"""What makes an address of a path, or takes a path for one."""


def test_addresses_are_made_in_one_place() -> None:
    packages = ("features", "models", "publish", "flows", "notebooks", "examples")
    files = [HOUSE / "Makefile", *(file for name in packages for file in (HOUSE / name).rglob("*.py"))]
    found = {
        f"{file.relative_to(HOUSE)}: {line.strip()}"
        for file in files
        for line in file.read_text().splitlines()
        if MADE.search(line) and file.name != "addresses.py"
    }
    assert len(files) > 100
    assert found == set()
