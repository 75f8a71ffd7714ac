"""What is personal is told by nothing but what the docs name: all that leaves is looked through for a planted value.

A small shop that has run gets an attribute `region`, which is planted where one segment's users are, and runs before
it is personal: names, rules and reasons tell it everywhere. Then it becomes personal, and from there on nothing that is
made tells it, not even with the models of before.
"""

import json
import os
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect_server import await_server
from rich.console import Console
from shops import Ran, habitus
from starlette.testclient import TestClient
from stores import places_of, unpacked

from features.lake import Lake
from flows import screen
from flows.configuration import Configuration, load
from flows.run import refresh
from publish.api import create_app, openapi_of
from publish.assignments import ASSIGNMENTS
from publish.catalogue import Catalogue
from publish.keys import SCOPES, Keys
from publish.lookups import Lookups
from publish.report.page import to_html

PLANTED = "Zanzibarvale"
REGIONS = {"S01": PLANTED, "S02": "Pemba"}
SENTENCE = "live where the spices come from"
SHOP = f"""
[users]
files = "users.csv"
user_id = "user_id"
attributes = ["region"]

[rules.islanders]
condition = "region = '{PLANTED}' and session_count >= p50"

[rules.spice_lovers]
condition = "region in ('{PLANTED}', 'Pemba')"
sentence = "{SENTENCE}"
"""
PERSONAL = '[report]\npersonal = ["region"]\n'
ARTIFACT = re.compile(r"INSERT INTO \"artifact\" VALUES\('([0-9a-f-]+)'")
OLD_WORDS = {"segments.html", "segments.json", "metadata.json", "lineage.json", "report.html", "report.json"}
"""What MLflow keeps of trainings and reports of before the region was personal."""


@dataclass(frozen=True)
class Walked:
    """A shop whose region became personal after a first run: what was said before and since, and what stores held."""

    configuration: Configuration
    before: dict[str, Any]
    refused: list[tuple[int, str]]
    since: str
    screen: str
    mlruns_before: list[str]
    told_before: "Told"
    told_since: "Told"


@dataclass(frozen=True)
class Told:
    """Lines of the dumps of Prefect's and MLflow's databases that have the planted value."""

    prefect: Counter[str]
    mlflow: Counter[str]


def lines_of(database: Path) -> Counter[str]:
    with sqlite3.connect(database) as store:
        return Counter(line for line in store.iterdump() if PLANTED in line)


def told(configuration: Configuration) -> Told:
    database = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    return Told(lines_of(database), lines_of(configuration.mlruns / "mlflow.db"))


