"""The Delta tables of a folder: all as they were when the first was asked for, and changed only if they still are.

So what is written on the ground of what was read replaces nothing that another process wrote in between: Delta commits
it as the version after the one that was read, or not at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltalake import CommitProperties, DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, create_table_with_add_actions

from features.addresses import delta_address

LOG = "_delta_log"
ORIGIN = "habitus_origin"


class ConflictError(Exception):
    """Say that another process changed a table since it was read."""


class DeltaTables:
    """Know the version of each table at the first question about any of them; only own commits move it on."""

    def __init__(self, folder: Path) -> None:
        """Ask nothing yet."""
        self.folder = folder
        self._found: dict[str, int] | None = None
        self._opened: dict[str, DeltaTable] = {}

    @property
    def versions(self) -> dict[str, int]:
        """Return the version of each table that was ever written, by name."""
        if self._found is None:
            names = sorted(log.parent.name for log in self.folder.glob(f"*/{LOG}"))
            latest = {name: self._latest(name) for name in names}
            self._found = {name: version for name, version in latest.items() if version is not None}
        return self._found

    def renew(self) -> None:
        """Let the next question be the first: what others did since is seen from then on."""
        self._found = None
        self._opened.clear()

    def open(self, name: str, version: int | None = None) -> DeltaTable:
        """Open a table as it was when the first was asked for, or at an earlier version."""
        known = self.versions.get(name)
        if version not in (None, known):
            return DeltaTable(delta_address(self.folder / name), version=version)
        if name not in self._opened:
            self._opened[name] = DeltaTable(delta_address(self.folder / name), version=known)
        return self._opened[name]

    def origin(self, name: str) -> dict[str, Any]:
        """Return what the commit of a table says that the rows were made of; empty if it does not say."""
        return origin_of(self.folder / name, self.open(name).version())

    def create(
        self,
        name: str,
        schema: DeltaSchema,
        column: str | None,
        adds: list[AddAction],
        origin: Mapping[str, Any] | None,
        description: str,
    ) -> None:
        """Make a table that is not there, or one that is anew, with partitions by a column or none.

        Delta makes anew what is the latest by then; so between looking whether that is what was read, and that, nobody
        is to commit. Have the lake alone.
        """
        if name in self.versions:
            self.refuse_changed(name)
        with self._committing(name):
            create_table_with_add_actions(
                delta_address(self.folder / name),
                schema,
                adds,
                mode="overwrite" if name in self.versions else "error",
                partition_by=[column] if column else [],
                # Of properties, a commit that makes a table takes only those that Delta knows.
                description=description,
                commit_properties=_properties(origin),
            )

    def overwrite(
        self,
        name: str,
        schema: DeltaSchema,
        column: str | None,
        adds: list[AddAction],
        origin: Mapping[str, Any] | None,
        values: Sequence[str] | None,
    ) -> None:
        """Swap the files of a table, or of its partitions that have some values in their column, for others."""
        filters = [(column, "in", [*values])] if column is not None and values is not None else None
        with self._committing(name):
            self.open(name).create_write_transaction(
                [*adds],
                mode="overwrite",
                schema=schema,
                partition_by=[column] if column else [],
                partition_filters=filters,
                commit_properties=_properties(origin),
            )

    def note(self, name: str, origin: Mapping[str, Any]) -> None:
        """Say what the rows of a table, which stay, were made of."""
        with self._committing(name):
            table = self.open(name)
            table.create_write_transaction(
                [], mode="append", schema=table.schema(), commit_properties=_properties(origin)
            )

    def refuse_changed(self, name: str) -> None:
        """Raise ConflictError where another process changed a table since the first was asked for."""
        if self._latest(name) != self.versions.get(name):
            raise ConflictError(
                f"{self.folder / name} was changed by another process meanwhile, and is as that left it; "
                "run the same command again"
            )

    @contextmanager
    def _committing(self, name: str) -> Iterator[None]:
        try:
            yield
        except DeltaError:
            self.refuse_changed(name)
            raise
        self.versions[name] = self.versions.get(name, -1) + 1
        self._opened.pop(name, None)

    def _latest(self, name: str) -> int | None:
        """Return the version of a table now; None if it was never written."""
        commits = (file.stem for file in (self.folder / name / LOG).glob("*.json"))
        return max((int(number) for number in commits if number.isdigit()), default=None)


def origin_of(folder: Path, version: int) -> dict[str, Any]:
    """Return what a commit of the table in a folder says that its rows were made of; empty if it does not say."""
    # Not history(), which finds nothing where a folder's name has a number sign or a question mark.
    with (folder / LOG / f"{version:020}.json").open("rb") as actions:
        said: dict[str, Any] = next((one["commitInfo"] for one in map(json.loads, actions) if "commitInfo" in one), {})
    origin: dict[str, Any] = json.loads(said.get(ORIGIN, "{}"))
    return origin


def _properties(origin: Mapping[str, Any] | None) -> CommitProperties:
    """Have a commit say an origin, and be made against the version that was opened: Delta would try newer ones too."""
    metadata = {ORIGIN: json.dumps(origin, sort_keys=True)} if origin else None
    return CommitProperties(custom_metadata=metadata, max_commit_retries=0)
