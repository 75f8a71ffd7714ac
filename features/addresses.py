"""Addresses: what a library that takes no path wants in its place. Each has characters that mean something to it.

No other module makes one, so that a folder may have any name.
"""

import glob
import re
from pathlib import Path
from urllib.parse import quote

from features.table import ContractError

MISREAD = re.compile(r"%[0-9A-Fa-f]{2}|\\|[\x00-\x1f\x7f]")
"""What Delta's library reads as another character, or refuses, however it is written."""


def delta_address(folder: Path) -> str:
    """Return what the `deltalake` library calls the table in a folder.

    Raises ContractError for a folder that it would look for elsewhere.
    """
    path = folder.resolve()  # as that library does
    if found := MISREAD.search(str(path)):
        what = found[0] if found[0].isprintable() else "a control character"
        raise ContractError(
            f"{path.parent}: no tables can be kept in a folder with {what} in its name or in that of a folder above; "
            "rename it, or name another with storage.lake"
        )
    return path.as_uri()


def sqlite_address(file: Path) -> str:
    """Return what SQLAlchemy calls a database in a file.

    With its driver's name, as MLflow would otherwise make folders of what it takes for a path.
    """
    return f"sqlite+pysqlite:///file:{quote(str(file.absolute()))}?uri=true"


def existing_database(file: Path) -> str:
    """Return what SQLite itself calls a database that is there: it does not make the file where there is none."""
    return f"{file_address(file)}?mode=rw"


def literal(path: Path | str) -> str:
    """Return what DuckDB calls a file, which would take a bracket, an asterisk or a question mark for a pattern."""
    return glob.escape(str(path))


def file_address(path: Path) -> str:
    """Return what a browser calls a file or folder."""
    return path.absolute().as_uri()
