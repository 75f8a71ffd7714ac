"""The API and the pages, in process: who gets what, in which form, and what is logged."""

import asyncio
import base64
import contextlib
import csv
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pyarrow as pa
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from histories import events_of
from served import AS_OF, HOSTILE, SCHEMA, SCRIPT_HASH, add_version, user, without_user
from starlette.testclient import TestClient

from features.events import EVENTS
from features.lake import Lake
from features.sessions import SESSIONS, SessionSettings, sessionize
from publish import api as api_module
from publish import catalogue as catalogue_module
from publish import lookups as lookups_module
from publish.api import create_app, openapi_of
from publish.catalogue import Catalogue, Loaded
from publish.changes import CHANGES
from publish.formulas import unescape
from publish.guard import BODY_MAX_BYTES
from publish.kept import BrokenVersionError
from publish.keys import SCOPES, Keys, Scope
from publish.lookups import Lookups
from publish.report.content import Report
from publish.report.settings import ReportSettings

USERS = [user(f"user_{number:03}", number) for number in range(1, 131)]


@dataclass
class Server:
    """The application over a folder of versions, with a key of each scope."""

    published: Path
    lake: Path
    keys: Keys
    app: FastAPI
    secrets: Mapping[str, str]
    running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    first: TestClient | None = None

    def client(self, key: str | None) -> TestClient:
        """Return a client that sends a key, or that of a scope; all use the one server that is running."""
        client = TestClient(self.app, raise_server_exceptions=False, base_url="http://shop.example")
        if key:
            client.headers = httpx.Headers({b"authorization": f"Bearer {self.secrets.get(key, key)}".encode()})
        if self.first is None:
            self.first = self.running.enter_context(client)
        client.portal = self.first.portal
        return client

    def get(self, path: str, key: str | None = "personal", **given: Any) -> httpx.Response:
        answer: httpx.Response = self.client(key).get(path, **given)
        return answer


def draw(report: Report, users: pa.Table | None, settings: ReportSettings) -> str:
    """Make the page that says whom and what it would show."""
    named = [one.user_id for segment in report.segments for one in segment.top_users]
    shown = None if users is None else users.column_names
    attributes = [one.name for one in report.attributes]
    return json.dumps({"named": named, "columns": shown, "attributes": attributes, "personal": settings.personal})


def open_server(folder: Path, users: list[dict[str, Any]] | None = None, personal: tuple[str, ...] = ()) -> Server:
    published, lake = folder / "published", folder / "lake"
    if users is not None:
        add_version(published, 1, users, personal)
    keys = Keys(lake / "keys.db")
    secrets: dict[str, str] = {scope: keys.create(scope, scope)[1] for scope in SCOPES}
    app = create_app(Catalogue(published / "reports"), Lookups(lake), keys, draw)
    return Server(published, lake, keys, app, secrets)


Opened = Callable[..., Server]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Open servers that stop when the test ends."""
    with contextlib.ExitStack() as running:

        def open_one(folder: Path | None = None, **given: Any) -> Server:
            server = open_server(folder or tmp_path, **given)
            running.enter_context(server.running)
            return server

        yield open_one


@pytest.fixture
def server(opened: Opened) -> Server:
    return opened(users=USERS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Open one server for all tests that only read."""
    server = open_server(tmp_path_factory.mktemp("shared"), USERS)
    with server.running:
        yield server


