import json
import logging
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law
from receiver import Receiver, Request
from releases import Members, deliver, releases

from publish.destination import Credential, Delivery, DestinationError, Release
from publish.destinations import sending
from publish.destinations.sending import ANSWER_BYTES_MAX, World
from publish.destinations.webhook import Webhook, WebhookSettings
from publish.lock import delivering_lock
from publish.outbox import Outbox

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = datetime(2024, 3, 9, 12, tzinfo=UTC)
TWO_VERSIONS: list[Members] = [{("ann", "a"), ("bob", "a")}, {("ann", "b"), ("bob", "a")}]


class Waits(list[float]):
    """Say how long sending would have waited; nothing waits."""

    def world(self) -> World:
        return World(pause=self.append, chance=lambda: 1.0)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as outbox:
        yield outbox


def webhook(outbox: Outbox, url: str, world: World | None = None, secret: str = SECRET, **given: Any) -> Webhook:
    chosen = WebhookSettings.model_validate(
        {"kind": "webhook", "url": url, "secret": {"env": "SECRET"}, "timeout_s": 5} | given
    )
    return chosen.connect("hook", {"secret": secret}, Path(), outbox, world or Waits().world())


def test_changes_arrive_signed_with_all_that_is_known_of_them(engine: DuckDB, outbox: Outbox) -> None:
    release = releases(engine, [{("ann", "a")}])[0]
    with Receiver(SECRET) as receiver:
        assert deliver(webhook(outbox, receiver.url), release) == Delivery(
            "hook", "released", receiver.url, 1, counted="changes"
        )
    (request,) = receiver.requests
    assert request.headers["webhook-id"] == request.headers["idempotency-key"]
    content = json.loads(request.body)
    (change,) = content.pop("changes")
    assert content == {
        "type": "segments.changed",
        "schema_version": "1.0",
        "source": "shop",
        "destination": "hook",
        "version": 1,
        "as_of": "2024-03-02T00:00:00+00:00",
    }
    assert change.pop("id").startswith("chg_")
    assert change == {
        "version": 1,
        "user_id": "ann",
        "segment_id": "a",
        "segment_name": "A",
        "change": "entered",
        "reason": "behaviour",
        "from_segment_id": None,
        "to_segment_id": None,
    }


def test_a_version_that_was_sent_is_not_sent_again(engine: DuckDB, outbox: Outbox) -> None:
    release = releases(engine, TWO_VERSIONS)[0]
    with Receiver(SECRET) as receiver:
        deliver(webhook(outbox, receiver.url), release)
        assert deliver(webhook(outbox, receiver.url), release).state == "unchanged"
    assert len(receiver.requests) == 1


def test_a_version_without_changes_sends_nothing(engine: DuckDB, outbox: Outbox) -> None:
    with Receiver(SECRET) as receiver:
        assert deliver(webhook(outbox, receiver.url), releases(engine, [set()])[0]).state == "unchanged"
    assert receiver.requests == []


def test_versions_that_were_missed_come_with_the_next_each_in_requests_of_its_own(
    engine: DuckDB, outbox: Outbox
) -> None:
    with Receiver(SECRET) as receiver:
        assert deliver(webhook(outbox, receiver.url), releases(engine, TWO_VERSIONS)[1]).count == 4
    assert [json.loads(request.body)["version"] for request in receiver.requests] == [1, 2]
    assert receiver.members == TWO_VERSIONS[1]


def test_a_request_has_at_most_a_batch_of_changes(engine: DuckDB, outbox: Outbox) -> None:
    state = {(f"user {number}", "a") for number in range(5)}
    with Receiver(SECRET) as receiver:
        deliver(webhook(outbox, receiver.url, batch_size=2), releases(engine, [state])[0])
    assert [len(json.loads(request.body)["changes"]) for request in receiver.requests] == [2, 2, 1]
    assert receiver.members == state


