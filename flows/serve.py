"""Serve: the report and the API, live, until it is told to stop."""

import gc
import ipaddress
import logging
import signal
import socket
import sys
from dataclasses import dataclass

import pyarrow as pa
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flows.configuration import Configuration, ConfigurationError
from flows.keys import open_keys
from publish.api import create_app
from publish.catalogue import Catalogue
from publish.lookups import Lookups
from publish.report.content import Report
from publish.report.reports import FOLDER
from publish.report.settings import ReportSettings

HEAD_MAX_BYTES = 64 * 1024 - 1
"""Of a request's line and headers: httptools reads no longer address. What is longer is looked up by POST."""
STOP_WITHIN_S = 10
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class BoundedHead(HttpToolsProtocol):
    """Refuse headers, before a body or after it, that do not end: uvicorn would keep all, from whoever sends them."""

    head_bytes: int | None = 0
    """What has arrived of a head, or between the chunks of a body; None while a body arrives."""

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self.head_bytes = 0

    def on_headers_complete(self) -> None:
        """Stop counting."""
        super().on_headers_complete()
        self.head_bytes = None

    def on_chunk_header(self) -> None:
        """Count again: after the last chunk headers may follow."""
        self.head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Stop counting."""
        super().on_body(body)
        self.head_bytes = None

    def on_message_complete(self) -> None:
        """Stop counting."""
        super().on_message_complete()
        self.head_bytes = None

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head is still open after too many bytes."""
        super().data_received(data)
        if self.head_bytes is not None and not self.transport.is_closing():
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_MAX_BYTES:
                self.send_400_response("The headers of the request do not end.")

    def send_400_response(self, msg: str) -> None:
        """Say what to do about an id that is too long for an address."""
        super().send_400_response(f"{msg} A head has at most 64 KiB: look a longer id up with POST /users/lookup.")


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
    _log_to_stderr()
    _announce(listening, has_keys=keys is None or any(one.revoked_at is None for one in keys.all()))
    catalogue = Catalogue(configuration.published / FOLDER, personal=configuration.report.personal)
    app = create_app(catalogue, Lookups(configuration.lake), keys, _draw, hosts)
    settings = uvicorn.Config(
        app,
        access_log=False,  # it would hold addresses, and so ids; the application logs routes
        log_config=None,
        server_header=False,
        http=BoundedHead,
        timeout_graceful_shutdown=STOP_WITHIN_S,
    )
    # uvicorn stops at these, and then sends them again to whoever handled them before: nobody.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    gc.collect()
    gc.freeze()  # what was imported stays; to look through it again and again would delay answers
    try:
        uvicorn.Server(settings).run([listening.listener])
    finally:
        listening.listener.close()
        if keys is not None:
            keys.close()


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


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("habitus.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
