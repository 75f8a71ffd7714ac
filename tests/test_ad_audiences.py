import csv
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3_KEYS, Bucket
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from jsonschema import Draft202012Validator
from laws import law
from pydantic import ValidationError
from test_files import AS_OF, files_no_larger_than

from publish.destination import DestinationError, Release
from publish.destinations.ad_audiences import (
    GOOGLE,
    META,
    AdAudiences,
    GoogleCustomerMatchSettings,
    MetaCustomAudienceSettings,
    Platform,
    folder_name,
    normalize,
    read_phone,
)
from publish.manifest import manifest_schema

User = tuple[str, str | None, str | None, Sequence[str]]
"""Id, e-mail, phone and segments."""
Make = Callable[..., Release]
ADA: User = ("ada", "ada@example.com", "+49 171 2345678", ["s1"])
BEN: User = ("ben", "ben@example.com", None, ["s1", "at_risk"])
CAT: User = ("cat", None, None, ["s1"])


@pytest.fixture
def made(engine: DuckDB) -> Make:
    """Make releases of users."""

    def make(*users: User, version: int = 1, **manifest: Any) -> Release:
        texts = {name: pa.string() for name in ("user_id", "email", "phone")}
        contacts = [dict(zip(texts, user[:3], strict=True)) for user in users]
        members = [
            {"user_id": user[0], "segment_id": segment, "segment_name": segment.title()}
            for user in users
            for segment in user[3]
        ]
        number = time.monotonic_ns()
        known = engine.create_table(f"contacts_{number}", pa.Table.from_pylist(contacts, pa.schema(texts)), temp=True)
        ids = pa.schema({name: pa.string() for name in ("user_id", "segment_id", "segment_name")})
        feed = engine.create_table(f"members_{number}", pa.Table.from_pylist(members, ids), temp=True)
        said = {
            **{"schema_version": "1.3", "users": len(users), "segments": [], "rule_segments": {}, "withheld": {}},
            **{"lifecycle_stages": {}, "scored": {}, "models": {}, "configuration": "abc"},
            "refused": {"users": {}, "held_out": {}, "held_back": {}},
        }
        as_of = AS_OF.to_pydatetime()
        return Release("ads", "shop", version, as_of, known, feed, known, lambda since: feed, said | manifest)

    return make


def google(folder: Path, **section: Any) -> AdAudiences:
    return GoogleCustomerMatchSettings(folder=str(folder), **section).connect("ads", {}, folder, folder)


def meta(folder: Path, **section: Any) -> AdAudiences:
    return MetaCustomAudienceSettings(folder=str(folder), **section).connect("ads", {}, folder, folder)


def deliver(release: Release, folder: Path) -> Path:
    delivery = google(folder).deliver(release)
    assert delivery.state == "released"
    return Path(delivery.where)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read(version: Path, what: str, segment: str = "s1") -> list[tuple[str, str]]:
    with (version / segment / f"{what}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert len(header) == 2
    return [(email, phone) for email, phone in rows]


def identifiers(rows: list[tuple[str, str]]) -> set[str]:
    return {identifier for row in rows for identifier in row if identifier}


def manifest(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "manifest.json").read_text())
    Draft202012Validator(manifest_schema()).validate(found)
    return found


def check_files(version: Path) -> None:
    files = {file["path"]: file for file in manifest(version)["files"]}
    there = {path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()}
    assert there == files.keys() | {"manifest.json"}
    for path, file in files.items():
        assert hashlib.sha256((version / path).read_bytes()).hexdigest() == file["sha256"]


# --- normalised and hashed as each platform says ---


def normalized(engine: DuckDB, platform: Platform, email: str | None, phone: str | None = None) -> dict[str, Any]:
    contacts = pa.Table.from_pylist(
        [{"user_id": "u", "email": email, "phone": phone}],
        pa.schema({name: pa.string() for name in ("user_id", "email", "phone")}),
    )
    table = engine.create_table(f"contacts_{time.monotonic_ns()}", contacts, temp=True)
    [row] = normalize(table, platform, "DE").to_pyarrow().to_pylist()
    return dict(row)


