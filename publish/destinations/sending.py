"""Sending: what an outbox has for a receiver goes out by HTTP, in order, and again until it arrives or is refused.

What a version brings is queued while no other is made; it is sent after that, since a receiver may take its time.
"""

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

import httpcore
import httpx
import ibis.expr.types as ir
from pydantic import Field

from features.limits import SECONDS_MAX
from publish.destination import Delivery, DestinationError, DestinationSettings, Release
from publish.destinations.deadline import Deadline
from publish.lock import DELIVERING_WAIT_S, LockedError, delivering_lock
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

    `timeout_s` is for all of an attempt, from looking up the name to the end of the answer. After `attempts_max`
    attempts in one publish a message, and those after it, wait for the next publish; so they do where the receiver asks
    for a longer pause than `retry_after_max_s`.
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

    def queue(self, release: Release, drafts: Callable[[int], Iterable[Draft]]) -> Delivery:
        """Queue what `drafts(since)` makes of the versions that were not queued; nothing is sent."""
        self.outbox.queue(Mark(self.destination, release.version, iso(release.as_of), release.source), drafts)
        return self._told(0, "queued")

    def send(self) -> Delivery:
        """Send all that is pending. Where another process does so still after a minute, leave it to that one."""
        try:
            with delivering_lock(self.outbox.path.parent, self.destination, DELIVERING_WAIT_S):
                change_count, why_ended = self._send_pending()
        except LockedError as error:
            return self._told(0, str(error))
        return self._told(change_count, why_ended)

    def _told(self, sent_count: int, why_ended: str) -> Delivery:
        """Say how many changes arrived now, what waits and why, and what has failed."""
        counts = self.outbox.count(self.destination)
        pending, failed = counts["pending"], counts["failed"]
        said = []
        if failed.message_count:
            last = self.outbox.entries("failed", self.destination)[-1]
            said.append(f"{_in_words(failed)} failed, the last with {last.reason}: see `habitus outbox`")
        if pending.message_count:
            wait = "waits" if pending.message_count == 1 else "wait"
            said.append(f"{_in_words(pending)} {wait} for the next publish: {why_ended}")
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
        deadline = Deadline()
        # Not httpx.Client, which logs addresses and keeps cookies, and has no deadline for an attempt.
        with httpcore.ConnectionPool(httpx.create_ssl_context(), network_backend=deadline) as pool:
            while message:
                outcome = self._send(pool, deadline, message)
                if isinstance(outcome, int):
                    change_count += outcome
                    refused_in_a_row = 0
                elif outcome.final:
                    refused_in_a_row += 1
                    if refused_in_a_row == REFUSED_IN_A_ROW_MAX:
                        return change_count, f"{REFUSED_IN_A_ROW_MAX} in a row were refused"
                else:
                    return change_count, outcome.reason
                message = self.outbox.next_pending(self.destination)
        return change_count, ""

    def _send(self, pool: httpcore.ConnectionPool, deadline: Deadline, message: Message) -> int | Failure:
        """Try until the message arrives, is refused, or the receiver has had enough attempts.

        Return how many changes arrived. Each attempt sends what the message is then: an erasure may rewrite it.
        """
        reason = ""
        for attempt in range(1, self.settings.attempts_max + 1):
            failure = self._attempt(pool, deadline, message)
            if failure is None:
                self.outbox.mark_sent(message)
                return message.change_count
            self.outbox.mark_tried(message, failure.reason, failure.answer, failed=failure.final)
            if failure.final:
                return failure
            reason, retry_after_s = failure.reason, failure.retry_after_s or 0
            if retry_after_s > self.settings.retry_after_max_s:
                return Failure(f"{reason}, which asks to wait for {retry_after_s:,.0f} s")
            if attempt < self.settings.attempts_max:
                backoff_s = self.world.chance() * min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (attempt - 1))
                self.world.pause(max(retry_after_s, backoff_s))
                left = self.outbox.find_pending(message.position)
                if left is None:
                    return 0
                message = left
        most = self.settings.attempts_max
        return Failure(f"{reason} after {most} {'attempt' if most == 1 else 'attempts'}")

    def _attempt(self, pool: httpcore.ConnectionPool, deadline: Deadline, message: Message) -> Failure | None:
        headers = self.headers(message, int(self.world.clock()))
        sent = {"Content-Type": "application/json", "User-Agent": "habitus", **headers}
        request = httpx.Request("POST", self.url, headers=sent, content=message.body)
        deadline.begin(self.settings.timeout_s)
        try:
            response = pool.handle_request(_raw(request))
        except httpcore.TimeoutException:
            return Failure(f"no answer within {self.settings.timeout_s:g} s")
        except httpcore.ProtocolError as error:
            return Failure(self._hidden(_in_one_line(f"no answer in HTTP ({error})"), headers))
        except (httpcore.NetworkError, UnicodeError) as error:  # the latter of a host that no name server could know
            return Failure(self._hidden(_in_one_line(f"no connection ({error})"), headers))
        answer = _read(response)
        if 200 <= response.status < 300:
            return None
        text = self._hidden(_in_one_line(answer.decode(errors="replace")), headers)[:REASON_CHARACTERS]
        retry_after = httpx.Headers(response.headers).get("Retry-After")
        return Failure(
            f"HTTP {response.status}",
            answer=text or None,
            final=response.status < 500 and response.status not in TRIED_AGAIN,
            retry_after_s=_read_retry_after(retry_after, self.world.clock()),
        )

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


def _raw(request: httpx.Request) -> httpcore.Request:
    url = request.url
    raw_url = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Request(request.method, raw_url, headers=request.headers.raw, content=request.content)


def _read(response: httpcore.Response) -> bytes:
    """Read an answer up to a limit of bytes and the attempt's deadline; what follows the status is not needed."""
    answer = b""
    try:
        for part in response.iter_stream():
            answer += part
            if len(answer) > ANSWER_BYTES_MAX:
                break
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        pass
    finally:
        response.close()
    return answer[:ANSWER_BYTES_MAX]


def _read_retry_after(given: str | None, now_s: float) -> float | None:
    """Read seconds, or a date of HTTP; None where it is neither."""
    if given is None:
        return None
    if given.strip().isascii() and given.strip().isdigit():
        return float(given)
    try:
        at = parsedate_to_datetime(given)
    except (ValueError, OverflowError):  # the latter of a number that no date has
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


def _in_words(count: Count) -> str:
    messages = "message" if count.message_count == 1 else "messages"
    changes = "change" if count.change_count == 1 else "changes"
    return f"{count.message_count:,} {messages} with {count.change_count:,} {changes}"


def iso(instant: datetime) -> str:
    """Return an instant as ISO 8601 in UTC."""
    return instant.astimezone(UTC).isoformat()
