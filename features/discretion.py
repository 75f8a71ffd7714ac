"""What may be said of users' rows where anybody can read it: where they are and of which form, never what they hold.

Errors and logs end up in stores that nobody is erased from.
"""

import csv
import gzip
import json
import re
import traceback
from pathlib import Path
from typing import TextIO, cast

DELIMITERS = ",\t;|"
NO_LINES = (".parquet", ".pq", ".zst")
"""Ends of names of files that have none, or none that are read here."""
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


def place_of(folder: Path, name: str, text: str | None) -> str:
    """Say where a row is: its file, and its line where the file is text that has it.

    `name` is its source_file, relative to the folder, and `text` what `sources.row_text` gives.
    """
    line = None if text is None else _line_of(folder / name, text)
    return name if line is None else f"{name}, line {line}"


def where(error: BaseException) -> str:
    """Say where an error was raised, and of which type it is: not its message, which may name a user."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"


def _line_of(file: Path, text: str) -> int | None:
    """Return the line, from 1 on, of a line or of a row of CSV given as JSON by column; None where there is none."""
    if file.suffix.lower() in NO_LINES:
        return None
    try:
        with _open(file) as lines:
            for number, line in enumerate(lines, start=1):
                if line.rstrip("\r\n") == text:
                    return number
        values = sorted(filter(None, json.loads(text).values()))
        with _open(file) as lines:
            header = lines.readline()
            rows, before = csv.reader(lines, delimiter=max(DELIMITERS, key=header.count)), 1
            for row in rows:
                if sorted(filter(None, row)) == values:
                    return before + 1
                before = rows.line_num + 1
    except (OSError, EOFError, ValueError, TypeError, AttributeError, csv.Error):
        return None  # no text that Python reads as the engine does
    return None


def _open(file: Path) -> TextIO:
    opened = gzip.open if file.suffix.lower() == ".gz" else open
    return cast(TextIO, opened(file, "rt", encoding="utf-8-sig", errors="replace", newline=""))
