"""A small shop whose stages run one after another, each in a process of its own: for trials that disturb them."""

import gzip
import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ibis
from crash import files_in
from shops import small_shop

from features.erasures import ERASURES, SALT
from features.lake import Lake
from features.table import Table

AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
NOW = datetime(2024, 7, 1, tzinfo=UTC)
"""The present, to the shop."""
LATE_EVERY = 50
"""One of so many events comes with the second file."""
USERS = '[users]\nfiles = "users.csv"\nuser_id = "user"\nattributes = ["plan"]\n'
FORGOTTEN = ["user_0003", "user_0010"]
LONGEST_S = 900
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ["flows.forget", "flows.run", "ibis.backends.duckdb", "deltalake", "sklearn.ensemble", "lightgbm"]


# --- what a stage does, without Prefect's server ---


def ingest(config: str) -> None:
    from flows.ingest import accept_files

    accept_files.fn(config, NOW, False)


def sessions(config: str) -> None:
    from flows.sessions import sessionize

    sessionize.fn(config)


def snapshot(config: str) -> None:
    from flows.snapshot import store_snapshots

    store_snapshots.fn(config, AS_OF, True)


def train(config: str) -> None:
    from flows.configuration import load
    from flows.train import audit_features, train_propensity, train_segments

    train_segments.fn(config, AS_OF)
    findings = audit_features.fn(config, AS_OF)
    for kind in load(config).labels.named:
        train_propensity.fn(config, AS_OF, kind, len(findings))


def score(config: str) -> None:
    from flows.score import assign_users

    assign_users.fn(config, AS_OF)


def publish(config: str) -> None:
    from flows.publish import publish_version

    publish_version.fn(config, AS_OF, None)


def report(config: str) -> None:
    from flows.report import write_report

    write_report.fn(config, True)


def forget(config: str) -> None:
    from flows.configuration import ConfigurationError, load
    from flows.forget import begin, finish

    try:
        begin(load(config), FORGOTTEN, NOW)
    except ConfigurationError as error:
        if "forgotten before" not in str(error):
            raise
    finish.fn(config)


def bring_late_events(folder: Path) -> None:
    (folder / "late").rename(folder / "events-late.csv.gz")


def keep_salt(folder: Path) -> None:
    """Have the same salt in every shop, so that they can be compared."""
    (folder / "lake" / SALT).write_text("salt")


@dataclass(frozen=True)
class Step:
    """A stage, and what happens to the shop before it."""

    name: str
    run: Callable[[str], None]
    prepare: Callable[[Path], None] | None = None


STEPS = (
    Step("ingest", ingest),
    Step("sessions", sessions),
    Step("snapshot", snapshot),
    Step("train", train),
    Step("score", score),
    Step("publish", publish),
    Step("report", report),
    Step("ingest more", ingest, bring_late_events),
    Step("sessions again", sessions),
    Step("snapshot again", snapshot),
    Step("score again", score),
    Step("publish again", publish),
    Step("forget", forget, keep_salt),
)


# --- the shop ---


def make_shop(folder: Path) -> None:
    """Write a shop, some of whose events come later."""
    config = small_shop(folder)
    config.write_text(config.read_text().replace('"events.csv.gz"', '"events*.csv.gz"') + USERS)
    head, *lines = gzip.decompress((folder / "events.csv.gz").read_bytes()).decode().splitlines()
    users = sorted({user for line in lines if (user := line.partition(",")[0])})
    (folder / "users.csv").write_text(
        "\n".join(["user,plan", *(f"{user},{'pro' if user.endswith('1') else 'free'}" for user in users)])
    )
    for name, is_late in (("late", True), ("events.csv.gz", False)):
        some = [line for number, line in enumerate(lines) if (number % LATE_EVERY == 0) == is_late]
        (folder / name).write_bytes(gzip.compress("\n".join([head, *some]).encode(), mtime=0))
    (folder / "tmp").mkdir()


def state_of(folder: Path) -> dict[str, Any]:
    """Return all that a shop holds, each part as something that can be compared."""
    found: dict[str, Any] = tables_of(folder)
    found |= {f"published/{path}": content for path, content in files_in(folder / "published")}
    database = folder / "mlruns" / "mlflow.db"
    if database.exists():
        with closing(sqlite3.connect(database)) as mlflow:
            tags = "SELECT name, version, key, value FROM model_version_tags WHERE key IN ('fingerprint', 'promotions')"
            for name, query in {
                "models/versions": tags,
                "models/aliases": "SELECT name, alias, version FROM registered_model_aliases",
                "models/running": "SELECT name FROM runs WHERE status = 'RUNNING'",
            }.items():
                found[name] = sorted(mlflow.execute(query).fetchall())
    return found


def tables_of(folder: Path) -> dict[str, Any]:
    """Return a hash of what each table of a shop holds that holds anything: some are made before they have rows."""
    found: dict[str, Any] = {}
    with Lake(folder / "lake") as lake:
        for name in lake.tables():
            table = lake.stored(Table(name, ibis.schema({}), key=()))
            if lake.row_count(table):
                found[f"lake/{name}"] = lake.content(table)
        if lake.has(ERASURES):  # whose receipts have names of their own
            found["lake/erasures"] = sorted(lake.read(ERASURES).user_hash.to_pyarrow().to_pylist())
    return found


# --- a process of its own ---


def _work(step: Step, config: str, told: Any) -> None:
    os.setpgid(0, 0)  # so that what it starts is killed with it
    os.environ["TMPDIR"] = str(Path(config).parent / "tmp")
    told.send("begins")
    try:
        step.run(config)
    except Exception as error:
        told.send(f"{type(error).__name__}: {error}")
    else:
        told.send("done")


def attempt(step: Step, folder: Path, kill_after_s: float | None = None) -> tuple[str, float]:
    """Run a step in another process; return what it said at the end, "killed" if it was, and the seconds it took."""
    PROCESSES.set_forkserver_preload(PRELOADED)
    os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other take longer, where others work too
    told, tells = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_work, args=(step, str(folder / "habitus.toml"), tells))
    process.start()
    tells.close()
    try:
        told.recv()
        began_s = time.monotonic()
        is_over = told.poll(LONGEST_S if kill_after_s is None else kill_after_s)
        took_s = time.monotonic() - began_s
        said = told.recv() if is_over else "killed"
        if not is_over:
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    finally:
        told.close()
    return said, took_s


def restore(kept: Path, folder: Path) -> None:
    """Make a shop what another is, in its place: MLflow knows where its files are."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
