"""Locks that let one process at a time work on a lake, and one publish or erase: what one reads, no other changes."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

FILE = "publish.lock"
WORKING = "work.lock"
WAIT_S = 60
"""For how long a command waits for another."""
POLL_S = 0.2


class LockedError(Exception):
    """Say who works on a lake, publishes or erases there, and that it did not end in time."""


@contextmanager
def publishing_lock(
    folder: Path,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Be the only one who publishes from a lake's folder, or erases there; wait for another for at most so long.

    The kernel lets go when the process dies. Raises LockedError where the other is not done by then.
    """
    with _lock(folder / FILE, "publishes or erases", wait_s, clock, sleep, lambda who: None):
        yield


@contextmanager
def working_lock(
    folder: Path,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] = lambda who: None,
) -> Iterator[None]:
    """Be the only one who makes tables of a lake's events, as `publishing_lock` does; `on_wait` is told of another."""
    with _lock(folder / WORKING, "works", wait_s, clock, sleep, on_wait):
        yield


@contextmanager
def _lock(
    path: Path,
    does: str,
    wait_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    on_wait: Callable[[str], None],
) -> Iterator[None]:
    folder = path.parent
    is_new, is_waiting = not folder.exists(), False
    until = clock() + wait_s
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            if _take(file):
                file.truncate(0)
                file.write(f"process {os.getpid()}")
                file.flush()
                try:
                    yield
                finally:
                    file.truncate(0)
                    if is_new and folder.exists() and [*folder.iterdir()] == [path]:  # nothing came of it
                        path.unlink()
                        folder.rmdir()
                return
            file.seek(0)
            who = file.read().strip() or "another process"
        if clock() >= until:
            raise LockedError(
                f"{folder}: {who} {does} there, and was not done after {wait_s:g} s; "
                "wait for it, then run the same command again"
            )
        if not is_waiting:
            on_wait(who)
        is_waiting = True
        sleep(POLL_S)


def _take(file: TextIO) -> bool:
    """Take the lock of a file, if it is free and the file is still there; tell whether that was so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file.fileno()).st_nlink > 0