def pages(server: Server, path: str, key: str = "personal", **params: Any) -> list[dict[str, Any]]:
    """Read a whole list by its cursors."""
    client, items, cursor = server.client(key), [], None
    while True:
        answer = client.get(path, params=params | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        items += answer.json()["items"]
        cursor = answer.json()["next"]
        if cursor is None:
            return items


# --- who may see what ---

PATHS = {
    "/health": "none",
    "/openapi.json": "aggregate",
    "/segments": "aggregate",
    "/segments/{segment_id}": "aggregate",
    "/versions": "aggregate",
    "/manifest": "lists",
    "/segments/{segment_id}/users": "lists",
    "/segments/{segment_id}/users.csv": "lists",
    "/changes": "lists",
    "/users/lookup": "lists",
    "/users/{user_id:anything}": "lists",
    "/": "aggregate",
    "/report": "aggregate",
    "/report/{version}": "aggregate",
    "/user": "lists",
}
"""Which key each route needs at least. A new route has to be added here."""
BODIES: dict[str, dict[str, Any]] = {
    "/users/lookup": {"json": {"user_id": "user_001"}},
    "/user": {"data": {"user_id": "user_001"}},
}


def routes() -> list[tuple[str, str]]:
    app = create_app(Catalogue(Path("none")), Lookups(Path("none")), None, draw)
    assert all(isinstance(route, APIRoute) for route in app.routes)
    return [
        (method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods or ()
    ]


def ask(client: TestClient, method: str, route: str) -> httpx.Response:
    path = route.replace(":anything", "").format(segment_id="S01", user_id="user_001", version=1)
    answer: httpx.Response = client.request(method, path, **BODIES.get(route, {}) if method == "POST" else {})
    return answer


def test_every_route_is_known_here() -> None:
    assert {path for _, path in routes()} == PATHS.keys()


@pytest.mark.parametrize(("method", "route"), routes())
def test_every_route_refuses_who_has_no_key_a_wrong_or_a_revoked_one(shared: Server, method: str, route: str) -> None:
    key, revoked = shared.keys.create("personal", "revoked")
    shared.keys.revoke(key.id)
    answers = [ask(shared.client(key), method, route) for key in (None, "hk_wrong", revoked, "Ü")]

    if PATHS[route] == "none":
        assert {answer.status_code for answer in answers} == {200}
        assert answers[0].json() == {"status": "ok"}
        return
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    shapes = {tuple(sorted(answer.headers.items())) for answer in answers}
    assert len(shapes) == 1
    assert answers[0].headers.get_list("www-authenticate")[0].startswith("Bearer")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("method", "route"), routes())
def test_every_route_refuses_a_key_that_is_too_narrow(shared: Server, method: str, route: str, scope: Scope) -> None:
    answer = ask(shared.client(scope), method, route)

    is_wide = PATHS[route] == "none" or SCOPES.index(scope) >= SCOPES.index(PATHS[route])
    assert answer.status_code == (200 if is_wide else 403), answer.text
    if not is_wide:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"] == f"this needs a key of the scope {PATHS[route]}"


@pytest.mark.parametrize("path", ["/nothing", "/segments/", "/docs", "/users", "/report/x/y"])
def test_where_there_is_no_route_nobody_without_a_key_learns_it(shared: Server, path: str) -> None:
    assert shared.get(path, None).status_code == 401
    assert shared.get(path).status_code == 404
    assert shared.get(path).headers["content-type"] == "application/problem+json"


def test_a_route_that_says_no_scope_cannot_be_made(server: Server) -> None:
    with pytest.raises(KeyError, match="x-scope"):
        server.app.get("/forgotten")(lambda: None)


def test_a_browser_signs_in_with_the_key_as_its_password(shared: Server) -> None:
    def basic(text: str) -> httpx.Response:
        return shared.get("/segments", None, headers={"authorization": f"Basic {text}"})

    secret = shared.secrets["aggregate"]
    assert basic(base64.b64encode(f"ada:{secret}".encode()).decode()).status_code == 200
    for wrong in (f"{secret}:", "ada:", "", f"ada:{secret}x"):
        assert basic(base64.b64encode(wrong.encode()).decode()).status_code == 401
    assert basic("no base64").status_code == 401


def test_a_key_that_is_revoked_is_refused_from_the_next_request_on(server: Server) -> None:
    client = server.client("lists")
    assert client.get("/segments").status_code == 200

    Keys(server.keys.path).revoke(next(key.id for key in server.keys.all() if key.scope == "lists"))

    assert client.get("/segments").status_code == 401


def test_keys_whose_file_is_gone_or_is_another_are_refused_from_the_next_request_on(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for key in server.keys.all():
        server.keys.is_use_due(key)  # so that no thread writes to the file that is moved
    assert server.get("/segments", "lists").status_code == 200
    kept = server.keys.path.rename(server.keys.path.with_name("kept"))

    assert server.get("/segments", "lists").status_code == 401
    assert server.get("/health", "lists").status_code == 200
    assert "keys.db: is gone, so no key is valid; put it back, or make keys anew" in caplog.text
    assert not server.keys.path.exists()
    _, secret = Keys(server.keys.path).create("lists", "another")
    assert [server.get("/segments", one).status_code for one in ("lists", secret)] == [401, 200]
    server.keys.path.write_text("no keys " * 1000)
    assert [server.get("/segments", one).status_code for one in ("lists", secret)] == [503, 503]
    kept.replace(server.keys.path)
    assert [server.get("/segments", one).status_code for one in ("lists", secret)] == [200, 401]


def test_when_a_key_was_used_last_is_noted(server: Server) -> None:
    with server.client("lists") as client:
        client.get("/segments")
        client.get("/segments")

    assert [key.last_used_at is not None for key in server.keys.all() if key.scope == "lists"] == [True]
    assert [key.last_used_at for key in server.keys.all() if key.scope != "lists"] == [None, None]


def test_numbers_are_for_all_and_top_users_for_those_who_may_see_lists(shared: Server) -> None:
    def top(key: str) -> list[Any]:
        return shared.get("/segments/S01", key).json()["segment"]["top_users"]  # type: ignore[no-any-return]

    assert top("aggregate") == []
    assert [one["user_id"] for one in top("lists")] == ["user_001", "user_003", "user_005"]
    assert "user_" not in shared.get("/segments", "aggregate").text + shared.get("/segments/S01", "aggregate").text


def test_an_attribute_that_is_personal_is_for_keys_that_may_see_it(opened: Opened) -> None:
    server = opened(users=USERS, personal=("region",))

    everything = server.get("/segments/S01/users").json()["items"][0]
    less = server.get("/segments/S01/users", "lists").json()["items"][0]

    assert everything.keys() - less.keys() == {"attribute_region"}
    assert everything["churn_reasons"] == ["Region: north", "last session 1 days ago"]
    assert less["churn_reasons"] == ["last session 1 days ago"]
    assert server.get("/users/user_001", "lists").json()["user"] == less
    for path in ("/segments/S01/users.csv", "/users/user_001", "/segments/S01", "/segments/S01/users"):
        assert "egion" in server.get(path).text
        assert "egion" not in server.get(path, "lists").text
    page = server.client("lists").post("/user", data={"user_id": "user_001"}).text
    assert "Plan" in page
    assert "egion" not in page
    assert server.get("/segments/S01/users?sort=attribute_region", "lists").status_code == 422


def test_ids_that_are_personal_are_numbers_for_keys_that_may_not_see_them(opened: Opened) -> None:
    server = opened(users=USERS, personal=("user_id",))

    shown = pages(server, "/segments/S01/users", "lists", limit=1000)
    assert [one["user_number"] for one in shown] == list(range(1, 131, 2))
    for path in ("/segments/S01/users", "/segments/S01/users.csv", "/segments/S01"):
        assert "user_001" in server.get(path).text
        assert "user_0" not in server.get(path, "lists").text
    for path in ("/users/user_001", "/changes"):
        assert server.get(path).status_code == 200
        assert server.get(path, "lists").status_code == 403
    assert server.client("lists").post("/users/lookup", json={"user_id": "user_001"}).status_code == 403
    assert server.get("/segments/S01/users?search=user_001", "lists").json()["users"] == 0
    assert server.get("/segments/S01/users?search=129", "lists").json()["users"] == 1
    assert server.get("/segments/S01/users?sort=user_id", "lists").status_code == 422


def test_without_keys_only_this_machines_own_names_are_answered(tmp_path: Path) -> None:
    add_version(tmp_path / "published", 1, USERS)
    app = create_app(Catalogue(tmp_path / "published" / "reports"), Lookups(tmp_path), None, draw, ["localhost:8080"])
    with TestClient(app, base_url="http://localhost:8080") as client:
        assert client.get("/users/user_001").status_code == 200
        for host in ("attacker.example:8080", "localhost", "localhost:8081", "localhost:8080.attacker.example", ""):
            answer = client.get("/users/user_001", headers={"host": host})
            assert answer.status_code == 421
            assert "user_001" not in answer.text


# --- what is answered ---


def test_segments_are_those_of_the_report(shared: Server) -> None:
    found = shared.get("/segments").json()

    assert (found["version"], found["k"]) == (1, 10)
    assert [(one["segment_id"], one["kind"], one["users"]) for one in found["segments"]] == [
        ("S01", "discovered", 65),
        ("S02", "discovered", 65),
        ("cart_abandoners", "named", 43),
    ]
    assert shared.get("/segments/S09").status_code == 404
    assert shared.get("/segments/S09/users").status_code == 404


@pytest.mark.parametrize("limit", [1, 7, 65, 1000])
@pytest.mark.parametrize(
    "params",
    [{}, {"sort": "-churn_probability"}, {"sort": "churn_probability"}, {"sort": "-user_id"}, {"search": "USER_01"}],
)
def test_paging_returns_each_user_once_in_the_same_order_whatever_the_limit(
    shared: Server, limit: int, params: dict[str, str]
) -> None:
    found = pages(shared, "/segments/S01/users", limit=limit, **params)

    members = [
        row for row in USERS if row["segment_id"] == "S01" and params.get("search", "").lower() in row["user_id"]
    ]
    by = params.get("sort", "user_id").removeprefix("-")
    known = sorted((row for row in members if row[by] is not None), key=lambda row: row["user_id"])
    known.sort(key=lambda row: row[by], reverse=params.get("sort", "").startswith("-"))
    unknown = [row for row in members if row[by] is None]
    assert [one["user_id"] for one in found] == [row["user_id"] for row in [*known, *unknown]]


def test_a_named_segments_list_has_the_users_of_the_rule(shared: Server) -> None:
    found = pages(shared, "/segments/cart_abandoners/users")

    assert [one["user_id"] for one in found] == [f"user_{number:03}" for number in range(3, 131, 3)]


def test_a_row_is_that_of_the_version(shared: Server) -> None:
    [row] = shared.get("/segments/S01/users?search=user_007").json()["items"]

    assert row == USERS[6] | {"last_seen_at": "2024-03-11T17:00:00Z"}


def test_csv_holds_the_same_users_and_values(shared: Server) -> None:
    wanted = [row for row in USERS if row["segment_id"] == "S02"]
    by_ending = shared.get("/segments/S02/users.csv")
    by_accept = shared.get("/segments/S02/users", headers={"accept": "text/csv"})
    by_format = shared.get("/segments/S02/users?format=csv&limit=1")

    assert by_ending.text == by_accept.text == by_format.text
    assert by_ending.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_ending.headers["content-disposition"] == "attachment; filename*=UTF-8''shop-S02-v1.csv"
    rows = list(csv.DictReader(io.StringIO(by_ending.text, newline="")))
    assert [*rows[0]] == SCHEMA.names
    assert [row["user_id"] for row in rows] == [row["user_id"] for row in wanted]
    for row, one in zip(rows, wanted, strict=True):
        assert row["churn_reasons"] == " | ".join(one["churn_reasons"])
        assert row["last_seen_at"] == f"{one['last_seen_at']:%Y-%m-%dT%H:%M:%SZ}"
        assert (float(row["churn_probability"]) if row["churn_probability"] else None) == one["churn_probability"]
        assert int(row["session_count"]) == one["session_count"]


@pytest.fixture(scope="module")
def hostile_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Open one server whose first segment has all users with hostile ids, and the second somebody else."""
    users = [user(hostile, 2 * number + 1) for number, hostile in enumerate(HOSTILE)]
    server = open_server(tmp_path_factory.mktemp("hostile"), [*users, user("b", 2)])
    with server.running:
        yield server


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_ids_are_looked_up_shown_and_exported_as_they_are(hostile_server: Server, hostile: str) -> None:
    client = hostile_server.client("personal")
    in_order = sorted(HOSTILE, key=str.encode)

    assert client.post("/users/lookup", json={"user_id": hostile}).json()["user"]["user_id"] == hostile
    assert [one["user_id"] for one in client.get("/segments/S01/users").json()["items"]] == in_order
    exported = client.get("/segments/S01/users.csv").content.decode()
    rows = csv.DictReader(io.StringIO(exported, newline=""))
    assert [unescape(row["user_id"]) for row in rows] == in_order
    page = client.post("/user", data={"user_id": hostile})
    assert page.status_code == 200
    assert "<script" not in page.text
    assert "49" not in page.text.partition("<main>")[2] or "{{" not in hostile
    for missing in (hostile + "x", hostile[1:], hostile.upper() + "!"):
        assert client.post("/users/lookup", json={"user_id": missing}).status_code == 404
        shown = client.post("/user", data={"user_id": missing or "?"})
        assert shown.status_code == 404
        assert "<script" not in shown.text


@pytest.mark.parametrize("given", ['{"user_id": "\\ud800"}', '{"user_id": "\\u0000"}', '{"user_id": ""}'])
def test_an_id_that_nobody_can_have_is_nobodys(shared: Server, given: str) -> None:
    answer = shared.client("personal").post(
        "/users/lookup", content=given, headers={"content-type": "application/json"}
    )

    assert answer.status_code in (404, 422)
    assert shared.client("personal").post("/user", data={"user_id": "\x00"}).status_code == 404


def test_a_request_that_is_too_large_is_refused_however_it_says_its_length(shared: Server) -> None:
    client = shared.client("personal")
    large = json.dumps({"user_id": "x" * BODY_MAX_BYTES}).encode()

    assert client.post("/users/lookup", content=large).status_code == 413
    assert client.post("/user", content=(large[at : at + 1000] for at in range(0, len(large), 1000))).status_code == 413
    assert client.post("/users/lookup", content=iter([large])).status_code == 413
    assert client.post("/users/lookup", content=b"{}", headers={"content-length": "x"}).status_code == 413


def test_a_cursor_is_of_one_list_only(shared: Server) -> None:
    first = shared.get("/segments/S01/users?limit=10").json()["next"]

    def status(path: str, key: str = "personal") -> int:
        return shared.get(path, key, params={"cursor": first}).status_code

    assert "user" not in base64.urlsafe_b64decode(first + "==").decode()
    assert status("/segments/S01/users") == 200
    for path in ("/segments/S02/users", "/changes"):
        assert status(path) == 422
    assert shared.get("/segments/S01/users", params={"cursor": first, "sort": "-user_id"}).status_code == 422
    assert status("/segments/S01/users", "lists") == 422
    for wrong in ("", "x", "é", "AAAA", "W10", base64.urlsafe_b64encode(b"[" * 900).decode()):
        assert shared.get("/segments/S01/users", params={"cursor": wrong}).status_code == 422


def test_wrong_parameters_are_said_without_repeating_what_was_given(shared: Server) -> None:
    answer = shared.get("/segments/S01/users?limit=user_001&search=" + "s" * 300)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"query.limit", "query.search"} == {one["where"] for one in answer.json()["errors"]}
    assert "user_001" not in answer.text
    assert "sss" not in answer.text
    for wrong in ({"other": "x"}, {str(number): "x" for number in range(20)}):
        assert shared.client("personal").post("/user", data=wrong).status_code == 422


def test_an_answer_that_a_tool_has_already_is_not_sent_again(server: Server) -> None:
    for path in (
        "/segments",
        "/segments/S01/users",
        "/segments/S01/users.csv",
        "/users/user_001",
        "/report",
        "/manifest",
    ):
        first = server.get(path)
        again = server.get(path, headers={"if-none-match": f'"other", {first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert server.get(path, headers={"if-none-match": '"other"'}).status_code == 200
    tags = {server.get(f"/segments/S01/users?{query}").headers["etag"] for query in ("", "limit=2", "sort=-user_id")}
    assert len(tags) == 3
    before = server.get("/segments").headers["etag"]
    add_version(server.published, 2, USERS)
    assert server.get("/segments", "personal", params={"version": 2}).headers["etag"] != before


def test_answers_are_compressed_for_those_who_read_that(shared: Server) -> None:
    for path in ("/segments/S01/users", "/segments/S01/users.csv"):
        packed = shared.get(path, headers={"accept-encoding": "gzip"})
        plain = shared.get(path, headers={"accept-encoding": "identity"})
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.content == plain.content


def test_what_is_about_people_is_kept_nowhere(shared: Server) -> None:
    for path in ("/", "/segments/S01/users", "/segments/S01/users.csv", "/users/user_001", "/manifest", "/changes"):
        assert shared.get(path).headers["cache-control"] == "private, no-store"
    for path in ("/segments", "/segments/S01", "/versions"):
        assert shared.get(path, "aggregate").headers["cache-control"] == "private, no-cache"


def test_every_answer_carries_the_headers_that_protect_it(shared: Server) -> None:
    client = shared.client("personal")
    answers = [
        client.get(path) for path in ("/", "/segments", "/nothing", "/health", "/user", "/segments/S01/users.csv")
    ]
    answers += [shared.get("/segments", None), client.delete("/segments"), client.post("/user", data={"user_id": "x"})]
    answers += [client.get("/segments", headers={"if-none-match": "*"})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] in ("no-referrer", "same-origin")
        assert "camera=()" in answer.headers["permissions-policy"]
        assert "strict-transport-security" not in answer.headers
        assert "server" not in answer.headers
    secured = TestClient(shared.app, base_url="https://shop.example").get("/health")
    assert secured.headers["strict-transport-security"] == "max-age=31536000"


def test_the_report_runs_only_what_its_file_allows_and_the_user_page_nothing(shared: Server) -> None:
    page = shared.get("/")
    assert "The report of version 1" in page.text
    assert f"script-src '{SCRIPT_HASH}'" in page.headers["content-security-policy"]
    nonces = []
    for _ in range(2):
        answer = shared.client("personal").post("/user", data={"user_id": "user_001"})
        [nonce] = [part for part in answer.headers["content-security-policy"].split("'") if part.startswith("nonce-")]
        assert f'<style nonce="{nonce.removeprefix("nonce-")}">' in answer.text
        assert "script" not in answer.text + answer.headers["content-security-policy"]
        assert "style=" not in answer.text
        nonces.append(nonce)
    assert len(set(nonces)) == 2


def test_the_report_names_nobody_for_numbers_only_and_leaves_out_nothing_for_those_who_may_see_all(
    opened: Opened,
) -> None:
    server = opened(users=USERS, personal=("region", "user_id"))
    aggregate, lists, personal = (server.get("/", scope) for scope in SCOPES)

    assert aggregate.json() == {"named": [], "columns": None, "attributes": ["plan"], "personal": ["region", "user_id"]}
    assert "The report of version 1" in lists.text
    assert '<a href="/user">Look up a user</a></li></ul></nav>' in lists.text
    assert personal.json()["named"][:2] == ["user_001", "user_003"]
    assert personal.json()["attributes"] == ["region", "plan"]
    assert (personal.json()["columns"], personal.json()["personal"]) == (SCHEMA.names, [])
    assert [one.headers["cache-control"] for one in (aggregate, lists)] == ["private, no-cache", "private, no-store"]
    assert len({one.headers["etag"] for one in (aggregate, lists, personal)}) == 3
    assert server.get("/", "aggregate").text == aggregate.text


def test_an_error_in_here_is_told_without_saying_what_it_was(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Loaded, user_id: str) -> int:
        raise RuntimeError(f"no room for {user_id}")

    monkeypatch.setattr(Loaded, "find", fail)
    with caplog.at_level(logging.INFO):
        answer = server.get("/users/user_001")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name == "habitus.serve")
    assert "GET /users/{user_id:anything} failed: RuntimeError at test_api.py" in logged
    assert "room" not in answer.text + caplog.text
    assert "user_001" not in "\n".join(record.getMessage() for record in caplog.records if record.name != "httpx")


def test_what_is_logged_names_the_route_and_the_key_and_nobody(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    client = server.client("personal")
    with caplog.at_level(logging.DEBUG):
        client.get("/users/user_001")
        client.get("/segments/S01/users?search=user_001")
        client.get("/users/nobody_user_001")
        client.post("/user", data={"user_id": "user_001"})
        client.get("/elsewhere/user_001")
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]

    assert [line.split(" ms")[0].rsplit(" ", 1)[0] for line in logged if "key" in line] == [
        "GET /users/{user_id:anything} 200",
        "GET /segments/{segment_id}/users 200",
        "GET /users/{user_id:anything} 404",
        "POST /user 200",
        "GET - 404",
    ]
    assert "user_001" not in "\n".join(logged)
    assert not any(secret in "\n".join(logged) for secret in server.secrets.values())


# --- versions ---


def test_before_the_first_version_the_answer_is_to_ask_later(opened: Opened) -> None:
    server = opened()

    assert server.get("/health").status_code == 200
    for path in ("/segments", "/", "/users/u", "/versions", "/changes"):
        answer = server.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    add_version(server.published, 1, USERS)
    assert server.get("/segments").status_code == 200


def test_an_earlier_version_is_answered_as_long_as_it_is_kept(server: Server) -> None:
    first = server.get("/versions").json()["versions"]
    add_version(server.published, 2, USERS[:50])
    client = server.client("personal")
    client.get("/segments?version=2")  # is answered when it is loaded

    assert first == [{"version": 1, "as_of": "2024-03-13T00:00:00Z", "latest": True}]
    assert [(one["version"], one["latest"]) for one in client.get("/versions").json()["versions"]] == [
        (2, True),
        (1, False),
    ]
    for version, users in ((1, 65), (2, 25)):
        assert client.get(f"/segments/S01/users?version={version}").json()["users"] == users
        assert client.get(f"/report/{version}").text == client.get(f"/report?version={version}").text
        assert f"version {version}" in client.get(f"/report/{version}").text
        assert client.get(f"/manifest?version={version}").json()["version"] == version
    for path in ("/segments?version=3", "/report/3", "/manifest?version=9", "/report/99999999999999999999"):
        assert client.get(path).status_code == 404
    for path in ("/segments?version=0", "/segments?version=x", "/report/x"):
        assert client.get(path).status_code == 422


def test_a_list_that_is_being_read_stays_that_of_its_version(server: Server) -> None:
    client = server.client("personal")
    first = client.get("/segments/S01/users?limit=40").json()
    add_version(server.published, 2, USERS[:10])
    assert client.get("/segments/S01/users?version=2").json()["users"] == 5

    rest = client.get("/segments/S01/users", params={"limit": 40, "cursor": first["next"]}).json()

    assert (rest["version"], rest["next"]) == (1, None)
    assert len({one["user_id"] for one in first["items"] + rest["items"]}) == 65


def test_who_was_erased_is_gone_with_the_next_request_and_cursors_say_so(tmp_path: Path, opened: Opened) -> None:
    name = add_version(tmp_path / "published", 1, USERS)
    server = opened()
    client = server.client("personal")
    assert client.get("/users/user_001").status_code == 200
    cursor = client.get("/segments/S01/users?limit=10").json()["next"]

    without_user(tmp_path / "published", name, "user_001")

    assert client.get("/users/user_001").status_code == 404
    assert client.get("/segments/S01/users").json()["users"] == 64
    assert client.get("/segments/S01/users", params={"limit": 10, "cursor": cursor}).status_code == 410
    assert client.get("/users/user_001?version=1").status_code == 404


def test_while_a_version_is_loaded_the_one_before_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_version(tmp_path, 1, USERS)
    loads, load = [], catalogue_module.load

    async def run() -> None:
        may_end = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slowly(folder: Path) -> Loaded:
            loads.append(folder.name)
            asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(30)
            return load(folder)

        catalogue = Catalogue(tmp_path / "reports")
        assert (await catalogue.latest()).version == 1
        monkeypatch.setattr(catalogue_module, "load", slowly)
        add_version(tmp_path, 2, USERS)
        assert [(await catalogue.latest()).version for _ in range(100)] == [1] * 100
        may_end.set()
        await catalogue.version(2)
        assert (await catalogue.latest()).version == 2

    asyncio.run(run())
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("personal", "is_shown"), [(["region"], True), (["region", "plan"], False), (["user_id"], False)]
)
def test_a_report_from_before_something_became_personal_is_not_shown(
    tmp_path: Path, personal: list[str], is_shown: bool
) -> None:
    add_version(tmp_path, 1, USERS, ["region"])
    serving = Catalogue(tmp_path / "reports")
    assert asyncio.run(serving.latest()).version == 1
    serving.mark_personal(personal)

    for catalogue in (serving, Catalogue(tmp_path / "reports", personal=personal)):
        if is_shown:
            assert asyncio.run(catalogue.latest()).version == 1
        else:
            with pytest.raises(BrokenVersionError, match=r"it shows that\); run `habitus report`$"):
                asyncio.run(catalogue.latest())


def test_a_version_that_cannot_be_read_leaves_the_one_before_and_is_tried_again_later(tmp_path: Path) -> None:
    now = 0.0

    async def run() -> None:
        nonlocal now
        catalogue = Catalogue(tmp_path / "reports", lambda: now)
        add_version(tmp_path, 1, USERS)
        await catalogue.latest()
        name = add_version(tmp_path, 2, USERS)
        file = tmp_path / "reports" / name / "report.json"
        whole = file.read_text()
        file.write_text(whole[:100])
        for _ in range(3):
            assert (await catalogue.latest()).version == 1
            with pytest.raises(BrokenVersionError, match="publish again"):
                await catalogue.version(2)
        file.write_text(whole)
        assert (await catalogue.latest()).version == 1
        now += catalogue_module.RETRY_AFTER_S
        assert (await catalogue.version(2)).version == 2
        assert (await catalogue.latest()).version == 2

    asyncio.run(run())


def test_a_broken_first_version_is_one_that_cannot_be_read_now(tmp_path: Path, opened: Opened) -> None:
    name = add_version(tmp_path / "published", 1, USERS)
    (tmp_path / "published" / "reports" / name / "users.parquet").write_bytes(b"PAR1")
    server = opened()

    answer = server.get("/segments")

    assert answer.status_code == 503
    assert answer.json()["detail"] == f"the version {name} cannot be read now; /versions says which can"


def test_only_so_many_versions_stay_in_memory(tmp_path: Path) -> None:
    for version in range(1, 7):
        add_version(tmp_path, version, USERS[:3])

    async def run() -> None:
        catalogue = Catalogue(tmp_path / "reports")
        for version in (6, 1, 2, 3, 4, 5):
            assert (await catalogue.version(version)).version == version
            await catalogue.latest()
        assert len(catalogue._loaded) == catalogue_module.LOADED_MAX
        assert 6 in {loaded.version for loaded in catalogue._loaded.values()}

    asyncio.run(run())


def test_a_version_without_users_or_with_nothing_known_of_them_is_answered(tmp_path: Path, opened: Opened) -> None:
    nothing = dict.fromkeys(SCHEMA.names) | {"user_id": "u", "user_number": 1, "rule_segments": []}
    nothing |= {"lifecycle_stage": "new", "churn_reasons": [], "session_count_28d": 0, "last_seen_at": AS_OF}
    for folder, users in (("empty", []), ("nothing", [nothing])):
        server = opened(tmp_path / folder, users=users)
        assert server.get("/segments/S01/users").json()["items"] == []
        assert len(server.get("/segments/S01/users.csv").text.splitlines()) == 1
        assert server.client("personal").post("/user", data={"user_id": "u"}).status_code == (200 if users else 404)
    not_a_number = user("n", 1, churn_probability=float("nan"), segment_strength=float("inf"))
    server = opened(tmp_path / "nan", users=[not_a_number])
    assert server.get("/segments/S01/users").json()["items"][0]["churn_probability"] is None


# --- what the lake is asked ---


@pytest.fixture(scope="module")
def lake_of_visits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give user_001 three sessions, one of which is not over at as_of, and user_002 one."""
    visits = [
        ("user_001", "2024-03-10T10:00", "search"),
        ("user_001", "2024-03-11T10:00", "purchase"),
        ("user_001", "2024-03-12T23:50", "page_view"),
        ("user_001", "2024-03-13T00:10", "page_view"),
        ("user_002", "2024-03-11T12:00", "page_view"),
    ]
    with Lake(tmp_path_factory.mktemp("visits") / "lake") as lake:
        rows = [{"user_id": one, "occurred_at": at, "event_name": name, "page": "<b>home"} for one, at, name in visits]
        events = events_of(lake.engine, rows)
        lake.write(EVENTS, events)
        lake.write(SESSIONS, sessionize(events, SessionSettings().gap))
        return lake.folder


@pytest.fixture
def visited(server: Server, lake_of_visits: Path) -> Server:
    shutil.copytree(lake_of_visits, server.lake, dirs_exist_ok=True)
    return server


def test_a_users_sessions_are_those_that_were_over_at_the_version_the_latest_first(visited: Server) -> None:
    found = visited.get("/users/user_001").json()["sessions"]

    assert [one["started_at"] for one in found] == ["2024-03-11T10:00:00+00:00", "2024-03-10T10:00:00+00:00"]
    assert [one["purchase_count"] for one in found] == [1, 0]
    assert visited.get("/users/user_003").json()["sessions"] == []
    assert visited.get("/users/user_001", "lists").json()["sessions"] is None


def test_the_page_of_a_user_says_why_and_shows_the_sessions(visited: Server) -> None:
    page = visited.client("personal").post("/user", data={"user_id": "user_001"}).text

    for words in (
        "<h1>user_001</h1>",
        "Weekend browsers",
        "&lt;b&gt;come&lt;/b&gt; often",
        "Strength</dt><dd>10 %",
        "Loyal buyers",
        "bounce_rate is more common",
        "Probability 1.0 %, higher than that of 1 %",
        "last session 1 days ago",
        "2024-03-11 10:00",
        "&lt;b&gt;home",
        "2 sessions over time",
    ):
        assert words in page
    assert page.count("<circle") == 2
    less = visited.client("lists").post("/user", data={"user_id": "user_001"}).text
    assert "They are shown to keys of the scope personal." in less
    assert "2024-03-11 10:00" not in less


class Counting(Lookups):
    """Lookups that note whose sessions are asked for, and how often."""

    asked: ClassVar[list[str]] = []

    def sessions(self, user_id: str, as_of: datetime) -> list[dict[str, Any]]:
        self.asked.append(user_id)
        return super().sessions(user_id, as_of)


UNKNOWN = ["nobody", "user_0001", "user_999", "", "\U0010ffff", "USER_001", "user_0", "x" * 10_000]


@pytest.mark.parametrize("scope", ["lists", "personal"])
def test_a_known_and_an_unknown_user_take_the_same_path(
    visited: Server, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    Counting.asked = []
    for name in ("render_user", "render_lookup"):
        render = getattr(api_module, name)

        def note(*given: Any, name: str = name, render: Callable[..., str] = render) -> str:
            rendered.append(name)
            return render(*given)

        monkeypatch.setattr(api_module, name, note)
    app = create_app(Catalogue(visited.published / "reports"), Counting(visited.lake), visited.keys, draw)
    taken = {}
    with TestClient(app, headers={"authorization": f"Bearer {visited.secrets[scope]}"}) as client:
        for user_id in ("user_001", "user_130", *UNKNOWN[:3], *UNKNOWN[4:]):
            rendered.clear()
            Counting.asked.clear()
            status = {
                client.post("/users/lookup", json={"user_id": user_id}).status_code,
                client.post("/user", data={"user_id": user_id}).status_code,
            }
            taken[user_id] = (status, len(Counting.asked), [*rendered])
            assert set(Counting.asked) <= {one["user_id"] for one in USERS}

    asked = 2 if scope == "personal" else 0
    pages = ["render_user", "render_lookup"]
    assert taken == {user_id: ({404 if user_id in UNKNOWN else 200}, asked, pages) for user_id in taken}


def test_an_id_is_found_in_as_many_steps_as_one_that_is_not(server: Server) -> None:
    loaded = asyncio.run(Catalogue(server.published / "reports").latest())
    ids = loaded.everything.table["user_id"].to_pylist()

    assert [loaded.find(one) for one in ids] == [(row, True) for row in range(len(ids))]
    assert [loaded.find(one) for one in ("", "user_0015", "zzz")] == [(0, False), (1, False), (len(ids) - 1, False)]
    assert not any(found is None or found[1] for found in map(loaded.find, UNKNOWN))


def test_who_asks_does_not_keep_others_from_having_the_lake_alone(visited: Server) -> None:
    with Lake(visited.lake) as lake, lake.alone(0):
        assert len(visited.get("/users/user_001").json()["sessions"]) == 2


def test_tables_that_cannot_be_read_are_to_be_asked_later(visited: Server, caplog: pytest.LogCaptureFixture) -> None:
    for file in (visited.lake / "sessions").rglob("*.parquet"):
        file.unlink()

    answer = visited.get("/users/user_001")

    assert (answer.status_code, answer.json()["detail"]) == (503, "this cannot be looked up now")
    assert "user_001" not in "".join(record.getMessage() for record in caplog.records if record.name != "httpx")


def write_changes(server: Server, rows: list[tuple[int, str, str]]) -> None:
    with Lake(server.lake) as lake:
        whole = [
            {
                "version": version,
                "as_of": AS_OF.replace(day=version),
                "destination": destination,
                "user_id": one,
                "segment_id": "S01",
                "segment_name": "Weekend browsers",
                "change": "entered",
                "reason": "new_user",
            }
            for version, destination, one in rows
        ]
        table = pa.Table.from_pylist(whole, schema=CHANGES.schema.to_pyarrow())
        lake.write(CHANGES, lake.engine.create_table("changes_to_write", table, temp=True))


def test_changes_are_those_of_the_published_files_after_a_version_until_the_latest(server: Server) -> None:
    add_version(server.published, 3, USERS)
    rows = [(version, "published", f"u{number}") for version in (1, 2, 3) for number in range(5)]
    write_changes(server, [*rows, (1, "crm", "u9"), (4, "published", "not published yet")])

    def told(**params: Any) -> list[tuple[int, str]]:
        return [(one["version"], one["user_id"]) for one in pages(server, "/changes", **params)]

    assert told(limit=4) == [(version, one) for version, _, one in rows]
    assert told(since=1, limit=3) == [(version, one) for version, _, one in rows if version > 1]
    assert told(since=3) == told(since=77) == []
    assert server.get("/changes?since=-1").status_code == 422


def test_a_feed_of_changes_that_an_erasure_shortened_is_read_anew(server: Server) -> None:
    write_changes(server, [(1, "published", f"u{number}") for number in range(5)])
    cursor = server.get("/changes?limit=2").json()["next"]
    write_changes(server, [(1, "published", f"u{number}") for number in range(1, 5)])

    assert server.get("/changes", params={"limit": 2, "cursor": cursor}).status_code == 410


def test_a_lake_is_asked_again_where_a_file_was_purged_meanwhile(
    visited: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, hidden = sorted((visited.lake / "sessions").rglob("*.parquet")), Path(visited.lake / "hidden")
    files[0].rename(hidden)
    opened = 0

    class Purged(Lake):
        def __init__(self, *given: Any, **named: Any) -> None:
            nonlocal opened
            opened += 1
            if opened == 2:
                hidden.rename(files[0])
            super().__init__(*given, **named)

    monkeypatch.setattr(lookups_module, "Lake", Purged)

    assert len(visited.get("/users/user_001").json()["sessions"]) == 2
    assert opened == 2


# --- what the API says of itself ---


def test_the_description_says_every_routes_scope_sign_in_and_errors(shared: Server) -> None:
    told = shared.get("/openapi.json", "aggregate").json()

    assert told == json.loads(json.dumps(openapi_of(shared.app)))
    for path, operations in told["paths"].items():
        for operation in operations.values():
            assert operation["x-scope"] in ("none", *SCOPES)
            assert (operation["security"] == []) == (path == "/health")
            if path != "/health":
                assert {"401", "403", "404", "422", "503"} <= operation["responses"].keys()
    assert {"Problem", "Users", "OneUser", "Segments", "ChangeFeed"} <= told["components"]["schemas"].keys()
