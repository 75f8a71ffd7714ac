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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

ADDRESS = "PREFECT_API_URL"
LATEST_S = 120


@contextmanager
def started(services: bool = False) -> Iterator[None]:
    """Start a server, and name it to this process and those that it starts; whoever needs it awaits it.

    Without its services it writes down what becomes of flows, but not of tasks.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quick = {"PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", *([] if services else ["--no-services"])]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | quick,
            start_new_session=True,  # Ctrl-C ends the tests first
        )
        os.environ[ADDRESS] = f"http://127.0.0.1:{port}/api"
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            server.terminate()
            server.wait(timeout=30)


@cache
def await_server() -> None:
    """Wait until the server that was started answers, if one was."""
    if ADDRESS not in os.environ:
        return
    until = time.monotonic() + LATEST_S
    while True:
        try:
            urllib.request.urlopen(f"{os.environ[ADDRESS]}/health", timeout=LATEST_S).close()
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < until, "Prefect's server did not start"
            time.sleep(0.1)
        else:
            return
