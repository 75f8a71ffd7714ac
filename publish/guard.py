"""Who gets in, what every answer carries, and what is logged: never an address, which may have a user's id in it."""

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.discretion import where
from publish.keys import Key, Keys, KeysError
from publish.sites import PAGE, is_foreign, is_navigation

logger = logging.getLogger("habitus.serve")
requests = logging.getLogger("habitus.serve.requests")

HEALTH = "/health"
BODY_MAX_BYTES = 256 * 1024
"""Of a request: an id of 10,000 characters fits, however JSON or a form writes it."""
PROBLEM = "application/problem+json"
CHALLENGES = ('Bearer realm="habitus"', 'Basic realm="habitus", charset="UTF-8"')
NOTHING_RUNS = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": NOTHING_RUNS,
    "cache-control": "private, no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer that does not set its own."""
HSTS = "max-age=31536000"
EVERYONE = Key("open-local", "open-local", "personal", "", None, None)
"""Whoever asks a server that was started with --open-local."""


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> JSONResponse:
    """Return an answer that says what went wrong, as RFC 9457 has it. `detail` repeats nothing that was asked."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(content, status, headers, PROBLEM)


class Guard:
    """Let in who has a key, or, without keys, who asks this machine by its own name; add headers, log, answer errors.

    `keys` is None where whoever reaches this machine may see all: then the Host header has to be one of `hosts`, so
    that no page of another site can ask under a name that it had point here (DNS rebinding).
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys | None,
        hosts: Collection[str] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.app = app
        self.keys = keys
        self.hosts = hosts
        self.clock = clock
        self._noting: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = self.clock()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, is_secure=scope["scheme"] == "https")
            await send(message)

        key: Key | None = None
        try:
            given = Headers(scope=scope)
            key, refusal = self._admit(scope, given)
            if refusal is not None:
                await refusal(scope, receive, answer)
            else:
                scope.setdefault("state", {})["key"] = key
                await self.app(scope, _bounded(receive), answer)
        except ClientDisconnect:
            logger.info("%s: the client left before the request was there", _what(scope))
            return
        except Exception as error:
            logger.error("%s failed: %s", _what(scope), where(error))
            if not status:
                await problem(500, "something went wrong here; the log says where")(scope, receive, answer)
        if key is not None:
            requests.info("%s %s %.1f ms key %s", _what(scope), status, (self.clock() - began) * 1000, key.id)
        else:  # the same for all that are the same, so that a flood of them is one line
            logger.info("%s %s key -", _what(scope), status)

    def _admit(self, scope: Scope, given: Headers) -> tuple[Key | None, Response | None]:
        """Return whose key it is, and an answer to those who do not get further."""
        if is_foreign(given, scope["scheme"]):  # before a key is looked at, so that nothing can be told by the time
            if is_navigation(given):
                return None, HTMLResponse(PAGE, 403)
            return None, problem(403, "another site's page asked for this; open the address yourself")
        if self.keys is None:
            if given.get("host", "") not in self.hosts:
                return None, problem(421, "this server answers under the name of this machine only")
            key: Key | None = EVERYONE
        else:
            try:
                key = self.keys.find(_secret(given.get("authorization", "")))
            except KeysError as error:
                logger.error("%s", error)
                return None, problem(503, "keys cannot be read now", {"retry-after": "5"})
            if key is None and scope["path"] != HEALTH:
                if not self.keys.path.exists():
                    logger.error("%s: is gone, so no key is valid; put it back, or make keys anew", self.keys.path)
                refusal = problem(401, "a valid key is needed: Authorization: Bearer hk_...")
                refusal.raw_headers += [(b"www-authenticate", challenge.encode()) for challenge in CHALLENGES]
                return None, refusal
            if key is not None and self.keys.is_use_due(key):
                self._note(self.keys, key)
        length = given.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_MAX_BYTES:
            return key, problem(413, f"a request has at most {BODY_MAX_BYTES} bytes")
        return key, None

    def _note(self, keys: Keys, key: Key) -> None:
        """Have the use of a key written down by a thread, so that no request waits for it."""

        def note() -> None:
            try:
                keys.note_use(key)
            except KeysError as error:
                logger.error("%s", error)

        noting = asyncio.get_running_loop().run_in_executor(None, note)
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)


def _secret(authorization: str) -> str | None:
    """Return the key in an Authorization header: as a bearer's token, or as the password of whatever user."""
    scheme, _, given = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return given.strip()
        case "basic":
            try:
                return base64.b64decode(given.strip(), validate=True).decode("latin-1").partition(":")[2]
            except (binascii.Error, ValueError):
                return None
        case _:
            return None


def _add_headers(message: Message, is_secure: bool) -> None:
    headers = message["headers"] = list(message.get("headers", ()))
    given = {name for name, _ in headers}
    for name, value in _ENCODED:
        if name not in given:
            headers.append((name, value))
    if is_secure:
        headers.append((b"strict-transport-security", HSTS.encode()))


_ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


def _bounded(receive: Receive) -> Receive:
    """Return what gives a request's body, up to a limit: a length need not be said beforehand."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_MAX_BYTES:
            raise HTTPException(413, f"a request has at most {BODY_MAX_BYTES} bytes")
        return message

    return bounded


def _what(scope: Scope) -> str:
    """Say which route was asked: not the address, which may name a user."""
    return f"{scope['method'] if scope['method'].isalpha() else '-'} {getattr(scope.get('route'), 'path', '-')}"
