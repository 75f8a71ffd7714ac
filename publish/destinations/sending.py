"""Sending: what an outbox has for a receiver goes out by HTTP, in order, and again until it arrives or is refused."""

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Literal

import httpx
import ibis.expr.types as ir
from pydantic import Field

from features.limits import SECONDS_MAX
from publish.destination import Delivery, DestinationError, DestinationSettings, Release
from publish.outbox import Count, Draft, Mark, Message, Outbox

TRIED_AGAIN = {408, 425, 429}
"""And 5xx: what a receiver answers that may take the same request later."""
BACKOFF_S, BACKOFF_MAX_S = 1.0, 60.0
"""The longest wait after the first attempt, doubled after each, and its limit; the wait is drawn between 0 and that."""
REFUSED_IN_A_ROW_MAX = 3
"""After so many the receiver is taken to refuse everything, and the rest waits."""
ANSWER_BYTES_MAX = 64 * 1024
"""How much of an answer is read."""
REASON_CHARACTERS = 200
"""How much of an answer is kept."""
PORT_MAX = 65_535
ROWS_AT_ONCE = 10_000
JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class SendingSettings(DestinationSettings):
    """Say how long to try.

    `timeout_s` is for connecting, and for each part of an answer. After `attempts_max` attempts in one publish a
    message, and those after it, wait for the next publish; so they do where the receiver asks for a longer pause than
    `retry_after_max_s`.
    """

    timeout_s: float = Field(default=30, gt=0, le=SECONDS_MAX)
    attempts_max: int = Field(default=5, ge=1, le=1_000)
    retry_after_max_s: float = Field(default=120, ge=0, le=SECONDS_MAX)


@dataclass(frozen=True)
class World:
    """Hold what sending takes from outside beside the network: seconds since 1970, a pause, and chance in [0, 1)."""

    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random


@dataclass(frozen=True)
class Failure:
    """Say why a message did not arrive, whether it never will, and after how many seconds to try again if told."""

    reason: str
    answer: str | None = None
    final: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Sender:
    """Bring a destination's messages to one address.

    `headers` are made for a message and the time of an attempt, in whole seconds since 1970. They, the address and
    `secrets` are in nothing that is said of a failure. Raises DestinationError for an address that is none.
    """

    destination: str
    url: str = field(repr=False)
    outbox: Outbox
    settings: SendingSettings
    headers: Callable[[Message, int], Mapping[str, str]] = field(repr=False)
    secrets: Sequence[str] = field(default=(), repr=False)
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        find_host(self.destination, self.url)

    def deliver(self, release: Release, drafts: Callable[[int], Iterable[Draft]]) -> Delivery:
        """Queue what `drafts(since)` makes of the versions that were not queued, then send all that is pending."""
        mark = Mark(self.destination, release.version, iso(release.as_of), release.source)
        self.outbox.queue(mark, drafts)
        sent_count, note = self._send_pending()
        counts = self.outbox.count(self.destination)
        pending, failed = counts["pending"], counts["failed"]
        said = []
        if failed.message_count:
            last = self.outbox.entries("failed", self.destination)[-1]
            said.append(f"{_told(failed)} failed, the last with {last.reason}: see `habitus outbox`")
        if pending.message_count:
            said.append(f"{_told(pending)} wait for the next publish: {note}")
        state: Literal["released", "unchanged", "pending", "failed"] = "released" if sent_count else "unchanged"
        if failed.message_count:
            state = "failed"
        elif pending.message_count:
            state = "pending"
        where = find_host(self.destination, self.url)
        return Delivery(self.destination, state, where, sent_count, "; ".join(said), "changes")

    def _send_pending(self) -> tuple[int, str]:
        """Send in order; return how many changes arrived, and why sending ended before all of them had."""
        change_count, refused_in_a_row = 0, 0
        message = self.outbox.next_pending(self.destination)
        if message is None:
            return 0, ""
        # Not httpx.Client, which logs addresses and keeps cookies.
        with httpx.HTTPTransport() as transport:
            while message:
                failure = self._send(transport, message)
                if failure is None:
                    change_count += message.change_count
                    refused_in_a_row = 0
                elif failure.final:
                    refused_in_a_row += 1
                    if refused_in_a_row == REFUSED_IN_A_ROW_MAX:
                        return change_count, f"{REFUSED_IN_A_ROW_MAX} in a row were refused"
                else:
                    return change_count, failure.reason
                message = self.outbox.next_pending(self.destination)
        return change_count, ""

    def _send(self, transport: httpx.HTTPTransport, message: Message) -> Failure | None:
        """Try until the message arrives, is refused, or the receiver has had enough attempts."""
        reason = ""
        for attempt in range(1, self.settings.attempts_max + 1):
            failure = self._attempt(transport, message)
            if failure is None:
                self.outbox.mark_sent(message)
                return None
            self.outbox.mark_tried(message, failure.reason, failure.answer, failed=failure.final)
            if failure.final:
                return failure
            reason, retry_after_s = failure.reason, failure.retry_after_s or 0
            if retry_after_s > self.settings.retry_after_max_s:
                return Failure(f"{reason}, which asks to wait for {retry_after_s:,.0f} s")
            if attempt < self.settings.attempts_max:
                backoff_s = self.world.chance() * min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (attempt - 1))
                self.world.pause(max(retry_after_s, backoff_s))
        return Failure(f"{reason} after {self.settings.attempts_max} attempts")

    def _attempt(self, transport: httpx.HTTPTransport, message: Message) -> Failure | None:
        began_s = self.world.clock()
        headers = self.headers(message, int(began_s))
        request = httpx.Request(
            "POST",
            self.url,
            headers={"Content-Type": "application/json", "User-Agent": "habitus", **headers},
            content=message.body,
            extensions={"timeout": httpx.Timeout(self.settings.timeout_s).as_dict()},
        )
        try:
            response = transport.handle_request(request)
        except httpx.TimeoutException:
            return Failure(f"no answer within {self.settings.timeout_s:g} s")
        except (httpx.TransportError, UnicodeError) as error:  # the latter of a host that no name server could know
            return Failure(self._hidden(_in_one_line(f"no connection ({error})"), headers))
        answer = self._read(response, began_s)
        if response.is_success:
            return None
        text = self._hidden(_in_one_line(answer.decode(errors="replace")), headers)[:REASON_CHARACTERS]
        return Failure(
            f"HTTP {response.status_code}",
            answer=text or None,
            final=response.status_code < 500 and response.status_code not in TRIED_AGAIN,
            retry_after_s=_read_retry_after(response.headers.get("Retry-After"), self.world.clock()),
        )

    def _read(self, response: httpx.Response, began_s: float) -> bytes:
        """Read an answer up to a limit of bytes and time; what it says after the status is not needed."""
        answer = b""
        try:
            for part in response.iter_raw():
                answer += part
                if len(answer) > ANSWER_BYTES_MAX or self.world.clock() > began_s + self.settings.timeout_s:
                    break
        except httpx.TransportError:
            pass
        finally:
            response.close()
        return answer[:ANSWER_BYTES_MAX]

    def _hidden(self, text: str, headers: Mapping[str, str]) -> str:
        """Return a text without secrets, the address after its host, and what proves who sends."""
        address = re.split(r"[/?&=]", httpx.URL(self.url).raw_path.decode())
        proofs = [part for value in headers.values() for part in re.split("[ ,]", value)]
        for secret in sorted({*address, *proofs, *self.secrets}, key=len, reverse=True):
            if len(secret) > 3:
                text = text.replace(secret, "***")
        return text


