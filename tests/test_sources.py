import csv
import gzip
import io
import json
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law
from pydantic import ValidationError

from features.sources import (
    Source,
    SourceError,
    Users,
    attribute_column,
    find_files,
    read_events,
    read_files,
    read_users,
    row_text,
)
from features.values import as_text

COLUMNS: dict[str, Any] = {"user_id": "user", "occurred_at": "time", "event_name": "name"}
LINE = '{"user":"ada","time":"2024-01-01","name":"view"}\n'


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(
    engine: DuckDB,
    folder: Path,
    files: dict[str, str | bytes],
    columns: dict[str, Any] | None = None,
    **source: Any,
) -> list[dict[str, Any]]:
    """Read the files' events, in the order of their files and rows."""
    write(folder, files)
    given = {"files": sorted(files), "columns": COLUMNS} | source
    given["columns"] = COLUMNS | (columns or {})
    return listed(read_events(engine, Source(**given), folder))


def listed(parts: list[ir.Table]) -> list[dict[str, Any]]:
    """Return the rows of parts by file; JSON, and ids of several columns, as text."""
    rows: list[dict[str, Any]] = []
    for part in parts:
        texts = {
            name: as_text(part[name])
            for name, kind in part.drop("row").schema().items()
            if kind.is_json() or kind.is_struct()
        }
        rows += part.mutate(row=row_text(part), **texts).drop("line").to_pyarrow().to_pylist()
    return sorted(rows, key=lambda row: row["source_file"])


def users_of(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["user_id"] for row in rows if not row["malformed"]]


def malformed(rows: list[dict[str, Any]]) -> list[str]:
    return [row["row"] for row in rows if row["malformed"]]


def parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


# --- finding files ---


def test_a_path_is_relative_to_the_folder(tmp_path: Path) -> None:
    write(tmp_path, {"data/events.csv": "x"})
    assert find_files("data/events.csv", tmp_path) == [tmp_path / "data/events.csv"]


def test_a_path_may_be_absolute(tmp_path: Path) -> None:
    write(tmp_path, {"events.csv": "x"})
    assert find_files(str(tmp_path / "events.csv"), Path("/nowhere")) == [tmp_path / "events.csv"]


def test_a_glob_names_files_in_order(tmp_path: Path) -> None:
    write(tmp_path, {"b.csv": "x", "a.csv": "x", "c.txt": "x"})
    assert [file.name for file in find_files("*.csv", tmp_path)] == ["a.csv", "b.csv"]


def test_a_glob_goes_into_folders(tmp_path: Path) -> None:
    write(tmp_path, {"2024/01/a.csv": "x", "2024/02/a.csv": "x"})
    assert find_files("**/*.csv", tmp_path) == [tmp_path / "2024/01/a.csv", tmp_path / "2024/02/a.csv"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, {"a.csv": "x"})
    assert find_files(["a.csv", "*.csv", "./a.csv"], tmp_path) == [tmp_path / "a.csv"]


def test_a_glob_that_names_no_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"a.csv": "x"})
    with pytest.raises(SourceError, match=r"^\*\.parquet: no such file; paths are relative to "):
        find_files(["a.csv", "*.parquet"], tmp_path)


def test_a_glob_that_named_a_file_before_may_name_none_now(tmp_path: Path) -> None:
    for known in ("a.csv", "in/a.csv", "a[1].csv"):
        assert find_files([known, "./" + known], tmp_path, [known]) == []
    assert find_files("**/*.csv", tmp_path, ["a.csv"]) == find_files("in/*.csv", tmp_path, ["in/a.csv"]) == []
    assert find_files(str(tmp_path / "*.csv"), tmp_path, ["a.csv"]) == []
    with pytest.raises(SourceError, match=r"^\*\.tsv: no such file"):
        find_files("*.tsv", tmp_path, ["a.csv"])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.csv": "x"})
    with pytest.raises(SourceError, match=r"^data: is a folder"):
        find_files("data", tmp_path)


def test_a_folder_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path, {"shop [1]/a.csv": "x"})
    assert find_files("*.csv", tmp_path / "shop [1]") == [tmp_path / "shop [1]/a.csv"]


def test_a_file_with_brackets_in_its_name_is_found_by_it(tmp_path: Path) -> None:
    write(tmp_path, {"a[1].csv": "x", "a1.csv": "x"})
    assert tmp_path / "a[1].csv" in find_files("a[1].csv", tmp_path)


# --- formats ---


@pytest.mark.parametrize("name", ["e.csv", "e.CSV", "e.txt", "e.tsv", "e.2024-01-01.csv"])
def test_the_name_tells_the_format(engine: DuckDB, tmp_path: Path, name: str) -> None:
    assert users_of(read(engine, tmp_path, {name: "user,time,name\nada,1,view\n"})) == ["ada"]


def test_a_name_that_tells_no_format_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^e\.dat: .*set format to csv, jsonl or parquet$"):
        read(engine, tmp_path, {"e.dat": "user,time,name\n"})


