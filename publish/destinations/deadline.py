"""A deadline for all of an attempt, whatever arrives: the name, the connection, TLS, each part sent and each received.

A time limit for each read is none for all of them: a byte now and then, or `102 Processing` for ever, keeps to it.
"""

import select
import socket
import ssl
import time
from collections.abc import Iterable
from concurrent.futures import Future
from threading import Thread
from typing import Any

import httpcore
from httpcore import SOCKET_OPTION


class Deadline(httpcore.NetworkBackend):
    """Connect, and lend streams that all end by the deadline of the present attempt, which `begin` sets.

    What is not done by then raises httpcore.TimeoutException.
    """

    def __init__(self) -> None:
        self._until = 0.0

    def begin(self, timeout_s: float) -> None:
        """Begin an attempt that may take so long, over a connection of before or a new one."""
        self._until = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return for how long to wait at most from now on."""
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise httpcore.TimeoutException
        return left_s

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> "Stream":
        """Connect to the first address of a host that answers; each gets an equal part of the time that is left."""
        addresses = self._look_up(host, port)
        while True:
            family, kind, protocol, _, address = addresses.pop(0)
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.left_s() / (1 + len(addresses)))
                connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return Stream(connection, self)
            except OSError as error:
                connection.close()
                if not addresses:
                    if isinstance(error, TimeoutError):
                        raise httpcore.TimeoutException from error
                    raise httpcore.ConnectError(str(error)) from error

    def _look_up(self, host: str, port: int) -> list[Any]:
        """Return a host's addresses. The system's search cannot be ended, so that of a late answer is left behind."""
        found: Future[list[Any]] = Future()

        def look_up() -> None:
            try:
                found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except Exception as error:
                found.set_exception(error)

        Thread(target=look_up, daemon=True).start()
        try:
            return found.result(self.left_s())
        except TimeoutError as error:
            raise httpcore.TimeoutException from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error


class Stream(httpcore.NetworkStream):
    """Read and write a connection by a deadline."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, at least a byte; none at the end."""
        try:
            self._connection.settimeout(self._deadline.left_s())
            return self._connection.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.TimeoutException from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send everything, however slowly it is taken."""
        left = memoryview(buffer)
        try:
            while left:
                self._connection.settimeout(self._deadline.left_s())
                left = left[self._connection.send(left) :]
        except TimeoutError as error:
            raise httpcore.TimeoutException from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> "Stream":
        """Agree on TLS and verify who answers."""
        try:
            self._connection.settimeout(self._deadline.left_s())
            return Stream(ssl_context.wrap_socket(self._connection, server_hostname=server_hostname), self._deadline)
        except TimeoutError as error:
            self.close()
            raise httpcore.TimeoutException from error
        except OSError as error:
            self.close()
            raise httpcore.ConnectError(str(error)) from error

    def get_extra_info(self, info: str) -> Any:
        """Tell a pool what it asks: whether an idle connection was closed, and what TLS agreed on."""
        if info == "is_readable":
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            return bool(poll.poll(0))
        if info == "ssl_object":
            return self._connection if isinstance(self._connection, ssl.SSLSocket) else None
        return None