def forget_users(
    outbox: Outbox,
    destination: str,
    memberships: Mapping[str, Sequence[str]],
    items: str,
    user_key: str,
    segment_of: Callable[[dict[str, Any]], str | None],
    removals: Callable[[Mark, list[tuple[str, str]]], Iterable[Draft]],
) -> int:
    """Take users out of all messages that were not sent, and queue that they left; return how many messages that is.

    A body is JSON whose `items` are a list of what is about one user each. Users are taken to be in the segments of
    `memberships` and in those that the messages were about, since what these would have said is lost: `removals` makes
    messages of user and segment.
    """
    left = {user: dict.fromkeys(segments) for user, segments in memberships.items()}

    def without(body: bytes) -> tuple[bytes | None, int]:
        content = json.loads(body)
        kept = []
        for item in content[items]:
            if item[user_key] not in left:
                kept.append(item)
            elif (segment_id := segment_of(item)) is not None:
                left[item[user_key]][segment_id] = None
        change_count = sum(segment_of(item) is not None for item in kept)
        if len(kept) == len(content[items]):
            return body, change_count
        return (to_json(content | {items: kept}) if kept else None), change_count

    def then(mark: Mark) -> Iterable[Draft]:
        return removals(mark, [(user, segment) for user, segments in left.items() for segment in segments])

    return outbox.rewrite(destination, without, then)


def find_host(destination: str, url: str) -> str:
    """Return an address's scheme and host; what follows may be secret. Raises DestinationError where it is none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    safe = parsed.scheme == "https" or (parsed.scheme == "http" and _is_this_machine(parsed.host))
    if not parsed.host or not safe or parsed.userinfo or (parsed.port or 0) > PORT_MAX:
        raise DestinationError(
            f"{destination}: the url has to be https://, a host and no password (http:// only on this machine)"
        )
    return f"{parsed.scheme}://{parsed.netloc.decode()}"


def rows_in(table: ir.Table) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a table, of which only some are in memory."""
    for batch in table.to_pyarrow_batches(chunk_size=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def to_json(content: Any) -> bytes:
    """Return the bytes of a body."""
    return JSON.encode(content).encode()


def _read_retry_after(given: str | None, now_s: float) -> float | None:
    """Read seconds, or a date of HTTP; None where it is neither."""
    if given is None:
        return None
    if given.strip().isascii() and given.strip().isdigit():
        return float(given)
    try:
        at = parsedate_to_datetime(given)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_s)


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_one_line(text: str) -> str:
    """Return a text without line breaks and what else a terminal obeys."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _told(count: Count) -> str:
    messages = "message" if count.message_count == 1 else "messages"
    changes = "change" if count.change_count == 1 else "changes"
    return f"{count.message_count:,} {messages} with {count.change_count:,} {changes}"


def iso(instant: datetime) -> str:
    """Return an instant as ISO 8601 in UTC."""
    return instant.astimezone(UTC).isoformat()
