"""The program `habitus`: the command, and its end, whoever ends it. Imports little, so that Ctrl-C is heard at once."""

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


class Stopped(BaseException):
    """Say by which signal a command was stopped. No Exception, so that nobody takes it for a mistake."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def main() -> None:
    """Run the command; a mistake in what a person wrote is one line and exit status 2."""
    end_well(_run)


def end_well(run: Callable[[], None]) -> NoReturn:
    """Run what exits by itself; one line where a signal stopped it, and none where nobody reads on.

    A query that is interrupted, and others' libraries, raise errors of their own: what they come from tells.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # of a terminal that has no letters but those of English
    try:
        try:
            run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        sys.exit(0)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            complain(f"{error.filename or 'standard output'}: {error.strerror}")
        _hush(1)  # what is left of it has nowhere to go
        sys.exit(1)
    except BaseException as error:
        stopped = _find_stopped(error)
        if stopped is None:
            raise
        complain("stopped; nothing was half-written: run the same command again")
        _hush(2)  # what others say of their ends is for nobody
        sys.exit(stopped.status)


def complain(message: str) -> None:
    """Say in one line what is wrong."""
    print(f"habitus: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _run() -> None:
    from flows.cli import app

    app()


_stopped: list[Stopped] = []
"""What stopped this process, if something did."""


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # whoever insists is obeyed at once
    _stopped.append(Stopped(number))
    raise _stopped[0]


def _find_stopped(error: BaseException) -> Stopped | None:
    """Return what stopped this process, unless it came to its own end all the same."""
    if not _stopped or (isinstance(error, SystemExit) and not error.code):
        return None
    return _stopped[0]


def _hush(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


if __name__ == "__main__":
    main()