@pytest.mark.parametrize(
    ("given", "for_google", "for_meta"),
    [
        (" Ada@Example.COM\n", "ada@example.com", "ada@example.com"),
        ("a.da+shop@example.com", "a.da+shop@example.com", "a.da+shop@example.com"),
        ("Cloudy.San+shopping@gmail.com", "cloudysan@gmail.com", "cloudy.san+shopping@gmail.com"),
        ("a.b@googlemail.com", "ab@googlemail.com", "a.b@googlemail.com"),
        ("a.b@notgmail.com", "a.b@notgmail.com", "a.b@notgmail.com"),
        ("ÄDA@bücher.example", "äda@bücher.example", "äda@bücher.example"),
        ("\u00a0ada@example.com\u00a0", "ada@example.com", "ada@example.com"),
    ],
)  # fmt: skip
def test_an_address_is_hashed_as_each_platform_does(engine: DuckDB, given: str, for_google: str, for_meta: str) -> None:
    assert normalized(engine, GOOGLE, given)["email"] == sha(for_google)
    assert normalized(engine, META, given)["email"] == sha(for_meta)


def test_the_hash_of_an_address_is_that_of_the_published_examples(engine: DuckDB) -> None:
    # echo -n test@example.com | sha256sum
    known = "973dfe463ec85785f5f95af5ba3906eedb2d931c24e69824a89ea65dba4e813b"
    assert normalized(engine, GOOGLE, "TEST@example.com ")["email"] == known


@pytest.mark.parametrize(
    "given", ["ada", "ada@", "@example.com", "a@b@example.com", "ada@example", "+x@gmail.com", sha("x")]
)
def test_what_is_no_address_is_left_out_and_counted(engine: DuckDB, given: str) -> None:
    found = normalized(engine, GOOGLE, given)
    assert (found["email"], found["email_invalid"]) == (None, True)


@pytest.mark.parametrize("given", [None, "", "  "])
def test_what_was_not_given_is_not_invalid(engine: DuckDB, given: str | None) -> None:
    found = normalized(engine, META, given, given)
    of_no_use = dict.fromkeys(["email_invalid", "phone_invalid", "phone_ambiguous"], False)
    assert found == {"user_id": "u", "email": None, "phone": None} | of_no_use


@pytest.mark.parametrize("given", ["0171 2345678", "+49 (0) 171/2345678", "0049-171-2345678", "+491712345678"])
def test_a_number_is_with_its_country_and_for_meta_without_plus(engine: DuckDB, given: str) -> None:
    assert normalized(engine, GOOGLE, None, given)["phone"] == sha("+491712345678")
    assert normalized(engine, META, None, given)["phone"] == sha("491712345678")


@pytest.mark.parametrize("given", ["12", "call me", "+49 1", "+999 12345678", "1" * 5000])
def test_what_is_no_number_is_left_out_and_counted(engine: DuckDB, given: str) -> None:
    found = normalized(engine, GOOGLE, None, given)
    assert (found["phone"], found["phone_invalid"]) == (None, True)


GERMAN, BRITISH, AMERICAN, FRENCH = "491712345678", "442070313000", "18005550199", "33612345678"