@pytest.mark.parametrize(
    "user_id", ["it's \"quoted\" \\ '; DROP TABLE messages", "🦉\u2028ümläut\x00", "x" * 10_000], ids=str.__len__
)
def test_any_user_id_arrives_as_it_is(engine: DuckDB, outbox: Outbox, user_id: str) -> None:
    with Receiver(SECRET) as receiver:
        deliver(webhook(outbox, receiver.url), releases(engine, [{(user_id, "a")}])[0])
        assert receiver.members == {(user_id, "a")}
        webhook(outbox, receiver.url).forget({user_id: ["a"]})
        deliver(webhook(outbox, receiver.url), releases(engine, [{(user_id, "a")}])[0])
        assert receiver.members == set()


@pytest.mark.parametrize("secret", ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "twenty-four bytes or more\n"])
def test_a_secret_is_base64_after_whsec_and_plain_otherwise(engine: DuckDB, outbox: Outbox, secret: str) -> None:
    with Receiver(secret.strip()) as receiver:
        assert deliver(webhook(outbox, receiver.url, secret=secret), releases(engine, [{("ann", "a")}])[0]).count == 1


# A hostile receiver


@pytest.mark.parametrize(
    "trouble",
    [500, 502, 503, 429, 408, 425, pytest.param("hang", marks=pytest.mark.ci), "close_unread", "close_applied"],
)
def test_what_may_pass_is_tried_again_with_the_same_key_and_bytes_and_applied_once(
    engine: DuckDB, outbox: Outbox, trouble: Any
) -> None:
    waits = Waits()
    with Receiver(SECRET, [trouble, trouble]) as receiver:
        hook = webhook(outbox, receiver.url, waits.world(), timeout_s=1 if trouble == "hang" else 5)
        delivery = deliver(hook, releases(engine, [{("ann", "a")}])[0])
    assert delivery.state == "released"
    assert waits == [1, 2]
    assert len({(request.headers["idempotency-key"], request.body) for request in receiver.requests}) == 1
    assert len(receiver.applied) == 1
    assert outbox.entries("sent")[0].attempts == 3


def test_a_request_that_is_repeated_on_the_way_is_applied_once(engine: DuckDB, outbox: Outbox) -> None:
    with Receiver(SECRET, ["twice"]) as receiver:
        deliver(webhook(outbox, receiver.url), releases(engine, [{("ann", "a")}])[0])
    assert len(receiver.applied) == 1


def test_waits_double_up_to_a_minute_and_are_drawn_by_chance(engine: DuckDB, outbox: Outbox) -> None:
    waits = Waits()
    world = World(pause=waits.append, chance=lambda: 0.5)
    with Receiver(SECRET, [500] * 9) as receiver:
        deliver(webhook(outbox, receiver.url, world, attempts_max=10), releases(engine, [{("ann", "a")}])[0])
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        ("7", 7),
        (format_datetime(NOW + timedelta(seconds=9), usegmt=True), 9),
        (format_datetime(NOW - timedelta(seconds=9), usegmt=True), 1),
        ("soon", 1),
        ("-7", 1),
        ("²", 1),
        ("Mon, 99999999999999999999 Jan 2020 00:00:00 GMT", 1),
        ("Mon, 01 Jan 2020 00:00:00 +9999999999999999", 1),
    ],
)
def test_retry_after_is_obeyed_where_it_is_longer_than_the_backoff(
    engine: DuckDB, outbox: Outbox, retry_after: str, wait_s: float
) -> None:
    waits = Waits()
    world = World(clock=NOW.timestamp, pause=waits.append, chance=lambda: 1.0)
    with Receiver(SECRET, [(429, {"Retry-After": retry_after}), 204]) as receiver:
        deliver(webhook(outbox, receiver.url, world), releases(engine, [{("ann", "a")}])[0])
    assert waits == [wait_s]


def test_a_receiver_that_wants_a_longer_pause_gets_the_rest_at_the_next_publish(engine: DuckDB, outbox: Outbox) -> None:
    waits = Waits()
    release = releases(engine, TWO_VERSIONS)[1]
    with Receiver(SECRET, ["ok", (503, {"Retry-After": "3600"})]) as receiver:
        delivery = deliver(webhook(outbox, receiver.url, waits.world()), release)
        assert delivery.state == "pending"
        assert delivery.count == 2
        assert delivery.note == (
            "1 message with 2 changes waits for the next publish: HTTP 503, which asks to wait for 3,600 s"
        )
        assert deliver(webhook(outbox, receiver.url), release).state == "released"
    assert waits == []
    assert receiver.members == TWO_VERSIONS[1]


