"""The versions' reports in memory, as the API answers from them. A folder is never changed, only added or removed.

So a version is loaded once, beside the answers from the one before, and one that is removed is gone with the next
question: whoever was erased from it is not answered from memory.
"""

import asyncio
import io
import logging
import re
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import engines
from features.snapshots import title
from publish.assignments import as_json
from publish.destinations.files import LIST_SEPARATOR
from publish.destinations.folders import MANIFEST, VERSION
from publish.formulas import escape_array
from publish.kept import BrokenVersionError, Kept, latest_in, read_manifest
from publish.keys import Scope
from publish.report.content import Report, Segment
from publish.report.reports import CONTENT, PAGE, USERS, Page, without_users
from publish.report.settings import USER_ID, ReportSettings

logger = logging.getLogger("habitus.serve")

LOADED_MAX = 3
"""Versions that are kept in memory, the latest among them."""
ORDERS_MAX = 64
"""Of a version: lists, sorted and searched, whose order is kept."""
ROWS_AT_ONCE = 5_000
RETRY_AFTER_S = 5
"""For a version that could not be read."""
USER_NUMBER = "user_number"
PERSONAL_ATTRIBUTE = "attribute_"
LOOK_UP = b'<ul><li><a href="/user">Look up a user</a></li></ul>'
"""What the page has beside the file's: the file knows no server."""
SCRIPT_POLICY = "content-security-policy"

Order = NDArray[np.int64]
"""Positions of rows, in the order of a list."""


class NoVersionError(Exception):
    """Say that there is no such version, or that there is none at all."""

    def __init__(self, words: str, *, is_none: bool = False) -> None:
        super().__init__(words)
        self.is_none = is_none


@dataclass(frozen=True)
class View:
    """The users of a version as some may see them: a table, and each row of it as JSON."""

    table: pa.Table
    rows: pa.Array

    @cached_property
    def sortable(self) -> list[str]:
        """List the columns that a list can be sorted by."""
        return [field.name for field in self.table.schema if not pa.types.is_list(field.type)]


