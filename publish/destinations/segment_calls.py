"""Segment calls: `identify` and `track` in batches, as Segment's HTTP API takes them, and what is compatible with it.

Calls and limits: https://www.twilio.com/docs/segment/connections/sources/catalog/libraries/server/http-api
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import ibis.expr.types as ir

from publish.assignments import PROPENSITIES, labels_in
from publish.changes import ENTERED, LEFT
from publish.destination import Credential, Delivery, DestinationError, Release
from publish.destinations.sending import Sender, SendingSettings, World, forget_users, iso, rows_in, to_json
from publish.destinations.webhook import change_id
from publish.outbox import Draft, Mark, Message, Outbox

BATCH_BYTES_MAX, CALL_BYTES_MAX, CALLS_MAX = 500_000, 32_000, 2_500
"""Of a request, of a call in it, and how many calls are in a request."""
EVENTS = {True: "Segment Entered", False: "Segment Exited"}
PREFIX = "habitus_"
"""Of traits, which other sources of the same user have, too."""
CLEARED = {f"{PREFIX}{name}": None for name in ("segment_id", "segment_name", "lifecycle_stage")} | {
    f"{PREFIX}{label}_probability": None for label in PROPENSITIES
}
"""The traits of a user of whom nothing is known any more."""


class SegmentSettings(SendingSettings):
    """Say where calls go, and with which source's key."""

    kind: Literal["segment"]
    endpoint: str = "https://api.segment.io"
    write_key: Credential

    def connect(
        self, name: str, credentials: Mapping[str, str], folder: Path, outbox: Outbox, world: World | None = None
    ) -> "SegmentCalls":
        """Return the destination; nothing is sent. Raises DestinationError for an endpoint that is none."""
        write_key = credentials["write_key"].strip()
        if not write_key:
            raise DestinationError(f"{name}: the write key is empty")
        authorization = f"Basic {base64.b64encode(f'{write_key}:'.encode()).decode()}"

        def headers(message: Message, timestamp: int) -> dict[str, str]:
            return {"Authorization": authorization, "Idempotency-Key": message.id}

        url = f"{self.endpoint.rstrip('/')}/v1/batch"
        return SegmentCalls(name, Sender(name, url, outbox, self, headers, (write_key,), world or World()))


@dataclass(frozen=True)
class SegmentCalls:
    """Send each change as `track`, and before those of a user, `identify` with what is known of the user now."""

    name: str
    sender: Sender

    def deliver(self, release: Release) -> Delivery:
        """Queue the calls for changes since the last version that was queued; `send` sends them."""

        def drafts(since: int) -> Iterator[Draft]:
            return _batches(release.version, self._calls(release, since))

        return self.sender.queue(release, drafts)

    def send(self) -> Delivery:
        """Send what is pending."""
        return self.sender.send()

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        """Take users out of all messages that were not sent, and queue that they left; `send` sends it."""

        def removals(mark: Mark, left: list[tuple[str, str]]) -> Iterator[Draft]:
            calls = (
                call
                for user_id, pairs in groupby(left, lambda pair: pair[0])
                for call in [
                    self._identify(user_id, mark.version, mark.as_of, {}),
                    *(self._track(user_id, mark.as_of, _erased(segment_id, mark.version)) for _, segment_id in pairs),
                ]
            )
            return _batches(mark.version, calls)

        def segment_of(call: dict[str, Any]) -> str | None:
            return call["properties"]["segment_id"] if call["type"] == "track" else None

        return forget_users(self.sender.outbox, self.name, memberships, "batch", "userId", segment_of, removals)

    def _calls(self, release: Release, since: int) -> Iterator[dict[str, Any]]:
        """Make the calls of one user after the other, since a request is taken apart where it is received."""
        known = _known(release.rows)
        changes = release.changes(since).left_join(known, "user_id").order_by("user_id", "version", "segment_id")
        for user_id, of_user in groupby(rows_in(changes), lambda row: row["user_id"]):
            rows = list(of_user)
            traits = {name: value for name, value in rows[0].items() if name.startswith(PREFIX)}
            yield self._identify(user_id, release.version, iso(release.as_of), traits)
            for row in rows:
                yield self._track(user_id, iso(row["as_of"]), row)

    def _identify(self, user_id: str, version: int, at: str, traits: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "type": "identify",
            "messageId": change_id(self.name, version, user_id, "", "identify"),
            "userId": user_id,
            "timestamp": at,
            "traits": {**CLEARED, **traits, f"{PREFIX}named_segments": traits.get(f"{PREFIX}named_segments") or []}
            | {f"{PREFIX}version": version},
        }

    def _track(self, user_id: str, at: str, change: Mapping[str, Any]) -> dict[str, Any]:
        properties = {name: change[name] for name in ("segment_id", "segment_name", "reason", "version")}
        return {
            "type": "track",
            "messageId": change_id(self.name, change["version"], user_id, change["segment_id"], change["change"]),
            "userId": user_id,
            "timestamp": at,
            "event": EVENTS[change["change"] == ENTERED],
            "properties": properties,
        }


def _known(rows: ir.Table) -> ir.Table:
    """Return what becomes the traits of users: null where it is not known."""
    columns = {"named_segments": rows.rule_segments}
    for name in ("segment_id", "segment_name", "lifecycle_stage"):
        columns[name] = rows[name]
    for label in labels_in(rows.columns):
        probability = rows[f"{label}_probability"]
        columns[f"{label}_probability"] = probability.isnan().ifelse(None, probability)  # which JSON has not
    return rows.select("user_id", **{f"{PREFIX}{name}": column for name, column in columns.items()})


def _erased(segment_id: str, version: int) -> dict[str, Any]:
    return {"segment_id": segment_id, "segment_name": None, "change": LEFT, "reason": "erased", "version": version}


def _batches(version: int, calls: Iterable[dict[str, Any]]) -> Iterator[Draft]:
    """Put calls into as few requests as the limits allow; a call that is beyond them is a message that failed."""
    batch: list[bytes] = []
    byte_count = change_count = 0
    for call in calls:
        encoded, is_change = to_json(call), call["type"] == "track"
        if len(encoded) > CALL_BYTES_MAX:
            reason = f"a call of {len(encoded):,} bytes, and Segment takes {CALL_BYTES_MAX:,}"
            yield Draft(version, _body([encoded]), int(is_change), reason)
            continue
        if byte_count + len(encoded) + len(_body([b""])) > BATCH_BYTES_MAX or len(batch) == CALLS_MAX:
            yield Draft(version, _body(batch), change_count)
            batch, byte_count, change_count = [], 0, 0
        batch.append(encoded)
        byte_count += len(encoded) + 1
        change_count += is_change
    if batch:
        yield Draft(version, _body(batch), change_count)


def _body(calls: Sequence[bytes]) -> bytes:
    return b'{"batch":[' + b",".join(calls) + b"]}"