@pytest.mark.parametrize(
    ("given", "country", "meant"),
    [
        ("+49 171 2345678", "US", [GERMAN]),  # a + is clear everywhere
        ("tel:+49-171-2345678", None, [GERMAN]),
        ("\uff0b49 171 2345678", "DE", [GERMAN]),
        ("+49 (0)171 2345678", "DE", [GERMAN]),
        ("0049 171 2345678", "DE", [GERMAN]),  # so is 00, also where people dial something else
        ("(00) 49 171 2345678", "US", [GERMAN]),
        ("0049 171 2345678", None, [GERMAN]),
        ("011 49 171 2345678", "US", [GERMAN]),
        ("0011 49 171 2345678", "AU", [GERMAN]),
        ("0171 2345678", "DE", [GERMAN]),  # a 0 is a number of the default country
        ("(0) 171 2345678", "DE", [GERMAN]),
        ("06 12 34 56 78", "FR", [FRENCH]),
        ("06 1234 5678", "IT", ["390612345678"]),
        ("0171 2345678", None, []),
        ("0171 2345678", "US", []),
        ("491712345678", "DE", [GERMAN, "49491712345678"]),  # a mobile phone, or one in Leer
        ("49 171 2345678", "DE", [GERMAN, "49491712345678"]),
        ("18005550199", "DE", [AMERICAN, "4918005550199"]),
        ("33612345678", "DE", [FRENCH, "4933612345678"]),
        ("18005550199", "AT", [AMERICAN, "4318005550199"]),
        ("1712345678", "DE", [GERMAN]),  # its 0 is lost, and no other country has such a number
        ("2070313000", "GB", [BRITISH]),
        ("800 555 0199", "US", [AMERICAN]),
        ("18005550199", "US", [AMERICAN]),  # both readings are the same number
        ("442070313000", "GB", [BRITISH]),
        ("491712345678", "US", [GERMAN]),  # too long for a number of the default country
        ("393331234567", "FR", ["393331234567"]),
        ("491712345678", None, []),  # without a default nothing is read into a number
        ("12", "DE", []),
        ("call me", "DE", []),
        ("", "DE", []),
    ],
)  # fmt: skip
def test_a_number_is_read_with_and_without_a_country_code(given: str, country: str | None, meant: list[str]) -> None:
    assert read_phone(given, country) == meant


@pytest.mark.parametrize("given", ["491712345678", "18005550199"])
def test_an_ambiguous_number_is_left_out_and_counted_by_itself(engine: DuckDB, given: str) -> None:
    found = normalized(engine, GOOGLE, None, given)
    assert (found["phone"], found["phone_invalid"], found["phone_ambiguous"]) == (None, False, True)


def test_a_delivery_says_how_many_numbers_are_ambiguous(made: Make, tmp_path: Path) -> None:
    release = made(ADA, ("dan", None, "491712345679", ["s1"]), ("eva", None, "18005550199", ["s1"]))
    destination = google(tmp_path, default_country="DE")
    first, again = destination.deliver(release), destination.deliver(release)
    assert (first.state, again.state) == ("released", "unchanged")
    assert (
        first.note == again.note == ("2 phone numbers left out, with or without a country code: write + or 0 in front")
    )
    assert manifest(Path(first.where))["contacts"]["phone_ambiguous"] == 2
    assert identifiers(read(Path(first.where), "members")) == {sha("ada@example.com"), sha("+491712345678")}


# --- a version ---


def test_each_audience_has_its_files_under_the_platforms_headers(made: Make, tmp_path: Path) -> None:
    for platform, header in ((google, "Email,Phone"), (meta, "email,phone")):
        version = Path(platform(tmp_path / header).deliver(made(ADA, BEN)).where)
        assert {path.name for path in version.iterdir()} == {"s1", "at_risk", "index.parquet", "manifest.json"}
        assert {path.name for path in (version / "s1").iterdir()} == {"members.csv", "added.csv", "removed.csv"}
        assert (version / "s1" / "members.csv").read_text().splitlines()[0] == header


def test_members_are_rows_of_hashes_in_the_order_of_hashes(made: Make, tmp_path: Path) -> None:
    version = deliver(made(ADA, BEN, CAT), tmp_path)
    assert read(version, "members") == sorted(
        [(sha("ada@example.com"), sha("+491712345678")), (sha("ben@example.com"), "")]
    )
    assert read(version, "members", "at_risk") == [(sha("ben@example.com"), "")]
    check_files(version)