def test_the_format_may_be_given(engine: DuckDB, tmp_path: Path) -> None:
    assert users_of(read(engine, tmp_path, {"e.dat": "user,time,name\nada,1,view\n"}, format="csv")) == ["ada"]


def test_files_of_several_formats_are_an_error(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"several formats \(csv, jsonl\)"):
        read(engine, tmp_path, {"e.csv": "user,time,name\n", "f.jsonl": LINE})


def test_a_source_without_files_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        Source(files=[], columns=COLUMNS)  # type: ignore[arg-type]


# --- CSV ---


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_a_csv_is_read_whatever_its_delimiter(engine: DuckDB, tmp_path: Path, delimiter: str) -> None:
    text = f"user,time,name\nada,1,view\n{delimiter}".replace(",", delimiter).removesuffix(delimiter)
    [row] = read(engine, tmp_path, {"e.csv": text})
    assert row == {
        **{"user_id": "ada", "occurred_at": "1", "event_name": "view"},
        **{"source_file": "e.csv", "row": '{"user":"ada","time":"1","name":"view"}', "malformed": False},
    }


def test_another_delimiter_within_a_field_is_text(engine: DuckDB, tmp_path: Path) -> None:
    assert users_of(read(engine, tmp_path, {"e.csv": "user;time;name\na,b|c;1;view\n"})) == ["a,b|c"]


def test_every_value_of_a_csv_is_text(engine: DuckDB, tmp_path: Path) -> None:
    assert users_of(read(engine, tmp_path, {"e.csv": "user,time,name\n007,1,view\n1e5,1,view\n"})) == ["007", "1e5"]


def test_an_empty_field_is_null_and_a_word_is_not(engine: DuckDB, tmp_path: Path) -> None:
    text = 'user,time,name\n,1,a\n"",1,a\nNULL,1,a\nnan,1,a\n'
    assert users_of(read(engine, tmp_path, {"e.csv": text})) == [None, None, "NULL", "nan"]


