"""Source files: where raw events are, how their columns map to EVENTS, and how they are read.

Rows leave here as the source has them, only under the names of EVENTS. Nothing is judged: `events.accept` does that.
"""

import csv
import difflib
import glob
import json
import os
import re
import stat
import uuid
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend as DuckDB
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from features.addresses import literal
from features.compression import COMPRESSIONS, compression_of, open_unpacked
from features.discretion import hide_values
from features.expressions import why_not_of_one_row
from features.first_ids import FIRST_ID, add_first_ids, structure_of
from features.placeholders import NO_USER
from features.places import DELIMITERS, find_lines
from features.values import PART

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
Structure = dict[str, "Structure"] | list["Structure"] | str | None
"""What JSON lines hold: by field, of elements, or a value's type."""
TEXT_AS_IT_IS = {"VARCHAR", "UBIGINT", "BIGINT", "BOOLEAN"}
"""What has one type in a file, of which JSON's text is canonical."""
NUMBERS: tuple[Structure, ...] = ("UBIGINT", "BIGINT", "HUGEINT", "DOUBLE")
"""Types of JSON's numbers, each wider than those before."""
NO_ROWS = (
    "SELECT NULL::VARCHAR AS habitus_path, NULL::VARCHAR AS habitus_line, NULL::BOOLEAN AS habitus_malformed WHERE 0"
)
JSON_LINE = "CASE WHEN NOT habitus_malformed THEN habitus_line END::JSON"
REQUIRED = ("events.columns.user_id", "events.columns.occurred_at", "events.columns.event_name", "users.user_id")
"""The keys of columns without which no row can be used: not even a file of JSON lines may lack them."""
OURS = "habitus_"
"""What the names of columns begin with that are read beside a source's own."""
STORED = "source_"
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
TimeUnit = Literal["iso", "s", "ms", "us", "ns", "day"]