@dataclass(frozen=True)
class Loaded:
    """A version: its folder's name, what its report says, its page, and its users by who may see them.

    `page` is that of the file: without what is personal.
    """

    name: str
    report: Report
    report_unpersonal: Report
    page: bytes
    everything: View
    unpersonal: View
    positions: dict[str, Order]
    _orders: "OrderedDict[tuple[str, str, bool, str, bool], Order]" = field(default_factory=OrderedDict)
    _sorting: threading.Lock = field(default_factory=threading.Lock)
    _pages: dict[Scope, tuple[bytes, str]] = field(default_factory=dict)
    _drawing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> int:
        """Return the version's number."""
        return self.report.version

    def view(self, personal: bool) -> View:
        """Return the users with what is personal, or without."""
        return self.everything if personal else self.unpersonal

    def report_for(self, personal: bool) -> Report:
        """Return the report with what is personal, or without."""
        return self.report if personal else self.report_unpersonal

    def segment(self, segment_id: str, personal: bool) -> Segment | None:
        """Return a segment of the report."""
        return self.report_for(personal).segment(segment_id)

    def known_page(self, scope: Scope) -> tuple[bytes, str] | None:
        """Return the page for keys of a scope, if it was asked for before, and the policy that it carries."""
        return self._pages.get(scope)

    def page_for(self, scope: Scope, draw: Page) -> tuple[bytes, str]:
        """Return the page for keys of a scope, and the Content-Security-Policy that it carries; this may take seconds.

        For numbers only it names nobody, and for those who may see all it leaves out nothing.
        """
        with self._drawing:
            if scope not in self._pages:
                page = self._draw(scope, draw)
                linked = page if scope == "aggregate" else page.replace(b"</nav>", LOOK_UP + b"</nav>", 1)
                self._pages[scope] = linked, _policy_of(page)
            return self._pages[scope]

    def _draw(self, scope: Scope, draw: Page) -> bytes:
        personal = [one.name for one in self.report.attributes if one.personal]
        personal += [USER_ID] * self.report.user_ids_personal
        settings = ReportSettings(k=self.report.k, personal=personal)
        if scope == "aggregate":
            return draw(without_users(self.report_unpersonal), None, settings).encode()
        if scope == "personal" and personal:
            return draw(self.report, self.everything.table, settings.model_copy(update={"personal": []})).encode()
        return self.page

    def known_order(self, segment_id: str, by: str, descending: bool, search: str, personal: bool) -> Order | None:
        """Return the order of a list, if it was asked for before."""
        key = (segment_id, by, descending, search, personal)
        with self._sorting:
            if key in self._orders:
                self._orders.move_to_end(key)
                return self._orders[key]
        return None

    def order(self, segment_id: str, by: str, descending: bool, search: str, personal: bool) -> Order:
        """Return the rows of a segment's users whose id holds a text, whatever its case, by a column, then by user.

        Nulls come last in both directions.
        """
        found = self.known_order(segment_id, by, descending, search, personal)
        if found is not None:
            return found
        table = self.view(personal).table
        found = self.positions[segment_id]
        if search:
            names = USER_ID if USER_ID in table.column_names else USER_NUMBER
            texts = pc.cast(table[names].take(pa.array(found)), pa.string())
            found = found[pc.match_substring(texts, search, ignore_case=True).to_numpy(zero_copy_only=False)]
        if by != USER_ID:  # rows are in its order
            keys = table.select([by]).take(pa.array(found)).append_column("position", pa.array(found))
            direction = "descending" if descending else "ascending"
            sorted_by = [(by, direction), ("position", "ascending")]
            found = found[pc.sort_indices(keys, sorted_by).to_numpy()]
        elif descending:
            found = found[::-1]
        with self._sorting:
            self._orders[segment_id, by, descending, search, personal] = found
            while len(self._orders) > ORDERS_MAX:
                self._orders.popitem(last=False)
        return found

    def find(self, user_id: str) -> tuple[int, bool] | None:
        """Return the row of a user, and that it is theirs; of an unknown one the next in order, who stands in.

        It takes as many steps for one as for the other. None where there are no users at all.
        """
        ids = self.everything.table[USER_ID]
        if not len(ids):
            return None
        asked = user_id.encode("utf-8", "surrogatepass")
        at = bisect_left(range(len(ids)), asked, key=lambda row: ids[row].as_py().encode())
        row = min(at, len(ids) - 1)
        return row, ids[row].as_py().encode() == asked


def csv_chunks(table: pa.Table, order: Order) -> Iterator[bytes]:
    """Write rows as published CSV files are: UTF-8, lists joined, formulas escaped, null empty, an empty text ""."""
    columns = [_csv_column(table, name) for name in table.column_names]
    text = pa.table(columns, names=table.column_names)
    for first in range(0, max(len(order), 1), ROWS_AT_ONCE):
        rows = text.take(pa.array(order[first : first + ROWS_AT_ONCE]))
        out = io.BytesIO()
        options = pyarrow.csv.WriteOptions(include_header=first == 0)
        pyarrow.csv.write_csv(rows, out, options)
        yield out.getvalue()


