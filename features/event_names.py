"""Names of events: which are standard and so count in features, and which are probably one of these by another name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import ibis.expr.types as ir

from features.events import ADD_TO_CART, PAGE_VIEW, PURCHASE, REFUND, SEARCH, SUPPORT_VIEW

ALIASES: dict[str, tuple[str, ...]] = {
    PAGE_VIEW: (
        "pageview",
        "page viewed",
        "viewed page",
        "page",
        "$pageview",
        "screen view",
        "screen viewed",
        "$screen",
    ),
    SEARCH: ("view_search_results", "products searched", "searched", "search performed", "site search"),
    "product_view": (
        *("view_item", "product viewed", "viewed product", "view product", "item viewed", "item view"),
        *("product detail view", "product detail viewed", "product page viewed", "ViewContent"),
    ),
    ADD_TO_CART: (
        *("product added", "added to cart", "added product", "product added to cart", "item added to cart", "cart add"),
        *("add to basket", "added to basket", "add to bag", "added to bag"),
    ),
    "remove_from_cart": (
        *("product removed", "removed from cart", "product removed from cart", "item removed from cart", "cart remove"),
        *("remove from basket", "removed from basket", "remove from bag", "removed from bag"),
    ),
    "checkout_start": ("begin_checkout", "checkout started", "started checkout", "start checkout", "InitiateCheckout"),
    PURCHASE: (
        *(
            "order completed",
            "completed order",
            "order placed",
            "placed order",
            "ecommerce order",
            "ecommerce_purchase",
        ),
        *("purchased", "purchase completed", "completed purchase", "checkout completed", "transaction"),
    ),
    REFUND: ("order refunded", "refunded order", "refunded", "order refund", "refund issued"),
    SUPPORT_VIEW: ("help center viewed", "help centre viewed", "help viewed", "support viewed", "support page viewed"),
    "click": ("clicked", "button clicked", "button click", "link clicked", "element clicked"),
    "sign_up": ("signed up", "user signed up", "registered", "account created", "registration", "CompleteRegistration"),
    "login": ("logged in", "user logged in", "sign in", "signed in"),
}
"""The standard names, and how other tools call the same; upper and lower case, blanks and signs do not matter."""
STANDARD = tuple(ALIASES)
SIGNS = re.compile(r"[\W_]")
ALIKE = {SIGNS.sub("", alias.lower()): name for name, given in ALIASES.items() for alias in (name, *given)}
NAMES_KEPT = 100
NAMES_SHOWN = 20
LONGEST, SHOWN = 200, 60
"""How many characters of a name are kept, and shown."""


@dataclass(frozen=True)
class EventName:
    """Count the events of a name. `mapped`: [events.names] gives it; `likely`: the name of ours that it may mean."""

    name: str
    events: int
    standard: bool
    mapped: bool
    likely: str | None


@dataclass(frozen=True)
class EventNames:
    """Hold the most frequent names, those that are like one of ours among them, and how many more there are."""

    names: list[EventName] = field(default_factory=list)
    more: int = 0


def count_names(events: ir.Table, mapping: Mapping[str, str]) -> EventNames:
    """Count EVENTS by name. `mapping` holds the source's names and ours: a name that maps to itself is meant so."""
    mapped = {_plain(source): ours for source, ours in mapping.items() if source != ours}
    counts = events.group_by("event_name").agg(events=events.count())
    key = counts.event_name.lower().re_replace(r"[^\p{L}\p{N}]", "")
    known = counts.mutate(key=key, name=counts.event_name.left(LONGEST + 1), alike=key.isin([*ALIKE, *mapped]))
    kept = known.order_by(known.alike.desc(), known.events.desc(), known.event_name).limit(NAMES_KEPT)
    rows = kept.select("name", "events", "key").to_pyarrow().to_pylist()
    alike = {row["key"]: [mapped.get(row["key"]), ALIKE.get(row["key"])] for row in rows}
    names = [_judge(row["name"], row["events"], alike[row["key"]], mapping) for row in rows]
    more = int(counts.count().to_pyarrow().as_py()) - len(names)
    return EventNames(sorted(names, key=lambda one: (-one.events, one.name)), more)


def list_names(found: EventNames) -> list[str]:
    """Say in up to two lines how many events have which name: those that are standard or mapped, and all others.

    Names that are like one of ours are not among these: `hints` says them.
    """
    meant = [one for one in found.names if one.standard or one.mapped]
    others = [one for one in found.names if not (one.standard or one.mapped or one.likely)]
    lines = [("events: ", meant, 0), ("without a standard name: ", others, found.more)]
    return [start + _enumerate(names, more) for start, names, more in lines if names or more]


def hints(found: EventNames, mapping: Mapping[str, str]) -> list[str]:
    """Say of each name that is like one of ours what to write, so that its events count."""
    alike = [one for one in found.names if one.likely]
    lines = []
    for one in alike[:NAMES_SHOWN]:
        sources = [source for source, ours in mapping.items() if ours == one.name] or [one.name]
        entries = ", ".join(f"{_toml(source)} = {_toml(str(one.likely))}" for source in sources)
        count = f"{one.events:,} event{' is' if one.events == 1 else 's are'}"
        lines.append(
            f"{count} named {one.name!r}, which counts as no {one.likely}; if it is one, write {entries} under "
            "[events.names]"
        )
    left = len(alike) - len(lines)
    return [*lines, f"{left:,} more names are like these"] if left else lines


def check_names(key: str, names: Iterable[str], mapping: Mapping[str, str]) -> None:
    """Raise ValueError where a key of the configuration names events as the source does and not as they are mapped."""
    for name in names:
        if name in mapping and name not in mapping.values():
            raise ValueError(f"{key}: [events.names] makes {mapping[name]!r} of {name!r}; write {mapping[name]!r}")


def _judge(name: str, events: int, alike: list[str | None], mapping: Mapping[str, str]) -> EventName:
    """Say what a name is. `alike` are names of ours that it is like but for case, blanks, signs and wording."""
    standard, mapped = name in STANDARD, name in mapping.values()
    is_meant = standard or mapping.get(name) == name or len(name) > SHOWN  # longer ones nobody would write down
    likely = None if is_meant else next((ours for ours in alike if ours and ours != name), None)
    return EventName(name if len(name) <= LONGEST else f"{name[:LONGEST]}...", events, standard, mapped, likely)


def _plain(text: str) -> str:
    return SIGNS.sub("", text.lower())


def _enumerate(names: list[EventName], more: int) -> str:
    shown = [f"{_shown(one)} {one.events:,}" for one in names[:NAMES_SHOWN]]
    left = more + len(names) - len(shown)
    return ", ".join([*shown, f"and {left:,} more"] if left else shown)


def _shown(one: EventName) -> str:
    if one.standard:
        return one.name
    return repr(one.name if len(one.name) <= SHOWN else f"{one.name[:SHOWN]}...")


def _toml(text: str) -> str:
    r"""Write text as a string of TOML that any terminal shows as it is.

    >>> print(_toml('a "b" \t'))
    "a \"b\" \U00000009"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    signs = [sign if sign.isprintable() else rf"\U{ord(sign):08x}" for sign in escaped]
    return f'"{"".join(signs)}"'
