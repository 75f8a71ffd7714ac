"""Folders of versions: a version is a folder that appears whole and never changes; a pointer says which is the latest.

On a disk a version appears by one rename, and `latest` is a link that another rename switches. Object storage has no
renames: a version's objects are written first, its manifest last of them, and then `latest.json` by a single PUT, which
is atomic. A reader that goes by the pointer sees one whole version in both; versions of before stay.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import duckdb
import fsspec
from fsspec.asyn import sync
from pydantic import model_validator

from features.lake import STAGING, staging_folder
from publish.destination import Credential, DestinationError, DestinationSettings, Release
from publish.manifest import MANIFEST_VERSION

LATEST = "latest"
POINTER = "latest.json"
MANIFEST = "manifest.json"
VERSION = re.compile(r"\d{4}-\d{2}-\d{2}T\d{6}Z-[0-9a-f]{12}")
"""A version's folder: its instant, and the start of its manifest's hash."""
ANSWER_S = 600
"""How long object storage may take to take or give one file, however slowly, or to say what is there."""
WHAT_TO_DO = {
    errno.ENOSPC: "the disk is full; make room and publish again",
    errno.EDQUOT: "the quota is used up; make room and publish again",
    errno.EFBIG: "a file would be larger than is allowed here; raise the limit and publish again",
    errno.EACCES: "no permission; allow this user to write there and publish again",
    errno.EPERM: "no permission; allow this user to write there and publish again",
    errno.EROFS: "it is read-only; allow this user to write there and publish again",
}


class FolderSettings(DestinationSettings):
    """Say where versions go: a path relative to the configuration, or an address such as s3://bucket/prefix.

    Without keys, object storage is asked as its provider's own tools would be: by environment, profile or role.
    """

    folder: str
    endpoint_url: str | None = None
    region: str | None = None
    access_key: Credential | None = None
    secret_key: Credential | None = None

    @model_validator(mode="after")
    def _both_keys_or_none(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("give both access_key and secret_key, or neither")
        given = [name for name in ("endpoint_url", "region", "access_key") if getattr(self, name) is not None]
        if given and not self.folder.startswith(("s3://", "s3a://")):
            raise ValueError(f"{', '.join(given)} is for a folder s3://bucket/prefix, and this one is {self.folder!r}")
        return self

    def open(self, credentials: Mapping[str, str], folder: Path, lake: Path) -> "Folder":
        """Return the folder, of which nothing is read yet; what goes to object storage is staged beside the lake."""
        if "://" not in self.folder:
            return LocalFolder(folder / self.folder)
        options: dict[str, Any] = {}
        if self.folder.startswith(("s3://", "s3a://")):
            keys = {"key": credentials.get("access_key"), "secret": credentials.get("secret_key")}
            options = {"endpoint_url": self.endpoint_url, "client_kwargs": {"region_name": self.region}} | keys
        return ObjectFolder(self.folder, options, lake)


class Folder(Protocol):
    """A folder of versions. What it cannot do, it says as DestinationError."""

    where: str

    def latest(self) -> str | None:
        """Return the latest version's name; None where there is none."""
        ...

    def versions(self) -> list[str]:
        """List the names of all whole versions."""
        ...

    def manifest(self, version: str) -> dict[str, Any]:
        """Return what a version says of itself; empty if it is not there."""
        ...

    def staging(self) -> contextlib.AbstractContextManager[Path]:
        """Lend a folder to write a version in; what killed processes left there, or half there, goes."""
        ...

    def fetch(self, version: str, path: str, staging: Path) -> Path:
        """Return where one of a version's files can be read: there, or as a copy somewhere in a staging folder."""
        ...

    def add(self, staged: Path, version: str) -> None:
        """Have a staged version appear, whole; nothing where it is already."""
        ...

    def point(self, version: str) -> None:
        """Make a version the latest, in one step."""
        ...

    def remove(self, version: str) -> None:
        """Remove a version, whole."""
        ...


