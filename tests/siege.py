"""Besiege `habitus serve` without a key: `make siege`.

Each attack holds or repeats connections, while another asks for /health all the time. Whoever is closed out comes back
a second later. What is printed: how slow the slowest answer was, how many got in at once, and how much memory and log
the server took. With --lookups it is timed whether an answer's time tells who is known.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TypeAlias

from histories import events_of
from served import add_version, user

from features.events import EVENTS
from features.lake import Lake
from features.sessions import SESSIONS, SessionSettings, sessionize
from publish.keys import Keys

HOUSE = Path(__file__).parents[1]
CONFIG = """
name = "siege"
[events]
files = "events.csv"
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
"""
HEAD = b"Host: shop\r\n"
BODY = b"POST /users/lookup HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n"
UNREAD = 5_000
"""Requests that are sent at once, and whose answers nobody reads."""
AGAIN_AFTER_S = 1
HEALTH = b"GET /health HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"
HEALTH_EVERY_S = 0.25
HEALTH_WAITS_S = 10
USERS = 2_000
LOOKUPS = 40
"""Of known users, and as many of others, whose ids are beside theirs."""

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Attack: TypeAlias = Callable[[Reader, Writer], Awaitable[None]]


async def say_nothing(reader: Reader, writer: Writer) -> None:
    """Connect, and wait to be closed out."""
    await reader.read()


def dribble(start: bytes, drop: bytes = b"x") -> Attack:
    """Begin a request, and go on with a drop each second, for ever."""

    async def attack(reader: Reader, writer: Writer) -> None:
        writer.write(start)
        closed = asyncio.create_task(reader.read())
        closed.add_done_callback(lambda task: task.cancelled() or task.exception())
        while not closed.done():
            await asyncio.wait([closed], timeout=1)
            writer.write(drop)
            await writer.drain()

    return attack


async def read_nothing(reader: Reader, writer: Writer) -> None:
    """Ask a lot at once, and read none of the answers."""
    while True:
        writer.write(b"GET /segments HTTP/1.1\r\n" + HEAD + b"\r\n" + (b"GET /segments HTTP/1.1\r\n\r\n" * UNREAD))
        await writer.drain()
        await asyncio.sleep(1)


def repeat(request: bytes) -> Attack:
    """Send a request, read what comes, and send it again."""

    async def attack(reader: Reader, writer: Writer) -> None:
        while True:
            writer.write(request)
            await writer.drain()
            if not await reader.read(65536):
                return

    return attack


REFUSED = b"GET /users/someone HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer hk_wrong\r\n\r\n"
ATTACKS: dict[str, tuple[Attack, float]] = {
    "nothing": (say_nothing, 0),
    "idle connections": (say_nothing, 1),
    "half-sent heads": (dribble(b"GET /segments HTTP/1.1\r\nHost: shop\r\nX-Long: "), 1),
    "half-sent bodies": (dribble(BODY + b"Content-Length: 200000\r\n\r\n{"), 1),
    "chunks without an end": (dribble(BODY + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), 1),
    "answers nobody reads": (read_nothing, 0.1),
    "TLS to a plain port": (repeat(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)), 0.25),
    "an HTTP/2 preface": (repeat(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0.25),
    "WebSockets": (
        repeat(
            b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        ),
        0.25,
    ),
    "wrong keys": (repeat(REFUSED), 0.05),
}
"""Each attack, and for which share of the connections there is work in it."""


@dataclass
class Server:
    """A server under siege: its process, its port and its log."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def memory_bytes(self) -> int:
        """Return what the process holds in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    @property
    def log_bytes(self) -> int:
        """Return how long the log is."""
        return self.log.stat().st_size


@contextmanager
def serving(tree: Path, folder: Path, files: int) -> Iterator[Server]:
    """Run a server of the product in a tree, which may open so many files unless it asks for more."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "flows.cli", "serve", str(folder / "habitus.toml"), "--port", "0"]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    log = folder / "serve.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            cwd=folder,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard)),
        ) as process,
    ):
        try:
            assert process.stdout is not None
            found = re.match(rb"serving on http://\S+:(\d+) ", process.stdout.readline())
            assert found, log.read_text()
            port = int(found[1])
            ask(port, HEALTH)  # once it is answered the version is loaded
            yield Server(process, port, log)
        finally:
            process.kill()


def watch_health(port: int, stop: Event, told: Connection) -> None:
    """Ask for /health again and again, each time on a connection of its own, and tell how long each answer took.

    What is not answered took as long as was waited, and a second more.
    """
    took_s = []
    while not stop.is_set():
        began = time.perf_counter()
        try:
            answer = ask(port, HEALTH)
        except OSError:
            answer = b""
        waited_s = time.perf_counter() - began
        took_s.append(waited_s if b" 200 " in answer[:20] else max(waited_s, HEALTH_WAITS_S) + 1)
        stop.wait(HEALTH_EVERY_S)
    told.send(took_s)


