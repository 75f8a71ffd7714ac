"""Synthetic events: what the users of a shop that does not exist would do, of any size, the same for the same seed.

Drawn with numpy, not as table expressions: an engine's random numbers depend on its threads, and its hashes on its
version. Each day has a generator of its own, so that days are made side by side and memory holds a few of them.
"""

import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend as DuckDB

from features.events import ADD_TO_CART, EVENTS, PAGE_VIEW, PURCHASE, SEARCH, SUPPORT_VIEW

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# How often: a user has one session in two weeks on average, the most active ones 130 times as many.
SESSIONS_PER_USER_AND_DAY = 0.07
USER_TAIL, USER_HEAD = 3, 0.05
WEIGHT_OF_WEEKDAY = (1.1, 1.1, 1.1, 1.1, 1.0, 0.7, 0.9)
BUSIEST_HOUR, DAILY_SWING = 20, 0.6

# How long: 8 events on average, one in five has one event, a few have hundreds.
EVENTS_PER_SESSION, MOST_EVENTS_PER_SESSION = 8, 500
SIZE_TAIL, SIZE_SCALE = 2.5, 11.25
MEDIAN_PAUSE_S, PAUSE_SIGMA = 20, 1.5

# When it is known: at once, or late.
MEAN_LATENCY_S = 2
MEAN_DELAY_S = 6 * 3600
MAXIMUM_DELAY_S = 7 * 86400

# What: people browse, and the last steps of some sessions are the first steps of the funnel.
PRODUCT_VIEW = "product_view"
BROWSING = {PAGE_VIEW: 0.5, PRODUCT_VIEW: 0.35, SEARCH: 0.12, SUPPORT_VIEW: 0.03}
FUNNEL = (ADD_TO_CART, "checkout_start", PURCHASE)
SHARE_OF_STEPS = (0.85, 0.07, 0.03, 0.05)
EVENT_NAMES = (*BROWSING, *FUNNEL)
ITEMS = [f"item_{number:03}" for number in range(500)]
CATEGORIES = ["audio", "books", "games", "garden", "kitchen", "phones", "shoes", "toys"]
LANDING_PAGES = ["/", *(f"/category/{name}" for name in CATEGORIES), "/offers", "/blog", "/account"]
PAGE_OF_EVENT = {SEARCH: "/search", SUPPORT_VIEW: "/help", "checkout_start": "/checkout", PURCHASE: "/thanks"}
PAGES = [*LANDING_PAGES, *PAGE_OF_EVENT.values(), *(f"/product/{item}" for item in ITEMS)]
CHANNELS = (
    (0.40, None, None, None),
    (0.30, "google", "organic", None),
    (0.10, "google", "cpc", "brand"),
    (0.08, "facebook", "cpc", "new_in"),
    (0.07, "newsletter", "email", "weekly"),
    (0.05, "partner", "referral", None),
)
DEVICES = ["mobile"] * 6 + ["desktop"] * 3 + ["tablet"]
COUNTRIES = ["DE"] * 7 + ["FR"] * 4 + ["GB"] * 3 + ["IT"] * 2 + ["AT", "CH", "ES", None]

MEDIAN_REVENUE, REVENUE_SIGMA = 40, 0.8

EPOCH = date(1970, 1, 1)
DAY_US = 86_400_000_000
ROWS_PER_GROUP = 122_880


