import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as postgresql
import adbc_driver_sqlite.dbapi as sqlite
import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law
from messages import assert_documented
from pydantic import ValidationError

from features import engines
from publish.assignments import assignments_table
from publish.changes import CHANGES
from publish.destination import Delivery, DestinationError, Release
from publish.destinations import sql
from publish.destinations.sql import Sql, SqlSettings

AS_OF = datetime(2026, 1, 5, tzinfo=UTC)
NUMBERS = count()
Members = Mapping[str, Sequence[str]]


@dataclass
class Shop:
    """A configuration whose versions are what users it has, each with the rule segments that the user is in."""

    engine: DuckDB
    source: str = "shop"
    feed: list[dict[str, Any]] = field(default_factory=list)
    last: Members = field(default_factory=dict)

    def release(
        self, version: int, members: Members, labels: Sequence[str] = (), destination: str = "crm", **columns: Any
    ) -> Release:
        """Make a version: its rows, and the changes since the last that was made."""
        for user_id in sorted({*self.last, *members}):
            before, after = ({*of.get(user_id, ())} for of in (self.last, members))
            for change, segments in (("entered", after - before), ("left", before - after)):
                self.feed += [self._change(version, destination, user_id, name, change) for name in sorted(segments)]
        self.last = members
        contract = assignments_table(["churn", "conversion", *labels]).schema
        empty: dict[str, Any] = {name: [] if dtype.is_array() else None for name, dtype in contract.items()}
        rows = [
            {
                **empty,
                "user_id": user_id,
                "as_of": AS_OF,
                "rule_segments": list(segments),
                "lifecycle_stage": "active",
                "holdout": False,
                **columns,
            }
            for user_id, segments in members.items()
        ]
        table = self._table(rows, contract.to_pyarrow())
        return Release(
            destination=destination,
            source=self.source,
            version=version,
            as_of=AS_OF,
            rows=table,
            members=table,
            contacts=table,
            changes=lambda since: self._table(
                [change for change in self.feed if since < change["version"] <= version], CHANGES.schema.to_pyarrow()
            ),
            manifest={"users": len(rows), "segments": []},
        )

    def _change(self, version: int, destination: str, user_id: str, name: str, change: str) -> dict[str, Any]:
        return {
            "version": version,
            "as_of": AS_OF,
            "destination": destination,
            "user_id": user_id,
            "segment_id": name,
            "segment_name": name,
            "change": change,
            "reason": "rule",
            "from_segment_id": None,
            "to_segment_id": None,
        }

    def _table(self, rows: list[dict[str, Any]], schema: pa.Schema) -> Any:
        name = f"rows_{next(NUMBERS)}"
        return self.engine.create_table(name, pa.Table.from_pylist(rows, schema=schema), temp=True)


@cache
def person(connect: Callable[..., Any]) -> Any:
    """Return a connection to a database, which stays open."""
    return connect(autocommit=True)


