"""Damage: which file of a lake is missing or broken, and what mends it.

Delta and DuckDB name neither the table nor a remedy, and some damage they take for data: an empty entry of a log is a
commit of nothing to them, and a table without a log was never written. So whoever opens a lake looks at the logs first,
and an error that may come of a broken file has all files looked at.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from features.addresses import delta_address
from features.delta import LOG, origin_of
from features.lake import CONTRACT, digest_of

HINT = "_last_checkpoint"
ENTRY = re.compile(r"(\d{20})\.json")
CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\b.*\.parquet")
INSTANT = re.compile(r"as_of=(\d{4}-\d\d-\d\d)T(\d\d)(\d\d)(\d\d\.\d+Z)")
ENGINES = ("_duckdb", "pyarrow", "_internal", "pyspark", "py4j")
"""The packages whose errors may come of a broken file; `_internal` is what deltalake calls its own."""
MADE_BY = {
    **dict.fromkeys(("events", "rejected", "files", "attributes"), "ingest"),
    **dict.fromkeys(("sessions", "session_aliases"), "sessions"),
    **dict.fromkeys(("snapshots", "labels"), "snapshot"),
    "assignments": "score",
    "held": "publish",
    **dict.fromkeys(("changes", "versions", "released", "audiences", "erasures"), None),
}
"""By table, the command that makes it again; None where nothing does, since only the table knows what was then."""
AT_INSTANT = ("snapshots", "assignments")
"""The tables of which a command makes one instant again, and leaves the others alone."""
NEEDED_BY = {"changes": "versions", "versions": "released", "released": "audiences"}
"""By table, one that is only there where that one is."""
MADE_OF = {"sessions": ("events", "events_version"), "audiences": ("released", "released")}
"""By table, another, a version of which it is made of, and under which key its last commit says so."""


class DamagedError(Exception):
    """Name a table and its file that is missing or broken, and what mends it."""


@dataclass(frozen=True)
class Damage:
    """Say what is wrong with a file of a table; what mends that file in particular, where it is no matter of data."""

    table: str
    file: Path
    what: str
    mend: str | None = None


def check(lake: Path, config: Path | str) -> None:
    """Look for what would be read as if nothing were wrong, by the names and sizes of the logs' files.

    Raises DamagedError, which names a configuration's commands.
    """
    for found in (*_logs_damage(lake), *_find_gone(lake)):
        raise DamagedError(_explain(lake, found, config))


def may_be_of_damage(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it came from, may come of a broken file."""
    if error is None:
        return False
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return not modules.isdisjoint(ENGINES) or may_be_of_damage(error.__cause__)


def find_damage(lake: Path, config: Path | str, *, in_content: bool) -> DamagedError | None:
    """Look at all files of all tables; return the first damage that there is, None where a lake is whole.

    Names, sizes and footers are compared, and `in_content` all bytes, which takes as long as to read them.
    """
    for found in _find(lake, in_content):
        return DamagedError(_explain(lake, found, config))
    return None


def _find(lake: Path, in_content: bool) -> Iterator[Damage]:
    yield from _logs_damage(lake)
    yield from _find_gone(lake)
    tables = [folder for folder in _tables(lake) if _entries(folder / LOG) or _checkpoints(folder / LOG)]
    for folder in tables:
        yield from _entries_damage(folder)
    for folder in tables:
        yield from _files_damage(folder, None, in_content=False)
    yield from _lacking_versions(lake)
    for folder in tables if in_content else ():
        yield from _files_damage(folder, None, in_content=True)
    for name, (other, key) in MADE_OF.items():
        version = _origin(lake / name).get(key)
        if version is not None and (lake / other / LOG).is_dir() and _version(lake / other) != version:
            yield from _files_damage(lake / other, version, in_content)


# --- logs ---


def _tables(lake: Path) -> list[Path]:
    return sorted(path.parent for path in lake.glob(f"*/{LOG}"))