def test_a_byte_order_mark_is_no_part_of_the_first_name(engine: DuckDB, tmp_path: Path) -> None:
    assert users_of(read(engine, tmp_path, {"e.csv": b"\xef\xbb\xbfuser,time,name\nada,1,view\n"})) == ["ada"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_one_way(engine: DuckDB, tmp_path: Path, end: str) -> None:
    text = "user,time,name\nada,1,view\nben,2,view\n".replace("\n", end)
    rows = read(engine, tmp_path, {"e.csv": text})
    assert [(row["user_id"], row["event_name"]) for row in rows] == [("ada", "view"), ("ben", "view")]


def test_files_may_end_their_lines_in_different_ways(engine: DuckDB, tmp_path: Path) -> None:
    text = "user,time,name\nada,1,view\nben,2,view\n"
    rows = read(engine, tmp_path, {"a.csv": text, "b.csv": text.replace("\n", "\r\n"), "c.csv": text})
    assert [row["event_name"] for row in rows] == ["view"] * 6


def test_a_file_whose_lines_end_in_different_ways_is_an_error_that_says_so(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.csv": "user,time,name\nada,1,view\n",
        "b.csv": "user,time,name\r\nada,1,view\nben,2,view\r\n",
    }
    with pytest.raises(SourceError, match=r"^b\.csv: .* lines end in different ways; end all with LF"):
        read(engine, tmp_path, files)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quoted_field_may_hold_line_ends_quotes_and_delimiters(engine: DuckDB, tmp_path: Path, end: str) -> None:
    text = 'user,time,name\n"a\nd\r\na",1,"say ""hi"", twice"\nben,2,view\n'.replace("\n", end)
    first, second = read(engine, tmp_path, {"e.csv": text})
    assert first["user_id"] == "a\nd\r\na".replace("\n", end)
    assert first["event_name"] == 'say "hi", twice'
    assert second["user_id"] == "ben"


def test_the_last_line_needs_no_end(engine: DuckDB, tmp_path: Path) -> None:
    assert users_of(read(engine, tmp_path, {"e.csv": "user,time,name\nada,1,view"})) == ["ada"]


def test_blank_lines_are_no_rows(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, {"e.csv": "user,time,name\n\nada,1,view\n\n\nben,2,view\n\n"})
    assert [row["user_id"] for row in rows] == ["ada", "ben"]


def test_compressed_files_are_read(engine: DuckDB, tmp_path: Path) -> None:
    content = gzip.compress(b"user,time,name\nada,1,view\n")
    assert users_of(read(engine, tmp_path, {"e.csv.gz": content})) == ["ada"]


def test_a_compressed_file_that_breaks_off_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    whole = gzip.compress(b"user,time,name\n" + b"".join(b"user-%d,1,view\n" % i for i in range(9999)))
    files: dict[str, str | bytes] = {"a.csv.gz": whole, "b.csv.gz": whole[: len(whole) // 2]}
    with pytest.raises(SourceError, match=r"^b\.csv\.gz: cannot be read: .*ended before"):
        read(engine, tmp_path, files)


def test_a_compressed_file_that_is_none_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^e\.csv\.gz: cannot be read: Not a gzipped file"):
        read(engine, tmp_path, {"e.csv.gz": "user,time,name\n"})


def test_lines_with_too_few_or_too_many_fields_are_malformed(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, {"e.csv": "user,time,name\nada,1\nben,1,view\ncat,1,view,more\n"})
    assert users_of(rows) == ["ben"]
    assert sorted(malformed(rows)) == ["ada,1", "cat,1,view,more"]


def test_a_malformed_line_is_kept_without_its_end(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, {"e.csv": "user,time,name\r\nada,1,view\r\nben\r\ncat,1,view\r\n"})
    assert malformed(rows) == ["ben"]


def test_a_malformed_line_has_no_values_and_names_its_file(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.csv": "user,time,name\nada,1,view\n",
        "b.csv": "user,time,name\nben\n",
        "c.csv": "user,time,name\ncat,1,view\n",
    }
    [row] = [row for row in read(engine, tmp_path, files) if row["malformed"]]
    assert row == {
        **{"user_id": None, "occurred_at": None, "event_name": None},
        **{"source_file": "b.csv", "row": "ben", "malformed": True},
    }


def test_a_quote_that_is_never_closed_spoils_what_follows_and_nothing_before(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, {"e.csv": 'user,time,name\nada,1,view\nben,"1,view\ncat,1,view\n'})
    assert users_of(rows) == ["ada"]
    assert malformed(rows) == ['ben,"1,view\ncat,1,view']


def test_text_after_a_closing_quote_is_malformed(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, {"e.csv": 'user,time,name\nada,1,view\nben,"1"2,view\ncat,1,view\n'})
    assert users_of(rows) == ["ada", "cat"]
    assert malformed(rows) == ['ben,"1"2,view']


def test_a_line_that_is_not_utf8_is_malformed(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, {"e.csv": b"user,time,name\nada,1,view\nben\xff,1,view\n"})
    assert users_of(rows) == ["ada"]
    assert malformed(rows) == ["ben?,1,view"]


def test_a_string_of_three_megabytes_is_read(engine: DuckDB, tmp_path: Path) -> None:
    long = "a" * 3_000_000
    text = f'user,time,name\n"{long}",1,view\nben,1,view\n'
    assert users_of(read(engine, tmp_path, {"e.csv": text})) == [long, "ben"]


def test_files_may_have_their_columns_in_another_order(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.csv": "user,time,name\nada,1,view\n",
        "b.csv": "name,user,time\nbuy,ben,2\n",
    }
    rows = read(engine, tmp_path, files)
    assert [(row["user_id"], row["occurred_at"], row["event_name"]) for row in rows] == [
        ("ada", "1", "view"),
        ("ben", "2", "buy"),
    ]


WITH_AND_WITHOUT_URL: dict[str, dict[str, str | bytes]] = {
    "csv": {"a.csv": "user,time,name\nada,1,view\n", "b.csv": "user,time,name,url\nben,2,view,/home\n"},
    "parquet": {
        "a.parquet": parquet({"user": ["ada"], "time": ["1"], "name": ["view"]}),
        "b.parquet": parquet({"url": ["/home"], "name": ["view"], "user": ["ben"], "time": ["1"]}),
    },
}


@pytest.mark.parametrize("format", WITH_AND_WITHOUT_URL)
def test_a_column_that_only_some_files_have_is_an_error(engine: DuckDB, tmp_path: Path, format: str) -> None:
    said = rf"^events\.columns\.page: a\.{format} has no column 'url', which b\.{format} has: .*optional = true"
    with pytest.raises(SourceError, match=said):
        read(engine, tmp_path, WITH_AND_WITHOUT_URL[format], {"page": "url"})


@pytest.mark.parametrize("format", WITH_AND_WITHOUT_URL)
@pytest.mark.parametrize("given", [{"column": "url"}, {"sql": "lower(url)"}, {"sql": "coalesce(nowhere, url)"}])
def test_an_optional_column_is_null_in_files_that_lack_it(
    engine: DuckDB, tmp_path: Path, format: str, given: dict[str, str]
) -> None:
    rows = read(engine, tmp_path, WITH_AND_WITHOUT_URL[format], {"page": given | {"optional": True}})
    assert [row["page"] for row in rows] == [None, "/home"]


def test_an_expression_over_a_column_that_only_some_files_have_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.csv has no column 'url', which others have: .*optional = true"):
        read(engine, tmp_path, WITH_AND_WITHOUT_URL["csv"], {"page": {"sql": "lower(url)"}})


def test_an_optional_column_that_no_file_has_is_null(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(
        engine, tmp_path, {"e.csv": "user,time,name\nada,1,view\n"}, {"page": {"column": "url", "optional": True}}
    )
    assert [row["page"] for row in rows] == [None]


def test_a_file_with_a_header_only_has_no_rows(engine: DuckDB, tmp_path: Path) -> None:
    assert read(engine, tmp_path, {"e.csv": "user,time,name\n"}) == []


@pytest.mark.parametrize("name", ["b.csv", "b.csv.gz"])
def test_an_empty_file_beside_others_has_no_rows(engine: DuckDB, tmp_path: Path, name: str) -> None:
    empty = gzip.compress(b"") if name.endswith(".gz") else b""
    files: dict[str, str | bytes] = {"a.csv": "user,time,name\nada,1,view\n", name: empty}
    assert users_of(read(engine, tmp_path, files)) == ["ada"]


def test_an_empty_file_alone_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^e\.csv: its first line must name the columns; it is empty$"):
        read(engine, tmp_path, {"e.csv": ""})


def test_a_file_whose_first_line_is_blank_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^b\.csv: its first line must name the columns; it is empty$"):
        read(engine, tmp_path, {"a.csv": "user,time,name\n", "b.csv": "\nada,1,view\n"})


@pytest.mark.parametrize("name", ["a.csv", "b.csv"])
def test_a_first_line_that_names_no_mapped_column_is_an_error_that_does_not_repeat_it(
    engine: DuckDB, tmp_path: Path, name: str
) -> None:
    files: dict[str, str | bytes] = {"a.csv": "user,time,name\nada,1,view\n", "b.csv": ""}
    with pytest.raises(
        SourceError, match=rf"^{name}: its first line must name the columns; it has none of name, time, user$"
    ):
        read(engine, tmp_path, files | {name: "ada,1,view\nben,2,view\n"})


@pytest.mark.parametrize("header", ["user,time,name,user", "user,time,name,User"])
def test_a_header_that_names_a_column_twice_is_an_error(engine: DuckDB, tmp_path: Path, header: str) -> None:
    with pytest.raises(SourceError, match=r"^e\.csv: .*each once; columns 1 and 4 have one name$"):
        read(engine, tmp_path, {"e.csv": f"{header}\n1,2,3,4\n"})


def test_a_header_that_is_not_utf8_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"a.csv": "user,time,name\n", "b.csv": "user,time,name\n".encode("utf-16")}
    with pytest.raises(SourceError, match=r"^b\.csv: cannot be read: it is not in UTF-8$"):
        read(engine, tmp_path, files)


def test_a_column_without_a_name_stands_in_no_ones_way(engine: DuckDB, tmp_path: Path) -> None:
    assert users_of(read(engine, tmp_path, {"e.csv": ",user,time,name\n0,ada,1,view\n"})) == ["ada"]


def test_names_of_columns_may_hold_quotes_and_delimiters(engine: DuckDB, tmp_path: Path) -> None:
    text = '"the ""user"", it\'s",time,name\nada,1,view\n'
    assert users_of(read(engine, tmp_path, {"e.csv": text}, {"user_id": 'the "user", it\'s'})) == ["ada"]


@pytest.mark.parametrize("name", ["t", "row", "source_file", "malformed", "select"])
def test_a_column_of_any_name_is_kept_in_the_row(engine: DuckDB, tmp_path: Path, name: str) -> None:
    [row] = read(engine, tmp_path, {"e.csv": f"user,time,name,{name}\nada,1,view,7\n"})
    assert json.loads(row["row"]) == {"user": "ada", "time": "1", "name": "view", name: "7"}


def test_files_with_brackets_and_asterisks_in_their_names_are_each_read_once(engine: DuckDB, tmp_path: Path) -> None:
    header = "user,time,name\n"
    files: dict[str, str | bytes] = {
        name: f"{header}{user},1,view\n"
        for name, user in [("a[1].csv", "ada"), ("a1.csv", "ben"), ("a*.csv", "cat"), ("it's.csv", "dan")]
    }
    assert sorted(users_of(read(engine, tmp_path, files))) == ["ada", "ben", "cat", "dan"]


def test_a_row_names_its_file_relative_to_the_folder(engine: DuckDB, tmp_path: Path) -> None:
    [row] = read(engine, tmp_path, {"2024/e.csv": "user,time,name\nada,1,view\n"})
    assert row["source_file"] == "2024/e.csv"


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)


@given(table=st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=8), delimiter=st.sampled_from(",\t;|"))
@law(10)
def test_whatever_a_csv_holds_comes_back(
    engine: DuckDB, tmp_path: Path, table: list[tuple[str, str, str]], delimiter: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["user", "time", "name"], *table])
    rows = read(engine, tmp_path, {"e.csv": text.getvalue()})
    assert [(row["user_id"], row["occurred_at"], row["event_name"]) for row in rows] == [
        tuple(field or None for field in fields) for fields in table
    ]


