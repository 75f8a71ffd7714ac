"""SQL: a schema of a database with the present assignments, those of every version, and the changes, through ADBC.

A version is one transaction. `assignments` is a view on the newest version in `assignments_history`, so that nothing is
ever emptied or replaced: who reads sees the old version until the commit, the new one after it, and is never blocked.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.discretion import hide_values
from features.table import TIME
from publish.assignments import SCHEMA_VERSION, as_json
from publish.changes import CHANGES
from publish.destination import Credential, Delivery, DestinationError, DestinationSettings, Release

ASSIGNMENTS, HISTORY = "assignments", "assignments_history"
VERSIONS = "versions"
VERSIONS_SCHEMA = ibis.schema(
    {
        "version": "!int64",
        "as_of": TIME.copy(nullable=False),
        "schema_version": "!string",
        "source": "!string",
        "destination": "!string",
        "manifest": "!json",
    }
)
KEYS = {
    HISTORY: ("version", "user_id"),
    CHANGES.name: ("version", "user_id", "segment_id"),
    VERSIONS: ("version",),
}
USER_ID_LENGTH_MAX = 500
"""In characters: PostgreSQL indexes up to 2,704 bytes of a row, and a character has up to 4."""
NUL, REPLACEMENT = "\x00", "\N{REPLACEMENT CHARACTER}"
BATCH_ROWS = 65_536


class SqlSettings(DestinationSettings):
    """Say which database the tables are in, and under which schema; in SQLite, that is how the tables' names begin."""

    kind: Literal["sql"]
    url: Credential
    schema_name: str = Field(default="habitus", pattern=r"^[a-z][a-z0-9_]*$", max_length=40)

    def connect(self, name: str, credentials: Mapping[str, str], folder: Path) -> "Sql":
        """Return the destination `name` at the address `credentials["url"]`; a SQLite file is relative to `folder`."""
        return Sql(name, credentials["url"].strip(), self.schema_name, folder)


@dataclass(frozen=True)
class Dialect:
    """Say what one database does in its own way.

    `columns` selects table, "table" or "view", column and type of what is there; `items` the texts of a JSON list.
    `once` runs outside of transactions, and `begin` first in each: they let one publish of a schema wait for another.
    A file has no server, schemas, lists, or views that can be replaced.
    """

    driver: str
    types: Mapping[str, str]
    once: Sequence[str]
    begin: Sequence[str]
    columns: str
    items: str
    is_file: bool


