"""Whatever is asked, the answer is one that the OpenAPI document describes, and never an error of the server's own."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from histories import events_of
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from served import HOSTILE, add_version, user

from features.events import EVENTS
from features.lake import Lake
from features.sessions import SESSIONS, SessionSettings, sessionize
from publish.api import create_app, openapi_of
from publish.catalogue import Catalogue
from publish.keys import Keys
from publish.lookups import Lookups

USERS = [user(hostile, number) for number, hostile in enumerate(HOSTILE, start=1)]
USERS += [user(f"user_{number:03}", number) for number in range(20, 60)]
SECRETS: dict[str, str] = {}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("described")
    for version in (1, 2):
        add_version(folder / "published", version, USERS)
    with Lake(folder / "lake") as lake:
        rows = [{"user_id": one["user_id"], "occurred_at": "2024-03-01", "event_name": "purchase"} for one in USERS]
        lake.write(EVENTS, events_of(lake.engine, rows))
        lake.write(SESSIONS, sessionize(lake.read(EVENTS), SessionSettings().gap))
    keys = Keys(folder / "lake" / "keys.db")
    SECRETS.update({scope: keys.create(scope, scope)[1] for scope in ("lists", "personal")})
    app = create_app(
        Catalogue(folder / "published" / "reports"), Lookups(folder / "lake"), keys, lambda *_: "<title>Report</title>"
    )
    import schemathesis  # takes a second, of every process that collects tests

    return schemathesis.openapi.from_asgi("/openapi.json", app, headers={"authorization": f"Bearer {SECRETS['lists']}"})


def _operations() -> list[tuple[str, str]]:
    app = create_app(Catalogue(Path("none")), Lookups(Path("none")), None, lambda *_: "")
    return [(path, method) for path, operations in openapi_of(app)["paths"].items() for method in operations]


def _ask(described: Any, path: str, method: str, mode: str, examples: int) -> None:
    """Ask what one operation allows, or what it does not, with each key."""
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    judged = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]

    @settings(max_examples=examples, deadline=None, derandomize=examples < 100, suppress_health_check=[*HealthCheck])
    @given(case=described[path][method].as_strategy(generation_mode=GenerationMode(mode)))
    def ask(case: Any) -> None:
        for secret in SECRETS.values():
            answer = case.call(headers={"authorization": f"Bearer {secret}"})
            case.validate_response(answer, checks=judged)

    with suppress(Unsatisfiable):  # an operation without parameters allows everything
        ask()


@pytest.mark.ci
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(("path", "method"), _operations())
def test_a_few_answers_are_as_described(described: Any, path: str, method: str, mode: str) -> None:
    _ask(described, path, method, mode, 5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(("path", "method"), _operations())
def test_many_answers_are_as_described(described: Any, path: str, method: str, mode: str) -> None:
    _ask(described, path, method, mode, 200)