def test_a_receiver_that_stays_down_ends_the_run_and_later_messages_do_not_overtake(
    engine: DuckDB, outbox: Outbox
) -> None:
    release = releases(engine, TWO_VERSIONS)[1]
    with Receiver(SECRET, [500] * 3) as receiver:
        delivery = deliver(webhook(outbox, receiver.url, attempts_max=3), release)
        assert (delivery.state, delivery.count) == ("pending", 0)
        assert delivery.note == "2 messages with 4 changes wait for the next publish: HTTP 500 after 3 attempts"
        assert {json.loads(request.body)["version"] for request in receiver.requests} == {1}
        assert deliver(webhook(outbox, receiver.url), release).state == "released"
    assert receiver.members == TWO_VERSIONS[1]


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413, 422, 301, 307])
def test_what_is_refused_goes_to_the_dead_letters_at_once_and_the_rest_is_sent(
    engine: DuckDB, outbox: Outbox, status: int
) -> None:
    waits = Waits()
    elsewhere = (status, {"Location": "http://127.0.0.1:9/", "X": "y"})
    with Receiver(SECRET, [elsewhere]) as receiver:
        delivery = deliver(webhook(outbox, receiver.url, waits.world()), releases(engine, TWO_VERSIONS)[1])
    assert (delivery.state, delivery.count, waits) == ("failed", 2, [])
    assert delivery.note == f"1 message with 2 changes failed, the last with HTTP {status}: see `habitus outbox`"
    (dead,) = outbox.entries("failed")
    assert (dead.version, dead.attempts, dead.reason, dead.answer) == (1, 1, f"HTTP {status}", "{}")


def test_a_dead_letter_that_is_sent_again_does_not_undo_what_came_later(engine: DuckDB, outbox: Outbox) -> None:
    versions = releases(engine, [{("ann", "a")}, set()])
    with Receiver(SECRET, [400]) as receiver:
        assert deliver(webhook(outbox, receiver.url), versions[1]).state == "failed"
        assert outbox.retry("other") == 0
        assert outbox.retry("hook") == 1
        assert deliver(webhook(outbox, receiver.url), versions[1]).state == "released"
    assert [json.loads(request.body)["version"] for request in receiver.requests] == [1, 2, 1]
    assert receiver.members == set()


def test_a_receiver_that_refuses_everything_is_not_asked_a_thousand_times(engine: DuckDB, outbox: Outbox) -> None:
    state = {(f"user {number}", "a") for number in range(10)}
    with Receiver(SECRET, [401] * 10) as receiver:
        delivery = deliver(webhook(outbox, receiver.url, batch_size=1), releases(engine, [state])[0])
    assert len(receiver.requests) == 3
    assert delivery.note == (
        "3 messages with 3 changes failed, the last with HTTP 401: see `habitus outbox`;"
        " 7 messages with 7 changes wait for the next publish: 3 in a row were refused"
    )


def test_only_the_beginning_of_an_answer_is_read_and_kept_in_one_line(engine: DuckDB, outbox: Outbox) -> None:
    user_id = "no\n\x1b[31mred " + "x" * 2 * ANSWER_BYTES_MAX
    with Receiver(SECRET, ["echo"]) as receiver:
        deliver(webhook(outbox, receiver.url), releases(engine, [{(user_id, "a")}])[0])
    answer = outbox.entries("failed")[0].answer
    assert answer is not None
    assert len(answer) == 200
    assert answer.isprintable()


# A deadline for all of an attempt

BARELY_S = 0.3


