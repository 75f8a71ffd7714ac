"""Reports: a folder for each version, which appears whole; an erasure writes those anew that name a user."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from publish.destination import Delivery, Destination, DestinationError, Release
from publish.destinations.folders import Folder, write_manifest
from publish.manifest import MANIFEST_VERSION
from publish.report.content import Report, Segment
from publish.report.settings import ReportSettings
from publish.report.tables import write_tables

FOLDER = "reports"
"""Of reports, within the folder of published versions."""
CONTENT, PAGE, USERS, TABLES = "report.json", "report.html", "users.parquet", "tables"
STAGED = "report"

Page = Callable[[Report, pa.Table | None, ReportSettings], str]
"""What makes a page of a report and its users."""


@dataclass(frozen=True)
class Reports:
    """Keep the reports of versions in a folder, the latest one pointed to."""

    folder: Folder
    settings: ReportSettings
    page: Page

    def find(self, made_of: str) -> str | None:
        """Return the name of the latest report, if it was made of the same as this hash says."""
        latest = self.folder.latest()
        return latest if latest and self.folder.manifest(latest).get("made_of") == made_of else None

    def add(self, report: Report, users: pa.Table, made_of: str) -> str:
        """Write a report and its users, make it the latest, and return its name.

        The same report has the same name. Another report of the same version is replaced.
        """
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "source": report.source,
            "report_version": report.report_version,
            "version": report.version,
            "as_of": report.as_of.isoformat(),
            "users": report.users_listed,
            "made_of": made_of,
        }
        before = [name for name in self.folder.versions() if self.folder.manifest(name)["version"] == report.version]
        with self.folder.staging() as staging:
            name = self._stage(staging / STAGED, report, users, manifest)
            self.folder.add(staging / STAGED, name)
        self.folder.point(name)
        for other in before:
            if other != name:
                self.folder.remove(other)
        return name

    def forget(self, users: Collection[str]) -> int:
        """Write each report that names one of these users anew without them; return how many do.

        What it counts stays as it was: from counts nobody is known. Raises DestinationError where a report cannot be
        read.
        """
        latest = self.folder.latest()
        rewritten = 0
        for name in self.folder.versions():
            with self.folder.staging() as staging:
                file, table = (self.folder.fetch(name, path, staging) for path in (CONTENT, USERS))
                report, listed = self._parsed(file, name), pq.read_table(table)
                is_gone = pc.is_in(listed["user_id"], value_set=pa.array(sorted(users), pa.string()))
                gone = int(pc.sum(is_gone).as_py() or 0)
                named = {user.user_id for segment in report.segments for user in segment.top_users}
                if not gone and named.isdisjoint(users):
                    continue
                left = listed.filter(pc.invert(is_gone))
                segments = [_without(segment, users) for segment in report.segments]
                report = report.model_copy(update={"segments": segments, "users_listed": len(left)})
                manifest = self.folder.manifest(name)
                erased = {"users": len(left), "erased": manifest.get("erased", 0) + gone}
                fresh = self._stage(staging / STAGED, report, left, {**manifest, **erased})
                self.folder.add(staging / STAGED, fresh)
            if name == latest:
                self.folder.point(fresh)
            self.folder.remove(name)
            rewritten += 1
        return rewritten

    def _parsed(self, file: Path, name: str) -> Report:
        try:
            return Report.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise DestinationError(
                f"{self.folder.where}/{name}/{CONTENT}: is not what this version of Habitus wrote; remove that folder, "
                "run `habitus report`, and forget again"
            ) from error

    def _stage(self, staged: Path, report: Report, users: pa.Table, manifest: Mapping[str, Any]) -> str:
        (staged / TABLES).mkdir(parents=True)
        (staged / CONTENT).write_text(to_json(report), encoding="utf-8")
        (staged / PAGE).write_text(self.page(report, users, self.settings), encoding="utf-8")
        pq.write_table(users, staged / USERS, compression="zstd")
        counts = {f"{TABLES}/{name}": rows for name, rows in write_tables(report, staged / TABLES).items()}
        return write_manifest(staged, manifest, {**counts, USERS: len(users)})


def to_json(report: Report) -> str:
    """Return a report as the text of report.json."""
    return json.dumps(report.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def without_users(report: Report) -> Report:
    """Return a report that names nobody."""
    return report.model_copy(
        update={"segments": [one.model_copy(update={"top_users": []}) for one in report.segments], "users_listed": 0}
    )


def _without(segment: Segment, users: Collection[str]) -> Segment:
    return segment.model_copy(
        update={"top_users": [user for user in segment.top_users if user.user_id not in users]},
    )


@dataclass(frozen=True)
class WithReports:
    """A destination whose versions have reports, which forget whom it forgets."""

    destination: Destination
    reports: Reports

    def deliver(self, release: Release) -> Delivery:
        """Deliver to the destination."""
        return self.destination.deliver(release)

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        """Remove users from the destination and from its reports."""
        return self.destination.forget(memberships) + self.reports.forget(memberships.keys())