@pytest.fixture(scope="module")
def walked(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    folder = tmp_path_factory.mktemp("walked") / "shop"
    # MLflow's store names the folder in which it was made.
    shutil.copytree(ran.configuration.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("mlruns"))
    file = folder / "habitus.toml"
    with Lake(load(file).lake) as lake:
        assigned = lake.read(ASSIGNMENTS).to_pandas()
    regions = [f"{one.user_id},{REGIONS.get(one.segment_id, 'Mafia')}" for one in assigned.itertuples()]
    (folder / "users.csv").write_text("\n".join(["user_id,region", *regions]))
    file.write_text(file.read_text() + SHOP)
    done = habitus("run", str(file), "--json")
    assert done.exit_code == 0, done.stderr
    configuration = load(file)
    [mlruns_before] = places_of(configuration.mlruns, PLANTED)
    told_before = told(configuration)

    file.write_text(file.read_text() + PERSONAL)
    refused = [habitus(command, str(file)) for command in ("publish", "report")]
    await_server()
    result = refresh(str(file))
    shown = StringIO()
    screen.show(result, str(file), "habitus", Console(file=shown, width=300))
    said = [screen.to_json(result)]
    for command in ("train", "report"):
        since = habitus(command, str(file), "--json")
        assert since.exit_code == 0, since.stderr
        said += [since.stdout, since.stderr]
    for arguments in (("segments", str(file)), ("segments", "show", str(file), "--json")):
        said.append(habitus(*arguments).stdout)
    configuration = load(file)
    return Walked(
        configuration,
        json.loads(done.stdout),
        [(one.exit_code, one.stderr) for one in refused],
        "\n".join(said),
        shown.getvalue(),
        mlruns_before,
        told_before,
        told(configuration),
    )


def test_before_it_was_personal_names_rules_and_stores_told_it(walked: Walked) -> None:
    scored = walked.before["scored"]
    assert any(PLANTED in one["name"] for one in scored["segments"])
    assert any(PLANTED in one["summary"] for one in scored["segments"])
    assert any(PLANTED in one["condition"] for one in scored["rules"])
    assert walked.told_before.prefect
    assert {Path(place).name for place in walked.mlruns_before} - {"mlflow.db"} - OLD_WORDS == {"model.skops"}
    assert {Path(place).name for place in walked.mlruns_before} >= {"segments.html", "segments.json", "report.json"}


def test_names_of_before_are_not_published_again(walked: Walked) -> None:
    assert [status for status, _ in walked.refused] == [2, 2]
    assert all("by what is personal: run `habitus score" in said for _, said in walked.refused)
    assert not any(PLANTED in said for _, said in walked.refused)


def test_no_screen_and_no_json_tells_it(walked: Walked) -> None:
    assert "spice lovers" in walked.screen.lower()
    assert SENTENCE in walked.since
    assert PLANTED not in walked.screen
    assert PLANTED not in walked.since


def test_prefect_is_told_no_more_of_it(walked: Walked) -> None:
    artifacts = ARTIFACT.findall("\n".join(walked.told_before.prefect))
    fresh = walked.told_since.prefect - walked.told_before.prefect
    # That an artifact was made before, the server may have written down since.
    assert not [line for line in fresh if not any(artifact in line for artifact in artifacts)]


def test_mlflow_keeps_no_more_of_it(walked: Walked) -> None:
    mlruns = walked.configuration.mlruns
    assert places_of(mlruns, PLANTED) == [walked.mlruns_before]
    assert not walked.told_since.mlflow - walked.told_before.mlflow
    assert len([*mlruns.rglob("segments.html")]) == 2  # it was trained anew


def test_no_file_that_is_published_has_it(walked: Walked) -> None:
    latest = (walked.configuration.published / "latest").resolve()
    assert {"assignments.csv", "assignments.parquet", "changes.csv", "manifest.json"} <= {
        file.name for file in latest.iterdir()
    }
    assert places_of(latest, PLANTED) == [[]]


def test_of_a_report_only_what_docs_name_has_it(walked: Walked) -> None:
    latest = (walked.configuration.published / "reports" / "latest").resolve()
    [places] = places_of(latest, PLANTED)
    assert {"report.json", "users.parquet", "tables/typical.csv", "tables/rules.csv"} <= {*places}
    assert all(place.startswith("tables/") or place in ("report.json", "users.parquet") for place in places)
    assert SENTENCE in (latest / "report.html").read_text()


# --- the API ---


@pytest.fixture(scope="module")
def served(walked: Walked) -> Iterator[dict[str, TestClient]]:
    """Serve the shop, with a client for each scope."""
    configuration = walked.configuration
    keys = Keys(configuration.lake / "keys.db")
    app = create_app(Catalogue(configuration.published / "reports"), Lookups(configuration.lake), keys, to_html)
    with TestClient(app, base_url="http://shop.example") as running:
        clients: dict[str, TestClient] = {}
        for scope in SCOPES:
            _, secret = keys.create(scope, scope)
            clients[scope] = TestClient(
                app, base_url="http://shop.example", headers={"authorization": f"Bearer {secret}"}
            )
            clients[scope].portal = running.portal
        yield clients
    keys.close()


def answers_to(client: TestClient, users: list[str]) -> Iterator[tuple[str, httpx.Response]]:
    """Ask every route, for every segment and some users, and what has a form for that; yield what is answered."""
    now = client.get("/segments").json()
    segments = [one["segment_id"] for one in now["segments"]]
    for path, operations in openapi_of(client.app)["paths"].items():  # type: ignore[arg-type]
        for method in operations:
            if method == "post":
                given: dict[str, Any] = {"json" if path.endswith("lookup") else "data": {"user_id": users[0]}}
                yield path, client.request(method, path, **given)
                continue
            for segment in segments if "{segment_id}" in path else [""]:
                for user in users if "{user_id" in path else [""]:
                    filled = path.replace("{segment_id}", segment).replace("{version}", str(now["version"]))
                    filled = filled.replace("{user_id}", user).replace("{user_id:anything}", user)
                    asked = {"limit": 1000} if path.endswith(("/users", "/changes")) else {}
                    yield filled, client.get(filled, params=asked)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_api_tells_it_to_keys_that_may_see_it(walked: Walked, served: dict[str, TestClient], scope: str) -> None:
    lines = (walked.configuration.folder / "users.csv").read_text().splitlines()
    users = [line.partition(",")[0] for line in lines if PLANTED in line][:2]

    answers = [*answers_to(served[scope], users)]

    told = {path: b"\n".join([answer.content, *unpacked(answer.content)]) for path, answer in answers}
    telling = {path for path, content in told.items() if PLANTED.encode() in content}
    refused = {path for path, answer in answers if answer.status_code == 403}
    assert {answer.status_code for _, answer in answers} <= {200, 403}
    assert bool(refused) == (scope == "aggregate")
    assert len(answers) > 20
    if scope == "personal":
        assert {"/", "/segments/S01", "/segments/islanders", f"/users/{users[0]}"} <= telling
    else:
        assert telling == set()
        [islanders] = [one for one in served[scope].get("/segments").json()["segments"] if one["name"] == "Islanders"]
        assert islanders["description"] == "meet a condition on what is personal"
