"""Lists of users by HTTP, from `publish.api` and beside it a bare FastAPI route; server and client have a process each.

Connections stay open, and each asks again as soon as it is answered, so as many requests are in flight as there are
connections. The client is asyncio's streams, which take less time than either server.
"""

import asyncio
import gc
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import duckdb
import uvicorn
from fastapi import FastAPI

from publish.api import create_app
from publish.catalogue import Catalogue
from publish.connections import Crowd
from publish.destinations.folders import LocalFolder, write_manifest
from publish.keys import Keys
from publish.lookups import Lookups
from publish.report.content import Comparison, Overview, Report, Segment
from publish.report.reports import CONTENT, FOLDER, PAGE, USERS

SEGMENTS = 12
PAGES = 20
"""Of each list, that are asked for; the next one by the cursor of the one before."""
SORTS = ("", "-churn_probability")
KINDS = ("users", "bare")
HOST = "127.0.0.1"
KEY, KEYS = "key", "keys.db"


@dataclass(frozen=True)
class Load:
    """Say how many requests were answered in a second, and how long an answer took, in milliseconds."""

    requests_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def prepare(folder: Path, users: int) -> None:
    """Write the report of a version of so many users in 12 segments, and make a key."""
    reports = LocalFolder(folder / FOLDER)
    report = _report(users)
    with reports.staging() as staging:
        (staging / CONTENT).write_text(report.model_dump_json())
        (staging / PAGE).write_text("<title>Report</title>")
        duckdb.sql(
            f"""COPY (SELECT 'user-' || lpad(i::VARCHAR, 9, '0') AS user_id, i + 1 AS user_number,
                's' || i % {SEGMENTS} AS segment_id, 'Browses often, buys seldom ' || i % {SEGMENTS} AS segment_name,
                hash(i) % 1000 / 999 AS segment_strength,
                [{{'segment_id': 's' || i % {SEGMENTS}, 'strength': 0.614}}] AS segment_strengths,
                's' || (i + 1) % {SEGMENTS} AS runner_up_segment_id,
                CASE WHEN i % 3 = 0 THEN ['vip', 'left a cart'] ELSE [] END AS rule_segments,
                'active' AS lifecycle_stage, '3-1-2' AS rfm_3, '5-1-4' AS rfm_5,
                hash(i, 1) % 999983 / 999983 AS churn_probability,
                hash(i, 3) % 999983 / 9999.83 AS churn_percentile,
                ['No session for ' || i % 60 || ' days, more than usual', 'Fewer sessions'] AS churn_reasons,
                hash(i, 2) % 999983 / 999983 AS conversion_probability,
                hash(i, 4) % 999983 / 9999.83 AS conversion_percentile, ['Two carts in 7 days'] AS conversion_reasons,
                TIMESTAMPTZ '2026-01-04' - INTERVAL (i % 90) HOUR AS last_seen_at, i % 400 AS session_count,
                i % 20 AS session_count_28d, 'north' AS attribute_region
            FROM range({users}) users(i) ORDER BY ALL) TO '{staging / USERS}'"""
        )
        name = write_manifest(staging, {"version": 1, "as_of": report.as_of.isoformat()}, {})
        reports.add(staging, name)
    reports.point(name)
    _, secret = Keys(folder / KEYS).create("personal", "benchmark")
    (folder / KEY).write_text(secret)


def measure(kind: str, folder: Path, in_flight: int, seconds: float) -> Load:
    """Ask a server of a kind for so many seconds."""
    with _serving(kind, folder) as port:
        client = _start("ask", kind, str(folder), str(port), str(in_flight), str(seconds))
        told, _ = client.communicate()
    if client.returncode:
        raise SystemExit("an answer was not as it should be")
    return Load(**json.loads(told))


@contextmanager
def _serving(kind: str, folder: Path) -> Iterator[int]:
    with _start("serve", kind, str(folder)) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.terminate()


def _start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)


