"""One Prefect server for all processes that share out the tests: to start takes it longer than most tests take.

A process that runs tests alone has Prefect start a temporary server when the first flow runs, as a command does.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

ADDRESS = "PREFECT_API_URL"
LATEST_S = 120


@contextmanager
def started(services: bool = False) -> Iterator[None]:
    """Start a server, and name it to this process and those that it starts; whoever needs it awaits it.

    Without its services it writes down what becomes of flows, but not of tasks.
    """
    quick = {"PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
    options = [] if services else ["--no-services"]
    with serving(*options, "--no-ui", environment=os.environ | quick) as address:
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS]


@contextmanager
def serving(*options: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Start a server, and return the address of its API; whoever needs it awaits it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", *options]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C ends the tests first
        )
        try:
            yield f"http://127.0.0.1:{port}/api"
        finally:
            server.terminate()
            server.wait(timeout=30)


@cache
def await_server() -> None:
    """Wait until the server that was started answers, if one was."""
    if ADDRESS in os.environ:
        wait_for(os.environ[ADDRESS])


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + LATEST_S
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=LATEST_S).close()
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < until, "Prefect's server did not start"
            time.sleep(0.1)
        else:
            return
