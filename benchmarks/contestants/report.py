"""The User Segment Report of a published version: numbers, charts, page and files, as `habitus report` writes it."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from features.events import EVENTS
from features.synthetic import Traffic, write_deliveries
from flows.configuration import load
from flows.report import write_report
from publish.report.reports import CONTENT, FOLDER, PAGE

CONFIG = "habitus.toml"
CONFIGURATION = """\
name = "shop"
[events]
files = "files/*.parquet"
[events.columns]
{columns}
[storage]
mlruns = "mlruns"
[training]
snapshots = 4
trials = 2
"""
DAYS = 90
EVENTS_PER_USER = 50
COLUMNS = [name for name in EVENTS.schema.names if name not in ("session_id", "source_file", "ingested_at")]


def prepare(folder: Path, users: int) -> None:
    """Publish a version of so many users, with all that the whole job makes of their events."""
    files = write_deliveries(folder / "files", Traffic(users * EVENTS_PER_USER, DAYS, users=users))
    columns = "\n".join(f'{name} = "{name}"' for name in COLUMNS)
    (folder / CONFIG).write_text(CONFIGURATION.format(columns=columns))
    last = datetime.fromisoformat(files[-1].stem).replace(tzinfo=UTC)
    command = [sys.executable, "-m", "flows.cli", "run", CONFIG, "--as-of", f"{last - timedelta(days=7):%Y-%m-%d}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise SystemExit(re.sub(r"\x1b\[[0-9;]*m", "", done.stderr))


def report(folder: Path) -> None:
    """Write the report of the version, however often it was written before."""
    write_report.fn(str(folder / CONFIG), True)


def told(folder: Path) -> dict[str, int]:
    """Say what the report is of, and how large its page is."""
    published = load(folder / CONFIG).published / FOLDER / "latest"
    content = json.loads((published / CONTENT).read_text())
    return {
        "users": content["users_listed"],
        "segments": len(content["segments"]),
        "sessions": content["overview"]["sessions"],
        "page_bytes": (published / PAGE).stat().st_size,
    }
