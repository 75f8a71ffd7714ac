import hmac
import os
import sqlite3
import stat
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from publish.keys import PREFIX, SCOPES, Keys, KeysError, Scope


class Clock:
    """Say the time that a test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.db", Clock())


def test_a_key_is_found_by_its_text_and_by_nothing_else(keys: Keys) -> None:
    key, secret = keys.create("lists", "crm")
    other, _ = keys.create("personal", "support")

    assert keys.find(secret) == key
    assert key.id != other.id
    for wrong in (None, "", "hk_", secret[:-1], secret + "x", secret.upper(), key.id, "\udcff"):
        assert keys.find(wrong) is None


def test_a_key_is_256_random_bits_and_only_its_hash_is_kept(keys: Keys) -> None:
    secrets = {keys.create("aggregate", "one")[1] for _ in range(20)}

    assert len(secrets) == 20
    assert all(len(secret) == len(PREFIX) + 43 for secret in secrets)  # 43 characters of 6 bits
    content = keys.path.read_bytes()
    assert not any(secret.removeprefix(PREFIX).encode() in content for secret in secrets)


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    (tmp_path / "keys.db").touch(0o644)
    keys = Keys(tmp_path / "keys.db")
    keys.create("personal", "one")

    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("held", SCOPES)
@pytest.mark.parametrize("asked", SCOPES)
def test_a_scope_includes_the_narrower_ones(keys: Keys, held: Scope, asked: Scope) -> None:
    key, _ = keys.create(held, "one")

    assert key.may(asked) == (SCOPES.index(asked) <= SCOPES.index(held))


def test_a_revoked_key_is_not_found_by_who_has_the_file_open_already(keys: Keys) -> None:
    key, secret = keys.create("lists", "crm")
    assert keys.find(secret) is not None

    assert Keys(keys.path).revoke(key.id).revoked_at is not None

    assert keys.find(secret) is None
    assert [one.revoked_at is None for one in keys.all()] == [False]


def test_revoking_again_keeps_the_time_and_an_unknown_key_is_an_error(keys: Keys) -> None:
    key, _ = keys.create("lists", "crm")
    first = keys.revoke(key.id)
    keys._clock.now += 60  # type: ignore[attr-defined]

    assert keys.revoke(key.id) == first
    with pytest.raises(KeysError, match="there is no key 'nope'; `habitus keys list` shows"):
        keys.revoke("nope")


def test_every_known_key_is_compared_in_constant_time_whatever_is_given(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = [keys.create("lists", str(number))[1] for number in range(3)]
    keys.revoke(keys.all()[0].id)
    compared: list[int] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one) + len(other))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (None, "wrong", secrets[0], secrets[1], secrets[2], "x" * 100_000):
        keys.find(given)

    assert compared == [64] * 3 * 6


def test_use_is_noted_at_most_once_a_minute(keys: Keys) -> None:
    key, secret = keys.create("lists", "crm")
    due = []
    for seconds in (0, 59, 1, 30, 30):
        keys._clock.now += seconds  # type: ignore[attr-defined]
        due.append(keys.is_use_due(key))

    assert due == [True, False, True, False, True]
    keys.note_use(key)
    found = keys.find(secret)
    assert found is not None
    assert found.last_used_at == "2023-11-14T22:15:20+00:00"


def test_a_file_that_is_no_database_or_of_another_version_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("these are no keys, " * 100)
    with pytest.raises(KeysError, match=r"text\.db: the keys cannot be read or written: file is not a database"):
        Keys(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "later.db") as later:
        later.execute("PRAGMA user_version = 9")
    with pytest.raises(KeysError, match="another version of Habitus"):
        Keys(tmp_path / "later.db")
    with pytest.raises(KeysError, match="cannot be read or written"):
        Keys(tmp_path / "text.db" / "keys.db")


# --- a file that changes under who has it open ---


def test_where_the_file_is_gone_no_key_is_valid_and_none_is_made_in_its_place(keys: Keys) -> None:
    key, secret = keys.create("lists", "crm")
    assert keys.find(secret) == key

    kept = keys.path.rename(keys.path.with_name("kept"))

    assert keys.find(secret) is None
    with pytest.raises(KeysError, match="unable to open database file"):
        keys.note_use(key)
    assert not keys.path.exists()
    kept.rename(keys.path)
    assert keys.find(secret) == key


@pytest.mark.parametrize("how", ["renamed over it", "copied over it", "linked"])
def test_the_keys_of_a_file_that_takes_its_place_are_valid_and_no_others(keys: Keys, how: str) -> None:
    _, secret = keys.create("lists", "crm")
    assert keys.find(secret) is not None
    other = Keys(keys.path.with_name("other.db"))
    key, other_secret = other.create("lists", "crm")
    before = keys.path.stat()

    if how == "renamed over it":
        other.path.rename(keys.path)
    elif how == "copied over it":
        keys.path.write_bytes(other.path.read_bytes())  # as many writes as this one has seen, and as long
        os.utime(keys.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        keys.path.unlink()
        keys.path.symlink_to(other.path)

    assert keys.find(secret) is None
    assert keys.find(other_secret) == key


def test_a_backup_that_is_put_back_says_what_is_valid(keys: Keys) -> None:
    key, secret = keys.create("lists", "crm")
    backup = keys.path.read_bytes()
    keys.revoke(key.id)
    assert keys.find(secret) is None

    keys.path.write_bytes(backup)

    assert keys.find(secret) == key


@pytest.mark.parametrize("what", ["text", "a part", "a folder", "another layout", "nothing"])
def test_while_something_else_is_in_the_place_of_the_file_no_key_is_valid(keys: Keys, what: str) -> None:
    key, secret = keys.create("lists", "crm")
    assert keys.find(secret) == key
    kept = keys.path.rename(keys.path.with_name("kept"))
    if what == "a folder":
        keys.path.mkdir()
    elif what == "another layout":
        with closing(sqlite3.connect(keys.path)) as later:
            later.execute("PRAGMA user_version = 9")
    else:
        content = {"text": b"no keys, " * 1000, "a part": kept.read_bytes()[:3000], "nothing": b""}[what]
        keys.path.write_bytes(content)

    if what == "nothing":  # an empty database, which has no keys
        assert keys.find(secret) is None
    else:
        for _ in range(2):
            with pytest.raises(KeysError):
                keys.find(secret)

    if what == "a folder":
        keys.path.rmdir()
    kept.replace(keys.path)
    assert keys.find(secret) == key


def test_no_key_is_valid_again_while_the_file_comes_and_goes_under_those_who_ask(keys: Keys) -> None:
    _, revoked = keys.create("lists", "crm")
    keys.revoke(keys.all()[0].id)
    key, secret = keys.create("lists", "crm")
    stop, wrong = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            with suppress(KeysError):
                wrong.extend([1] * (keys.find(revoked) is not None or keys.find(secret) not in (key, None)))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for _ in range(50):
        keys.path.rename(keys.path.with_name("kept")).rename(keys.path)
    stop.set()
    for asker in askers:
        asker.join()

    assert not wrong
    assert keys.find(secret) == key