@given(lines=st.lists(st.binary(max_size=12).map(lambda line: line.translate(None, b'\r\n"\0')), max_size=8))
@law(10)
def test_every_line_that_is_not_blank_is_a_row_or_malformed(engine: DuckDB, tmp_path: Path, lines: list[bytes]) -> None:
    rows = read(engine, tmp_path, {"e.csv": b"user,time,name\n" + b"\n".join(lines) + b"\n"})
    assert len(rows) == sum(line != b"" for line in lines)


# --- JSON lines ---


def test_a_json_line_is_a_row(engine: DuckDB, tmp_path: Path) -> None:
    assert read(engine, tmp_path, {"e.jsonl": LINE}) == [
        {
            **{"user_id": "ada", "occurred_at": "2024-01-01", "event_name": "view"},
            **{"source_file": "e.jsonl", "row": LINE.strip(), "malformed": False},
        }
    ]


@pytest.mark.parametrize(
    "line",
    [
        *('{"user":"ben"', '{"user":"ben"}}', "garbage", "{user: 1}", '{"user":"\\ud800"}', '{"user":"\x01"}'),
        *("[1, 2]", "7", '"text"', "null", '[{"user":"ben"}]'),
    ],
)
def test_a_line_that_is_no_json_object_is_malformed(engine: DuckDB, tmp_path: Path, line: str) -> None:
    rows = read(engine, tmp_path, {"e.jsonl": f"{LINE}{line}\n{LINE}"})
    assert users_of(rows) == ["ada", "ada"]
    assert malformed(rows) == [line]