@dataclass(frozen=True)
class Database:
    """A schema of a database: the destination that writes to it, and a person who works in it."""

    destination: Sql
    url: str
    schema: str
    connect: Callable[..., Any]

    def table(self, name: str) -> str:
        return f"{self.schema}.{name}" if "postgresql" in self.url else f"{self.schema}_{name}"

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement that names tables like {assignments}, and return its rows."""
        names = ("assignments", "assignments_history", "changes", "versions")
        with closing(person(self.connect).cursor()) as cursor:
            cursor.execute(query.format(**{name: self.table(name) for name in names}), values or None)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def members(self) -> dict[str, list[str]]:
        """Return the segments of each user in the present version."""
        rows = self.ask("SELECT user_id, rule_segments FROM {assignments}")
        return {user_id: names if isinstance(names, list) else json.loads(names) for user_id, names in rows}

    def replayed(self) -> set[tuple[str, str]]:
        """Return who is in which segment by the changes alone."""
        present: set[tuple[str, str]] = set()
        for user_id, segment_id, change in self.ask(
            "SELECT user_id, segment_id, change FROM {changes} ORDER BY version, change DESC"
        ):
            assert ((user_id, segment_id) in present) == (change == "left")
            (present.add if change == "entered" else present.remove)((user_id, segment_id))
        return present


@pytest.fixture
def shop(engine: DuckDB) -> Shop:
    return Shop(engine)


@cache
def connection_to(address: str) -> Callable[..., Any]:
    return partial(postgresql.connect, address)


def postgres_database(address: str) -> Database:
    schema = f"habitus_{next(NUMBERS)}"
    return Database(Sql("crm", address, schema, Path()), address, schema, connection_to(address))


@pytest.fixture
def database(postgres: str) -> Database:
    return postgres_database(postgres)


@pytest.fixture(params=[pytest.param("postgresql", marks=pytest.mark.ci), "sqlite"])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "postgresql":
        return postgres_database(request.getfixturevalue("postgres"))
    url = "sqlite:///shop.db"
    destination = Sql("crm", url, "habitus", tmp_path)
    return Database(destination, url, "habitus", partial(sqlite.connect, str(tmp_path / "shop.db")))


def test_the_newest_version_is_in_assignments_and_every_version_in_the_history(
    any_database: Database, shop: Shop
) -> None:
    first = any_database.destination.deliver(shop.release(1, {"ann": ["vip"], "bob": []}))
    second = any_database.destination.deliver(shop.release(2, {"ann": ["vip", "cart"]}))

    where = any_database.table("assignments")
    assert first == Delivery("crm", "released", where, 2)
    assert second == Delivery("crm", "released", where, 1)
    assert any_database.members() == {"ann": ["vip", "cart"]}
    assert any_database.ask("SELECT version, user_id FROM {assignments_history} ORDER BY 1, 2") == [
        (1, "ann"),
        (1, "bob"),
        (2, "ann"),
    ]
    assert any_database.ask("SELECT version, user_id, segment_id, change FROM {changes} ORDER BY 1") == [
        (1, "ann", "vip", "entered"),
        (2, "ann", "cart", "entered"),
    ]
    [*versions] = any_database.ask("SELECT version, source, destination, manifest FROM {versions} ORDER BY 1")
    assert [(*row, json.loads(manifest)["users"]) for *row, manifest in versions] == [
        (1, "shop", "crm", 2),
        (2, "shop", "crm", 1),
    ]


def test_columns_have_the_types_of_the_database(database: Database, shop: Shop) -> None:
    database.destination.deliver(
        shop.release(1, {"ann": ["vip"]}, segment_strength=0.1, segments_version=2**40, churn_reasons=["a", "b,\"'{}"])
    )

    [row] = database.ask(
        "SELECT as_of, segment_strength, segments_version, churn_version, holdout, churn_reasons, conversion_reasons "
        "FROM {assignments}"
    )
    assert row == (AS_OF, 0.1, 2**40, None, False, ["a", "b,\"'{}"], [])
    types = "SELECT DISTINCT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0"
    assert {name for (name,) in database.ask(types.replace("$1", f"'{database.table('assignments')}'"))} == {
        "bigint",
        "boolean",
        "double precision",
        "json",
        "text",
        "text[]",
        "timestamp with time zone",
    }
    assert database.ask("SELECT manifest ->> 'users' FROM {versions}") == [("1",)]


@pytest.mark.ci
def test_degrees_of_belonging_can_be_asked_for_as_the_page_says(database: Database, shop: Shop) -> None:
    strengths = [{"segment_id": "S02", "strength": 0.614}, {"segment_id": "S01", "strength": 0.3}]
    database.destination.deliver(shop.release(1, {"ann": []}, segment_strengths=strengths))
    page = (Path(__file__).parents[1] / "docs" / "destinations" / "sql.md").read_text()
    [query] = re.findall(r"SELECT user_id FROM habitus\.assignments, json_to_recordset.*?;", page, re.DOTALL)
    assert database.ask(query.replace("habitus.assignments", "{assignments}").rstrip(";")) == [("ann",)]
    assert database.ask("SELECT segment_strengths::text FROM {assignments}") == [
        ('[{"segment_id":"S02","strength":0.614},{"segment_id":"S01","strength":0.3}]',)
    ]


def test_in_a_file_degrees_of_belonging_are_json(tmp_path: Path, shop: Shop) -> None:
    strengths = [{"segment_id": "S02", "strength": 1.0}]
    Sql("crm", "sqlite:///shop.db", "habitus", tmp_path).deliver(
        shop.release(1, {"ann": []}, segment_strengths=strengths, rfm_5="5-1-4")
    )
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        [(told, grades)] = connection.execute("SELECT segment_strengths, rfm_5 FROM habitus_assignments")
    assert (json.loads(told), grades) == (strengths, "5-1-4")


@pytest.mark.ci
def test_a_server_that_accepts_a_connection_and_is_silent_ends_in_one_line(tmp_path: Path, shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://ann:s3cr3t@127.0.0.1:{silent.getsockname()[1]}/shop?connect_timeout=2"
        began_s = time.monotonic()
        with pytest.raises(DestinationError) as caught:
            Sql("crm", url, "habitus", tmp_path).deliver(shop.release(1, {"ann": []}))
    assert_documented("a database that accepts a connection and is silent", str(caught.value))
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    ("url", "limited"),
    [
        ("postgresql://h/d", "postgresql://h/d?connect_timeout=10&keepalives_idle=30"),
        ("postgresql://h/d?", "postgresql://h/d?connect_timeout=10&keepalives_idle=30"),
        ("postgresql://h/d?sslmode=require", "postgresql://h/d?sslmode=require&connect_timeout=10&keepalives_idle=30"),
        ("postgresql://h/d?connect_timeout=5", "postgresql://h/d?connect_timeout=5&keepalives_idle=30"),
    ],
)
def test_an_address_has_limits_unless_it_says_others(url: str, limited: str) -> None:
    assert sql._limited(url) == f"{limited}&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=60000"


def test_sqlite_has_lists_as_json_and_instants_as_iso_8601(tmp_path: Path, shop: Shop) -> None:
    Sql("crm", "sqlite:///shop.db", "habitus", tmp_path).deliver(shop.release(1, {"ann": ['"é"']}))

    with closing(sqlite.connect(str(tmp_path / "shop.db"))) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT as_of, rule_segments, holdout FROM habitus_assignments")
        assert cursor.fetchall() == [("2026-01-05T00:00:00.000000Z", '["\\"é\\""]', 0)]


def test_a_sqlite_file_is_its_owners_and_one_that_is_there_keeps_its_mode(tmp_path: Path, shop: Shop) -> None:
    Sql("crm", "sqlite:///new.db", "habitus", tmp_path).deliver(shop.release(1, {"ann": []}))
    (tmp_path / "shared.db").touch()
    (tmp_path / "shared.db").chmod(0o640)
    with closing(sqlite.connect(str(tmp_path / "new.db"))), closing(sqlite.connect(str(tmp_path / "shared.db"))):
        Sql("crm", "sqlite:///new.db", "habitus", tmp_path).deliver(shop.release(2, {"ann": []}))
        Sql("crm", "sqlite:///shared.db", "habitus", tmp_path).deliver(shop.release(1, {"ann": []}))
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert {mode for name, mode in modes.items() if name.startswith("new")} == {0o600}
    assert {mode for name, mode in modes.items() if name.startswith("shared")} == {0o640}


def test_a_version_without_users_is_one_without_rows(any_database: Database, shop: Shop) -> None:
    any_database.destination.deliver(shop.release(1, {}))
    assert any_database.members() == {}

    any_database.destination.deliver(shop.release(2, {"ann": ["vip"]}))
    any_database.destination.deliver(shop.release(3, {}))

    assert any_database.members() == {}
    assert any_database.replayed() == set()


def test_a_version_that_is_there_is_not_delivered_again(any_database: Database, shop: Shop) -> None:
    release = shop.release(1, {"ann": ["vip"]})
    any_database.destination.deliver(release)

    assert any_database.destination.deliver(release).state == "unchanged"
    assert any_database.ask("SELECT count(*) FROM {assignments_history}") == [(1,)]


def test_an_older_version_that_comes_late_changes_nothing(any_database: Database, shop: Shop) -> None:
    older, newer = shop.release(1, {"ann": ["vip"]}), shop.release(2, {"bob": ["vip"]})
    any_database.destination.deliver(newer)

    late = any_database.destination.deliver(older)

    assert (late.state, late.note) == ("unchanged", "version 2 is there already")
    assert any_database.members() == {"bob": ["vip"]}


def test_after_missed_versions_all_changes_are_there_and_the_history_has_the_newest(
    any_database: Database, shop: Shop
) -> None:
    releases = [
        shop.release(version, members)
        for version, members in enumerate([{"ann": ["vip"]}, {"bob": ["vip"]}, {"ann": ["cart"]}], start=1)
    ]
    any_database.destination.deliver(releases[0])
    any_database.destination.deliver(releases[2])

    assert any_database.replayed() == {("ann", "cart")}
    assert any_database.ask("SELECT DISTINCT version FROM {assignments_history} ORDER BY 1") == [(1,), (3,)]
    assert any_database.ask("SELECT version, count(*) FROM {changes} GROUP BY 1 ORDER BY 1") == [(1, 1), (2, 2), (3, 2)]


SOME_MEMBERS = st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from(["vip", "cart"]), unique=True))


@law(3)
@given(versions=st.lists(st.tuples(SOME_MEMBERS, st.booleans()), min_size=1, max_size=5))
def test_replaying_the_changes_gives_the_present_version(postgres: str, versions: list[tuple[Members, bool]]) -> None:
    engine = engines.connect()
    shop, database = Shop(engine), postgres_database(postgres)
    for number, (members, is_delivered) in enumerate(versions, start=1):
        release = shop.release(number, members)
        if is_delivered or number == len(versions):
            database.destination.deliver(release)

    engine.disconnect()
    present = {(user_id, name) for user_id, names in database.members().items() for name in names}
    assert database.replayed() == present
    assert present == {(user_id, name) for user_id, names in versions[-1][0].items() for name in names}


def test_user_ids_are_stored_as_they_are(any_database: Database, shop: Shop) -> None:
    user_ids = ["", 'o\'neil "x" \\ {a,b} $1 %s', "😀\n\t", "é" * 500, "null", "\\N"]

    any_database.destination.deliver(shop.release(1, {user_id: ["vip"] for user_id in user_ids}))

    assert any_database.members() == {user_id: ["vip"] for user_id in user_ids}


def test_texts_are_sent_in_utf8_whatever_the_server_expects(database: Database, shop: Shop) -> None:
    latin = Sql("crm", database.url + "&options=-c%20client_encoding%3DLATIN1", database.schema, Path())

    latin.deliver(shop.release(1, {"é": []}))

    assert database.members() == {"é": []}


def test_users_whose_ids_cannot_be_stored_are_left_out_and_counted(any_database: Database, shop: Shop) -> None:
    members = {"ann": ["vip"], "b\x00b": ["vip"], "".join(map(chr, range(256, 10_256))): ["vip"]}

    delivery = any_database.destination.deliver(shop.release(1, members))

    assert delivery.note == "left out 2 users, whose ids have NUL or over 500 characters"
    assert delivery.count == 1
    assert any_database.members() == {"ann": ["vip"]}
    assert any_database.replayed() == {("ann", "vip")}


def test_nul_in_other_texts_is_replaced(any_database: Database, shop: Shop) -> None:
    release = shop.release(1, {"ann": ["v\x00ip"]}, segment_name="a\x00b")
    any_database.destination.deliver(Release(**{**vars(release), "manifest": {"name": "a\x00b"}}))

    assert any_database.members() == {"ann": ["v\ufffdip"]}
    assert any_database.ask("SELECT segment_name FROM {assignments}") == [("a\ufffdb",)]
    [[manifest]] = any_database.ask("SELECT manifest FROM {versions}")
    assert json.loads(manifest) == {"name": "a\ufffdb"}


def test_a_forgotten_user_is_in_no_version_and_no_change(any_database: Database, shop: Shop) -> None:
    any_database.destination.deliver(shop.release(1, {"ann": ["vip"], "o'neil": ["vip"]}))
    any_database.destination.deliver(shop.release(2, {"ann": ["vip", "cart"]}))

    removed = any_database.destination.forget({"ann": ["vip", "cart"], "nobody": [], "\x00": []})

    assert removed == 4
    assert any_database.ask("SELECT DISTINCT user_id FROM {assignments_history}") == [("o'neil",)]
    assert any_database.ask("SELECT DISTINCT user_id FROM {changes}") == [("o'neil",)]
    assert any_database.ask("SELECT count(*) FROM {versions}") == [(2,)]
    assert any_database.destination.forget({"ann": ["vip"]}) == 0


def test_no_byte_of_a_sqlite_file_names_a_forgotten_user(tmp_path: Path, shop: Shop) -> None:
    destination = Sql("crm", "sqlite:///crm.db", "habitus", tmp_path)
    destination.deliver(shop.release(1, {f"user-{number}": ["vip"] for number in range(1000)}))
    destination.forget({"user-777": ["vip"]})

    for file in tmp_path.iterdir():
        assert b"user-777" not in file.read_bytes()


def test_there_is_nothing_to_forget_where_nothing_was_published(any_database: Database) -> None:
    assert any_database.destination.forget({"ann": []}) == 0


def test_another_labels_columns_are_added_and_those_of_a_label_that_is_gone_are_null(
    any_database: Database, shop: Shop
) -> None:
    any_database.destination.deliver(shop.release(1, {"ann": []}))
    any_database.destination.deliver(shop.release(2, {"ann": []}, ["upsell"], upsell_probability=0.5))
    any_database.destination.deliver(shop.release(3, {"ann": []}, ["renewal"], renewal_probability=0.25))

    columns = "version, upsell_probability, renewal_probability"
    assert any_database.ask(f"SELECT {columns} FROM {{assignments_history}} ORDER BY 1") == [
        (1, None, None),
        (2, 0.5, None),
        (3, None, 0.25),
    ]
    assert any_database.ask(f"SELECT {columns} FROM {{assignments}}") == [(3, None, 0.25)]


def test_adding_columns_keeps_what_readers_were_granted(database: Database, shop: Shop) -> None:
    database.destination.deliver(shop.release(1, {"ann": []}))
    database.ask("GRANT SELECT ON {assignments} TO PUBLIC")

    database.destination.deliver(shop.release(2, {"ann": []}, ["upsell"]))

    assert database.ask(f"SELECT has_table_privilege('pg_monitor', '{database.table('assignments')}', 'SELECT')") == [
        (True,)
    ]


def test_a_view_that_a_person_dropped_is_made_again(any_database: Database, shop: Shop) -> None:
    any_database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    any_database.ask("DROP VIEW {assignments}")

    any_database.destination.deliver(shop.release(2, {"ann": ["cart"]}))

    assert any_database.members() == {"ann": ["cart"]}


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (["DROP TABLE {changes}"], "SCHEMA.changes is missing: put it back, or drop all of SCHEMA"),
        (
            ["ALTER TABLE {changes} ALTER COLUMN reason TYPE varchar(3) USING 'x'"],
            "column reason of SCHEMA.changes is character varying(3), not text: change it back",
        ),
        (
            ["DROP VIEW {assignments}", "ALTER TABLE {assignments_history} ALTER segments_version TYPE int4"],
            "column segments_version of SCHEMA.assignments_history is integer, not bigint: change it back",
        ),
        (
            ["ALTER TABLE {assignments_history} DROP COLUMN churn_reasons CASCADE"],
            "SCHEMA.assignments_history has no column churn_reasons any more: "
            "ALTER TABLE SCHEMA.assignments_history ADD COLUMN churn_reasons text[], or drop",
        ),
        (
            ["ALTER TABLE {changes} DROP COLUMN to_segment_id"],
            "SCHEMA.changes has no column to_segment_id: ALTER TABLE SCHEMA.changes ADD COLUMN to_segment_id text",
        ),
        (
            ["DROP VIEW {assignments}", "CREATE TABLE {assignments} (user_id text)"],
            "SCHEMA.assignments is not the view on the newest version: rename it",
        ),
        (
            [
                "ALTER TABLE {changes} ADD COLUMN mine int NOT NULL DEFAULT 1",
                "ALTER TABLE {changes} ALTER mine DROP DEFAULT",
            ],
            'null value in column "mine" of relation "changes" violates not-null constraint',
        ),
        (
            ["ALTER TABLE {changes} ADD CHECK (CAST(user_id AS int) > 0) NOT VALID"],
            "invalid input syntax for type integer: …",
        ),
        (["ALTER TABLE {changes} ADD CHECK (version < 2)"], 'new row for relation "changes" violates check constraint'),
    ],
)
def test_a_table_that_a_person_changed_is_told_and_the_old_version_stays(
    statements: list[str], told: str, database: Database, shop: Shop
) -> None:
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    for statement in statements:
        database.ask(statement)

    with pytest.raises(DestinationError) as caught:
        database.destination.deliver(shop.release(2, {"ann": ["cart"]}))

    assert told.replace("SCHEMA", database.schema) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert database.ask("SELECT DISTINCT version, rule_segments FROM {assignments_history}") == [(1, ["vip"])]
    assert database.ask("SELECT max(version) FROM {versions}") == [(1,)]


def test_a_column_that_is_put_back_as_told_lets_the_next_version_in(database: Database, shop: Shop) -> None:
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    database.ask("ALTER TABLE {assignments_history} DROP COLUMN churn_reasons CASCADE")
    database.ask("ALTER TABLE {assignments_history} ADD COLUMN churn_reasons text[]")

    database.destination.deliver(shop.release(2, {"ann": ["cart"]}, churn_reasons=["x"]))

    assert database.ask("SELECT churn_reasons FROM {assignments}") == [(["x"],)]


@pytest.mark.parametrize(
    ("source", "destination", "told"),
    [
        ("bank", "crm", "holds what shop publishes for its destination crm: set another schema_name"),
        ("shop", "mail", "holds what shop publishes for its destination crm: set another schema_name"),
    ],
)
def test_a_schema_is_one_destinations_of_one_configuration(
    source: str, destination: str, told: str, any_database: Database, engine: DuckDB
) -> None:
    any_database.destination.deliver(Shop(engine).release(1, {"ann": ["vip"]}))
    other = Sql(destination, any_database.url, any_database.schema, any_database.destination.folder)

    with pytest.raises(DestinationError, match=told):
        other.deliver(Shop(engine, source).release(2, {"bob": []}, destination=destination))

    assert any_database.members() == {"ann": ["vip"]}


def test_another_destination_forgets_nobody_here(any_database: Database, shop: Shop) -> None:
    any_database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    other = Sql("mail", any_database.url, any_database.schema, any_database.destination.folder)

    with pytest.raises(DestinationError, match="destination crm"):
        other.forget({"ann": []})

    assert any_database.members() == {"ann": ["vip"]}


def test_a_version_of_a_lake_that_was_made_anew_is_told(any_database: Database, shop: Shop, engine: DuckDB) -> None:
    any_database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    anew = Shop(engine).release(1, {"bob": ["vip"]})

    with pytest.raises(DestinationError, match="holds another version 1, of a lake that is no more"):
        any_database.destination.deliver(Release(**{**vars(anew), "as_of": datetime(2026, 2, 1, tzinfo=UTC)}))


def test_a_schema_with_an_assignments_table_of_others_is_left_alone(database: Database, shop: Shop) -> None:
    database.ask(f"CREATE SCHEMA {database.schema}")
    database.ask("CREATE TABLE {assignments} (pupil text)")

    with pytest.raises(DestinationError, match="assignments_history is missing"):
        database.destination.deliver(shop.release(1, {"ann": []}))

    assert database.ask("SELECT * FROM {assignments}") == []


@dataclass(frozen=True)
class Midway:
    """The place where deliveries stop: all rows are copied and no change is."""

    database: Database
    locking: Any

    def wait(self) -> int:
        """Wait until a delivery is there, and return its backend."""
        changes = self.database.table("changes")
        waiting = f"SELECT pid FROM pg_locks WHERE NOT granted AND relation = '{changes}'::regclass"
        until = time.monotonic() + 60
        while not (found := self.database.ask(waiting)):
            assert time.monotonic() < until, "no delivery came so far"
        return int(found[0][0])

    def go_on(self) -> None:
        self.locking.rollback()


@contextmanager
def stopped_midway(database: Database) -> Iterator[Midway]:
    """Let deliveries that begin within this stop midway."""
    with closing(database.connect()) as locking, closing(locking.cursor()) as locks:
        locks.execute(f"LOCK TABLE {database.table('changes')} IN SHARE MODE")
        yield Midway(database, locking)
        locking.rollback()


@contextmanager
def delivering(database: Database, release: Release) -> Iterator[list[Delivery | DestinationError]]:
    """Deliver beside; lend what will have come of it at the end."""
    outcome: list[Delivery | DestinationError] = []

    def deliver() -> None:
        try:
            outcome.append(database.destination.deliver(release))
        except DestinationError as error:
            outcome.append(error)

    thread = threading.Thread(target=deliver)
    thread.start()
    yield outcome
    thread.join()


def test_who_reads_while_a_version_is_delivered_sees_the_old_one_without_waiting(
    database: Database, shop: Shop
) -> None:
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    release = shop.release(2, {"bob": ["vip"], "cy": []}, ["upsell"])

    with stopped_midway(database) as midway, delivering(database, release) as outcome:
        midway.wait()
        seen = database.members()
        midway.go_on()

    assert seen == {"ann": ["vip"]}
    assert outcome == [Delivery("crm", "released", database.table("assignments"), 2)]
    assert database.members() == {"bob": ["vip"], "cy": []}


def test_who_reads_repeatedly_in_one_transaction_sees_one_version(database: Database, shop: Shop) -> None:
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    query = f"SELECT user_id FROM {database.table('assignments')}"
    with closing(database.connect()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute(query)
        assert cursor.fetchall() == [("ann",)]

        database.destination.deliver(shop.release(2, {"bob": ["vip"]}))

        cursor.execute(query)
        assert cursor.fetchall() == [("ann",)]


def test_of_two_publishes_at_once_one_waits_and_nothing_is_mixed(
    database: Database, shop: Shop, engine: DuckDB
) -> None:
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    other_engine = engines.connect()
    other = Shop(other_engine, feed=[*shop.feed], last=shop.last).release(2, {"cy": ["vip"]})
    release = shop.release(2, {"bob": ["vip"]})

    with (
        stopped_midway(database) as midway,
        delivering(database, other) as ones,
        delivering(database, release) as others,
    ):
        midway.wait()
        midway.go_on()
    other_engine.disconnect()

    assert sorted(done.state for done in [*ones, *others] if isinstance(done, Delivery)) == ["released", "unchanged"]
    assert database.members() in ({"bob": ["vip"]}, {"cy": ["vip"]})
    assert {user_id for user_id, _ in database.replayed()} == database.members().keys()


def test_two_first_publishes_at_once_make_the_schema_once(any_database: Database, shop: Shop) -> None:
    other_engine = engines.connect()
    releases = [shop.release(1, {"ann": ["vip"]}), Shop(other_engine).release(1, {"ann": ["vip"]})]

    with delivering(any_database, releases[0]) as ones, delivering(any_database, releases[1]) as others:
        pass
    other_engine.disconnect()

    assert sorted(done.state for done in [*ones, *others] if isinstance(done, Delivery)) == ["released", "unchanged"]
    assert any_database.members() == {"ann": ["vip"]}


def test_who_reads_sqlite_in_a_transaction_sees_one_version_and_holds_up_none(tmp_path: Path, shop: Shop) -> None:
    destination = Sql("crm", "sqlite:///shop.db", "habitus", tmp_path)
    destination.deliver(shop.release(1, {"ann": ["vip"]}))
    query = "SELECT user_id FROM habitus_assignments"
    with closing(sqlite.connect(str(tmp_path / "shop.db"))) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(query)
        assert cursor.fetchall() == [("ann",)]

        assert destination.deliver(shop.release(2, {"bob": ["vip"]})).state == "released"

        cursor.execute(query)
        assert cursor.fetchall() == [("ann",)]
        connection.rollback()
        cursor.execute(query)
        assert cursor.fetchall() == [("bob",)]


@pytest.mark.parametrize("tries", [1, 3, None])
def test_a_sqlite_file_that_another_is_making_is_waited_for_but_not_for_ever(
    tries: int | None, tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = Sql("crm", "sqlite:///shop.db", "habitus", tmp_path)
    paused: list[float] = []
    with closing(sqlite.connect(str(tmp_path / "shop.db"), autocommit=True)) as making:
        for statement in ("CREATE TABLE of_others (id)", "BEGIN IMMEDIATE"):
            with closing(making.cursor()) as cursor:
                cursor.execute(statement)

        def pause(seconds: float) -> None:
            paused.append(seconds)
            if len(paused) == tries:
                with closing(making.cursor()) as cursor:
                    cursor.execute("ROLLBACK")

        monkeypatch.setattr("publish.destinations.sql.time.sleep", pause)
        if tries is None:
            with pytest.raises(DestinationError, match=r"^cannot connect: another program keeps it locked"):
                destination.deliver(shop.release(1, {"ann": ["vip"]}))
        else:
            assert destination.deliver(shop.release(1, {"ann": ["vip"]})).state == "released"
            assert len(paused) == tries


def test_what_goes_wrong_in_the_lake_is_no_fault_of_the_database(any_database: Database, shop: Shop) -> None:
    any_database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    release = shop.release(2, {"bob": ["vip"]})
    broken = release.rows.mutate(churn_probability=release.rows.user_id.cast("float64"))

    with pytest.raises(duckdb.ConversionException):
        any_database.destination.deliver(Release(**{**vars(release), "rows": broken}))

    assert any_database.members() == {"ann": ["vip"]}


def test_a_connection_that_is_lost_midway_leaves_the_old_version_and_the_next_try_works(
    database: Database, shop: Shop
) -> None:
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    release = shop.release(2, {"bob": ["vip"]})

    with stopped_midway(database) as midway, delivering(database, release) as outcome:
        database.ask(f"SELECT pg_terminate_backend({midway.wait()})")

    assert [str(error) for error in outcome] == [
        "the connection was lost before the version was whole; the next publish tries again"
    ]
    assert database.members() == {"ann": ["vip"]}
    assert database.destination.deliver(release).state == "released"
    assert database.members() == {"bob": ["vip"]}


KILLED = """
import sys
from pathlib import Path
from features import engines
from publish.destinations.sql import Sql
from test_sql import Shop
shop = Shop(engines.connect())
shop.release(1, {"ann": ["vip"]})
Sql("crm", sys.argv[1], sys.argv[2], Path()).deliver(shop.release(2, {"bob": ["vip"]}))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_midway_leaves_the_old_version_and_the_next_try_works(
    database: Database, shop: Shop
) -> None:
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))

    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    with stopped_midway(database) as midway:
        command = [sys.executable, "-c", KILLED, database.url, database.schema]
        killed = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
        midway.wait()
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert database.members() == {"ann": ["vip"]}

    assert database.destination.deliver(shop.release(2, {"bob": ["vip"]})).state == "released"
    assert database.members() == {"bob": ["vip"]}
    assert database.replayed() == {("bob", "vip")}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("53100", "no more room: the server's disk is full: free space there"),
        ("57014", "no more room: the server stopped it: ALTER ROLE ... SET statement_timeout to a time that"),
        ("25006", "no more room: the server takes no writes: name its primary in the address"),
        ("XX000", "no more room"),
    ],
)
def test_what_the_server_refuses_at_the_very_end_takes_all_back(
    state: str, told: str, database: Database, shop: Shop
) -> None:
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    database.ask(
        f"""CREATE FUNCTION {database.schema}.refuse() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'no more room' USING ERRCODE = '{state}', DETAIL = 'of ann'; END $$"""
    )
    database.ask(
        f"CREATE TRIGGER refuse BEFORE INSERT ON {{versions}} FOR EACH ROW EXECUTE FUNCTION {database.schema}.refuse()"
    )

    with pytest.raises(DestinationError) as caught:
        database.destination.deliver(shop.release(2, {"ann": ["cart"]}))

    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert database.members() == {"ann": ["vip"]}
    assert database.ask("SELECT count(*) FROM {assignments_history}") == [(1,)]
    assert database.replayed() == {("ann", "vip")}


