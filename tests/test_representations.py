"""Law 7: the same content is the same, however it comes: in any format, of any type, beside any other files."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from laws import law

from features.events import EVENTS, REJECTED
from flows.ingest import accept_files

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = """
name = "shop"
time_zone = "UTC"
[events]
files = "*.{format}"
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
revenue = "price"
element = "flag"
properties = {{ column = "props", optional = true }}
"""
USERS_PER_EXAMPLE = 25
"""How many histories an example draws; they share files, and so what an engine may make of their columns."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """What happened, however it is written."""

    user: str
    at: datetime
    price: Decimal | None
    flag: bool | None
    props: tuple[tuple[str, Any], ...] | None


def draw_history(draw: random.Random, user: str) -> list[Event]:
    """Draw a few events of a user, no two of them equal."""
    start = datetime(2024, 3, 31, tzinfo=UTC)  # clocks change in Europe
    return [
        Event(
            user,
            start + timedelta(minutes=minutes, microseconds=draw.choice([0, 0, 123456])),
            draw.choice([None, Decimal("20"), Decimal("12.5"), Decimal("0.1"), Decimal("19.99")]),
            draw.choice([None, True, False]),
            draw.choice([None, (("k", 1),), (("k", 1), ("m", 2.5)), (("m", "x"), ("k", [1, 2]))]),
        )
        for minutes in draw.sample(range(3 * 24 * 60), draw.randint(1, 5))
    ]


def draw_files(draw: random.Random, events: list[Event]) -> list[list[Event]]:
    """Split events into files that overlap; each is in at least one."""
    files: list[list[Event]] = [[] for _ in range(draw.randint(2, 4))]
    for event in events:
        for file in draw.sample(files, draw.choice([1, 1, 1, 2])):
            file.append(event)
    return [file for file in files if file]


# --- how files write an event; each file has its own way ---


def write_json_lines(draw: random.Random, file: Path, events: list[Event]) -> None:
    user, price, at, is_sparse = (draw.randrange(3) for _ in range(4))

    def row(event: Event) -> str:
        whole = event.price is not None and event.price == int(event.price)
        number = f"{int(event.price or 0)}" if whole else f"{event.price}"
        users = [f'"{event.user}"', event.user, event.user if len(event.user) > 9 else f"{event.user}.0"]
        fields = {
            "user": users[user if event.user.isdigit() else 0],
            "at": json.dumps(
                [f"{event.at:%Y-%m-%dT%H:%M:%S.%fZ}", f"{event.at.astimezone(SUMMER)}", f"{event.at}"][at]
            ),
            "event": '"purchase"',
            "price": "null" if event.price is None else [number, f'"{event.price:.2f}"', f"{event.price:.2f}"][price],
            "flag": {None: "null", True: "true", False: "false"}[event.flag],
            "props": json.dumps(dict(event.props)) if event.props else "null",
        }
        if event.props and is_sparse == 1:
            fields["props"] = json.dumps(dict(reversed(event.props)) | {"nothing": None}, indent=None)
        kept = {name: text for name, text in fields.items() if text != "null" or is_sparse == 2}
        return "{" + ", ".join(f'"{name}": {text}' for name, text in kept.items()) + "}"

    file.write_text("\n".join(map(row, events)) + "\n")


SUMMER = timezone(timedelta(hours=2))


def write_csv(draw: random.Random, file: Path, events: list[Event]) -> None:
    price, at, delimiter = draw.randrange(3), draw.randrange(3), draw.choice(",;\t")

    def row(event: Event) -> str:
        fields = [
            event.user,
            [f"{event.at:%Y-%m-%dT%H:%M:%S.%fZ}", f"{event.at.astimezone(SUMMER)}", f"{event.at:%Y-%m-%d %H:%M:%S.%f}"][
                at
            ],
            "purchase",
            "" if event.price is None else [f"{event.price}", f"{event.price:.2f}", f"{event.price:e}"][price],
            {None: "", True: "true", False: "false"}[event.flag],
            json.dumps(dict(event.props)) if event.props else "",
        ]
        return delimiter.join('"' + field.replace('"', '""') + '"' for field in fields)

    file.write_text("\n".join([delimiter.join(["user", "at", "event", "price", "flag", "props"]), *map(row, events)]))


def write_parquet(draw: random.Random, file: Path, events: list[Event]) -> None:
    prices = [pa.decimal128(10, 2), pa.decimal128(12, 3), pa.float64(), pa.float32(), pa.string()]
    times = [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.string()]
    kinds = {
        "price": draw.choice(prices),
        "at": draw.choice(times),
        "flag": draw.choice([pa.bool_(), pa.int8(), pa.int64()]),
    }
    is_number = all(event.user.isdigit() for event in events)
    users = pa.array([event.user for event in events])
    ats: list[Any] = [event.at.replace(tzinfo=None) for event in events]
    if pa.types.is_string(kinds["at"]):
        at = pa.array([f"{time}" for time in ats])
    elif pa.types.is_timestamp(kinds["at"]) and kinds["at"].tz:
        at = pa.array([event.at for event in events], kinds["at"])
    else:
        at = pa.array(ats, kinds["at"])
    price: list[Any] = [event.price for event in events]
    if pa.types.is_floating(kinds["price"]):
        price = [None if one is None else float(one) for one in price]
    elif pa.types.is_string(kinds["price"]):
        price = [None if one is None else f"{one:.2f}" for one in price]
    columns = {
        "user": users.cast(draw.choice([pa.int64(), pa.float64(), pa.string()])) if is_number else users,
        "at": at,
        "event": pa.array(["purchase"] * len(events)),
        "price": pa.array(price, kinds["price"]),
        "flag": pa.array([event.flag for event in events], pa.bool_()).cast(kinds["flag"]),
        "props": pa.array([json.dumps(dict(event.props)) if event.props else None for event in events], pa.string()),
    }
    pq.write_table(pa.table(columns), file)


WRITERS: dict[str, Callable[[random.Random, Path, list[Event]], None]] = {
    "jsonl": write_json_lines,
    "csv": write_csv,
    "parquet": write_parquet,
}


def rows_of(folder: Path) -> dict[str, list[Row]]:
    """Return EVENTS and REJECTED of a lake, in the order of their keys."""
    return {
        table.name: sorted(
            DeltaTable(str(folder / "lake" / table.name)).to_pyarrow_table().to_pylist(),
            key=lambda row: [row[name] for name in table.key],
        )
        for table in (EVENTS, REJECTED)
    }


@pytest.mark.parametrize("format", WRITERS)
@given(seed=st.integers(0, 2**32 - 1))
@law(2)
def test_increments_of_drifting_files_are_a_rebuild_and_each_event_counts_once(format: str, seed: int) -> None:
    draw = random.Random(seed)
    names = [
        f"{9007199254740990 + number}" if draw.random() < 0.1 else f"{number}" for number in range(USERS_PER_EXAMPLE)
    ]
    names = names if draw.random() < 0.5 else [name if draw.random() < 0.5 else f"u{name}" for name in names]
    if format == "parquet":
        names = [name for name in names if len(name) < 10]
    events = [event for name in names for event in draw_history(draw, name)]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = folder / "habitus.toml"
        config.write_text(CONFIG.format(format=format))
        for number, file in enumerate(draw_files(draw, events)):
            WRITERS[format](draw, folder / f"{number}.{format}", file)
            accept_files.fn(str(config), NOW, False)
        increments = rows_of(folder)
        accept_files.fn(str(config), NOW, True)
        assert increments == rows_of(folder)
        assert len(increments["events"]) == len(events)