class LocalFolder:
    """A folder on a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    def latest(self) -> str | None:
        """Return the version that the link `latest` points to."""
        link = self.path / LATEST
        with explained(self.where):
            if not link.is_symlink():
                if link.exists():
                    raise DestinationError(f"{link}: is in the way, since it is no link; move it and publish again")
                return None
            return link.readlink().name

    def versions(self) -> list[str]:
        """List the versions; a folder appears only when it is whole."""
        with explained(self.where):
            names = (file.parent.name for file in self.path.glob(f"*/{MANIFEST}"))
            return sorted(name for name in names if VERSION.fullmatch(name))

    def manifest(self, version: str) -> dict[str, Any]:
        """Return a version's manifest."""
        file = self.path / version / MANIFEST
        with explained(self.where):
            return _parsed(file.read_bytes(), str(file)) if file.exists() else {}

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """Lend a folder beside the versions."""
        with explained(self.where), staging_folder(self.path) as staging:
            yield staging

    def fetch(self, version: str, path: str, staging: Path) -> Path:
        """Return where the file is."""
        return self.path / version / path

    def add(self, staged: Path, version: str) -> None:
        """Rename the staged folder, once all of it has reached the disk."""
        with explained(self.where):
            if not (self.path / version).exists():
                _sync(staged)
                staged.rename(self.path / version)
                _sync_entry(self.path)

    def point(self, version: str) -> None:
        """Switch the link by a rename."""
        link = self.path / LATEST
        fresh = link.with_name(f".{LATEST}-{uuid.uuid4().hex}")
        with explained(self.where):
            for left in self.path.glob(f".{LATEST}-*"):
                left.unlink()
            fresh.symlink_to(version)
            try:
                fresh.replace(link)
            finally:
                fresh.unlink(missing_ok=True)
            _sync_entry(self.path)

    def remove(self, version: str) -> None:
        """Rename the folder to one that goes, so that nobody sees a part of it."""
        gone = self.path / f"{STAGING}{os.getpid()}-{uuid.uuid4().hex}"
        with explained(self.where):
            (self.path / version).rename(gone)
            _sync_entry(self.path)
            shutil.rmtree(gone)


class ObjectFolder:
    """A prefix in object storage, by fsspec; staged in a local folder that is there."""

    def __init__(self, url: str, options: Mapping[str, Any], local: Path) -> None:
        self.where = url.rstrip("/")
        self.root = self.where.partition("://")[2]
        self.local = local
        self._options = {name: value for name, value in options.items() if value}

    @cached_property
    def files(self) -> Any:
        """Return the storage, which is asked for the first time when it is used."""
        protocol = self.where.partition("://")[0]
        return fsspec.filesystem(protocol, use_listings_cache=False, **self._options)

    def latest(self) -> str | None:
        """Return the version that `latest.json` names."""
        content = self._read(POINTER)
        if content is None:
            return None
        version = _parsed(content, f"{self.where}/{POINTER}").get("version")
        if not isinstance(version, str):
            raise DestinationError(f"{self.where}/{POINTER}: names no version; remove it and publish again")
        return version

    def versions(self) -> list[str]:
        """List the versions that have a manifest, which is written last."""
        return [version for version in self._folders() if self._exists(f"{version}/{MANIFEST}")]

    def manifest(self, version: str) -> dict[str, Any]:
        """Return a version's manifest."""
        path = f"{version}/{MANIFEST}"
        content = self._read(path)
        return {} if content is None else _parsed(content, f"{self.where}/{path}")

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """Lend a local folder, and remove what is left of versions without a manifest."""
        for version in self._folders():
            if not self._exists(f"{version}/{MANIFEST}"):
                self.remove(version)
        with explained(self.where), staging_folder(self.local) as staging:
            yield staging

    def fetch(self, version: str, path: str, staging: Path) -> Path:
        """Copy the file."""
        copy = Path(tempfile.mkdtemp(dir=staging)) / Path(path).name
        with self._told():
            self._ask("get_file", f"{self.root}/{version}/{path}", str(copy))
        return copy

    def add(self, staged: Path, version: str) -> None:
        """Write the objects, the manifest last."""
        if self._exists(f"{version}/{MANIFEST}"):
            return
        files = sorted(path for path in staged.rglob("*") if path.is_file() and path != staged / MANIFEST)
        for file in (*files, staged / MANIFEST):
            with self._told():
                self._ask("put_file", str(file), f"{self.root}/{version}/{file.relative_to(staged).as_posix()}")

    def point(self, version: str) -> None:
        """Write the pointer by a single PUT."""
        pointer = {"version": version, "manifest": f"{version}/{MANIFEST}"}
        with self._told():
            self._ask("pipe_file", f"{self.root}/{POINTER}", (json.dumps(pointer, indent=2) + "\n").encode())

    def remove(self, version: str) -> None:
        """Remove the manifest first: what is left without one is no version, and goes at the next staging."""
        if self._exists(f"{version}/{MANIFEST}"):
            with self._told():
                self._ask("rm_file", f"{self.root}/{version}/{MANIFEST}")
        with self._told():
            self._ask("rm", f"{self.root}/{version}", recursive=True)

    def _ask(self, what: str, *args: Any, **options: Any) -> Any:
        """Ask the storage, and wait for at most ANSWER_S; only its own time limits end what is not asynchronous."""
        if not self.files.async_impl:
            return getattr(self.files, what)(*args, **options)
        return sync(self.files.loop, getattr(self.files, f"_{what}"), *args, timeout=ANSWER_S, **options)

    def _folders(self) -> list[str]:
        with self._told():
            try:
                paths = self._ask("ls", self.root, detail=False)
            except FileNotFoundError:
                return []
        names = {path.rstrip("/").rpartition("/")[2] for path in paths}
        return sorted(name for name in names if VERSION.fullmatch(name))

    def _exists(self, path: str) -> bool:
        with self._told():
            return bool(self._ask("exists", f"{self.root}/{path}"))

    def _read(self, path: str) -> bytes | None:
        with self._told():
            try:
                content: bytes = self._ask("cat_file", f"{self.root}/{path}")
            except FileNotFoundError:
                return None
        return content

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say in one line what the storage refused. Each provider's library has exceptions of its own."""
        try:
            yield
        except TimeoutError:
            raise DestinationError(
                f"{self.where}: no answer within {ANSWER_S:g} s; the next publish tries again"
            ) from None
        except ImportError as error:
            raise DestinationError(f"{self.where}: {_line(error)}; for S3 install habitus[s3]") from error
        except Exception as error:
            reason = _line(error)
            for secret in (self._options.get("key"), self._options.get("secret")):
                reason = reason.replace(secret, "***") if secret else reason
            advice = "check the address, that the bucket is there, and that the credentials may read and write it"
            raise DestinationError(f"{self.where}: {reason}; {advice}") from None


