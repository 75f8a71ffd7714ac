"""What may be said of users' rows where anybody can read it: where they are and of which form, never what they hold.

Errors and logs end up in stores that nobody is erased from.
"""

import re
import traceback
from pathlib import Path

QUOTED = re.compile(r"""(['"])(?:.*\1|.*$)""", re.DOTALL)
"""From the first quote to the last, since engines do not escape those within a value; to the end, where one is open."""
NUMBER = re.compile(r"(?<!line: )(?<!line )(?<!byte )(?<![\w.])-?\d+(?:\.\d+)?(?!\w)", re.IGNORECASE)
HIDDEN = "\N{HORIZONTAL ELLIPSIS}"
FORM_MAX = 40


def hide_values(message: str) -> str:
    """Return the first line of an engine's message without what it quotes, and without numbers but of lines and bytes.

    >>> hide_values("Could not convert string 'ada@example.com' to DOUBLE")
    'Could not convert string … to DOUBLE'
    >>> hide_values("Type INT64 with value 4711 can't be cast")
    'Type INT64 with value … can…'
    >>> hide_values("CSV Error on Line: 12")
    'CSV Error on Line: 12'
    """
    before, query, after = message.strip().rpartition("\n\nLINE ")  # a value may have lines, too
    hidden = QUOTED.sub(HIDDEN, before if query else after)
    return NUMBER.sub(HIDDEN, hidden.splitlines()[0])


def form_of(value: object) -> str:
    """Return what a value looks like, a letter as a, a digit as 9, and no more of it than fits on a line.

    >>> form_of("31/12/2024 10:00"), form_of("ada@example.com")
    ('99/99/9999 99:99', 'aaa@aaaaaaa.aaa')
    """
    form = re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", " ".join(str(value).split())))
    return form if len(form) <= FORM_MAX else form[: FORM_MAX - 1] + HIDDEN


def where(error: BaseException) -> str:
    """Say where an error was raised, and of which type it is: not its message, which may name a user."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"