class Settings(BaseModel):
    """Refuse unknown keys, values of another type, numbers that are none, and any change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Computed(Settings):
    """Give a column by its name, as a DuckDB expression over the source's columns, or as a constant.

    What is `optional` is null in a file that lacks the column.
    """

    column: str | None = None
    sql: str | None = None
    value: str | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if [self.column, self.sql, self.value].count(None) != 2:
            raise ValueError("give one of column, sql and value")
        return self


class Time(Computed):
    """Give a column of times, with the unit and the zone of its own; else they are those of the source."""

    time_unit: TimeUnit | None = None
    time_zone: TimeZone | None = None


class Columns(Settings):
    """Map each column of EVENTS to a column of the source."""

    user_id: str | Computed
    occurred_at: str | Time
    event_name: str | Computed
    event_id: str | Computed | Names | None = None
    anonymous_id: str | Computed | None = None
    account_id: str | Computed | None = None
    ingested_at: str | Time | None = None
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
    time_unit: TimeUnit = "iso"
    time_zone: TimeZone | None = None
    columns: Columns
    names: dict[str, str] = Field(default_factory=dict)
    no_user: list[str] = list(NO_USER)
    rejected_max: float = Field(default=0.2, ge=0, le=1)
    skip_unreadable: bool = False

    @property
    def is_by_day(self) -> bool:
        """Tell whether the source has dates of events only."""
        return self.unit_of("occurred_at") == "day"

    def unit_of(self, column: Literal["occurred_at", "ingested_at"]) -> TimeUnit:
        """Return the unit of a column of times."""
        given = getattr(self.columns, column)
        return given.time_unit if isinstance(given, Time) and given.time_unit else self.time_unit

    def zone_of(self, column: Literal["occurred_at", "ingested_at"], time_zone: str) -> str:
        """Return the zone of the local times of a column; `time_zone` where the source does not say."""
        given = getattr(self.columns, column)
        return (isinstance(given, Time) and given.time_zone) or self.time_zone or time_zone


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
    """List the files that paths or globs name, relative to a folder, sorted, links to nothing and the like too.

    Raises SourceError for a path or glob that names none, unless it is one of those that are known from before.
    """
    found: set[Path] = set()
    for pattern in [files] if isinstance(files, str) else files:
        matches = [folder / match for match in glob.glob(pattern, root_dir=folder, recursive=True)]
        matches = [match for match in {folder / pattern, *matches} if os.path.lexists(match) and not match.is_dir()]
        name = name_of(folder / pattern, folder).replace("**/", "*")
        if not matches and name not in known and not any(fnmatch(path, name) for path in known):
            if (folder / pattern).is_dir():
                raise SourceError(f"{pattern}: is a folder; name the files in it, as {pattern.rstrip('/')}/*")
            raise SourceError(f"{pattern}: no such file; paths are relative to {folder}")
        found.update(matches)
    return sorted(found)


def listed(files: Files) -> str:
    """Write the paths and globs of a source in a row."""
    return files if isinstance(files, str) else ", ".join(files)


def check_is_file(path: Path) -> None:
    """Stop at what cannot be read to its end. Raises UnreadableError where it is no file, OSError where it is gone."""
    mode = path.stat().st_mode if path.exists() else 0
    if mode and not stat.S_ISREG(mode):
        raise UnreadableError(f"{path.name}: cannot be read: it is no file, but a pipe, a socket or a device")
    if not mode and path.is_symlink():
        raise UnreadableError(f"{path.name}: cannot be read: it is a link to what is not there")
    path.stat()


@dataclass(frozen=True)
class Raw:
    """Hold rows of a source, as `read_events` gives them, and by file the engine's type of each column it has.

    Of JSON lines all files have the columns of all. Where `retyped`, a column that an expression uses has another type
    than when earlier files were read, so the expression may give other values for their rows now.
    """

    parts: list[ir.Table]
    columns: dict[Path, dict[str, str]]
    retyped: bool


def read_events(engine: DuckDB, source: Source, folder: Path) -> list[ir.Table]:
    """Read a source's rows under the names of EVENTS, in parts: a table for all files that have the same columns.

    Columns: those that the source maps, with the types that these files have (CSV: text; JSON lines: JSON); an id of
    several columns is a struct of them; `source_file`, relative to the folder; `row` and `line`, of which `row_text`
    makes the row's text; `malformed`, true for a row that could not be read at all.
    Raises UnreadableError for a file that cannot be read, SourceError for a column that does not exist, or that some
    files lack and that is not optional.
    """
    return read_files(engine, source, folder, find_files(source.files, folder)).parts


def read_files(
    engine: DuckDB,
    source: Source,
    folder: Path,
    files: list[Path],
    known: Sequence[Mapping[str, str]] = (),
    first: Sequence[Mapping[str, str]] = (),
) -> Raw:
    """Read some of a source's files as `read_events` does; `known` are the columns that earlier files had.

    For each of the columns `first`, rows have an id of their content by rule 1 beside, as `first_ids` makes it.
    """
    mapped = source.columns.mapped()
    parts = _with_names(_read(engine.con, files, source.format, known), mapped.values())
    _refuse_nothing(parts)
    tables = []
    for part in parts:
        selected = {
            name: _column(engine.con, part, parts, known, f"events.columns.{name}", given)
            for name, given in mapped.items()
        }
        if part.columns and first:
            expressions = {name: sql for name, given in mapped.items() if (sql := _plain(given)) is not None}
            is_json = part.format == "jsonl"
            part = replace(part, sql=add_first_ids(engine.con, part.sql, part.columns, is_json, expressions, first))
            selected |= {name: name for place in range(len(first)) for name in [f"{FIRST_ID}{place}"]}
        tables.append(_project(engine, part, selected, folder))
    return Raw(
        tables,
        {path: part.columns for part in parts for path in part.paths},
        _are_retyped(
            parts, known, [given.sql for given in mapped.values() if isinstance(given, Computed) and given.sql]
        ),
    )


def find_unreadable(source: Source, files: list[Path]) -> dict[Path, str]:
    """Read each file alone and whole, and say why where that fails: what is damaged inside shows in no other way."""
    found = {}
    for path in files:
        con = duckdb.connect()  # an engine of its own, which what it reads leaves with
        try:
            for part in _read(con, [path], source.format):
                con.execute(f"SELECT max(hash(COLUMNS(*))) FROM ({part.sql})").fetchall()
        except UnreadableError as error:
            found[path] = str(error)
        except duckdb.OutOfMemoryException:
            pass  # which says nothing of the file
        except duckdb.Error as error:
            found[path] = f"{path.name}: cannot be read: {first_line(error)}"
        finally:
            con.close()
    return found


def find_failing(engine: DuckDB, source: Source, files: list[Path], known: Sequence[Mapping[str, str]]) -> str | None:
    """Compute each expression of a mapping alone, and say of the first that fails which it is, and why."""
    for part in _read(engine.con, files, source.format, known):
        for name, given in source.columns.mapped().items():
            if isinstance(given, Computed) and given.sql and part.columns:
                try:
                    engine.con.execute(f"SELECT max(hash({given.sql}\n)) FROM ({part.sql})").fetchall()
                except duckdb.BinderException:
                    continue  # of a column that this part lacks
                except duckdb.Error as error:
                    return f"events.columns.{name}: {given.sql!r} fails on a row of {part.files}: {reason_of(error)}"
    return None


def reason_of(error: Exception) -> str:
    """Return what an engine's message says without values, or its kind where an expression may have made the text."""
    is_free = isinstance(error, duckdb.InvalidInputException) and "Could not parse string" not in str(error)
    return type(error).__name__ if is_free else first_line(error)