def _serve(kind: str, folder: Path) -> None:
    if kind == "users":
        app = create_app(
            Catalogue(folder / FOLDER),
            Lookups(folder / "lake"),
            Keys(folder / KEYS),
            lambda *_: "<title>Report</title>",
        )
    else:
        app = FastAPI()

        @app.get("/bare")
        async def bare() -> dict[str, str]:
            return {"status": "ok"}

    # asyncio turns Nagle's algorithm off only where a socket says that it is TCP; else an answer may wait for 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind((HOST, 0))
        listener.listen()
        gc.collect()
        gc.freeze()  # as `habitus serve` does
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, http=Crowd().protocol, access_log=False, log_level="warning")).run(
            [listener]
        )


async def _ask(kind: str, folder: Path, port: int, in_flight: int, seconds: float) -> Load:
    secret = (folder / KEY).read_text()
    targets = [target async for target in _targets(port, secret)] if kind == "users" else ["/bare"]
    requests = [_request(target, secret) for target in targets]
    turns = itertools.cycle(requests)
    taken: list[float] = []
    until = time.perf_counter() + seconds

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        while time.perf_counter() < until:
            began = time.perf_counter()
            await _answer(reader, writer, next(turns))
            taken.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(in_flight)))
    taken.sort()
    quantiles = [taken[int(len(taken) * share)] * 1000 for share in (0.5, 0.95, 0.99)]
    return Load(len(taken) / seconds, *quantiles)


async def _targets(port: int, secret: str) -> AsyncIterator[str]:
    """Yield the pages that are asked for: the first ones of every segment's list, in both orders."""
    reader, writer = await asyncio.open_connection(HOST, port)
    for segment, sort in itertools.product(range(SEGMENTS), SORTS):
        target = f"/segments/s{segment}/users?sort={quote(sort)}"
        following = target
        for _ in range(PAGES):
            yield following
            found = json.loads(await _answer(reader, writer, _request(following, secret, "identity")))
            if found["next"] is None:
                break
            following = f"{target}&cursor={found['next']}"
    writer.close()


def _request(target: str, secret: str, encoding: str = "gzip") -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {secret}"]
    return "\r\n".join([*lines, f"Accept-Encoding: {encoding}", "", ""]).encode()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(head.decode())
    length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    return await reader.readexactly(int(length))


def _report(users: int) -> Report:
    """Return a report that says no more of segments than their names."""
    counts = dict.fromkeys(
        ("users", "sessions", "active_7d", "active_28d", "new_28d", "returning_28d", "lost_28d"), users
    )
    nothing: dict[str, object] = {name: [] for name in ("metrics", "breakdowns", "trend")}
    texts = dict.fromkeys(("changes", "rule", "stability", "lineage", "withheld"))
    lists: dict[str, object] = {name: [] for name in ("typical", "propensities", "top_users", "flags", "suggestions")}
    segments = [
        Segment.model_validate(
            {"segment_id": f"s{number}", "name": f"Segment {number}", "kind": "discovered", "description": ""}
            | {"users": users // SEGMENTS, "share": None, "active_7d": 0, "active_28d": 0}
            | nothing
            | texts
            | lists
        )
        for number in range(SEGMENTS)
    ]
    return Report.model_validate(
        {"source": "shop", "version": 1, "as_of": "2026-01-05T00:00:00Z", "time_zone": "UTC", "k": 10}
        | {"model_versions": {}, "configuration": "", "attributes": [], "user_ids_personal": False}
        | {"users_listed": users, "segments": segments, "models": [], "withheld": []}
        | {
            "overview": Overview.model_validate(
                {**counts, **nothing, "rejected_rows": {}, "lifecycle": [], "changes": None}
            )
        }
        | {"comparison": Comparison(features=[], overlap=[])}
    )


def _main(what: str, kind: str, folder: str, rest: Sequence[str]) -> None:
    if what == "serve":
        _serve(kind, Path(folder))
    else:
        port, in_flight, seconds = rest
        found = asyncio.run(_ask(kind, Path(folder), int(port), int(in_flight), float(seconds)))
        print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
