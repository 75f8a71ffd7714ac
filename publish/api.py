"""The live report and the API for tools: a function of the versions' reports, the lake, the keys and a clock.

Every route says which scope it needs (`x-scope` in the OpenAPI document, too); one that does not cannot be made.
"""

import asyncio
import json
import logging
import secrets
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from publish.answers import (
    Change,
    ChangeFeed,
    Health,
    LookUp,
    OneSegment,
    OneUser,
    OneVersion,
    Problem,
    Segments,
    SegmentSummary,
    Users,
    Versions,
)
from publish.caching import NUMBERS, PEOPLE, answer, cache_headers, is_known, tag_of
from publish.catalogue import Catalogue, Loaded, NoVersionError, csv_chunks
from publish.cursors import digest, read_cursor, write_cursor
from publish.guard import HEALTH, PROBLEM, Guard, problem
from publish.kept import BrokenVersionError
from publish.keys import Keys, Scope
from publish.lookups import LakeAwayError, Lookups
from publish.report.reports import Page
from publish.report.settings import USER_ID
from publish.user_page import render_lookup, render_user

logger = logging.getLogger("habitus.serve")

LIMIT, LIMIT_MAX = 50, 1000
"""Of rows in an answer."""
SEARCH_MAX = 200
NO_USER = "there is no such user in this version"
FIELDS_MAX = 10
"""Of a form."""
COMPRESSED_FROM_BYTES = 1_000
CSV = "text/csv; charset=utf-8"
API_VERSION = "1.0"
DESCRIPTION = """\
What a published version says, for tools that ask. All answers are of the latest version, or of an earlier one with
`version`, as long as that is kept. An operation's `x-scope` is the narrowest scope of a key that may use it.

A count is a number or the text "suppressed", where it is too small to be shown or would give away one that is. Lists
are paged: ask again with `cursor` set to `next` until that is null. A cursor stays with its version; where that is gone
the answer is 410, and the list is to be read from its start.
"""


Asked = TypeVar("Asked", bound=BaseModel)


class ScopedRoute(APIRoute):
    """A route that answers keys of its scope and wider ones only."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers, after the key was judged."""
        needed: Scope | Literal["none"] = (self.openapi_extra or {})["x-scope"]
        handle = super().get_route_handler()

        async def judged(request: Request) -> Response:
            if needed != "none" and not request.state.key.may(needed):
                raise HTTPException(403, f"this needs a key of the scope {needed}")
            return await handle(request)

        return judged


class _Anything(StringConvertor):
    """Of a path: all that follows, lines and slashes, too."""

    regex = r"[\s\S]*"


register_url_convertor("anything", _Anything())

Version = Annotated[int | None, Query(ge=1, description="an earlier version that is kept, by its number")]
Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="rows in the answer")]
Cursor = Annotated[str | None, Query(max_length=1000, description="`next` of the answer before")]
Sort = Annotated[str, Query(max_length=200, description="a column of the list; with a - before it, from the last on")]
Search = Annotated[str, Query(max_length=SEARCH_MAX, description="what ids of users have in them, whatever its case")]


class ListQuery(BaseModel):
    """What may be asked of a list. Read at once: a parameter at a time takes FastAPI longer than all the rest."""

    version: Version = None
    limit: Limit = LIMIT
    cursor: Cursor = None
    sort: Sort = ""
    search: Search = ""
    format: Annotated[
        Literal["json", "csv"] | None, Query(description="all users as CSV, or a page as JSON, whatever is accepted")
    ] = None


SEGMENT_ID = {"name": "segment_id", "in": "path", "required": True, "schema": {"type": "string"}}
ERRORS = {
    400: "the request cannot be read",
    401: "no key, or one that is not valid",
    403: "the key's scope is too narrow",
    404: "there is no such thing in this version, or the version is not kept",
    405: "there is no such method here",
    413: "the request is too large",
    422: "something in the request is wrong",
    500: "something went wrong",
    503: "not now; ask again later",
}


