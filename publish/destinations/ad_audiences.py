"""Audience files for advertising platforms: of each audience who is in it, who was added and who is to be removed.

People are told by hashes of e-mail addresses and phone numbers, made as each platform says; nothing else is in a file
for upload. Only what was in a version of before is ever removed.
"""

import hashlib
import re
import unicodedata
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ibis
import ibis.expr.types as ir
import phonenumbers
import pyarrow as pa
from ibis import _
from phonenumbers import NumberParseException, PhoneNumberFormat
from pydantic import AfterValidator, Field

from features import engines
from features.addresses import literal
from features.engines import DuckDB
from features.limits import COUNT_MAX
from publish.destination import Delivery, Release
from publish.destinations.files import copy
from publish.destinations.folders import Folder, FolderSettings, fingerprint, seal, write_manifest

INDEX = "index.parquet"
"""Who is in which audience, for Habitus only: a salted hash of the user, and the identifiers. Not for upload."""
INDEX_SCHEMA = ibis.schema({"user": "string", "segment_id": "!string", "email": "string", "phone": "string"})
"""`user` is null of one who was erased and whom the platform is still to be told to remove."""
MEMBERS_MIN = 100
"""The fewest that both platforms show advertisements to.

Google: 100 active users within 30 days on each network (support.google.com/google-ads/answer/7476585). Meta: avoid
lists of fewer than 100 people (facebook.com/business/help/2082575038703844).
"""
EMAIL = r"^[^\s@]+@[^\s@.]+(\.[^\s@.]+)+$"
START_OF_COUNTRY = re.compile(r"^[^\w+]*0[^\w+]*0")
"""What stands for + in most countries, and begins no number of any."""
START_OF_ANY = re.compile(r"^[^\w+]*[1-9]")
SAFE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Platform:
    """Say how a platform wants its files: names of columns, and what an address and a number are before hashing."""

    email_header: str
    phone_header: str
    normalize_email: Callable[[ir.StringValue], ir.StringValue]
    phone_prefix: str


def google_email(email: ir.StringValue) -> ir.StringValue:
    """Return an address as Google hashes it.

    Lower case without any space; of gmail.com and googlemail.com also without dots, and without + and what follows
    (developers.google.com/data-manager/api/devguides/concepts/formatting).
    """
    plain = email.re_replace(r"[\s\p{Z}]", "").lower()
    is_gmail = plain.re_search(r"@(gmail|googlemail)\.com$")
    local = plain.re_replace(r"@[^@]*$", "").re_replace(r"\+.*$", "").replace(".", "")
    return is_gmail.ifelse(local + plain.re_extract(r"@[^@]*$", 0), plain)


def meta_email(email: ir.StringValue) -> ir.StringValue:
    """Return an address as Meta hashes it.

    Trimmed and in lower case (developers.facebook.com/docs/marketing-api/audiences/guides/custom-audiences).
    """
    return email.re_replace(r"^[\s\p{Z}]+|[\s\p{Z}]+$", "").lower()


GOOGLE = Platform("Email", "Phone", google_email, "+")
"""Headers: support.google.com/google-ads/answer/7659867; phones as E.164 with +."""
META = Platform("email", "phone", meta_email, "")
"""Headers: facebook.com/business/help/2082575038703844; phones with country code, without symbols or leading zeros."""


def _check_country(country: str) -> str:
    if country not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"{country!r} is not a country: write two letters such as 'DE' or 'US'")
    return country


class AudienceSettings(FolderSettings):
    """Publish files of audiences for an advertising platform.

    `default_country` is the country of phone numbers that are given without one; None: such numbers are left out, as
    are those of which it is not clear whether they have one.
    """

    members_min: int = Field(default=MEMBERS_MIN, ge=0, le=COUNT_MAX)
    default_country: Annotated[str, AfterValidator(_check_country)] | None = None

    def _connect(self, name: str, platform: Platform, folder: Folder) -> "AdAudiences":
        return AdAudiences(name, platform, self.default_country, folder)


