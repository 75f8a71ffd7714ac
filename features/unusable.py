"""Unusable rows: those that cannot be read, or lack user, time or name. Too many of them stop an ingest."""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import ibis
import ibis.expr.types as ir

from features.events import REASONS
from features.placeholders import in_words
from features.sources import DELIMITERS, SourceError, row_text

UNUSABLE = ("malformed_row", "no_user", "no_time", "unparseable_time", "no_event_name", "unparseable_number")
"""The reasons that files or their mapping are to blame for; a row that is rejected for another was read well."""
EXAMPLES = 3
CANDIDATES = 1000
"""How many rows of a reason are looked for in a file; those that come first in it are the examples."""
PARQUET = b"PAR1"


def refuse_unusable(
    raw: ir.Table,
    rejected: ir.Table,
    accepted: int,
    paths: Mapping[str, Path],
    share_max: float,
    placeholders: Mapping[str, int],
) -> None:
    """Stop where more than a share of all rows is unusable.

    `raw` and `rejected` are as `sources.read_events` and `events.accept` give them; `paths` are the files by their
    name there, and `placeholders` counts users that are none.
    Raises SourceError: counts by reason, examples by file and line without anything of their content, what to do.
    """
    rows = rejected.reason.value_counts(name="rows").to_pyarrow().to_pylist()
    by_reason = {row["reason"]: row["rows"] for row in rows}
    unusable = {reason: by_reason[reason] for reason in UNUSABLE if reason in by_reason}
    count, read = sum(unusable.values()), accepted + sum(by_reason.values())
    if not count or count / read <= share_max:
        return
    frequent = sorted(unusable, key=lambda reason: -unusable[reason])
    told = "; ".join(f"{REASONS[reason]}: {_count(unusable, reason, placeholders)}" for reason in frequent)
    examples = "; ".join(_examples(raw, rejected, frequent[:EXAMPLES], paths))
    enough = -(-count * 100 // read) / 100  # rounded up, and so that it is enough
    raise SourceError(
        f"events.files: {count:,} of {read:,} rows cannot be used, and events.rejected_max is {share_max:g}: nothing "
        f"was stored ({told}), such as {examples}; mend the files or what [events.columns] makes of them, or, if these "
        f"rows may be left out, set events.rejected_max = {enough:g}"
    )


def find_lines(path: Path, rows: list[str]) -> list[int]:
    """Find the first lines, from 1, on which a text file has some rows as `sources.row_text` gives them, in order.

    Lines that cannot be found are left out: the engine reads some files that Python does not.
    """
    found: list[int] = []
    try:
        with _open(path) as file:
            for line in _matches(file, rows):
                found.append(line)
                if len(found) == EXAMPLES:
                    break
    except (OSError, EOFError, UnicodeError, csv.Error):
        pass
    return found


def find_rows(raw: ir.Table, source_file: str, rows: list[str]) -> list[int]:
    """Find the first places, from 1, at which a file that has no lines holds some rows, in order."""
    of_file = raw.filter(raw.source_file == source_file)
    numbered = of_file.select(number=ibis.row_number() + 1, text=row_text(of_file))
    matching = numbered.filter(numbered.text.isin(rows)).order_by("number").limit(EXAMPLES)
    found: list[int] = matching.number.to_pyarrow().to_pylist()
    return found


def _count(unusable: Mapping[str, int], reason: str, placeholders: Mapping[str, int]) -> str:
    of_which = in_words(placeholders)
    return f"{unusable[reason]:,}" + (f", of which {of_which}" if reason == "no_user" and of_which else "")


def _examples(raw: ir.Table, rejected: ir.Table, reasons: list[str], paths: Mapping[str, Path]) -> list[str]:
    """Name some rows by file and line: one of each reason, then others of the most frequent."""
    places = {reason: _places(raw, rejected.filter(rejected.reason == reason), paths) for reason in reasons}
    rounds = [(number, reason) for number in range(EXAMPLES) for reason in reasons if number < len(places[reason])]
    return [f"{places[reason][number]}: {REASONS[reason]}" for number, reason in rounds[:EXAMPLES]]


def _places(raw: ir.Table, rejected: ir.Table, paths: Mapping[str, Path]) -> list[str]:
    """Name rows of the first file that has any; the file alone where none is found in it."""
    name = rejected.source_file.min().to_pyarrow().as_py()
    # By an id that is a hash: so they are from all over the file, and the first of them near its beginning.
    sample = rejected.filter(rejected.source_file == name).order_by("rejected_id").limit(CANDIDATES)
    rows: list[str] = [row for row in sample.row.to_pyarrow().to_pylist() if row is not None]
    path = paths[name]
    if _is_parquet(path):
        return [f"{name}, row {number:,}" for number in find_rows(raw, name, rows)] or [name]
    return [f"{name}, line {number:,}" for number in find_lines(path, rows)] or [name]


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(PARQUET)) == PARQUET


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def _matches(file: TextIO, rows: list[str]) -> Iterator[int]:
    """Yield the lines of rows: lines as they are, those that are objects of a CSV file's columns as its rows."""
    header = file.readline()
    file.seek(0)
    lines = set(rows)
    if header.lstrip().startswith("{"):
        yield from (number for number, line in enumerate(file, start=1) if line.strip("\r\n") in lines)
        return
    objects = {key for key in map(_key_of, rows) if key is not None}
    delimiter = max(DELIMITERS, key=header.count)
    kept: list[str] = []
    reader = csv.reader(_keeping(file, kept), delimiter=delimiter)
    names = [name or f"column_{place}" for place, name in enumerate(next(reader), start=1)]
    while True:
        start = reader.line_num + 1
        kept.clear()
        values = next(reader, None)
        if values is None:
            return
        key = tuple(sorted(pair for pair in zip(names, values, strict=False) if pair[1]))
        if values and ("".join(kept).strip("\r\n") in lines or key in objects):
            yield start


def _keeping(file: TextIO, kept: list[str]) -> Iterator[str]:
    """Yield lines, and keep those of the row that is being read."""
    for line in file:
        kept.append(line)
        yield line


def _key_of(row: str) -> tuple[tuple[str, str], ...] | None:
    """Return what a row's object says, without what is blank; None for a line that is no object."""
    try:
        found = json.loads(row)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    return tuple(sorted((name, value) for name, value in found.items() if isinstance(value, str) and value))
