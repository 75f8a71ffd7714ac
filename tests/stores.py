"""What stores hold, byte by byte and unpacked, for tests that look for what must not be in them."""

import base64
import binascii
import gzip
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq

PACKED = re.compile(rb"[A-Za-z0-9+/\n]{40,}={0,2}")
"""What may be base64, such as Prefect's pickled errors and the users in a page."""


def places_of(folder: Path, *texts: str) -> list[list[str]]:
    """List, for each of some texts, the files that hold it: as bytes, in Parquet, in archives, packed in text."""
    found: list[list[str]] = [[] for _ in texts]
    for file in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        content = b"\n".join(_contents(file))
        for text, places in zip(texts, found, strict=True):
            if text.encode() in content:
                places.append(file.relative_to(folder).as_posix())
    return found


def _contents(file: Path) -> Iterator[bytes]:
    content = file.read_bytes()
    yield content
    if file.suffix == ".parquet" and "_delta_log" not in file.parts:
        yield repr(pq.read_table(file).to_pylist()).encode()
    if zipfile.is_zipfile(BytesIO(content)):
        with zipfile.ZipFile(file) as archive:
            yield from map(archive.read, archive.namelist())
    yield from unpacked(content)


def unpacked(content: bytes) -> Iterator[bytes]:
    """Yield what is packed into text as base64, and as gzip within that."""
    for packed in PACKED.findall(content):
        try:
            inner = base64.b64decode(packed)
            yield inner
            yield gzip.decompress(inner)
        except (binascii.Error, gzip.BadGzipFile, EOFError):
            continue