def create_app(
    catalogue: Catalogue,
    lookups: Lookups,
    keys: Keys | None,
    draw: Page,
    hosts: Collection[str] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> FastAPI:
    """Return the application. Without `keys` everyone sees all, and only under the names of `hosts`.

    `draw` makes the pages that differ from the one in the version's folder, for keys that may see less or more.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await catalogue.latest()
        except NoVersionError as error:
            logger.warning("%s", error)
        except BrokenVersionError:
            pass  # is logged where it is found
        yield

    app = FastAPI(
        title="Habitus",
        version=API_VERSION,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.router.route_class = ScopedRoute
    _answer_errors(app)
    _add_lists(app, catalogue, lookups)  # first, as they are looked for in this order
    _add_numbers(app, catalogue)
    _add_users(app, catalogue, lookups)
    _add_pages(app, catalogue, lookups, draw)
    app.add_middleware(GZipMiddleware, minimum_size=COMPRESSED_FROM_BYTES, compresslevel=1)
    app.add_middleware(Guard, keys=keys, hosts=hosts, clock=clock)
    return app


# --- numbers ---


def _add_numbers(app: FastAPI, catalogue: Catalogue) -> None:
    @app.get(HEALTH, response_model=Health, openapi_extra={"x-scope": "none"}, responses=_errors(405, 500))
    async def health() -> Health:
        """Say that the server answers; the only route that needs no key."""
        return Health()

    @app.get("/openapi.json", include_in_schema=False, openapi_extra={"x-scope": "aggregate"})
    async def openapi(request: Request) -> Response:
        """Return the description of this API."""
        return answer(request, _openapi(app), NUMBERS)

    @app.get("/segments", response_model=Segments, **_needs("aggregate"))
    async def segments(request: Request, version: Version = None) -> Response:
        """List the segments of a version: the discovered ones, then the named ones, the largest first."""
        loaded = await _version(catalogue, version)
        report = loaded.report_for(_is_personal(request))
        names = SegmentSummary.model_fields
        found = Segments(
            version=report.version,
            as_of=report.as_of,
            k=report.k,
            segments=[SegmentSummary(**{name: getattr(one, name) for name in names}) for one in report.segments],
        )
        return answer(request, found, NUMBERS, loaded)

    @app.get("/segments/{segment_id}", response_model=OneSegment, **_needs("aggregate"))
    async def segment(request: Request, segment_id: str, version: Version = None) -> Response:
        """Return all that the report says of a segment; its top users for keys that may see lists."""
        loaded = await _version(catalogue, version)
        found = loaded.segment(segment_id, _is_personal(request))
        if found is None:
            raise HTTPException(404, "there is no such segment in this version")
        sees_lists = request.state.key.may("lists")
        shown = found if sees_lists else found.model_copy(update={"top_users": []})
        whole = OneSegment(version=loaded.version, as_of=loaded.report.as_of, segment=shown)
        return answer(request, whole, PEOPLE if sees_lists else NUMBERS, loaded)

    @app.get("/versions", response_model=Versions, **_needs("aggregate"))
    async def versions(request: Request) -> Response:
        """List the versions that are kept, and which of them are broken."""
        try:
            latest = (await catalogue.latest()).name
        except (BrokenVersionError, NoVersionError):
            latest = None
        found, broken = await asyncio.to_thread(catalogue.manifests)
        if not found and not broken:
            raise NoVersionError("no version has a report yet", is_none=True)
        kept = [
            OneVersion(version=said["version"], as_of=said["as_of"], latest=name == latest)
            for name, said in found.items()
        ]
        return answer(request, Versions(versions=kept, broken=broken), NUMBERS)


# --- lists ---


def _add_lists(app: FastAPI, catalogue: Catalogue, lookups: Lookups) -> None:
    csv_too: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}

    @app.get(
        "/segments/{segment_id}/users",
        response_model=Users,
        **_needs("lists", {**csv_too, **_errors(410)}, {"parameters": [SEGMENT_ID, *_parameters(ListQuery)]}),
    )
    async def users(request: Request) -> Response:
        """List the users of a segment that may be known; as CSV all of them, whatever the limit."""
        segment_id: str = request.path_params["segment_id"]
        asked = _read_query(ListQuery, request)
        if asked.format == "csv" or (asked.format is None and _prefers_csv(request)):
            return await _csv(request, await _version(catalogue, asked.version), segment_id, asked.sort, asked.search)
        is_personal = _is_personal(request)
        of_list = digest(segment_id, asked.sort, asked.search, is_personal)
        if asked.cursor is None:
            loaded, offset = await _version(catalogue, asked.version), 0
        else:
            name, offset = read_cursor(asked.cursor, of_list, str)
            loaded = await _of_cursor(catalogue, name)
        order = await _order(loaded, segment_id, asked.sort, asked.search, is_personal)
        following = offset + asked.limit
        items = loaded.view(is_personal).rows.take(pa.array(order[offset:following])).to_pylist()
        head = {
            "version": loaded.version,
            "segment_id": segment_id,
            "users": len(order),
            "next": write_cursor(of_list, loaded.name, following) if following < len(order) else None,
        }
        body = f'{json.dumps(head)[:-1]}, "items": [{",".join(items)}]}}'
        return answer(request, body.encode(), PEOPLE, loaded)

    @app.get("/segments/{segment_id}/users.csv", response_class=_CsvResponse, **_needs("lists"))
    async def users_as_csv(
        request: Request, segment_id: str, version: Version = None, sort: Sort = "", search: Search = ""
    ) -> Response:
        """List all users of a segment that may be known, as CSV."""
        return await _csv(request, await _version(catalogue, version), segment_id, sort, search)

    @app.get("/manifest", response_model=dict[str, Any], **_needs("lists"))
    async def manifest(request: Request, version: Version = None) -> Response:
        """Return what a version says of itself: exact counts, which keys for numbers only may not see, and files."""
        loaded = await _version(catalogue, version)
        found = await asyncio.to_thread(catalogue.published_manifest, loaded.version)
        if found is None:
            raise HTTPException(404, "the files of this version are not kept")
        return answer(request, json.dumps(found, ensure_ascii=False).encode(), PEOPLE)

    @app.get("/changes", response_model=ChangeFeed, **_needs("lists", _errors(410)))
    async def changes(
        request: Request,
        since: Annotated[int, Query(ge=0, le=2**31, description="the version that you have; 0: none")] = 0,
        limit: Limit = LIMIT,
        cursor: Cursor = None,
    ) -> Response:
        """Tell who entered and left which segment after a version, in order: replayed, they give the latest one."""
        loaded = await _version(catalogue, None)
        _see_ids(request, loaded)
        asked, until, offset, known = digest("changes", since), loaded.version, 0, None
        if cursor is not None:
            (until, known), offset = read_cursor(cursor, asked, list)
            if not since <= until <= loaded.version:
                raise HTTPException(410, "the version of this cursor is gone; read the changes from the start")
        items, count = await asyncio.to_thread(lookups.changes, since, until, limit, offset)
        if known is not None and known != count:  # an erasure
            raise HTTPException(410, "the changes are no longer the same; read them from the start")
        following = offset + limit
        found = ChangeFeed(
            since=since,
            until=until,
            changes=count,
            next=write_cursor(asked, [until, count], following) if following < count else None,
            items=[Change(**item) for item in items],
        )
        return answer(request, found, PEOPLE, loaded)


# --- users ---


def _add_users(app: FastAPI, catalogue: Catalogue, lookups: Lookups) -> None:
    async def one_user(request: Request, user_id: str, version: int | None) -> Response:
        loaded = await _version(catalogue, version)
        row, is_theirs, sessions = await _user(request, loaded, lookups, user_id)
        head = json.dumps({"version": loaded.version, "as_of": loaded.report.as_of.isoformat()})[:-1]
        text = json.dumps(sessions, default=datetime.isoformat, ensure_ascii=False)
        user = loaded.view(_is_personal(request)).rows[row].as_py()
        found = answer(request, f'{head}, "user": {user}, "sessions": {text}}}'.encode(), PEOPLE, loaded)
        if not is_theirs:
            raise HTTPException(404, NO_USER)
        return found

    @app.post("/users/lookup", response_model=OneUser, **_needs("lists"))
    async def look_up(request: Request, asked: LookUp) -> Response:
        """Look up a user whose id is in the body, so that no log of addresses has it."""
        return await one_user(request, asked.user_id, asked.version)

    @app.get("/users/{user_id:anything}", response_model=OneUser, **_needs("lists"))
    async def user(request: Request, user_id: str, version: Version = None) -> Response:
        """Look up a user whose id, percent-encoded, is all that follows /users/."""
        return await one_user(request, user_id, version)


async def _user(
    request: Request, loaded: Loaded, lookups: Lookups, user_id: str
) -> tuple[int, bool, list[dict[str, Any]] | None]:
    """Return a user's row, whether it is theirs, and the sessions where the key may see them.

    The row of an unknown user is another's, of whom all is asked and written, and then thrown away: the time until the
    answer does not tell who is known.
    """
    _see_ids(request, loaded)
    found = loaded.find(user_id)
    if found is None:
        raise HTTPException(404, NO_USER)
    row, is_theirs = found
    if not _is_personal(request):
        return row, is_theirs, None
    whose = loaded.everything.table[USER_ID][row].as_py()
    return row, is_theirs, await asyncio.to_thread(lookups.sessions, whose, loaded.report.as_of)


# --- pages ---


def _add_pages(app: FastAPI, catalogue: Catalogue, lookups: Lookups, draw: Page) -> None:
    async def page(request: Request, version: int | None) -> Response:
        loaded = await _version(catalogue, version)
        scope: Scope = request.state.key.scope
        known = loaded.known_page(scope)
        found, policy = known if known else await asyncio.to_thread(loaded.page_for, scope, draw)
        caching = PEOPLE if request.state.key.may("lists") else NUMBERS
        return answer(request, found, caching, loaded, "text/html; charset=utf-8", f"{policy}; frame-ancestors 'none'")

    @app.get("/", response_class=HTMLResponse, **_needs("aggregate"))
    async def home(request: Request) -> Response:
        """Show the report of the latest version."""
        return await page(request, None)

    @app.get("/report", response_class=HTMLResponse, **_needs("aggregate"))
    async def report(request: Request, version: Version = None) -> Response:
        """Show the report of the latest version, or of one that is kept."""
        return await page(request, version)

    @app.get("/report/{version}", response_class=HTMLResponse, **_needs("aggregate"))
    async def earlier_report(request: Request, version: int) -> Response:
        """Show the report of a version that is kept."""
        return await page(request, version)

    @app.get("/user", response_class=HTMLResponse, **_needs("lists"))
    async def look_up_page(request: Request) -> Response:
        """Show a form to look up a user with."""
        return _page(request, lambda nonce: render_lookup(nonce, None), 200)

    form = {"schema": {"type": "object", "properties": {"user_id": {"type": "string"}}, "required": ["user_id"]}}
    not_found: dict[int | str, dict[str, Any]] = {404: {"content": {"text/html": {"schema": {"type": "string"}}}}}
    body = {"requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": form}}}

    @app.post("/user", response_class=HTMLResponse, **_needs("lists", not_found, body))
    async def user_page(request: Request) -> Response:
        """Show the page of a user: why this segment, why these scores, and the sessions; the id is in the body."""
        given = (await request.body()).decode("utf-8", "replace")
        try:
            user_id = urllib.parse.parse_qs(given, max_num_fields=FIELDS_MAX).get("user_id", [""])[0]
        except ValueError as error:
            raise HTTPException(422, f"there are more than {FIELDS_MAX} fields") from error
        if not user_id:
            raise HTTPException(422, "user_id: is missing")
        loaded = await _version(catalogue, None)
        try:
            row, is_theirs, sessions = await _user(request, loaded, lookups, user_id)
        except HTTPException as error:
            if error.status_code != 404:
                raise
            return _page(request, lambda nonce: render_lookup(nonce, user_id), 404)
        is_personal = _is_personal(request)
        [user] = loaded.view(is_personal).table.slice(row, 1).to_pylist()
        report = loaded.report_for(is_personal)
        found = _page(request, lambda nonce: render_user(nonce, report, user, sessions), 200)
        missing = _page(request, lambda nonce: render_lookup(nonce, user_id), 404)
        return found if is_theirs else missing


def _page(request: Request, render: Callable[[str], str], status: int) -> Response:
    """Return a page whose only style is its own, and in which nothing runs."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    # With no-referrer a browser would not say of the form that it is ours.
    headers = {"content-security-policy": policy, "cache-control": PEOPLE, "referrer-policy": "same-origin"}
    return HTMLResponse(render(nonce), status, headers)


# --- what all have in common ---


def _parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    """Return how OpenAPI describes the parameters of a query."""
    properties = query.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]