class GoogleCustomerMatchSettings(AudienceSettings):
    """Publish audience files for Google's Customer Match, of users who consented to what Google asks for."""

    kind: Literal["google_customer_match"] = "google_customer_match"
    purposes: Annotated[list[str], Field(min_length=1)] = Field(default=["ad_user_data", "ad_personalization"])

    def connect(self, name: str, credentials: Mapping[str, str], folder: Path, lake: Path) -> "AdAudiences":
        """Return the destination."""
        return self._connect(name, GOOGLE, self.open(credentials, folder, lake))


class MetaCustomAudienceSettings(AudienceSettings):
    """Publish audience files for Meta's Custom Audiences, of users who consented to advertising."""

    kind: Literal["meta_custom_audience"] = "meta_custom_audience"
    purposes: Annotated[list[str], Field(min_length=1)] = Field(default=["advertising"])

    def connect(self, name: str, credentials: Mapping[str, str], folder: Path, lake: Path) -> "AdAudiences":
        """Return the destination."""
        return self._connect(name, META, self.open(credentials, folder, lake))


@dataclass(frozen=True)
class AdAudiences:
    """Keep versions of audience files in a folder."""

    name: str
    platform: Platform
    default_country: str | None
    folder: Folder

    def deliver(self, release: Release) -> Delivery:
        """Write a version's files and make it the latest; nothing where it is already.

        What was added and removed is against the version that the folder holds. One whose users were erased since is
        followed by another, which says so to the platform, even where the release is the same.
        """
        latest = self.folder.latest()
        held = self.folder.manifest(latest) if latest else {}
        if latest and held.get("release") == fingerprint(release) and not held.get("erased"):
            return self._told("unchanged", latest, held)
        engine: DuckDB = release.members.get_backend()
        with self.folder.staging() as staging, _tables(engine) as keep:
            fresh = staging / "fresh"
            fresh.mkdir()
            contacts = keep(normalize(release.contacts, self.platform, self.default_country))
            index = keep(_index(release.members, contacts, release.source))
            file = self.folder.fetch(latest, INDEX, staging) if latest and held else None
            before = keep(_empty() if file is None else engine.read_parquet(literal(file)))
            named = dict(
                release.members.select("segment_id", "segment_name").distinct().to_pandas().to_numpy().tolist()
            )
            named = {audience["segment_id"]: audience["segment_name"] for audience in held.get("audiences", [])} | named
            users = _counts(release.members.group_by("segment_id").agg(count=lambda t: t.count()))
            audiences, row_counts = [], {INDEX: _write_index(index, fresh / INDEX)}
            known = {row["segment_id"] for row in before.select("segment_id").distinct().to_pyarrow().to_pylist()}
            for segment_id in sorted(known | users.keys()):
                folder = folder_name(segment_id)
                now, was = (table.filter(table.segment_id == segment_id) for table in (index, before))
                files = {"members": _people(now), "added": _added(now, was), "removed": _removed(now, was)}
                counts = {what: self._write(rows, fresh / folder / f"{what}.csv") for what, rows in files.items()}
                row_counts |= {f"{folder}/{what}.csv": count for what, count in counts.items()}
                told = {"segment_id": segment_id, "segment_name": named.get(segment_id, segment_id), "folder": folder}
                audiences.append(told | {"users": users.get(segment_id, 0)} | counts)
            said = {
                "changes_since": held.get("version", 0),
                "audiences": audiences,
                "members": sum(audience["members"] for audience in audiences),
                "contacts": _count_contacts(contacts),
            }
            version = seal(fresh, release, said, row_counts)
            self.folder.add(fresh, version)
        self.folder.point(version)
        if latest and latest != version and held.get("erased"):
            self._rewrite(latest, (), set(), is_latest=False)  # the platform is told now
        return self._told("released", version, said)

    def _told(self, state: Literal["released", "unchanged"], version: str, said: Mapping[str, Any]) -> Delivery:
        ambiguous = said["contacts"].get("phone_ambiguous", 0)
        numbers = "phone number" if ambiguous == 1 else "phone numbers"
        note = f"{ambiguous:,} {numbers} left out, with or without a country code: write + or 0 in front"
        return Delivery(
            self.name, state, f"{self.folder.where}/{version}", said["members"], note if ambiguous else "", "members"
        )

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        """Remove users from all versions; the next one tells the platform to remove them, by hash.

        Until then the latest version's index keeps the hashes of their identifiers, without the user.
        """
        latest, numbers = self.folder.latest(), {}
        gone: set[str] = set()
        for version in self.folder.versions():
            with self.folder.staging() as staging, _engine() as engine:
                index = engine.read_parquet(literal(self.folder.fetch(version, INDEX, staging)))
                numbers[version] = self.folder.manifest(version)["version"]
                users = self._hashes(version, memberships)
                of_them = index.filter(index.user.isin(users)).to_pyarrow().to_pylist()
                gone |= {row[what] for row in of_them for what in ("email", "phone") if row[what]}
        # The newest first: what a version removed, only the index of the one before it can tell, also after a kill.
        newest_first = sorted(numbers, key=lambda version: (numbers[version], version == latest), reverse=True)
        return sum(self._rewrite(version, memberships, gone, is_latest=version == latest) for version in newest_first)

    def _hashes(self, version: str, users: Collection[str]) -> list[str]:
        source = self.folder.manifest(version)["source"]
        return sorted(hash_user(user, source) for user in users)

    def _rewrite(self, version: str, users: Collection[str], gone: set[str], *, is_latest: bool) -> bool:
        """Write a version anew without some users, whose identifiers are `gone`; tell whether it had any of them.

        Of another than the latest version, it also loses who was erased before.
        """
        manifest = self.folder.manifest(version)
        with self.folder.staging() as staging, _engine() as engine:
            fresh = staging / "fresh"
            fresh.mkdir()
            hashes = self._hashes(version, users)
            old = engine.read_parquet(literal(self.folder.fetch(version, INDEX, staging)))
            is_gone = old.user.isin(hashes).fill_null(False)
            pending = old.filter(old.user.isnull() | is_gone).mutate(user=ibis.null("string"))
            left = old.filter(old.user.notnull() & ~is_gone)
            erased = int(old.filter(is_gone).user.nunique().to_pyarrow().as_py())
            is_changed = erased > 0 or (not is_latest and _size(pending) > 0)
            row_counts: dict[str, int] = {}
            audiences = []
            for audience in manifest["audiences"]:
                now = left.filter(left.segment_id == audience["segment_id"])
                counts = {}
                for what in ("members", "added", "removed"):
                    path = f"{audience['folder']}/{what}.csv"
                    rows = _read(engine, self.folder.fetch(version, path, staging))
                    if what == "removed":
                        lost = _within(rows, gone)
                        kept = rows.filter(~lost)
                        pending = pending.union(
                            rows.filter(lost)
                            .mutate(user=ibis.null("string"), segment_id=ibis.literal(audience["segment_id"]))
                            .select(*INDEX_SCHEMA.names)
                        )
                    else:
                        kept = rows.intersect(_people(now))
                    counts[what] = row_counts[path] = self._write(kept, fresh / path)
                is_changed |= any(counts[what] != audience[what] for what in counts)
                audiences.append(audience | counts)
            if not is_changed:
                return False
            index = left.union(pending.distinct()) if is_latest else left
            row_counts[INDEX] = _write_index(index, fresh / INDEX)
            said = manifest | {"audiences": audiences, "members": sum(audience["members"] for audience in audiences)}
            said["erased"] = manifest.get("erased", 0) + max(erased, 1 if is_latest else 0)
            name = write_manifest(fresh, said, row_counts)
            self.folder.add(fresh, name)
        if is_latest:
            self.folder.point(name)
        self.folder.remove(version)
        return True

    def _write(self, rows: ir.Table, file: Path) -> int:
        """Write people to a file for upload, in the order of their hashes, which says nothing; count them."""
        file.parent.mkdir(exist_ok=True)
        ordered = rows.order_by(rows.email.asc(nulls_first=False), rows.phone.asc(nulls_first=False))
        headers = {self.platform.email_header: "email", self.platform.phone_header: "phone"}
        named = ordered.select(**{header: ordered[column] for header, column in headers.items()})
        copy(named, file, "FORMAT csv, HEADER")
        return _size(rows)