def forget_files(engine: DuckDB) -> None:
    """Drop what reading text files stored with an engine; what was made of it by then stays."""
    for name in engine.list_tables(like=f"^{STORED}"):
        engine.drop_table(name)


def name_of(path: Path, folder: Path) -> str:
    """Return a file's name as `source_file` has it: its path, relative to the folder where it is within."""
    return str(path).removeprefix(f"{folder}/")


def row_text(rows: ir.Table) -> ir.StringValue:
    """Return rows as `read_events` gives them as text: their line, or their columns as JSON.

    JSON is dear, and few rows need it: ask for it in the one expression that says which.
    """
    if rows.row.type().is_string():
        return rows.row
    return ibis.coalesce(rows.line, rows.row.cast("json").cast("string"))


def read_users(engine: DuckDB, users: Users, folder: Path, consents: Mapping[str, str]) -> list[ir.Table]:
    """Read the attributes of users: user_id and those of `Users.columns`, and otherwise as `read_events` does.

    An attribute's column is called as `attribute_column` says, so that it may have the name of any other.
    """
    parts = _read(engine.con, find_files(users.files, folder), users.format)
    parts = _with_names(parts, [users.user_id, *(column for _, column in users.columns(consents).values())])
    _refuse_nothing(parts)
    tables = []
    for part in parts:
        selected = {"user_id": _column(engine.con, part, parts, (), "users.user_id", users.user_id)}
        for name, (key, column) in users.columns(consents).items():
            has_other = any(_named(engine.con, other, column) for other in parts)
            given = Computed(column=column, optional=has_other)
            selected[attribute_column(name)] = _column(engine.con, part, parts, (), key, given)
        tables.append(_project(engine, part, selected, folder))
    return tables


def attribute_column(name: str) -> str:
    """Return what the column of an attribute is called in what `read_users` gives."""
    return f"attribute {name}"


@dataclass(frozen=True)
class _Part:
    """Hold a query for the rows of files that have the same columns, and the types of these.

    Beside the source's columns, the query gives habitus_path, habitus_line (of JSON lines, and of what is malformed)
    and habitus_malformed. Of JSON lines `structures` says by file what its fields are, and
    `structure` what they are in all files, earlier ones too. Where it is not `is_named`, the
    columns may be what a row holds, and are nothing for errors.
    """

    sql: str
    columns: dict[str, str]
    paths: list[Path]
    format: Format
    structures: dict[Path, Structure] = field(default_factory=dict)
    structure: Structure = None
    is_named: bool = True

    @property
    def files(self) -> str:
        """Name the files."""
        return _some(self.paths)


def _read(
    con: duckdb.DuckDBPyConnection,
    paths: list[Path],
    format: Format | None,
    known: Iterable[Mapping[str, str]] = (),
) -> list[_Part]:
    formats = {format or _format_of(path) for path in paths}
    if len(formats) > 1:
        names = ", ".join(sorted(formats))
        raise SourceError(f"{_some(paths)}: files of several formats ({names}); name files of one")
    [format] = formats
    for path in paths:
        _check_is_whole(path)
    try:
        match format:
            case "csv":
                return _read_csv(con, paths)
            case "parquet":
                return _read_parquet(con, paths)
            case "jsonl":
                return [_read_json_lines(con, paths, known)]
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