def test_no_id_and_no_raw_value_is_in_any_file(made: Make, tmp_path: Path) -> None:
    version = deliver(made(("user-4711", "Secret.Name@example.com", "+49 171 2345678", ["s1"])), tmp_path)
    content = b"".join(path.read_bytes() for path in version.rglob("*") if path.is_file()).lower()
    index = str(pq.read_table(version / "index.parquet").to_pylist()).encode()
    for raw in (b"4711", b"secret", b"example.com", b"2345678"):
        assert raw not in content + index
    assert sha("user-4711").encode() not in index


def test_two_users_with_the_same_contacts_are_one_row(made: Make, tmp_path: Path) -> None:
    version = deliver(made(ADA, ("twin", *ADA[1:])), tmp_path)
    assert len(read(version, "members")) == 1


def test_a_manifest_counts_audiences_and_contacts(made: Make, tmp_path: Path) -> None:
    found = manifest(deliver(made(ADA, BEN, CAT, ("dan", "nonsense", "12", ["s1"])), tmp_path))
    assert found["audiences"] == [
        {"segment_id": "at_risk", "segment_name": "At_Risk", "folder": "at_risk"}
        | {"users": 1, "members": 1, "added": 1, "removed": 0},
        {"segment_id": "s1", "segment_name": "S1", "folder": "s1"}
        | {"users": 4, "members": 2, "added": 2, "removed": 0},
    ]
    assert found["contacts"] == {
        "email": 2,
        "phone": 1,
        "email_invalid": 1,
        "phone_invalid": 1,
        "phone_ambiguous": 0,
        "neither": 2,
    }
    assert (found["members"], found["version"], found["source"]) == (3, 1, "shop")


def test_nobody_may_be_in_any_audience(made: Make, tmp_path: Path) -> None:
    assert manifest(deliver(made(), tmp_path))["audiences"] == []


@pytest.mark.parametrize("segment", ["../../etc", "a/b", "VIP kunden", "😀", "con.", "-", "a" * 300])
def test_a_segment_of_any_name_has_a_safe_folder(made: Make, tmp_path: Path, segment: str) -> None:
    version = deliver(made((*ADA[:3], [segment])), tmp_path)
    assert read(version, "members", folder_name(segment))
    assert {path.name for path in tmp_path.iterdir()} == {version.name, "latest"}
    assert folder_name(segment) != folder_name(segment + ".")


def test_the_same_version_again_changes_nothing(made: Make, tmp_path: Path) -> None:
    first = deliver(made(ADA, BEN), tmp_path)
    again = google(tmp_path).deliver(made(BEN, ADA))
    assert (again.state, again.where, again.count) == ("unchanged", str(first), 3)


def test_the_same_users_are_the_same_bytes(made: Make, tmp_path: Path) -> None:
    here, there = deliver(made(ADA, BEN), tmp_path / "a"), deliver(made(BEN, ADA), tmp_path / "b")
    assert here.name == there.name
    check_files(there)


# --- what was added and removed ---


def test_at_first_all_are_added(made: Make, tmp_path: Path) -> None:
    version = deliver(made(ADA, BEN), tmp_path)
    assert read(version, "added") == read(version, "members")
    assert read(version, "removed") == []


def test_who_comes_is_added_and_who_goes_is_removed(made: Make, tmp_path: Path) -> None:
    deliver(made(ADA), tmp_path)
    version = deliver(made(BEN, version=2), tmp_path)
    assert read(version, "added") == [(sha("ben@example.com"), "")]
    assert read(version, "removed") == [(sha("ada@example.com"), sha("+491712345678"))]


def test_an_audience_that_is_gone_is_emptied(made: Make, tmp_path: Path) -> None:
    deliver(made(ADA), tmp_path)
    emptied = deliver(made(version=2), tmp_path)
    assert (read(emptied, "members"), len(read(emptied, "removed"))) == ([], 1)
    assert manifest(emptied)["audiences"][0]["segment_name"] == "S1"
    assert not (deliver(made(version=3), tmp_path) / "s1").exists()


