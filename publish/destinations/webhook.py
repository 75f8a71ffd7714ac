"""Webhook: changes by HTTP to an address of one's own, signed as Standard Webhooks says, with an idempotency key.

Format and signature: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from publish.changes import LEFT
from publish.destination import Credential, Delivery, DestinationError, Release
from publish.destinations.sending import Sender, SendingSettings, World, forget_users, iso, rows_in, to_json
from publish.outbox import Draft, Mark, Message, Outbox

SCHEMA_VERSION = "1.0"
"""Of bodies. An added key raises the second number, anything else the first."""
TYPE = "segments.changed"
SECRET_BYTES_MIN = 24
"""Of the signing key, as Standard Webhooks says."""


class WebhookSettings(SendingSettings):
    """Say where changes go, what they are signed with, and how many are in a request.

    `secret` is whsec_ and base64, as Standard Webhooks has it, or any other text, whose UTF-8 is the key then.
    """

    kind: Literal["webhook"]
    url: str | Credential
    secret: Credential
    batch_size: int = Field(default=500, ge=1, le=100_000)

    def connect(
        self, name: str, credentials: Mapping[str, str], folder: Path, outbox: Outbox, world: World | None = None
    ) -> "Webhook":
        """Return the destination; nothing is sent. Raises DestinationError for a secret or an address that is none."""
        url = self.url if isinstance(self.url, str) else credentials["url"].strip()
        secret = credentials["secret"].strip()
        key = read_secret(name, secret)

        def headers(message: Message, timestamp: int) -> dict[str, str]:
            return {
                "webhook-id": message.id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign(key, message.id, timestamp, message.body),
                "Idempotency-Key": message.id,
            }

        secrets = (secret, secret.removeprefix("whsec_"))
        return Webhook(name, Sender(name, url, outbox, self, headers, secrets, world or World()), self.batch_size)


@dataclass(frozen=True)
class Webhook:
    """Send each change of the versions to a receiver, at least once, in order."""

    name: str
    sender: Sender
    batch_size: int

    def deliver(self, release: Release) -> Delivery:
        """Queue the changes since the last version that was queued; `send` sends them."""

        def drafts(since: int) -> Iterator[Draft]:
            changes = release.changes(since).order_by("version", "user_id", "segment_id")
            for (version, as_of), rows in groupby(rows_in(changes), lambda row: (row["version"], row["as_of"])):
                while some := list(islice(rows, self.batch_size)):
                    yield self._draft(release.source, version, iso(as_of), some)

        return self.sender.queue(release, drafts)

    def send(self) -> Delivery:
        """Send what is pending."""
        return self.sender.send()

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        """Take users out of all messages that were not sent, and queue that they left; `send` sends it."""

        def removals(mark: Mark, left: list[tuple[str, str]]) -> Iterator[Draft]:
            rows = [
                {"user_id": user_id, "segment_id": segment_id, "change": LEFT, "reason": "erased"}
                for user_id, segment_id in left
            ]
            for start in range(0, len(rows), self.batch_size):
                yield self._draft(mark.source, mark.version, mark.as_of, rows[start : start + self.batch_size])

        return forget_users(
            self.sender.outbox, self.name, memberships, "changes", "user_id", lambda item: item["segment_id"], removals
        )

    def _draft(self, source: str, version: int, as_of: str, rows: Sequence[Mapping[str, Any]]) -> Draft:
        changes = [
            {
                "id": change_id(self.name, version, row["user_id"], row["segment_id"], row["change"]),
                "version": version,
                "user_id": row["user_id"],
                "segment_id": row["segment_id"],
                "segment_name": row.get("segment_name"),
                "change": row["change"],
                "reason": row["reason"],
                "from_segment_id": row.get("from_segment_id"),
                "to_segment_id": row.get("to_segment_id"),
            }
            for row in rows
        ]
        content = {
            "type": TYPE,
            "schema_version": SCHEMA_VERSION,
            "source": source,
            "destination": self.name,
            "version": version,
            "as_of": as_of,
            "changes": changes,
        }
        return Draft(version, to_json(content), len(changes))


def change_id(destination: str, version: int, user_id: str, segment_id: str, change: str) -> str:
    """Return the id of a change, the same whichever message it is in."""
    # The length keeps apart what a user id could run together.
    content = f"{destination}\x1f{version}\x1f{change}\x1f{len(user_id)}\x1f{user_id}\x1f{segment_id}"
    return f"chg_{hashlib.sha256(content.encode()).hexdigest()[:40]}"


def read_secret(destination: str, secret: str) -> bytes:
    """Return the key that a secret stands for. Raises DestinationError where it is no base64, or too short."""
    key = secret.encode()
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_").encode(), validate=True)
        except binascii.Error as error:
            raise DestinationError(f"{destination}: what follows whsec_ in the secret has to be base64") from error
    if len(key) < SECRET_BYTES_MIN:
        raise DestinationError(
            f"{destination}: the secret has to be {SECRET_BYTES_MIN} bytes or more: make one with"
            " `echo whsec_$(openssl rand -base64 32)`"
        )
    return key


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a message at an attempt's time, as in the header.

    >>> key = read_secret("hook", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    >>> sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
