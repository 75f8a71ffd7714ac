"""Places: where rows are in the files that they came from. They carry no line numbers, since few are ever asked for."""

import csv
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from features.compression import open_unpacked

DELIMITERS = (",", "\t", ";", "|")
NO_LINES = (".parquet", ".pq")
"""Ends of names of files that have none."""


def place_of(folder: Path, name: str, text: str | None) -> str:
    """Say where a row is: its file, and its line where the file is text that has it.

    `name` is its source_file, relative to the folder, and `text` what `sources.row_text` gives.
    """
    lines = [] if text is None or name.lower().endswith(NO_LINES) else find_lines(folder / name, [text], 1)
    return f"{name}, line {lines[0]:,}" if lines else name


def find_lines(path: Path, rows: list[str], most: int) -> list[int]:
    """Find the first lines, in order and from 1, on which a text file has some rows; so many at `most`.

    Rows are as `sources.row_text` gives them. Lines that cannot be found are left out: the engine reads some files that
    Python does not.
    """
    found: list[int] = []
    try:
        with io.TextIOWrapper(open_unpacked(path), "utf-8-sig", errors="replace", newline="") as file:
            for line in _matches(file, rows):
                found.append(line)
                if len(found) == most:
                    break
    except (OSError, EOFError, zlib.error, UnicodeError, csv.Error):
        pass
    return found


def _matches(file: TextIO, rows: list[str]) -> Iterator[int]:
    """Yield the lines of rows: lines as they are, those that are objects of a CSV file's columns as its rows."""
    header = file.readline()
    unread = chain([header], file)
    lines = set(rows)
    if header.lstrip().startswith("{"):
        yield from (number for number, line in enumerate(unread, start=1) if line.strip("\r\n") in lines)
        return
    objects = {key for key in map(_key_of, rows) if key is not None}
    delimiter = max(DELIMITERS, key=header.count)
    kept: list[str] = []
    reader = csv.reader(_keeping(unread, kept), delimiter=delimiter)
    names = [name or f"column_{place}" for place, name in enumerate(next(reader), start=1)]
    while True:
        start = reader.line_num + 1
        kept.clear()
        values = next(reader, None)
        if values is None:
            return
        key = tuple(sorted(pair for pair in zip(names, values, strict=False) if pair[1]))
        if values and ("".join(kept).strip("\r\n") in lines or key in objects):
            yield start


def _keeping(file: Iterable[str], kept: list[str]) -> Iterator[str]:
    """Yield lines, and keep those of the row that is being read."""
    for line in file:
        kept.append(line)
        yield line


def _key_of(row: str) -> tuple[tuple[str, str], ...] | None:
    """Return what a row's object says, without what is blank; None for a line that is no object."""
    try:
        found = json.loads(row)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    return tuple(sorted((name, value) for name, value in found.items() if isinstance(value, str) and value))
