"""Do the users of a users' file have events? And where they have none: would they, were the ids written alike?"""

from collections.abc import Callable
from dataclasses import dataclass, field

import ibis
import ibis.expr.types as ir

from features.placeholders import in_words as placeholders_in_words
from features.sources import SourceError
from features.table import materialize

Spelling = Callable[[ir.StringValue], ir.StringValue]
DIFFERENCES: dict[str, Spelling] = {
    "blanks around them": lambda user_id: user_id.strip(),
    "upper and lower case": lambda user_id: user_id.lower(),
    "a trailing .0": lambda user_id: user_id.re_replace(r"\.0+$", ""),
    "leading zeros": lambda user_id: user_id.re_replace("^0+(.)", r"\1"),
}
"""In what ids of one user often differ, and how they are written without it."""
SEVERAL = "several of these"


@dataclass(frozen=True)
class UsersFound:
    """Count the users of the users' file: matched are those who have events, and with unmatched add up to read.

    `likely` counts unmatched ones who would have events but for a difference in how ids are written, by that;
    `placeholders` counts rows whose user is none by what they say. Erased users are left out.
    """

    read: int
    matched: int
    unmatched: int
    likely: dict[str, int] = field(default_factory=dict)
    placeholders: dict[str, int] = field(default_factory=dict)


def match_users(users: ir.Table, active: ir.Table, placeholders: dict[str, int]) -> UsersFound:
    """Count the users (user_id, each once) who are among those with events (the same).

    Raises SourceError where there are users and none of them has events, with what ids differ in.
    """
    unmatched = materialize(users.anti_join(active, "user_id"))
    read, without = _count(users), _count(unmatched)
    likely = _explain(unmatched, active) if without else {}
    if read and read == without:
        raise SourceError(
            f"users.files: none of {read:,} user{'' if read == 1 else 's'} has an event{_likely_in_words(likely)}; "
            "write ids alike: users.user_id names their column, and events.columns.user_id may be an expression"
        )
    return UsersFound(read, read - without, without, likely, placeholders)


def in_words(found: UsersFound) -> list[str]:
    """Say in a line how many users have events, and how many rows have none; nothing of a file without rows."""
    if not found.read and not found.placeholders:
        return []
    no_user = placeholders_in_words(found.placeholders)
    told = f"users: {found.matched:,} with events + {found.unmatched:,} without = {found.read:,} read"
    return [f"{told}; of rows without one {no_user}" if no_user else told]


def hints(found: UsersFound) -> list[str]:
    """Say why users have no events, where the reason may be how their ids are written."""
    if not found.likely:
        return []
    without = f"{found.unmatched:,} user{'' if found.unmatched == 1 else 's'} of the users' file"
    return [f"{without} {'has' if found.unmatched == 1 else 'have'} no event{_likely_in_words(found.likely)}"]


def _likely_in_words(likely: dict[str, int]) -> str:
    told = ", ".join(f"{count:,} would but for {difference}" for difference, count in likely.items())
    return f"; {told}" if told else ""


def _explain(unmatched: ir.Table, active: ir.Table) -> dict[str, int]:
    """Count users by what alone makes their id differ from one of those with events; then those with several."""
    spellings = {**DIFFERENCES, SEVERAL: _plain}
    plain = {name: active.select(plain=spelling(active.user_id)).plain for name, spelling in spellings.items()}
    alike = [(spelling(unmatched.user_id).isin(plain[name]), name) for name, spelling in spellings.items()]
    counts = unmatched.select(spelling=ibis.cases(*alike)).spelling.value_counts(name="users")
    found = {row["spelling"]: row["users"] for row in counts.to_pyarrow().to_pylist()}
    return {name: found[name] for name in spellings if name in found}


def _plain(user_id: ir.StringValue) -> ir.StringValue:
    for spelling in DIFFERENCES.values():
        user_id = spelling(user_id)
    return user_id


def _count(rows: ir.Table) -> int:
    return int(rows.count().to_pyarrow().as_py())
