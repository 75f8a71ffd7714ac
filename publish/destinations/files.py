"""Files: each version is a folder with assignments, the changes that led to them, their contract and a manifest."""

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field

from features.addresses import literal
from features.table import Table, materialize
from publish.assignments import assignments_table, labels_in, row_schema
from publish.changes import CHANGES
from publish.destination import Delivery, Release
from publish.destinations.folders import Folder, FolderSettings, fingerprint, seal, write_manifest
from publish.formulas import Formulas, escape, escape_column, unescape_columns
from publish.manifest import without

LIST_SEPARATOR = " | "
"""Between the items of a list in CSV, which has no lists."""
ROWS_PER_GROUP = 122_880
"""Of Parquet; what DuckDB, too, reads at once."""
ASSIGNED, CHANGED, SCHEMA = "assignments", "changes", "schema.json"
Format = Literal["parquet", "csv", "jsonl"]
KEPT: Formulas = "keep"
"""What versions of before there were formulas in the manifest did with them."""


def _distinct(formats: list[Format]) -> list[Format]:
    return [*dict.fromkeys(formats)]


class FilesSettings(FolderSettings):
    """Publish files: assignments and changes in each of the formats.

    In CSV, `formulas` are escaped, since people open it in spreadsheet programs, or kept as they are for machines.
    """

    kind: Literal["files"] = "files"
    formats: Annotated[list[Format], Field(min_length=1), AfterValidator(_distinct)] = Field(default=["parquet", "csv"])
    formulas: Formulas = "escape"

    def connect(self, name: str, credentials: Mapping[str, str], folder: Path, lake: Path) -> "Files":
        """Return the destination."""
        return Files(name, self.formats, self.formulas, self.open(credentials, folder, lake))


@dataclass(frozen=True)
class Files:
    """Keep versions of files in a folder."""

    name: str
    formats: Sequence[Format]
    formulas: Formulas
    folder: Folder

    def deliver(self, release: Release) -> Delivery:
        """Write a version's files and make it the latest; nothing where it is already.

        Changes are those since the version that the folder holds.
        """
        latest = self.folder.latest()
        held = self.folder.manifest(latest) if latest else {}
        paths = {file["path"] for file in held.get("files", [])}
        said: dict[str, Any] = {"formulas": self.formulas} if "csv" in self.formats else {}
        wanted = {"release": fingerprint(release), **said}
        is_same = all({"formulas": KEPT, **held}.get(name) == value for name, value in wanted.items())
        if latest and is_same and {f"{ASSIGNED}.{form}" for form in self.formats} <= paths:
            return Delivery(self.name, "unchanged", f"{self.folder.where}/{latest}", held["users"])
        since = held.get("version", 0)
        if since >= release.version:  # other formats of the same version, or a lake that began anew
            since = held["changes_since"] if since == release.version else 0
        table = assignments_table(labels_in(release.rows.columns))
        with self.folder.staging() as staging, _kept(table, release.rows) as rows:
            changes_since = release.changes(since)
            with _kept(CHANGES, changes_since) as changes:
                counts = {}
                for contract, stem, expr in ((table, ASSIGNED, rows), (CHANGES, CHANGED, changes)):
                    for form in self.formats:
                        counts[f"{stem}.{form}"] = write(
                            expr, contract, form, staging / f"{stem}.{form}", self.formulas
                        )
            _write_json(staging / SCHEMA, row_schema(labels_in(release.rows.columns)))
            version = seal(staging, release, {"changes_since": since, **said}, counts)
            self.folder.add(staging, version)
        self.folder.point(version)
        return Delivery(
            self.name, "released", f"{self.folder.where}/{version}", counts[f"{ASSIGNED}.{self.formats[0]}"]
        )

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        """Write each version that has these users anew without them, and remove the one with them."""
        latest = self.folder.latest()
        rewritten = 0
        for version in self.folder.versions():
            with self.folder.staging() as staging:
                fresh = self._without(version, memberships.keys(), staging)
                if fresh is None:
                    continue
                self.folder.add(staging / ASSIGNED, fresh)
            if version == latest:
                self.folder.point(fresh)
            self.folder.remove(version)
            rewritten += 1
        return rewritten

    def _without(self, version: str, users: Collection[str], staging: Path) -> str | None:
        """Stage a version without some users and return its name; None where it has none of them."""
        manifest = self.folder.manifest(version)
        fresh = staging / ASSIGNED
        fresh.mkdir()
        counts: dict[str, int] = {}
        erased: list[dict[str, Any]] = []
        is_changed = False
        for path in [file["path"] for file in manifest["files"]]:
            file = self.folder.fetch(version, path, staging)
            if path == SCHEMA:
                (fresh / path).write_bytes(file.read_bytes())
                continue
            rewrite = REWRITE[Path(path).suffix]
            if rewrite is _rewrite_csv and manifest.get("formulas", KEPT) != KEPT:
                rewrite = _rewrite_escaped
            gone, counts[path] = rewrite(file, fresh / path, users)
            is_changed |= bool(gone)
            if Path(path).stem == ASSIGNED:
                erased = gone
        return write_manifest(fresh, without(manifest, erased), counts) if is_changed else None


