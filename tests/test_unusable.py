import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend as DuckDB

from features.places import find_lines
from features.sources import Source, SourceError, read_events
from features.unusable import find_rows, refuse_unusable

HEADER = "id,user,note"


def lines_of(folder: Path, text: str, *rows: str, name: str = "a.csv") -> list[int]:
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return find_lines(folder / name, list(rows), 3)


def row(**columns: str | None) -> str:
    return json.dumps(columns)


# --- lines ---


def test_a_row_is_on_its_line_the_header_being_the_first(tmp_path: Path) -> None:
    text = f"{HEADER}\n1,ada,\n2,,x\n3,ben,\n"

    assert lines_of(tmp_path, text, row(id="2", user=None, note="x")) == [3]


def test_rows_that_are_blank_or_null_are_alike_and_columns_may_be_in_any_order(tmp_path: Path) -> None:
    assert lines_of(tmp_path, f'{HEADER}\n2,"",x\n', row(note="x", user="", id="2", of_other_files=None)) == [2]
    assert lines_of(tmp_path, f"{HEADER}\n1,a,\n,,\n", row(id=None, user=None, note=None)) == [3]


def test_a_row_of_several_lines_is_on_its_first(tmp_path: Path) -> None:
    text = f'{HEADER}\n1,ada,"two\nlines"\n\n2,,"three\n\nlines"\n'

    assert lines_of(tmp_path, text, row(id="2", user="", note="three\n\nlines")) == [5]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_line_that_is_no_row_is_found_as_it_is(tmp_path: Path, ends: str) -> None:
    text = ends.join([HEADER, "1,ada,", "2,ben,x,more", ""])

    assert lines_of(tmp_path, text, "2,ben,x,more") == [3]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_every_delimiter_is_known(tmp_path: Path, delimiter: str) -> None:
    text = f"{HEADER}\n1,ada,\n2,,x\n".replace(",", delimiter)

    assert lines_of(tmp_path, text, row(id="2", user=None, note="x")) == [3]


def test_a_column_without_a_name_has_one_by_its_place(tmp_path: Path) -> None:
    assert lines_of(tmp_path, ",user\n0,\n", row(column_1="0", user=None)) == [2]


def test_a_mark_of_byte_order_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert lines_of(tmp_path, f"\ufeff{HEADER}\n2,,x\n", row(id="2", user=None, note="x")) == [2]


def test_an_object_is_on_its_line_blank_lines_counted(tmp_path: Path) -> None:
    text = '{"id": 1}\n\n{"id": 2, "user": null}\n{"id": 3\n'

    assert lines_of(tmp_path, text, '{"id": 2, "user": null}', '{"id": 3', name="a.jsonl") == [3, 4]


def test_a_compressed_file_has_the_lines_of_what_is_in_it(tmp_path: Path) -> None:
    assert lines_of(tmp_path, f"{HEADER}\n2,,x\n", row(id="2", user=None, note="x"), name="a.csv.gz") == [2]


def test_the_first_three_are_enough(tmp_path: Path) -> None:
    text = f"{HEADER}\n" + "2,,x\n" * 9

    assert lines_of(tmp_path, text, row(id="2", user=None, note="x")) == [2, 3, 4]


def test_what_python_cannot_read_has_no_lines(tmp_path: Path) -> None:
    assert lines_of(tmp_path, f"{HEADER}\n{'x' * 200_000},,\n2,,x\n", row(id="2", user=None, note="x")) == []
    (tmp_path / "b.csv.gz").write_bytes(b"no gzip")
    assert find_lines(tmp_path / "b.csv.gz", ["{}"], 3) == []


def test_a_row_of_parquet_has_its_place_in_the_file(engine: DuckDB, tmp_path: Path) -> None:
    users = ["ada"] * 300_000
    users[70_000] = users[250_000] = ""
    times, names = ["2024-03-01"] * len(users), ["home"] * len(users)
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"u": users, "t": times, "n": names}), tmp_path / f"{name}.parquet", row_group_size=9999
        )
    columns = {"user_id": "u", "occurred_at": "t", "event_name": "n"}
    raw = read_events(engine, Source.model_validate({"files": "*.parquet", "columns": columns}), tmp_path)

    assert find_rows(raw, "b.parquet", ['{"u":"","t":"2024-03-01","n":"home"}']) == [70_001, 250_001]


# --- what is said ---


def refuse(
    engine: DuckDB, folder: Path, reasons: dict[str, str], accepted: int, share_max: float, **placeholders: int
) -> str | None:
    """Refuse rows by their text and reason, of one file; return what is said."""
    (folder / "a.jsonl").write_text("".join(f"{text}\n" for text in reasons))
    rows = [
        {"rejected_id": f"{number}", "source_file": "a.jsonl", "reason": reason, "row": text}
        for number, (text, reason) in enumerate(reasons.items())
    ]
    kinds = pa.schema({name: pa.string() for name in ("rejected_id", "source_file", "reason", "row")})
    rejected = engine.create_table("rejected_of_a", pa.Table.from_pylist(rows, schema=kinds), temp=True, overwrite=True)
    try:
        refuse_unusable(rejected, rejected, accepted, {"a.jsonl": folder / "a.jsonl"}, share_max, placeholders)
    except SourceError as error:
        return str(error)
    return None


BAD = {'{"user":""}': "no_user", '{"user": "secret", "at":1}': "unparseable_time", '{"user":null}': "no_user"}


def test_what_is_said_has_counts_examples_and_the_key_to_raise_and_nothing_of_rows(
    engine: DuckDB, tmp_path: Path
) -> None:
    assert refuse(engine, tmp_path, BAD, 1, 0.2, null=1) == (
        "events.files: 3 of 4 rows cannot be used, and events.rejected_max is 0.2: nothing was stored (no user: 2, of "
        "which 1 says 'null'; a time that could not be read: 1), such as a.jsonl, line 1: no user; a.jsonl, line 2: a "
        "time that could not be read; a.jsonl, line 3: no user; mend the files or what [events.columns] makes of them, "
        "or, if these rows may be left out, set events.rejected_max = 0.75"
    )


def test_a_share_of_exactly_the_limit_passes(engine: DuckDB, tmp_path: Path) -> None:
    assert refuse(engine, tmp_path, BAD, 12, 0.2) is None
    assert refuse(engine, tmp_path, BAD, 11, 0.2) is not None


def test_rows_that_were_read_well_do_not_count(engine: DuckDB, tmp_path: Path) -> None:
    well = {"1": "duplicate_id", "2": "erased", "3": "time_in_the_future", "4": "no_user"}

    assert refuse(engine, tmp_path, well, 1, 0.2) is None  # one of five


def test_without_rows_nothing_is_refused(engine: DuckDB, tmp_path: Path) -> None:
    assert refuse(engine, tmp_path, {}, 0, 0) is None


@pytest.mark.parametrize("accepted", [5, 8, 10, 97])  # shares of 3/8, 3/11, 3/13, 3 %
def test_what_is_to_be_set_lets_the_same_rows_pass(engine: DuckDB, tmp_path: Path, accepted: int) -> None:
    said = refuse(engine, tmp_path, BAD, accepted, 0.02)
    assert said is not None

    assert refuse(engine, tmp_path, BAD, accepted, float(said.rpartition("= ")[2])) is None
