"""What clients may keep of answers, and the 304 for those that have one already."""

import hashlib

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from publish.catalogue import Loaded

NUMBERS, PEOPLE = "private, no-cache", "private, no-store"
"""What may be kept, and asked for again with its ETag; and what nobody may keep."""


def answer(
    request: Request,
    found: BaseModel | bytes,
    caching: str,
    loaded: Loaded | None = None,
    media_type: str = "application/json",
    policy: str | None = None,
) -> Response:
    """Return an answer with its ETag, or 304 where the tool has it already."""
    body = found if isinstance(found, bytes) else found.model_dump_json().encode()
    tag = tag_of((loaded.name if loaded else "").encode() + body)
    headers = cache_headers(tag, caching) | ({"content-security-policy": policy} if policy else {})
    if is_known(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def cache_headers(tag: str, caching: str) -> dict[str, str]:
    """Return what tells a client how to keep an answer."""
    return {"etag": tag, "cache-control": caching, "vary": "Authorization, Accept"}


def tag_of(content: bytes) -> str:
    """Return the ETag of an answer: a weak one, as it may be compressed."""
    return f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'


def is_known(request: Request, tag: str) -> bool:
    """Tell whether the client has the answer with this ETag."""
    given = request.headers.get("if-none-match", "")
    return given.strip() == "*" or tag.removeprefix("W/") in {
        one.strip().removeprefix("W/") for one in given.split(",")
    }
