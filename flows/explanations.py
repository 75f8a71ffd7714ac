"""What is wrong in a habitus.toml, in words: which key, and what it may be."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from features.labels import COLUMNS, LABEL_KIND, ChurnSettings
from models.rules import RuleSettings, RulesSettings
from publish.destinations import KINDS

SHOWN_MAX = 60
"""How much is shown of a value that is wrong."""
UNITS_S = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86_400}
UNITS_S |= {"day": 86_400, "w": 7 * 86_400, "week": 7 * 86_400}
MAY_BE = {
    "greater_than": "it must be more than {gt:,}",
    "greater_than_equal": "it must be at least {ge:,}",
    "less_than": "it must be less than {lt:,}",
    "less_than_equal": "it must be at most {le:,}",
    "finite_number": "it must be a finite number",
    "float_type": "it must be a number",
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "bool_type": "it must be true or false",
    "string_type": "it must be a text, in quotes",
    "list_type": "it must be a list, in [ and ]",
    "dict_type": "it must be a section",
    "literal_error": "it must be {expected}",
    "too_short": "it must not be empty",
    "path_type": "it must be a text, in quotes",
}
"""By pydantic's type of an error: what would be right."""
PATTERNS = {
    "name": "write small letters, digits, - and _, a letter or digit first, such as my-shop",
    "engine.memory_limit": "write a whole number and MB or GB, without a blank, such as 8GB",
}
"""By key: what a text has to look like."""
DURATION = re.compile(r"([0-9.]+)\s*([a-z]*?)s?")


def explain(error: ValidationError, given: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Say what the first mistake is in what is given for a configuration, `root`, and what would be right."""
    # An unknown key explains a missing one (it is often the same, misspelt), our own words explain most.
    rank = {"extra_forbidden": 0, "value_error": 1}
    found = [(_keys_of(one["loc"], given, is_missing=one["type"] == "missing"), one) for one in error.errors()]
    begin, _ = min(found, key=lambda one: rank.get(one[1]["type"], 2))
    # Of a value that may have several forms, the one that it has is wrong deepest within.
    within = [one for one in found if one[0][: len(begin)] == begin]
    location, first = max(within, key=lambda one: (-rank.get(one[1]["type"], 2), len(one[0])))
    key, wrong = ".".join(location), first["input"]
    match first["type"]:
        case "extra_forbidden":
            kind = first["loc"][2] if location[0] == "destinations" else None
            known = _keys_at(KINDS[str(kind)], location[2:-1]) if kind else _keys_at(root, location[:-1])
            return _explain_unknown(location, known)
        case error_type if error_type == LABEL_KIND:
            return _explain_label(location, wrong, first["msg"], root)
        case "model_type" if location[-1] in _keys_at(root, location[:-1]):
            return f"{key}: {_shown(wrong)} is wrong: it is a section, [{key}]"
        case "model_type" if location[0] in ("rules", "labels") and len(location) == 2:
            return _explain_unknown(location, _keys_at(root, location[:-1]))
        case "model_type":
            return f"{key}: {_shown(wrong)} is wrong: it is a section, [{key}]"
        case "union_tag_not_found" | "union_tag_invalid" | "model_attributes_type":
            return _explain_kind(key, wrong)
        case "missing":
            return f"{key}: is missing"
        case "value_error":
            return (f"{key}: " if key else "") + first["msg"].removeprefix("Value error, ")
        case "int_type" | "float_type" if isinstance(wrong, str):
            return f"{key}: {_shown(wrong)} is wrong: {_as_number(location[-1], wrong)}"
        case "string_pattern_mismatch" if key in PATTERNS:
            return f"{key}: {_shown(wrong)} is wrong: {PATTERNS[key]}"
        case _:
            right = MAY_BE.get(first["type"], first["msg"][0].lower() + first["msg"][1:])
            limits = {
                name: int(limit) if isinstance(limit, float) and limit.is_integer() else limit
                for name, limit in first.get("ctx", {}).items()
            }
            return f"{key}: {_shown(wrong)} is wrong: {right.format(**limits)}"


def find_nul(given: Any, key: str = "") -> str | None:
    """Return the key of the first text with a NUL in it, which no file, column or name has."""
    if isinstance(given, Mapping):
        items = [(f"{key}.{name}" if key else str(name), value) for name, value in given.items()]
        found = [name.replace("\0", "") for name, _ in items if "\0" in name]
        return next(iter(found + [one for name, value in items if (one := find_nul(value, name))]), None)
    if isinstance(given, list):
        return next((one for value in given if (one := find_nul(value, key))), None)
    return key if isinstance(given, str) and "\0" in given else None


def _keys_of(location: tuple[str | int, ...], given: Any, *, is_missing: bool) -> list[str]:
    """Return the keys of a place in what is given: pydantic counts the members of unions and lists as parts, too."""
    keys = []
    for number, part in enumerate(location, start=1):
        if isinstance(given, Mapping) and part in given:
            given = given[part]
            keys.append(str(part))
        elif is_missing and number == len(location):
            keys.append(str(part))
    return keys


def _shown(value: Any) -> str:
    """Write a value as it was read, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = f"{value:x}"
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"


def _as_number(key: str, text: str) -> str:
    """Say how a number is written that was given as text, in the unit that the key names."""
    parts = DURATION.fullmatch(text.strip().lower())
    unit = key.rpartition("_")[2].removesuffix("s") or "s"
    try:
        number = float(parts[1]) if parts else None
        if parts and number is not None and parts[2]:
            number *= UNITS_S[parts[2]] / UNITS_S[unit]
    except (KeyError, ValueError):
        number = None
    return "write a number, without quotes" + ("" if number is None else f": {key} = {number:g}")


def _explain_kind(key: str, given: Any) -> str:
    """Say what is wrong with the section of a destination that does not say of which kind it is."""
    if not isinstance(given, dict):
        return f"{key}: {_shown(given)} is in no destination's section: write it under [destinations.NAME]"
    kind, near = given.get("kind"), ""
    if kind is not None:
        matches = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.5)
        near = f" (did you mean {matches[0]}?)" if matches else ""
    return (
        f"{key}.kind: {'is missing' if kind is None else f'{_shown(kind)} is none'}{near}; there are {', '.join(KINDS)}"
    )


def _explain_unknown(location: list[str], known: list[str]) -> str:
    """Say which keys there are instead of one."""
    near = difflib.get_close_matches(location[-1].lower(), known, n=1, cutoff=0.5)
    right = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{'.'.join(location)}: no such key; {right}"


def _explain_label(location: list[str], given: Any, right: str, root: type[BaseModel]) -> str:
    """Say what is wrong with a section that would be a label, or with a key of [labels] that is none."""
    key = ".".join(location)
    if not isinstance(given, dict):
        return _explain_unknown(location, _keys_at(root, location[:-1]))
    if "kind" in given:
        return f"{key}.kind: {_shown(given['kind'])} is wrong: {right}"
    near = difflib.get_close_matches(location[-1], COLUMNS, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{key}: {meant}a label of its own needs a kind: {right}"


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """List the keys that a section may have."""
    parts = iter(location)
    for part in parts:
        if part not in model.model_fields:  # a section whose name is free
            return list((RuleSettings if model is RulesSettings else ChurnSettings).model_fields)
        annotation: Any = model.model_fields[part].annotation
        if get_origin(annotation) is dict:  # sections whose names are free
            next(parts, None)
        members = [annotation, *getattr(annotation, "__args__", ())]
        models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