def test_a_json_line_that_is_not_utf8_is_malformed(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, {"e.jsonl": LINE.encode() + b'{"user":"ben\xff"}\n'})
    assert users_of(rows) == ["ada"]
    assert malformed(rows) == ['{"user":"ben?"}']


def test_blank_json_lines_are_no_rows(engine: DuckDB, tmp_path: Path) -> None:
    assert len(read(engine, tmp_path, {"e.jsonl": f"\n{LINE}\n   \n{LINE}\n"})) == 2


@pytest.mark.parametrize("content", ["", "\n", "garbage\n", "[]\n", '[{"user":"ada"}]\n', "{}\n"])
def test_a_file_without_json_objects_is_an_error(engine: DuckDB, tmp_path: Path, content: str) -> None:
    with pytest.raises(SourceError, match=r"^e\.jsonl: holds no JSON objects, one on each line$"):
        read(engine, tmp_path, {"e.jsonl": content})


def test_json_lines_may_be_compressed_and_begin_with_a_byte_order_mark(engine: DuckDB, tmp_path: Path) -> None:
    content = gzip.compress(b"\xef\xbb\xbf" + LINE.replace("\n", "\r\n").encode() * 2)
    assert users_of(read(engine, tmp_path, {"e.jsonl.gz": content})) == ["ada", "ada"]


def test_a_nested_field_is_named_with_dots(engine: DuckDB, tmp_path: Path) -> None:
    text = '{"who":{"ids":{"main":"ada"}},"time":"1","name":"view"}\n{"who":null,"time":"1","name":"view"}\n'
    assert users_of(read(engine, tmp_path, {"e.jsonl": text}, {"user_id": "who.ids.main"})) == ["ada", None]


def test_a_field_with_a_dot_in_its_name_is_no_nested_one(engine: DuckDB, tmp_path: Path) -> None:
    text = '{"who.id":"ada","who":{"id":"ben"},"time":"1","name":"view"}\n'
    assert users_of(read(engine, tmp_path, {"e.jsonl": text}, {"user_id": "who.id"})) == ["ada"]


def test_a_nested_field_that_no_line_has_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    text = '{"user":{"id":"ada"},"time":"1","name":"view"}\n'
    with pytest.raises(SourceError, match=r"^events\.columns\.user_id: e\.jsonl has no column 'user\.uid'"):
        read(engine, tmp_path, {"e.jsonl": text}, {"user_id": "user.uid"})


def test_a_field_of_several_types_is_read_as_text(engine: DuckDB, tmp_path: Path) -> None:
    users = ['"ada"', "1", "2.5", "true", "null", '{"id":1}', "[1]"]
    text = "".join(f'{{"user":{user},"time":"1","name":"view"}}\n' for user in users)
    assert users_of(read(engine, tmp_path, {"e.jsonl": text})) == ["ada", "1", "2.5", "true", None, '{"id":1}', "[1]"]


def test_a_field_that_is_always_null_is_read(engine: DuckDB, tmp_path: Path) -> None:
    text = '{"user":null,"time":"1","name":"view"}\n'
    assert users_of(read(engine, tmp_path, {"e.jsonl": text})) == [None]


def test_integers_keep_all_their_digits(engine: DuckDB, tmp_path: Path) -> None:
    text = "".join(f'{{"user":{user},"time":"1","name":"view"}}\n' for user in (9007199254740993, 18446744073709551615))
    assert users_of(read(engine, tmp_path, {"e.jsonl": text})) == ["9007199254740993", "18446744073709551615"]


def test_a_line_may_lack_fields_and_have_others(engine: DuckDB, tmp_path: Path) -> None:
    text = LINE + '{"user":"ben","extra":1,"":2}\n{}\n'
    rows = read(engine, tmp_path, {"e.jsonl": text})
    assert [(row["user_id"], row["occurred_at"]) for row in rows] == [
        ("ada", "2024-01-01"),
        ("ben", None),
        (None, None),
    ]
    assert rows[1]["row"] == '{"user":"ben","extra":1,"":2}'