def _logs_damage(lake: Path) -> Iterator[Damage]:
    """Find logs that lack an entry or have an empty one, and folders that are none."""
    for path in [lake / name for name in MADE_BY] + [folder / LOG for folder in _tables(lake)]:
        if path.exists() and not path.is_dir():
            yield Damage(path.parent.name if path.name == LOG else path.name, path, "is no folder")
            return
    for folder in _tables(lake):
        log = folder / LOG
        try:
            entries, checkpoints = _entries(log), _checkpoints(log)
        except PermissionError:
            yield Damage(folder.name, log, "may not be read", "let this user read it")
            return
        begin = max(checkpoints) + 1 if checkpoints else 0
        for number in range(begin, max(entries, default=-1) + 1):
            file = log / f"{number:020}.json"
            if not file.exists():
                yield Damage(folder.name, file, "is missing")
            elif not file.is_file():
                yield Damage(folder.name, file, "is no file")
            elif not file.stat().st_size:
                yield Damage(folder.name, file, "is empty")
        yield from _hint_damage(log, entries, checkpoints)


def _entries(log: Path) -> list[int]:
    return [int(found[1]) for name in os.listdir(log) if (found := ENTRY.fullmatch(name))]


def _checkpoints(log: Path) -> list[int]:
    return [int(found[1]) for name in os.listdir(log) if (found := CHECKPOINT.fullmatch(name))]


def _hint_damage(log: Path, entries: list[int], checkpoints: list[int]) -> Iterator[Damage]:
    hint = log / HINT
    try:
        version = json.loads(hint.read_bytes())["version"]
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or one that Delta does without
        return
    if version not in checkpoints:
        whole = bool(checkpoints) or 0 in entries
        what = f"names version {version}, of which there is no checkpoint"
        yield Damage(log.parent.name, hint, what, "remove it: the log says the same without it" if whole else None)


def _entries_damage(folder: Path) -> Iterator[Damage]:
    """Find entries and checkpoints of a log that are no JSON and no Parquet."""
    log = folder / LOG
    entries, checkpoints = _entries(log), _checkpoints(log)
    whole = len(entries) == max(entries, default=-1) + 1
    for file in sorted(log.glob("*.checkpoint*.parquet")):
        if (what := _footer_damage(file)) is not None:
            mend = f"remove it and {HINT} beside it: the log says the same without them" if whole else None
            yield Damage(folder.name, file, what, mend)
    for number in sorted(entries):
        file = log / f"{number:020}.json"
        if number <= max(checkpoints, default=-1):
            continue
        try:
            lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        except PermissionError:
            yield Damage(folder.name, file, "may not be read", "let this user read it")
        except (OSError, ValueError):
            yield Damage(folder.name, file, "is broken")
        else:
            if not all(isinstance(line, dict) for line in lines):
                yield Damage(folder.name, file, "is broken")


def _find_gone(lake: Path) -> Iterator[Damage]:
    """Find tables that nothing can make again and that are gone: to a program without them, nothing ever was."""
    for name, other in NEEDED_BY.items():
        if not _was_written(lake / name) and _was_written(lake / other) and not _is_only_claimed(lake / other):
            yield _gone(lake, name)
    if (
        _was_written(lake / "versions")
        and not _was_written(lake / "audiences")
        and max(_rows(lake, "versions"), default=0) > 1
    ):
        yield _gone(lake, "audiences")  # a second version is written when the first is committed
    if not _was_written(lake / "erasures") and any(map(_is_completed, lake.glob("receipts/[!p]*.json"))):
        yield _gone(lake, "erasures")


def _is_only_claimed(folder: Path) -> bool:
    """Tell a table that a publish made and did not come to write: it is the last that it writes."""
    return folder.name == "audiences" and "version" not in _origin(folder)


def _gone(lake: Path, name: str) -> Damage:
    return Damage(name, lake / name / LOG if (lake / name).exists() else lake / name, "is missing or empty")


def _was_written(folder: Path) -> bool:
    log = folder / LOG
    return log.is_dir() and bool(_entries(log) or _checkpoints(log))


def _is_completed(receipt: Path) -> bool:
    return json.loads(receipt.read_text()).get("completed_at") is not None


# --- files ---


