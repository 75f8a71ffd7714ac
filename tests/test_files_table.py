import hashlib
from pathlib import Path
from typing import Any

import pytest

from features.files import content_of, fingerprint
from features.sources import Source

GIVEN: dict[str, Any] = {"files": "a.csv", "columns": {"user_id": "u", "occurred_at": "t", "event_name": "n"}}


def fingerprint_of(zone: str = "UTC", **settings: Any) -> str:
    return fingerprint(Source.model_validate(GIVEN | settings), zone)


def test_the_content_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"user,time\r\n")
    assert content_of(tmp_path / "a.csv") == hashlib.sha256(b"user,time\r\n").hexdigest()


@pytest.mark.parametrize(
    "settings",
    [
        {"columns": GIVEN["columns"] | {"page": "p"}},
        {"columns": GIVEN["columns"] | {"user_id": {"sql": "u"}}},
        {"names": {"a": "b"}},
        {"time_unit": "s"},
        {"time_zone": "Europe/Berlin"},
        {"zone": "Europe/Berlin"},
        {"format": "csv"},
    ],
)
def test_whatever_decides_what_a_row_becomes_is_in_the_fingerprint(settings: dict[str, Any]) -> None:
    assert fingerprint_of(**settings) != fingerprint_of()


@pytest.mark.parametrize("settings", [{"files": ["b.csv", "c.csv"]}, {"skip_unreadable": True}])
def test_which_files_are_read_is_not_in_the_fingerprint(settings: dict[str, Any]) -> None:
    assert fingerprint_of(**settings) == fingerprint_of()


def test_the_zone_that_holds_is_in_the_fingerprint() -> None:
    assert fingerprint_of("Asia/Tokyo", time_zone="UTC") == fingerprint_of("UTC")


@pytest.mark.parametrize(
    "settings", [{"time_unit": "iso"}, {"names": {}}, {"columns": GIVEN["columns"] | {"page": None}}]
)
def test_what_is_as_by_default_is_not_in_the_fingerprint(settings: dict[str, Any]) -> None:
    assert fingerprint_of(**settings) == fingerprint_of()