def _refuse_nothing(parts: list[_Part]) -> None:
    if not any(part.columns for part in parts):
        raise SourceError(f"{_some([path for part in parts for path in part.paths])}: {NOTHING[parts[0].format]}")


def _with_names(parts: list[_Part], mapped: Iterable[str | Computed | list[str]]) -> list[_Part]:
    """Tell parts whose columns are names, as half of those that are mapped are among them.

    Raises SourceError for text whose first line has none of them: it may be an event, which is not for errors.
    """
    names: set[str] = set()
    for one in mapped:
        columns = [one.column] if isinstance(one, Computed) else [one] if isinstance(one, str) else one
        names.update(name for name in columns if name)
    for part in parts:
        if part.format == "csv" and names and part.columns and names.isdisjoint(part.columns):
            some = ", ".join(sorted(names))
            raise SourceError(f"{part.paths[0].name}: its first line must name the columns; it has none of {some}")
    roots = {name if any(name in part.columns for part in parts) else name.split(".")[0] for name in names}
    return [replace(part, is_named=2 * len(roots.intersection(part.columns)) >= len(roots)) for part in parts]


def _describe(con: duckdb.DuckDBPyConnection, sql: str) -> dict[str, str]:
    described = con.execute(f"DESCRIBE {sql}").fetchall()
    return {name: kind for name, kind, *_ in described if not name.startswith(OURS)}


