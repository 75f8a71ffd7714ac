"""Kill publishing at random moments, while others read all the time: `make crash`.

Two shops publish the same versions: an undisturbed one, and one whose publishing is killed (SIGKILL) until it once ends
by itself. Readers of the disturbed one never see anything but a whole version, as the undisturbed one has it; and when
it is done it holds what the undisturbed one holds.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as postgresql
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from databases import run_postgres
from receiver import Receiver

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.lake import Lake
from features.sources import CONSENT, EMAIL, PHONE
from publish import versions
from publish.assignments import ASSIGNMENTS
from publish.audiences import AUDIENCES
from publish.changes import CHANGES
from publish.versions import VERSIONS, released_table

USERS = 3_000
SEGMENTS = 5
RULES = ("frequent", "rare")
FIRST = datetime(2024, 3, 1, tzinfo=UTC)
LONGEST_S = 120
"""Of a publish that nobody kills."""
PAUSE_S = 0.01
"""Between two reads, for all who share the machine."""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CONFIG = """
name = "crash"
[events]
files = "events.csv"
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
[users]
files = "users.csv"
user_id = "user"
email = "email"
phone = "phone"
[publish]
purposes = []
max_lag_days = 10_000
[purposes.ads]
attribute = "ads"
[destinations.warehouse]
kind = "sql"
url = { env = "CRASH_SQL" }
purposes = []
[destinations.hook]
kind = "webhook"
url = { env = "CRASH_HOOK" }
secret = { env = "CRASH_SECRET" }
batch_size = 50
purposes = ["ads"]
holdout_share = 0.1
members_min = 220
[destinations.google]
kind = "google_customer_match"
folder = "google"
purposes = ["ads"]
"""
TABLES = (AUDIENCES, CHANGES, VERSIONS, released_table(["churn", "conversion"]))
IN_SQL = ("assignments", "assignments_history", "changes", "versions")
DIGEST = "SELECT count(*), sum(hashtextextended(t::text, 0))::text FROM habitus.{} t"
VERSION_AND_DIGEST = f"SELECT (SELECT max(version) FROM habitus.versions), d.* FROM ({DIGEST.format('assignments')}) d"


class FindingError(Exception):
    """Say what a reader must never see, or what differs from the undisturbed shop."""


# --- what is published ---


@dataclass(frozen=True)
class Chapter:
    """Hold what is in the lake before a publish."""

    kind: str
    as_of: datetime
    assignments: pa.Table
    attributes: pa.Table


KINDS = ("a day later", "a day later", "a day later", "scored again", "consents only", "too many move")
"""What comes next. Where too many move, the brake holds the version, and only consents have their effect."""


def tell(seed: int) -> Iterator[Chapter]:
    """Tell what becomes of users: they move, come, go, and agree or not; each chapter is one version more."""
    draw = np.random.default_rng(seed)
    segment = draw.integers(0, SEGMENTS, USERS)
    in_rule = draw.random((len(RULES), USERS)) < 0.3
    agrees = draw.random(USERS) < 0.7
    names = np.array([f"user-{number:04d}" for number in range(USERS)])
    held_out = draw.random(USERS) < 0.05
    reachable = draw.random((2, USERS)) < 0.8
    as_of, assignments = FIRST, pa.table({})
    for number in itertools.count():
        kind = KINDS[0] if number == 0 else str(draw.choice(KINDS))
        agrees ^= draw.random(USERS) < 0.02
        if kind != "consents only":
            as_of += timedelta(days=kind != "scored again")
            is_moving = draw.random(USERS) < (0.9 if kind == "too many move" else 0.08)
            now = np.where(is_moving, (segment + 1) % SEGMENTS, segment)
            if kind != "too many move":
                segment = now
                in_rule ^= draw.random((len(RULES), USERS)) < 0.05
            is_there = draw.random(USERS) < 0.97
            assignments = _assignments(as_of, names, now, in_rule, held_out, draw.random(USERS), is_there)
        yield Chapter(kind, as_of, assignments, _attributes(names, agrees, reachable))


def _assignments(
    as_of: datetime,
    names: np.ndarray,
    segment: np.ndarray,
    in_rule: np.ndarray,
    held_out: np.ndarray,
    churn: np.ndarray,
    is_there: np.ndarray,
) -> pa.Table:
    count = len(names)
    lists = [[name for name, is_in in zip(RULES, of, strict=True) if is_in] for of in in_rule.T]
    known: dict[str, Any] = {
        "user_id": names,
        "as_of": [as_of] * count,
        "segment_id": [f"S{one + 1:02d}" for one in segment],
        "segment_name": [f"Segment {one + 1}" for one in segment],
        "rule_segments": lists,
        "lifecycle_stage": ["active"] * count,
        "churn_probability": churn,
        "churn_reasons": [[]] * count,
        "conversion_reasons": [[]] * count,
        "holdout": held_out,
        "held_out_of": [[]] * count,
        "segment_strengths": [[]] * count,
    }
    schema = ASSIGNMENTS.schema.to_pyarrow()
    columns = [pa.array(known.get(column.name, [None] * count), column.type) for column in schema]
    return pa.Table.from_arrays(columns, schema=schema).filter(pa.array(is_there))


def _attributes(names: np.ndarray, agrees: np.ndarray, reachable: np.ndarray) -> pa.Table:
    rows = [(name, f"{CONSENT}ads", "yes" if yes else "no") for name, yes in zip(names, agrees, strict=True)]
    rows += [(name, EMAIL, f"{name}@example.org") for name in names[reachable[0]]]
    rows += [(name, PHONE, f"+49 30 123 {name[-4:]}") for name in names[reachable[1]]]
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(ATTRIBUTES.schema.names, map(list, columns), strict=True)))


# --- a shop, and what it has published ---


@dataclass
class Shop:
    """A lake and where it publishes to."""

    folder: Path
    sql: str
    receiver: Receiver

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "habitus.toml").write_text(CONFIG)
        event: dict[str, Any] = {
            "event_id": "e",
            "user_id": "user-0000",
            "event_name": "login",
            "source_file": "events.csv",
        }
        event |= {"occurred_at": FIRST - timedelta(days=1), "ingested_at": FIRST}
        with Lake(self.lake) as lake:
            lake.write(EVENTS, ibis.memtable(pa.Table.from_pylist([event], schema=EVENTS.schema.to_pyarrow())))

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    @property
    def environment(self) -> dict[str, str]:
        return {"CRASH_SQL": self.sql, "CRASH_HOOK": self.receiver.url, "CRASH_SECRET": SECRET}

    def take(self, chapter: Chapter) -> None:
        """Have in the lake what the next version is made of."""
        with Lake(self.lake) as lake:
            lake.write(ASSIGNMENTS, ibis.memtable(chapter.assignments), only=[chapter.as_of])
            lake.write(ATTRIBUTES, ibis.memtable(chapter.attributes))

    def state(self) -> dict[str, Any]:
        """Return all that it holds and has published, each part as something that can be compared."""
        with Lake(self.lake) as lake:
            present = versions.present(lake)
            found: dict[str, Any] = {f"lake/{table.name}": lake.content(table) for table in TABLES}
            found["lake/held"] = versions.read_held(lake)
        found["version"] = present.version if present else 0
        for folder in ("published", "google"):
            found |= {f"{folder}/{path}": content for path, content in files_in(self.folder / folder)}
        with connected(self.sql) as cursor:
            for table in IN_SQL:
                cursor.execute(DIGEST.format(table))
                found[f"postgres/{table}"] = cursor.fetchone()
        found["receiver/members"] = frozenset(self.receiver.members)
        found["receiver/changes"] = Counter(self.receiver.applied)
        return found

    def steps(self) -> dict[str, int]:
        """Return how far each step of publishing ever got, in their order."""
        logs = {table.name: self.lake / table.name / "_delta_log" for table in (CHANGES, VERSIONS, TABLES[-1])}
        found = {f"{name} written": len([*log.glob("*.json")]) for name, log in logs.items()}
        with Lake(self.lake) as lake:
            found["version committed"] = lake.origin(AUDIENCES).get("version", 0)
        found["changes queued"] = self._queued()
        found |= {"files written": len([*(self.folder / "published").glob("2*")])}
        found |= {"files latest": _version_in(self.folder / "published")}
        with connected(self.sql) as cursor:
            cursor.execute("SELECT to_regclass('habitus.versions') IS NOT NULL")
            if cursor.fetchone()[0]:
                cursor.execute("SELECT coalesce(max(version), 0) FROM habitus.versions")
                found["postgres committed"] = cursor.fetchone()[0]
        found["audience files written"] = len([*(self.folder / "google").glob("2*")])
        found["audience files latest"] = _version_in(self.folder / "google")
        found["some changes sent"] = len(self.receiver.keys)
        return found

    def _queued(self) -> int:
        """Return the version that is queued, from a copy: opening would take back what a killed process began."""
        with tempfile.TemporaryDirectory() as copies:
            for file in self.lake.glob("outbox.db*"):
                shutil.copy(file, copies)
            with closing(sqlite3.connect(Path(copies) / "outbox.db")) as database:
                try:
                    return int(database.execute("SELECT max(version) FROM marks").fetchone()[0] or 0)
                except sqlite3.OperationalError:  # nothing was ever queued
                    return 0


def files_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Iterate over the files of all versions, and what `latest` is."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink():
            yield str(name), str(path.readlink())
        elif path.is_file() and not name.parts[0].startswith("."):
            yield str(name), hashlib.sha256(path.read_bytes()).hexdigest()


def _version_in(folder: Path) -> int:
    latest = folder / "latest"
    return int(json.loads((latest / "manifest.json").read_text())["version"]) if latest.exists() else 0


@contextmanager
def connected(url: str) -> Iterator[Any]:
    with closing(postgresql.connect(url, autocommit=True)) as connection, closing(connection.cursor()) as cursor:
        yield cursor


# --- publishing, in a process of its own ---


def publish(
    config: str, as_of: datetime, environment: dict[str, str], sabotage: Callable[[], None] | None, told: Connection
) -> None:
    """Publish as the command does, without Prefect's server; tell the parent when it begins, and what came of it."""
    os.environ.update(environment)
    from flows.publish import publish_version

    if sabotage:
        sabotage()
    told.send("begins")
    published = publish_version.fn(config, as_of, None)
    told.send(
        [(one.destination, one.note) for one in published.deliveries if one.state not in ("released", "unchanged")]
    )


PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ["flows.publish", "adbc_driver_postgresql.dbapi", "ibis.backends.duckdb", "deltalake"]


def attempt(
    shop: Shop, as_of: datetime, sabotage: Callable[[], None] | None = None, kill_after_s: float | None = None
) -> float | None:
    """Publish in another process and return how many seconds it took; None where it was killed."""
    told, tells = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(
        target=publish, args=(str(shop.folder / "habitus.toml"), as_of, shop.environment, sabotage, tells)
    )
    process.start()
    tells.close()
    try:
        told.recv()
        began_s = time.monotonic()
        process.join(LONGEST_S if kill_after_s is None else kill_after_s)
        if process.is_alive():
            process.kill()
            process.join()
        took_s = time.monotonic() - began_s
        if process.exitcode == -signal.SIGKILL and kill_after_s is not None:
            return None
        if process.exitcode != 0:
            raise FindingError(f"publishing ended with exit status {process.exitcode} after {took_s:.1f} s, see above")
        if lacking := told.recv():
            raise FindingError(f"publishing did not reach {lacking}")
    except EOFError:
        raise FindingError("publishing did not begin, see above") from None
    finally:
        told.close()
    return took_s


# --- readers ---


@dataclass
class Reader:
    """Read all the time in a thread, and stop at the first finding."""

    name: str
    read: Callable[[], None]
    count: int = 0
    finding: str | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Reader":
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.read()
            except Exception as error:
                self.finding = f"{self.name}: {error if isinstance(error, FindingError) else repr(error)}"
                return
            self.count += 1
            time.sleep(PAUSE_S)


