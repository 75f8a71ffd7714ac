"""The Spark engine: Ibis' own backend, with what Habitus' expressions take for granted on DuckDB.

The session is Spark's business: spark-defaults.conf and SPARK_REMOTE say which.
"""

import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.operations as ops
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
from ibis.backends.pyspark import Backend
from ibis.formats.pandas import PandasData
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from features.engines import EPOCH
from features.events import EVENTS
from features.increments import MATTERS

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # read when a session starts: its workers need these packages

# It says so at each use; what is used of it here takes pandas 3, as the tests show.
warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)

SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_LTZ",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
    "spark.sql.ansi.enabled": "true",
    # What Spark would infer of many columns that are compared with one another takes it more memory than the rows.
    "spark.sql.constraintPropagation.enabled": "false",
}
"""What results depend on, whatever the cluster's defaults are."""

HASHED = from_arrow_schema(ibis.schema({name: EVENTS.schema[name] for name in MATTERS}).to_pyarrow())
FUNCTIONS = (
    "epoch_us(instant TIMESTAMP) RETURNS BIGINT RETURN unix_micros(instant)",
    "timezone(zone STRING, instant TIMESTAMP) RETURNS TIMESTAMP_NTZ"
    " RETURN CAST(from_utc_timestamp(instant, zone) AS TIMESTAMP_NTZ)",
    "create_sort_key(occurred_at TIMESTAMP, time_order STRING, event_id STRING, id_order STRING)"
    " RETURNS STRUCT<occurred_at: TIMESTAMP, event_id: STRING> RETURN struct(occurred_at, event_id)",
    # Spark's hash is the same wherever the nulls are.
    f"content_hash(content {HASHED.simpleString()}) RETURNS BIGINT"
    f" RETURN xxhash64({', '.join(f'content.{name}, isnull(content.{name})' for name in HASHED.names)})",
)
"""Functions that Habitus calls by the name that DuckDB knows; Spark puts their bodies in their place when it plans."""

PARQUET = {"compression": "zstd"}
PLACE = "habitus_place"


