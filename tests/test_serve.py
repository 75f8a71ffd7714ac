"""`habitus serve` and `habitus keys`: the real server in a process of its own, on a free port of this machine."""

import asyncio
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from messages import assert_documented
from served import HOSTILE, add_version, user, without_user
from shops import habitus
from test_cli import CONFIG

from flows.configuration import load
from flows.serve import _follow, is_loopback
from publish.catalogue import Catalogue
from publish.connections import CONNECTIONS_MAX, HEAD_MAX_BYTES
from publish.kept import BrokenVersionError

USERS = [user(hostile, number) for number, hostile in enumerate(HOSTILE, start=1)]
USERS += [user(f"user_{number:03}", number) for number in range(20, 60)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "habitus.toml").write_text(CONFIG)
    return tmp_path / "habitus.toml"


def key(config: Path, scope: str) -> str:
    done = habitus("keys", "create", "--scope", scope, "--name", scope, "--config", str(config))
    assert done.exit_code == 0, done.stderr
    return str(done.stdout.strip())


@dataclass
class Running:
    """A server that runs; what it logged is there when it has stopped."""

    process: subprocess.Popen[str]
    address: str
    log: str = ""

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        self.log += self.process.communicate(timeout=30)[1]
        return self.process.returncode

    def connected(self) -> socket.socket:
        host, _, port = self.address.removeprefix("http://").rpartition(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def get(self, target: str, secret: str) -> tuple[int, Any]:
        """Ask for a target as it is: clients have limits and corrections of their own."""
        request = f"GET {target} HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {secret}\r\nConnection: close\r\n\r\n"
        with self.connected() as connection:
            connection.sendall(request.encode())
            whole = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = whole.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


@contextmanager
def serving(config: Path, *options: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "flows.cli", "serve", str(config), "--port", "0", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=config.parent
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"serving on (http://\S+) ", line)
            assert found, line + process.communicate(timeout=30)[1]
            yield Running(process, found[1])
        finally:
            process.kill()


@pytest.mark.ci
def test_ids_are_looked_up_as_they_are_and_no_log_has_them(config: Path) -> None:
    add_version(config.parent / "published", 1, USERS)
    secret = key(config, "personal")
    with serving(config) as server:
        for one in USERS[: len(HOSTILE)]:
            target = f"/users/{quote(one['user_id'], safe='')}"
            if len(target) <= HEAD_MAX_BYTES:
                status, found = server.get(target, secret)
                assert (status, found["user"]["user_id"]) == (200, one["user_id"])
        with httpx.Client(base_url=server.address, headers={"authorization": f"Bearer {secret}"}) as client:
            for one in USERS[: len(HOSTILE)]:
                answer = client.post("/users/lookup", json={"user_id": one["user_id"]})
                assert answer.json()["user"]["user_id"] == one["user_id"]
                assert "<script" not in client.post("/user", data={"user_id": one["user_id"]}).text
            assert client.get("/segments/S01/users?search=user_0").json()["users"] == 20
            assert client.get("/users/user_099").status_code == 404
            assert client.get("/users/user_021", headers={"authorization": "Bearer x"}).status_code == 401
            assert client.post("/user/user_021").status_code == 404
        assert server.get("/segments", secret)[0] == 200
        assert server.stop() == 0

    assert "GET /users/{user_id:anything} 200" in server.log
    assert "GET /segments/{segment_id}/users 200" in server.log
    assert "POST /user 200" in server.log
    assert "Traceback" not in server.log
    assert secret not in server.log
    parts = [part for hostile in HOSTILE for part in (hostile[:12], quote(hostile, safe="")[:12])]
    assert [part for part in ("user_0", *parts) if part in server.log.replace("POST /users/lookup", "")] == []


@pytest.mark.ci
def test_headers_that_do_not_end_are_refused_before_they_fill_the_memory(config: Path) -> None:
    add_version(config.parent / "published", 1, USERS)
    with serving(config) as server:
        chunked = "POST /users/lookup HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n"
        for start in (
            "GET /users/",
            "GET /segments HTTP/1.1\r\nHost: shop\r\nX-Long: ",
            f"{chunked}0\r\nX-Long: ",
            f"{chunked}2\r\n{{}}\r\n0\r\nX-Long: ",
        ):
            with server.connected() as connection:
                connection.sendall(start.encode().ljust(HEAD_MAX_BYTES + 1, b"x"))
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert b"HTTP/1.1 400 " in answer  # what came before the body may be answered already
            assert answer.endswith(b"look a longer id up with POST /users/lookup.")
        assert server.get("/segments", key(config, "aggregate"))[0] == 200


@pytest.mark.ci
def test_more_idle_connections_than_there_may_be_keep_nobody_out_and_fill_no_log(config: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as idle, serving(config) as server:
            for number in range(CONNECTIONS_MAX + 300):
                connection = idle.enter_context(server.connected())
                connection.sendall(b"GET /segments HTTP/1.1\r\nX-Long: " * (number % 2))
            for _ in range(5):
                assert httpx.get(f"{server.address}/health", timeout=10).status_code == 200
                assert httpx.get(f"{server.address}/segments", timeout=10).status_code == 401
            assert server.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    lines = [line.partition(" WARNING ")[2] for line in server.log.splitlines() if " WARNING " in line]
    assert "more than 1000 connections: the idlest is closed" in lines
    assert "GET - 401 key - (repeated 4 times in " in server.log
    assert len(server.log.splitlines()) < 15


@pytest.mark.ci
def test_requests_go_on_while_a_version_appears_and_while_one_is_erased(config: Path) -> None:
    published = config.parent / "published"
    add_version(published, 1, USERS)
    secret = key(config, "lists")
    answers: list[tuple[int, int, int]] = []
    second_seen, erased, stop = threading.Event(), threading.Event(), threading.Event()

    def ask(address: str) -> None:
        with httpx.Client(base_url=address, headers={"authorization": f"Bearer {secret}"}) as client:
            while not stop.is_set():
                is_erased = erased.is_set()
                answer = client.get("/segments/S02/users?limit=1000")
                found = answer.json()
                gone = any(one["user_id"] == "user_020" for one in found["items"]) and is_erased
                answers.append((answer.status_code, found["version"], int(gone)))
                if found["version"] == 2:
                    second_seen.set()
                    if is_erased:
                        return

    with serving(config) as server:
        askers = [threading.Thread(target=ask, args=(server.address,)) for _ in range(4)]
        for asker in askers:
            asker.start()
        name = add_version(published, 2, USERS)
        assert second_seen.wait(30)
        without_user(published, name, "user_020")
        erased.set()
        for asker in askers:
            asker.join(30)
        stop.set()
        assert server.stop() == 0

    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} >= {2}
    assert not any(gone for _, _, gone in answers)


@pytest.mark.ci
def test_it_stops_at_ctrl_c_before_the_first_version_too(config: Path) -> None:
    with serving(config) as server:
        assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
        assert httpx.get(f"{server.address}/segments").status_code == 401
        assert server.stop(signal.SIGINT) == 0

    assert "there are no keys yet, so nobody gets in" in server.log
    assert "no version has a report yet" in server.log
    assert "Traceback" not in server.log


@pytest.mark.ci
def test_open_local_says_so_and_answers_this_machines_names_only(config: Path) -> None:
    add_version(config.parent / "published", 1, USERS)
    with serving(config, "--open-local") as server:
        port = server.address.rpartition(":")[2]
        assert httpx.get(f"http://127.0.0.1:{port}/users/user_021").status_code == 200
        assert (
            httpx.get(f"http://127.0.0.1:{port}/segments", headers={"host": f"evil.example:{port}"}).status_code == 421
        )
        assert server.stop() == 0

    assert "OPEN: --open-local asks for no key. Every program and every person on this machine" in server.log
    assert not (config.parent / "lake" / "keys.db").exists()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.example.com", "", "127.0.0.1.nip.io"]
)
def test_open_local_refuses_any_other_host(config: Path, host: str) -> None:
    done = habitus("serve", str(config), "--open-local", "--host", host)

    assert done.exit_code == 2
    assert "--open-local shows all users to whoever can reach the server" in done.stderr


