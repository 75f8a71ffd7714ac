"""VERSIONS: what was published; HELD: what was not released; RELEASED: the assignments of the present version.

All are in the lake with AUDIENCES and CHANGES, and one commit makes a version the present one: that of AUDIENCES,
which names the version and the commit of RELEASED. What a killed process wrote before it is not read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.lake import Lake
from features.table import TIME, Table, stack
from publish.assignments import assignments_table, complete
from publish.audiences import AUDIENCES
from publish.changes import CHANGES, has_mark, without_names

VERSIONS = Table(
    name="versions",
    schema=ibis.schema(
        {
            "version": "!int64",
            "as_of": TIME.copy(nullable=False),
            "content": "!string",
            "manifest": "!string",
        }
    ),
    key=("version",),
)
"""A row for each version. `content` is the hash of its assignments, `manifest` the JSON that destinations add to."""
HELD = Table(
    name="held",
    schema=ibis.schema(
        {
            "label": "!string",
            "as_of": TIME.copy(nullable=False),
            "content": "!string",
            "findings": "!array<string>",
            "manifest": "!string",
        }
    ),
    key=("label",),
)
"""A row for each version that the brake held, until it, or a later one, is released."""


def released_table(labels: Sequence[str]) -> Table:
    """Return the contract of RELEASED for these labels: ASSIGNMENTS of everyone in the present version, by user."""
    return replace(assignments_table(labels), name="released", key=("user_id",), partition=None)


@dataclass(frozen=True)
class Version:
    """Hold what VERSIONS says of one."""

    version: int
    as_of: datetime
    content: str
    manifest: dict[str, Any]


def present(lake: Lake) -> Version | None:
    """Return the present version, None before the first."""
    number = lake.origin(AUDIENCES).get("version")
    if number is None:
        return None
    versions = lake.read(VERSIONS)
    [row] = versions.filter(versions.version == number).to_pyarrow().to_pylist()
    return Version(row["version"], row["as_of"], row["content"], json.loads(row["manifest"]))


def read_versions(lake: Lake) -> list[Version]:
    """Return all versions up to the present one, by number."""
    number = lake.origin(AUDIENCES).get("version", 0)
    versions = lake.read(VERSIONS)
    rows = versions.filter(versions.version <= number).order_by("version").to_pyarrow().to_pylist()
    return [Version(**(row | {"manifest": json.loads(row["manifest"])})) for row in rows]


def read_instants(lake: Lake) -> list[tuple[int, datetime]]:
    """Return the numbers and instants of all versions up to the present one, by number."""
    number = lake.origin(AUDIENCES).get("version", 0)
    versions = lake.read(VERSIONS)
    known = versions.filter(versions.version <= number).order_by("version").select("version", "as_of")
    return [(row["version"], row["as_of"]) for row in known.to_pyarrow().to_pylist()]


def read_released(lake: Lake, version: Version) -> ir.Table:
    """Read the assignments of the present version: everyone's, with its labels.

    That may have been released under an earlier version of the contract, without the columns that were added since.
    """
    table, number = released_table(version.manifest["labels"]), lake.origin(AUDIENCES)["released"]
    known = lake.stored(table, number).schema
    stored = replace(table, schema=ibis.schema({name: known[name] for name in table.schema if name in known}))
    return complete(lake.read(stored, version=number), table)


def read_changes(lake: Lake, until: int) -> ir.Table:
    """Read the CHANGES of all versions up to one."""
    changes = lake.read(CHANGES)
    return changes.filter(changes.version <= until)


def read_changes_after(lake: Lake, instants: Sequence[tuple[int, datetime]]) -> ir.Table:
    """Read the CHANGES of some versions, without those of the first; no others' files."""
    changes = lake.read(CHANGES, only={as_of for _, as_of in instants[1:]})
    return changes.filter(changes.version.between(instants[0][0] + 1, instants[-1][0]))


def commit(lake: Lake, version: Version, assignments: ir.Table, audiences: ir.Table, changes: ir.Table) -> Version:
    """Make a version the present one; what its tables say of later ones, which were never committed, goes.

    Return it as `present` does, so that destinations get the same bytes of it now and after a crash.
    """
    lake.claim(AUDIENCES)
    earlier = lake.read(CHANGES)
    never = earlier.filter(earlier.version >= version.version).select("as_of").distinct()
    instants = sorted({version.as_of, *never.as_of.to_pyarrow().to_pylist()})
    kept = lake.read(CHANGES, only=instants)
    lake.write(CHANGES, stack(kept.filter(kept.version < version.version), changes), only=instants)
    row = {"version": version.version, "as_of": version.as_of, "content": version.content}
    row["manifest"] = json.dumps(version.manifest, ensure_ascii=False, sort_keys=True)
    versions = lake.read(VERSIONS)
    lake.write(VERSIONS, stack(versions.filter(versions.version < version.version), _rows(VERSIONS, [row])))
    released = released_table(version.manifest["labels"])
    lake.write(released, assignments)
    lake.write(AUDIENCES, audiences, origin={"version": version.version, "released": lake.version(released)})
    committed = present(lake)
    assert committed is not None
    return committed


def hide_names(lake: Lake, marks: Sequence[str]) -> None:
    """Put ids in the place of names in CHANGES that have one of some marks: of before these told what is personal."""
    changes = lake.read(CHANGES)
    instants = changes.filter(has_mark(changes, marks)).as_of.to_pyarrow().unique().to_pylist() if marks else []
    if instants:
        lake.write(CHANGES, without_names(lake.read(CHANGES, only=instants), marks), only=instants)


@dataclass(frozen=True)
class Held:
    """Hold what HELD says of a version that was not released."""

    label: str
    as_of: datetime
    content: str
    findings: list[str]
    manifest: dict[str, Any]


def label_of(as_of: datetime, content: str) -> str:
    """Return what people call a version that is held: its instant and some of its content's hash."""
    return f"{as_of:%Y-%m-%dT%H%M%SZ}-{content[:8]}"


def read_held(lake: Lake) -> list[Held]:
    """Return the versions that are held, by instant."""
    rows = lake.read(HELD).order_by("as_of", "label").to_pyarrow().to_pylist()
    return [Held(**(row | {"manifest": json.loads(row["manifest"])})) for row in rows]


def hold(lake: Lake, held: Held) -> None:
    """Note that a version was held."""
    others = [one for one in read_held(lake) if one.label != held.label]
    _write_held(lake, [*others, held])


def unhold(lake: Lake, as_of: datetime) -> None:
    """Forget the versions held up to an instant, which a released one makes needless."""
    held = read_held(lake)
    kept = [one for one in held if one.as_of > as_of]
    if kept != held:
        _write_held(lake, kept)


def _write_held(lake: Lake, held: Sequence[Held]) -> None:
    rows = [vars(one) | {"manifest": json.dumps(one.manifest, ensure_ascii=False, sort_keys=True)} for one in held]
    lake.write(HELD, _rows(HELD, rows))


def _rows(table: Table, rows: list[dict[str, Any]]) -> ir.Table:
    return ibis.memtable(pa.Table.from_pylist(rows, schema=table.schema.to_pyarrow()))