def _csv_column(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table[name]
    if name == "segment_strengths":
        return as_json(column)
    if pa.types.is_list(column.type):
        return escape_array(pc.binary_join(column, LIST_SEPARATOR))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return escape_array(column)
    if pa.types.is_timestamp(column.type):
        return pc.replace_substring(pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ"), ".000000Z", "Z")
    return column


class Catalogue:
    """Hold the versions of a folder of reports that are asked for, and the latest one.

    Of what is `personal` now, a report that was made before may say something to everybody: it is not read.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.monotonic, personal: Collection[str] = ()
    ) -> None:
        self.folder = folder
        self._personal = personal
        self._clock = clock
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._failed: dict[str, tuple[float, BrokenVersionError]] = {}
        self._kept, self._published = Kept(folder), Kept(folder.parent)
        self._latest: Loaded | None = None

    def mark_personal(self, personal: Collection[str]) -> None:
        """Have something be personal from now on: what shows it to everybody is let go."""
        self._personal = personal
        for name, loaded in [*self._loaded.items()]:
            if _shown_of(personal, loaded.report):
                del self._loaded[name]
        if self._latest is not None and self._latest.name not in self._loaded:
            self._latest = None
        self._failed.clear()

    async def latest(self) -> Loaded:
        """Return the latest version; while it is loaded, or where it cannot be, the one before, if that is there.

        Raises NoVersionError before the first, and BrokenVersionError where the latest cannot be read.
        """
        name = latest_in(self.folder)
        if name is None or not self._is_there(name):
            words = "no version has a report yet" if name is None else "the latest version is not there"
            raise NoVersionError(words, is_none=True)
        before = self._latest
        if before is not None and before.name == name:
            return before
        if name in self._loaded:
            self._latest = self._loaded[name]
            return self._latest
        if before is not None and self._is_there(before.name):
            self._load(name)
            return before
        self._latest = await self._wait_for(name)
        return self._latest

    async def version(self, number: int) -> Loaded:
        """Return a version that is kept, by its number; raises NoVersionError and BrokenVersionError."""
        found, _ = await asyncio.to_thread(self.manifests)
        name = next((name for name, said in found.items() if said["version"] == number), None)
        if name is None:
            raise NoVersionError("this version is not kept")
        return await self.named(name)

    async def named(self, name: str) -> Loaded:
        """Return a version that is kept, by its folder; raises NoVersionError and BrokenVersionError."""
        if not VERSION.fullmatch(name) or not self._is_there(name):
            raise NoVersionError("this version is not kept")
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        return await self._wait_for(name)

    def manifests(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return what whole versions say of themselves, by folder, the latest first, and the folders of broken ones."""
        return self._kept.read()

    def published_manifest(self, number: int) -> dict[str, Any] | None:
        """Return the manifest of the published files of a version, None where these are not kept, or broken."""
        found, _ = self._published.read()
        # Later formats of one version are another folder: the latest one is preferred.
        latest = latest_in(self.folder.parent)
        names = sorted(found, key=lambda name: (name != latest, name))
        return next((found[name] for name in names if found[name]["version"] == number), None)

    def _is_there(self, name: str) -> bool:
        return (self.folder / name / MANIFEST).exists()

    async def _wait_for(self, name: str) -> Loaded:
        loading = self._load(name)
        if loading is None:
            raise self._failed[name][1]
        return await asyncio.shield(loading)

    def _load(self, name: str) -> "asyncio.Task[Loaded] | None":
        """Load a version in a thread, once however many ask; None where that failed a moment ago."""
        if name in self._failed and self._clock() - self._failed[name][0] < RETRY_AFTER_S:
            return None
        if name not in self._loading:
            self._loading[name] = asyncio.create_task(self._keep(name))
            self._loading[name].add_done_callback(lambda task: task.cancelled() or task.exception())  # is told below
        return self._loading[name]

    async def _keep(self, name: str) -> Loaded:
        try:
            loaded = await asyncio.to_thread(load, self.folder / name)
            _refuse_personal(loaded, self._personal)
        except BrokenVersionError as error:
            self._failed[name] = (self._clock(), error)
            logger.error("%s", error)
            raise
        finally:
            del self._loading[name]
        if not self._is_there(name):
            raise NoVersionError("this version is not kept")
        self._loaded[name] = loaded
        for other in [*self._loaded]:
            if not self._is_there(other) or (len(self._loaded) > LOADED_MAX and other != latest_in(self.folder)):
                del self._loaded[other]
        return loaded


def load(folder: Path) -> Loaded:
    """Read a version. Raises BrokenVersionError where a file is missing, or not what was written."""
    number = read_manifest(folder)["version"]
    reading = CONTENT
    try:
        report = Report.model_validate_json((folder / CONTENT).read_bytes())
        if number != report.version:
            raise ValueError("the report is of another version than the manifest")
        reading = PAGE
        page = (folder / PAGE).read_bytes()
        _policy_of(page)  # which is asked for again with each page that is drawn
        reading = USERS
        users = pq.read_table(folder / USERS)
        if users[USER_ID].null_count:
            raise ValueError("a user has no id")
        ids = users[USER_ID].cast(pa.string())
        users = users.set_column(users.column_names.index(USER_ID), USER_ID, ids).sort_by(USER_ID)
        views, positions = _views(users, report), _positions(users, report)
    except Exception as error:  # whatever it is, the other versions are answered
        raise BrokenVersionError(folder.name, f"{reading}: {type(error).__name__}") from error
    return Loaded(folder.name, report, report.without_personal(), page, *views, positions)


def _refuse_personal(loaded: Loaded, personal: Collection[str]) -> None:
    if shown := _shown_of(personal, loaded.report):
        reason = f"{', '.join(shown)} became personal since, and it shows that"
        raise BrokenVersionError(loaded.name, reason, "run `habitus report`")


def _shown_of(personal: Collection[str], report: Report) -> list[str]:
    """List what of this a report shows to everybody."""
    shown = {one.name for one in report.attributes if not one.personal}
    return sorted(set(personal) & (shown if report.user_ids_personal else shown | {USER_ID}))


def _views(users: pa.Table, report: Report) -> tuple[View, View]:
    """Return the users with what is personal, and without."""
    engine = engines.connect()
    try:
        engine.raw_sql("SET threads = 1")  # requests are answered beside it
        rows = engine.create_table("users", users.append_column("position", pa.array(range(len(users)), pa.int64())))
        everything = _view(rows)
        personal = [one for one in report.attributes if one.personal]
        if not personal and not report.user_ids_personal:
            return everything, everything
        hidden = [f"{PERSONAL_ATTRIBUTE}{one.name}" for one in personal] + [USER_ID] * report.user_ids_personal
        rows = rows.drop(*(name for name in hidden if name in rows.columns))
        titles = [f"{words}: " for one in personal for words in sorted({one.title, title(one.name)})]
        reasons = {name: _without(rows[name], titles) for name in rows.columns if name.endswith("_reasons")}
        return everything, _view(rows.mutate(**reasons))
    finally:
        engine.disconnect()


def _view(rows: ir.Table) -> View:
    in_order = rows.order_by("position").drop("position")
    as_json = ibis.struct({name: _in_json(in_order[name]) for name in in_order.columns}).cast("json").cast("string")
    texts = in_order.select(row=as_json).to_pyarrow()["row"]
    return View(in_order.to_pyarrow().combine_chunks(), texts.combine_chunks())


def _in_json(column: ir.Column) -> ir.Column:
    if column.type().is_timestamp():
        return column.strftime("%Y-%m-%dT%H:%M:%S.%fZ").replace(".000000Z", "Z")
    if column.type().is_floating():
        return column.isnan().ifelse(ibis.null(column.type()), column)
    return column


def _without(reasons: ir.ArrayColumn, titles: list[str]) -> ir.ArrayColumn:
    """Leave out the reasons that say a personal attribute, which begin with its title."""
    for words in titles:
        reasons = reasons.filter(lambda reason, words=words: ~reason.startswith(words))
    return reasons


def _positions(users: pa.Table, report: Report) -> dict[str, Order]:
    """Return the rows of each segment's users."""
    lists = pc.list_parent_indices(users["rule_segments"].combine_chunks()).to_numpy()
    names = pc.list_flatten(users["rule_segments"].combine_chunks())
    found: dict[str, Order] = {}
    for segment in report.segments:
        own = pc.equal(users["segment_id"], segment.segment_id).fill_null(False).to_numpy()
        among = lists[pc.equal(names, segment.segment_id).fill_null(False).to_numpy(zero_copy_only=False)]
        found[segment.segment_id] = np.union1d(np.flatnonzero(own), among).astype(np.int64)
    return found


class _Policy(HTMLParser):
    """Find the Content-Security-Policy that a page carries."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "meta" and (given.get("http-equiv") or "").lower() == SCRIPT_POLICY and given.get("content"):
            self.found.append(re.sub(r"\s+", " ", str(given["content"])).strip("; "))


def _policy_of(page: bytes) -> str:
    parser = _Policy()
    parser.feed(page[:200_000].decode("utf-8", "replace"))
    if not all(policy.isascii() and policy.isprintable() for policy in parser.found):
        raise ValueError("the policy of the page can be in no header")
    return parser.found[0] if parser.found else "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
