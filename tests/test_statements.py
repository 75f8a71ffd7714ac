"""Every sentence about a segment, read as a person reads it and counted anew, user by user, over drawn shops."""

import random
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.snapshots import FEATURES, title
from models.descriptions import Trait, summarise, traits
from models.names import Named, names
from models.populations import meaningful
from models.segments import Segment
from publish.report import differences
from publish.report.groups import Counted, Groups
from publish.report.suggestions import suggest

User = dict[str, Any]
SEEDS = range(6)
KINDS = 4
HISTORIES_DAYS = (200, 30, 120, 50, 200, 90)
WINDOWS = (1, 7, 28, 90)
HOURS = {"night": range(6), "morning": range(6, 12), "afternoon": range(12, 18), "evening": range(18, 24)}


# --- drawn shops ---


def draw_user(draw: random.Random, kind: int, history_days: float, likes: random.Random) -> User:
    """Draw a user's sessions, by what users of a kind are likely to do, and take the features of these."""
    often, page, cart, leave, buy, ask, late, weekend, mobile, lately = (likes.random() ** 2 for _ in range(10))
    first = history_days * draw.random()
    spread = 1 + 2 * lately
    ages = [first, *(first * draw.random() ** spread for _ in range(int(draw.expovariate(0.2 / (often + 0.1)))))]
    if kind == 2:  # stays away
        ages = [age + 30 * (first > 30) * draw.random() for age in ages if age > 25] or ages
    if kind == 3:  # comes more and more often
        ages += [min(first, 20) * draw.random() for _ in range(draw.randrange(4))]
    sessions = [
        {
            "age": age,
            "hour": draw.choice([2, 20]) if draw.random() < late else draw.choice([9, 15]),
            "weekend": draw.random() < weekend,
            "pages": 1 + int(draw.expovariate(1 / (1 + 5 * page))) if kind or draw.random() < 0.8 else 0,
            "length_s": draw.expovariate(1 / (20 + 900 * page)),
            "cart": (has_cart := draw.random() < cart),
            "bought": (bought := draw.random() < buy),
            "abandoned": has_cart and not bought and draw.random() < 0.5 + leave / 2,
            "revenue": draw.paretovariate(1.2) * 20 if bought else -10.0 if draw.random() < 0.05 else 0.0,
            "support": int(draw.random() < ask),
            "searches": int(draw.expovariate(1 / (0.2 + 2 * page))),
        }
        for age in ages
    ]  # fmt: skip
    return features_of(sessions) | {
        "user_id": f"u{draw.random()}",
        "device": None if draw.random() < 0.15 else "mobile" if draw.random() < mobile else "desktop",
        "plan": None if draw.random() < 0.5 else draw.choice(["free", "paid"]),
    }


def features_of(sessions: list[User]) -> User:
    """Take the features of sessions as docs/features.md defines them; None where they do not apply."""
    ages = [one["age"] for one in sessions]
    count, carts = len(sessions), [one for one in sessions if one["cart"]]
    bought = [one for one in sessions if one["bought"]]
    paged = [one for one in sessions if one["pages"]]
    last, before = (sum(start < age <= start + 28 for age in ages) for start in (-1e-9, 28))
    abandoned, asked = ([one["age"] for one in sessions if one[what]] for what in ("abandoned", "support"))
    recent, earlier = [age for age in ages if age <= 28], [age for age in ages if age > 28]
    revenue = sum(one["revenue"] for one in sessions)
    lengths = [one["length_s"] for one in sessions]

    def share(some: list[User], all_of: list[User]) -> float | None:
        return len(some) / len(all_of) if all_of else None

    found = {
        "recency_days": min(ages),
        "tenure_days": max(ages),
        "session_count": count,
        "session_trend_28d": (last - before) / (last + before) if last + before else None,
        "return_absence_days": min(earlier) - max(recent) if earlier and recent else None,
        "duration_mean_s": fmean(lengths),
        "duration_median_s": median(lengths),
        "pages_per_session": sum(one["pages"] for one in paged) / len(paged) if paged else None,
        "bounce_rate": share([one for one in paged if one["pages"] == 1 and one["length_s"] <= 10], paged),
        "engaged_rate": share([one for one in paged if one["pages"] > 1 or one["length_s"] > 10], paged),
        "search_count": sum(one["searches"] for one in sessions),
        "support_visit_count": len(asked),
        "support_session_share": len(asked) / count,
        "support_recency_days": min(asked, default=None),
        "campaign_session_count": 0,
        "cart_count": len(carts),
        "cart_abandonment_rate": share([one for one in carts if one["abandoned"]], carts),
        "cart_abandoned_recency_days": min(abandoned, default=None),
        "purchase_count": len(bought),
        "purchase_recency_days": min((one["age"] for one in bought), default=None),
        "revenue_total": revenue,
        "revenue_per_purchase": revenue / len(bought) if bought else None,
        "conversion_rate": len(bought) / count,
        "weekend_session_share": sum(one["weekend"] for one in sessions) / count,
        "active_day_count": len({int(age) for age in ages}),
        "item_count": sum(one["searches"] % 3 for one in sessions),
        "category_count": 1,
    }
    for when, hours in HOURS.items():
        found[f"{when}_session_share"] = sum(one["hour"] in hours for one in sessions) / count
    for days in WINDOWS:
        found[f"session_count_{days}d"] = sum(age <= days for age in ages)
        found[f"purchase_count_{days}d"] = sum(one["age"] <= days for one in bought)
        found[f"support_visit_count_{days}d"] = sum(age <= days for age in asked)
    return found


