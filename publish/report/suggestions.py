"""Suggestions: what a kind of segment is good for. Fixed texts, by the rule or by what is typical; nobody is judged."""

from collections.abc import Iterable

from models.descriptions import Trait
from models.names import names_by
from publish.report.content import Suggestion

TEXTS = {
    "cart": Suggestion(
        title="Remind of the cart",
        text="Send one reminder within a day with what is in the cart, and a second one at most. Say what delivery "
        "costs and how to return: that is what carts are left for. Measure against users who got none.",
    ),
    "buyers": Suggestion(
        title="Thank and reward",
        text="Offer what money does not buy elsewhere: early access, a loyalty programme, a personal contact. These "
        "users buy anyway, so a discount mostly gives away revenue.",
    ),
    "support": Suggestion(
        title="Help before selling",
        text="Offer help first: a call back, a guide to what was asked. Leave these users out of promotions until "
        "their question is answered, and tell the product team what they ask.",
    ),
    "new": Suggestion(
        title="Welcome",
        text="Show what the shop is best at in the first two weeks, and ask for consent to newsletters where it is of "
        "use to them. A second visit is the aim, not yet a purchase.",
    ),
    "once": Suggestion(
        title="Bring back once",
        text="One message with what has changed since the visit; if it is not opened, no more. Most will not come "
        "back, so keep it cheap.",
    ),
    "away": Suggestion(
        title="Win back",
        text="Ask what was missing, and offer a reason to look again: news about what was viewed or bought. Approach "
        "those with the highest churn rank first, and measure against a holdout.",
    ),
    "returned": Suggestion(
        title="Make it easy to stay",
        text="Take up where they left: last items, saved cart, order history. What brought them back is worth asking.",
    ),
    "visitors": Suggestion(
        title="Deepen",
        text="These users come anyway: show what is new since the last visit instead of what is cheap, and ask for "
        "reviews or recommendations.",
    ),
    "search": Suggestion(
        title="Advise",
        text="Help to choose: comparisons, guides, an answer by a person. Check what they search for and do not find.",
    ),
    "campaign": Suggestion(
        title="Time the offers",
        text="They answer to campaigns: announce offers to them first, and test smaller discounts. Watch whether they "
        "buy without one, too.",
    ),
    "time": Suggestion(
        title="Choose the hour",
        text="Send when they are there, and staff support and chat for it.",
    ),
    "watch": Suggestion(
        title="Watch",
        text="Nothing sets these users apart enough for a campaign of their own. Use the segment to compare with.",
    ),
}
OF_RULES = {
    "new_visitors": "new",
    "returning_visitors": "visitors",
    "frequent_visitors": "visitors",
    "one_time_visitors": "once",
    "occasional_browsers": "search",
    "frequent_buyers": "buyers",
    "one_time_buyers": "once",
    "high_value_customers": "buyers",
    "cart_abandoners": "cart",
    "support_seekers": "support",
    "bargain_reactors": "campaign",
    "researchers": "search",
    "night_or_weekend_users": "time",
    "at_risk": "away",
    "won_back": "returned",
    "dormant": "away",
}
"""The kind of each shipped rule."""
OF_FEATURES = (
    ("cart_abandon", "cart"),
    ("support_", "support"),
    ("purchase_recency", ""),
    ("purchase_count", "buyers"),
    ("revenue", "buyers"),
    ("conversion_rate", "buyers"),
    ("campaign_", "campaign"),
    ("return_absence", "returned"),
    ("recency_days", "away"),
    ("search_count", "search"),
    ("item_count", "search"),
    ("night_", "time"),
    ("weekend_", "time"),
    ("session_count", "visitors"),
    ("active_day", "visitors"),
)
"""The kind that a feature makes a segment of which it is typical to have more of it."""
KINDS_MAX = 2


def suggest(segment_id: str, typical: Iterable[Trait]) -> list[Suggestion]:
    """Return what a segment is good for: by its rule, where that is shipped, or else by what is typical, at most two.

    `typical` has the strongest trait first. Only what could name the segment counts, since suggestions speak of all its
    users.
    """
    kinds = [OF_RULES[segment_id]] if segment_id in OF_RULES else []
    for one in filter(names_by, typical) if not kinds else ():
        if one.feature == "tenure_days" and one.difference < 0:
            kinds.append("new")
        elif one.difference > 0:
            kinds += [kind for start, kind in OF_FEATURES if one.feature.startswith(start)][:1]
    chosen = [kind for kind in dict.fromkeys(kinds) if kind][:KINDS_MAX]
    return [TEXTS[kind] for kind in chosen or ["watch"]]
