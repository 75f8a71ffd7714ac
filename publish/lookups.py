"""What the API asks the lake: a user's sessions, and the feed of changes. Read only, and never in anybody's way.

The lake is not held: an erasure that wants it alone does not wait for those who ask. A file that it purges meanwhile is
one that is asked for again.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import ibis
from deltalake.exceptions import DeltaError

from features.lake import Lake
from features.sessions import SESSIONS
from features.table import TIME
from publish.versions import read_changes

MEMORY_LIMIT_BYTES = 500_000_000
SESSIONS_MAX = 200
"""Of a user, the last ones."""
DESTINATION = "published"
ATTEMPTS = 3

Found = TypeVar("Found")


class LakeAwayError(Exception):
    """Say that the lake could not be read now."""


@dataclass(frozen=True)
class Lookups:
    """Ask the tables in a lake's folder, one question at a time; a lake that is not there has no rows."""

    folder: Path
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def sessions(self, user_id: str, as_of: datetime) -> list[dict[str, Any]]:
        """Return the SESSIONS of a user that were over before an instant, the latest first, at most so many."""

        def ask(lake: Lake) -> list[dict[str, Any]]:
            sessions = lake.read(SESSIONS)
            theirs = sessions.filter(sessions.user_id == user_id, sessions.ended_at < ibis.literal(as_of, TIME))
            latest = theirs.order_by(ibis.desc("started_at"), "session_id").limit(SESSIONS_MAX)
            rows: list[dict[str, Any]] = latest.drop("user_id").to_pyarrow().to_pylist()
            return rows

        return self._ask(ask) if self.folder.is_dir() else []

    def changes(self, since: int, until: int, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Return some of the CHANGES of `published` after a version until another, in order, and how many there are."""

        def ask(lake: Lake) -> tuple[list[dict[str, Any]], int]:
            changes = read_changes(lake, until)
            ours = changes.filter(changes.destination == DESTINATION, changes.version > since).drop("destination")
            ordered = ours.order_by("version", "user_id", "segment_id").limit(limit, offset=offset)
            return ordered.to_pyarrow().to_pylist(), ours.count().to_pyarrow().as_py()

        return self._ask(ask) if self.folder.is_dir() else ([], 0)

    def _ask(self, ask: Callable[[Lake], Found]) -> Found:
        with self._asking:
            for _ in range(ATTEMPTS):
                try:
                    with Lake(self.folder, MEMORY_LIMIT_BYTES, held=False) as lake:
                        return ask(lake)
                except (OSError, DeltaError, duckdb.Error) as error:
                    failure = error
        raise LakeAwayError(f"the tables cannot be read now ({type(failure).__name__}); ask again") from failure
