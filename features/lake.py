"""DOOR: the lake, a folder of Delta tables, and the engine that reads and writes them.

Engines read and write plain Parquet, the `deltalake` library commits. A table changes by one commit, so a reader sees
the old rows or the new, never half; a crash leaves files that no version names. Files are named by their bytes, so
that writing the same rows again commits nothing. A lake shows its tables as they were when it was first asked for one,
and what it writes itself.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from features import engines
from features.delta import LOG, DeltaTables
from features.engines import Engine, half_of_memory_bytes
from features.table import TIME, ContractError, Table

DAY = "day"
DAY_OF = "day of "
INSTANT_IN_PATH = "%Y-%m-%dT%H%M%S.%fZ"
STAGING = ".staging-"
CONTRACT = "habitus contract "
"""What a table's description says before the number of its contract; without, it is the first."""
MOST_ROWS_AT_ONCE = 2_000_000
WAIT_S = 60
"""For how long those are waited for who have a lake open and do not change it, such as notebooks."""
POLL_S = 0.2


class LakeInUseError(Exception):
    """Say that others work on a lake that has to be had alone."""


class MovedError(Exception):
    """Say that a folder was moved or removed while it was worked in."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} was moved or removed while this ran, and nothing more is written there; "
            "run the same command again where it is now"
        )


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Lend a folder beside what is to be written, on the same disk; gone at the end.

    What killed processes of this machine left there goes too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{STAGING}*"):
        process = left.name.removeprefix(STAGING).partition("-")[0]
        if not (process.isdigit() and is_running(int(process))):
            shutil.rmtree(left, ignore_errors=True)
    staging = folder / f"{STAGING}{os.getpid()}-{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_running(process: int) -> bool:
    """Tell whether a process of this machine is there, by its number."""
    try:
        os.kill(process, 0)  # asks only
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Lake:
    """Hold the tables under a folder and the engine that works on them; close it, or use it in `with`.

    What others commit after its first question it does not see: open another for that. What it writes to a table that
    they changed raises ConflictError, and the table stays as they left it.
    """

    def __init__(
        self,
        folder: Path,
        memory_limit_bytes: int | None = None,
        engine: Engine | None = None,
        *,
        held: bool = True,
    ) -> None:
        """Work with an engine: the given one, or else DuckDB.

        DuckDB takes at most so much memory, half of the machine's without a limit, and puts beside the tables what is
        more. Of another engine's memory the lake knows nothing. Where it is not `held`, another may have the lake alone
        meanwhile, and files may be gone that are about to be read.
        """
        self.memory_limit_bytes = None if engine else memory_limit_bytes or half_of_memory_bytes()
        self.folder = folder
        self._tables = DeltaTables(folder)
        self._is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        # On the folder itself, so that reading leaves no file. Some network disks lock no folders.
        self._handle: int | None = os.open(folder, os.O_RDONLY)
        if held:
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_SH)
        spill_folder = folder / f"{STAGING}{os.getpid()}-spilled"
        self.engine: Any = engine or engines.connect(self.memory_limit_bytes, spill_folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine; expressions made with it no longer run."""
        self.engine.disconnect()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._is_new:
            with contextlib.suppress(OSError):  # something was written
                self.folder.rmdir()

    @contextlib.contextmanager
    def alone(
        self,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[None]:
        """Have the lake alone: wait for those who have it open for at most so long; who opens it meanwhile waits.

        What they did until then is seen from here on. Raises LakeInUseError where they do not close it by then. Open no
        second one in this process meanwhile.
        """
        assert self._handle is not None
        until = clock() + wait_s
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock() >= until:
                    fcntl.flock(self._handle, fcntl.LOCK_SH)
                    raise LakeInUseError(
                        f"{self.folder} is in use by another process, and was after {wait_s:g} s still: wait for its "
                        "stage to end, or close the notebook, then run the same command again"
                    ) from None
                sleep(POLL_S)
            except OSError:  # a disk that locks no folders
                break
        self._tables.renew()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_SH)

    def renew(self) -> None:
        """See from now on what other processes have written since the lake was first asked for a table."""
        self._tables.renew()

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        self._check_place()
        with staging_folder(self.folder) as staging:
            yield staging

    def _check_place(self) -> None:
        """Raise MovedError where the folder of this name is no longer the one that was opened."""
        if self._handle is None:
            return
        try:
            is_here = os.path.samestat(os.stat(self.folder), os.fstat(self._handle))
        except FileNotFoundError:
            is_here = False
        if not is_here:
            raise MovedError(self.folder)

    def tables(self) -> list[str]:
        """List the names of the tables that were ever written."""
        return sorted(self._tables.versions)

    def stored(self, table: Table, version: int | None = None) -> Table:
        """Return a table's contract with the columns it has, be they those of another configuration or version."""
        found = self._tables.open(table.name, version)
        schema = ibis.Schema.from_pyarrow(pa.schema(found.schema().to_arrow()))
        is_by_day = _partition_column(table) == DAY
        columns = {name: dtype for name, dtype in schema.items() if not (is_by_day and name == DAY)}
        return replace(table, schema=ibis.schema(columns), contract=_contract_of(found))

    def contract(self, table: Table) -> int | None:
        """Return the number of the contract that a table is under; None if it was never written."""
        if not self.has(table):
            return None
        return _contract_of(self._tables.open(table.name))

    def find_contract(self, name: str) -> Table:
        """Return what the lake itself knows of a table: its columns and its partition; its key may be all columns.

        Raises ContractError where its rows are in partitions by day: of which column, the lake does not know.
        """
        partition = self._tables.open(name).metadata().partition_columns
        if DAY in partition:
            raise ContractError(f"{name}: is a table that this version of Habitus does not know; upgrade Habitus")
        table = self.stored(Table(name, ibis.schema({}), key=(), partition=next(iter(partition), None)))
        ordered = [column for column, dtype in table.schema.items() if not dtype.is_nested()]
        return replace(table, key=tuple(ordered))

    def has(self, table: Table) -> bool:
        """Tell whether a table was ever written."""
        return table.name in self._tables.versions

    def version(self, table: Table) -> int:
        """Return the number of a table's latest commit."""
        return self._tables.open(table.name).version()

    def origin(self, table: Table) -> dict[str, Any]:
        """Return what the latest commit says the rows were made of; empty if it does not say, or there is none."""
        return self._tables.origin(table.name) if self.has(table) else {}

    def read(self, table: Table, version: int | None = None, only: Collection[datetime] | None = None) -> ir.Table:
        """Return the rows of a table or of its partitions `only`; of its latest or an earlier version.

        None if it was never written.
        """
        files = self.files(table, version, only)
        if not files:
            return ibis.memtable(pa.Table.from_pylist([], schema=table.schema.to_pyarrow()), schema=table.schema)
        return table.check(self.engine.read_files(files, table.schema))

    def files(self, table: Table, version: int | None = None, only: Collection[datetime] | None = None) -> list[str]:
        """List the Parquet files of a table or of its partitions `only`; of its latest or an earlier version."""
        scope = None if only is None else {_folder_of(table, instant) for instant in only}
        # Not file_uris(), which are encoded where a folder's name has a space or an umlaut.
        return sorted(
            str(self.folder / table.name / path)
            for path in self._row_counts(table, version)
            if scope is None or Path(path).parent.name in scope
        )

    def partitions(self, table: Table, version: int | None = None) -> dict[datetime, int]:
        """Return how many rows each partition holds, by instant (a day's is its midnight), in order; none is empty."""
        row_counts: dict[datetime, int] = {}
        for path, row_count in self._row_counts(table, version).items():
            instant = _instant_of(table, Path(path).parent.name)
            row_counts[instant] = row_counts.get(instant, 0) + row_count
        return dict(sorted(row_counts.items()))

    def row_count(self, table: Table) -> int:
        """Return how many rows a table holds, without reading them."""
        return sum(self._row_counts(table).values())

    def changed(self, table: Table, since: int, until: int | None = None) -> list[datetime] | None:
        """List the partitions that are not as they were at an earlier version.

        They are those of the latest version, or of the one given by `until`. None where the earlier version is gone, or
        was under another contract.
        """
        try:
            before = _paths_by_partition([*self._row_counts(table, since)])
            after = _paths_by_partition([*self._row_counts(table, until)])
        except (ContractError, DeltaError, TableNotFoundError):
            return None
        if any(not (self.folder / table.name / path).exists() for paths in before.values() for path in paths):
            return None
        parts = {part for part in before.keys() | after.keys() if before.get(part) != after.get(part)}
        return sorted(_instant_of(table, part) for part in parts)

    def write(
        self,
        table: Table,
        rows: ir.Table,
        only: Collection[datetime] | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> bool:
        """Replace a table's rows, or only its partitions `only`, in one commit; tell whether anything changed.

        `origin` says what the rows were made of, for `origin` to return. Raises ContractError where a column, type,
        required value or key is not as the contract says, or the table is under another contract, and ConflictError
        where another process changed the table since it was read; it then stays as it was. A table whose columns have
        changed is replaced as a whole; its history remains.
        """
        with self._staging() as staging:
            with self._kept(table, table.check(rows)) as kept:
                self._check_rows(table, kept)
                adds = self._stage(table, kept, staging)
            if only is not None:
                _check_scope(table, adds, only)
            return self._commit(table, adds, only, origin, staging)

    def write_in_parts(
        self, table: Table, parts: Iterable[tuple[ir.Table, datetime]], origin: Mapping[str, Any] | None = None
    ) -> bool:
        """Replace the rows of a table by day, as `write` does, by parts that need not fit into memory together.

        A part is rows and the day from which on the later parts' rows are: what is before is complete.
        """
        adds: list[AddAction] = []
        with self._staging() as staging, contextlib.ExitStack() as waiting:
            before: ir.Table | None = None
            for part, complete_until in parts:
                rows = table.check(part)
                with self._kept(table, rows if before is None else rows.union(before)) as kept:
                    waiting.close()
                    self._check_rows(table, kept)
                    is_complete = kept[_partitioned_by(table)] < ibis.literal(complete_until, TIME)
                    adds += self._stage(table, kept.filter(is_complete), staging)
                    before = waiting.enter_context(self._kept(table, kept.filter(~is_complete)))
            if before is not None:
                adds += self._stage(table, before, staging)
            return self._commit(table, adds, None, origin, staging)

    def note(self, table: Table, origin: Mapping[str, Any]) -> None:
        """Say what the rows of a table, which stay, were made of."""
        if origin != self.origin(table):
            self._tables.note(table.name, origin)

    def claim(self, table: Table) -> None:
        """Commit to a table before others are changed that have to fit it, as it is to be changed last.

        Of two who do so at once, only one gets to that last commit: the other, whose changes may lie across, is refused
        and begins again. The rows of the table stay, and what they were made of.
        """
        if not self.has(table):
            self.write(table, self.read(table))
        self.note(table, {**self.origin(table), "claimed_from": self.version(table)})

    def remove(
        self, table: Table, values: ir.Table, column: str = "user_id", origin: Mapping[str, Any] | None = None
    ) -> int:
        """Remove the rows that have one of some values in a column, in one commit; return how many.

        Only the partitions that hold such rows are written, not all at once, with the columns that they have, whatever
        the contract says. `origin` is as for `write`, and stays as it was where it is not given. Without such rows
        nothing is committed.
        """
        if not self.has(table):
            return 0
        stored = self.stored(table)
        found = self.read(stored).semi_join(values, column)
        by_partition = _count_by_partition(stored, found)
        if not by_partition:
            return 0
        origin = self.origin(table) if origin is None else origin
        with self._staging() as staging:
            adds: list[AddAction] = []
            scopes = [None] if table.partition is None else self._in_scopes(stored, by_partition)
            for scope in scopes:
                rows = self.read(stored, only=scope).anti_join(values, column)
                with self._kept(stored, rows) as kept:
                    adds += self._stage(stored, kept, staging)
            self._commit(stored, adds, None if table.partition is None else by_partition, origin, staging)
        return sum(by_partition.values())

    def upgrade(self, table: Table, step: Callable[[ir.Table], ir.Table]) -> None:
        """Bring a table of an earlier contract to the present one: columns, rows and number change in one commit.

        `step` makes rows of the present contract from those that are there. It is given some partitions at a time, and
        leaves each row in its own. `origin` stays as it was.
        """
        stored = self.stored(table)
        with self._staging() as staging:
            adds: list[AddAction] = []
            for scope in [None] if table.partition is None else self._in_scopes(stored, self.partitions(stored)):
                with self._kept(table, table.check(step(self.read(stored, only=scope)))) as kept:
                    self._check_rows(table, kept)
                    made = self._stage(table, kept, staging)
                if scope is not None:
                    _check_scope(table, made, scope)
                adds += made
            self._create(table, adds, self.origin(table), staging)

    def purge(self, table: Table) -> int:
        """Delete the files that the present version does not name, so that nothing of before is left; return how many.

        Earlier versions can no longer be read. Have the lake alone: what others are about to commit has no name yet.
        Delta's own vacuum would do it with two commits more, and so hide the origin of the last.
        """
        self._tables.refuse_changed(table.name)  # whose new files have no name here
        named = {self.folder / table.name / path for path in self._row_counts(table)}
        unnamed = [file for file in self._data_files(table) if file not in named]
        for file in unnamed:
            file.unlink()
        return len(unnamed)

    def _data_files(self, table: Table) -> list[Path]:
        folder = self.folder / table.name
        return [file for file in folder.rglob("*.parquet") if LOG not in file.relative_to(folder).parts]

    def _in_scopes(self, table: Table, instants: Iterable[datetime]) -> list[list[datetime]]:
        """Put partitions together, in order, as long as they are few rows."""
        row_counts = self.partitions(table)
        scopes: list[list[datetime]] = []
        rows = 0
        for instant in sorted(instants):
            if not scopes or rows + row_counts[instant] > MOST_ROWS_AT_ONCE:
                scopes.append([])
                rows = 0
            scopes[-1].append(instant)
            rows += row_counts[instant]
        return scopes

    def content(self, table: Table, only: Collection[datetime] | None = None) -> str:
        """Return a hash of what a table, or its partitions `only`, hold: equal rows, equal hash."""
        names = sorted(Path(file).name for file in self.files(table, None, only))
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def _row_counts(self, table: Table, version: int | None = None) -> dict[str, int]:
        """Return the files of a version, and how many rows each holds."""
        self._check_place()  # or what is not there would be taken for empty
        if not self.has(table):
            return {}
        actions = pa.table(self._open(table, version).get_add_actions())
        return dict(zip(actions["path"].to_pylist(), actions["num_records"].to_pylist(), strict=True))

    def _open(self, table: Table, version: int | None = None) -> DeltaTable:
        """Open a table. Raises ContractError where it is under another contract than this program's."""
        found = self._tables.open(table.name, version)
        if _contract_of(found) != table.contract:
            raise table.refuse(_contract_of(found))
        return found

    @contextlib.contextmanager
    def _kept(self, table: Table, rows: ir.Table) -> Iterator[ir.Table]:
        """Run a query into a table that is gone at the end."""
        name = f"rows_{uuid.uuid4().hex}"
        try:
            yield self.engine.keep(name, rows, _order(table))
        finally:
            self.engine.drop_table(name, force=True)

    def _stage(self, table: Table, kept: ir.Table, staging: Path) -> list[AddAction]:
        """Write the rows of each partition to a file, in their order; return what a commit would add."""
        folder = staging / uuid.uuid4().hex
        folder.mkdir()
        at = _partitioned_by(table) if table.partition else None
        by_day = _partition_column(table) == DAY
        files = self.engine.write_files(kept, at, by_day=by_day, order=_order(table), folder=folder)
        return [
            _name_by_content(table, _folder_of(table, instant) if instant else "", file, staging)
            for instant, file in files.items()
        ]

    def _check_rows(self, table: Table, kept: ir.Table) -> None:
        nulls = {name: kept[name].isnull().sum() for name in table.required}
        [counts] = kept.agg(habitus_rows=kept.count(), **nulls).to_pyarrow().to_pylist()
        repeated = counts.pop("habitus_rows") - kept.select(*table.key).distinct().count().to_pyarrow().as_py()
        wrong = [f"{count} rows have no {column}" for column, count in counts.items() if count]
        wrong += [f"{repeated} rows repeat a key ({', '.join(table.key)})"] if repeated else []
        if wrong:
            raise ContractError(f"{table.name}: {'; '.join(wrong)}")

    def _commit(
        self,
        table: Table,
        adds: list[AddAction],
        only: Collection[datetime] | None,
        origin: Mapping[str, Any] | None,
        staging: Path,
    ) -> bool:
        """Swap in what differs from the version that was read."""
        self._check_place()
        self._tables.refuse_changed(table.name)  # before files are moved that nothing will name
        if not self.has(table):
            self._create(table, adds, origin, staging)
            return True
        schema, column = _delta_schema(table), _partition_column(table)
        current = self._open(table)
        if current.metadata().partition_columns != ([column] if column else []):
            self._create(table, adds, origin, staging)
            return True
        if current.schema() != schema:
            _move(adds, staging, self.folder / table.name)
            self._tables.overwrite(table.name, schema, column, adds, origin, None)
            return True
        before = _paths_by_partition([*self._row_counts(table)])
        after = _paths_by_partition([add.path for add in adds])
        scope = before.keys() | after.keys() if only is None else {_folder_of(table, instant) for instant in only}
        changed = {part for part in scope if before.get(part) != after.get(part)}
        # Also what is there already, of the same bytes if it is whole: so what is broken is mended.
        _move(adds, staging, self.folder / table.name)
        if not changed:
            if origin:
                self.note(table, origin)
            return False
        fresh = [add for add in adds if Path(add.path).parent.name in changed]
        values = [_value_of(table, part) for part in sorted(changed)] if column else None
        self._tables.overwrite(table.name, schema, column, fresh, origin, values)
        return True

    def _create(self, table: Table, adds: list[AddAction], origin: Mapping[str, Any] | None, staging: Path) -> None:
        """Make a table, or make it anew, under its contract."""
        self._tables.refuse_changed(table.name)
        _move(adds, staging, self.folder / table.name)
        description = f"{CONTRACT}{table.contract}"
        self._tables.create(table.name, _delta_schema(table), _partition_column(table), adds, origin, description)


# A partition's folder is "day=2024-01-31" or "as_of=2024-01-31T063000.000000Z": what DuckDB and file systems take as
# it is. Delta's log holds the value as the protocol writes it.


def _contract_of(found: DeltaTable) -> int:
    text = found.metadata().description or ""
    return int(text.removeprefix(CONTRACT)) if text.startswith(CONTRACT) else 1


def _count_by_partition(table: Table, rows: ir.Table) -> dict[datetime, int]:
    """Count rows by the partition that they belong to; under one instant where a table has none."""
    at = ibis.literal(engines.EPOCH, TIME)
    if table.partition:
        at = rows[_partitioned_by(table)]
        at = at.truncate("D").cast(TIME) if _partition_column(table) == DAY else at
    counts = rows.group_by(at=at).agg(rows=rows.count()).to_pyarrow().to_pylist()
    return {row["at"]: row["rows"] for row in counts}


def _partition_column(table: Table) -> str | None:
    if table.partition is None:
        return None
    return DAY if table.partition.startswith(DAY_OF) else table.partition


def _partitioned_by(table: Table) -> str:
    """Return the column that says which partition a row belongs to."""
    assert table.partition is not None
    return table.partition.removeprefix(DAY_OF)


def _order(table: Table) -> list[str]:
    """List the columns that rows are in order of: by partition first, and in it so that the bytes are the same."""
    return [*dict.fromkeys([*([_partitioned_by(table)] if table.partition else []), *table.key])]


def _folder_of(table: Table, instant: datetime) -> str:
    """Return a partition's folder: "day=2024-01-31"."""
    at = instant.astimezone(UTC)
    text = f"{at:%Y-%m-%d}".rjust(10, "0") if _partition_column(table) == DAY else at.strftime(INSTANT_IN_PATH)
    return f"{_partition_column(table)}={text}"


def _instant_of(table: Table, folder: str) -> datetime:
    text = folder.partition("=")[2]
    form = "%Y-%m-%d" if _partition_column(table) == DAY else INSTANT_IN_PATH
    return datetime.strptime(text, form).replace(tzinfo=UTC)


def _value_of(table: Table, folder: str) -> str:
    text = folder.partition("=")[2]
    if _partition_column(table) == DAY:
        return text
    return datetime.strptime(text, INSTANT_IN_PATH).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _paths_by_partition(paths: list[str]) -> dict[str, set[str]]:
    by_partition: dict[str, set[str]] = {}
    for path in paths:
        by_partition.setdefault(Path(path).parent.name, set()).add(path)
    return by_partition


def digest_of(file: Path, contract: int) -> str:
    """Return what a file of a table is named by: a hash of its bytes and of the contract that they are under."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
    if contract > 1:  # a commit that begins a contract removes all files, and may not add one of them again
        digest.update(f"{CONTRACT}{contract}".encode())
    return digest.hexdigest()[:32]


def _name_by_content(table: Table, part: str, file: Path, staging: Path) -> AddAction:
    """Move a staged file to its name within the table, and say of it what a commit needs."""
    path = Path(part) / f"{digest_of(file, table.contract)}.parquet"
    (staging / path).parent.mkdir(parents=True, exist_ok=True)
    file.rename(staging / path)
    column = _partition_column(table)
    return AddAction(
        path=path.as_posix(),
        size=(staging / path).stat().st_size,
        partition_values={column: _value_of(table, part)} if column else {},
        modification_time=0,
        data_change=True,
        stats=json.dumps({"numRecords": pq.read_metadata(staging / path).num_rows}),
    )


def _check_scope(table: Table, adds: list[AddAction], only: Collection[datetime]) -> None:
    beyond = {Path(add.path).parent.name for add in adds} - {_folder_of(table, instant) for instant in only}
    if beyond:
        raise ContractError(f"{table.name}: rows of other partitions than those to write: {', '.join(sorted(beyond))}")


def _move(adds: list[AddAction], staging: Path, folder: Path) -> None:
    for add in adds:
        (folder / add.path).parent.mkdir(parents=True, exist_ok=True)
        (staging / add.path).replace(folder / add.path)


def _delta_schema(table: Table) -> DeltaSchema:
    schema = table.schema.to_pyarrow()
    if _partition_column(table) == DAY:
        schema = schema.append(pa.field(DAY, pa.date32()))
    return DeltaSchema.from_arrow(schema)