@dataclass(frozen=True)
class Traffic:
    """Say how much happens, and when: `events` in all, in sessions that begin on `days` days from `first_day` on.

    Of the events `late_share` arrive minutes to days late, and `duplicate_share` are delivered a second time. Without
    `users`, there are so many that each has a session in two weeks on average.
    """

    events: int
    days: int
    seed: int = 0
    users: int | None = None
    first_day: date = date(2024, 1, 1)
    late_share: float = 0.02
    duplicate_share: float = 0.01

    def __post_init__(self) -> None:
        if self.events < 1 or self.days < 1 or (self.users is not None and self.users < 1):
            raise ValueError("traffic needs at least one event, one day and one user")

    @property
    def user_count(self) -> int:
        """Return how many users there are to draw from; of the least active ones, some never come."""
        sessions = self.events / EVENTS_PER_SESSION
        return self.users or max(round(sessions / self.days / SESSIONS_PER_USER_AND_DAY), 1)

    @property
    def events_of_days(self) -> list[int]:
        """Return how many events belong to sessions that begin on each day."""
        weekdays = [(self.first_day + timedelta(days=day)).weekday() for day in range(self.days)]
        weights = np.array([WEIGHT_OF_WEEKDAY[weekday] for weekday in weekdays])
        until = np.rint(self.events * weights.cumsum() / weights.sum()).astype(np.int64)
        return [int(count) for count in np.diff(until, prepend=0)]


def synthetic_events(engine: DuckDB, traffic: Traffic) -> ir.Table:
    """Return EVENTS, each once; all are in memory, so for more than some millions see `write_events`."""
    made = pa.concat_tables(_make_day(traffic, day) for day in range(traffic.days))
    return EVENTS.check(
        engine.create_table(f"synthetic_{uuid.uuid4().hex}", made.cast(EVENTS.schema.to_pyarrow()), temp=True)
    )


def write_events(folder: Path, traffic: Traffic, threads: int = 2) -> list[Path]:
    """Write EVENTS, each once, to one Parquet file for each day on which any occurred; return the files."""
    return _write_by_day(folder, traffic, "occurred_at", lambda day: _make_day(traffic, day), threads)


def write_deliveries(folder: Path, traffic: Traffic, threads: int = 2) -> list[Path]:
    """Write what a collector would deliver: a Parquet file for each day on which any event arrived, late or again.

    Some files hold events of days before, and an event that is in two files or twice in one counts once.
    """
    return _write_by_day(folder, traffic, "ingested_at", lambda day: _deliver_day(traffic, day), threads)