def folder_reader(folder: Path, known: dict[int, str]) -> Callable[[], None]:
    """Read what `latest` is: each of its files as its manifest says, and the version as the undisturbed shop has it."""
    last = 0

    def read() -> None:
        nonlocal last
        link = folder / "latest"
        try:
            version = folder / link.readlink()
        except FileNotFoundError:
            if last:
                raise FindingError(f"`latest` is gone, and was version {last}") from None
            time.sleep(0.01)
            return
        manifest = json.loads((version / "manifest.json").read_text())
        for file in manifest["files"]:
            content = (version / file["path"]).read_bytes()
            if hashlib.sha256(content).hexdigest() != file["sha256"]:
                raise FindingError(f"{version.name}/{file['path']} is not what its manifest says")
            if (
                file["path"].endswith(".parquet")
                and pq.read_metadata(pa.BufferReader(content)).num_rows != file["rows"]
            ):
                raise FindingError(f"{version.name}/{file['path']} has not the rows that its manifest says")
        number = manifest["version"]
        if number < last:
            raise FindingError(f"version {number} came after version {last}")
        if version.name != known.get(number):
            raise FindingError(f"version {number} is {version.name}, and {known.get(number)} in the undisturbed shop")
        last = number

    return read


def table_reader(cursor: Any, known: dict[int, Any]) -> Callable[[], None]:
    """Read the version and all of its rows by one statement."""
    last = 0

    def read() -> None:
        nonlocal last
        if not last:
            cursor.execute("SELECT to_regclass('habitus.assignments') IS NOT NULL")
            if not cursor.fetchone()[0]:
                time.sleep(0.01)
                return
        cursor.execute(VERSION_AND_DIGEST)
        number, *digest = cursor.fetchone()
        if number is None or number < last:
            raise FindingError(f"version {number} came after version {last}")
        if digest != known.get(number):
            raise FindingError(f"version {number} has {digest}, and {known.get(number)} in the undisturbed shop")
        last = number

    return read


