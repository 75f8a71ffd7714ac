"""Cursors of paged lists: opaque to clients, bound to what was asked for and to the version it was asked of."""

import base64
import binascii
import hashlib
import json
from typing import Any

from starlette.exceptions import HTTPException


def digest(*asked: object) -> str:
    """Return what tells lists apart, without saying what was searched for."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def write_cursor(asked: str, of: object, offset: int) -> str:
    """Return the cursor of what follows `offset` rows in what was asked for, of a version."""
    return (
        base64.urlsafe_b64encode(json.dumps([asked, of, offset], separators=(",", ":")).encode()).decode().rstrip("=")
    )


def read_cursor(cursor: str, asked: str, kind: type) -> tuple[Any, int]:
    """Return what a cursor is of, and where it goes on. Raises HTTPException where it is of something else."""
    try:
        given = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        given = None
    match given:
        case [str(of_list), str() | [int(), int()] as of, int(offset)] if (
            of_list == asked and isinstance(of, kind) and 0 <= offset < 2**40
        ):
            return of, offset
    raise HTTPException(422, "cursor: is none of this list; give `next` as it was, with the same parameters")
