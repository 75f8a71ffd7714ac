"""Locks that let one process at a time change a lake, and one publish or report: what one reads, no other changes.

The kernel lets go of a lock when its process dies. What the file says is only for those who wait.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from features.lake import is_running
from features.zones import write_instant

FILE = "publish.lock"
WORKING = "work.lock"
WAIT_S = 6 * 3600
"""For how long one waits for another: longer than a run takes, and shorter than a day, when the next is due."""
DELIVERING_WAIT_S = 60
"""For how long one waits for another who takes something to the same destination: it takes what there is then."""
SAY_EVERY_S = 60
UNKNOWN = "another process"
POLL_S = 0.2


class LockedError(Exception):
    """Say who works on a lake, publishes or reports there, and that it did not end in time."""


@dataclass(frozen=True)
class Work:
    """Say what is done, such as a stage of a configuration, and in which zone to say since when: for those who wait."""

    what: str
    time_zone: str


@contextmanager
def working_lock(
    folder: Path,
    work: Work,
    wait_s: float,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Be the only one who changes the lake in a folder; wait for another for at most so long, and say for whom.

    It is said again every minute. Raises LockedError where the other is not done by then. Where the disk locks no
    files, that is said, and nobody is waited for.
    """
    with _lock(folder / WORKING, work, wait_s, say, clock, sleep):
        yield


@contextmanager
def publishing_lock(
    folder: Path,
    work: Work,
    wait_s: float,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Be the only one who publishes, erases or reports from a lake's folder, as `working_lock` does."""
    with _lock(folder / FILE, work, wait_s, say, clock, sleep):
        yield


@contextmanager
def delivering_lock(
    folder: Path,
    destination: str,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Be the only one who takes something from a lake to a destination, as `working_lock` does."""
    work = Work(f"delivery to {destination}", "UTC")
    with _lock(folder / f"delivering-{destination}.lock", work, wait_s, lambda line: None, clock, sleep):
        yield


@contextmanager
def _lock(
    path: Path,
    work: Work,
    wait_s: float,
    say: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[None]:
    folder = path.parent
    is_new = not folder.exists()
    until = clock() + wait_s
    said, say_at = "", clock() + SAY_EVERY_S
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            if _take(file, say):
                _write(file, work)
                try:
                    yield
                finally:
                    file.truncate(0)
                    if is_new and folder.exists() and [*folder.iterdir()] == [path]:  # nothing came of it
                        path.unlink()
                        folder.rmdir()
                return
            who = _read(file)
        if clock() >= until:
            raise LockedError(
                f"{folder} is in use by {who}, which did not end within {_in_words(wait_s)}; "
                "run the same command again when it has"
            )
        if who not in (said, UNKNOWN) or clock() >= say_at:  # who has just taken it says so in a moment
            say(f"waiting for {who}, for {_in_words(until - clock())} at most")
            said, say_at = who, clock() + SAY_EVERY_S
        sleep(POLL_S)


def _take(file: TextIO, say: Callable[[str], None]) -> bool:
    """Take the lock of a file, if it is free and the file is still there; tell whether that was so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        say(
            f"{Path(file.name).parent} is on a disk that locks no files: run one command at a time there; "
            "where two change a table at once, the second fails and leaves it as the first did"
        )
    return os.fstat(file.fileno()).st_nlink > 0


def _write(file: TextIO, work: Work) -> None:
    since = write_instant(datetime.now(UTC), work.time_zone)
    file.truncate(0)
    file.write(json.dumps({"what": work.what, "since": since, "process": os.getpid(), "host": socket.gethostname()}))
    file.flush()


def _read(file: TextIO) -> str:
    """Say who has the lock of a file. Until they have written it, there is what a killed one left, or nothing."""
    file.seek(0)
    try:
        told = json.loads(file.read())
        is_here = told["host"] == socket.gethostname()
        if is_here and not is_running(told["process"]):
            return UNKNOWN
        where = "" if is_here else f" on {told['host']}"
        return f"{told['what']} (process {told['process']}{where}, since {told['since']})"
    except (ValueError, TypeError, KeyError):
        return UNKNOWN


def _in_words(seconds: float) -> str:
    """Say a duration.

    >>> [_in_words(seconds) for seconds in (5, 89, 3599, 21_480)]
    ['5 s', '1 min', '1 h', '5 h 58 min']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return " ".join(f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min")) if count)