def test_an_empty_file_beside_others_of_json_lines_has_no_rows(engine: DuckDB, tmp_path: Path) -> None:
    assert users_of(read(engine, tmp_path, {"a.jsonl": "", "b.jsonl": LINE})) == ["ada"]


def test_a_json_string_of_three_megabytes_is_read(engine: DuckDB, tmp_path: Path) -> None:
    text = json.dumps({"user": "a" * 3_000_000, "time": "1", "name": "view"})
    assert users_of(read(engine, tmp_path, {"e.jsonl": f"{text}\n{LINE}"})) == ["a" * 3_000_000, "ada"]


@given(users=st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=8))
@law(10)
def test_whatever_text_json_lines_hold_comes_back(engine: DuckDB, tmp_path: Path, users: list[str]) -> None:
    text = "".join(json.dumps({"user": user, "time": "1", "name": "view"}) + "\n" for user in users)
    assert users_of(read(engine, tmp_path, {"e.jsonl": text})) == users


# --- Parquet ---


def test_parquet_keeps_its_types(engine: DuckDB, tmp_path: Path) -> None:
    noon = datetime(2024, 6, 30, 12)
    columns = {
        "user": pa.array([7]),
        "time": pa.array([noon], pa.timestamp("us")),
        "zoned": pa.array([noon.replace(tzinfo=ZoneInfo("Europe/Berlin"))], pa.timestamp("ms", "Europe/Berlin")),
        "day": pa.array([noon.date()]),
        "name": ["view"],
    }
    mapping = {"ingested_at": "zoned", "item_id": "day"}
    [row] = read(engine, tmp_path, {"e.parquet": parquet(columns)}, mapping)
    assert (row["user_id"], row["occurred_at"], row["item_id"]) == (7, noon, date(2024, 6, 30))
    assert row["ingested_at"] == datetime(2024, 6, 30, 10, tzinfo=UTC)


def test_bytes_in_parquet_are_text(engine: DuckDB, tmp_path: Path) -> None:
    content = parquet({"user": [b"ada", "zoë".encode(), b"\xff"], "time": ["1"] * 3, "name": [b"view"] * 3})
    assert users_of(read(engine, tmp_path, {"e.parquet": content})) == ["ada", "zoë", "\\xFF"]


def test_parquet_rows_are_kept_as_json(engine: DuckDB, tmp_path: Path) -> None:
    content = parquet({"user": ["ada"], "time": ["1"], "name": ["view"], "t": [1.5], "extra": [None]})
    [row] = read(engine, tmp_path, {"e.parquet": content})
    assert json.loads(row["row"]) == {"user": "ada", "time": "1", "name": "view", "t": 1.5, "extra": None}


@pytest.mark.parametrize("content", [b"", b"text", b"PAR1 that is none PAR1"])
def test_a_parquet_file_that_cannot_be_read_is_named(engine: DuckDB, content: bytes) -> None:
    whole = parquet({"user": ["ada"], "time": ["1"], "name": ["view"]})
    files: dict[str, str | bytes] = {"a.parquet": whole, "b.parquet": content, "c.parquet": whole}
    # The engine repeats the query where it is short, and so names files that are whole.
    with TemporaryDirectory() as folder, pytest.raises(SourceError, match=r"^b\.parquet: cannot be read: "):
        read(engine, Path(folder), files)


# --- mapping ---

CSV: dict[str, str | bytes] = {"e.csv": "user,time,name,kind\nada,1,view,\nben,2,,b\n"}


def test_a_missing_column_is_an_error_with_the_nearest_name(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"^events\.columns\.user_id: e\.csv has no column 'users'; did you mean 'user'"
    ):
        read(engine, tmp_path, CSV, {"user_id": "users"})


def test_a_missing_column_like_no_other_is_an_error_with_all_names(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no column 'xyz'; it has user, time, name, kind$"):
        read(engine, tmp_path, CSV, {"user_id": "xyz"})


def test_an_expression_is_computed(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, CSV, {"event_name": {"sql": "coalesce(name, kind)"}})
    assert [row["event_name"] for row in rows] == ["view", "b"]


def test_a_constant_is_the_same_in_every_row(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, CSV, {"source": {"value": "it's ours"}})
    assert [row["source"] for row in rows] == ["it's ours", "it's ours"]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("upper(nome)", "does not work on e.csv: .*nome"),
        ("upper(", "does not work on e.csv: .*syntax error"),
        ("", "does not work on e.csv"),
        ("user; DROP TABLE x", "does not work on e.csv"),
        ("user -- the user", "does not work on e.csv"),
        ("max(user)", r"has an aggregate, max\(\)"),
        ("user, time", "must be one expression"),
        ("*", "has columns that it does not name"),
    ],
)
def test_what_is_no_expression_over_the_columns_is_an_error(engine: DuckDB, tmp_path: Path, sql: str, why: str) -> None:
    with pytest.raises(SourceError, match=rf"^events\.columns\.user_id: .*{why}"):
        read(engine, tmp_path, CSV, {"user_id": {"sql": sql}})