def normalize(contacts: ir.Table, platform: Platform, default_country: str | None) -> ir.Table:
    """Return user_id, email and phone as SHA-256 in lower-case hex; and whether one that was given is of no use.

    That are `email_invalid`, `phone_invalid`, and `phone_ambiguous` of a number that may be that of two people; the
    identifier is null then, as where none was given.
    """
    given = contacts.filter(contacts.phone.notnull()).select("phone").distinct().to_pyarrow()["phone"].to_pylist()
    read = [read_phone(phone, default_country) for phone in given]
    known = pa.table(
        {
            "phone": pa.array(given, pa.string()),
            "number": pa.array(
                [platform.phone_prefix + one[0] if len(one) == 1 else None for one in read], pa.string()
            ),
            "ambiguous": pa.array([len(one) > 1 for one in read], pa.bool_()),
        }
    )
    joined = contacts.left_join(ibis.memtable(known), "phone").select(
        "user_id", "email", "phone", "number", ambiguous=_.ambiguous.fill_null(False)
    )
    email = platform.normalize_email(joined.email)
    valid = email.re_search(EMAIL).ifelse(email, ibis.null("string"))
    return joined.select(
        "user_id",
        email=valid.hexdigest("sha256"),
        phone=joined.number.hexdigest("sha256"),
        email_invalid=_is_given(joined.email) & valid.isnull(),
        phone_invalid=_is_given(joined.phone) & joined.number.isnull() & ~joined.ambiguous,
        phone_ambiguous=joined.ambiguous,
    )