class Spark(Backend):
    """Ibis' engine, with instants in UTC, temporary tables, and rows that come and go as Arrow."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._views: set[str] = set()

    def read_files(self, files: Sequence[str], schema: ibis.Schema) -> ir.Table:
        """Return the rows of Parquet files under a schema; a column that a file does not have is null."""
        paths = [re.sub(r"([][*?{}\\])", r"\\\1", file) for file in files]  # Hadoop would take a name for a pattern
        name = f"files_{uuid.uuid4().hex}"
        return self._named(name, self._session.read.schema(from_arrow_schema(schema.to_pyarrow())).parquet(*paths))

    def keep(self, name: str, rows: ir.Table, order: Sequence[str]) -> ir.Table:
        """Run a query into a temporary table; its order is made when it is written."""
        return self.create_table(name, rows)

    def write_files(
        self, rows: ir.Table, at: str | None, *, by_day: bool, order: Sequence[str], folder: Path
    ) -> dict[datetime | None, Path]:
        """Write a file for each instant: all its rows go through one task."""
        keys = [sf.col(_quoted(name)) for name in order]
        query = self._query(rows)
        if at is None:
            in_order = query.repartition(1).sortWithinPartitions(*keys)
            in_order.write.options(**PARQUET).mode("append").parquet(str(folder))
            [file] = folder.glob("*.parquet")
            return {None: file}
        instant = sf.col(_quoted(at))
        placed = query.withColumn(PLACE, sf.unix_micros(sf.date_trunc("day", instant) if by_day else instant))
        placed = placed.repartition(PLACE).sortWithinPartitions(PLACE, *keys)
        placed.write.partitionBy(PLACE).options(**PARQUET).mode("append").parquet(str(folder))
        files = sorted(folder.glob("*/*.parquet"))
        return {EPOCH + timedelta(microseconds=int(file.parent.name.partition("=")[2])): file for file in files}

    def map_frames(self, rows: ir.Table, make: Callable[[pd.DataFrame], pa.Table], schema: ibis.Schema) -> ir.Table:
        """Return what a function makes of frames that together hold the rows, on the executors, by a schema.

        They need what the function needs, installed.
        """
        given = rows.schema()

        def mapped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                frame = PandasData.convert_table(pa.Table.from_batches([batch]).to_pandas(), given)
                yield from make(frame).to_batches()

        made = self._query(rows).mapInArrow(mapped, from_arrow_schema(schema.to_pyarrow()))
        return self._named(f"mapped_{uuid.uuid4().hex}", made)

    def create_table(
        self,
        name: str,
        /,
        obj: ir.Table | pa.Table | pd.DataFrame | None = None,
        *,
        temp: bool | None = None,
        **options: Any,
    ) -> ir.Table:
        """Run a query into a temporary table: its rows stay where they were made, in memory or on executors' disks."""
        rows = obj if isinstance(obj, ir.Table) else ibis.memtable(obj)
        return self._named(name, self._query(rows).localCheckpoint())

    def list_tables(self, *, like: str | None = None, database: Any = None) -> list[str]:
        """List what was made with this engine; a session may hold other programs' tables."""
        names: list[str] = self._filter_with_like(sorted(self._views), like)
        return names

    def get_schema(self, table_name: str, *, catalog: str | None = None, database: str | None = None) -> ibis.Schema:
        """Return the schema of a table or view, with instants in UTC, where Ibis says no zone."""
        return _schema_of(self._session.table(".".join(part for part in (catalog, database, table_name) if part)))

    def to_pyarrow(self, expr: ir.Expr, /, **options: Any) -> Any:
        """Run a query; return its rows as Arrow, not by way of pandas, which takes integers with nulls for floats."""
        return expr.__pyarrow_result__(self._query(expr.as_table(), **options).toArrow())

    def execute(self, expr: ir.Expr, /, **options: Any) -> Any:
        """Run a query; return its rows as a frame like DuckDB's."""
        rows = expr.as_table()
        return expr.__pandas_result__(self.to_pyarrow(rows, **options).to_pandas(), schema=rows.schema())

    def disconnect(self) -> None:
        """Drop what was made with this engine; the session goes on, others may share it."""
        for name in self._views:
            self._session.catalog.dropTempView(name)
        self._views.clear()

    def _named(self, name: str, rows: DataFrame) -> ir.Table:
        rows.createTempView(name)
        self._views.add(name)
        return self.table(name)

    def _query(self, rows: ir.Table, **options: Any) -> DataFrame:
        self._run_pre_execute_hooks(rows)
        query: DataFrame = self._session.sql(self.compile(rows, **options))
        return query

    def _get_schema_using_query(self, query: str) -> ibis.Schema:
        return _schema_of(self._session.sql(query))

    def _register_in_memory_table(self, op: ops.InMemoryTable) -> None:
        self._named(op.name, self._session.createDataFrame(op.data.to_pyarrow(op.schema)))


def connect(session: SparkSession | None = None) -> Spark:
    """Work in a Spark session: the given one, or the one that Spark's own configuration describes."""
    session = session or SparkSession.builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    for name, value in SETTINGS.items():
        session.conf.set(name, value)
    for function in FUNCTIONS:
        if not session.catalog.functionExists(function.partition("(")[0]):
            session.sql(f"CREATE TEMPORARY FUNCTION {function}")
    Spark.register_options()  # as ibis.pyspark does when it is first used
    engine: Spark = Spark().connect(session)
    return engine


def _schema_of(rows: DataFrame) -> ibis.Schema:
    return ibis.Schema.from_pyarrow(to_arrow_schema(rows.schema, timezone="UTC"))


def _quoted(column: str) -> str:
    return "`" + column.replace("`", "``") + "`"