def test_a_statement_that_takes_too_long_is_told(database: Database, shop: Shop) -> None:
    slow = Sql("crm", database.url + "&options=-c%20statement_timeout%3D500", database.schema, Path())
    database.destination.deliver(shop.release(1, {"ann": ["vip"]}))
    release = shop.release(2, {"bob": ["vip"]})

    with stopped_midway(database), pytest.raises(DestinationError, match=r"^canceling statement due to statement tim"):
        slow.deliver(release)

    assert database.members() == {"ann": ["vip"]}


PASSWORD = "s3cr%2Fet%40"


@pytest.fixture(scope="session")
def clerk(postgres: str) -> str:
    """Return the address of a user who needs a password and owns nothing."""
    with closing(postgresql.connect(postgres)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("CREATE ROLE clerk LOGIN PASSWORD 's3cr/et@'")
        cursor.execute("SELECT current_setting('hba_file')")
        [[file]] = cursor.fetchall()
        connection.commit()
        rules = Path(file).read_text()
        Path(file).write_text(f"local all clerk scram-sha-256\n{rules}")
        cursor.execute("SELECT pg_reload_conf()")
        cursor.fetchall()
    return postgres.replace("postgres:@", f"clerk:{PASSWORD}@")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda url: url.replace(PASSWORD, "guess"), "cannot connect: the user or the password is wrong"),
        (lambda url: url.replace(":" + PASSWORD, ""), "cannot connect: the user or the password is wrong"),
        (lambda url: url.replace("clerk", "nobody"), "cannot connect: the user or the password is wrong"),
        (
            lambda url: url.replace("/postgres?", "/elsewhere?"),
            "cannot connect: there is no such database, or the user may not connect to it",
        ),
        (
            lambda url: f"postgresql://clerk:{PASSWORD}@nowhere.invalid/postgres",
            "cannot connect: there is no such host",
        ),
        (
            lambda url: f"postgresql://role:{PASSWORD}@database.invalid/password",
            "cannot connect: there is no such host",
        ),
        (lambda url: f"postgresql://clerk:{PASSWORD}@127.0.0.1:1/postgres", "cannot connect: no server answers there"),
        (
            lambda url: f"postgresql://clerk:{PASSWORD}@/postgres?host=/nowhere",
            "cannot connect: no server answers there",
        ),
        (lambda url: "postgresql://clerk:se%zzcret@host/postgres", "cannot connect: the address is not of the form"),
        (lambda url: "postgresql://clerk:s#ec/ret@host/postgres", "cannot connect: the address is not of the form"),
        (lambda url: "s3cret", "the address is none of postgresql://user:password@host/database"),
        (lambda url: "sqlite:////nowhere/at/all.db", "cannot connect: the file cannot be opened"),
    ],
)
def test_an_address_that_is_wrong_is_told_in_a_line_without_it(
    wrong: Callable[[str], str], told: str, clerk: str, shop: Shop
) -> None:
    url = wrong(clerk)

    with pytest.raises(DestinationError) as caught:
        Sql("crm", url, "habitus", Path("/")).deliver(shop.release(1, {"ann": []}))

    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    for secret in (PASSWORD, "s3cr", "zzcret", "s#ec", "ret@", url):
        assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("grants", "told"),
    [
        ([], "permission denied for database postgres: the user must own the schema"),
        (["CREATE SCHEMA SCHEMA"], "permission denied for schema SCHEMA: the user must own the schema SCHEMA and its"),
    ],
)
def test_a_permission_that_is_missing_is_told(
    grants: list[str], told: str, clerk: str, database: Database, shop: Shop
) -> None:
    for statement in grants:
        database.ask(statement.replace("SCHEMA SCHEMA", f"SCHEMA {database.schema}"))

    with pytest.raises(DestinationError) as caught:
        Sql("crm", clerk, database.schema, Path()).deliver(shop.release(1, {"ann": []}))

    assert str(caught.value).startswith(told.replace("SCHEMA", database.schema))
    assert "\n" not in str(caught.value)


