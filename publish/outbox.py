"""The outbox: requests on their way to receivers, pending until they are sent or have failed. SQLite.

A message is one request's body, fixed when it is queued: a repeat has the same id and the same bytes. What a version
gives is queued in one transaction with the mark that says so, so a crash anywhere sends each change at least once.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from publish.destination import DestinationError

State = Literal["pending", "sent", "failed"]
LAYOUT = 1
"""Of the database; kept in its user_version."""
BUSY_S = 30
"""How long to wait for another process."""
TABLES = """
CREATE TABLE marks (
    destination TEXT PRIMARY KEY, version INTEGER NOT NULL, as_of TEXT NOT NULL, source TEXT NOT NULL
) STRICT;
CREATE TABLE messages (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    destination TEXT NOT NULL,
    version INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    change_count INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    answer TEXT,
    queued_at TEXT NOT NULL,
    sent_at TEXT,
    body BLOB
) STRICT;
CREATE INDEX messages_by_state ON messages (destination, state, position);
"""


@dataclass(frozen=True)
class Mark:
    """Say up to which version a destination has been queued, and of when and from where that version is."""

    destination: str
    version: int
    as_of: str
    source: str


@dataclass(frozen=True)
class Draft:
    """Hold the body of a message to be, and how many changes are in it. `failed` says why it can never be sent."""

    version: int
    body: bytes
    change_count: int
    failed: str | None = None


@dataclass(frozen=True)
class Message:
    """Hold what is to be sent; `id` is the key that a receiver knows a repeat by."""

    position: int
    id: str
    body: bytes
    change_count: int


@dataclass(frozen=True)
class Entry:
    """Say what became of a message, without its body; `reason` is why the last attempt failed, if it did.

    `answer` is the beginning of what the receiver said then, which may repeat user ids.
    """

    id: str
    destination: str
    version: int
    change_count: int
    state: State
    attempts: int
    reason: str | None
    answer: str | None
    queued_at: str
    sent_at: str | None


@dataclass(frozen=True)
class Count:
    """Say how many messages, with how many changes, are in a state."""

    message_count: int
    change_count: int


class Outbox:
    """Hold the messages of all destinations in one file, which only its owner can read.

    Methods raise DestinationError where the database cannot be read or written: nothing is queued or marked then.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        with self._explained():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                path.chmod(0o600)
            except OSError as error:
                raise DestinationError(f"the outbox {path} cannot be opened: {error.strerror}") from error
            self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise

    def _open(self) -> None:
        # A rollback journal, synced at each commit, and no WAL: that would keep bodies of sent messages for long. It
        # costs a millisecond per message. A commit lost to a power cut is one that is repeated.
        self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA secure_delete = ON")
        if self._layout() == 0:
            with self._transaction():
                if self._layout() == 0:
                    for statement in TABLES.split(";"):
                        self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version = {LAYOUT}")
        if self._layout() != LAYOUT:
            raise DestinationError(f"the outbox {self.path} was made by a later version of Habitus: update it")

    def _layout(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def queue(self, mark: Mark, drafts: Callable[[int], Iterable[Draft]]) -> None:
        """Queue what `drafts(since)` makes of the versions after `since`, and mark it; nothing where that was done.

        Raises DestinationError where a later version is queued already: the lake is another than it was.
        """
        with self._transaction():
            last = self.mark(mark.destination)
            since = last.version if last else 0
            if since > mark.version:
                raise DestinationError(
                    f"the outbox {self.path} has queued version {since} for {mark.destination}, and this is version"
                    f" {mark.version}: if the lake was made anew, remove the outbox, and all is sent from the start"
                )
            if since < mark.version:
                self._insert(mark.destination, drafts(since))
                self._database.execute(
                    "INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?)",
                    (mark.destination, mark.version, mark.as_of, mark.source),
                )

    def mark(self, destination: str) -> Mark | None:
        """Return up to which version a destination has been queued."""
        with self._explained():
            row = self._database.execute("SELECT * FROM marks WHERE destination = ?", (destination,)).fetchone()
        return Mark(*row) if row else None

    def rewrite(
        self,
        destination: str,
        change: Callable[[bytes], tuple[bytes | None, int]],
        then: Callable[[Mark], Iterable[Draft]],
    ) -> int:
        """Change the bodies of all messages that are pending or have failed, then queue what `then` makes.

        `change` returns a body and its number of changes; where it is another body the message has another id, and
        where there is none the message is removed. All is one transaction. Return how many messages were changed,
        removed or queued. A destination that was never queued has nothing to change.
        """
        with self._transaction():
            mark = self.mark(destination)
            if mark is None:
                return 0
            unsent = self._database.execute(
                "SELECT position, version, sequence FROM messages"
                " WHERE destination = ? AND state != 'sent' ORDER BY position",
                (destination,),
            ).fetchall()
            touched = 0
            for position, version, sequence in unsent:
                (before,) = self._database.execute(
                    "SELECT body FROM messages WHERE position = ?", (position,)
                ).fetchone()
                body, change_count = change(before)
                if body is None:
                    self._database.execute("DELETE FROM messages WHERE position = ?", (position,))
                elif body != before:
                    self._database.execute(
                        "UPDATE messages SET id = ?, body = ?, change_count = ?, answer = NULL WHERE position = ?",
                        (message_id(destination, version, sequence, body), body, change_count, position),
                    )
                touched += body != before
            return touched + self._insert(destination, then(mark))

    def keep_only(self, destinations: Collection[str]) -> int:
        """Remove what was not sent to other destinations than these; return how many messages that were.

        They may be about users who were erased since. A destination that comes back gets what it was not sent.
        """
        others = f"destination NOT IN ({', '.join('?' for _ in destinations)})"
        with self._transaction():
            self._database.execute(f"DELETE FROM marks WHERE {others}", tuple(destinations))
            done = self._database.execute(
                f"DELETE FROM messages WHERE state != 'sent' AND {others}", tuple(destinations)
            )
            return done.rowcount

    def next_pending(self, destination: str) -> Message | None:
        """Return the message that is to be sent next: the oldest."""
        with self._explained():
            row = self._database.execute(
                "SELECT position, id, body, change_count FROM messages"
                " WHERE destination = ? AND state = 'pending' ORDER BY position LIMIT 1",
                (destination,),
            ).fetchone()
        return Message(*row) if row else None

    def find_pending(self, position: int) -> Message | None:
        """Return the message at a position as it is now; None where it is not pending, or not there any more."""
        with self._explained():
            row = self._database.execute(
                "SELECT position, id, body, change_count FROM messages WHERE position = ? AND state = 'pending'",
                (position,),
            ).fetchone()
        return Message(*row) if row else None

    def mark_sent(self, message: Message) -> None:
        """Say that the receiver has a message, be it as it was before it was rewritten; its body is removed."""
        with self._transaction():
            self._database.execute(
                "UPDATE messages SET state = 'sent', attempts = attempts + 1, sent_at = ?,"
                " reason = NULL, answer = NULL, body = NULL WHERE position = ?",
                (self._now(), message.position),
            )

    def mark_tried(self, message: Message, reason: str, answer: str | None, *, failed: bool) -> None:
        """Say why an attempt failed, and whether the message has: then it waits for a person to `retry` it.

        Of one that was rewritten meanwhile no answer is kept, which may repeat what it was.
        """
        with self._transaction():
            self._database.execute(
                "UPDATE messages SET state = ?, attempts = attempts + 1, reason = ?,"
                " answer = CASE WHEN id = ? THEN ? END WHERE position = ?",
                ("failed" if failed else "pending", reason, message.id, answer, message.position),
            )

    def retry(self, destination: str | None = None) -> int:
        """Have messages that failed, of one destination or all, sent again in their order; return how many."""
        with self._transaction():
            done = self._database.execute(
                "UPDATE messages SET state = 'pending'"
                " WHERE state = 'failed' AND destination = coalesce(?, destination)",
                (destination,),
            )
            return done.rowcount

    def entries(self, state: State, destination: str | None = None) -> list[Entry]:
        """List the messages in a state, of one destination or all, in their order; "failed" are the dead letters."""
        with self._explained():
            rows = self._database.execute(
                "SELECT id, destination, version, change_count, state, attempts, reason, answer, queued_at, sent_at"
                " FROM messages WHERE state = ? AND destination = coalesce(?, destination) ORDER BY position",
                (state, destination),
            ).fetchall()
        return [Entry(*row) for row in rows]

    def count(self, destination: str) -> dict[State, Count]:
        """Count a destination's messages and their changes by state."""
        states: dict[State, Count] = {"pending": Count(0, 0), "sent": Count(0, 0), "failed": Count(0, 0)}
        with self._explained():
            rows = self._database.execute(
                "SELECT state, count(*), sum(change_count) FROM messages WHERE destination = ? GROUP BY state",
                (destination,),
            ).fetchall()
        return states | {state: Count(message_count, change_count) for state, message_count, change_count in rows}

    def _insert(self, destination: str, drafts: Iterable[Draft]) -> int:
        """Queue messages, each once."""
        inserted, version, sequence = 0, None, 0
        for draft in drafts:
            sequence = sequence + 1 if draft.version == version else 1
            version = draft.version
            done = self._database.execute(
                "INSERT OR IGNORE INTO messages"
                " (id, destination, version, sequence, change_count, state, reason, queued_at, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    message_id(destination, draft.version, sequence, draft.body),
                    destination,
                    draft.version,
                    sequence,
                    draft.change_count,
                    "failed" if draft.failed else "pending",
                    draft.failed,
                    self._now(),
                    draft.body,
                ),
            )
            inserted += done.rowcount
        return inserted

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit all or nothing, and let no other process write meanwhile."""
        with self._explained():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite ends it by itself where the disk is full
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DestinationError(f"the outbox {self.path} cannot be used: {error}") from error


def message_id(destination: str, version: int, sequence: int, body: bytes) -> str:
    """Return the id of a message: a hash of its destination, version, number within the version, and content."""
    digest = hashlib.sha256(f"{destination}\x1f{version}\x1f{sequence}\x1f".encode())
    digest.update(body)
    return f"msg_{digest.hexdigest()[:40]}"