def test_what_becomes_personal_while_it_serves_is_followed(config: Path) -> None:
    add_version(load(config).published, 1, USERS)
    catalogue = Catalogue(load(config).published / "reports")
    follow = _follow(load(config), catalogue)
    follow()
    assert asyncio.run(catalogue.latest()).version == 1

    config.write_text(CONFIG + '[report]\npersonal = ["user_id"]\n')
    follow()
    with pytest.raises(BrokenVersionError, match="user_id became personal since"):
        asyncio.run(catalogue.latest())

    config.write_text("no configuration any more")
    follow()
    with pytest.raises(BrokenVersionError):
        asyncio.run(catalogue.latest())


def test_what_is_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))


def test_a_port_that_is_taken_is_said_in_one_line(config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = habitus("serve", str(config), "--port", str(taken.getsockname()[1]))

    assert done.exit_code == 2
    assert "Address already in use; name another --port" in done.stderr
    assert habitus("serve", str(config), "--port", "70000").exit_code == 2


def test_a_published_folder_that_is_elsewhere_is_not_served(config: Path) -> None:
    config.write_text(CONFIG + '[publish]\nfolder = "s3://bucket/published"\n')

    done = habitus("serve", str(config), "--port", "0")

    assert done.exit_code == 2
    assert "publish.folder: s3://bucket/published is elsewhere" in done.stderr


def test_keys_are_shown_once_listed_and_revoked(config: Path) -> None:
    secrets = [key(config, scope) for scope in ("aggregate", "personal")]

    listed = json.loads(habitus("keys", "list", "--config", str(config), "--json").stdout)
    assert [(one["name"], one["scope"], one["revoked_at"]) for one in listed] == [
        ("aggregate", "aggregate", None),
        ("personal", "personal", None),
    ]
    done = habitus("keys", "revoke", listed[0]["id"], "--config", str(config))
    assert done.exit_code == 0
    assert f"key {listed[0]['id']} aggregate is revoked since 20" in done.stdout
    shown = habitus("keys", "list", "--config", str(config)).stdout
    assert listed[0]["id"] in shown
    assert not any(secret in shown + json.dumps(listed) + done.stdout for secret in secrets)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "--scope", "all"], "--scope 'all': there is no such scope; there are aggregate, lists, personal"),
        (["create", "--scope", "lists", "--name", "a\nb"], "--name: at most 80 characters that can be printed"),
        (["revoke", "nope"], "there is no key 'nope'"),
    ],
)
def test_a_mistake_about_keys_is_one_line(config: Path, arguments: Sequence[str], words: str) -> None:
    done = habitus("keys", *arguments, "--config", str(config))

    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("case", ["keys.db is no database", "keys.db is a folder", "keys.db is of a later Habitus"])
def test_keys_that_cannot_be_read_are_said_in_one_line(config: Path, case: str) -> None:
    file = config.parent / "lake" / "keys.db"
    file.parent.mkdir()
    if case == "keys.db is no database":
        file.write_text("no keys " * 1000)
    elif case == "keys.db is a folder":
        file.mkdir()
    else:
        with closing(sqlite3.connect(file)) as later:
            later.execute("PRAGMA user_version = 9")

    done = habitus("serve", str(config), "--port", "0")

    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert_documented(case, line.removeprefix("habitus: "), config.parent)
