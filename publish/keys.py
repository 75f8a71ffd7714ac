"""API keys: who may ask for what. SQLite, in a file that only its owner can read.

A key is 256 random bits, shown once. What is kept is its SHA-256: nobody can go through 2^256 keys, so the salt and the
slow hash that passwords need would only make each request slower.
"""

import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from features.addresses import existing_database

Scope = Literal["aggregate", "lists", "personal"]
"""Numbers only; users without what is marked personal; all. Each includes those before."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "hk_"
USE_NOTED_EVERY_S = 60
BUSY_S = 5
LAYOUT = 1
"""Of the database; kept in its user_version."""
TABLE = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    scope TEXT NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    revoked_at TEXT,
    last_used_at TEXT
) STRICT
"""


class KeysError(Exception):
    """Say in one line why keys cannot be read or written, or that there is no such key."""


@dataclass(frozen=True)
class Key:
    """Say what is known of a key, which is not the key itself. Times are ISO 8601, UTC; `last_used_at` to a minute."""

    id: str
    name: str
    scope: Scope
    created_at: str
    revoked_at: str | None
    last_used_at: str | None

    def may(self, scope: Scope) -> bool:
        """Tell whether the key is wide enough for a scope."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class Keys:
    """Hold the keys of one file, which is made where it is not there, and never again by an object that has made it.

    Where the file is gone no key is valid; where it is another, those in it are. Methods raise KeysError where the
    database cannot be read or written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._noted: dict[str, float] = {}
        self._known: list[tuple[bytes, Key]] = []
        self._known_state: tuple[int, ...] | None = None
        self._known_version: int | None = None
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)
            with closing(self._connect()) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                if not _layout(connection, path):
                    connection.execute(TABLE)
                    connection.execute(f"PRAGMA user_version = {LAYOUT}")

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()

    def create(self, scope: Scope, name: str) -> tuple[Key, str]:
        """Make a key; return what is known of it, and the key, which nobody can read again."""
        secret = PREFIX + secrets.token_urlsafe(32)
        key = Key(secrets.token_hex(4), name, scope, self._now(), None, None)
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO keys (id, name, scope, hash, created_at) VALUES (?, ?, ?, ?, ?)",
                (key.id, key.name, key.scope, _hash(secret), key.created_at),
            )
        return key, secret

    def all(self) -> list[Key]:
        """List all keys, revoked ones too, the oldest first."""
        return [key for _, key in self._read()]

    def revoke(self, key_id: str) -> Key:
        """Let a key be worth nothing from now on; of one that was revoked before, the time stays."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (self._now(), key_id)
            )
        found = [key for key in self.all() if key.id == key_id]
        if not found:
            raise KeysError(f"there is no key {key_id!r}; `habitus keys list` shows the ids of all")
        return found[0]

    def find(self, secret: str | None) -> Key | None:
        """Return the key that a text is, None for none, a wrong or a revoked one.

        Every known key is compared in constant time, whatever is given, so the time taken tells nothing of them.
        """
        given = _hash(secret or "")
        found: Key | None = None
        for known, key in self._read():
            if hmac.compare_digest(known, given):
                found = key
        return found if secret and found is not None and found.revoked_at is None else None

    def is_use_due(self, key: Key) -> bool:
        """Tell whether the use of a key is to be noted now: at most once a minute. The next call says no."""
        now = self._clock()
        if now - self._noted.get(key.id, float("-inf")) < USE_NOTED_EVERY_S:
            return False
        self._noted[key.id] = now
        return True

    def note_use(self, key: Key) -> None:
        """Write down that a key was used now. It waits for other writers: call it where that disturbs nobody."""
        with self._writing() as connection:
            connection.execute("UPDATE keys SET last_used_at = ? WHERE id = ?", (self._now(), key.id))

    def _read(self) -> list[tuple[bytes, Key]]:
        """Return all keys with their hashes; read again only where the file is another, or another process changed it.

        A commit may leave size and times as they were, and a file that is copied over this one SQLite's own counter.
        """
        with self._reading, self._explained():
            state = self._state()
            if state is None:
                return []
            if self._reader is None or state != self._known_state:
                self._known_version = self._known_state = None
                self.close()
                self._reader = self._connect()
            [version] = self._reader.execute("PRAGMA data_version").fetchone()
            if version != self._known_version:
                columns = "hash, id, name, scope, created_at, revoked_at, last_used_at"
                select = f"SELECT {columns} FROM keys ORDER BY rowid"
                rows = self._reader.execute(select).fetchall() if _layout(self._reader, self.path) else []
                self._known = [(bytes(row[0]), Key(*row[1:])) for row in rows]
                self._known_state, self._known_version = state, version
            return self._known

    def _state(self) -> tuple[int, ...] | None:
        """Return what differs where the file is another, None where there is none."""
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _connect(self) -> sqlite3.Connection:
        """Open the file, which is not made: an empty one in the place of a lost one would say that all is well."""
        address = existing_database(self.path)
        return sqlite3.connect(address, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        # Not by the reader's connection, which is told of others' changes only.
        with self._explained(), closing(self._connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise KeysError(f"{self.path}: the keys cannot be read or written: {reason}") from error

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")


def _layout(connection: sqlite3.Connection, path: Path) -> int:
    """Return the layout of a database, 0 of one that is empty. Raises KeysError for one that is not known here."""
    layout: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if layout not in (0, LAYOUT):
        raise KeysError(f"{path}: was written by another version of Habitus (layout {layout}); upgrade Habitus")
    return layout


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
