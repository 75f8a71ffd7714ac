"""Connections: how many there may be and how long each may take, before anybody has shown a key.

Nobody is turned away while another can go: when there are too many, the idlest is closed. All can but those whose
request has a key and is being answered.
"""

import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger("habitus.serve")

CONNECTIONS_MAX = 1_000
SHARE_OF_ADDRESS = 4
"""One address may have a quarter of them: no more than that is of use behind a proxy either."""
FILES_OF_OTHERS = 512
"""Files that may be open beside connections: tables, keys, reports, and connections that are just being accepted."""
ACCEPTED_AT_ONCE = 250
"""So that of those who come together each is read before others crowd it out."""
QUEUED_MAX = 4096
"""Who wait to be accepted; the kernel may allow fewer."""
FIRST_SECOND_S = 1
NETWORK_BITS = 64
"""Of an IPv6 address: what one subscriber has."""
FIRST_BYTE_WITHIN_S = 5
"""After connecting, and after an answer."""
HEAD_WITHIN_S = 10
"""After its first byte."""
BODY_WITHIN_S = 30
"""After the head."""
SENT_WITHIN_S = 30
SENT_BYTES = 48 * 1024
"""A client that reads less of an answer in SENT_WITHIN_S does not read it."""
HEAD_MAX_BYTES = 64 * 1024 - 1
"""Of a request's line and headers: httptools reads no longer address. What is longer is looked up by POST."""
HEADERS_MAX = 100
PIPELINED_MAX = 16
"""Requests that are sent before the answer to the first: each takes more memory here than it takes to send."""


