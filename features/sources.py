"""Source files: where raw events are, how their columns map to EVENTS, and how they are read.

Rows leave here as the source has them, only under the names of EVENTS. Nothing is judged: `events.accept` does that.
"""

import csv
import difflib
import glob
import gzip
import json
import re
import uuid
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

import duckdb
import ibis
import ibis.expr.types as ir
from ibis.backends.duckdb import Backend as DuckDB
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
NOTHING = {
    "csv": "its first line must name the columns; it is empty",
    "jsonl": "holds no JSON objects, one on each line",
    "parquet": "has no columns",
}
"""What is wrong where no file of a format has a column."""
NO_ROWS = (
    "SELECT NULL::VARCHAR AS habitus_path, NULL::VARCHAR AS habitus_line, NULL::BOOLEAN AS habitus_malformed WHERE 0"
)
STORED = "source_"
DELIMITERS = (",", "\t", ";", "|")
LINE_BYTES = 64 * 1024 * 1024
"""The longest line that is read; a longer one is malformed."""
BLOCK_BYTES = 1024 * 1024
RESERVED = "habitus."
"""What the names of attributes begin with that are no features: contacts, and what users say of consent."""
EMAIL, PHONE, CONSENT = f"{RESERVED}email", f"{RESERVED}phone", f"{RESERVED}consent."


class SourceError(Exception):
    """Say in one line what is wrong with a source: the file, the key or column, and what would be right."""


class UnreadableError(SourceError):
    """Say which file cannot be read, and why."""


def _check_zone(name: str) -> str:
    try:
        ZoneInfo(name)
        if name == "localtime":  # the machine's own zone, which is no part of the data
            raise KeyError(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not a time zone: write one such as 'UTC' or 'Europe/London'") from error
    return name


def _check_distinct(names: list[str]) -> list[str]:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:  # engines do not tell upper from lower case in names
            raise ValueError(f"{name!r} is there twice")
        seen.add(name.lower())
    return names


TimeZone = Annotated[str, AfterValidator(_check_zone)]
Names = Annotated[list[str], Field(min_length=1), AfterValidator(_check_distinct)]
Files = str | Names


class Settings(BaseModel):
    """Refuse unknown keys and any change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Computed(Settings):
    """Give a column as a DuckDB expression over the source's columns, or as a constant."""

    sql: str | None = None
    value: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.sql is None) == (self.value is None):
            raise ValueError("give either sql or value")
        return self


class Columns(Settings):
    """Map each column of EVENTS to a column of the source."""

    user_id: str | Computed
    occurred_at: str | Computed
    event_name: str | Computed
    event_id: str | Computed | Names | None = None
    anonymous_id: str | Computed | None = None
    account_id: str | Computed | None = None
    ingested_at: str | Computed | None = None
    page: str | Computed | None = None
    element: str | Computed | None = None
    item_id: str | Computed | None = None
    order_id: str | Computed | None = None
    category: str | Computed | None = None
    quantity: str | Computed | None = None
    revenue: str | Computed | None = None
    source: str | Computed | None = None
    medium: str | Computed | None = None
    campaign: str | Computed | None = None
    device: str | Computed | None = None
    country: str | Computed | None = None
    properties: str | Computed | None = None

    def mapped(self) -> dict[str, str | Computed | list[str]]:
        """List the columns that the source gives."""
        return {name: given for name, given in self if given is not None}


class Source(Settings):
    """Say where events are and how they map to EVENTS."""

    files: Files
    format: Format | None = None
    time_unit: Literal["iso", "s", "ms", "us", "ns", "day"] = "iso"
    time_zone: TimeZone | None = None
    columns: Columns
    names: dict[str, str] = Field(default_factory=dict)
    skip_unreadable: bool = False