def test_who_owns_a_schema_needs_no_other_permission(clerk: str, database: Database, shop: Shop) -> None:
    database.ask(f"CREATE SCHEMA {database.schema} AUTHORIZATION clerk")

    assert Sql("crm", clerk, database.schema, Path()).deliver(shop.release(1, {"ann": ["vip"]})).count == 1
    assert database.members() == {"ann": ["vip"]}


@pytest.mark.parametrize("table", ["assignments_history", "changes", "versions"])
def test_a_table_that_the_user_may_not_write_to_is_told_and_the_old_version_stays(
    table: str, clerk: str, database: Database, shop: Shop
) -> None:
    database.ask(f"CREATE SCHEMA {database.schema} AUTHORIZATION clerk")
    destination = Sql("crm", clerk, database.schema, Path())
    destination.deliver(shop.release(1, {"ann": ["vip"]}))
    database.ask(f"REVOKE INSERT ON {database.table(table)} FROM clerk")

    with pytest.raises(DestinationError, match=f"^permission denied for table {table}: the user must own"):
        destination.deliver(shop.release(2, {"bob": ["vip"]}))

    assert database.members() == {"ann": ["vip"]}


def test_a_password_that_the_server_repeats_is_not_told(clerk: str, database: Database, shop: Shop) -> None:
    database.ask(f"CREATE SCHEMA {database.schema} AUTHORIZATION clerk")
    destination = Sql("crm", clerk, database.schema, Path())
    destination.deliver(shop.release(1, {"ann": ["vip"]}))
    database.ask('ALTER TABLE {versions} ADD CONSTRAINT "s3cr/et@" CHECK (version < 2)')

    with pytest.raises(DestinationError, match=r"violates check constraint \"\*\*\*\"$"):
        destination.deliver(shop.release(2, {"bob": ["vip"]}))


def test_the_settings_name_a_variable_and_not_an_address(tmp_path: Path, shop: Shop) -> None:
    given = SqlSettings.model_validate({"kind": "sql", "url": {"env": "DATABASE_URL"}, "schema_name": "crm"})

    delivery = given.connect("crm", {"url": "sqlite:///shop.db\n"}, tmp_path).deliver(shop.release(1, {"ann": []}))

    assert delivery.where == "crm_assignments"
    assert (tmp_path / "shop.db").exists()
    for wrong in ({"url": "postgresql://me:secret@host/db"}, {"schema_name": 'x"; DROP'}):
        with pytest.raises(ValidationError):
            SqlSettings.model_validate({"kind": "sql", "url": {"env": "DATABASE_URL"}, **wrong})