def _some(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")


def _format_of(path: Path) -> Format:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    if suffixes and suffixes[-1] in FORMATS:
        return FORMATS[suffixes[-1]]
    raise SourceError(f"{path.name}: its name does not tell its format; set format to csv, jsonl or parquet")


def _check_is_whole(path: Path) -> None:
    """Read a compressed file to its end: the engine takes one that breaks off for a whole one."""
    try:
        check_is_file(path)
        if compression_of(path) != "none":
            with open_unpacked(path) as file:
                while file.read(BLOCK_BYTES):
                    pass
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableError(f"{path.name}: cannot be read: {why_of(error)}") from error


def why_of(error: Exception) -> str:
    """Return what the system says of a file, without its path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _read_csv(con: duckdb.DuckDBPyConnection, paths: list[Path]) -> list[_Part]:
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_read_header(path), []).append(path)
    parts = []
    for header, members in groups.items():
        if not header:  # an empty file: engines that write in parts leave such where a part has no rows
            parts.append(_Part(NO_ROWS, {}, members, "csv"))
            continue
        delimiter = max(DELIMITERS, key=header.count)
        names = _column_names(header, delimiter)
        _refuse_taken(members[0], names)
        if twice := _first_twice(names):
            raise UnreadableError(
                f"{members[0].name}: its first line must name the columns, each once; columns "
                f"{twice[0]} and {twice[1]} have one name"
            )
        dialect = f"header=true, delim={_text(delimiter)}, quote='\"', escape='\"'"
        rows, malformed = _read_text(con, members, names, dialect)
        sql = f"""SELECT *, false AS habitus_malformed FROM {rows}
            UNION ALL BY NAME SELECT *, true AS habitus_malformed FROM {malformed}"""
        parts.append(_Part(sql, _describe(con, sql), members, "csv"))
    return parts


def _refuse_taken(path: Path, names: Iterable[str]) -> None:
    """Stop where a column is called as those are that are read beside a source's own."""
    for name in names:
        if name.lower().startswith(OURS):
            raise SourceError(f"{path.name}: names that begin with {OURS} are taken; rename the column {name!r}")


def _first_twice(names: Sequence[str]) -> tuple[int, int] | None:
    """Return the places of the first two columns of one name: engines do not tell upper from lower case in names."""
    lower = [name.lower() for name in names]
    seconds = (place for place, name in enumerate(lower) if name in lower[:place])
    return next(((lower.index(lower[second]) + 1, second + 1) for second in seconds), None)


def _read_text(con: duckdb.DuckDBPyConnection, paths: list[Path], names: list[str], dialect: str) -> tuple[str, str]:
    """Read text into two tables and return their names: of rows, and of the lines that are no rows.

    The dialect is given, not sniffed: the sniffer skips lines and drops quotes where a file is damaged.
    """
    rows, malformed = _temporary_name("rows"), _temporary_name("malformed")
    con.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")
    by_compression: dict[str, list[Path]] = {}
    for path in paths:
        by_compression.setdefault(compression_of(path), []).append(path)
    scans = (
        f"""SELECT * FROM read_csv({_texts(members)}, auto_detect=false, {dialect}, compression='{compression}',
            columns={{{", ".join(f"{_text(name)}: 'VARCHAR'" for name in names)}}}, max_line_size={LINE_BYTES},
            store_rejects=true, rejects_limit=0, filename='habitus_path')"""
        for compression, members in by_compression.items()
    )
    con.execute(f"CREATE TEMP TABLE {rows} AS {' UNION ALL '.join(scans)}")
    con.execute(
        f"""CREATE TEMP TABLE {malformed} AS
        SELECT any_value(file_path) AS habitus_path, trim(any_value(csv_line), chr(13) || chr(10)) AS habitus_line
        FROM reject_errors JOIN reject_scans USING (scan_id, file_id) GROUP BY scan_id, file_id, line"""
    )
    return rows, malformed


def _read_header(path: Path) -> str:
    """Return the first line of a file; blank only if the file is empty."""
    with open_unpacked(path) as file:
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


def _read_json_lines(con: duckdb.DuckDBPyConnection, paths: list[Path], known: Iterable[Mapping[str, str]]) -> _Part:
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
    whole = f"SELECT json_group_structure(habitus_line::JSON), habitus_path FROM {lines} WHERE NOT habitus_malformed"
    by_file = con.execute(f"{whole} GROUP BY habitus_path").fetchall()
    structures: dict[Path, Structure] = {Path(path): json.loads(text) for text, path in by_file if text}
    for path, fields in structures.items():
        _refuse_taken(path, fields if isinstance(fields, dict) else ())
    structure: Structure = next(iter(structures.values()), None)
    if any(other != structure for other in structures.values()):
        [text] = con.execute(whole.replace(", habitus_path", "")).fetchone() or ["null"]
        structure = json.loads(text)
    for other in known:
        structure = _joined(structure, _structure_of(other))
    plain = _plain_types(structure)
    sql = f"SELECT * FROM {lines}"
    if isinstance(plain, dict) and plain:
        text = _text(json.dumps(plain))
        as_structure = f"from_json(CASE WHEN NOT habitus_malformed THEN habitus_line END, {text})"
        sql = f"SELECT unnest({as_structure}), habitus_path, habitus_line, habitus_malformed FROM {lines}"
    return _Part(sql, _describe(con, sql), paths, "jsonl", structures, structure)


def _joined(now: Structure, then: Structure) -> Structure:
    """Join what a field is with what it was in earlier files: what both hold is read as if it were read together."""
    if then in (None, "NULL", now):
        return now or then
    if now in (None, "NULL"):
        return then
    if isinstance(now, dict) and isinstance(then, dict):
        return {name: _joined(now.get(name), then.get(name)) for name in {**now, **then}}
    if isinstance(now, list) and isinstance(then, list):
        return [_joined(now[0], then[0])]
    if not isinstance(now, str) and then == "VARCHAR":  # which it is too where it was always null
        return now
    if now in NUMBERS and then in NUMBERS:
        return max(now, then, key=NUMBERS.index)
    return "VARCHAR"


def _plain_types(structure: Structure) -> Structure:
    """Read a field of several types, or always null, as text."""
    if isinstance(structure, dict):
        fields = {name: _plain_types(part) for name, part in structure.items() if name}
        return fields or "VARCHAR"  # the engine reads no objects without fields
    if isinstance(structure, list):
        return [_plain_types(part) for part in structure]
    return "VARCHAR" if structure in ("JSON", "NULL") else structure


def _read_parquet(con: duckdb.DuckDBPyConnection, paths: list[Path]) -> list[_Part]:
    """Read files that have the same columns together: what one file's types are is not up to another's."""
    groups: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for path in paths:
        found = _describe(con, f"SELECT * FROM read_parquet({_texts([path])}, hive_partitioning=false)")
        names = pq.read_schema(path).names
        _refuse_taken(path, names)
        if twice := _first_twice(names):
            raise UnreadableError(f"{path.name}: columns {twice[0]} and {twice[1]} have one name; give each its own")
        groups.setdefault(tuple(found.items()), []).append(path)
    parts = []
    for columns, members in groups.items():
        texts = [name for name, kind in columns if kind == "BLOB"]  # as some programs write text
        decoded = ", ".join(
            f"coalesce(TRY(decode({column})), {column}::VARCHAR) AS {column}" for column in map(_identifier, texts)
        )
        sql = f"""SELECT *{f" REPLACE ({decoded})" if texts else ""}, NULL::VARCHAR AS habitus_line,
            false AS habitus_malformed
            FROM read_parquet({_texts(members)}, hive_partitioning=false, filename='habitus_path')"""
        parts.append(_Part(sql, dict(columns) | dict.fromkeys(texts, "VARCHAR"), members, "parquet"))
    return parts


def _project(engine: DuckDB, part: _Part, selected: dict[str, str], folder: Path) -> ir.Table:
    prefix = _text(f"{folder}/")
    columns = ", ".join(f"{sql} AS {_identifier(name)}" for name, sql in selected.items())
    as_struct = f"{{{', '.join(f'{_text(name)}: {_identifier(name)}' for name in part.columns)}}}"
    if part.format == "jsonl":
        as_struct = "habitus_line"
    elif not part.columns:
        as_struct = "NULL::VARCHAR"
    return engine.sql(
        f"""SELECT {columns}, replace(habitus_path, {prefix}, '') AS source_file, {as_struct} AS row,
        habitus_line AS line, habitus_malformed AS malformed FROM ({part.sql})""",
        dialect="duckdb",
    )


def _column(
    con: duckdb.DuckDBPyConnection,
    part: _Part,
    parts: list[_Part],
    known: Iterable[Mapping[str, str]],
    key: str,
    given: str | Computed | list[str],
) -> str:
    """Return the SQL of a mapped column for a part of the files, having checked that it names what exists."""
    if not part.columns:
        return "NULL::VARCHAR"
    match given:
        case Computed(value=str(value)):
            return _text(value)
        case list(names):
            fields = (_column(con, part, parts, known, key, name) for name in names)
            return f"{{{', '.join(f'{PART}{place}: {sql}' for place, sql in enumerate(fields))}}}"
        case Computed(sql=str(sql), optional=is_optional):
            return _expression(con, part, parts, known, key, sql, is_optional)
        case Computed(column=str(name), optional=is_optional):
            pass
        case str(name):
            is_optional = False
    found = _named(con, part, name)
    if found is not None:
        if not is_optional:
            _refuse_no_objects(con, part, key, name)
            _refuse_renamed(part, known, key, name)
            if key in REQUIRED:
                _refuse_lacking(part, key, name)
        return found
    others = [other.files for other in parts if other is not part and _named(con, other, name) is not None]
    within = _fields_of(part, name)
    before = any(_leaf(_structure_of(columns), within) is not None or name in columns for columns in known)
    if is_optional:
        return "NULL::VARCHAR"
    lacks = f"{key}: {part.files} has no column {name!r}"
    if others or before:
        who = f"{others[0]} has" if others else "earlier files had"
        raise SourceError(f"{lacks}, which {who}: {_mend(name)}; {_told(part)}")
    near = difflib.get_close_matches(name, part.columns, n=1, cutoff=0.5)
    raise SourceError(f"{lacks}; {f'did you mean {near[0]!r}?' if near else _told(part)}")


def _mend(name: str) -> str:
    return f"mend it, or write {{ column = {json.dumps(name)}, optional = true }} if files may lack it"


def _told(part: _Part) -> str:
    """Say which columns there are, if these are names."""
    return f"it has {_list(part.columns)}" if part.is_named else "few of its columns are mapped: does it name them?"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _named(con: duckdb.DuckDBPyConnection, part: _Part, name: str) -> str | None:
    """Return the SQL of a column, or of a field within one, `user.id`; None if there is none."""
    fields = _fields_of(part, name)
    if fields[0] not in part.columns:
        return None
    if part.format != "jsonl":
        sql = ".".join(_identifier(one) for one in fields)
        try:
            con.execute(f"DESCRIBE SELECT {sql} FROM ({part.sql})")
        except duckdb.Error:
            return None
        return sql
    if all(_leaf(structure, fields) is None for structure in (part.structure, *part.structures.values())):
        return None
    # Each value as it is written, whatever the type is that the engine finds for all.
    kinds = {_leaf(structure, fields) for structure in part.structures.values()} - {None, "NULL"}
    function = "json_extract_string" if kinds <= TEXT_AS_IT_IS else "json_extract"
    return f"{function}({JSON_LINE}, {_text(_pointer(fields))})"


def _fields_of(part: _Part, name: str) -> list[str]:
    """Return where a column is: a name with dots is a field within others, unless a column is called so."""
    return [name] if name in part.columns else name.split(".")


def _pointer(fields: Sequence[str]) -> str:
    return "".join("/" + one.replace("~", "~0").replace("/", "~1") for one in fields)


def _leaf(structure: Structure, fields: Sequence[str]) -> str | None:
    """Return what a field of JSON lines is; None if they have none."""
    for one in fields:
        if not isinstance(structure, dict):
            return "JSON" if structure == "JSON" else None  # of several types, objects perhaps among them
        if one not in structure:
            return None
        structure = structure[one]
    return structure if isinstance(structure, str) else "JSON"


def _plain(given: str | Computed | list[str]) -> str | None:
    """Return the SQL of a mapped column over the types that the engine finds; None for several columns."""
    match given:
        case Computed(value=str(value)):
            return _text(value)
        case Computed(sql=str(sql)):
            return sql
        case Computed(column=str(name)) | str(name):
            return ".".join(map(_identifier, name.split(".")))
        case _:
            return None


def _refuse_renamed(part: _Part, known: Iterable[Mapping[str, str]], key: str, name: str) -> None:
    """Stop where a file of JSON lines has a new field in the place of a mapped one, in the same object.

    That a file has no such field says nothing by itself, as null fields are often left out.
    """
    if not part.structures:
        return
    fields = _fields_of(part, name)
    having = {path for path, structure in part.structures.items() if _leaf(structure, fields) is not None}
    before = [_structure_of(columns) for columns in known]
    those = [*before, *(part.structures[path] for path in having)]
    if not any(_leaf(structure, fields) is not None for structure in those):
        return
    familiar = {field for structure in those for field in _fields_in(structure, fields[:-1])}
    for path, structure in sorted(part.structures.items()):
        fresh = [field for field in _fields_in(structure, fields[:-1]) if field not in familiar]
        if path not in having and fresh:
            raise SourceError(
                f"{key}: {path.name} has no field {name!r}, which other files have, but {_list(fresh[:3])}, which they "
                f"have not: {_mend(name)}"
            )


def _refuse_lacking(part: _Part, key: str, name: str) -> None:
    """Stop where a file of JSON lines has a field that every row needs in none of them."""
    for path, structure in sorted(part.structures.items()):
        if _leaf(structure, _fields_of(part, name)) is None:
            raise SourceError(f"{key}: {path.name} has no field {name!r}, which others have: {_mend(name)}")


def _refuse_no_objects(con: duckdb.DuckDBPyConnection, part: _Part, key: str, name: str) -> None:
    """Stop where what is to hold a mapped field is no object in a line, as where objects have become text."""
    fields = _fields_of(part, name)
    for path, structure in sorted(part.structures.items()):
        for depth, one in enumerate(fields[:-1], start=1):
            structure = structure.get(one) if isinstance(structure, dict) else None
            if isinstance(structure, dict) or structure in (None, "NULL"):
                continue
            found = con.execute(
                f"""SELECT habitus_line FROM ({part.sql}) WHERE habitus_path = ?
                AND json_type({JSON_LINE}, {_text(_pointer(fields[:depth]))}) NOT IN ('OBJECT', 'NULL') LIMIT 1""",
                [str(path)],
            ).fetchall()
            lines = find_lines(path, [line for [line] in found], 1)
            place = f"{path.name}, line {lines[0]:,}" if lines else path.name
            whole = ".".join(fields[:depth])
            raise SourceError(f"{key}: {place}: {whole!r} is no object, so there is no {name!r}: {_mend(name)}")


def _structure_of(columns: Mapping[str, str]) -> Structure:
    return {name: structure_of(duckdb.sqltype(kind)) for name, kind in columns.items()}


def _fields_in(structure: Structure, fields: Sequence[str]) -> list[str]:
    """List the fields of an object within others."""
    for one in fields:
        structure = structure.get(one) if isinstance(structure, dict) else None
    return list(structure) if isinstance(structure, dict) else []


def _expression(
    con: duckdb.DuckDBPyConnection,
    part: _Part,
    parts: list[_Part],
    known: Iterable[Mapping[str, str]],
    key: str,
    sql: str,
    is_optional: bool,
) -> str:
    """Return an expression in brackets, having checked that it is one, and works."""
    if reason := why_not_of_one_row(con, sql, part.columns):
        raise SourceError(f"{key}: {sql!r} {reason}; write an expression over the columns of one row")
    if part.format == "jsonl" and not is_optional:
        for name in part.columns:
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql):
                _refuse_renamed(part, known, key, name)
    lacking: list[str] = []
    while True:
        rows = f"(SELECT *{''.join(f', NULL AS {_identifier(name)}' for name in lacking)} FROM ({part.sql}))"
        try:
            # Twice, as it might be several columns only without the brackets; beside a column, it is no aggregate;
            # before a line's end, it is no comment.
            found = con.execute(f"DESCRIBE SELECT {sql}, ({sql}\n), habitus_path FROM {rows}").fetchall()
            break
        except duckdb.Error as error:
            named = re.search(r'column "([^"]*)" not found', str(error))
            elsewhere = {column for columns in (*known, *(other.columns for other in parts)) for column in columns}
            if named and is_optional and named[1] not in lacking:
                lacking.append(named[1])
            elif named and named[1] in elsewhere and not is_optional:
                raise SourceError(
                    f"{key}: {part.files} has no column {named[1]!r}, which others have: mend it, or write {{ sql = "
                    f"{json.dumps(sql)}, optional = true }} if files may lack it"
                ) from error
            else:
                why = _without_kind(str(error))
                raise SourceError(f"{key}: {sql!r} does not work on {part.files}: {why}") from error
    if len(found) != 3:
        raise SourceError(f"{key}: {sql!r} must be one expression, not several columns")
    if lacking:
        return f"(SELECT {sql} FROM (SELECT {', '.join(f'NULL AS {_identifier(name)}' for name in lacking)}))"
    return f"({sql})"


