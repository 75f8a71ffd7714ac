"""Fixtures, and what is done once. Few imports: the process that shares the tests out needs none of theirs."""

import gc
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from flows.one_off import ONE_OFF_SETTINGS

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend as DuckDB
    from shops import Ran

    from features.lake import Lake

# Read when Prefect is imported, which collecting the tests will. Processes that share the tests out share the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ |= ONE_OFF_SETTINGS | {"PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-")}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slowest", type=int, metavar="N", help="end with a table of the N tests that took longest")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run modules, and the tests of each, in random order")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what took longest, where that is asked."""
    if count := terminalreporter.config.getoption("slowest"):
        from timings import slowest

        reports = [one for some in terminalreporter.stats.values() for one in some if hasattr(one, "duration")]
        terminalreporter.section("slowest tests")
        for line in slowest([(one.nodeid, one.when, one.duration) for one in reports], count):
            terminalreporter.write_line(line)


def is_sharing_out(config: pytest.Config) -> bool:
    """Tell whether this process has others run the tests."""
    return config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare what processes that test share."""
    if not hasattr(config, "workerinput"):
        config.add_cleanup(lambda: shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True))
    if is_sharing_out(config):
        from prefect_server import started

        running = ExitStack()
        running.enter_context(started())
        config.add_cleanup(running.close)


def pytest_collection(session: pytest.Session) -> None:
    """Prepare a process that runs tests itself."""
    if is_sharing_out(session.config):
        return
    import laws  # noqa: F401
    from compiling import compile_once
    from hypothesis import settings

    settings.load_profile("house")
    if "HABITUS_EXAMPLES" not in os.environ:  # make test-slow compiles every query anew
        compile_once()
    if hasattr(session.config, "workerinput"):
        use_one_thread()


REAL_PARTS = {"browser", "postgres", "s3_server", "ran"}
"""Fixtures that start a program of others, or run the whole job."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Leave what needs REAL_PARTS to CI, then choose by markers as asked, then put what is left in order."""
    for item in items:
        if not REAL_PARTS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("ci")
    yield
    if (seed := config.getoption("shuffle")) is not None:
        shuffle(items, seed)
    else:
        put_in_order(items)


def put_in_order(items: list[pytest.Item]) -> None:
    """Put the tests of the shop that has run in the middle, where the second of two processes begins.

    It runs the shop's job then, while the first has tests of its own.
    """
    of_shop = [item for item in items if "ran" in getattr(item, "fixturenames", ())]
    others = [item for item in items if "ran" not in getattr(item, "fixturenames", ())]
    middle = len(items) // 2
    items[:] = [*others[:middle], *of_shop, *others[middle:]]


def shuffle(items: list[pytest.Item], seed: int) -> None:
    """Put modules in random order, and the tests of each; what a module's tests share is made once."""
    random = Random(seed)
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.path, []).append(item)
    items[:] = [
        item
        for path in random.sample([*modules], len(modules))
        for item in random.sample(modules[path], len(modules[path]))
    ]


def use_one_thread() -> None:
    """Have DuckDB take one thread: as many processes as cores run tests already, and more would wait for each other."""
    import duckdb

    with_threads = duckdb.connect

    def connect(
        database: str = ":memory:", read_only: bool = False, config: dict[str, Any] | None = None
    ) -> duckdb.DuckDBPyConnection:
        return with_threads(database, read_only, {"threads": 1, **(config or {})})

    duckdb.connect = connect  # type: ignore[assignment]


def pytest_collection_finish() -> None:
    """Look for garbage among what tests make, not again and again among all that was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def connected() -> Iterator["DuckDB"]:
    from features import engines

    engine = engines.connect()
    yield engine
    engine.disconnect()


@pytest.fixture
def engine(connected: "DuckDB") -> Iterator["DuckDB"]:
    """Lend an engine that has no tables; starting one takes longer than most tests."""
    yield connected
    for kind in ("view", "table"):
        made = f"SELECT {kind}_name FROM duckdb_{kind}s() WHERE NOT internal"
        for (name,) in connected.con.execute(made).fetchall():
            connected.con.execute(f'DROP {kind} "{name}"')


@pytest.fixture
def lake(tmp_path: Path) -> Iterator["Lake"]:
    from features.lake import Lake

    with Lake(tmp_path / "lake") as lake:
        yield lake


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> "Ran":
    """Run the whole job once on a small shop; each of the processes that test at the same time has a copy."""
    from shops import Ran, habitus, once, small_shop

    from flows.configuration import load

    def run(folder: Path) -> dict[str, Any]:
        done = habitus("run", str(small_shop(folder / "shop")), "--json")
        assert done.exit_code == 0, done.stderr
        return {"folder": str(folder / "shop"), "result": json.loads(done.stdout), "progress": done.stderr}

    told = once(tmp_path_factory, "job", run)
    shop = shutil.copytree(told["folder"], tmp_path_factory.mktemp("job") / "shop", symlinks=True)
    return Ran(load(shop / "habitus.toml"), told["result"], told["progress"])


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
        import fsspec

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
    from databases import run_postgres

    with run_postgres() as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("Chromium is missing, which these tests drive: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