def read_phone(phone: str, default_country: str | None) -> list[str]:
    """Return the numbers that are meant, with their country code: none is valid, one is clear, two are ambiguous.

    With + or 00 in front the country code follows, and with 0 a number of the default country. Without either, both
    are tried: a number of the default country whose 0 is missing, and one with a country code whose + is missing.

    >>> read_phone(" (0171) 234-5678", "DE"), read_phone("+49 171 2345678", None), read_phone("0049171 2345678", "US")
    (['491712345678'], ['491712345678'], ['491712345678'])
    >>> read_phone("491712345678", "DE"), read_phone("0171 2345678", None)
    (['491712345678', '49491712345678'], [])
    """
    text = unicodedata.normalize("NFKC", phone)
    readings = [(text, default_country)]
    if START_OF_COUNTRY.match(text):
        readings.append((START_OF_COUNTRY.sub("+", text), None))
    elif default_country and START_OF_ANY.match(text):
        readings.append((f"+{text}", None))
    return sorted({number for reading in readings for number in _valid(*reading)})


def _valid(phone: str, country: str | None) -> Iterator[str]:
    """Yield the digits of a number, with its country code, if it is valid."""
    try:
        number = phonenumbers.parse(phone, country)
    except NumberParseException:
        return
    if phonenumbers.is_valid_number(number):
        yield phonenumbers.format_number(number, PhoneNumberFormat.E164).removeprefix("+")


def folder_name(segment_id: str) -> str:
    """Return a name that every file system takes, and that no two segments share.

    >>> folder_name("at_risk"), folder_name("s1"), folder_name("../VIP kunden")
    ('at_risk', 's1', 'vip-kunden-da8139e1')
    """
    if SAFE.fullmatch(segment_id):
        return segment_id
    readable = re.sub(r"[^a-z0-9_]+", "-", segment_id.lower()).strip("-")[:40] or "segment"
    return f"{readable}-{hashlib.sha256(segment_id.encode()).hexdigest()[:8]}"


def hash_user(user_id: str, salt: str) -> str:
    """Return what stands for a user in the index, as `_index` makes it."""
    return hashlib.sha256(f"{salt}\x1f{user_id}".encode()).hexdigest()


