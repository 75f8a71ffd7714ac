"""ERASURES: who was erased and when, by a salted hash. Source files still hold their events; they are not let in again.

The salt is beside the tables: without it nobody can tell whether a user is among the erased, with it only of a user
whose id they know.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.events import EVENTS, REJECTED
from features.lake import Lake
from features.table import TIME, ContractError, Table, materialize, stack

ERASURES = Table(
    name="erasures",
    schema=ibis.schema({"user_hash": "!string", "erased_at": TIME.copy(nullable=False), "receipt": "!string"}),
    key=("user_hash",),
)
SALT = "erasures.salt"
PATTERN_CHARACTERS = 20_000
"""How long a regular expression may be: engines bound it."""
ID_CHARACTERS = 1_000
"""How much of a long id has to be in a text."""
WORDS = (r"[^0-9A-Za-z_]+", r"[\s,;|\"'{}\[\]():=]+", r"[,;|\t]")
"""What ids are separated by in a line that could not be read: as words, within quotes and brackets, as whole fields."""


@dataclass(frozen=True)
class Erased:
    """Know who was erased: ERASURES and the salt of their hashes."""

    erasures: ir.Table
    salt: str

    def among(self, users: ir.Table) -> ir.Table:
        """Return user_id and erased_at of those of some users who were erased."""
        hashed = users.select("user_id", user_hash=hash_ids(users.user_id, self.salt))
        return materialize(hashed.join(self.erasures, "user_hash").select("user_id", "erased_at"))

    def withhold(self, rejected: ir.Table) -> ir.Table:
        """Return REJECTED without the text of rows in which the id of an erased user is a word or a field."""
        parts = (rejected.row.re_split(separators).unnest() for separators in WORDS)
        words = ibis.union(*(rejected.select("rejected_id", word=part) for part in parts))
        words = words.mutate(word=words.word.re_replace(r'^[\s"]+|[\s"]+$', ""))
        found = self.among(words.select(user_id="word").distinct())
        return withhold(rejected, words.semi_join(found, [("word", "user_id")]).select("rejected_id"), self.salt)


def find_erased(lake: Lake) -> Erased | None:
    """Return who was erased from a lake, None if nobody was.

    Raises ContractError where the salt is gone: then the erased could come back.
    """
    salt = find_salt(lake)
    return None if salt is None or not lake.row_count(ERASURES) else Erased(lake.read(ERASURES), salt)


def find_salt(lake: Lake) -> str | None:
    """Return the salt of a lake's erasures, None before the first. Raises ContractError where it is gone."""
    file = lake.folder / SALT
    if file.exists():
        return file.read_text()
    if lake.row_count(ERASURES):
        raise ContractError(f"{file} is gone, without which nobody can tell who was erased: restore it from a backup")
    return None


def ensure_salt(lake: Lake, fresh: Callable[[], str]) -> str:
    """Return the salt of a lake's erasures; before the first, keep a fresh one that only the file's owner may read."""
    salt = find_salt(lake)
    if salt is None:
        salt = fresh()
        write_private(lake.folder / SALT, salt)
    return salt


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    staged = file.with_name(f".{file.name}-{os.getpid()}")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    staged.replace(file)


def hash_id(user_id: str, salt: str) -> str:
    """Return the salted hash of a user's id."""
    return hashlib.sha256(f"{salt}\x1f{user_id}".encode()).hexdigest()


def hash_ids(user_id: ir.StringValue, salt: str) -> ir.StringValue:
    """Return the salted hashes of users' ids, as `hash_id` has them."""
    return (ibis.literal(f"{salt}\x1f") + user_id).hexdigest("sha256")


def record(lake: Lake, user_ids: Sequence[str], erased_at: datetime, receipt: str, salt: str) -> None:
    """Add users to ERASURES, so that no ingest lets in what they did before; who was erased before, was again."""
    rows = [{"user_hash": hash_id(user_id, salt), "erased_at": erased_at, "receipt": receipt} for user_id in user_ids]
    fresh = ibis.memtable(pa.Table.from_pylist(rows, schema=ERASURES.schema.to_pyarrow()))
    lake.write(ERASURES, stack(fresh, lake.read(ERASURES).anti_join(fresh, "user_hash")))


def reject_erased(lake: Lake, users: ir.Table, user_ids: Sequence[str], salt: str) -> None:
    """Make REJECTED what it would be had the users' events never been accepted.

    Each of their EVENTS is a rejected row without text from here on, so that the counts of rows still add up, and no
    row's text names them. Ids of such rows are salted hashes, the same whenever this is done again.
    """
    if not lake.has(REJECTED):
        lake.write(REJECTED, lake.read(REJECTED))
    rejected = lake.read(REJECTED)
    naming = find_naming(rejected, user_ids)
    events = lake.read(EVENTS)
    theirs = events.filter(events.user_id.isin(users.user_id))
    gone = theirs.select(
        rejected_id=hash_ids(theirs.event_id, salt),
        source_file="source_file",
        reason=ibis.literal("erased"),
        row=ibis.null("string"),
    )
    kept = withhold(rejected, naming, salt)
    lake.write(REJECTED, stack(kept, gone.anti_join(kept, "rejected_id")))


def withhold(rejected: ir.Table, naming: ir.Table, salt: str) -> ir.Table:
    """Return REJECTED without the text of some rows, which have another id: one was made of the text."""
    named = naming.select(named_id=naming.rejected_id).distinct()
    both = rejected.left_join(named, rejected.rejected_id == named.named_id)
    is_named = both.named_id.notnull()
    return REJECTED.check(
        both.mutate(
            rejected_id=is_named.ifelse(hash_ids(both.rejected_id, salt), both.rejected_id),
            row=is_named.ifelse(ibis.null("string"), both.row),
        )
    )


def find_naming(rejected: ir.Table, user_ids: Sequence[str]) -> ir.Table:
    """Return the rejected_id of the REJECTED in whose text one of some ids is a whole word, however it is quoted."""
    named = rejected.filter(rejected.row.notnull())
    parts = [named.filter(named.row.re_search(pattern)).select("rejected_id") for pattern in _patterns(user_ids)]
    return materialize(ibis.union(*parts, distinct=True) if parts else named.select("rejected_id").limit(0))


def _patterns(user_ids: Sequence[str]) -> Iterator[str]:
    """Yield regular expressions, each of so many ids that it is not too long."""
    texts: list[str] = []
    for text in sorted({text for user_id in user_ids for text in _spellings(user_id)}):
        word = "".join(character if character.isalnum() else rf"\x{{{ord(character):x}}}" for character in text)
        texts.append(word + ("" if len(text) == ID_CHARACTERS else r"($|\W)"))
        if sum(map(len, texts)) > PATTERN_CHARACTERS:
            yield _any_of(texts)
            texts = []
    if texts:
        yield _any_of(texts)


def _any_of(texts: Sequence[str]) -> str:
    return rf"(^|\W)({'|'.join(texts)})"


def _spellings(user_id: str) -> set[str]:
    """Return how an id may be written: as it is, in CSV within quotes, in JSON."""
    in_json = {json.dumps(user_id, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
    return {text[:ID_CHARACTERS] for text in (user_id, user_id.replace('"', '""'), *in_json)}
