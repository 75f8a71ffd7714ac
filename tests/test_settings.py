"""Every setting of every section with every kind of bad value: it loads and is of use, or one line names it."""

import itertools
import json
import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from features.labels import ChurnSettings, ConversionSettings, labels_table, snapshot_dates
from features.limits import DAYS_MAX, END_OF_INSTANTS, FIRST_INSTANT
from flows.configuration import Configuration, ConfigurationError, validate
from flows.snapshot import table_of
from models.conditions import parse
from models.lifecycle import definitions
from models.rules import RuleSettings
from publish.consents import PurposeSettings
from publish.destinations import KINDS

SHOP: dict[str, Any] = {
    "name": "shop",
    "events": {"files": "events.csv", "columns": {"user_id": "user", "occurred_at": "time", "event_name": "event"}},
    "users": {"files": "users.csv", "user_id": "id", "attributes": ["plan"]},
    "labels": {"trial": {"kind": "conversion"}, "quiet": {"kind": "churn"}},
    "rules": {"vip": {"condition": "recency_days < 3"}},
    "publish": {"purposes": []},
    "purposes": {"news": {"granted_by": ["on"]}},
    "destinations": {
        "files": {"kind": "files", "folder": "out", "purposes": []},
        "sql": {"kind": "sql", "url": {"env": "A"}, "purposes": []},
        "webhook": {"kind": "webhook", "url": "https://a.example", "secret": {"env": "A"}, "purposes": []},
        "segment": {"kind": "segment", "write_key": {"env": "A"}, "purposes": []},
        "google_customer_match": {"kind": "google_customer_match", "folder": "google", "purposes": ["news"]},
        "meta_custom_audience": {"kind": "meta_custom_audience", "folder": "meta", "purposes": ["news"]},
    },
}
NAMED: dict[tuple[str, str], type[BaseModel]] = {
    ("labels", "trial"): ConversionSettings,
    ("labels", "quiet"): ChurnSettings,
    ("rules", "vip"): RuleSettings,
    ("purposes", "news"): PurposeSettings,
    **{("destinations", kind): settings for kind, settings in KINDS.items()},
}
NO_NUMBERS = [math.nan, math.inf, -math.inf, 10**30, -(10**30), 1e300, 10**400, True, "1", "45m", [], {}]
OTHERS = [-1, 0, 1e-300, 1, DAYS_MAX, "", " ", "nul \0", "two\nlines", "x" * 2000, False, [1], ["a"], {"a": 1}]


def settings_of(model: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """List the place of each setting and what its type is."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from settings_of(annotation, (*place, name))
        else:
            yield (*place, name), str(annotation)
    if not place:
        for named, section in NAMED.items():
            yield from settings_of(section, named)


SETTINGS = dict(settings_of(Configuration))
NUMBERS = [place for place, annotation in SETTINGS.items() if "float" in annotation or "int" in annotation]


def with_setting(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(json.dumps(SHOP))
    section = given
    for part in place[:-1]:
        section = section.setdefault(part, {})
    section[place[-1]] = value
    return given


def complaint(given: dict[str, Any]) -> str | None:
    """Return what is said of a configuration, None if it is right, and of use at the first and the last instant."""
    try:
        shop = validate(given)
    except ConfigurationError as error:
        return str(error)
    for instant in (FIRST_INSTANT, END_OF_INSTANTS):
        training, reach = shop.training, shop.labels.reach
        dates = snapshot_dates(instant, instant, reach, timedelta(days=training.every_days), training.snapshots)
        assert dates.validation < dates.test < instant < instant + reach
        assert instant + timedelta(days=shop.publish.max_lag_days) >= instant
    for _, condition in definitions(shop.lifecycle).values():
        assert not condition or parse(condition)
    assert labels_table(shop.labels.named).schema
    assert table_of(shop).schema
    assert shop.sessions.gap
    assert shop.model_dump_json()
    return None


def test_the_shop_has_all_sections_and_is_right() -> None:
    assert complaint(with_setting(("name",), "shop")) is None
    assert {kind for (section, kind) in NAMED if section == "destinations"} == {*KINDS}
    assert len(NUMBERS) > 40


def test_what_is_no_number_or_a_huge_one_is_refused_by_name() -> None:
    for place, value in itertools.product(NUMBERS, NO_NUMBERS):
        if value == {} and "dict" in SETTINGS[place]:
            continue
        said = complaint(with_setting(place, value))

        assert said is not None, value
        assert said.startswith(f"{'.'.join(place)}: ")
        assert "\n" not in said
        assert len(said) < 300


def test_any_other_value_is_of_use_or_refused_by_name() -> None:
    for place, value in itertools.product(SETTINGS, OTHERS):
        said = complaint(with_setting(place, value))

        if said is not None:
            assert place[-1] in said
            assert "\n" not in said
