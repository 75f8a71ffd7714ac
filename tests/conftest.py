import fcntl
import gc
import gzip
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import fsspec
import ibis.expr.types as ir
import pyarrow as pa
import pytest
from databases import run_postgres
from hypothesis import HealthCheck, settings
from ibis.backends.duckdb import Backend as DuckDB
from typer.testing import CliRunner

from features import engines
from features.events import EVENTS
from features.lake import Lake
from flows.cli import ONE_OFF_SETTINGS, app
from flows.configuration import Configuration, load

Test = TypeVar("Test", bound=Callable[..., None])

settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)  # a timing never decides a test
settings.load_profile("house")


def law(examples: int) -> Callable[[Test], Test]:
    """Try a law on some examples, and by `make test-slow` on many more."""
    allowed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    tried = settings(
        max_examples=examples * int(os.environ.get("HABITUS_EXAMPLES", "1")), suppress_health_check=allowed
    )
    return lambda test: pytest.mark.law(tried(test))


def pytest_collection_finish() -> None:
    """Look for garbage among what tests make, not again and again among all that was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


if "PYTEST_XDIST_WORKER" in os.environ:
    with_threads = duckdb.connect

    def connect(
        database: str = ":memory:", read_only: bool = False, config: dict[str, Any] | None = None
    ) -> duckdb.DuckDBPyConnection:
        """Take one thread: as many processes as cores run tests already, and more would wait for each other."""
        return with_threads(database, read_only, {"threads": 1, **(config or {})})

    duckdb.connect = connect  # type: ignore[assignment]

# Read when Prefect is imported, which nothing above does and collecting the tests will.
os.environ |= ONE_OFF_SETTINGS | {
    "PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-"),
}


@pytest.fixture
def engine() -> Iterator[DuckDB]:
    engine = engines.connect()
    yield engine
    engine.disconnect()


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with Lake(tmp_path / "lake") as lake:
        yield lake


def events_of(engine: DuckDB, rows: list[dict[str, Any]]) -> ir.Table:
    """Make EVENTS of rows that name only what matters; a time is ISO 8601, in UTC where it has no offset."""
    whole = []
    for number, row in enumerate(rows, start=1):
        occurred_at = instant(row["occurred_at"])
        whole.append(
            {"event_id": f"e{number}", "user_id": "u", "event_name": "page_view", "source_file": "events.csv"}
            | row
            | {"occurred_at": occurred_at, "ingested_at": instant(row.get("ingested_at", occurred_at))}
        )
        unknown = whole[-1].keys() - set(EVENTS.schema.names)
        assert not unknown, f"no columns of EVENTS: {unknown}"
    table = pa.Table.from_pylist(whole, schema=EVENTS.schema.to_pyarrow())
    return EVENTS.check(engine.create_table(f"events_{uuid.uuid4().hex}", table, temp=True))


def instant(given: str | datetime) -> datetime:
    """Read an instant; without an offset, in UTC."""
    read = datetime.fromisoformat(given) if isinstance(given, str) else given
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


ECOM = Path(__file__).parent.parent / "examples" / "ecom"
USERS = 400


@dataclass(frozen=True)
class Ran:
    """A configuration and what `habitus run --json` said of it."""

    configuration: Configuration
    result: dict[str, Any]
    progress: str


def small_shop(folder: Path) -> Path:
    """Write the first users of examples/ecom, three broken rows and the example's configuration."""
    folder.mkdir(parents=True)
    lines = gzip.decompress((ECOM / "events.csv.gz").read_bytes()).decode().splitlines()
    kept = [line for line in lines[1:] if int(line[5:9]) < USERS]
    broken = [
        ",s,home,2024-03-01 10:00:00,desktop,organic,2024-01,new",
        "user_0001,s,home,yesterday,desktop,organic,2024-01,new",
        "user_0001,s,home,2999-01-01 00:00:00,desktop,organic,2024-01,new",
    ]
    (folder / "events.csv.gz").write_bytes(gzip.compress("\n".join([lines[0], *kept, *broken]).encode(), mtime=0))
    text = (ECOM / "habitus.toml").read_text()
    text = (
        text.replace('"../../mlruns"', '"mlruns"') + "\n[training]\nsnapshots = 4\ntrials = 2\n[segments]\nk_max = 4\n"
    )
    (folder / "habitus.toml").write_text(text)
    return folder / "habitus.toml"


def habitus(*arguments: str) -> Any:
    """Run the command in this process: its exit_code, stdout and stderr."""
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run the whole job once on a small shop; each of the processes that test at the same time has a copy."""
    folder = tmp_path_factory.mktemp("job")
    shared = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    told, first = shared / "job.json", shared / "first_job" / "shop"
    with (shared / "job.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            done = habitus("run", str(small_shop(first)), "--json")
            assert done.exit_code == 0, done.stderr
            told.write_text(json.dumps({"result": json.loads(done.stdout), "progress": done.stderr}))
    shutil.copytree(first, folder / "shop", symlinks=True)
    return Ran(load(folder / "shop" / "habitus.toml"), **json.loads(told.read_text()))


@dataclass(frozen=True)
class Bucket:
    """An empty bucket in a real S3 server, with what a destination's settings need."""

    name: str
    endpoint_url: str

    @property
    def settings(self) -> dict[str, Any]:
        keys = {"access_key": {"env": "ACCESS_KEY"}, "secret_key": {"env": "SECRET_KEY"}}
        return {"folder": f"s3://{self.name}/out", "endpoint_url": self.endpoint_url, "region": REGION} | keys

    @property
    def files(self) -> Any:
        return fsspec.filesystem("s3", **S3_OPTIONS, endpoint_url=self.endpoint_url)


REGION = "eu-central-1"
S3_KEYS = {"access_key": "AKIATEST", "secret_key": "s3cr3t-key"}
S3_OPTIONS = {
    "key": S3_KEYS["access_key"],
    "secret": S3_KEYS["secret_key"],
    "client_kwargs": {"region_name": REGION},
    "use_listings_cache": False,
}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@contextmanager
def enforce_permissions() -> Iterator[None]:
    """Have the S3 server refuse keys that it did not give out, as all are."""
    from moto import settings
    from moto.core.authorization import ActionAuthenticatorMixin

    before = settings.INITIAL_NO_AUTH_ACTION_COUNT
    settings.INITIAL_NO_AUTH_ACTION_COUNT, ActionAuthenticatorMixin.request_count = 0, 0
    try:
        yield
    finally:
        settings.INITIAL_NO_AUTH_ACTION_COUNT = before


@pytest.fixture
def bucket(s3_server: str) -> Bucket:
    bucket = Bucket(f"bucket-{uuid.uuid4().hex}", s3_server)
    bucket.files.mkdir(bucket.name)
    return bucket


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server of this process' own, and return the address of its superuser."""
    with run_postgres() as url:
        yield url
