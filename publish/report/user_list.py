"""The users of a version as a page holds them: small, in columns, and sorted and searched where they are read."""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.snapshots import title as feature_title
from publish.destinations.files import LIST_SEPARATOR

DECIMALS = {"share": 3, "rank": 0, "number": 2}
"""As a page shows them: of a share, one of its percent."""
MINUTE_US = 60 * 10**6
FORM_MAX = 100
"""Texts up to this length are looked at for what they have in common."""
SAFE = 2**53
"""Above, a browser's numbers are not exact."""
LEVELS_MAX = 1000
"""Texts of at most so many different values are stored as numbers of these."""
TITLES = {
    "user_id": "User",
    "user_number": "User number",
    "segment_id": "Segment",
    "segment_name": "Segment's name",
    "rule_segments": "Named segments",
    "lifecycle_stage": "Stage",
    "rfm_3": "RFM of 3",
    "rfm_5": "RFM of 5",
    "segment_strength": "Strength",
    "runner_up_segment_id": "Next segment",
    "last_seen_at": "Last seen",
}
WHATS = {"probability": "{} probability", "percentile": "{} rank", "reasons": "{}: why"}


def pack(users: pa.Table, limit_bytes: int) -> tuple[str, bool]:
    """Return users as JSON in columns, and whether values were rounded to keep it below a limit.

    Each column has a name, a title, a kind, and `data`: its values as base64 of gzipped JSON. If they are rounded, then
    as a page shows them: numbers to DECIMALS, times to minutes. The same users give the same text.
    """
    packed = [_packed(name, users[name].combine_chunks()) for name in users.column_names]
    is_rounded = sum(len(column["data"]) for column in packed) > limit_bytes
    if is_rounded:
        packed = [
            _packed(name, users[name].combine_chunks(), is_rounded) if _is_rounded(users[name].type) else column
            for name, column in zip(users.column_names, packed, strict=True)
        ]
    content = {"rows": len(users), "separator": LIST_SEPARATOR, "columns": packed}
    return json.dumps(content, separators=(",", ":")).replace("<", r"\u003c"), is_rounded


def heading(name: str) -> str:
    """Return what people read above a column."""
    label, _, what = name.rpartition("_")
    if name in TITLES:
        return TITLES[name]
    if what in WHATS and label:
        text = WHATS[what].format(label.replace("_", " "))
    else:
        text = feature_title(name.removeprefix("attribute_"))
    return text[:1].upper() + text[1:]


def _is_rounded(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_floating(dtype) or pa.types.is_timestamp(dtype))


def _packed(name: str, values: pa.Array, is_rounded: bool = False) -> dict[str, Any]:
    kind, content = _column(name, values, is_rounded)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
    return {"name": name, "title": heading(name), "kind": kind, "data": data}


def _column(name: str, values: pa.Array, is_rounded: bool) -> tuple[str, dict[str, Any]]:
    """Return a column's kind, and its values, or numbers of `levels` where these are few."""
    dtype = values.type
    if pa.types.is_dictionary(dtype):
        values, dtype = pc.cast(values, dtype.value_type), dtype.value_type
    if pa.types.is_timestamp(dtype):
        instants = pc.cast(pc.cast(values, pa.timestamp("us", dtype.tz)), pa.int64()).to_pylist()
        return "time", _times(instants, is_rounded)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        levels: dict[tuple[str, ...] | None, int] = {}
        codes = [levels.setdefault(None if one is None else tuple(one), len(levels)) for one in values.to_pylist()]
        return "list", {"levels": list(levels), "codes": codes}
    if pa.types.is_boolean(dtype):
        return "boolean", {"values": values.to_pylist()}
    if pa.types.is_integer(dtype) and (pc.max(pc.abs(values)).as_py() or 0) <= SAFE:
        return "number", {"values": values.to_pylist()}
    if pa.types.is_floating(dtype):
        numbers = [None if one is None or not math.isfinite(one) else one for one in values.to_pylist()]
        return _form(name), _numbers(numbers, DECIMALS[_form(name)] if is_rounded else None)
    texts = pc.cast(values, pa.string())
    encoded = pc.dictionary_encode(texts, null_encoding="encode")
    if len(encoded.dictionary) <= min(LEVELS_MAX, len(values) // 2):
        return "text", {"levels": encoded.dictionary.to_pylist(), "codes": encoded.indices.to_pylist()}
    return "text", _alike(texts.to_pylist())


def _times(instants: Sequence[int | None], is_rounded: bool) -> dict[str, Any]:
    """Store instants as numbers of steps from the first: microseconds or seconds, or minutes if they are rounded."""
    known = [at for at in instants if at is not None]
    step_us = MINUTE_US if is_rounded else 1 if any(at % 10**6 for at in known) else 10**6
    start = min(known, default=0) // step_us
    values = [None if at is None else at // step_us - start for at in instants]
    return {"step_us": step_us, "start": start, "values": values}


def _numbers(numbers: Sequence[float | None], decimals: int | None) -> dict[str, Any]:
    """Store numbers as they are, or rounded to so many decimals, as whole numbers of that size."""
    if decimals is not None:
        scale = 10**decimals
        rounded = [None if one is None else round(round(one, decimals) * scale) for one in numbers]
        return {"scale": scale, "values": rounded}
    return {"values": [int(one) if _is_whole(one) else one for one in numbers]}  # type: ignore[arg-type]


def _is_whole(number: float | None) -> bool:
    return number is not None and number.is_integer() and abs(number) <= SAFE


def _alike(texts: Sequence[str | None]) -> dict[str, Any]:
    """Store texts of one length by what differs.

    `form` has the character that stands in a place of all, or null; `rest` has the characters of the others, by place.
    """
    whole = [text for text in texts if text is not None]
    is_alike = len(whole) == len(texts) > 0 and len({len(text) for text in whole}) == 1 and len(whole[0]) <= FORM_MAX
    if not is_alike or not "".join(whole).isascii():
        return {"values": list(texts)}
    places = ["".join(place) for place in zip(*whole, strict=True)]
    form = [place[0] if place == place[0] * len(place) else None for place in places]
    return {"form": form, "rest": "".join(place for place, same in zip(places, form, strict=True) if same is None)}


def _form(name: str) -> str:
    """Say how people read a number: as a share, a rank or a number."""
    if name.endswith(("_probability", "_share", "_rate")):
        return "share"
    return "rank" if name.endswith("_percentile") else "number"