def _are_retyped(parts: list[_Part], known: Iterable[Mapping[str, str]], expressions: list[str]) -> bool:
    """Tell whether the type of a field of JSON lines that an expression uses depends on what is read with it."""
    words = {word for sql in expressions for word in re.findall(r"\w+", sql.lower())}
    return any(
        columns[name] != kind
        for part in parts
        if part.format == "jsonl"
        for name, kind in part.columns.items()
        for columns in known
        if name in columns and words.intersection(re.findall(r"\w+", name.lower()))
    )


def first_line(error: Exception) -> str:
    """Return the first line of an engine's message, without its kind and without values."""
    return _without_kind(hide_values(str(error)))


def _without_kind(message: str) -> str:
    return message.strip().splitlines()[0].removeprefix("Invalid Input Error: ").removeprefix("IO Error: ")


def _culprit(message: str, paths: list[Path]) -> str:
    # The first line is the engine's own; the others may repeat the query, which names all files.
    named = [path for part in (message.splitlines()[0], message) for path in paths if str(path) in part]
    return (named or paths)[0].name


def _temporary_name(kind: str) -> str:
    return f"{STORED}{kind}_{uuid.uuid4().hex}"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _texts(paths: list[Path]) -> str:
    """Return a list of paths for the engine."""
    return "[" + ", ".join(_text(literal(path)) for path in paths) + "]"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