def test_a_new_number_replaces_the_old_and_the_address_stays(made: Make, tmp_path: Path) -> None:
    deliver(made(ADA), tmp_path)
    version = deliver(made((*ADA[:2], "+49 171 7654321", ADA[3]), version=2), tmp_path)
    assert read(version, "added") == [(sha("ada@example.com"), sha("+491717654321"))]
    assert read(version, "removed") == [("", sha("+491712345678"))]


def test_an_identifier_that_somebody_else_has_is_not_removed(made: Make, tmp_path: Path) -> None:
    deliver(made(ADA, ("bob", "bob@example.com", ADA[2], ["s1"])), tmp_path)
    version = deliver(made(ADA, version=2), tmp_path)
    assert read(version, "removed") == [(sha("bob@example.com"), "")]


PEOPLE = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.sampled_from([None, "1", "2"]), st.booleans()),
    unique_by=lambda person: person[0],
)


@given(st.lists(PEOPLE, min_size=1, max_size=4))
@law(3)
def test_added_and_removed_lead_from_one_version_to_the_next(
    made: Make, tmp_path_factory: pytest.TempPathFactory, history: list[list[tuple[str, str, str | None, bool]]]
) -> None:
    folder = tmp_path_factory.mktemp("audiences")
    uploaded: set[str] = set()
    for number, people in enumerate(history, start=1):
        users = [
            (user, f"{email}@example.com", phone and f"+49 171 234567{phone}", ["s1"] if is_in else [])
            for user, email, phone, is_in in people
        ]
        version = deliver(made(*users, version=number), folder)
        if not (version / "s1").exists():
            assert not uploaded
            continue
        removed = identifiers(read(version, "removed"))
        assert removed <= uploaded  # only what was put in is taken out
        uploaded = (uploaded - removed) | identifiers(read(version, "added"))
        assert uploaded == identifiers(read(version, "members"))


# --- forgetting ---


def contents(folder: Path, name: str = "*.csv") -> str:
    text = "".join(file.read_text() for file in folder.rglob(name))
    return text + str([pq.read_table(file).to_pylist() for file in folder.rglob("*.parquet")])


def versions_in(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda version: manifest(version)["version"])


def test_a_forgotten_user_is_in_no_file_and_the_next_version_tells_the_platform(made: Make, tmp_path: Path) -> None:
    deliver(made(ADA, BEN), tmp_path)
    deliver(made(ADA, BEN, version=2), tmp_path)
    assert google(tmp_path).forget({"ada": ["s1"], "nobody": []}) == 2
    latest = (tmp_path / "latest").resolve()
    assert [manifest(version)["version"] for version in versions_in(tmp_path)] == [1, 2]
    for version in versions_in(tmp_path):
        check_files(version)
        assert read(version, "members") == [(sha("ben@example.com"), "")]
        assert sha("ada@example.com") not in "".join(file.read_text() for file in version.rglob("*.csv"))
    # Only the latest still knows whom the platform has to be told of, and not who that is.
    assert sha("ada@example.com") not in contents(versions_in(tmp_path)[0])
    [pending] = [row for row in pq.read_table(latest / "index.parquet").to_pylist() if row["user"] is None]
    assert pending == {"user": None, "segment_id": "s1", "email": sha("ada@example.com"), "phone": sha("+491712345678")}

    told = deliver(made(BEN, version=3), tmp_path)
    assert read(told, "removed") == [(sha("ada@example.com"), sha("+491712345678"))]
    for version in versions_in(tmp_path)[:-1]:
        assert sha("ada@example.com") not in contents(version)
    assert read(deliver(made(BEN, version=4), tmp_path), "removed") == []


def test_the_platform_is_told_even_where_the_release_is_the_same(made: Make, tmp_path: Path) -> None:
    release = made(ADA, BEN)
    deliver(release, tmp_path)
    google(tmp_path).forget({"ada": ["s1"]})
    told = deliver(made(BEN, users=2), tmp_path)
    assert len(read(told, "removed")) == 1
    assert google(tmp_path).deliver(made(BEN, users=2)).state == "unchanged"