@cache
def shop(seed: int) -> tuple[list[User], list[int]]:
    """Draw a shop's users, with one of some kinds for each, and users without a habit among all of them."""
    draw = random.Random(seed)
    kinds = [kind for kind in range(KINDS) for _ in range(draw.choice([12, 80, 150]))]
    users = [
        draw_user(draw, kind, HISTORIES_DAYS[seed] * (0.3 if kind == 1 else 1), random.Random(f"{seed} {kind}"))
        for kind in kinds
    ]
    return users, kinds


def table(users: list[User]) -> pd.DataFrame:
    rows = pd.DataFrame(users)
    return rows.astype(dict.fromkeys(FEATURES, "float64"))


@cache
def told(seed: int) -> tuple[list[list[Trait]], list[Named]]:
    users, kinds = shop(seed)
    typical = traits(table(users), np.array(kinds), KINDS)
    return typical, names(typical, np.bincount(kinds))


# --- a reader ---

NAMED = {title(name): name for name in FEATURES}
WHOM: dict[str, Callable[[User], bool]] = {
    "users": lambda user: True,
    "those who bought": lambda user: user["purchase_count"] > 0,
    "those who sought support": lambda user: user["support_visit_count"] > 0,
    "those who filled a cart": lambda user: user["cart_count"] > 0,
    "those who abandoned a cart": lambda user: user["cart_count"] * (user["cart_abandonment_rate"] or 0) > 0,
    "those with a page view": lambda user: user["pages_per_session"] is not None,
    "those known for 56 days": lambda user: user["tenure_days"] >= 56,
    "those with 3 sessions or more": lambda user: user["session_count"] >= 3,
    "those who came in the last 28 days and before": lambda user: 0 < user["session_count_28d"] < user["session_count"],
}
DID = {
    "came": "session_count",
    "sought support": "support_visit_count",
    "bought": "purchase_count",
    "searched": "search_count",
    "filled a cart": "cart_count",
    "had to do with items": "item_count",
    "with revenue": "revenue_total",
}


def read(subject: str) -> tuple[str, Callable[[User], bool], Callable[[User], Any]]:
    """Return the statistic that a subject speaks of, whose, and of what."""
    spoken, _, whom = subject.partition(" among ")
    if " of " in spoken and (found := re.fullmatch(r"(.+), (mean|median) of (.+)", spoken)):
        return found[2], WHOM[found[3]], lambda user: user[NAMED[found[1]]]
    if compared := re.fullmatch(r"came (more|less) often in the last 28 days than in the 28 before", spoken):
        sign = 1 if compared[1] == "more" else -1
        return "share", WHOM[whom or "users"], lambda user: sign * (user["session_trend_28d"] or 0) > 0
    if did := re.fullmatch(rf"({'|'.join(DID)})(?: in the last (?:(\d+) days|day))?", spoken):
        name = DID[did[1]] + (f"_{did[2] or 1}d" if "the last" in spoken else "")
        return "share", WHOM[whom or "users"], lambda user: user[name] > 0
    if value := re.fullmatch(r"on (mobile|desktop)|plan (free|paid)", spoken):
        column = "device" if value[1] else "plan"
        return "share", WHOM["users"], lambda user: user[column] == (value[1] or value[2])
    return "median", WHOM[whom or "users"], lambda user: user[NAMED[spoken]]


def count_anew(subject: str, users: list[User]) -> float:
    statistic, applies, take = read(subject)
    values = [take(user) for user in users if applies(user)]
    assert None not in values, subject
    return float(median(values) if statistic == "median" else fmean(values))