class Users(Settings):
    """Say where attributes of users are, and in which columns their `email` and `phone`, which are no features."""

    files: Files
    format: Format | None = None
    user_id: str
    attributes: Annotated[list[str], AfterValidator(_check_distinct)] = Field(default=[])
    email: str | None = None
    phone: str | None = None

    def columns(self, consents: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Return by attribute the key of the configuration that names its column, and the column.

        `consents` has such a key for each column that says what users consent to. What is no feature has a reserved
        name, so that it may be an attribute as well.
        """
        columns = {name: ("users.attributes", name) for name in self.attributes}
        if self.email is not None:
            columns[EMAIL] = "users.email", self.email
        if self.phone is not None:
            columns[PHONE] = "users.phone", self.phone
        return columns | {CONSENT + column: (key, column) for column, key in consents.items()}


def find_files(files: str | list[str], folder: Path, known: Collection[str] = ()) -> list[Path]:
    """List the files that paths or globs name, relative to a folder, sorted.

    Raises SourceError for a path or glob that names none, unless it is one of those that are known from before.
    """
    found: set[Path] = set()
    for pattern in [files] if isinstance(files, str) else files:
        matches = [folder / match for match in glob.glob(pattern, root_dir=folder, recursive=True)]
        matches = [match for match in {folder / pattern, *matches} if match.is_file()]
        name = name_of(folder / pattern, folder).replace("**/", "*")
        if not matches and name not in known and not any(fnmatch(path, name) for path in known):
            raise SourceError(f"{pattern}: no such file; paths are relative to {folder}")
        found.update(matches)
    return sorted(found)


@dataclass(frozen=True)
class Raw:
    """Hold a source's rows, as `read_events` gives them, and the engine's type of each column of its files."""

    rows: ir.Table
    columns: dict[str, str]


def read_events(engine: DuckDB, source: Source, folder: Path) -> ir.Table:
    """Read a source's rows under the names of EVENTS.

    Columns: those that the source maps, with the types the source has (CSV: text); `source_file`, relative to the
    folder; `row` and `line`, of which `row_text` makes the row's text; `malformed`, true for a row that could not be
    read at all.
    Raises UnreadableError for a file that cannot be read, SourceError for a column that does not exist.
    """
    return read_files(engine, source, folder, find_files(source.files, folder)).rows


def read_files(
    engine: DuckDB, source: Source, folder: Path, files: list[Path], known: Iterable[Mapping[str, str]] = ()
) -> Raw:
    """Read some of a source's files as `read_events` does.

    `known` are columns that other files have: null where these files lack them, and of the wider type of both.
    """
    rows = _read(engine.con, files, source.format, known)
    _refuse_nothing(rows)
    selected = {
        name: _column(engine, rows, f"events.columns.{name}", given) for name, given in source.columns.mapped().items()
    }
    return Raw(_project(engine, rows, selected, folder), rows.columns)


def find_unreadable(source: Source, files: list[Path]) -> dict[Path, str]:
    """Read each file alone and whole, and say why where that fails: what is damaged inside shows in no other way."""
    found = {}
    for path in files:
        con = duckdb.connect()  # an engine of its own, which what it reads leaves with
        try:
            con.execute(f"SELECT max(hash(COLUMNS(*))) FROM ({_read(con, [path], source.format).sql})").fetchall()
        except UnreadableError as error:
            found[path] = str(error)
        except duckdb.OutOfMemoryException:
            pass  # which says nothing of the file
        except duckdb.Error as error:
            found[path] = f"{path.name}: cannot be read: {first_line(error)}"
        finally:
            con.close()
    return found


def forget_files(engine: DuckDB) -> None:
    """Drop what reading text files stored with an engine; what was made of it by then stays."""
    for name in engine.list_tables(like=f"^{STORED}"):
        engine.drop_table(name)


def name_of(path: Path, folder: Path) -> str:
    """Return a file's name as `source_file` has it: its path, relative to the folder where it is within."""
    return str(path).replace(f"{folder}/", "")


def row_text(rows: ir.Table) -> ir.StringValue:
    """Return rows as `read_events` gives them as text: their line, or their columns as JSON.

    JSON is dear, and few rows need it: ask for it in the one expression that says which.
    """
    if rows.row.type().is_string():
        return rows.row
    return ibis.coalesce(rows.line, rows.row.cast("json").cast("string"))


def read_users(engine: DuckDB, users: Users, folder: Path, consents: Mapping[str, str]) -> ir.Table:
    """Read the attributes of users: user_id and those of `Users.columns`, and otherwise as `read_events` does."""
    rows = _read(engine.con, find_files(users.files, folder), users.format)
    _refuse_nothing(rows)
    selected = {"user_id": _column(engine, rows, "users.user_id", users.user_id)}
    selected |= {name: _column(engine, rows, *named) for name, named in users.columns(consents).items()}
    return _project(engine, rows, selected, folder)


class _Rows:
    """Hold a query for a source's rows and the types of its columns.

    Beside the source's columns, the query gives habitus_path, habitus_line (of JSON lines, and of what is malformed)
    and habitus_malformed.
    """

    def __init__(self, sql: str, columns: dict[str, str], files: str, format: Format) -> None:
        self.sql = sql
        self.columns = columns
        self.files = files
        self.format = format


def _read(
    con: duckdb.DuckDBPyConnection,
    paths: list[Path],
    format: Format | None,
    known: Iterable[Mapping[str, str]] = (),
) -> _Rows:
    formats = {format or _format_of(path) for path in paths}
    if len(formats) > 1:
        names = ", ".join(sorted(formats))
        raise SourceError(f"{_some(paths)}: files of several formats ({names}); name files of one")
    [format] = formats
    reader = {"csv": _read_csv, "jsonl": _read_json_lines, "parquet": _read_parquet}[format]
    for path in paths:
        _check_is_whole(path)
    try:
        sql = reader(con, paths)
        columns = _describe(con, sql)
        others = [other for other in known if other and other != columns]
        if others:
            sql = " UNION ALL BY NAME ".join([sql, *map(_no_rows, others)])
            columns = _describe(con, sql)
    except duckdb.Error as error:
        has_mixed_ends = "reached an invalid state" in str(error)
        why = (
            "its lines end in different ways; end all with LF or all with CR LF"
            if has_mixed_ends
            else first_line(error)
        )
        raise UnreadableError(f"{_culprit(str(error), paths)}: cannot be read: {why}") from error
    except (OSError, csv.Error) as error:
        raise UnreadableError(f"{_culprit(str(error), paths)}: cannot be read: {error}") from error
    return _Rows(sql, columns, _some(paths), format)


def _refuse_nothing(rows: _Rows) -> None:
    if not rows.columns:
        raise SourceError(f"{rows.files}: {NOTHING[rows.format]}")


def _describe(con: duckdb.DuckDBPyConnection, sql: str) -> dict[str, str]:
    described = con.execute(f"DESCRIBE {sql}").fetchall()
    return {name: kind for name, kind, *_ in described if not name.startswith("habitus_")}


def _no_rows(columns: Mapping[str, str]) -> str:
    """Return a query for columns without rows: beside others, the engine finds the types that hold both."""
    return f"SELECT {', '.join(f'NULL::{kind} AS {_identifier(name)}' for name, kind in columns.items())} WHERE false"


def _some(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")


def _format_of(path: Path) -> Format:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    if suffixes and suffixes[-1] in FORMATS:
        return FORMATS[suffixes[-1]]
    raise SourceError(f"{path.name}: its name does not tell its format; set format to csv, jsonl or parquet")


def _check_is_whole(path: Path) -> None:
    """Read a compressed file to its end: the engine takes one that breaks off for a whole one."""
    if path.suffix.lower() != ".gz":
        return
    try:
        with gzip.open(path, "rb") as file:
            while file.read(BLOCK_BYTES):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableError(f"{path.name}: cannot be read: {error}") from error


def _read_csv(con: duckdb.DuckDBPyConnection, paths: list[Path]) -> str:
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_read_header(path), []).append(path)
    parts = [NO_ROWS]
    for header, members in groups.items():
        if not header:  # an empty file: engines that write in parts leave such where a part has no rows
            continue
        delimiter = max(DELIMITERS, key=header.count)
        names = _column_names(header, delimiter)
        if len({name.lower() for name in names}) < len(names):
            raise UnreadableError(
                f"{members[0].name}: its first line must name the columns, each once; it is {header!r}"
            )
        dialect = f"header=true, delim={_text(delimiter)}, quote='\"', escape='\"'"
        rows, malformed = _read_text(con, members, names, dialect)
        parts.append(f"SELECT *, false AS habitus_malformed FROM {rows}")
        parts.append(f"SELECT *, true AS habitus_malformed FROM {malformed}")
    return " UNION ALL BY NAME ".join(parts)


def _read_text(con: duckdb.DuckDBPyConnection, paths: list[Path], names: list[str], dialect: str) -> tuple[str, str]:
    """Read text into two tables and return their names: of rows, and of the lines that are no rows.

    The dialect is given, not sniffed: the sniffer skips lines and drops quotes where a file is damaged.
    """
    rows, malformed = _temporary_name("rows"), _temporary_name("malformed")
    con.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")
    con.execute(
        f"""CREATE TEMP TABLE {rows} AS SELECT * FROM read_csv({_texts(paths)}, auto_detect=false, {dialect},
            columns={{{", ".join(f"{_text(name)}: 'VARCHAR'" for name in names)}}}, max_line_size={LINE_BYTES},
            store_rejects=true, rejects_limit=0, filename='habitus_path')"""
    )
    con.execute(
        f"""CREATE TEMP TABLE {malformed} AS
        SELECT any_value(file_path) AS habitus_path, trim(any_value(csv_line), chr(13) || chr(10)) AS habitus_line
        FROM reject_errors JOIN reject_scans USING (scan_id, file_id) GROUP BY scan_id, file_id, line"""
    )
    return rows, malformed


def _read_header(path: Path) -> str:
    """Return the first line of a file; blank only if the file is empty."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        line = file.readline(LINE_BYTES)
    try:
        header = re.split("[\r\n]", line.decode("utf-8-sig"), maxsplit=1)[0]
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path.name}: cannot be read: it is not in UTF-8") from error
    if line and not header.strip():
        raise UnreadableError(f"{path.name}: {NOTHING['csv']}")
    return header


def _column_names(header: str, delimiter: str) -> list[str]:
    """Split a header; a column without a name, such as the index that pandas writes, has one by its place."""
    names = next(csv.reader([header], delimiter=delimiter))
    return [name or f"column_{place}" for place, name in enumerate(names, start=1)]


def _read_json_lines(con: duckdb.DuckDBPyConnection, paths: list[Path]) -> str:
    # Lines are read as text first: the JSON reader turns a damaged line into nulls and says nothing.
    rows, malformed = _read_text(con, paths, ["habitus_line"], "header=false, delim='\x01', quote='', escape=''")
    lines = _temporary_name("jsonl")
    con.execute(
        f"""CREATE TEMP TABLE {lines} AS
        SELECT habitus_line, habitus_path,
            json_type(CASE WHEN json_valid(habitus_line) THEN habitus_line END) IS DISTINCT FROM 'OBJECT'
                AS habitus_malformed
        FROM {rows} WHERE trim(habitus_line) <> ''
        UNION ALL BY NAME SELECT *, true AS habitus_malformed FROM {malformed};
        DROP TABLE {rows}; DROP TABLE {malformed}"""
    )
    found = con.execute(
        f"SELECT json_group_structure(habitus_line::JSON) FROM {lines} WHERE NOT habitus_malformed"
    ).fetchone()
    structure = _plain_types(json.loads(found[0])) if found and found[0] else None
    if not isinstance(structure, dict) or not structure:
        return f"SELECT * FROM {lines}"
    as_structure = f"from_json(CASE WHEN NOT habitus_malformed THEN habitus_line END, {_text(json.dumps(structure))})"
    return f"""SELECT unnest({as_structure}), habitus_path, habitus_line, habitus_malformed FROM {lines}"""


def _plain_types(structure: object) -> object:
    """Read a field of several types, or always null, as text."""
    if isinstance(structure, dict):
        return {name: _plain_types(part) for name, part in structure.items() if name}
    if isinstance(structure, list):
        return [_plain_types(part) for part in structure]
    return "VARCHAR" if structure in ("JSON", "NULL") else structure


def _read_parquet(con: duckdb.DuckDBPyConnection, paths: list[Path]) -> str:
    return f"""SELECT *, NULL::VARCHAR AS habitus_line, false AS habitus_malformed
        FROM read_parquet({_texts(paths)}, union_by_name=true, hive_partitioning=false, filename='habitus_path')"""


def _project(engine: DuckDB, rows: _Rows, selected: dict[str, str], folder: Path) -> ir.Table:
    prefix = _text(f"{folder}/")
    columns = ", ".join(f"{sql} AS {_identifier(name)}" for name, sql in selected.items())
    as_struct = f"{{{', '.join(f'{_text(name)}: {_identifier(name)}' for name in rows.columns)}}}"
    return engine.sql(
        f"""SELECT {columns}, replace(habitus_path, {prefix}, '') AS source_file,
        {"habitus_line" if rows.format == "jsonl" else as_struct} AS row, habitus_line AS line,
        habitus_malformed AS malformed FROM ({rows.sql})""",
        dialect="duckdb",
    )


def _column(engine: DuckDB, rows: _Rows, key: str, given: str | Computed | list[str]) -> str:
    """Return the SQL of a mapped column, having checked that it names what exists."""
    match given:
        case Computed(sql=str(sql)):
            try:
                # Twice, as it might be several columns only without the brackets; beside a column, it is no aggregate;
                # before a line's end, it is no comment.
                found = engine.con.execute(
                    f"DESCRIBE SELECT {sql}, ({sql}\n), habitus_path FROM ({rows.sql})"
                ).fetchall()
            except duckdb.Error as error:
                raise SourceError(f"{key}: {sql!r} does not work on {rows.files}: {first_line(error)}") from error
            if len(found) != 3:
                raise SourceError(f"{key}: {sql!r} must be one expression, not several columns")
            return f"({sql})"
        case Computed(value=str(value)):
            return _text(value)
        case list(names):
            parts = [f"coalesce(CAST({_column(engine, rows, key, name)} AS VARCHAR), '')" for name in names]
            return f"nullif(concat_ws('|', {', '.join(parts)}), {_text('|' * (len(parts) - 1))})"
        case str(name) if name in rows.columns:
            return _identifier(name)
        case str(name) if name.split(".")[0] in rows.columns:
            path = ".".join(_identifier(part) for part in name.split("."))
            return _column(engine, rows, key, Computed(sql=path))
        case _:
            near = difflib.get_close_matches(str(given), rows.columns, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(rows.columns)}"
            raise SourceError(f"{key}: {rows.files} has no column {given!r}; {hint}")


def first_line(error: Exception) -> str:
    """Return the first line of an engine's message, without its kind."""
    return str(error).strip().splitlines()[0].removeprefix("Invalid Input Error: ").removeprefix("IO Error: ")


def _culprit(message: str, paths: list[Path]) -> str:
    # The first line is the engine's own; the others may repeat the query, which names all files.
    named = [path for part in (message.splitlines()[0], message) for path in paths if str(path) in part]
    return (named or paths)[0].name


def _temporary_name(kind: str) -> str:
    return f"{STORED}{kind}_{uuid.uuid4().hex}"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _texts(paths: list[Path]) -> str:
    """Return a list of paths for the engine, which would take a bracket or an asterisk in a name for a pattern."""
    return "[" + ", ".join(_text(glob.escape(str(path))) for path in paths) + "]"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
