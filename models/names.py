"""What to call a segment: a few fixed templates filled with what is typical of it."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.snapshots import quantity, title, window_of
from models.descriptions import DIFFERENCE_MEDIUM, MOST, PLACES, Trait, place

KEPT_MIN = 0.5
"""The part of a trait's difference that must still be there for a name that was made of it to stay true."""
POINTS_MIN = 0.15
"""By how much a rate must differ to make a name."""
FEW = 0.1
"""A name says "without" of what at most so many users have, as it says "on mobile" of what most are."""
LATELY_DAYS = 28
"""Who did nothing in fewer days is not inactive yet, nor active who came in more."""


@dataclass(frozen=True)
class Named:
    """A name with the traits that it was made of."""

    name: str
    by: tuple[Trait, ...]


class Form(NamedTuple):
    """How a quantity names users from `limit` on (up to it, if it is low): who they are, how, and doing what.

    A form without a noun goes with "visitors". The first form that holds speaks.
    """

    limit: float
    noun: str = ""
    adjective: str = ""
    after: str = ""


class Forms(NamedTuple):
    """A quantity's topic, of which a name speaks once, and its forms where a segment is above and below others."""

    topic: str
    high: tuple[Form, ...] = ()
    low: tuple[Form, ...] = ()


ANY, ALL = -np.inf, np.inf
HALF, QUARTER = 0.495, 0.255  # of a rate, as it is rounded
FORMS = {
    "recency_days": Forms("recency", (Form(28, adjective="lapsed"),), (Form(30, adjective="recent"),)),
    "tenure_days": Forms("tenure", (Form(90, adjective="long-standing"),), (Form(60, adjective="new"),)),
    "session_count": Forms(
        "activity",
        (Form(4, adjective="frequent"), Form(2, adjective="returning"), Form(1, adjective="active")),
        (Form(1, adjective="one-time"), Form(12, adjective="occasional"), Form(ALL, adjective="less frequent")),
    ),
    "active_day_count": Forms(
        "activity",
        (Form(4, adjective="frequent"), Form(2, adjective="returning"), Form(1, adjective="active")),
        (Form(1, adjective="one-time"), Form(12, adjective="occasional"), Form(ALL, adjective="less frequent")),
    ),
    "session_trend": Forms("trend", (Form(0.2, adjective="increasingly active"),), (Form(-0.2, adjective="fading"),)),
    "return_absence_days": Forms("trend", (Form(28, adjective="won-back"),)),
    "duration_mean_s": Forms(
        "depth", (Form(60, after="with long sessions"),), (Form(ALL, after="with short sessions"),)
    ),
    "duration_median_s": Forms(
        "depth", (Form(60, after="with long sessions"),), (Form(ALL, after="with short sessions"),)
    ),
    "pages_per_session": Forms(
        "depth", (Form(ANY, after="who look at many pages"),), (Form(ALL, after="who look at few pages"),)
    ),
    "bounce_rate": Forms(
        "depth", (Form(QUARTER, after="who often leave at once"),), (Form(QUARTER, after="who look around"),)
    ),
    "engaged_rate": Forms("depth", (Form(HALF, adjective="engaged"),), (Form(0.6, adjective="less engaged"),)),
    "item_count": Forms(
        "range", (Form(2, after="interested in many items"),), (Form(ALL, after="interested in few items"),)
    ),
    "category_count": Forms("range", (Form(2, after="with wide interests"),), (Form(ALL, after="with few interests"),)),
    "search_count": Forms("search", (Form(2, after="who search a lot"),), (Form(0, after="who never search"),)),
    "support_visit_count": Forms("support", (Form(1, "support seekers", after="seeking support"),)),
    "support_session_share": Forms("support", (Form(HALF, "support seekers", after="seeking support"),)),
    "support_recency_days": Forms("support", (), (Form(28, "support seekers", after="seeking support"),)),
    "campaign_session_count": Forms("campaign", (Form(1, "campaign responders", after="drawn by campaigns"),)),
    "cart_count": Forms(
        "cart",
        (Form(2, "cart fillers", after="with many carts"), Form(1, after="with a cart")),
        (Form(0, after="without a cart"), Form(ALL, after="with few carts")),
    ),
    "cart_abandonment_rate": Forms(
        "cart",
        (Form(HALF, "cart abandoners", after="abandoning carts"),),
        (Form(QUARTER, after="who finish their carts"),),
    ),
    "cart_abandoned_recency_days": Forms(
        "cart", (), (Form(28, "recent cart abandoners", after="abandoning carts lately"),)
    ),
    "purchase_count": Forms(
        "buying",
        (
            Form(3, "frequent buyers", after="buying often"),
            Form(2, "repeat buyers", after="buying repeatedly"),
            Form(1, "buyers", after="who bought"),
        ),
        (
            Form(0, after="without a purchase"),
            Form(1, after="buying at most once"),
            Form(ALL, after="buying less"),
        ),
    ),
    "purchase_recency_days": Forms(
        "buying",
        (Form(28, "past buyers", after="who bought long ago"),),
        (Form(30, "recent buyers", after="buying lately"),),
    ),
    "revenue_total": Forms(
        "buying",
        (Form(1, "big spenders", after="spending a lot"),),
        (Form(0, after="without revenue"), Form(ALL, after="spending less")),
    ),
    "revenue_per_purchase": Forms(
        "basket",
        (Form(ANY, "buyers of big baskets", after="with big baskets"),),
        (Form(ALL, "buyers of small baskets", after="with small baskets"),),
    ),
    "conversion_rate": Forms(
        "buying",
        (Form(HALF, "decisive buyers", after="buying on most visits"),),
    ),
    "night_session_share": Forms(
        "hours", (Form(HALF, adjective="night", after="at night"),), (Form(0.1, adjective="daytime", after="by day"),)
    ),
    "morning_session_share": Forms("hours", (Form(HALF, adjective="morning", after="in the morning"),)),
    "afternoon_session_share": Forms("hours", (Form(HALF, adjective="afternoon", after="in the afternoon"),)),
    "evening_session_share": Forms("hours", (Form(HALF, adjective="evening", after="in the evening"),)),
    "weekend_session_share": Forms(
        "days",
        (Form(HALF, adjective="weekend", after="at weekends"),),
        (Form(0.1, adjective="weekday", after="on weekdays"),),
    ),
}
NOT_LATELY = {
    "activity": Forms("activity", low=(Form(0, adjective="inactive"), Form(ALL, adjective="less active"))),
    "buying": Forms("buying", low=(Form(0, after="not buying lately"), Form(ALL, after="buying less lately"))),
}
"""By topic, the forms of a low number in the last days, which says nothing of the time before."""
COMPARING = {"big", "few", "less", "long", "lot", "many", "often", "short", "wide"}
"""Words that compare: most users are then beyond the number of all users, too."""
PARTS_MAX = 8
TYPICAL = "Typical visitors"
COMING = ("recency", "tenure", "trend", "activity")
ADJECTIVES = (*COMING[:3], "depth", "activity", "hours", "days")
"""The topics of adjectives, in the order in which they are said."""
EXCLUSIVE = ({"recency", "tenure"}, {"recency", "trend"}, {"tenure", "trend"}, {"hours", "days"})
"""Topics that together would be too much, or seem to contradict each other."""
CLASHES = (
    {"increasingly active", "occasional"},
    {"increasingly active", "one-time"},
    {"increasingly active", "less active"},
    {"increasingly active", "inactive"},
    {"fading", "inactive"},
    {"lapsed", "inactive"},
    {"recent", "inactive"},
    {"lapsed", "active"},
    {"recent", "active"},
    {"fading", "active"},
    {"recent", "past"},
    {"long-standing", "one-time"},
    {"inactive", "not buying lately"},
    {"lapsed", "not buying lately"},
)
"""Words that in one name contradict each other, or say the same."""
NOUNS = ("buying", "basket", "cart", "support", "campaign")
"""The topics of nouns: of two the first is who users are, the other what they do."""


