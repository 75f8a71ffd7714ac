"""Compression: what text files are packed with, as the end of their name says, in capitals or not."""

import gzip
import io
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""By the end of a name, what the engine calls it."""


def compression_of(path: Path) -> str:
    """Return what a file is packed with, as the engine calls it: gzip, zstd or none."""
    return COMPRESSIONS.get(path.suffix.lower(), "none")


def open_unpacked(path: Path) -> BinaryIO:
    """Open a file for its bytes as they were before they were packed.

    To read it raises OSError, EOFError or zlib.error where it is damaged or breaks off.
    """
    match compression_of(path):
        case "gzip":
            return cast("BinaryIO", gzip.open(path, "rb"))
        case "zstd":
            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
        case _:
            return path.open("rb")