def _read_query(query: type[Asked], request: Request) -> Asked:
    """Read the parameters of a query. Raises RequestValidationError."""
    try:
        return query.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise RequestValidationError([one | {"loc": ("query", *one["loc"])} for one in error.errors()]) from error


def _needs(
    scope: Scope, responses: dict[int | str, dict[str, Any]] | None = None, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return what makes a route of a scope: the answers that any may have, and those of its own."""
    answers = _errors(*ERRORS)
    for status, own in (responses or {}).items():
        content = {**answers.get(status, {}).get("content", {}), **own["content"]}
        answers[status] = {**answers.get(status, {}), **own, "content": content}
    return {"openapi_extra": {"x-scope": scope, **(extra or {})}, "responses": answers}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    told = {**ERRORS, 410: "what the cursor was of is gone; read the list from its start"}
    return {status: {"description": told[status], "content": content} for status in statuses}


def _is_personal(request: Request) -> bool:
    return bool(request.state.key.may("personal"))


def _see_ids(request: Request, loaded: Loaded) -> None:
    """Refuse keys that may not see ids, where these are personal."""
    if loaded.report.user_ids_personal and not _is_personal(request):
        raise HTTPException(403, "ids of users are personal here: this needs a key of the scope personal")


async def _version(catalogue: Catalogue, number: int | None) -> Loaded:
    return await (catalogue.latest() if number is None else catalogue.version(number))


async def _of_cursor(catalogue: Catalogue, name: str) -> Loaded:
    try:
        return await catalogue.named(name)
    except NoVersionError as error:
        raise HTTPException(410, "the version of this cursor is gone; read the list from its start") from error


async def _order(loaded: Loaded, segment_id: str, sort: str, search: str, is_personal: bool) -> Any:
    """Return the order of a list; in a thread where it has to be made."""
    if segment_id not in loaded.positions:
        raise HTTPException(404, "there is no such segment in this version")
    view = loaded.view(is_personal)
    by, descending = (sort.removeprefix("-"), sort.startswith("-")) if sort else (USER_ID, False)
    if by not in view.sortable and not (by == USER_ID and not sort):
        raise HTTPException(422, f"sort: there is no such column; there are {', '.join(view.sortable)}")
    asked = (segment_id, by, descending, search, is_personal)
    known = loaded.known_order(*asked)
    return known if known is not None else await asyncio.to_thread(loaded.order, *asked)


async def _csv(request: Request, loaded: Loaded, segment_id: str, sort: str, search: str) -> Response:
    is_personal = _is_personal(request)
    order = await _order(loaded, segment_id, sort, search, is_personal)
    tag = tag_of(f"{loaded.name} csv {digest(segment_id, sort, search, is_personal)}".encode())
    name = f"{loaded.report.source}-{segment_id}-v{loaded.version}.csv"
    quoted = urllib.parse.quote(name, safe="")
    headers = cache_headers(tag, PEOPLE) | {"content-disposition": f"attachment; filename*=UTF-8''{quoted}"}
    if is_known(request, tag):
        return Response(status_code=304, headers=headers)
    return StreamingResponse(csv_chunks(loaded.view(is_personal).table, order), headers=headers, media_type=CSV)


def _prefers_csv(request: Request) -> bool:
    accepted = [one.partition(";")[0].strip().lower() for one in request.headers.get("accept", "").split(",")]
    return "text/csv" in accepted and "application/json" not in accepted[: accepted.index("text/csv")]


def _answer_errors(app: FastAPI) -> None:
    def handle(kind: type[Exception], explain: Callable[[Any], Response]) -> None:
        async def handler(_: Request, error: Exception) -> Response:
            return explain(error)

        app.add_exception_handler(kind, handler)

    def http(error: HTTPException) -> Response:
        is_own = error.detail != HTTPStatus(error.status_code).phrase
        words = error.detail if is_own else {404: "there is nothing here"}.get(error.status_code, str(error.detail))
        return problem(error.status_code, str(words), error.headers)

    def invalid(error: RequestValidationError) -> Response:
        wrong = [{"where": ".".join(map(str, one["loc"])), "reason": one["msg"]} for one in error.errors()]
        return problem(422, "; ".join(f"{one['where']}: {one['reason']}" for one in wrong), errors=wrong)

    later = {"retry-after": "5"}
    handle(HTTPException, http)
    handle(RequestValidationError, invalid)
    handle(
        NoVersionError, lambda error: problem(503 if error.is_none else 404, str(error), later if error.is_none else {})
    )
    handle(
        BrokenVersionError,
        lambda error: problem(503, f"the version {error.name} cannot be read now; /versions says which can", later),
    )
    handle(LakeAwayError, lambda error: _logged(error, problem(503, "this cannot be looked up now", later)))


def _logged(error: Exception, answer: Response) -> Response:
    logger.error("%s", error)
    return answer


class _CsvResponse(Response):
    media_type = CSV


def _openapi(app: FastAPI) -> bytes:
    """Return the OpenAPI document: every operation says its scope, how to sign in, and its errors."""
    return json.dumps(openapi_of(app), ensure_ascii=False).encode()


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = found.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "a key that `habitus keys create` showed"},
        "browser": {"type": "http", "scheme": "basic", "description": "any name, and a key as the password"},
    }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path == HEALTH else [{"key": []}, {"browser": []}]
    return found