def wait_time(destination: Webhook, release: Release) -> tuple[float, Delivery]:
    """Return how many seconds it took to deliver, and what became of it."""
    began_s = time.monotonic()
    delivery = deliver(destination, release)
    return time.monotonic() - began_s, delivery


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("dribble", "no answer within 0.3 s"),
        ("processing", "no answer within 0.3 s"),
        ("garbage", "no answer in HTTP (illegal status line: bytearray(b'SSH-2.0-OpenSSH_9.2'))"),
        pytest.param("hang", "no answer within 0.3 s", marks=pytest.mark.ci),
        pytest.param("continue", "no answer within 0.3 s", marks=pytest.mark.ci),
        pytest.param("endless", "HTTP 500", marks=pytest.mark.ci),
        pytest.param("chunks", "HTTP 500", marks=pytest.mark.ci),
    ],
)
def test_an_attempt_ends_by_its_deadline_whatever_arrives(
    engine: DuckDB, outbox: Outbox, trouble: Any, reason: str
) -> None:
    with Receiver(SECRET, [trouble]) as receiver:
        hook = webhook(outbox, receiver.url, timeout_s=BARELY_S, attempts_max=1)
        took_s, delivery = wait_time(hook, releases(engine, [{("ann", "a")}])[0])
        assert took_s < BARELY_S + 1
        assert delivery.note == f"1 message with 1 change waits for the next publish: {reason} after 1 attempt"
        assert deliver(hook, releases(engine, [{("ann", "a")}])[0]).state == "released"


def test_a_request_that_is_read_byte_by_byte_ends_by_the_deadline(engine: DuckDB, outbox: Outbox) -> None:
    with Receiver(SECRET, ["sip"]) as receiver:
        hook = webhook(outbox, receiver.url, timeout_s=BARELY_S, attempts_max=1)
        took_s, delivery = wait_time(hook, releases(engine, [{("x" * 8_000_000, "a")}])[0])
    assert took_s < BARELY_S + 1
    assert delivery.note.endswith("no answer within 0.3 s after 1 attempt")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_accepts_a_connection_and_is_silent_ends_by_the_deadline(
    engine: DuckDB, outbox: Outbox, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        hook = webhook(outbox, url, timeout_s=BARELY_S, attempts_max=1)
        took_s, delivery = wait_time(hook, releases(engine, [{("ann", "a")}])[0])
    assert took_s < BARELY_S + 1
    assert delivery.note.endswith("no answer within 0.3 s after 1 attempt")


def test_a_name_that_is_looked_up_for_ever_ends_by_the_deadline(
    engine: DuckDB, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait())
    hook = webhook(outbox, "https://example.org", timeout_s=BARELY_S, attempts_max=1)
    took_s, delivery = wait_time(hook, releases(engine, [{("ann", "a")}])[0])
    ended.set()
    assert took_s < BARELY_S + 1
    assert delivery.note.endswith("no answer within 0.3 s after 1 attempt")


# Two at once


def test_what_another_process_sends_is_left_to_it(
    engine: DuckDB, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "DELIVERING_WAIT_S", 0)
    with Receiver(SECRET) as receiver:
        hook = webhook(outbox, receiver.url)
        with delivering_lock(outbox.path.parent, "hook", 0):
            delivery = deliver(hook, releases(engine, [{("ann", "a")}])[0])
        assert receiver.requests == []
        assert delivery.state == "pending"
        assert re.search(r"waits for the next publish: .*hook \(process \d+, .*, which did not end", delivery.note)
        assert hook.send().state == "released"


@pytest.mark.ci
def test_two_who_send_at_once_send_each_message_once_and_in_order(engine: DuckDB, tmp_path: Path) -> None:
    state = {(f"user {number:02}", "a") for number in range(40)}
    path = tmp_path / "outbox.db"

    def send() -> None:
        with Outbox(path) as mine:
            webhook(mine, receiver.url).send()

    with Receiver(SECRET) as receiver, Outbox(path) as outbox:
        webhook(outbox, receiver.url, batch_size=1).deliver(releases(engine, [state])[0])
        with ThreadPoolExecutor(2) as both:
            for sent in [both.submit(send), both.submit(send)]:
                sent.result()
    users = [json.loads(request.body)["changes"][0]["user_id"] for request in receiver.requests]
    assert users == sorted(user for user, _ in state)


def test_who_is_erased_while_a_message_waits_for_its_next_attempt_is_not_in_it(engine: DuckDB, outbox: Outbox) -> None:
    def erase(_: float) -> None:
        webhook(outbox, receiver.url).forget({"bob": ["a"]})

    with Receiver(SECRET, [500]) as receiver:
        world = World(pause=erase, chance=lambda: 1.0)
        deliver(webhook(outbox, receiver.url, world), releases(engine, [{("ann", "a"), ("bob", "a")}])[0])
        first, second, *later = [json.loads(request.body)["changes"] for request in receiver.requests]
    assert {change["user_id"] for change in first} == {"ann", "bob"}
    assert {change["user_id"] for change in second} == {"ann"}
    assert {change["change"] for changes in later for change in changes} == {"left"}
    assert b"bob" not in outbox.path.read_bytes()


# What is said


def test_no_secret_nor_signature_nor_user_is_in_what_is_said(
    engine: DuckDB, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    release = releases(engine, [{("ann", "a")}])[0]
    with Receiver(SECRET, ["echo"]) as receiver:
        chosen = WebhookSettings(kind="webhook", url=Credential(env="URL"), secret=Credential(env="SECRET"))
        url = f"{receiver.url}/services/T0KEN?key={SECRET}"
        hook = chosen.connect("hook", {"url": url, "secret": SECRET}, Path(), outbox, Waits().world())
        delivery = deliver(hook, release)
    (request,) = receiver.requests
    (dead,) = outbox.entries("failed")
    assert (dead.answer or "").startswith("/***/***?key=*** Host")
    said = f"{delivery}{dead}{caplog.text}{hook}"
    signature = request.headers["webhook-signature"].removeprefix("v1,")
    for secret in (SECRET, SECRET.removeprefix("whsec_"), signature, "T0KEN"):
        assert secret not in said
    assert "ann" not in str(delivery)
    assert "ann" not in caplog.text


@pytest.mark.parametrize(
    ("secret", "wrong"),
    [
        ("whsec_no base64!!", "what follows whsec_ in the secret has to be base64"),
        ("whsec_é", "what follows whsec_ in the secret has to be base64"),
        ("whsec_", "24 bytes or more"),
        ("hunter2", "24 bytes or more"),
        ("", "24 bytes or more"),
    ],
)
def test_a_secret_of_a_wrong_form_is_refused_without_telling_it(outbox: Outbox, secret: str, wrong: str) -> None:
    with pytest.raises(DestinationError, match=wrong) as caught:
        webhook(outbox, "https://example.org", secret=secret)
    assert "base64!!" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "http://example.org/hunter2",
        "ftp://example.org/hunter2",
        "https://ann:hunter2@example.org",
        "https:///hunter2",
        "https://example.org:hunter2/",
        "http://localhost.example.org/hunter2",
        "https://example.org:99999/hunter2",
        "https://exa mple.org/\x00hunter2",
    ],
)
def test_an_address_that_is_none_or_not_encrypted_is_refused_without_telling_it(outbox: Outbox, url: str) -> None:
    with pytest.raises(DestinationError, match="https://, a host and no password") as caught:
        webhook(outbox, url)
    assert "hunter2" not in str(caught.value)


