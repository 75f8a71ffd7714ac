"""A receiver of webhooks, and one of Segment calls, on this machine; and how they may misbehave."""

import base64
import hashlib
import hmac
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

Endless = Literal["dribble", "processing", "continue", "endless", "chunks", "garbage"]
Behaviour = (
    Literal["ok", "hang", "sip", "close_unread", "close_applied", "twice", "echo"]
    | Endless
    | int
    | tuple[int, dict[str, str]]
)
"""What becomes of a request: it is applied and answered; never answered; read byte by byte; the connection is closed
before it is read, or after it was applied; it is applied twice, as from a proxy that repeats; refused with all that was
sent as the answer; answered with what has no end; answered with a status, and headers."""
ENDLESS: dict[Endless, tuple[bytes, bytes]] = {
    "dribble": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "processing": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless": (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    "chunks": (b"HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n", b"\r\n"),
}
"""How an answer begins, and what follows again and again."""
DRIBBLE_S = 0.02
TOLERANCE_S = 300


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # senders that are killed
            super().handle_error(request, client_address)


class Server:
    """Answer as `behaviours` say, a request each, and all later ones with 200 or what `accept` returns."""

    def __init__(self, behaviours: Iterable[Behaviour] = ()) -> None:
        self.behaviours = deque(behaviours)
        self.requests: list[Request] = []
        self.asked = threading.Event()
        self._stopped = threading.Event()
        self._one_at_a_time = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer leaves in one piece

            def do_POST(self) -> None:
                outer._handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def accept(self, request: Request) -> int:
        """Take a request and return the status."""
        raise NotImplementedError

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        with self._one_at_a_time:
            behaviour: Behaviour = self.behaviours.popleft() if self.behaviours else "ok"
        if behaviour in ("close_unread", "sip"):
            while behaviour == "sip" and not self._stopped.wait(DRIBBLE_S):
                handler.rfile.read(1)
            handler.close_connection = True
            return
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        request = Request(handler.path, {name.lower(): value for name, value in handler.headers.items()}, body)
        status, headers, answer = 200, dict[str, str](), b"{}"
        with self._one_at_a_time:
            self.requests.append(request)
            self.asked.set()
            match behaviour:
                case "ok" | "close_applied":
                    status = self.accept(request)
                case "twice":
                    self.accept(request)
                    status = self.accept(request)
                case "echo":
                    status, answer = 422, f"{handler.path}\n{handler.headers}\n{body.decode()}".encode()
                case int():
                    status = behaviour
                case (int(), dict()):
                    status, headers = behaviour
        if isinstance(behaviour, str) and behaviour in ENDLESS:
            beginning, again = ENDLESS[behaviour]
            handler.close_connection = True
            handler.connection.sendall(beginning)
            while not self._stopped.wait(DRIBBLE_S):
                handler.connection.sendall(again)
            return
        if behaviour == "hang":
            self._stopped.wait()
        if behaviour in ("hang", "close_applied"):
            handler.close_connection = True
            return
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer)


class Receiver(Server):
    """Verify what is sent as Standard Webhooks says, apply each key once, and keep a membership's newest change."""

    def __init__(self, secret: str, behaviours: Iterable[Behaviour] = ()) -> None:
        super().__init__(behaviours)
        encoded = secret.startswith("whsec_")
        self._key = base64.b64decode(secret.removeprefix("whsec_")) if encoded else secret.encode()
        self.keys: set[str] = set()
        self.applied: list[str] = []
        self.newest: dict[tuple[str, str], dict[str, Any]] = {}

    @property
    def members(self) -> set[tuple[str, str]]:
        """Return who is in which segment."""
        return {membership for membership, change in self.newest.items() if change["change"] == "entered"}

    def accept(self, request: Request) -> int:
        if not verify(self._key, request.headers, request.body):
            return 401
        key = request.headers["idempotency-key"]
        if key not in self.keys:
            self.keys.add(key)
            for change in json.loads(request.body)["changes"]:
                self.applied.append(change["id"])
                membership = change["user_id"], change["segment_id"]
                if change["version"] >= self.newest.get(membership, change)["version"]:
                    self.newest[membership] = change
        return 200


class SegmentReceiver(Server):
    """Hold to Segment's limits, and drop calls whose messageId came before."""

    def __init__(self, write_key: str, behaviours: Iterable[Behaviour] = ()) -> None:
        super().__init__(behaviours)
        self._authorization = f"Basic {base64.b64encode(f'{write_key}:'.encode()).decode()}"
        self.calls: dict[str, dict[str, Any]] = {}

    @property
    def members(self) -> set[tuple[str, str]]:
        """Return who is in which segment by the newest event."""
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for call in self.calls.values():
            if call["type"] == "track":
                membership = call["userId"], call["properties"]["segment_id"]
                before = newest.get(membership, call)
                if call["properties"]["version"] >= before["properties"]["version"]:
                    newest[membership] = call
        return {membership for membership, call in newest.items() if call["event"] == "Segment Entered"}

    def accept(self, request: Request) -> int:
        if request.headers["authorization"] != self._authorization or request.path != "/v1/batch":
            return 401
        batch = json.loads(request.body)["batch"]
        sizes = [len(json.dumps(call, ensure_ascii=False, separators=(",", ":")).encode()) for call in batch]
        if len(request.body) > 500_000 or max(sizes) > 32_000 or len(batch) > 2_500:
            return 400
        for call in batch:
            self.calls.setdefault(call["messageId"], call)
        return 200


def verify(key: bytes, headers: Mapping[str, str], body: bytes) -> bool:
    """Judge a request as Standard Webhooks says."""
    message_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(digest).decode()}"
    signed = any(hmac.compare_digest(given, expected) for given in headers["webhook-signature"].split())
    return signed and abs(time.time() - int(timestamp)) <= TOLERANCE_S
