"""Serve: the report and the API, live, until it is told to stop."""

import gc
import ipaddress
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import uvicorn

from flows.configuration import Configuration, ConfigurationError, load
from flows.keys import open_keys
from publish.api import create_app
from publish.catalogue import Catalogue
from publish.connections import ACCEPTED_AT_ONCE, CONNECTIONS_MAX, FILES_OF_OTHERS, QUEUED_MAX, Crowd, room_for
from publish.lookups import Lookups
from publish.repeats import FORMAT, Sparing
from publish.report.content import Report
from publish.report.reports import FOLDER
from publish.report.settings import ReportSettings

logger = logging.getLogger("habitus.serve")

STOP_WITHIN_S = 10
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Listening:
    """Say where a server listens, and whether whoever reaches it may see all."""

    listener: socket.socket
    address: str
    open_local: bool


def listen(host: str, port: int, open_local: bool) -> Listening:
    """Take an address. Raises ConfigurationError where it cannot be had, or would be open to other machines."""
    if open_local and not is_loopback(host):
        raise ConfigurationError(
            f"--open-local shows all users to whoever can reach the server, so it stays on this machine: leave out "
            f"--host {host}, or make keys with `habitus keys create` and leave out --open-local"
        )
    try:
        # Without the protocol asyncio leaves Nagle's algorithm on, and answers wait for up to 40 ms.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        [family, kind, protocol, _, address] = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # who comes before the application is there waits
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"cannot listen on {host} port {port}: {reason}; name another --port") from error
    name, number = listener.getsockname()[:2]
    return Listening(listener, f"http://{f'[{name}]' if ':' in name else name}:{number}", open_local)


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, whatever a name server says."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(configuration: Configuration, listening: Listening) -> None:
    """Answer until SIGTERM or Ctrl-C; what is being answered then is finished.

    Raises ConfigurationError where versions are not in a folder of this machine, keys cannot be read, or the lake's
    tables are of another release.
    """
    if "://" in configuration.publish.folder:
        raise ConfigurationError(
            f"publish.folder: {configuration.publish.folder} is elsewhere; serve reads a local folder"
        )
    if configuration.lake.is_dir():
        configuration.open_lake("duckdb").close()
    port = listening.listener.getsockname()[1]
    hosts = [f"{name}:{port}" for name in LOCAL_NAMES] + (list(LOCAL_NAMES) if port == 80 else [])
    keys = None if listening.open_local else open_keys(configuration)
    log = _log_to_stderr()
    _announce(listening, has_keys=keys is None or any(one.revoked_at is None for one in keys.all()))
    catalogue = Catalogue(configuration.published / FOLDER, personal=configuration.report.personal)
    app = create_app(catalogue, Lookups(configuration.lake), keys, _draw, hosts)
    crowd = Crowd(room_for(_allow_files()))

    follow = _follow(configuration, catalogue)

    async def look_around() -> None:
        follow()
        crowd.see_out()
        log.tell()

    settings = uvicorn.Config(
        app,
        access_log=False,  # it would hold addresses, and so ids; the application logs routes
        log_config=None,
        server_header=False,
        loop="asyncio",
        http=crowd.protocol,
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=STOP_WITHIN_S,
        timeout_notify=0,  # each second
        callback_notify=look_around,
    )
    # uvicorn stops at these, and then sends them again to whoever handled them before: nobody.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    gc.collect()
    gc.freeze()  # what was imported stays; to look through it again and again would delay answers
    try:
        _Server(settings).run([listening.listener])
    finally:
        listening.listener.close()
        log.close()
        if keys is not None:
            keys.close()


def _follow(configuration: Configuration, catalogue: Catalogue) -> Callable[[], None]:
    """Return what has a catalogue know what is personal by now, where the configuration's file is another."""
    file = configuration.file
    known = _state_of(file)

    def follow() -> None:
        nonlocal known
        state = _state_of(file)
        if state is None or state == known:
            return
        known = state
        try:
            catalogue.mark_personal(load(file).report.personal)
        except ConfigurationError as error:
            logger.error("%s: what is personal is as it was before", error)

    return follow


def _state_of(file: Path) -> tuple[int, ...] | None:
    """Return what differs where a file is another, None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class _Server(uvicorn.Server):
    """A server with a queue that is longer than what asyncio accepts at once, which uvicorn takes for the same."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(QUEUED_MAX)


def _draw(report: Report, users: pa.Table | None, settings: ReportSettings) -> str:
    from publish.report.page import to_html  # takes a second to import, and the page of the file needs no drawing

    return to_html(report, users, settings)


def _announce(listening: Listening, has_keys: bool) -> None:
    if listening.open_local:
        warning = (
            "OPEN: --open-local asks for no key. Every program and every person on this machine sees all users,\n"
            "      with what is marked personal. Use it for your own eyes, and stop it when you are done."
        )
        print(f"{'!' * 80}\n{warning}\n{'!' * 80}", file=sys.stderr)
    elif not has_keys:
        print("there are no keys yet, so nobody gets in: habitus keys create --scope lists", file=sys.stderr)
    if not is_loopback(listening.listener.getsockname()[0]):
        print(
            "this server speaks plain HTTP, in which keys can be read on the way: put a proxy with TLS before it "
            "(docs/serve.md)",
            file=sys.stderr,
        )
    print(f"serving on {listening.address} (Ctrl-C stops)", flush=True)


def _allow_files() -> int:
    """Raise how many files may be open as far as is needed, where that is allowed; return how many may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CONNECTIONS_MAX + FILES_OF_OTHERS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def _log_to_stderr() -> Sparing:
    """Have a line for each request with a key, and of all else what is new."""
    each, sparing = logging.StreamHandler(sys.stderr), Sparing(sys.stderr)
    each.setFormatter(FORMAT)
    handlers: dict[str, tuple[int, logging.Handler]] = {
        "habitus.serve.requests": (logging.INFO, each),
        "habitus.serve": (logging.INFO, sparing),
        "uvicorn.error": (logging.WARNING, sparing),
        "asyncio": (logging.WARNING, sparing),
    }
    for name, (level, handler) in handlers.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    return sparing
