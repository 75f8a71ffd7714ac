"""The lock that lets one process at a time publish, or erase: what one of them reads, no other changes meanwhile."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

FILE = "publish.lock"
WAIT_S = 60
"""For how long a command waits for another."""
POLL_S = 0.2


class LockedError(Exception):
    """Say who publishes or erases in a lake, and that it did not end in time."""


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
    folder.mkdir(parents=True, exist_ok=True)
    until = clock() + wait_s
    with (folder / FILE).open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock() >= until:
                    file.seek(0)
                    who = file.read().strip() or "another process"
                    raise LockedError(
                        f"{folder}: {who} publishes or erases there, and was not done after {wait_s:g} s; "
                        "wait for it, then run the same command again"
                    ) from None
                sleep(POLL_S)
        file.truncate(0)
        file.write(f"process {getpid()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