class Crowd:
    """Hold the connections that there are, in the order in which they last got on."""

    def __init__(self, connections_max: int = CONNECTIONS_MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.connections_max = connections_max
        self.of_address_max = max(connections_max // SHARE_OF_ADDRESS, 1)
        self._inside: OrderedDict[Connection, str] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._inside)

    @property
    def protocol(self) -> Any:
        """Return what uvicorn makes connections with, as its setting `http`."""
        return partial(Connection, self)

    def enter(self, connection: "Connection", address: str) -> None:
        """Take a connection in; where there are too many, another makes room for it, or it goes itself if none can."""
        self._inside[connection] = address
        self._counts[address] += 1
        if len(self) > self.connections_max:
            logger.warning("more than %d connections: the idlest is closed", self.connections_max)
            [(crowd, _)] = self._counts.most_common(1)
            of_crowd = (one for one, its_address in self._inside.items() if its_address == crowd and one.can_go)
            self._close(next(of_crowd, connection))

    def got_on(self, connection: "Connection") -> None:
        """Note that a connection is the last that got on."""
        if connection in self._inside:
            self._inside.move_to_end(connection)

    def leave(self, connection: "Connection") -> None:
        """Forget a connection, which may be forgotten already."""
        address = self._inside.pop(connection, None)
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def see_out(self) -> None:
        """Close all that take too long, and the idlest of an address that has too many: call it each second.

        Who has just come is left a second to send a request: the address may be a proxy's.
        """
        now = self.clock()
        too_many = {address: of_it - self.of_address_max for address, of_it in self._counts.items()}
        for connection, address in [*self._inside.items()]:
            if too_many[address] > 0 and connection.is_waiting and now - connection.since >= FIRST_SECOND_S:
                too_many[address] -= 1
                logger.warning("more than %d connections of one address: the idlest are closed", self.of_address_max)
                self._close(connection)
            else:
                connection.see_out_if_late(now)

    def _close(self, connection: "Connection") -> None:
        self.leave(connection)
        connection.transport.abort()


class Connection(HttpToolsProtocol):
    """A connection with limits on what arrives, and on how long it takes."""

    def __init__(self, crowd: Crowd, **given: Any) -> None:
        super().__init__(**given)
        self.crowd = crowd
        self.since = 0.0
        """When it last got on."""
        self.arriving: str | None = None
        """What is: the head or the body of a request."""
        self.head_bytes: int | None = 0
        """What has arrived of a head, or between the chunks of a body; None while a body arrives."""
        self.unsent_bytes = 0
        """Of an answer, when the client last read enough of it."""

    @property
    def is_answering(self) -> bool:
        """Tell whether the application has a request of this connection."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_waiting(self) -> bool:
        """Tell whether it is the client's turn, to send or to read."""
        return bool(self.transport.get_write_buffer_size()) or not (self.is_answering or self.transport.is_closing())

    @property
    def can_go(self) -> bool:
        """Tell whether it may be closed for another: if it is the client's turn, or nobody has shown a key."""
        return self.is_waiting or (self.is_answering and self.cycle.scope["state"].get("key") is None)

    def _got_on(self) -> None:
        self.since = self.crowd.clock()
        self.crowd.got_on(self)

    # --- what asyncio and the parser tell ---

    def connection_made(self, transport: Any) -> None:
        """Enter, which may be the end already."""
        super().connection_made(transport)
        self._got_on()
        self.crowd.enter(self, network_of(self.client[0] if self.client else ""))

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave."""
        super().connection_lost(exc)
        self.crowd.leave(self)

    def resume_writing(self) -> None:
        """Note that the client reads."""
        super().resume_writing()
        self.unsent_bytes = self.transport.get_write_buffer_size()
        self._got_on()

    def on_message_begin(self) -> None:
        """Begin to count, unless too many requests wait already."""
        if len(self.pipeline) >= PIPELINED_MAX:
            raise ValueError("too many requests before the first answer")
        super().on_message_begin()
        self.head_bytes, self.arriving = 0, "head"
        self._got_on()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, unless there are too many."""
        if len(self.headers) >= HEADERS_MAX:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop counting."""
        super().on_headers_complete()
        self.head_bytes, self.arriving = None, "body"
        self._got_on()

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
        self.head_bytes = self.arriving = None
        self._got_on()

    def on_response_complete(self) -> None:
        """Wait for the next request; what is left of this one's body is not kept."""
        self.cycle.body.clear()
        super().on_response_complete()
        self._got_on()

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head is still open after too many bytes."""
        super().data_received(data)
        if self.head_bytes is not None and not self.transport.is_closing():
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_MAX_BYTES:
                self.send_400_response("The headers of the request do not end.")

    def send_400_response(self, msg: str) -> None:
        """Say what to do about an id that is too long for an address; not in the middle of an answer."""
        if self.is_answering and self.cycle.response_started:
            self.transport.abort()
            return
        super().send_400_response(
            f"{msg} A head has at most 64 KiB and {HEADERS_MAX} headers: look a longer id up with POST /users/lookup."
        )

    def _unsupported_upgrade_warning(self) -> None:
        """Keep quiet: the request is answered as if it had asked for no WebSocket."""

    # --- what takes too long ---

    def see_out_if_late(self, now: float) -> None:
        """Close the connection if what is due has not come."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if not unsent_bytes or unsent_bytes <= self.unsent_bytes - SENT_BYTES:
            if self.unsent_bytes:
                self._got_on()
            self.unsent_bytes = unsent_bytes
        self.unsent_bytes = max(self.unsent_bytes, unsent_bytes)
        late = self._late(now - self.since, unsent_bytes)
        if late is None:
            return
        if late:
            logger.warning("closed a connection: %s", late)
        if self.arriving and not (unsent_bytes or self._has_answered):
            self.transport.write(TIMED_OUT)
            self.transport.close()
        else:
            self.transport.abort()

    @property
    def _has_answered(self) -> bool:
        return self.arriving == "body" and (self.cycle.response_started or bool(self.pipeline))

    def _late(self, waited_s: float, unsent_bytes: int) -> str | None:
        """Say what has not come in time; nothing ("") of a connection that is idle, None where there is time left."""
        if unsent_bytes:
            return "its client does not read the answer" if waited_s > SENT_WITHIN_S else None
        if self.arriving == "body":
            is_late = waited_s > BODY_WITHIN_S and not self.flow.read_paused
            return f"the body did not end within {BODY_WITHIN_S} s" if is_late else None
        if self.is_answering:
            return None
        if self.arriving == "head":
            return f"the head did not end within {HEAD_WITHIN_S} s" if waited_s > HEAD_WITHIN_S else None
        return "" if waited_s > FIRST_BYTE_WITHIN_S else None


TIMED_OUT = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 27\r\n"
    b"connection: close\r\n\r\nThe request did not arrive."
)


def network_of(host: str) -> str:
    """Return whom an address counts for.

    >>> network_of("192.0.2.7"), network_of("::ffff:192.0.2.7"), network_of("2001:db8::1:2:3:4%eth0")
    ('192.0.2.7', '192.0.2.7', '2001:db8::/64')
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, NETWORK_BITS), strict=False))


def room_for(files_max: int) -> int:
    """Return how many connections fit where so many files may be open."""
    return max(min(files_max - FILES_OF_OTHERS, CONNECTIONS_MAX), 1)