@contextmanager
def self_signed(folder: Path) -> Iterator[Receiver]:
    """Serve TLS with a certificate that nobody vouches for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    receiver = Receiver(SECRET)
    receiver._server.socket = context.wrap_socket(receiver._server.socket, server_side=True)
    with receiver:
        yield receiver


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(engine: DuckDB, outbox: Outbox, tmp_path: Path) -> None:
    with self_signed(tmp_path) as receiver:
        url = receiver.url.replace("http://127.0.0.1", "https://localhost")
        delivery = deliver(webhook(outbox, url, attempts_max=2), releases(engine, [{("ann", "a")}])[0])
    assert delivery.state == "pending"
    assert receiver.requests == []
    assert "CERTIFICATE_VERIFY_FAILED" in delivery.note
    assert "\n" not in delivery.note


def test_a_certificate_of_ones_own_is_trusted_where_the_environment_says_so(
    engine: DuckDB, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with self_signed(tmp_path) as receiver:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
        url = receiver.url.replace("http://127.0.0.1", "https://localhost")
        assert deliver(webhook(outbox, url), releases(engine, [{("ann", "a")}])[0]).state == "released"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "https://no-such-host.invalid/", f"https://{'a' * 70}.org"])
def test_a_receiver_that_is_not_there_leaves_all_pending(engine: DuckDB, outbox: Outbox, url: str) -> None:
    delivery = deliver(webhook(outbox, url, attempts_max=2), releases(engine, [{("ann", "a")}])[0])
    assert delivery.state == "pending"
    assert delivery.note.startswith("1 message with 1 change waits for the next publish: no connection (")
    assert delivery.note.endswith("after 2 attempts")


def test_a_lake_that_was_made_anew_is_noticed(engine: DuckDB, outbox: Outbox) -> None:
    first, second = releases(engine, TWO_VERSIONS)
    with Receiver(SECRET) as receiver:
        deliver(webhook(outbox, receiver.url), second)
        with pytest.raises(DestinationError, match="has queued version 2 for hook, and this is version 1"):
            deliver(webhook(outbox, receiver.url), first)


# Erasure


def test_an_erased_user_leaves_every_segment_and_no_message_keeps_the_user(engine: DuckDB, outbox: Outbox) -> None:
    release = releases(engine, [{("ann", "a"), ("bob", "a"), ("bob", "b")}])[0]
    with Receiver(SECRET) as receiver:
        hook = webhook(outbox, receiver.url)
        deliver(hook, release)
        assert hook.forget({"bob": ["a", "b"], "eve": []}) == 1
        assert deliver(hook, release) == Delivery("hook", "released", receiver.url, 2, counted="changes")
        assert receiver.members == {("ann", "a")}
    changes = json.loads(receiver.requests[-1].body)["changes"]
    assert {(change["user_id"], change["segment_id"], change["change"], change["reason"]) for change in changes} == {
        ("bob", "a", "left", "erased"),
        ("bob", "b", "left", "erased"),
    }
    assert b"bob" not in outbox.path.read_bytes()


def test_an_erased_user_is_taken_out_of_pending_and_dead_messages(engine: DuckDB, outbox: Outbox) -> None:
    versions = releases(engine, [{("ann", "a"), ("bob", "a")}, {("ann", "a"), ("bob", "b")}])
    with Receiver(SECRET, ["echo", 500]) as receiver:
        hook = webhook(outbox, receiver.url, attempts_max=1)
        deliver(hook, versions[1])
        assert outbox.entries("failed")[0].answer is not None
        # The dead one keeps ann, that of version 2 is only about bob, and one says that bob left a and b.
        assert hook.forget({"bob": ["b"]}) == 3
        content = outbox.path.read_bytes()
        assert content.count(b"bob") == content.count(b'"user_id":"bob","segment_id"') > 0
        assert b"entered" in content
        assert outbox.entries("failed")[0].answer is None
        outbox.retry()
        deliver(hook, versions[1])
    assert receiver.members == {("ann", "a")}
    assert {membership for membership, change in receiver.newest.items() if change["reason"] == "erased"} == {
        ("bob", "a"),
        ("bob", "b"),
    }
    assert b"bob" not in outbox.path.read_bytes()


def test_to_forget_twice_is_to_forget_once(engine: DuckDB, outbox: Outbox) -> None:
    release = releases(engine, [{("bob", "a")}])[0]
    with Receiver(SECRET) as receiver:
        hook = webhook(outbox, receiver.url)
        deliver(hook, release)
        for _ in range(2):
            hook.forget({"bob": ["a"]})
        assert outbox.count("hook")["pending"].message_count == 1
        deliver(hook, release)
        assert hook.forget({"bob": ["a"]}) == 0


def test_who_was_never_told_of_is_not_told_of_when_erased(outbox: Outbox) -> None:
    assert webhook(outbox, "https://example.org").forget({"bob": ["a"]}) == 0
    assert outbox.count("hook")["pending"].message_count == 0


# Crashes

CHILD = """
    import os, signal
    from pathlib import Path
    from features import engines
    from publish.destinations.webhook import WebhookSettings
    from publish.outbox import Outbox
    from releases import deliver, releases

    ticks = 0
    def clock():
        global ticks
        ticks += 1
        if ticks == {tick}:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    hook = WebhookSettings.model_validate(dict(kind="webhook", url={url!r}, secret=dict(env="SECRET"), batch_size=1))
    connected = hook.connect("hook", dict(secret={secret!r}), Path(), Outbox(Path({path!r}), clock))
    deliver(connected, releases(engines.connect(), {states!r})[1])
