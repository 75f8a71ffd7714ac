"""DOOR: the lake, a folder of Delta tables, and the engine that reads and writes them.

Engines read and write plain Parquet, the `deltalake` library commits. A table changes by one commit, so a reader sees
the old rows or the new, never half; a crash leaves files that no version names. Files are named by their bytes, so
that writing the same rows again commits nothing.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.transaction import AddAction, create_table_with_add_actions
from ibis.backends.duckdb import Backend as DuckDB

from features.table import ContractError, Table

DAY = "day"
DAY_OF = "day of "
INSTANT_IN_PATH = "%Y-%m-%dT%H%M%S.%fZ"
STAGING = ".staging-"
PARTITION = "habitus_partition"


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Lend a folder beside what is to be written, on the same disk; gone at the end.

    What killed processes of this machine left there goes too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{STAGING}*"):
        process = left.name.removeprefix(STAGING).partition("-")[0]
        if not (process.isdigit() and _is_running(int(process))):
            shutil.rmtree(left, ignore_errors=True)
    staging = folder / f"{STAGING}{os.getpid()}-{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks only
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Lake:
    """Hold the tables under a folder and the engine that works on them; close it, or use it in `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: DuckDB = ibis.duckdb.connect()
        self.engine.raw_sql("SET TimeZone = 'UTC'")
        # Progress bars are the program's business, not the engine's.
        self.engine.raw_sql("SET enable_progress_bar = false")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine; expressions made with it no longer run."""
        self.engine.disconnect()

    def has(self, table: Table) -> bool:
        """Tell whether a table was ever written."""
        return DeltaTable.is_deltatable(str(self.folder / table.name))

    def version(self, table: Table) -> int:
        """Return the number of a table's latest commit."""
        return DeltaTable(str(self.folder / table.name)).version()

    def read(self, table: Table, version: int | None = None) -> ir.Table:
        """Return the rows of a table, as of its latest or an earlier version; none if it was never written."""
        files = self._files(table, version) if self.has(table) else []
        if not files:
            return ibis.memtable(pa.Table.from_pylist([], schema=table.schema.to_pyarrow()), schema=table.schema)
        rows = self.engine.read_parquet(files, hive_partitioning=False, union_by_name=True)
        return table.check(rows)

    def write(self, table: Table, rows: ir.Table, only: Sequence[datetime] | None = None) -> bool:
        """Replace a table's rows, or only its partitions `only`, in one commit; tell whether anything changed.

        Raises ContractError where a column, type, required value or key is not as the contract says; the table then
        stays as it was. A table whose columns have changed is replaced as a whole; its history remains.
        """
        with staging_folder(self.folder) as staging:
            adds = self._stage(table, table.check(rows), staging)
            if only is not None:
                _check_scope(table, adds, only)
            return self._commit(table, adds, only, staging)

    def content(self, table: Table, only: Sequence[datetime] | None = None) -> str:
        """Return a hash of what a table, or its partitions `only`, hold: equal rows, equal hash."""
        scope = None if only is None else {_folder_of(table, instant) for instant in only}
        names = sorted(
            Path(file).name for file in self._files(table) if scope is None or Path(file).parent.name in scope
        )
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def _files(self, table: Table, version: int | None = None) -> list[str]:
        folder = self.folder / table.name
        # Not file_uris(), which are encoded where a folder's name has a space or an umlaut.
        return sorted(str(folder / path) for path in _paths(DeltaTable(str(folder), version=version)))

    def _stage(self, table: Table, rows: ir.Table, staging: Path) -> list[AddAction]:
        """Write the rows to a folder of their own, a file for each partition; return what a commit would add."""
        con = self.engine.con
        name = f"rows_{uuid.uuid4().hex}"
        self.engine.create_table(name, rows, temp=True)
        try:
            self._check_rows(table, name)
            # One thread writes one file for each partition, always with the same bytes.
            con.execute("SET threads = 1")
            con.execute(
                f"""COPY (SELECT {_quoted(table.schema.names)}, {_partition_sql(table)} AS {PARTITION} FROM {name}
                ORDER BY {PARTITION}, {_quoted(table.key)})
                TO '{_escaped(staging)}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY ({PARTITION}))"""
            )
        finally:
            con.execute("RESET threads")
            self.engine.drop_table(name, force=True)
        return [_name_by_content(table, file, staging) for file in sorted(staging.rglob("*.parquet"))]

    def _check_rows(self, table: Table, name: str) -> None:
        distinct = f"SELECT DISTINCT {_quoted(table.key)} FROM {name}"
        null_counts = ", ".join(f"count(*) - count({_quoted([column])})" for column in table.required)
        [(repeated, *nulls)] = self.engine.con.execute(
            f"SELECT count(*) - (SELECT count(*) FROM ({distinct})), {null_counts} FROM {name}"
        ).fetchall()
        wrong = [f"{count} rows have no {column}" for column, count in zip(table.required, nulls, strict=True) if count]
        wrong += [f"{repeated} rows repeat a key ({', '.join(table.key)})"] if repeated else []
        if wrong:
            raise ContractError(f"{table.name}: {'; '.join(wrong)}")

    def _commit(self, table: Table, adds: list[AddAction], only: Sequence[datetime] | None, staging: Path) -> bool:
        """Swap in what differs from the current version."""
        folder = self.folder / table.name
        schema = _delta_schema(table)
        column = _partition_column(table)
        partition_by = [column] if column else []
        current = DeltaTable(str(folder)) if self.has(table) else None
        if current is None or current.schema() != schema:
            _move(adds, staging, folder)
            create_table_with_add_actions(str(folder), schema, adds, mode="overwrite", partition_by=partition_by)
            return True
        before = _paths_by_partition(_paths(current))
        after = _paths_by_partition([add.path for add in adds])
        scope = before.keys() | after.keys() if only is None else {_folder_of(table, instant) for instant in only}
        changed = {part for part in scope if before.get(part) != after.get(part)}
        if not changed:
            return False
        fresh = [add for add in adds if Path(add.path).parent.name in changed]
        _move(fresh, staging, folder)
        filters = [(column, "in", [_value_of(table, part) for part in sorted(changed)])] if column else None
        current.create_write_transaction(
            list(fresh), mode="overwrite", schema=schema, partition_by=partition_by, partition_filters=filters
        )
        return True


# A partition's folder is "day=2024-01-31" or "as_of=2024-01-31T063000.000000Z": what DuckDB and file systems take as
# it is. Delta's log holds the value as the protocol writes it.


def _partition_column(table: Table) -> str | None:
    if table.partition is None:
        return None
    return DAY if table.partition.startswith(DAY_OF) else table.partition


def _partition_sql(table: Table) -> str:
    if table.partition is None:
        return "''"
    if table.partition.startswith(DAY_OF):
        return f"strftime({table.partition.removeprefix(DAY_OF)}, '%Y-%m-%d')"
    return f"strftime({table.partition}, '{INSTANT_IN_PATH}')"


def _folder_of(table: Table, instant: datetime) -> str:
    return f"{_partition_column(table)}={instant.astimezone(UTC).strftime(INSTANT_IN_PATH)}"


def _value_of(table: Table, folder: str) -> str:
    text = folder.partition("=")[2]
    if _partition_column(table) == DAY:
        return text
    return datetime.strptime(text, INSTANT_IN_PATH).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _paths(current: DeltaTable) -> list[str]:
    paths: list[str] = pa.table(current.get_add_actions()).column("path").to_pylist()
    return paths


def _paths_by_partition(paths: list[str]) -> dict[str, set[str]]:
    by_partition: dict[str, set[str]] = {}
    for path in paths:
        by_partition.setdefault(Path(path).parent.name, set()).add(path)
    return by_partition


def _name_by_content(table: Table, file: Path, staging: Path) -> AddAction:
    """Move a staged file to its name within the table, and say of it what a commit needs."""
    content = file.read_bytes()
    column = _partition_column(table)
    folder = f"{column}={file.parent.name.partition('=')[2]}" if column else ""
    path = Path(folder) / f"{hashlib.sha256(content).hexdigest()[:32]}.parquet"
    (staging / path).parent.mkdir(parents=True, exist_ok=True)
    file.rename(staging / path)
    row_count = pq.read_metadata(staging / path).num_rows
    return AddAction(
        path=path.as_posix(),
        size=len(content),
        partition_values={column: _value_of(table, folder)} if column else {},
        modification_time=0,
        data_change=True,
        stats=json.dumps({"numRecords": row_count}),
    )


def _check_scope(table: Table, adds: list[AddAction], only: Sequence[datetime]) -> None:
    beyond = {Path(add.path).parent.name for add in adds} - {_folder_of(table, instant) for instant in only}
    if beyond:
        raise ContractError(f"{table.name}: rows of other partitions than those to write: {', '.join(sorted(beyond))}")


def _move(adds: list[AddAction], staging: Path, folder: Path) -> None:
    for add in adds:
        (folder / add.path).parent.mkdir(parents=True, exist_ok=True)
        (staging / add.path).replace(folder / add.path)


def _delta_schema(table: Table) -> DeltaSchema:
    schema = table.schema.to_pyarrow()
    if _partition_column(table) == DAY:
        schema = schema.append(pa.field(DAY, pa.date32()))
    return DeltaSchema.from_arrow(schema)


def _quoted(columns: Iterable[str]) -> str:
    return ", ".join('"' + column.replace('"', '""') + '"' for column in columns)


def _escaped(path: Path) -> str:
    return str(path).replace("'", "''")
