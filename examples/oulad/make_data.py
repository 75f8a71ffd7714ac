"""Make clicks.parquet and learners.csv from the published OULAD tables.

    python examples/oulad/make_data.py path/to/oulad

The folder holds the tables as they are published: studentVle, vle and studentInfo, each
as .csv or .parquet. The same tables always give the same files.
"""

import argparse
from pathlib import Path

import duckdb

PRESENTATIONS = (("AAA", "2013J"), ("AAA", "2014J"), ("BBB", "2013B"))
HERE = Path(__file__).parent

# B and J in a presentation's name stand for the month in which it starts.
STARTS = """
    make_date(
        CAST(left(code_presentation, 4) AS INTEGER),
        CASE right(code_presentation, 1) WHEN 'B' THEN 2 WHEN 'J' THEN 10 END,
        1
    )
"""

CLICKS = f"""
    SELECT
        code_module,
        code_presentation,
        CAST(id_student AS INTEGER) AS id_student,
        CAST(id_site AS INTEGER) AS id_site,
        activity_type,
        {STARTS} + CAST(date AS INTEGER) AS date,
        CAST(sum(CAST(sum_click AS INTEGER)) AS INTEGER) AS sum_click
    FROM student_vle
    JOIN vle USING (code_module, code_presentation, id_site)
    GROUP BY ALL
    ORDER BY id_student, date, id_site
"""

LEARNERS = f"""
    SELECT
        CAST(id_student AS INTEGER) AS id_student,
        gender, region, highest_education, imd_band, age_band, disability
    FROM student_info
    QUALIFY row_number() OVER (
        PARTITION BY id_student ORDER BY {STARTS} DESC, code_module
    ) = 1
    ORDER BY id_student
"""


def table(folder: Path, name: str) -> duckdb.DuckDBPyRelation:
    """Read one published table, only the presentations of the example."""
    parquet, csv = folder / f"{name}.parquet", folder / f"{name}.csv"
    if parquet.exists():
        rows = duckdb.read_parquet(str(parquet))
    else:
        rows = duckdb.read_csv(str(csv), all_varchar=True, na_values=["", "?"])
    return rows.filter(f"(code_module, code_presentation) IN {PRESENTATIONS}")


def main() -> None:
    """Write both files beside this one."""
    parser = argparse.ArgumentParser(description="Make the data of examples/oulad.")
    parser.add_argument("folder", type=Path, help="the published tables")
    arguments = parser.parse_args()

    duckdb.execute("SET threads = 1")  # one order of rows, one file
    columns = "* REPLACE (CAST(id_site AS INTEGER) AS id_site)"
    table(arguments.folder, "studentVle").select(columns).create_view("student_vle")
    table(arguments.folder, "vle").select(columns).create_view("vle")
    table(arguments.folder, "studentInfo").create_view("student_info")
    duckdb.sql(CLICKS).write_parquet(str(HERE / "clicks.parquet"), compression="zstd")
    duckdb.sql(LEARNERS).write_csv(str(HERE / "learners.csv"))


if __name__ == "__main__":
    main()