def _files_damage(folder: Path, version: int | None, in_content: bool) -> Iterator[Damage]:
    """Find files of a version that are not there, or not as they were written: they are named by their bytes."""
    try:
        table = DeltaTable(delta_address(folder), version=version)
        actions = pa.table(table.get_add_actions()).select(["path", "size_bytes"]).to_pylist()
        said = table.metadata().description or ""
        contract = int(said.removeprefix(CONTRACT)) if said.startswith(CONTRACT) else 1
    except Exception:
        yield Damage(folder.name, folder / LOG, "cannot be read" if version is None else f"lacks version {version}")
        return
    for action in actions:
        file, size_bytes = folder / action["path"], action["size_bytes"]
        try:
            what = _file_damage(file, size_bytes) or _footer_damage(file)
            if what is None and in_content and digest_of(file, contract) != file.stem:
                what = "is broken"
        except PermissionError:
            yield Damage(folder.name, file, "may not be read", "let this user read it")
            continue
        if what is not None:
            earlier = "remove it, and run `habitus sessions {}`: only sessions of before were made of it"
            yield Damage(folder.name, file, what, earlier if version is not None and folder.name == "events" else None)


def _file_damage(file: Path, size_bytes: int) -> str | None:
    if not file.exists():
        return "is missing"
    if not file.is_file():
        return "is no file"
    found_bytes = file.stat().st_size
    return None if found_bytes == size_bytes else f"is {found_bytes:,} bytes long, and was {size_bytes:,}"


def _footer_damage(file: Path) -> str | None:
    try:
        pq.read_metadata(file)
    except PermissionError:
        raise
    except (OSError, pa.ArrowException):
        return "is broken"
    return None


# --- what tables say of each other ---


def _lacking_versions(lake: Path) -> Iterator[Damage]:
    """Find tables whose log ends before what another was made of."""
    name, (other, key) = "audiences", MADE_OF["audiences"]
    version = _origin(lake / name).get(key)
    if version is not None and _was_written(lake / other) and _version(lake / other) < version:
        yield Damage(
            other, lake / other / LOG, f"ends with version {_version(lake / other)}, and {name} name {version}"
        )
    present = _origin(lake / name).get("version")
    if present is not None and present not in _rows(lake, "versions"):
        yield Damage("versions", lake / "versions" / LOG, f"lacks version {present}, which is the present one")


def _origin(folder: Path) -> dict[str, Any]:
    if not _was_written(folder):
        return {}
    return origin_of(folder, _version(folder))


def _version(folder: Path) -> int:
    return DeltaTable(delta_address(folder)).version()


def _rows(lake: Path, name: str) -> list[int]:
    """Return the versions in VERSIONS."""
    folder = lake / name
    paths = pa.table(DeltaTable(delta_address(folder)).get_add_actions())["path"].to_pylist()
    files = (pq.ParquetFile(folder / path) for path in paths)
    return [number for file in files for number in file.read(["version"])["version"].to_pylist()]


# --- what to say ---


def _explain(lake: Path, damage: Damage, config: Path | str) -> str:
    said = f"{damage.table}: {damage.file} {damage.what}: "
    if damage.mend is not None:
        return said + damage.mend.format(config)
    back = "put it back from a backup"
    command = MADE_BY.get(damage.table)
    if command is None:
        return f"{said}{back}; nothing else can make it again"
    instant = INSTANT.search(str(damage.file.parent))
    if damage.table in AT_INSTANT and instant is not None:
        as_of = f"{instant[1]}T{instant[2]}:{instant[3]}:{instant[4]}".replace(".000000Z", "Z")
        return f"{said}{back}, or make it again with `habitus {command} {config} --as-of {as_of}`"
    moved = " and ".join(str(lake / name) for name in (damage.table, *MADE_WITH.get(damage.table, ())))
    result = AGAIN.get(damage.table, ", which makes the table again")
    return f"{said}{back}, or move {moved} elsewhere and run `habitus {command} {config}`{result}"


MADE_WITH = {"events": ("sessions",)}
"""What says of which version of a table it is made, and would take one that is made again for that."""
AGAIN = {
    **dict.fromkeys(("events", "rejected", "files", "attributes"), ", which reads all source files again"),
    "session_aliases": ", after which earlier ids of sessions are not told any more",
}
