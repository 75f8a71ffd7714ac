"""Unusable rows: those that cannot be read, or lack user, time or name. Too many of them stop an ingest."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir

from features.events import REASONS
from features.placeholders import in_words
from features.places import find_lines
from features.sources import SourceError, row_text

UNUSABLE = (
    "malformed_row",
    "no_user",
    "inexact_id",
    "no_time",
    "unparseable_time",
    "time_out_of_range",
    "no_event_name",
    "unparseable_number",
    "amount_out_of_range",
)
"""The reasons that files or their mapping are to blame for; a row that is rejected for another was read well."""
EXAMPLES = 3
CANDIDATES = 1000
"""How many rows of a reason are looked for in a file; those that come first in it are the examples."""
PARQUET = b"PAR1"


def refuse_unusable(
    parts: Sequence[ir.Table],
    rejected: ir.Table,
    accepted: int,
    paths: Mapping[str, Path],
    share_max: float,
    placeholders: Mapping[str, int],
) -> None:
    """Stop where more than a share of all rows is unusable.

    `parts` and `rejected` are as `sources.read_events` and `events.accept` give them; `paths` are the files by their
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
    examples = "; ".join(_examples(parts, rejected, frequent[:EXAMPLES], paths))
    enough = -(-count * 100 // read) / 100  # rounded up, and so that it is enough
    raise SourceError(
        f"events.files: {count:,} of {read:,} rows cannot be used, and events.rejected_max is {share_max:g}: nothing "
        f"was stored ({told}), such as {examples}; mend the files or what [events.columns] makes of them, or, if these "
        f"rows may be left out, set events.rejected_max = {enough:g}"
    )


def find_rows(parts: Sequence[ir.Table], source_file: str, rows: list[str]) -> list[int]:
    """Find the first places, from 1, at which a file that has no lines holds some rows, in order."""
    found: list[int] = []
    for part in parts:
        of_file = part.filter(part.source_file == source_file)
        numbered = of_file.select(number=ibis.row_number() + 1, text=row_text(of_file))
        matching = numbered.filter(numbered.text.isin(rows)).order_by("number").limit(EXAMPLES)
        found += matching.number.to_pyarrow().to_pylist()
    return found


def _count(unusable: Mapping[str, int], reason: str, placeholders: Mapping[str, int]) -> str:
    of_which = in_words(placeholders)
    return f"{unusable[reason]:,}" + (f", of which {of_which}" if reason == "no_user" and of_which else "")


def _examples(
    parts: Sequence[ir.Table], rejected: ir.Table, reasons: list[str], paths: Mapping[str, Path]
) -> list[str]:
    """Name some rows by file and line: one of each reason, then others of the most frequent."""
    places = {reason: _places(parts, rejected.filter(rejected.reason == reason), paths) for reason in reasons}
    rounds = [(number, reason) for number in range(EXAMPLES) for reason in reasons if number < len(places[reason])]
    return [f"{places[reason][number]}: {REASONS[reason]}" for number, reason in rounds[:EXAMPLES]]


def _places(parts: Sequence[ir.Table], rejected: ir.Table, paths: Mapping[str, Path]) -> list[str]:
    """Name rows of the first file that has any; the file alone where none is found in it."""
    name = rejected.source_file.min().to_pyarrow().as_py()
    # By an id that is a hash: so they are from all over the file, and the first of them near its beginning.
    sample = rejected.filter(rejected.source_file == name).order_by("rejected_id").limit(CANDIDATES)
    rows: list[str] = [row for row in sample.row.to_pyarrow().to_pylist() if row is not None]
    path = paths[name]
    if _is_parquet(path):
        return [f"{name}, row {number:,}" for number in find_rows(parts, name, rows)] or [name]
    return [f"{name}, line {number:,}" for number in find_lines(path, rows, EXAMPLES)] or [name]


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(PARQUET)) == PARQUET
