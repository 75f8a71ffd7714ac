"""Engines: what runs the expressions, and turns files into rows and rows into files. DuckDB; Spark is in `spark`."""

import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.operations as ops
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends.duckdb import Backend

from features.addresses import literal
from features.values import add_functions

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400 * 1_000_000


class Engine(Protocol):
    """Ibis' backend, of which the lake asks three things more."""

    def read_files(self, files: Sequence[str], schema: ibis.Schema) -> ir.Table:
        """Return the rows of Parquet files under a schema; a column that a file does not have is null."""

    def keep(self, name: str, rows: ir.Table, order: Sequence[str]) -> ir.Table:
        """Run a query into a table, as `write_files` will want it."""

    def write_files(
        self, rows: ir.Table, at: str | None, *, by_day: bool, order: Sequence[str], folder: Path
    ) -> dict[datetime | None, Path]:
        """Write rows that were kept to a Parquet file for each instant in column `at`, or each UTC day of it, in order.

        Without a column to one file. Return the files, somewhere in the folder, by their instant or day's midnight.
        The same rows give the same bytes.
        """


class DuckDB(Backend):
    """DuckDB in the process."""

    def create_table(
        self, name: str, obj: ir.Table | pa.Table | None = None, *, temp: bool = False, **options: Any
    ) -> ir.Table:
        """Create a table of a query or of rows, by two statements.

        Ibis' own takes seven to do the same: most look up where the table is and which columns it has, as is known.
        """
        if obj is None or options:
            return super().create_table(name, obj, temp=temp, **options)
        rows = obj if isinstance(obj, ir.Table) else ibis.memtable(obj)
        schema = rows.schema()
        self._run_pre_execute_hooks(rows)
        query = self.compile(rows)
        columns = ", ".join(f"{_quoted(column)} {_type_of(dtype)}" for column, dtype in schema.items())
        self.con.execute(f"CREATE {'TEMP ' * temp}TABLE {_quoted(name)} ({columns})")
        self.con.execute(f"INSERT INTO {_quoted(name)} {query}")
        namespace = ops.Namespace(catalog="temp" if temp else "memory", database="main")
        return ops.DatabaseTable(name, schema=schema, source=self, namespace=namespace).to_expr()

    def read_files(self, files: Sequence[str], schema: ibis.Schema) -> ir.Table:
        """Return the rows of Parquet files under a schema; a column that a file does not have is null."""
        return self.read_parquet([*map(literal, files)], hive_partitioning=False, union_by_name=True)

    def keep(self, name: str, rows: ir.Table, order: Sequence[str]) -> ir.Table:
        """Run a query into a table that all connections see, in order, so that a file's rows are in one place."""
        return self.create_table(name, rows.order_by(*order))

    def write_files(
        self, rows: ir.Table, at: str | None, *, by_day: bool, order: Sequence[str], folder: Path
    ) -> dict[datetime | None, Path]:
        """Write a file for each instant."""
        query, column = self.compile(rows), _quoted(at)
        width_us = DAY_US if by_day else 1
        begins_us: list[int | None] = [None]
        if at is not None:
            us = f"epoch_us({column})"
            # Not date_trunc, which goes through the calendar for each row.
            found = self.con.execute(
                f"SELECT DISTINCT {us} - ({us} % {width_us} + {width_us}) % {width_us} FROM ({query}) ORDER BY 1"
            ).fetchall()
            begins_us = [begin_us for (begin_us,) in found]

        def write(begin_us: int | None) -> Path:
            file = folder / f"{uuid.uuid4().hex}.parquet"
            within = "true"
            if begin_us is not None:
                begin, end = (f"make_timestamptz({at_us})" for at_us in (begin_us, begin_us + width_us))
                within = f"{column} >= {begin} AND {column} < {end}"
            with self.con.cursor() as con:
                con.execute("SET enable_progress_bar = false")
                con.execute(
                    f"""COPY (SELECT * FROM ({query}) WHERE {within})
                    TO '{_escaped(file)}' (FORMAT parquet, COMPRESSION zstd)"""
                )
            return file

        # A partition is small for two threads, and there are many.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = pool.map(write, begins_us)
            return {_instant(begin_us): file for begin_us, file in zip(begins_us, files, strict=True)}


def connect(memory_limit_bytes: int | None = None, spill_folder: Path | None = None) -> DuckDB:
    """Start DuckDB, which takes at most so much memory (half of the machine's) and spills what is more."""
    engine: DuckDB = DuckDB().connect()
    engine.raw_sql("SET TimeZone = 'UTC'")
    add_functions(engine.con)
    # Signed, as Spark has no unsigned integers.
    engine.raw_sql("CREATE TEMP MACRO content_hash(content) AS (hash(content) >> 1)::BIGINT")
    # Progress bars are the program's business, not the engine's.
    engine.raw_sql("SET enable_progress_bar = false")
    engine.raw_sql(f"SET memory_limit = '{(memory_limit_bytes or half_of_memory_bytes()) // 1024}KiB'")
    if spill_folder is not None:
        engine.raw_sql(f"SET temp_directory = '{_escaped(spill_folder)}'")
    return engine


def half_of_memory_bytes() -> int:
    """Return half of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@cache
def _type_of(dtype: dt.DataType) -> str:
    return str(Backend.compiler.type_mapper.to_string(dtype)) + " NOT NULL" * (not dtype.nullable)


def _instant(us: int | None) -> datetime | None:
    return None if us is None else EPOCH + timedelta(microseconds=us)


def _quoted(column: str | None) -> str:
    return '"' + (column or "").replace('"', '""') + '"'


def _escaped(path: Path) -> str:
    return str(path).replace("'", "''")