def _make_day(traffic: Traffic, day: int) -> pa.Table:
    """Make the events of all sessions that begin on a day, which may run into the next."""
    count = traffic.events_of_days[day]
    draw = np.random.default_rng([traffic.seed, day])
    sizes = _sizes(draw, count)
    session = np.repeat(np.arange(len(sizes)), sizes)
    position = np.arange(count) - (sizes.cumsum() - sizes)[session]

    midnight_us = ((traffic.first_day - EPOCH).days + day) * DAY_US
    occurred_at = midnight_us + (_starts(draw, len(sizes))[session] + _elapsed(draw, position, session)) * 1000
    is_late = draw.random(count) < traffic.late_share
    wait_s = np.where(is_late, 60 + _delays_s(draw, count), draw.exponential(MEAN_LATENCY_S, count))
    ingested_at = occurred_at + _ms(wait_s) * 1000

    user = _users(draw, len(sizes), traffic.user_count)
    users, user_code = np.unique(user, return_inverse=True)
    channel = _choose(draw, len(sizes), [weight for weight, *_ in CHANNELS])
    columns = {
        "event_id": _event_ids(day, occurred_at),
        "user_id": _coded(user_code[session], [f"u{number}" for number in users]),
        "occurred_at": pa.array(occurred_at, pa.timestamp("us", "UTC")),
        "ingested_at": pa.array(ingested_at, pa.timestamp("us", "UTC")),
        "source": _coded(channel[session], [source for _, source, _, _ in CHANNELS]),
        "medium": _coded(channel[session], [medium for _, _, medium, _ in CHANNELS]),
        "campaign": _coded(channel[session], [campaign for _, _, _, campaign in CHANNELS]),
        "device": _coded((user % len(DEVICES))[session], DEVICES),
        "country": _coded((user // len(DEVICES) % len(COUNTRIES))[session], COUNTRIES),
        "source_file": _coded(np.zeros(count, np.int64), ["synthetic"]),
        **_what(draw, position, sizes[session]),
    }
    nothing = {field.name: pa.nulls(count, field.type) for field in EVENTS.schema.to_pyarrow()}
    return pa.table({name: columns.get(name, nothing[name]) for name in EVENTS.schema.names})


def _what(draw: np.random.Generator, position: Integers, size: Integers) -> dict[str, pa.Array]:
    """Draw what happens at each position of sessions of these sizes: the last ones may be steps of the funnel."""
    count = len(position)
    left = size - 1 - position
    steps = np.minimum(_choose(draw, count, SHARE_OF_STEPS)[np.arange(count) - position], size - 1)
    name = np.where(left < steps, len(BROWSING) + steps - left - 1, _choose(draw, count, [*BROWSING.values()]))
    item = np.floor(len(ITEMS) * draw.random(count) ** 2).astype(np.int64)
    landing_page = np.floor(len(LANDING_PAGES) * draw.random(count) ** 3).astype(np.int64)
    page = np.array([PAGES.index(PAGE_OF_EVENT.get(event_name, "/")) for event_name in EVENT_NAMES])[name]
    page = np.where(_is(name, PAGE_VIEW), landing_page, page)
    page = np.where(_is(name, PRODUCT_VIEW), PAGES.index(f"/product/{ITEMS[0]}") + item, page)
    quantity = 1.0 + (draw.random(count) < 0.2)
    revenue = np.rint(draw.lognormal(np.log(MEDIAN_REVENUE), REVENUE_SIGMA, count) * 100) / 100
    about_item = _is(name, PRODUCT_VIEW, ADD_TO_CART)
    return {
        "event_name": _coded(name, EVENT_NAMES),
        "page": _coded(page, PAGES, where=~_is(name, ADD_TO_CART)),
        "item_id": _coded(item, ITEMS, where=about_item),
        "category": _coded(item % len(CATEGORIES), CATEGORIES, where=about_item),
        "quantity": pa.array(quantity, mask=~_is(name, ADD_TO_CART, PURCHASE)),
        "revenue": pa.array(revenue, mask=~_is(name, PURCHASE)),
    }


def _deliver_day(traffic: Traffic, day: int) -> pa.Table:
    """Deliver the events of the sessions that begin on a day, and some of them a second time, later."""
    events = _make_day(traffic, day)
    draw = np.random.default_rng([traffic.seed, day, 1])
    again = events.filter(draw.random(len(events)) < traffic.duplicate_share)
    delay_us = _ms(_delays_s(draw, len(again))) * 1000
    later = pc.add(again["ingested_at"], pa.array(delay_us, pa.duration("us")))
    return pa.concat_tables([events, again.set_column(again.column_names.index("ingested_at"), "ingested_at", later)])


def _sizes(draw: np.random.Generator, count: int) -> Integers:
    """Draw how many events sessions have, for so many in all; the last session takes what is left."""
    drawn = 1 + SIZE_SCALE * draw.pareto(SIZE_TAIL, count)
    ends = np.minimum(drawn, MOST_EVENTS_PER_SESSION).astype(np.int64).cumsum()
    sizes: Integers = np.diff(np.minimum(ends[: np.searchsorted(ends, count) + 1], count), prepend=0)
    return sizes


def _users(draw: np.random.Generator, count: int, users: int) -> Integers:
    """Draw users by a power law: the r-th has sessions in proportion to (r + r0) ** (1 / USER_TAIL - 1)."""
    place = (USER_HEAD + (1 - USER_HEAD) * draw.random(count)) ** USER_TAIL
    return np.floor((place - USER_HEAD**USER_TAIL) / (1 - USER_HEAD**USER_TAIL) * users).astype(np.int64)


def _starts(draw: np.random.Generator, count: int) -> Integers:
    """Draw milliseconds within a day, most of them in the evening, by a density that is one over a cosine."""
    even = draw.random(count)
    swing = DAILY_SWING * np.sin(2 * np.pi * (even - BUSIEST_HOUR / 24)) / (2 * np.pi)
    return np.floor((even - swing) % 1 * DAY_US / 1000).astype(np.int64)


def _elapsed(draw: np.random.Generator, position: Integers, session: Integers) -> Integers:
    """Draw milliseconds since a session's first event, adding up pauses.

    These are whole seconds, so that events at one instant and pauses of exactly the limit do occur.
    """
    pause = np.rint(draw.lognormal(np.log(MEDIAN_PAUSE_S), PAUSE_SIGMA, len(position))).astype(np.int64)
    elapsed: Integers = pause.cumsum()
    since_first: Integers = elapsed - elapsed[position == 0][session]
    return since_first * 1000


def _delays_s(draw: np.random.Generator, count: int) -> Floats:
    return np.minimum(draw.exponential(MEAN_DELAY_S, count), MAXIMUM_DELAY_S)


def _ms(seconds: Floats) -> Integers:
    return np.ceil(seconds * 1000).astype(np.int64)


def _choose(draw: np.random.Generator, count: int, weights: Sequence[float]) -> Integers:
    """Draw places in a list by their weights, which add up to 1."""
    return np.searchsorted(np.cumsum(weights)[:-1], draw.random(count), side="right").astype(np.int64)


def _is(name: Integers, *event_names: str) -> npt.NDArray[np.bool_]:
    return np.isin(name, [EVENT_NAMES.index(event_name) for event_name in event_names])


def _event_ids(day: int, occurred_at: Integers) -> pa.Array:
    """Make ids of a day and a number within it, in the order of time, with as many digits for all."""
    number = np.empty_like(occurred_at)
    number[occurred_at.argsort(kind="stable")] = np.arange(len(occurred_at))
    digits = pa.array(10**12 + day * 10**9 + number).cast(pa.string())
    return pc.utf8_slice_codeunits(digits, 1)


def _coded(
    codes: Integers, values: Sequence[str | None], where: npt.NDArray[np.bool_] | None = None
) -> pa.DictionaryArray:
    """Return texts by their place in a list; null where the list has none, or not `where`."""
    place_of_text = {text: place for place, text in enumerate(dict.fromkeys(filter(None, values)))}
    place = np.array([place_of_text.get(text or "", -1) for text in values], np.int32)[codes]
    absent = place < 0 if where is None else (place < 0) | ~where
    return pa.DictionaryArray.from_arrays(pa.array(place, mask=absent), pa.array([*place_of_text], pa.string()))


def _write_by_day(
    folder: Path, traffic: Traffic, column: str, make: Callable[[int], pa.Table], threads: int
) -> list[Path]:
    """Write one file for each day of a time; what lies after the day that made it waits for its own day."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting: dict[int, list[pa.Table]] = defaultdict(list)
    files = []
    for day, made in enumerate(_side_by_side(make, traffic.days, threads)):
        number = made[column].cast(pa.int64()).to_numpy() // DAY_US
        for found in np.unique(number):
            waiting[int(found)].append(made.filter(number == found))
        done = (traffic.first_day - EPOCH).days + day
        last = day == traffic.days - 1
        for ready in sorted(number for number in waiting if number <= done or last):
            files.append(_write_day(folder, ready, column, waiting.pop(ready)))
    return files


def _write_day(folder: Path, number: int, column: str, parts: list[pa.Table]) -> Path:
    rows = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    order = rows[column].cast(pa.int64()).to_numpy().argsort(kind="stable")
    day = datetime.fromtimestamp(number * 86_400, UTC).date()
    file = folder / f"{day}.parquet"
    texts = [field.name for field in rows.schema if pa.types.is_dictionary(field.type)]
    # Without Arrow's own schema: it would make readers take texts for categories.
    pq.write_table(rows.take(order), file, ROWS_PER_GROUP, use_dictionary=texts, compression="zstd", store_schema=False)
    return file


def _side_by_side(make: Callable[[int], pa.Table], days: int, threads: int) -> Iterator[pa.Table]:
    """Make days in threads, in order, never more than a few ahead of the reader."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[pa.Table]] = deque()
        for day in range(days):
            ahead.append(pool.submit(make, day))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