def test_who_was_removed_before_being_forgotten_is_told_again(made: Make, tmp_path: Path) -> None:
    deliver(made(ADA, BEN), tmp_path)
    deliver(made(BEN, version=2), tmp_path)
    assert google(tmp_path).forget({"ada": []}) == 2
    assert read((tmp_path / "latest").resolve(), "removed") == []
    told = deliver(made(BEN, version=3), tmp_path)
    assert read(told, "removed") == [(sha("ada@example.com"), sha("+491712345678"))]


def test_forgetting_again_and_forgetting_nobody_change_nothing(made: Make, tmp_path: Path) -> None:
    deliver(made(ADA, BEN), tmp_path)
    assert google(tmp_path).forget({"zoe": ["s1"]}) == 0
    assert google(tmp_path).forget({"ada": ["s1"]}) == 1
    before = contents(tmp_path)
    assert google(tmp_path).forget({"ada": ["s1"]}) == 0
    assert google(tmp_path).forget({}) == 0
    assert contents(tmp_path) == before
    assert google(tmp_path / "never").forget({"ada": []}) == 0


def test_two_who_are_forgotten_one_after_the_other_are_both_told(made: Make, tmp_path: Path) -> None:
    deliver(made(ADA, BEN), tmp_path)
    google(tmp_path).forget({"ada": ["s1"]})
    google(tmp_path).forget({"ben": ["s1", "at_risk"]})
    told = deliver(made(version=2), tmp_path)
    assert identifiers(read(told, "removed")) == {sha(text) for text in (ADA[1] or "", "+491712345678", BEN[1] or "")}
    assert len(read(told, "removed", "at_risk")) == 1


# --- elsewhere, and failures ---


def test_a_bucket_holds_audiences_and_forgets(made: Make, tmp_path: Path, bucket: Bucket) -> None:
    section = MetaCustomAudienceSettings.model_validate(bucket.settings)
    ads = section.connect("ads", S3_KEYS, tmp_path, tmp_path)
    ads.deliver(made(ADA, BEN))
    ads.deliver(made(BEN, version=2))
    assert ads.forget({"ben": ["s1", "at_risk"]}) == 2
    ads.deliver(made(version=3))
    pointer = json.loads(bucket.files.cat_file(f"{bucket.name}/out/latest.json"))
    removed = bucket.files.cat_file(f"{bucket.name}/out/{pointer['version']}/s1/removed.csv").decode()
    assert sha("ben@example.com") in removed
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_leaves_the_version_before(made: Make, tmp_path: Path) -> None:
    version = deliver(made(ADA), tmp_path)
    many = made(*((f"u{i}", f"u{i}@example.com", None, ["s1"]) for i in range(3000)), version=2)
    with files_no_larger_than(64_000), pytest.raises(DestinationError, match="publish again"):
        google(tmp_path).deliver(many)
    assert {path.name for path in tmp_path.iterdir()} == {version.name, "latest"}


@pytest.mark.parametrize("kind", [GoogleCustomerMatchSettings, MetaCustomAudienceSettings])
@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"purposes": []}, "purposes"),
        ({"purposes": None}, "purposes"),
        ({"default_country": "Germany"}, "'Germany' is not a country: write two letters such as 'DE' or 'US'"),
    ],
)
def test_settings_that_are_refused(kind: type[GoogleCustomerMatchSettings], section: Any, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        kind.model_validate({"folder": "out"} | section)


def test_each_platform_asks_for_its_consents_and_a_hundred_users() -> None:
    for_google, for_meta = GoogleCustomerMatchSettings(folder="out"), MetaCustomAudienceSettings(folder="out")
    assert for_google.purposes == ["ad_user_data", "ad_personalization"]
    assert for_meta.purposes == ["advertising"]
    assert (for_google.members_min, for_meta.members_min) == (100, 100)