def test_a_list_of_columns_makes_one_id(engine: DuckDB, tmp_path: Path) -> None:
    rows = read(engine, tmp_path, CSV, {"event_id": ["user", "time", "name"]})
    assert [row["event_id"] for row in rows] == ["ada|1|view", "ben|2|"]


def test_ids_of_columns_tell_which_of_them_is_null(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"e.csv": "user,time,name,a,b\nada,1,view,x,\nada,1,view,,x\n"}
    first, second = read(engine, tmp_path, files, {"event_id": ["a", "b"]})
    assert first["event_id"] != second["event_id"]


def test_an_id_of_columns_that_are_all_null_is_null(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"e.csv": "user,time,name,a,b\nada,1,view,,\n"}
    assert read(engine, tmp_path, files, {"event_id": ["a", "b"]})[0]["event_id"] is None


def test_a_missing_column_of_an_id_is_named(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^events\.columns\.event_id: .*'tme'; did you mean 'time'"):
        read(engine, tmp_path, CSV, {"event_id": ["user", "tme"]})


@pytest.mark.parametrize("event_id", [[], ["user", "user"]])
def test_an_id_needs_columns_each_once(event_id: list[str]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate({"files": "e.csv", "columns": COLUMNS | {"event_id": event_id}})


@pytest.mark.parametrize("given", [{"sql": "user", "value": "ada"}, {}])
def test_a_computed_column_is_an_expression_or_a_constant(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="give one of column, sql and value"):
        Source.model_validate({"files": "e.csv", "columns": COLUMNS | {"user_id": given}})


# --- beside files of before ---


def read_beside(engine: DuckDB, folder: Path, name: str, content: str, known: dict[str, str]) -> dict[str, Any]:
    """Read one row of a file whose source had other columns before."""
    write(folder, {name: content})
    source = Source.model_validate({"files": name, "columns": COLUMNS | {"page": "url", "category": "place.city"}})
    read = read_files(engine, source, folder, [folder / name], [known])
    [row] = listed(read.parts)
    return row


BEFORE = {"user": "VARCHAR", "time": "VARCHAR", "name": "VARCHAR", "url": "VARCHAR", "place": "STRUCT(city VARCHAR)"}


def test_fields_of_json_lines_that_only_other_files_had_are_null(engine: DuckDB, tmp_path: Path) -> None:
    row = read_beside(engine, tmp_path, "e.jsonl", LINE, BEFORE)
    assert (row["user_id"], row["page"], row["category"]) == ("ada", None, None)


def test_fields_of_a_field_that_only_other_files_had_are_null(engine: DuckDB, tmp_path: Path) -> None:
    line = '{"user":"ada","time":"1","name":"view","url":7,"place":{"land":"GB"}}'
    known = BEFORE | {"place": "STRUCT(city VARCHAR, land VARCHAR)"}
    row = read_beside(engine, tmp_path, "e.jsonl", line, known)
    assert (row["page"], row["category"]) == ("7", None)


def test_a_field_with_a_new_one_in_its_place_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    line = '{"user":"ada","time":"1","name":"view","uri":"/home"}'
    with pytest.raises(SourceError, match=r"^events\.columns\.page: e\.jsonl has no field 'url', which .* but uri, "):
        read_beside(engine, tmp_path, "e.jsonl", line, BEFORE)


def test_a_field_with_a_new_one_in_its_place_in_one_of_several_files_is_an_error(
    engine: DuckDB, tmp_path: Path
) -> None:
    files: dict[str, str | bytes] = {"a.jsonl": LINE, "b.jsonl": LINE.replace("user", "uid")}
    with pytest.raises(
        SourceError, match=r"^events\.columns\.user_id: b\.jsonl has no field 'user', which .* but uid, "
    ):
        read(engine, tmp_path, files)


def test_a_nested_field_with_a_new_one_in_its_place_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        f"{name}.jsonl": f'{{"user":"ada","time":"1","name":"view","place":{{"{field}":"x"}}}}'
        for name, field in (("a", "city"), ("b", "town"))
    }
    with pytest.raises(SourceError, match=r"page: b\.jsonl has no field 'place\.city', which other .* but town, "):
        read(engine, tmp_path, files, {"page": "place.city"})
    line = '{"user":"ada","time":"1","name":"view","url":"/","place":{"town":"x"}}'
    with pytest.raises(SourceError, match=r"category: e\.jsonl has no field 'place\.city', which other .* but town, "):
        read_beside(engine, tmp_path, "e.jsonl", line, BEFORE)


def test_a_field_of_an_expression_with_a_new_one_in_its_place_is_an_error(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.jsonl": LINE.replace("}", ',"url":"/"}'),
        "b.jsonl": LINE.replace("}", ',"uri":"/"}'),
    }
    with pytest.raises(SourceError, match=r"page: b\.jsonl has no field 'url', which other files have, but uri, "):
        read(engine, tmp_path, files, {"page": {"sql": "lower(url)"}})


