"""A digest of SESSIONS in Parquet files: equal for equal rows, in any order, in any files, from any engine."""

from pathlib import Path

import duckdb

from features.sessions import SESSIONS


def digest(folder: Path) -> str:
    """Return how many sessions a folder's files hold and the sum of their hashes, over every column of the contract.

    Nulls count, times are microseconds, and amounts and durations millionths. Raises duckdb.Error for a missing column.
    """
    columns = ", ".join(_comparable(name) for name in SESSIONS.schema.names)
    with duckdb.connect() as con:
        rows = con.execute(
            f"""SELECT count(*), coalesce(sum(hash({columns})::HUGEINT), 0)
            FROM read_parquet('{folder}/**/*.parquet', hive_partitioning = false)"""
        ).fetchall()
    return "{}-{:x}".format(*rows[0])


def _comparable(column: str) -> str:
    dtype = SESSIONS.schema[column]
    if dtype.is_floating():
        return f"round({column} * 1000000)::BIGINT"
    if dtype.is_timestamp():
        return f"epoch_us({column})"
    return f"{column}::BIGINT" if dtype.is_integer() else column
