"""Requests that another site's page has a browser send: none is answered, and none is so much as looked at."""

import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from served import add_version, user
from starlette.datastructures import Headers
from starlette.testclient import TestClient
from test_cli import CONFIG
from test_serve import key, serving

from publish.api import create_app
from publish.catalogue import Catalogue
from publish.keys import Keys
from publish.lookups import Lookups
from publish.sites import is_foreign

HOST = "segments.example.com"
EVIL = "https://evil.example"
OURS: list[dict[str, str]] = [
    {},  # a tool
    {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
    {"sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "same-origin", "origin": f"https://{HOST}"},
    {"sec-fetch-site": "same-origin", "origin": "null"},
    {"sec-fetch-site": "same-origin", "referer": f"https://{HOST}/user"},
    {"origin": f"https://{HOST}"},
    {"origin": f"https://{HOST}:443"},
    {"origin": f"HTTPS://{HOST.upper()}"},
    {"referer": f"https://{HOST}/user"},
]
FOREIGN: list[dict[str, str]] = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": ""},
    {"sec-fetch-site": "same-origin, cross-site"},
    {"sec-fetch-site": "something new"},
    {"sec-fetch-site": "cross-site", "origin": f"https://{HOST}"},
    {"sec-fetch-site": "same-origin", "origin": EVIL},
    {"sec-fetch-site": "none", "origin": EVIL},
    {"sec-fetch-site": "none", "origin": "null"},
    {"origin": EVIL},
    {"origin": "null"},
    {"origin": ""},
    {"origin": f"http://{HOST}"},
    {"origin": f"https://{HOST}:8443"},
    {"origin": f"https://{HOST}.evil.example"},
    {"origin": f"https://evil.example/{HOST}"},
    {"origin": f"https://{HOST}@evil.example"},
    {"origin": "https://[::1"},
    {"origin": "file://"},
    {"origin": "chrome-extension://abcdefgh"},
    {"referer": f"{EVIL}/page"},
]


def words(given: dict[str, str]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in given.items()) or "a tool"


@pytest.mark.parametrize("given", OURS, ids=words)
def test_what_is_ours_or_nobodys(given: dict[str, str]) -> None:
    assert not is_foreign(Headers({"host": HOST, **given}), "https")


@pytest.mark.parametrize("given", FOREIGN, ids=words)
def test_what_is_foreign(given: dict[str, str]) -> None:
    assert is_foreign(Headers({"host": HOST, **given}), "https")


def test_without_tls_the_port_of_the_host_counts() -> None:
    assert not is_foreign(Headers({"host": "localhost:8080", "origin": "http://localhost:8080"}), "http")
    assert is_foreign(Headers({"host": "localhost:8080", "origin": "http://localhost:3000"}), "http")
    assert is_foreign(Headers({"host": "localhost:8080", "origin": "http://127.0.0.1:8080"}), "http")


@pytest.mark.parametrize("is_open", [False, True])
def test_no_route_answers_another_site_whoever_asks(tmp_path: Path, is_open: bool) -> None:
    add_version(tmp_path, 1, [user("user_001", 1)])
    keys = Keys(tmp_path / "keys.db")
    secret = keys.create("personal", "one")[1]
    app = create_app(
        Catalogue(tmp_path / "reports"), Lookups(tmp_path), None if is_open else keys, lambda *_: "", [HOST]
    )
    basic = "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()
    asked = [("GET", path) for path in ("/health", "/", "/segments", "/users/user_001", "/nothing", "/user")]
    asked += [("POST", "/users/lookup"), ("POST", "/user"), ("OPTIONS", "/users/lookup")]
    with TestClient(app, base_url=f"https://{HOST}", headers={"authorization": basic}) as client:
        assert client.get("/users/user_001").status_code == 200
        for method, path in asked:
            for given in ({"sec-fetch-site": "cross-site"}, {"origin": EVIL}):
                answer = client.request(method, path, headers=given, json={"user_id": "user_001"})
                assert answer.status_code == 403
                assert answer.json()["detail"] == "another site's page asked for this; open the address yourself"
                assert "www-authenticate" not in answer.headers
                assert not [name for name in answer.headers if name.startswith("access-control")]


def test_who_follows_a_link_is_told_to_open_the_address(tmp_path: Path) -> None:
    add_version(tmp_path, 1, [user("user_001", 1)])
    app = create_app(Catalogue(tmp_path / "reports"), Lookups(tmp_path), None, lambda *_: "", ["testserver"])
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    with TestClient(app) as client:
        answer = client.get("/users/user_001", headers=followed)
        framed = client.get("/users/user_001", headers=followed | {"sec-fetch-dest": "iframe"})

    assert answer.status_code == framed.status_code == 403
    assert '<a href="">open this address</a>' in answer.text
    assert "user_001" not in answer.text + framed.text
    assert framed.headers["content-type"] == "application/problem+json"


# --- a real browser ---

PAGE = """<!doctype html><title>evil</title><img src="{address}/users/user_001">
<script>
const form = {{method: "POST", mode: "no-cors", body: new URLSearchParams({{user_id: "user_001"}})}};
Promise.allSettled([fetch("{address}/users/user_001", {{mode: "no-cors"}}), fetch("{address}/user", form),
  fetch("{address}/health"), new Promise((done) => setTimeout(done, 0))]).then(() => document.title = "done");
</script><a href="{address}/report">a report</a>
<form method="post" action="{address}/user"><input name="user_id" value="user_001"><button>send</button></form>
"""


@contextmanager
def another_site(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving_it = threading.Thread(target=server.serve_forever)
        serving_it.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        serving_it.join()


def test_a_page_of_another_site_gets_nothing_and_our_own_pages_work(browser: Any, tmp_path: Path) -> None:
    config = tmp_path / "habitus.toml"
    config.write_text(CONFIG)
    add_version(config.parent / "published", 1, [user(f"user_{number:03}", number) for number in range(1, 30)])
    secret = key(config, "personal")
    site = tmp_path / "site"
    site.mkdir()
    with serving(config) as server, another_site(site) as evil:
        (site / "index.html").write_text(PAGE.format(address=server.address))
        context = browser.new_context(http_credentials={"username": "me", "password": secret})
        page = context.new_page()
        page.goto(f"{server.address}/user")  # from here on the browser knows the password
        page.fill("input[name=user_id]", "user_001")
        page.click("button")
        assert page.inner_text("h1") == "user_001"

        page.goto(evil)
        page.wait_for_function("document.title == 'done'")
        page.click("a")
        assert page.inner_text("h1") == "Another site sent you here"
        page.click("a")
        assert "The report of version 1" in page.inner_text("body")
        page.goto(evil)
        page.click("button")
        assert page.inner_text("h1") == "Another site sent you here"
        context.close()
        assert server.stop() == 0

    lines = [line for line in server.log.splitlines() if "key" in line]
    assert any("GET - 403 key -" in line for line in lines)
    assert any("POST - 403 key -" in line for line in lines)
    assert not any("/users/{user_id" in line for line in lines)
    assert len([line for line in lines if "POST /user 200" in line]) == 1