def test_a_new_field_in_another_object_takes_no_place(engine: DuckDB, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.jsonl": LINE.replace("}", ',"url":"/","props":{"k":1}}'),
        "b.jsonl": LINE.replace("}", ',"props":{"m":1}}'),
    }
    assert [row["page"] for row in read(engine, tmp_path, files, {"page": "url"})] == ["/", None]


def test_an_object_whose_only_field_has_no_name_spoils_nothing(engine: DuckDB, tmp_path: Path) -> None:
    text = LINE + LINE.replace("ada", "ben").replace("}", ',"other":{"":1}}')
    assert users_of(read(engine, tmp_path, {"e.jsonl": text})) == ["ada", "ben"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("e.csv", "ann@secret.example,2024-03-31,name\n"), ("e.jsonl", '{"ann@secret.example":{"time":1},"name":"x"}\n')],
)
def test_columns_that_may_be_what_a_row_holds_are_not_told(
    engine: DuckDB, tmp_path: Path, name: str, content: str
) -> None:
    with pytest.raises(SourceError, match=r"has no column .*; few of its columns are mapped: does it name them\?$"):
        read(engine, tmp_path, {name: content})


def test_a_column_that_earlier_files_had_is_missed(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"^events\.columns\.page: e\.csv has no column 'url', which earlier files had"
    ):
        read_beside(engine, tmp_path, "e.csv", "user,time,name,place\nada,1,view,x\n", BEFORE)


# --- users ---


def attributes(engine: DuckDB, folder: Path, files: dict[str, str | bytes], *names: str) -> list[dict[str, Any]]:
    write(folder, files)
    users = Users(files=sorted(files), user_id="user", attributes=list(names))
    columns = {name: attribute_column(name) for name in names}
    parts = [
        part.rename(columns).select("user_id", *names).to_pyarrow() for part in read_users(engine, users, folder, {})
    ]
    return [row for part in parts for row in part.to_pylist()]


def test_attributes_keep_the_types_of_the_source(engine: DuckDB, tmp_path: Path) -> None:
    content = parquet(
        {"user": [7], "plan": ["pro"], "seats": [3], "trial": [True], "note": pa.array([None], pa.string())}
    )
    assert attributes(engine, tmp_path, {"u.parquet": content}, "plan", "seats", "trial", "note") == [
        {"user_id": 7, "plan": "pro", "seats": 3, "trial": True, "note": None}
    ]


def test_a_missing_attribute_is_named(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^users\.attributes: u\.csv has no column 'plam'; did you mean 'plan'\?$"):
        attributes(engine, tmp_path, {"u.csv": "user,plan\nada,pro\n"}, "plam")


def test_a_missing_column_of_users_is_named(engine: DuckDB, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^users\.user_id: u\.csv has no column 'user'"):
        attributes(engine, tmp_path, {"u.csv": "id,plan\nada,pro\n"}, "plan")


def private(engine: DuckDB, folder: Path, **named: Any) -> list[dict[str, Any]]:
    """Read a users' file with contacts and a consent; return what is there beside user_id."""
    write(folder, {"u.csv": "user,email,mail,tel,newsletter\nada,weekly,ada@example.org,020,yes\n"})
    consents = named.pop("consents", {})
    users = Users(files="u.csv", user_id="user", **named)
    [part] = read_users(engine, users, folder, consents)
    columns = {name: attribute_column(name) for name in users.columns(consents)}
    return list(part.rename(columns).select(*columns).to_pyarrow().to_pylist())


def test_contacts_and_consents_have_names_that_no_attribute_has(engine: DuckDB, tmp_path: Path) -> None:
    consents = {"newsletter": "purposes.news.attribute"}
    named = {"attributes": ["email", "newsletter"], "email": "mail", "phone": "tel"}
    assert private(engine, tmp_path, **named, consents=consents) == [
        {
            **{"email": "weekly", "newsletter": "yes"},
            **{"habitus.email": "ada@example.org", "habitus.phone": "020", "habitus.consent.newsletter": "yes"},
        }
    ]


def test_one_column_may_be_a_contact_and_an_attribute(engine: DuckDB, tmp_path: Path) -> None:
    assert private(engine, tmp_path, attributes=["tel"], phone="tel") == [{"tel": "020", "habitus.phone": "020"}]


def test_users_may_have_contacts_only(engine: DuckDB, tmp_path: Path) -> None:
    assert private(engine, tmp_path, email="mail") == [{"habitus.email": "ada@example.org"}]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"email": "male"}, r"^users\.email: u\.csv has no column 'male'; did you mean 'mail'\?$"),
        ({"phone": "Tel"}, r"^users\.phone: u\.csv has no column 'Tel'; did you mean 'tel'\?$"),
        ({"email": ""}, r"^users\.email: u\.csv has no column ''; it has user, email"),
        (
            {"consents": {"newsletters": "purposes.news.attribute"}},
            r"^purposes\.news\.attribute: u\.csv has no column 'newsletters'; did you mean 'newsletter'\?$",
        ),
    ],
)
def test_a_missing_contact_or_consent_is_named(
    engine: DuckDB, tmp_path: Path, named: dict[str, Any], said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        private(engine, tmp_path, **named)
