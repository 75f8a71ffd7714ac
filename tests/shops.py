"""A small shop, and the command that runs its jobs."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_server import await_server
from typer.testing import CliRunner

from flows.cli import app
from flows.configuration import Configuration

ECOM = Path(__file__).parent.parent / "examples" / "ecom"
USERS = 400


@dataclass(frozen=True)
class Ran:
    """A configuration and what `habitus run --json` said of it."""

    configuration: Configuration
    result: dict[str, Any]
    progress: str


def small_shop(folder: Path) -> Path:
    """Write the first users of examples/ecom, three broken rows and the example's configuration."""
    folder.mkdir(parents=True)
    lines = gzip.decompress((ECOM / "events.csv.gz").read_bytes()).decode().splitlines()
    kept = [line for line in lines[1:] if int(line[5:9]) < USERS]
    broken = [
        ",s,home,2024-03-01 10:00:00,desktop,organic,2024-01,new",
        "user_0001,s,home,yesterday,desktop,organic,2024-01,new",
        "user_0001,s,home,2999-01-01 00:00:00,desktop,organic,2024-01,new",
    ]
    (folder / "events.csv.gz").write_bytes(gzip.compress("\n".join([lines[0], *kept, *broken]).encode(), mtime=0))
    text = (ECOM / "habitus.toml").read_text()
    text = (
        text.replace('"../../mlruns"', '"mlruns"') + "\n[training]\nsnapshots = 4\ntrials = 2\n[segments]\nk_max = 4\n"
    )
    (folder / "habitus.toml").write_text(text)
    return folder / "habitus.toml"


def habitus(*arguments: str) -> Any:
    """Run the command in this process: its exit_code, stdout and stderr."""
    await_server()
    return CliRunner().invoke(app, list(arguments))
