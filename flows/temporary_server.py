"""The Prefect server of a command: one that is named, or a temporary one, started once for this process.

Prefect would start it itself, but waits for ever for one that cannot start, and shows what that one prints.
"""

import atexit
import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import httpx
import prefect
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
    temporary_settings,
)

POLL_S = 0.1
LOG_MAX_BYTES = 4_096
END_WITHIN_S = 5


class ServerError(Exception):
    """Say that a Prefect server does not answer, and what to do."""


@contextmanager
def serving() -> Iterator[None]:
    """Have the server that PREFECT_API_URL names, or a temporary one.

    Raises ServerError where it does not answer, or no longer.
    """
    named = PREFECT_API_URL.value()
    if named:
        with get_client(sync_client=True) as client:
            error = client.api_healthcheck()
        if error is not None:
            raise ServerError(
                f"PREFECT_API_URL={named}: no Prefect server answers there ({_reason(error)}); "
                "start it, or unset PREFECT_API_URL to do without"
            )
    with nullcontext() if named else temporary_settings({PREFECT_API_URL: _start()}):
        try:
            yield
        except httpx.TransportError as error:
            raise ServerError(
                f"Prefect's server does not answer any more ({_reason(error)}): run the same command again"
            ) from error


@functools.cache
def _start() -> str:
    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        raise ServerError(
            f"{home}: {error.strerror}: Prefect keeps there what runs did; name a folder that can be written with "
            "PREFECT_HOME"
        ) from error
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    with tempfile.TemporaryFile() as log:
        server = _open(address, log)
        try:
            _await(server, address, log)
        except BaseException:
            _end(server)
            raise
    return address


def _await(server: subprocess.Popen[bytes], address: str, log: BinaryIO) -> None:
    wait_s = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    until = time.monotonic() + wait_s
    while not _answers(address):
        if server.poll() is not None:
            raise ServerError(
                f"Prefect's temporary server could not start: {_last_line(log)}; what it knows is in "
                f"{PREFECT_HOME.value()}: move that folder away, or name another with PREFECT_HOME"
            )
        if time.monotonic() > until:
            raise ServerError(
                f"Prefect's temporary server did not start within {wait_s} s: run the same command again, and "
                "give it longer with PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
            )
        time.sleep(POLL_S)


def _open(address: str, log: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a server as Prefect does, which ends with this process; Ctrl-C in the terminal is not for it."""
    url = httpx.URL(address)
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    own |= {"PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_SERVER_LOGGING_LEVEL": "ERROR"}  # in a file, for its last words
    place = ["--app-dir", str(Path(prefect.__file__).parent), "--host", url.host, "--port", str(url.port)]
    options = ["--factory", "--log-level", "error", "--lifespan", "on"]
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *place, *options, "prefect.server.api.server:create_app"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **settings, **own},
        start_new_session=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        server.kill()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=END_WITHIN_S).is_success
    except httpx.TransportError:
        return False


def _last_line(log: BinaryIO) -> str:
    """Return the last line that says an error, of what a server printed."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - LOG_MAX_BYTES))
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line.partition(":")[0]]
    return (errors or [line for line in lines if line] or ["it says nothing"])[-1]


def _reason(error: BaseException) -> str:
    return " ".join(re.sub(r"\[Errno \d+\] ", "", str(error)).split()) or type(error).__name__