def amount(text: str) -> tuple[float, float]:
    """Return a number as it is written, and by how much rounding may have moved it."""
    if found := re.fullmatch(r"(?:([\d,]+) min)?(?: ?(\d+) s)?", text):
        minutes, seconds = (int((part or "0").replace(",", "")) for part in found.groups())
        return 60.0 * minutes + seconds, 0.5 if found[2] else 30
    number = text.removesuffix(" %")
    unit = 0.5 * 10 ** -len(number.partition(".")[2]) / (100 if text.endswith("%") else 1)
    return float(number.replace(",", "")) / (100 if text.endswith("%") else 1), unit


def is_written(value: float, text: str) -> bool:
    written, rounding = amount(text)
    is_end = text in ("0 %", "100 %")  # none and all are exact
    return abs(value - written) <= (0 if is_end else rounding + 1e-9)


def check(words: str, here: list[User], others: list[User], whose: str) -> None:
    found = re.fullmatch(rf"(.+): (.+) \({whose}: (.+)\)", words)
    assert found, words
    for text, some in ((found[2], here), (found[3], others)):
        assert is_written(count_anew(found[1], some), text), (words, count_anew(found[1], some))


# --- what is said ---


@pytest.mark.parametrize("seed", SEEDS)
def test_each_trait_is_what_its_words_say(seed: int) -> None:
    users, kinds = shop(seed)
    typical, _ = told(seed)

    assert sum(map(len, typical)) >= KINDS
    for kind, of_one in enumerate(typical):
        for trait in of_one:
            check(
                trait.in_words(),
                [user for user, own in zip(users, kinds, strict=True) if own == kind],
                users,
                "all users",
            )


@pytest.mark.parametrize("seed", SEEDS)
def test_each_clause_of_a_summary_has_the_numbers_of_its_trait(seed: int) -> None:
    for of_one in told(seed)[0]:
        for trait in of_one:
            said = summarise([trait])
            here, overall = trait.written()
            clause, _, compared = said.removesuffix(")").rpartition(" (all users: ")
            spoken = re.sub(
                r"in the (last|28) ?\d*( days| before)?|those known for 56 days|those with 3 sessions", "", clause
            )
            numbers = re.findall(r"\d+ min(?: \d+ s)?|\d+ s\b|-?[\d,]+(?:\.\d+)?(?: %)?", spoken)
            words = {"once": "1", "a day": "0", "No": "0", "None": "0 %", "All": "100 %", "did not": "0"}
            numbers = numbers or [number for word, number in words.items() if word in spoken]
            assert numbers, said
            assert amount(numbers[0])[0] == amount(here)[0], said
            if not compared.startswith("less than"):
                assert amount(re.sub(" days?$", "", compared))[0] == amount(overall)[0], said


@pytest.mark.parametrize("seed", SEEDS)
def test_each_difference_of_a_report_is_what_its_words_say(seed: int) -> None:
    users, kinds = shop(seed)
    snapshot = meaningful(table(users))
    groups = Groups([f"S{kind}" for kind in range(KINDS)], [], np.arange(KINDS)[:, None] == np.array(kinds), 3)

    def may_tell(feature: str) -> Counted:
        return groups.count_values(np.isnan(snapshot[feature].to_numpy()) * 2, 3)

    devices = [*sorted({user["device"] for user in users} - {None}), None]
    codes = np.array([devices.index(user["device"]) for user in users])
    texts = {"device": (devices, groups.count_values(codes, len(devices)))}
    found = differences.find(snapshot, groups, texts, may_tell, ())
    assert sum(map(len, found.values())) >= KINDS / 2
    for segment_id, of_one in found.items():
        here, others = (
            [user for user, own in zip(users, kinds, strict=True) if (f"S{own}" == segment_id) == inside]
            for inside in (True, False)
        )
        for one in of_one:
            check(one.words, here, others, "everyone else")


def test_the_drawn_shops_are_told_by_every_statistic() -> None:
    said = [trait for seed in SEEDS for of_one in told(seed)[0] for trait in of_one]

    assert {trait.statistic for trait in said} == {"median", "mean", "any", "below", "share"}
    assert {trait.among for trait in said} > {None, "those who bought", "those with 3 sessions or more"}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_trend_and_no_window_is_told_that_the_history_does_not_have(seed: int) -> None:
    history_days = max(user["tenure_days"] for user in shop(seed)[0])
    said = " ".join(trait.in_words() for of_one in told(seed)[0] for trait in of_one)

    assert history_days >= 56 or "28 before" not in said
    assert all(int(days) <= history_days for days in re.findall(r"in the last (\d+) days", said))


# --- what is promised ---


def comes_then(when: str, user: User) -> bool:
    return bool(user["session_count"] >= 3 and user[f"{when}_session_share"] >= 0.495)