def write(rows: ir.Table, contract: Table, form: Format, file: Path, formulas: Formulas) -> int:
    """Write rows of a contract, in the order of their key, to a file; the same rows give the same bytes. Count them.

    CSV has an empty field for null and "" for an empty text, a list's texts joined or its records as JSON, and is UTF-8
    with newlines; nothing in a text is changed but formulas, where they are to be escaped.
    """
    rows = rows.order_by(*_order(contract))
    if form == "parquet":
        return _write_parquet(rows, contract, file)
    text = rows.mutate(
        **{name: _instant(rows[name]) for name in contract.schema if contract.schema[name].is_timestamp()}
    )
    if form == "csv":
        text = text.mutate(
            **{name: _joined(text[name]) for name in contract.schema if contract.schema[name].is_array()},
            **{
                name: text[name].ifelse("True", "False")  # as Python, and so pandas, writes it
                for name in contract.schema
                if contract.schema[name].is_boolean()
            },
        )
        if formulas == "escape":
            texts = [name for name, dtype in contract.schema.items() if dtype.is_string() or dtype.is_array()]
            text = text.mutate(**{name: escape_column(text[name]) for name in texts})
    copy(text.select(*contract.schema.names), file, "FORMAT csv, HEADER" if form == "csv" else "FORMAT json")
    return int(rows.count().to_pyarrow().as_py())


def copy(rows: ir.Table, file: Path, how: str) -> None:
    """Have DuckDB write a query to a file, in its order; `how` are COPY's options."""
    engine = rows.get_backend()
    escaped = str(file).replace("'", "''")
    engine.raw_sql(f"COPY ({engine.compile(rows)}) TO '{escaped}' ({how})")


def _order(contract: Table) -> list[str]:
    return [*dict.fromkeys([*contract.key, *contract.schema.names[:1]])]


def _joined(items: ir.ArrayColumn) -> ir.StringValue:
    """Return a list as CSV has it: texts joined, and records as JSON."""
    if items.type().value_type.is_struct():
        return items.cast("json").cast("string")
    return items.join(LIST_SEPARATOR)


def _instant(at: ir.TimestampValue) -> ir.StringValue:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ").replace(".000000Z", "Z")


def _write_parquet(rows: ir.Table, contract: Table, file: Path) -> int:
    """Write groups of rows, each in memory by itself; they are always cut at the same rows."""
    schema = contract.schema.to_pyarrow()
    count, waiting = 0, schema.empty_table()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in rows.to_pyarrow_batches(chunk_size=ROWS_PER_GROUP):
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(schema)])
            while waiting.num_rows >= ROWS_PER_GROUP:
                writer.write_table(waiting.slice(0, ROWS_PER_GROUP).combine_chunks())
                waiting, count = waiting.slice(ROWS_PER_GROUP), count + ROWS_PER_GROUP
        writer.write_table(waiting.combine_chunks())
    return int(count + waiting.num_rows)


@contextmanager
def _kept(contract: Table, rows: ir.Table) -> Iterator[ir.Table]:
    """Run a query once, into a table that is gone at the end."""
    kept = materialize(contract.check(rows))
    try:
        yield kept
    finally:
        kept.get_backend().drop_table(kept.op().name)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# Without some users: each format is copied as it is, row by row where it is text, so that nothing else changes.


def _rewrite_parquet(old: Path, new: Path, users: Collection[str]) -> tuple[list[dict[str, Any]], int]:
    source = pq.ParquetFile(old)
    gone: list[dict[str, Any]] = []
    count = 0
    with pq.ParquetWriter(new, source.schema_arrow, compression="zstd") as writer:
        for group in range(source.num_row_groups):
            rows = source.read_row_group(group)
            is_gone = pc.is_in(rows["user_id"], value_set=pa.array(sorted(users), pa.string()))
            gone += rows.filter(is_gone).to_pylist()
            left = rows.filter(pc.invert(is_gone))
            writer.write_table(left)
            count += left.num_rows
    return gone, count


def _rewrite_escaped(old: Path, new: Path, users: Collection[str]) -> tuple[list[dict[str, Any]], int]:
    return _rewrite_csv(old, new, users, escaped=True)


def _rewrite_csv(
    old: Path, new: Path, users: Collection[str], *, escaped: bool = False
) -> tuple[list[dict[str, Any]], int]:
    engine = ibis.duckdb.connect()
    try:
        with old.open(newline="") as text:
            names = next(csv.reader(text))
        rows = engine.read_csv(
            literal(old),
            header=True,
            columns=dict.fromkeys(names, "VARCHAR"),
            auto_detect=False,
            delim=",",
            quote='"',
            escape='"',
            nullstr="",
            allow_quoted_nulls=False,
        )
        is_gone = rows.user_id.isin(sorted(map(escape, users) if escaped else users))
        gone = rows.filter(is_gone)
        gone = (unescape_columns(gone, names) if escaped else gone).to_pyarrow().to_pylist()
        copy(rows.filter(~is_gone), new, "FORMAT csv, HEADER")
        count = int((~is_gone).sum().to_pyarrow().as_py() or 0)
    finally:
        engine.disconnect()
    lists = {"rule_segments"}
    return [
        row | {name: row[name].split(LIST_SEPARATOR) if row[name] else [] for name in lists & row.keys()}
        for row in gone
    ], count


def _rewrite_jsonl(old: Path, new: Path, users: Collection[str]) -> tuple[list[dict[str, Any]], int]:
    gone: list[dict[str, Any]] = []
    count = 0
    with old.open("rb") as lines, new.open("wb") as left:
        for line in lines:
            row = json.loads(line)
            if row["user_id"] in users:
                gone.append(row)
            else:
                left.write(line)
                count += 1
    return gone, count


REWRITE = {".parquet": _rewrite_parquet, ".csv": _rewrite_csv, ".jsonl": _rewrite_jsonl}
"""How a file is written without some users, by its ending; the rows that are gone, and how many are left."""
