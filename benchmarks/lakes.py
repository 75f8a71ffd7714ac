"""The lakes that are measured: made once for each size, and kept."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis.expr.types as ir

from features.events import EVENTS
from features.lake import Lake
from features.synthetic import Traffic, write_events

KEPT = Path(__file__).parent / "data"
DAYS_PER_PART = 10


def lake_of(traffic: Traffic) -> Path:
    """Return a lake that holds the EVENTS of a traffic and nothing else; make it if it is not there."""
    folder = KEPT / f"{traffic.events}-events-{traffic.days}-days"
    if not folder.exists():
        making = folder.with_name(f"{folder.name}-being-made")
        shutil.rmtree(making, ignore_errors=True)
        make_lake(making, traffic)
        making.rename(folder)
    return folder


def make_lake(folder: Path, traffic: Traffic) -> None:
    """Make a lake of EVENTS as Habitus writes it: a file for each day, in the order of event_id."""
    files = write_events(folder / "files", traffic)
    with Lake(folder) as lake:
        lake.write_in_parts(EVENTS, _parts(lake, files))
    shutil.rmtree(folder / "files")


def _parts(lake: Lake, files: list[Path]) -> Iterator[tuple[ir.Table, datetime]]:
    for start in range(0, len(files), DAYS_PER_PART):
        part = files[start : start + DAYS_PER_PART]
        last = datetime.fromisoformat(part[-1].stem).replace(tzinfo=UTC)
        yield EVENTS.check(lake.engine.read_parquet(part)), last + timedelta(days=1)
