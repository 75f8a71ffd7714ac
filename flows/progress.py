"""What is done and being done, on standard error while a command works."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status


class _Lines(logging.Handler):
    """Print what is done, with the seconds since the line before; show what is being done (debug) while it is."""

    def __init__(self, console: Console, status: Status) -> None:
        super().__init__()
        self.console = console
        self.status = status
        self.before = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO:
            self.status.update(record.getMessage())
            return
        now = time.monotonic()
        self.console.print(f"{now - self.before:6.1f} s  {record.getMessage()}", soft_wrap=True, markup=False)
        self.before = now


@contextmanager
def progress() -> Iterator[None]:
    """Print a line for each stage that is done, and show that work goes on."""
    console = Console(stderr=True, highlight=False)
    logger = logging.getLogger("habitus")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    with console.status("starting") as status:
        lines = _Lines(console, status)
        logger.addHandler(lines)
        try:
            yield
        finally:
            logger.removeHandler(lines)