class _Part(NamedTuple):
    """A trait as a part of a name."""

    trait: Trait
    topic: str
    noun: str
    adjective: str
    after: str

    @property
    def words(self) -> tuple[str, str, str]:
        return self.noun, self.adjective, self.after

    @property
    def weight(self) -> float:
        """Return how much it tells: what users do tells more than what they leave, but for their coming."""
        return abs(self.trait.difference) * (1 if self.topic in COMING or self.trait.difference > 0 else 0.5)


def names(
    typical: Sequence[Sequence[Trait]],
    sizes: Sequence[int] | NDArray[np.int_],
    known: Mapping[int, Named] | None = None,
    taken: Iterable[str] = (),
) -> list[Named]:
    """Name segments by what is typical of them: at most three traits, and differently from each other and from `taken`.

    `known` has earlier names by position. Such a name stays as long as it is true: each trait that it was made of
    would still be said in the same words, and has at least half of its difference. Of the others the largest segment
    is named first, by its strongest traits of at least a medium effect.
    """
    used = {name.casefold() for name in taken}
    named: dict[int, Named] = {}
    for i, earlier in (known or {}).items():
        if earlier.name.casefold() not in used and _is_true(earlier, typical[i]):
            named[i] = earlier
            used.add(earlier.name.casefold())
    for i in np.argsort(-np.asarray(sizes), kind="stable"):
        if int(i) not in named:
            named[int(i)] = next(one for one in _proposals(typical[i]) if one.name.casefold() not in used)
            used.add(named[int(i)].name.casefold())
    return [named[i] for i in range(len(typical))]