PROMISES: dict[str, Callable[[User], bool]] = {
    "lapsed": lambda user: user["recency_days"] >= 28,
    "recent visitors": lambda user: user["recency_days"] <= 30,
    "long-standing": lambda user: user["tenure_days"] >= 90,
    "loyal": lambda user: user["tenure_days"] >= 90,
    "new ": lambda user: user["tenure_days"] <= 60,
    "frequent visitors": lambda user: user["session_count"] >= 4,
    r"(?<!less )(?<!in)active visitors": lambda user: user["session_count_28d"] >= 1,
    "with a cart": lambda user: user["cart_count"] >= 1,
    "returning": lambda user: user["session_count"] >= 2,
    "one-time": lambda user: user["active_day_count"] == 1,
    "increasingly active": lambda user: user["tenure_days"] >= 56 and (user["session_trend_28d"] or 0) > 0,
    "fading": lambda user: user["tenure_days"] >= 56 and (user["session_trend_28d"] or 0) < 0,
    "won-back": lambda user: (user["return_absence_days"] or 0) >= 28,
    "leave at once": lambda user: (user["bounce_rate"] or 0) >= 0.255,
    "look around": lambda user: user["bounce_rate"] is not None and user["bounce_rate"] <= 0.255,
    "cart abandoners": lambda user: (user["cart_abandonment_rate"] or 0) >= 0.495,
    "frequent buyers": lambda user: user["purchase_count"] >= 3,
    "repeat buyers": lambda user: user["purchase_count"] >= 2,
    "buyers": lambda user: user["purchase_count"] >= 1,
    "at most once": lambda user: user["purchase_count"] <= 1,
    "support seekers": lambda user: user["support_visit_count"] >= 1,
    "on mobile": lambda user: user["device"] == "mobile",
    "on desktop": lambda user: user["device"] == "desktop",
    "weekday": lambda user: user["session_count"] >= 3 and user["weekend_session_share"] <= 0.1,
    **{f"{when} ": partial(comes_then, when) for when in (*HOURS, "weekend")},
}
COMPARING = {"many", "few", "long", "short", "lot", "big", "less", "wide"}
OF_NEARLY_ALL: dict[str, Callable[[User], bool]] = {
    "without a purchase": lambda user: user["purchase_count"] == 0,
    "without a cart": lambda user: user["cart_count"] == 0,
    "without revenue": lambda user: user["revenue_total"] <= 0,
    "who never search": lambda user: user["search_count"] == 0,
    "inactive": lambda user: user["session_count_28d"] == 0,
    "not buying lately": lambda user: user["purchase_count_28d"] == 0,
}


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_name_promises_holds_of_most_users(seed: int) -> None:
    users, kinds = shop(seed)
    named = told(seed)[1]
    for kind, one in enumerate(named):
        own = [user for user, other in zip(users, kinds, strict=True) if other == kind]
        for least, promises in ((0.6, PROMISES), (0.9, OF_NEARLY_ALL)):
            for words, holds in promises.items():
                if re.search(words, one.name.lower()):
                    assert sum(map(holds, own)) >= least * len(own), one.name
        for trait in one.by:
            [alone] = names([[trait]], [1])
            if trait.statistic in ("median", "mean") and COMPARING & set(alone.name.split()):
                sign = 1 if trait.difference > 0 else -1
                values = [user[trait.feature] for user in own]
                beyond = [value is not None and sign * value > sign * trait.overall for value in values]
                assert sum(beyond) >= 0.6 * len(own), (one.name, trait)


def test_a_report_suggests_only_what_holds_of_most_users() -> None:
    some = Trait("purchase_count", 0.9, "any", 0.3, 0.1)
    most = Trait("purchase_count", 0.9, "any", 0.6, 0.1)
    hardly = Trait("purchase_count", 0.4, "median", 2.0, 1.0)

    assert [[one.title for one in suggest("S01", [trait])] for trait in (some, most, hardly)] == [
        ["Watch"],
        ["Thank and reward"],
        ["Watch"],
    ]


def test_the_drawn_shops_have_many_names() -> None:
    said = " ".join(one.name.lower() for seed in SEEDS for one in told(seed)[1])

    assert sum(re.search(words, said) is not None for words in (*PROMISES, *OF_NEARLY_ALL)) >= 8


def test_the_summary_of_a_segment_of_an_older_version_is_said_anew() -> None:
    trait = {"feature": "cart_abandonment_rate", "difference": 0.9, "statistic": "median", "value": 1.0, "overall": 0.0}
    stored = {"segment_id": "S01", "name": "Cart abandoners", "size": 40, "share": 0.4, "stability": 0.9}
    stored |= {"typical": [trait | {"category": None}], "summary": "All carts abandoned (all users: 0 %)"}

    read = Segment.from_dict(stored)
    assert read.summary == "Share of carts that were abandoned, median of users: 100 % (all users: 0 %)"
    assert Segment.from_dict(asdict(read)) == read
