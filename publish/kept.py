"""The versions that a folder keeps, by what they say of themselves. One that is broken is left out, and named."""

import json
import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from publish.destination import DestinationError
from publish.destinations.folders import LATEST, MANIFEST, VERSION, LocalFolder

logger = logging.getLogger("habitus.serve")

MANIFEST_MAX_BYTES = 16 * 1024 * 1024
"""A thousand times what is usual."""


class BrokenVersionError(Exception):
    """Say which version cannot be shown, by its folder, why, and what mends it."""

    def __init__(self, name: str, reason: str, mend: str = "publish again") -> None:
        super().__init__(f"{name}: cannot be shown ({reason}); {mend}")
        self.name = name


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a version says of itself. Raises BrokenVersionError where that is not what was written."""
    try:
        file = folder / MANIFEST
        if file.stat().st_size > MANIFEST_MAX_BYTES:
            raise ValueError("it is too large")
        said = json.loads(file.read_bytes())
        number, as_of = said["version"], datetime.fromisoformat(said["as_of"])
        if type(number) is not int or number < 1 or as_of.tzinfo is None:
            raise ValueError("it says no version, or no instant")
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise BrokenVersionError(folder.name, f"{MANIFEST}: {type(error).__name__}") from error
    found: dict[str, Any] = said
    return found


def latest_in(folder: Path) -> str | None:
    """Return the name of the latest version of a folder, None where it has none."""
    try:
        name = os.path.basename(os.readlink(folder / LATEST))
    except OSError:
        return None
    return name if VERSION.fullmatch(name) else None


class Kept:
    """Read the manifests of a folder's versions. A version never changes, so what was read once is known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: dict[str, dict[str, Any]] = {}
        self._broken: frozenset[str] = frozenset()

    def read(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return the manifests of all whole versions by folder, the latest first, and the folders of broken ones.

        A broken one is logged when it is found, and tried again each time.
        """
        whole, broken = {}, set()
        for name in self._names():
            try:
                whole[name] = self._whole.get(name) or read_manifest(self.folder / name)
            except BrokenVersionError as error:
                if (self.folder / name).is_dir():  # it may have been removed meanwhile
                    broken.add(name)
                    if name not in self._broken:
                        logger.error("%s", error)
        self._whole, self._broken = whole, frozenset(broken)
        return dict(sorted(whole.items(), key=lambda one: -one[1]["version"])), sorted(broken)

    def _names(self) -> list[str]:
        try:
            return LocalFolder(self.folder).versions()
        except DestinationError as error:
            logger.error("%s", error)
            return []