# --- the trial ---


def main(kills: int, seed: int = 0, sabotage: Callable[[], None] | None = None) -> int:
    """Kill so often, print what was found, and return the exit status."""
    try:
        print(_try(kills, seed, sabotage))
    except FindingError as finding:
        print(f"crash: seed {seed}: {finding}")
        return 1
    return 0


def _try(kills: int, seed: int, sabotage: Callable[[], None] | None) -> str:
    PROCESSES.set_forkserver_preload(PRELOADED)
    draw = random.Random(seed)
    began_s = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-")))
        url = stack.enter_context(run_postgres())
        undisturbed, disturbed = (_open_shop(stack, folder, url, name) for name in ("undisturbed", "disturbed"))
        files: dict[str, dict[int, str]] = {"published": {}, "google": {}}
        rows: dict[int, Any] = {}
        cursor = stack.enter_context(connected(disturbed.sql))
        readers = [stack.enter_context(Reader("PostgreSQL", table_reader(cursor, rows)))]
        for name, known in files.items():
            readers.append(stack.enter_context(Reader(name, folder_reader(disturbed.folder / name, known))))
        killed = 0
        reached: Counter[str] = Counter()
        versions_count = 0
        for chapter in tell(seed):
            for shop in (undisturbed, disturbed):
                shop.take(chapter)
            takes_s = attempt(undisturbed, chapter.as_of)
            assert takes_s is not None
            expected = undisturbed.state()
            number = expected["version"]
            for name, known in files.items():
                known[number] = expected[f"{name}/latest"]
            rows[number] = _version_of(undisturbed.sql)
            before = disturbed.steps()
            at = 0
            while attempt(disturbed, chapter.as_of, sabotage, draw.uniform(0, (1 + at / 5) * takes_s)) is None:
                at += 1  # it may take longer than the undisturbed one, since it is read
                after = disturbed.steps()
                done = [step for step, so_far in after.items() if so_far != before.get(step, 0)]
                reached[done[-1] if done else "nothing yet"] += 1
                _raise_findings(readers)
            killed += at
            _raise_findings(readers)
            _compare(expected, disturbed.state())
            versions_count += 1
            print(
                f"version {number} ({chapter.kind}): killed {at} times, {killed} of {kills}; {takes_s:.2f} s",
                flush=True,
            )
            if killed >= kills:
                break
        _raise_findings(readers)
        for step in ("nothing yet", *disturbed.steps()):
            print(f"  {reached[step]:4d} kills after: {step}")
        reads = ", ".join(f"{reader.name} {reader.count:,}" for reader in readers)
        repeated = len(disturbed.receiver.requests) - len(disturbed.receiver.keys)
    return (
        f"{killed} kills in {versions_count} versions of {USERS:,} users, seed {seed}: every reader saw whole versions "
        f"only (reads: {reads}), each of {len(disturbed.receiver.applied):,} changes was applied once "
        f"({repeated} requests came twice), and all ended as undisturbed; {time.monotonic() - began_s:.0f} s"
    )


def _open_shop(stack: ExitStack, folder: Path, url: str, name: str) -> Shop:
    with connected(url) as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    receiver = stack.enter_context(Receiver(SECRET))
    return Shop(folder / name, url.replace("/postgres?", f"/{name}?"), receiver)


def _version_of(url: str) -> list[Any]:
    with connected(url) as cursor:
        cursor.execute(VERSION_AND_DIGEST)
        return list(cursor.fetchone()[1:])


def _raise_findings(readers: Iterable[Reader]) -> None:
    for reader in readers:
        if reader.finding:
            raise FindingError(reader.finding)


def _compare(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise where the disturbed shop is not as the undisturbed one."""
    twice = [change for change, count in found["receiver/changes"].items() if count > 1]
    if twice:
        raise FindingError(f"the receiver applied {len(twice)} changes twice, such as {twice[0]}")
    differing = [part for part in expected.keys() | found.keys() if expected.get(part) != found.get(part)]
    if differing:
        told = [f"{part}: {_brief(found.get(part))}, not {_brief(expected.get(part))}" for part in sorted(differing)]
        raise FindingError(f"version {expected['version']} did not end as undisturbed: {'; '.join(told)}")


def _brief(part: Any) -> str:
    return f"{len(part):,}" if isinstance(part, frozenset | Counter) else str(part)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(main(arguments.kills, arguments.seed))