def names_by(trait: Trait) -> bool:
    """Tell whether a trait could make a name: it has a medium effect, and what it promises holds of most."""
    return abs(trait.difference) >= DIFFERENCE_MEDIUM and _part(trait) is not None


def marks(attributes: Iterable[str]) -> list[str]:
    """Return what names have in them that need one of some attributes of users.

    >>> marks(["age_band"])
    ['(age band ']
    """
    return [f"({title(name)} " for name in sorted(attributes)]


def needs(named: Named, attributes: Collection[str]) -> bool:
    """Tell whether a name needs one of some attributes: by its traits, and of a name without them by marks."""
    if named.by:
        return any(trait.feature in attributes for trait in named.by)
    return any(mark in named.name for mark in marks(attributes))


def _is_true(earlier: Named, traits: Sequence[Trait]) -> bool:
    if not earlier.by:
        return next(_proposals(traits)).by == ()
    now = {(part.topic, part.trait.difference > 0): part for part in _parts(traits)}
    same = [now.get((topic, trait.difference > 0)) for trait in earlier.by for topic in [_topic(trait)]]
    still = [
        part
        for part, trait in zip(same, earlier.by, strict=True)
        if part is not None and abs(part.trait.difference) >= KEPT_MIN * abs(trait.difference)
    ]
    composed = _composed(still)
    return len(still) == len(earlier.by) and composed is not None and composed.name == earlier.name


def _proposals(traits: Sequence[Trait]) -> Iterator[Named]:
    """Propose names, the best first: of two traits, of three, of one, then with weaker ones; the last with a number."""
    parts = _parts(traits)
    any_strong = any(abs(trait.difference) >= DIFFERENCE_MEDIUM for trait in traits)
    strong = [part for part in parts if abs(part.trait.difference) >= DIFFERENCE_MEDIUM]
    some = [*strong, *(part for part in parts if part not in strong)][:PARTS_MAX]
    if not any_strong:
        yield Named(TYPICAL, ())
    pairs, triples = ([*combinations(range(len(some)), n)] for n in (2, 3))
    pairs.sort(key=lambda chosen: (min(chosen) > 0, max(chosen) >= len(strong), sum(chosen)))
    triples.sort(key=sum)
    with_first = [chosen for chosen in pairs if chosen[0] == 0 and chosen[1] < len(strong)]
    rest = [*((i,) for i in range(len(strong))), *triples, *pairs, *((i,) for i in range(len(some)))]
    for chosen in [*with_first, *rest]:
        one = _composed([some[i] for i in chosen])
        if one is not None:
            yield one
    alone = _composed(strong[:1]) or Named("Other visitors" if any_strong else TYPICAL, ())
    if any_strong:
        yield alone
    for number in count(2):
        yield Named(f"{alone.name} {number}", alone.by)


def _topic(trait: Trait) -> str:
    forms = FORMS.get(quantity(trait.feature))
    return forms.topic if forms and trait.category is None else quantity(trait.feature)


def _parts(traits: Sequence[Trait]) -> list[_Part]:
    """Return the traits that make a name, those that tell most first, one for each topic."""
    found = [part for part in map(_part, traits) if part is not None]
    # Who has come for long, often and lately is loyal.
    often = any(part.adjective == "frequent" or part.noun in ("frequent buyers", "repeat buyers") for part in found)
    away = any(_topic(trait) in ("recency", "trend") and _goes(trait) for trait in traits)
    if often and not away and any(map(_is_lately, found)):
        found = [part._replace(adjective="loyal") if part.adjective == "long-standing" else part for part in found]
    found.sort(key=lambda part: -part.weight)
    first = {part.topic: part for part in reversed(found)}
    return [part for part in found if first[part.topic] is part]


