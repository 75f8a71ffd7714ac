"""A small shop, and the command that runs its jobs."""

import fcntl
import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect_server import await_server
from typer.testing import CliRunner

from flows.cli import app
from flows.configuration import Configuration

ECOM = Path(__file__).parent.parent / "examples" / "ecom"
USERS = 400
LAST_DAY = date(2024, 6, 29)
"""Of the events of examples/ecom."""


@dataclass(frozen=True)
class Ran:
    """A configuration and what `habitus run --json` said of it."""

    configuration: Configuration
    result: dict[str, Any]
    progress: str


def small_shop(folder: Path, last_day: date = LAST_DAY) -> Path:
    """Write the first users of examples/ecom, three broken rows and the example's configuration.

    Events are moved by as many days as it takes for the last of them to be on another day.
    """
    folder.mkdir(parents=True)
    lines = gzip.decompress((ECOM / "events.csv.gz").read_bytes()).decode().splitlines()
    kept = [_move(line, last_day - LAST_DAY) for line in lines[1:] if int(line[5:9]) < USERS]
    broken = [
        ",s,home,2024-03-01 10:00:00,desktop,organic,2024-01,new",
        "user_0001,s,home,yesterday,desktop,organic,2024-01,new",
        "user_0001,s,home,2199-01-01 00:00:00,desktop,organic,2024-01,new",
    ]
    (folder / "events.csv.gz").write_bytes(gzip.compress("\n".join([lines[0], *kept, *broken]).encode(), mtime=0))
    text = (ECOM / "habitus.toml").read_text()
    text = (
        text.replace('"../../mlruns"', '"mlruns"') + "\n[training]\nsnapshots = 5\ntrials = 2\n[segments]\nk_max = 4\n"
    )
    (folder / "habitus.toml").write_text(text)
    return folder / "habitus.toml"


def _move(line: str, by: timedelta) -> str:
    before, time, after = line.split(",")[:3], line.split(",")[3], line.split(",")[4:]
    return ",".join([*before, str(datetime.fromisoformat(time) + by), *after])


def habitus(*arguments: str) -> Any:
    """Run the command in this process: its exit_code, stdout and stderr."""
    await_server()
    return CliRunner().invoke(app, list(arguments))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Any:
    """Return what `make` returned of a new folder, as JSON has it, in one of the processes that test at the same time.

    The others wait for it, and have the same.
    """
    base = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder = base / f"once-{name}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "told.json").exists():
            (folder / "made").mkdir()
            (folder / "told.json").write_text(json.dumps(make(folder / "made")))
    return json.loads((folder / "told.json").read_text())
