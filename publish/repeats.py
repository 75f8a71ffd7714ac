"""A log that repeats nothing: what was said in the last minute is counted, and how often is said once it is over."""

import logging
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from features.discretion import where

EVERY_S = 60
FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
REPR = re.compile("<.*")
"""Of something in memory: it is different each time, and nobody knows what it shows."""


@dataclass
class _Said:
    at: float
    level: int
    again: int = 0


class Sparing(logging.Handler):
    """Write a line the first time, then once a minute how often it was repeated. An error is its type and place."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.setFormatter(FORMAT)
        self._stream = stream or sys.stderr
        self._clock = clock
        self._said: dict[str, _Said] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        first_line = record.getMessage().strip().partition("\n")[0]
        text = REPR.sub("…", first_line) if record.name == "asyncio" else first_line
        if record.exc_info and record.exc_info[1]:
            text = f"{text}: {where(record.exc_info[1])}"
        if text in self._said:
            self._said[text].again += 1
        else:
            self._said[text] = _Said(self._clock(), record.levelno)
            self._write(record.levelno, text)

    def tell(self) -> None:
        """Say how often lines were repeated whose minute is over: call it each second."""
        with self.lock:  # type: ignore[union-attr]
            for text, said in [*self._said.items()]:
                if self._clock() - said.at >= EVERY_S:
                    self._tell(text, said)
                    if said.again:
                        self._said[text] = _Said(self._clock(), said.level)
                    else:
                        del self._said[text]

    def close(self) -> None:
        """Say what is not said yet."""
        with self.lock:  # type: ignore[union-attr]
            for text, said in self._said.items():
                self._tell(text, said)
            self._said.clear()
        super().close()

    def _tell(self, text: str, said: _Said) -> None:
        if said.again:
            times = "once" if said.again == 1 else f"{said.again:,} times"
            self._write(said.level, f"{text} (repeated {times} in {self._clock() - said.at:.0f} s)")

    def _write(self, level: int, text: str) -> None:
        record = logging.LogRecord("", level, "", 0, text, None, None)
        with suppress(OSError, ValueError):  # where nobody reads the log any more, requests are answered still
            self._stream.write(self.format(record) + "\n")
            self._stream.flush()