DIALECTS = {
    "postgresql": Dialect(
        driver="adbc_driver_postgresql.dbapi",
        types={
            "string": "text",
            "int64": "bigint",
            "float64": "double precision",
            "boolean": "boolean",
            "timestamp": "timestamp with time zone",
            "array": "text[]",
            "records": "json",  # not jsonb, which COPY does not take as text
            "json": "jsonb",
        },
        once=(),
        begin=(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",  # to see what was committed while waiting
            "SET LOCAL client_encoding = 'UTF8'",
            "SET LOCAL lock_timeout = '1min'",
            "SELECT pg_advisory_xact_lock(hashtextextended('habitus {schema}', 0))",
            "SET LOCAL lock_timeout = '10s'",  # others queue behind who waits for a table
        ),
        columns="""
            SELECT c.relname::text, CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END,
                a.attname::text, format_type(a.atttypid, a.atttypmod)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE n.nspname = '{schema}' AND c.relkind IN ('r', 'p', 'f', 'v', 'm') AND a.attnum > 0
                AND NOT a.attisdropped
            ORDER BY c.relname, a.attnum""",
        items="SELECT jsonb_array_elements_text(CAST(CAST($1 AS text) AS jsonb))",
        is_file=False,
    ),
    "sqlite": Dialect(
        driver="adbc_driver_sqlite.dbapi",
        types={
            "string": "TEXT",
            "int64": "INTEGER",
            "float64": "REAL",
            "boolean": "INTEGER",
            "timestamp": "TEXT",
            "array": "TEXT",
            "records": "TEXT",
            "json": "TEXT",
        },
        once=("PRAGMA busy_timeout = 60000", "PRAGMA journal_mode = WAL"),  # or a large transaction blocks readers
        begin=(
            "PRAGMA busy_timeout = 60000",
            "PRAGMA secure_delete = ON",  # what an erasure removes is gone from the file
            "CREATE TABLE {schema}_lock (locked)",  # a write, which makes others wait; never there after a commit
            "DROP TABLE {schema}_lock",
        ),
        columns="""
            SELECT substr(m.name, length('{schema}_') + 1), m.type, p.name, p.type
            FROM sqlite_master m JOIN pragma_table_info(m.name) p
            WHERE m.type IN ('table', 'view') AND substr(m.name, 1, length('{schema}_')) = '{schema}_'
            ORDER BY m.name, p.cid""",
        items="SELECT value FROM json_each($1)",
        is_file=True,
    ),
}
SCHEMES = {"postgresql": "postgresql", "postgres": "postgresql", "sqlite": "sqlite"}
LOCKED = "database is locked"
LIMITS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""Of libpq, unless the address has others: within a minute it is told that nobody is there, or is there any more."""
PAUSES_S = (0.05,) * 40
"""Between tries to set what a database keeps."""
UNREACHABLE = {
    "translate host name": "there is no such host",
    "pg_hba.conf": "the server does not admit this user from this machine (pg_hba.conf)",
    "password authentication failed": "the user or the password is wrong",
    "no password supplied": "the user or the password is wrong",
    'role "': "the user or the password is wrong",
    'database "': "there is no such database, or the user may not connect to it",
    "Connection refused": "no server answers there",
    "No such file": "no server answers there",
    "timeout expired": "no server answers there",
    "timed out": "no server answers there",
    "unreachable": "no server answers there",
    "No route to host": "no server answers there",
    "too many clients": "the server has no connection left; the next publish tries again",
    LOCKED: "another program keeps it locked; the next publish tries again",
    "remaining connection slots": "the server has no connection left; the next publish tries again",
    "starting up": "the server is starting or stopping; the next publish tries again",
    "shutting down": "the server is starting or stopping; the next publish tries again",
    "SSL": "the server and the address do not agree on SSL (sslmode)",
    "failed to open": "the file cannot be opened: its folder is missing, or may not be written to",
}
"""Why a driver could not connect, by what its message contains, which has parts of the address."""
ADVICE = {
    "42501": "the user must own the schema {schema} and its tables, or be allowed to create them",
    "53100": "the server's disk is full: free space there",
    "57014": "the server stopped it: ALTER ROLE ... SET statement_timeout to a time that a version fits in",
    "55P03": "another publish, or a session that keeps a table of {schema} locked, took too long",
    "22P05": "the database is not in UTF8: name one that is",
    "25006": "the server takes no writes: name its primary in the address",
}
"""What to do about an SQLSTATE."""
OF_VALUES = "22"
"""The class of SQLSTATE that is about values, whose messages have them."""


@dataclass(frozen=True)
class Sql:
    """Take versions into a schema of a database."""

    name: str
    url: str
    schema: str
    folder: Path

    def deliver(self, release: Release) -> Delivery:
        """Add a version, and the changes since the one that is there, in one transaction.

        Users whose id has more than 500 characters or the character NUL cannot be stored: they are left out, and the
        delivery says how many. In other texts NUL is replaced. Columns that are new are added first, in a transaction
        of their own: it takes no time, and what it locks would be locked while rows are copied.
        """
        with self._connected() as connection:
            with self._transaction(connection) as cursor:
                state = self._inspect(cursor, release)
                for column in state.new_columns:
                    self._execute(
                        cursor,
                        f"ALTER TABLE {self._table(HISTORY)} ADD COLUMN {_quoted(column)} "
                        f"{self._types(_rows(release).schema())[column]}",
                    )
                if state.view_columns != state.seen_columns:
                    self._make_view(cursor, state.view_columns)
            with self._transaction(connection) as cursor:
                return self._publish(cursor, release)

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        """Remove users from all versions and from the changes, in one transaction; return how many rows had them."""
        user_ids = json.dumps([user_id for user_id in memberships if NUL not in user_id])
        removed = 0
        with self._connected() as connection, self._transaction(connection) as cursor:
            if VERSIONS not in self._found(cursor):
                return 0
            self._check_owner(cursor, None)
            for table in (HISTORY, CHANGES.name):
                theirs = f"FROM {self._table(table)} WHERE user_id IN ({self._dialect.items})"
                [[count]] = self._execute(cursor, f"SELECT count(*) {theirs}", user_ids)
                self._execute(cursor, f"DELETE {theirs}", user_ids)
                removed += count
        return removed

    def _publish(self, cursor: Any, release: Release) -> Delivery:
        held = self._inspect(cursor, release).version
        where = self._label(ASSIGNMENTS)
        if held is not None and release.version <= held:
            note = f"version {held} is there already" if release.version < held else ""
            return Delivery(release.destination, "unchanged", where, 0, note)
        rows, changes = _rows(release), CHANGES.check(release.changes(held or 0))
        if held is None:
            self._make_tables(cursor, rows)
        count, left_out = self._copy(cursor, HISTORY, rows)
        self._copy(cursor, CHANGES.name, changes)
        self._add_version(cursor, release)
        note = f"left out {left_out} users, whose ids have NUL or over {USER_ID_LENGTH_MAX} characters"
        return Delivery(release.destination, "released", where, count, note if left_out else "")

    def _inspect(self, cursor: Any, release: Release) -> "_State":
        """Return what there is. Raise DestinationError where it was made by others, or changed."""
        found = self._found(cursor)
        rows = _rows(release)
        ours = [HISTORY, CHANGES.name, VERSIONS]
        anew = f"or drop all of {self.schema}, which the next publish then fills anew"
        if not found.keys() & {*ours, ASSIGNMENTS}:
            return _State(None, [], [], [])
        if missing := [table for table in ours if table not in found]:
            raise DestinationError(f"{self._label(missing[0])} is missing: put it back, {anew}")
        for table, schema in ((VERSIONS, VERSIONS_SCHEMA), (CHANGES.name, CHANGES.schema)):
            self._check_types(found, table, schema)
            if lacking := [column for column in schema if column not in found[table].columns]:
                add = f"ALTER TABLE {self._label(table)} ADD COLUMN {lacking[0]} {self._types(schema)[lacking[0]]}"
                raise DestinationError(f"{self._label(table)} has no column {lacking[0]}: {add}, {anew}")
        self._check_owner(cursor, release)
        self._check_types(found, HISTORY, rows.schema())
        view, history = found.get(ASSIGNMENTS), found[HISTORY].columns
        if view and view.kind != "view":
            raise DestinationError(f"{self._label(ASSIGNMENTS)} is not the view on the newest version: rename it")
        seen = [*view.columns] if view else []
        new = [column for column in rows.columns if column not in history]
        if dropped := [column for column in new if not view or column in seen]:
            add = f"ALTER TABLE {self._label(HISTORY)} ADD COLUMN {dropped[0]} {self._types(rows.schema())[dropped[0]]}"
            raise DestinationError(f"{self._label(HISTORY)} has no column {dropped[0]} any more: {add}, {anew}")
        [[version]] = self._execute(cursor, f"SELECT max(version) FROM {self._table(VERSIONS)}")
        shown = [*seen, *(column for column in rows.columns if column not in seen)]
        return _State(version or 0, new, seen, shown)

    def _check_types(self, found: "Mapping[str, _Found]", table: str, schema: ibis.Schema) -> None:
        for column, wanted in self._types(schema).items():
            given = found[table].columns.get(column, wanted)
            if given != wanted:
                raise DestinationError(
                    f"column {column} of {self._label(table)} is {given}, not {wanted}: change it back, "
                    f"or drop all of {self.schema}, which the next publish then fills anew"
                )

    def _check_owner(self, cursor: Any, release: Release | None) -> None:
        """Refuse a schema that another configuration or destination publishes into, or another lake did."""
        query = f"SELECT source, destination FROM {self._table(VERSIONS)} ORDER BY version DESC LIMIT 1"
        for source, destination in self._execute(cursor, query):
            if destination != self.name or (release and source != release.source):
                raise DestinationError(
                    f"{self.schema} holds what {source} publishes for its destination {destination}: "
                    "set another schema_name"
                )
        if release:
            query = f"""SELECT count(*) FROM {self._table(VERSIONS)}
                WHERE version = $1 AND as_of <> {self._cast("$2", "timestamp")}"""
            [[other]] = self._execute(cursor, query, release.version, _instant(release.as_of))
            if other:
                raise DestinationError(
                    f"{self.schema} holds another version {release.version}, of a lake that is no more: "
                    "set another schema_name, or drop it"
                )

    def _found(self, cursor: Any) -> "dict[str, _Found]":
        """Return the columns, by table, and their types, in order."""
        found: dict[str, _Found] = {}
        for table, kind, column, column_type in self._execute(cursor, self._dialect.columns.format(schema=self.schema)):
            found.setdefault(table, _Found(kind, {})).columns[column] = column_type
        return found

    def _make_tables(self, cursor: Any, rows: ir.Table) -> None:
        if not self._dialect.is_file:
            [[there]] = self._execute(cursor, "SELECT count(*) FROM pg_namespace WHERE nspname = $1", self.schema)
            if not there:  # who may not create schemas may be given one
                self._execute(cursor, f"CREATE SCHEMA {_quoted(self.schema)}")
        for table, schema in ((VERSIONS, VERSIONS_SCHEMA), (CHANGES.name, CHANGES.schema), (HISTORY, rows.schema())):
            columns = [f"{_quoted(column)} {column_type}" for column, column_type in self._types(schema).items()]
            key = ", ".join(map(_quoted, KEYS[table]))
            self._execute(cursor, f"CREATE TABLE {self._table(table)} ({', '.join(columns)}, PRIMARY KEY ({key}))")
        self._make_view(cursor, rows.columns)

    def _make_view(self, cursor: Any, columns: Sequence[str]) -> None:
        view, create = self._table(ASSIGNMENTS), "CREATE OR REPLACE VIEW"
        if self._dialect.is_file:
            self._execute(cursor, f"DROP VIEW IF EXISTS {view}")
            create = "CREATE VIEW"
        self._execute(
            cursor,
            f"""{create} {view} AS SELECT {", ".join(map(_quoted, columns))} FROM {self._table(HISTORY)}
            WHERE version = (SELECT max(version) FROM {self._table(VERSIONS)})""",
        )

    def _add_version(self, cursor: Any, release: Release) -> None:
        manifest = json.dumps(dict(release.manifest), ensure_ascii=False).replace("\\u0000", REPLACEMENT)
        as_of = _instant(release.as_of)
        values = (release.version, as_of, SCHEMA_VERSION, release.source, release.destination, manifest)
        placed = f"$1, {self._cast('$2', 'timestamp')}, $3, $4, $5, {self._cast('$6', 'json')}"
        into = f"{self._table(VERSIONS)} ({', '.join(map(_quoted, VERSIONS_SCHEMA))})"
        self._execute(cursor, f"INSERT INTO {into} VALUES ({placed})", *values)

    def _copy(self, cursor: Any, table: str, rows: ir.Table) -> tuple[int, int]:
        """Append rows as they come, in order of the key; return how many there are, and how many are left out."""
        schema = rows.schema().to_pyarrow()
        left_out = 0
        failures: list[Exception] = []

        def stored_parts() -> Iterator[pa.RecordBatch]:
            nonlocal left_out
            try:
                for batch in rows.order_by(*KEYS[table]).to_pyarrow_batches(chunk_size=BATCH_ROWS):
                    # Batches have the types that DuckDB finds, though Ibis says that they have those of the expression.
                    part = pa.Table.from_batches([batch]).cast(schema)
                    storable = part.filter(_is_storable(part["user_id"]))
                    left_out += len(part) - len(storable)
                    yield from self._stored(storable).to_batches()
            except Exception as error:  # the driver would say that its stream ended
                failures.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(self._stored(schema.empty_table()).schema, stored_parts())
        name = {"table_name": table, "db_schema_name": self.schema}
        if self._dialect.is_file:
            name = {"table_name": f"{self.schema}_{table}"}
        try:
            return int(cursor.adbc_ingest(data=reader, mode="append", **name)), left_out
        except self._driver.Error:
            if failures:
                raise failures[0] from None
            raise

    def _stored(self, rows: pa.Table) -> pa.Table:
        """Return rows as the database takes them.

        There is no NUL, and records are JSON; in a file lists are JSON, too, and instants ISO 8601.
        """
        columns = {name: _without_nul(rows[name]) for name in rows.column_names}
        columns = {name: as_json(column) if _has_records(column.type) else column for name, column in columns.items()}
        if self._dialect.is_file:
            columns = {name: _as_text(column) for name, column in columns.items()}
        return pa.table(columns)

    def _types(self, schema: ibis.Schema) -> dict[str, str]:
        return {column: self._dialect.types[_kind(dtype)] for column, dtype in schema.items()}

    def _cast(self, value: str, kind: str) -> str:
        return f"CAST(CAST({value} AS {self._dialect.types['string']}) AS {self._dialect.types[kind]})"

    def _table(self, table: str) -> str:
        if not self._dialect.is_file:
            return f"{_quoted(self.schema)}.{_quoted(table)}"
        return _quoted(f"{self.schema}_{table}")

    def _label(self, table: str) -> str:
        return f"{self.schema}{'_' if self._dialect.is_file else '.'}{table}"

    @property
    def _dialect(self) -> Dialect:
        dialect = DIALECTS.get(SCHEMES.get(self.url.partition("://")[0], ""))
        if dialect is None:
            raise DestinationError("the address is none of postgresql://user:password@host/database, sqlite:///file")
        return dialect

    def _execute(self, cursor: Any, statement: str, *values: object) -> list[tuple[Any, ...]]:
        cursor.execute(statement, values or None)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows

    @property
    def _driver(self) -> Any:
        try:
            return import_module(self._dialect.driver)
        except ImportError as error:
            raise DestinationError("needs `pip install 'habitus[sql]'`") from error

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        dialect, driver = self._dialect, self._driver
        address = _limited(self.url)
        if dialect.is_file:
            address = str(self.folder / self.url.partition(":///")[2])
            with suppress(OSError):  # which the driver says; SQLite's journals get the mode of the file
                os.close(os.open(address, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            if dialect.once:
                self._prepare(address)
            connection = driver.connect(address)
        except driver.Error as error:
            raise DestinationError(_unreachable(str(error))) from None  # its message has parts of the address
        with closing(connection):
            yield connection

    def _prepare(self, address: str) -> None:
        """Set what a database keeps; again, where another does so at once: for that SQLite does not wait."""
        for pause_s in (*PAUSES_S, None):
            try:
                with (
                    closing(self._driver.connect(address, autocommit=True)) as connection,
                    closing(connection.cursor()) as cursor,
                ):
                    for statement in self._dialect.once:
                        self._execute(cursor, statement)
                return
            except self._driver.OperationalError as error:
                if pause_s is None or LOCKED not in str(error):
                    raise
            time.sleep(pause_s)

    @contextmanager
    def _transaction(self, connection: Any) -> Iterator[Any]:
        """Lend a cursor that alone writes to the schema; commit at the end, or take back all."""
        with closing(connection.cursor()) as cursor:
            try:
                for statement in self._dialect.begin:
                    self._execute(cursor, statement.format(schema=self.schema))
                yield cursor
                connection.commit()
            except BaseException as error:
                with suppress(Exception):  # the connection is lost, and all is taken back
                    connection.rollback()
                if isinstance(error, self._driver.Error):
                    raise DestinationError(self._told(error)) from None  # its message may have the address
                raise

    def _told(self, error: Any) -> str:
        """Say in one line what the database said, and what to do."""
        state = error.sqlstate or ""
        lines = [line.strip() for line in str(error).splitlines()]
        said = next((line.partition("ERROR: ")[2].strip() for line in lines if "ERROR: " in line), lines[0])
        if not self._dialect.is_file and ("FATAL: " in str(error) or not (state or "ERROR: " in str(error))):
            return "the connection was lost before the version was whole; the next publish tries again"
        for secret in _secrets(self.url):
            said = said.replace(secret, "***")
        if state.startswith(OF_VALUES):
            said = hide_values(said)
        advice = ADVICE.get(state, "")
        return f"{said}: {advice.format(schema=self.schema)}" if advice else said


@dataclass(frozen=True)
class _Found:
    kind: str
    columns: dict[str, str]


@dataclass(frozen=True)
class _State:
    """Say which version is there (None: no tables), and which columns are new, are shown, and are to be shown."""

    version: int | None
    new_columns: list[str]
    seen_columns: list[str]
    view_columns: list[str]


def _rows(release: Release) -> ir.Table:
    version = ibis.literal(release.version).cast("int64").name("version")
    return release.rows.select(version, *release.rows.columns)


def _is_storable(user_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.and_(
        pc.less_equal(pc.utf8_length(user_ids), USER_ID_LENGTH_MAX), pc.invert(pc.match_substring(user_ids, NUL))
    )


def _kind(dtype: dt.DataType) -> str:
    if dtype.is_array():
        return "records" if dtype.value_type.is_struct() else "array"
    if dtype.is_timestamp():
        return "timestamp"
    return str(dtype.copy(nullable=True))


def _without_nul(column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    if not pa.types.is_string(texts.type) or not pc.any(pc.match_substring(texts, NUL)).as_py():
        return column
    if texts is column:
        return pc.replace_substring(column, NUL, REPLACEMENT)
    cleaned = [items and [item and item.replace(NUL, REPLACEMENT) for item in items] for items in column.to_pylist()]
    return pa.chunked_array([pa.array(cleaned, column.type)])


def _has_records(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_list(dtype) and pa.types.is_struct(dtype.value_type))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_list(column.type):
        texts = [None if items is None else json.dumps(items, ensure_ascii=False) for items in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    if pa.types.is_timestamp(column.type):
        return pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
    return column


def _instant(at: datetime) -> str:
    """Return what `_as_text` makes of an instant."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _limited(url: str) -> str:
    """Return an address with the limits that it has not."""
    given = url.partition("?")[2]
    names = {part.partition("=")[0] for part in given.split("&")}
    limits = "&".join(f"{name}={value}" for name, value in LIMITS.items() if name not in names)
    return f"{url}{'&' if given else '' if url.endswith('?') else '?'}{limits}"


def _secrets(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        passwords = [parts.password or "", *parse_qs(parts.query).get("password", [])]
    except ValueError:
        passwords = []
    return [secret for given in passwords for secret in (url, given, unquote(given)) if secret]


def _unreachable(message: str) -> str:
    """Say why there is no connection, without the driver's words: they have parts of the address."""
    reasons = (reason for part, reason in UNREACHABLE.items() if part in message)
    form = "the address is not of the form postgresql://user:password@host/database, with %XX for special characters"
    return f"cannot connect: {next(reasons, form)}"