def ask(port: int, request: bytes) -> bytes:
    """Send a request on a connection of its own, and return all of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=HEALTH_WAITS_S) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


async def besiege(port: int, attacks: list[Attack], seconds: float) -> int:
    """Have each attack go on for so long, again and again; return how many were connected at most."""
    inside = most = 0

    async def go_on(attack: Attack) -> None:
        nonlocal inside, most
        while True:
            with suppress(OSError, EOFError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                inside += 1
                most = max(most, inside)
                try:
                    await attack(reader, writer)
                finally:
                    inside -= 1
                    writer.transport.abort()
            await asyncio.sleep(AGAIN_AFTER_S)

    going = [asyncio.create_task(go_on(attack)) for attack in attacks]
    await asyncio.sleep(seconds)
    for task in going:
        task.cancel()
    await asyncio.gather(*going, return_exceptions=True)
    return most


def report(server: Server, name: str, attacks: list[Attack], seconds: float) -> bool:
    """Let attacks go on for so long, and print a row; tell whether /health was always there within a second."""
    log_bytes, memory_bytes = server.log_bytes, server.memory_bytes
    told, telling = multiprocessing.Pipe(duplex=False)
    stop = multiprocessing.Event()
    watching = multiprocessing.Process(target=watch_health, args=(server.port, stop, telling))
    watching.start()
    most = asyncio.run(besiege(server.port, attacks, seconds))
    stop.set()
    took_s: list[float] = told.recv()
    watching.join()
    slowest_s = max(took_s)
    shown = f"> {HEALTH_WAITS_S:.0f} s" if slowest_s > HEALTH_WAITS_S else f"{slowest_s * 1000:,.0f} ms"
    median = f"{statistics.median(took_s) * 1000:,.0f} ms"
    memory = f"{memory_bytes / 1e6:,.0f} → {server.memory_bytes / 1e6:,.0f} MB"
    print(
        f"| {name} | {most:,} | {median} | {shown} | {memory} | {(server.log_bytes - log_bytes) / 1e3:,.1f} kB |",
        flush=True,
    )
    return slowest_s < 1


def time_lookups(server: Server, secret: str) -> None:
    """Print how long lookups of users take who are known, and of others, asked in turn."""
    took_ms: dict[str, list[float]] = {"known": [], "unknown": []}
    for number in range(1, LOOKUPS + 1):
        for kind, user_id in (("known", f"user_{number:05}"), ("unknown", f"user_{number:05}x")):
            body = f'{{"user_id": "{user_id}"}}'
            head = f"{BODY.decode()}Connection: close\r\nAuthorization: Bearer {secret}\r\nContent-Length: {len(body)}"
            began = time.perf_counter()
            ask(server.port, f"{head}\r\n\r\n{body}".encode())
            took_ms[kind].append((time.perf_counter() - began) * 1000)
    print("\n| user | lookups | median | middle half |\n|---|---|---|---|")
    for kind, all_ms in took_ms.items():
        low, median, high = statistics.quantiles(all_ms, n=4)
        print(f"| {kind} | {len(all_ms)} | {median:.1f} ms | {low:.1f} to {high:.1f} ms |", flush=True)


def write_sessions(folder: Path) -> None:
    """Give each user of the version some sessions in the lake."""
    with Lake(folder / "lake") as lake:
        rows = [
            {"user_id": f"user_{number:05}", "occurred_at": f"2024-03-{day:02}", "event_name": "purchase"}
            for number in range(1, USERS)
            for day in range(1, 12)
        ]
        lake.write(EVENTS, events_of(lake.engine, rows))
        lake.write(SESSIONS, sessionize(lake.read(EVENTS), SessionSettings().gap))


def main() -> None:
    """Besiege a server; the exit status is 1 where /health once took a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=20, help="of each attack")
    parser.add_argument("--minutes", type=int, default=0, help="of all attacks at once, after these")
    parser.add_argument("--lookups", action="store_true", help="time lookups of known and unknown users, too")
    parser.add_argument("--only", default="", help="a part of the names of attacks")
    parser.add_argument("--files", type=int, default=1024, help="that the server may open unless it asks for more")
    parser.add_argument("--tree", type=Path, default=HOUSE, help="another clone of the product")
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "habitus.toml").write_text(CONFIG)
        add_version(folder / "published", 1, [user(f"user_{number:05}", number) for number in range(1, USERS)])
        chosen = {name: one for name, one in ATTACKS.items() if given.only in name}
        held = []
        print("| attack | at once | /health, median | slowest | memory | log |\n|---|---|---|---|---|---|")
        for name, (attack, share) in chosen.items():
            with serving(given.tree, folder, given.files) as server:
                attacks = [attack] * round(given.connections * share)
                held.append(report(server, name, attacks, given.seconds))
        if given.minutes:
            share = given.connections / len(chosen)
            attacks = [attack for attack, part in chosen.values() for _ in range(round(part * share))]
            attacks += [say_nothing] * (given.connections - len(attacks))
            with serving(given.tree, folder, given.files) as server:
                for minute in range(1, given.minutes + 1):
                    held.append(report(server, f"all at once, minute {minute}", attacks, 60))
        if given.lookups:
            write_sessions(folder)
            secret = Keys(folder / "lake" / "keys.db").create("personal", "siege")[1]
            with serving(given.tree, folder, given.files) as server:
                time_lookups(server, secret)
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