"""
"""The outbox reads the clock when it queues each of 4 messages, and when one is marked as sent."""


@pytest.mark.ci
@pytest.mark.parametrize(("tick", "arrived"), [(3, 0), (6, 2)], ids=["while_queueing", "between_sending_and_marking"])
def test_after_a_kill_the_next_run_sends_what_is_missing_and_the_key_keeps_it_once(
    engine: DuckDB, tmp_path: Path, tick: int, arrived: int
) -> None:
    path = tmp_path / "outbox.db"
    with Receiver(SECRET) as receiver:
        told = {"tick": tick, "path": str(path), "url": receiver.url, "secret": SECRET, "states": TWO_VERSIONS}
        script = textwrap.dedent(CHILD).format(**told)
        child = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
        assert child.returncode == -signal.SIGKILL
        assert len(receiver.requests) == arrived
        with Outbox(path) as outbox:
            hook = webhook(outbox, receiver.url, batch_size=1)
            assert deliver(hook, releases(engine, TWO_VERSIONS)[1]).state == "released"
    assert len(receiver.requests) == 4 + bool(arrived)
    assert len(receiver.applied) == len(set(receiver.applied)) == 4
    assert receiver.members == TWO_VERSIONS[1]


STATES = st.lists(
    st.sets(st.tuples(st.sampled_from(["ann", "bob", "eve"]), st.sampled_from("abc"))), min_size=1, max_size=5
)
TROUBLES = st.lists(st.sampled_from(["ok", 500, 429, 400, 301, "close_unread", "close_applied", "twice"]), max_size=12)


@given(states=STATES, troubles=TROUBLES, delivered=st.sets(st.integers(0, 4)))
@law(5)
def test_whatever_happens_the_receiver_ends_with_the_present_membership(
    tmp_path_factory: pytest.TempPathFactory,
    engine: DuckDB,
    states: list[Members],
    troubles: list[Any],
    delivered: set[int],
) -> None:
    versions = releases(engine, states)
    path = tmp_path_factory.mktemp("outbox") / "outbox.db"
    with Receiver(SECRET, troubles) as receiver, Outbox(path) as outbox:
        hook = webhook(outbox, receiver.url, batch_size=2, attempts_max=2)
        for number, release in enumerate(versions):
            if number in delivered:
                deliver(hook, release)
        receiver.behaviours.clear()
        outbox.retry()
        assert deliver(hook, versions[-1]).state in ("released", "unchanged")
    assert receiver.members == states[-1]
    assert len(receiver.applied) == len(set(receiver.applied))


# The documentation


def test_the_receiver_in_the_documentation_takes_what_is_sent_once_and_nothing_else(
    engine: DuckDB, outbox: Outbox
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "destinations" / "webhook.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    documented: dict[str, Any] = {}
    exec(compile(code, "webhook.md", "exec"), documented)
    receive: Callable[[sqlite3.Connection, dict[str, str], bytes], int] = documented["receive"]
    documented["KEY"] = documented["read_key"](SECRET)
    database = sqlite3.connect(":memory:")
    database.executescript(documented["TABLES"])

    with Receiver(SECRET) as receiver:
        hook = webhook(outbox, receiver.url, batch_size=1)
        deliver(hook, releases(engine, TWO_VERSIONS)[1])
    # Repeated, and in a wrong order.
    requests = [*receiver.requests, *reversed(receiver.requests)]
    assert [receive(database, request.headers, request.body) for request in requests] == [204] * 8
    assert set(database.execute("SELECT user_id, segment_id FROM members WHERE entered")) == TWO_VERSIONS[1]
    request: Request = receiver.requests[0]
    assert receive(database, request.headers, request.body + b" ") == 401
    assert receive(database, request.headers | {"webhook-timestamp": "1614265330"}, request.body) == 401
    assert receive(database, {}, request.body) == 401
