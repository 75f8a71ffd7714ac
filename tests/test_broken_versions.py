"""A version that is damaged is named and left out; whoever asks for another one is answered as if nothing were."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import add_version, user
from starlette.testclient import TestClient

from publish.api import create_app
from publish.catalogue import Catalogue, load
from publish.kept import MANIFEST_MAX_BYTES, BrokenVersionError, Kept
from publish.keys import Keys
from publish.lookups import Lookups

USERS = [user(f"user_{number:03}", number) for number in range(1, 30)]
FILES = ("manifest.json", "report.json", "report.html", "users.parquet")
ROUTES = ("/segments", "/segments/S01", "/segments/S01/users", "/segments/S01/users.csv", "/users/user_001", "/report")
NUMBERS = ("?version=1", "?version=2", "")
WRONG: list[str] = ["[]", "{", "{}", "null", "7", '"text"', '{"version": 2}', '{"as_of": "2024-03-14T00:00:00+00:00"}']
WRONG += [
    json.dumps({"version": version, "as_of": as_of})
    for version, as_of in (
        ("2", "2024-03-14T00:00:00+00:00"),
        (True, "2024-03-14T00:00:00+00:00"),
        (-1, "2024-03-14T00:00:00+00:00"),
        (2.5, "2024-03-14T00:00:00+00:00"),
        (None, None),
        ([2], {}),
        (2, "yesterday"),
        (2, "2024-03-14T00:00:00"),
        (2, 2),
    )
]
WRONG += [
    "[" * 100_000,
    '{"version": ' + "9" * 5_000 + "}",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
]


@dataclass
class Two:
    """Two versions: the first is whole, the second, which is the latest, is to be damaged."""

    reports: Path
    second: str
    secret: str
    keys: Keys

    @contextmanager
    def opened(self) -> Iterator[TestClient]:
        """Start the application anew."""
        lake = Lookups(self.reports.parent / "lake")
        app = create_app(Catalogue(self.reports), lake, self.keys, lambda *_: "<title>Report</title>")
        with TestClient(app, headers={"authorization": f"Bearer {self.secret}"}) as client:
            yield client

    def damaged(self, file: str) -> Path:
        """Put the second version back as it was, and return a file of it."""
        shutil.rmtree(self.reports / self.second)
        shutil.copytree(self.reports.with_name("whole"), self.reports / self.second)
        return self.reports / self.second / file


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("two")
    add_version(folder, 1, USERS)
    second = add_version(folder, 2, USERS)
    shutil.copytree(folder / "reports" / second, folder / "whole")
    keys = Keys(folder / "keys.db")
    return Two(folder / "reports", second, keys.create("personal", "one")[1], keys)


def answers_of(client: TestClient) -> dict[str, httpx.Response]:
    return {f"{route}{number}": client.get(f"{route}{number}") for route in ROUTES for number in NUMBERS}


def assert_first_is_answered(two: Two, is_named: bool) -> None:
    with two.opened() as client:
        answers = answers_of(client)
        said = client.get("/versions").json()
    statuses = {path: answer.status_code for path, answer in answers.items()}
    assert {status for path, status in statuses.items() if path.endswith("=1")} == {200}, statuses
    assert set(statuses.values()) <= {200, 404, 503}, statuses
    assert 1 in [one["version"] for one in said["versions"]]
    if is_named:
        assert said["broken"] == [two.second]
        assert [one["version"] for one in said["versions"]] == [1]


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_a_manifest_that_says_something_else_is_left_out_and_named(two: Two, text: str) -> None:
    two.damaged("manifest.json").write_text(text, "latin-1")

    found, broken = Kept(two.reports).read()

    assert ([said["version"] for said in found.values()], broken) == ([1], [two.second])


def test_a_manifest_of_another_version_than_the_report_is_not_answered(two: Two) -> None:
    two.damaged("manifest.json").write_text('{"version": 9, "as_of": "2024-03-14T00:00:00+00:00"}')

    with pytest.raises(BrokenVersionError, match=r"report.json: ValueError"):
        load(two.reports / two.second)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.ci
@pytest.mark.parametrize("how", ["gone", "a folder", "empty", "a link to itself"])
def test_a_file_that_is_no_file_breaks_no_other_version(two: Two, file: str, how: str) -> None:
    path = two.damaged(file)
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "empty":
        path.touch()
    elif how == "a link to itself":
        path.symlink_to(path)

    assert_first_is_answered(two, is_named=file == "manifest.json" and how in ("a folder", "empty"))


def test_a_manifest_is_not_read_whatever_its_size(two: Two) -> None:
    with two.damaged("manifest.json").open("r+b") as file:
        file.truncate(MANIFEST_MAX_BYTES + 1)

    assert Kept(two.reports).read()[1] == [two.second]


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"user_id": ["a"]}),
        pa.table({"user_id": ["a"], "segment_id": ["S01"], "rule_segments": ["no list"]}),
        pa.table({"other": [1]}),
        pa.table({"user_id": [None], "segment_id": ["S01"], "rule_segments": [["a"]]}),
    ],
    ids=["a column is missing", "a column is of another type", "no user", "a user without an id"],
)
def test_users_that_are_another_table_break_the_version(two: Two, table: pa.Table) -> None:
    pq.write_table(table, two.damaged("users.parquet"))

    with pytest.raises(BrokenVersionError, match=r"cannot be shown \(users.parquet: "):
        load(two.reports / two.second)


@settings(max_examples=10, deadline=None)
@given(
    file=st.sampled_from(FILES),
    kept=st.floats(0, 1),
    noise=st.binary(max_size=40),
    rest=st.booleans(),
)
@pytest.mark.ci
def test_whatever_is_in_the_files_of_a_version_another_one_is_answered(
    two: Two, file: str, kept: float, noise: bytes, rest: bool
) -> None:
    path = two.damaged(file)
    whole = path.read_bytes()
    at = int(len(whole) * kept)
    path.write_bytes(whole[:at] + noise + (whole[at + len(noise) :] if rest else b""))

    assert_first_is_answered(two, is_named=False)


def test_what_is_broken_is_logged_once_and_whole_again_when_it_is_mended(
    two: Two, caplog: pytest.LogCaptureFixture
) -> None:
    path = two.damaged("manifest.json")
    whole = path.read_bytes()
    path.write_text("[]")

    with caplog.at_level(logging.ERROR, "habitus.serve"), two.opened() as client:
        caplog.clear()
        for _ in range(3):
            assert client.get("/versions").json()["broken"] == [two.second]
        assert [record.getMessage() for record in caplog.records] == [
            f"{two.second}: cannot be shown (manifest.json: TypeError); publish again"
        ]
        path.write_bytes(whole)
        said = client.get("/versions").json()

    assert ([one["version"] for one in said["versions"]], said["broken"]) == ([2, 1], [])


def test_a_version_that_is_half_deleted_while_it_is_served_is_answered_or_gone(two: Two) -> None:
    two.damaged("users.parquet")
    with two.opened() as client:
        assert client.get("/segments?version=2").status_code == 200
        for file, status in (("users.parquet", 200), ("report.json", 200), ("manifest.json", 404)):
            (two.reports / two.second / file).unlink()
            assert client.get("/segments?version=2").status_code == status
            assert client.get("/segments?version=1").status_code == 200


def test_the_manifest_of_published_files_is_found_beside_a_broken_one(two: Two) -> None:
    two.damaged("manifest.json")
    published = two.reports.parent
    [first, second] = sorted(path.parent for path in published.glob("2024-*/manifest.json"))
    (second / "manifest.json").write_text("{")

    with two.opened() as client:
        found: dict[str, Any] = client.get("/manifest?version=1").json()
        assert (found["version"], client.get("/manifest?version=2").status_code) == (1, 404)
    assert first.is_dir()