def seal(staged: Path, release: Release, manifest: Mapping[str, Any], row_counts: Mapping[str, int]) -> str:
    """Write the manifest of a release's staged files and return the version's name.

    `manifest` is what a destination says beside the release; `row_counts` are of the files that have rows, by path.
    """
    whole = {
        "manifest_version": MANIFEST_VERSION,
        "source": release.source,
        "destination": release.destination,
        "version": release.version,
        "as_of": release.as_of.astimezone(UTC).isoformat(),
        **release.manifest,
        **manifest,
        "release": fingerprint(release),
    }
    return write_manifest(staged, whole, row_counts)


def write_manifest(staged: Path, manifest: Mapping[str, Any], row_counts: Mapping[str, int]) -> str:
    """Write a manifest with its files as they are staged, and return the version's name."""
    files = sorted(path for path in staged.rglob("*") if path.is_file() and path != staged / MANIFEST)
    described = [_describe(file, file.relative_to(staged).as_posix(), row_counts) for file in files]
    content = (json.dumps(dict(manifest) | {"files": described}, indent=2, ensure_ascii=False) + "\n").encode()
    (staged / MANIFEST).write_bytes(content)
    as_of = datetime.fromisoformat(manifest["as_of"]).astimezone(UTC)
    return f"{as_of:%Y-%m-%dT%H%M%SZ}-{hashlib.sha256(content).hexdigest()[:12]}"


def fingerprint(release: Release) -> str:
    """Return a hash of what a release says of itself, by which a destination knows that it has it already."""
    said = [release.source, release.version, release.as_of.astimezone(UTC).isoformat(), dict(release.manifest)]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Say in one line what a disk refused."""
    try:
        yield
    except OSError as error:
        advice = WHAT_TO_DO.get(error.errno or 0, "mend it and publish again")
        raise DestinationError(f"{where}: {error.strerror or _line(error)}: {advice}") from error
    except duckdb.IOException as error:  # its own files' errors
        raise DestinationError(f"{where}: {_line(error)}; mend it and publish again") from error


def _describe(file: Path, path: str, row_counts: Mapping[str, int]) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"path": path, "rows": row_counts.get(path), "bytes": file.stat().st_size, "sha256": digest}


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise DestinationError(f"{where}: is not what was written; remove the version, or publish into another folder")
    return parsed


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _sync(folder: Path) -> None:
    """Have a folder and all in it reach the disk before it is renamed."""
    for path in [*folder.rglob("*"), folder]:
        _sync_entry(path)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