def _index(members: ir.Table, contacts: ir.Table, salt: str) -> ir.Table:
    known = contacts.filter(contacts.email.notnull() | contacts.phone.notnull())
    joined = members.inner_join(known, "user_id")
    user = (ibis.literal(f"{salt}\x1f") + joined.user_id).hexdigest("sha256")
    return joined.select("segment_id", "email", "phone", user=user).select(*INDEX_SCHEMA.names)


def _people(index: ir.Table) -> ir.Table:
    return index.select("email", "phone").distinct()


def _added(now: ir.Table, was: ir.Table) -> ir.Table:
    """Return the people of whom an identifier is new."""
    is_new = [now[what].notnull() & now[what].notin(_known(was, what)) for what in ("email", "phone")]
    return _people(now.filter(is_new[0] | is_new[1]))


def _removed(now: ir.Table, was: ir.Table) -> ir.Table:
    """Return the identifiers that are not there any more; one that somebody else of the audience has stays."""
    left = was.select(
        **{
            what: was[what].isin(_known(now, what)).ifelse(ibis.null("string"), was[what])
            for what in ("email", "phone")
        }
    )
    return left.filter(left.email.notnull() | left.phone.notnull()).distinct()


def _known(index: ir.Table, what: str) -> ir.Column:
    return index.filter(index[what].notnull())[what]


def _within(rows: ir.Table, identifiers: Collection[str]) -> ir.BooleanValue:
    """Tell which rows have no identifier but these."""
    gone = sorted(identifiers)
    email, phone = (rows[what].isnull() | rows[what].isin(gone) for what in ("email", "phone"))
    return email & phone


def _is_given(text: ir.StringValue) -> ir.BooleanValue:
    return (text.strip() != "").fill_null(False)


def _count_contacts(contacts: ir.Table) -> dict[str, int]:
    """Count users by what their contacts are good for."""
    has = {what: contacts[what].notnull().sum() for what in ("email", "phone")}
    invalid = {what: contacts[what].sum() for what in ("email_invalid", "phone_invalid", "phone_ambiguous")}
    neither = (contacts.email.isnull() & contacts.phone.isnull()).sum()
    [row] = contacts.agg(**has, **invalid, neither=neither).to_pyarrow().to_pylist()
    return {what: int(count or 0) for what, count in row.items()}


def _counts(table: ir.Table) -> dict[str, int]:
    return {row["segment_id"]: row["count"] for row in table.to_pyarrow().to_pylist()}


def _size(rows: ir.Table) -> int:
    return int(rows.count().to_pyarrow().as_py())


def _empty() -> ir.Table:
    return ibis.memtable(pa.Table.from_pylist([], schema=INDEX_SCHEMA.to_pyarrow()), schema=INDEX_SCHEMA)


def _write_index(index: ir.Table, file: Path) -> int:
    copy(index.order_by("segment_id", "user", "email", "phone"), file, "FORMAT parquet, COMPRESSION zstd")
    return _size(index)


def _read(engine: DuckDB, file: Path) -> ir.Table:
    """Read a file for upload; its columns are called as in the index."""
    columns = {"email": "VARCHAR", "phone": "VARCHAR"}
    return engine.read_csv(literal(file), header=True, columns=columns, auto_detect=False, delim=",", quote='"')


@contextmanager
def _tables(engine: DuckDB) -> Iterator[Callable[[ir.Table], ir.Table]]:
    """Lend what runs a query once, into a table that is gone at the end."""
    kept: list[ir.Table] = []

    def keep(rows: ir.Table) -> ir.Table:
        kept.append(engine.create_table(f"audiences_{uuid.uuid4().hex}", rows, temp=True))
        return kept[-1]

    try:
        yield keep
    finally:
        for table in kept:
            engine.drop_table(table.op().name)


@contextmanager
def _engine() -> Iterator[DuckDB]:
    engine = engines.connect()
    try:
        yield engine
    finally:
        engine.disconnect()