def _goes(trait: Trait) -> bool:
    return (trait.difference > 0) == (trait.feature == "recency_days")


def _is_lately(part: _Part) -> bool:
    """Tell whether a part of a name says that most users were there lately."""
    trait = part.trait
    if trait.feature in ("recency_days", "purchase_recency_days"):
        return trait.difference < 0
    return window_of(trait.feature) is not None and trait.difference > 0


def _part(trait: Trait) -> _Part | None:
    """Return how a name says a trait; None where it would promise more than holds of most of the segment.

    A form's limit holds of most users; where it compares, they are also beyond the number of all users.
    """
    if trait.category is not None:
        words = place(trait.feature, trait.category)
        after = words if trait.feature in PLACES else f"({words})"
        if trait.difference < 0:
            after = f"outside {trait.category}" if trait.feature == "country" and trait.value <= FEW else ""
        elif trait.value < MOST:
            after = ""
        return _Part(trait, trait.feature, "", "", after) if after else None
    high = trait.difference > 0
    value = trait.value if trait.of_most is None else trait.of_most
    if trait.statistic in ("any", "below"):
        way = -1 if trait.statistic == "below" else 1
        is_of_most = trait.value >= MOST and (trait.of_most is None or way * trait.of_most > 0)
        if not (is_of_most if high or way < 0 else trait.value <= FEW):
            return None
        value = 1 if high else min(way, 0)
        is_beyond = True
    else:
        is_beyond = value > trait.overall if high else value < trait.overall
    forms = FORMS.get(quantity(trait.feature))
    if forms is None:
        if not is_beyond:
            return None
        words = f"with {'high' if high else 'low'} {trait.feature.replace('_', ' ')}"
        return _Part(trait, quantity(trait.feature), "", "", words)
    if trait.feature.endswith(("_rate", "_share")) and abs(trait.value - trait.overall) < POINTS_MIN:
        return None
    window_days = window_of(trait.feature)
    if not high and forms.topic in NOT_LATELY and window_days is not None:
        forms = NOT_LATELY[forms.topic]
    for form in forms.high if high else forms.low:
        if form.limit == 0 and (trait.statistic != "any" or (window_days or LATELY_DAYS) < LATELY_DAYS):
            continue  # "without" is of nearly all
        if form.adjective == "active" and (window_days or ALL) > LATELY_DAYS:
            continue
        if (value >= form.limit if high else value <= form.limit) and (is_beyond or not _compares(form)):
            return _Part(trait, forms.topic, form.noun, form.adjective, form.after)
    return None


def _compares(form: Form) -> bool:
    words = f"{form.noun} {form.adjective} {form.after}".split()
    return not np.isfinite(form.limit) or bool(COMPARING & set(words))


def _composed(parts: Sequence[_Part]) -> Named | None:
    """Make a name of parts, in one of these forms; None where they do not fit into one.

    [adjective] noun [after], or [adjective] [adjective] visitors [after], where two that begin with "with" are one.
    """
    topics = {part.topic for part in parts}
    if not parts or len(topics) < len(parts) or any(pair <= topics for pair in EXCLUSIVE):
        return None
    nouns = sorted((part for part in parts if part.noun), key=lambda part: NOUNS.index(part.topic))
    head = nouns[0] if nouns else None
    if head and head.topic == "buying" and "activity" in topics:
        return None  # frequent buyers who come occasionally
    others = [part for part in parts if part is not head]
    adjectives = [part for part in others if part.adjective and not (head and part.topic in ("hours", "days"))]
    adjectives.sort(key=lambda part: ADJECTIVES.index(part.topic))
    afters = [part.after for part in others if part not in adjectives]
    if not all(afters) or len(adjectives) > (1 if head else 2):
        return None
    if len(afters) == 2 and all(after.startswith("with ") for after in afters):
        afters = [f"{afters[0]} and {afters[1].removeprefix('with ')}"]
    words = [part.adjective for part in adjectives]
    noun = head.noun if head else "visitors"
    twice = set(words) & set(noun.split())  # recent recent buyers
    if len(afters) > 1 or twice or any(clash <= {*words, *noun.split(), *afters} for clash in CLASHES):
        return None
    if {"lapsed", "fading"} & set(words):
        noun = noun.removeprefix("past ")
    said = " ".join([*words, noun, *afters])
    return Named(said[0].upper() + said[1:], tuple(part.trait for part in parts))
