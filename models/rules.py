"""Named segments: conditions on features, shipped ones and those of habitus.toml. A user may be in many."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, model_validator

from features.limits import COUNT_MAX
from features.sources import Settings
from models import rfm
from models.conditions import (
    Condition,
    ConditionError,
    Kind,
    check,
    features_of,
    holds,
    parse,
    percentiles,
    resolve,
    thresholds,
)
from models.descriptions import SHARE_MAX, SHARE_MIN, USERS_MIN


@dataclass(frozen=True)
class Rule:
    """Name the users who meet a condition: a title, and a sentence for people that goes on from "who".

    `needs` are features without which the rule says nothing: it is off where one is null or 0 for everybody.
    """

    name: str
    title: str
    sentence: str
    condition: str
    needs: tuple[str, ...] = ()

    @property
    def features(self) -> list[str]:
        """List the features that it needs or is about, each once."""
        return [*dict.fromkeys([*self.needs, *features_of(parse(self.condition))])]


SHIPPED = (
    Rule("new_visitors", "New visitors", "came for the first time in the last 7 days", "tenure_days <= 7"),
    Rule(
        "returning_visitors",
        "Returning visitors",
        "came in the last 28 days, and for the first time more than 28 days ago",
        "session_count_28d >= 1 and tenure_days > 28",
    ),
    Rule(
        "frequent_visitors",
        "Frequent visitors",
        "are in the tenth of users who came most often in the last 28 days, and came at least 4 times",
        "session_count_28d >= p90 and session_count_28d >= 4",
    ),
    Rule(
        "one_time_visitors",
        "One-time visitors",
        "came once, and not again for at least a week",
        "session_count = 1 and recency_days >= 7",
    ),
    Rule(
        "occasional_browsers",
        "Occasional browsers",
        "came 2 to 7 times in the last 90 days and never bought",
        "session_count_90d between 2 and 7 and purchase_count = 0",
        needs=("purchase_count",),
    ),
    Rule(
        "frequent_buyers",
        "Frequent buyers",
        "bought at least 3 times in the last 90 days",
        "purchase_count_90d >= 3",
        needs=("purchase_count",),
    ),
    Rule("one_time_buyers", "One-time buyers", "bought exactly once", "purchase_count = 1", needs=("purchase_count",)),
    Rule(
        "high_value_customers",
        "High-value customers",
        "are in the tenth of users who have spent most",
        "revenue_total >= p90 and revenue_total > 0",
        needs=("revenue_total",),
    ),
    Rule(
        "cart_abandoners",
        "Cart abandoners",
        "left a cart in the last 28 days and have bought nothing since",
        "cart_abandoned_recency_days <= 28"
        " and (purchase_recency_days is null or purchase_recency_days > cart_abandoned_recency_days)",
        needs=("cart_count",),
    ),
    Rule(
        "support_seekers",
        "Support seekers",
        "went to support at least twice in the last 28 days",
        "support_visit_count_28d >= 2",
        needs=("support_session_share",),
    ),
    Rule(
        "bargain_reactors",
        "Bargain reactors",
        "came from a campaign at least twice",
        "campaign_session_count >= 2",
        needs=("campaign_session_count",),
    ),
    Rule(
        "researchers",
        "Researchers",
        "searched at least 5 times, saw many items or pages, and never filled a cart",
        "search_count >= 5 and (item_count >= 5 or pages_per_session >= 3) and cart_count = 0",
        needs=("search_count", "cart_count"),
    ),
    Rule(
        "night_or_weekend_users",
        "Night or weekend users",
        "came at least 3 times, and mostly from midnight to 6 or at the weekend",
        "session_count >= 3 and (night_session_share > 0.5 or weekend_session_share > 0.5)",
    ),
    Rule(
        "at_risk",
        "At risk",
        "are in the quarter of users who came most often, and have not come for 28 to 90 days",
        "session_count >= p75 and session_count >= 3 and recency_days between 28 and 90",
    ),
    Rule(
        "won_back",
        "Won back",
        "came back in the last 28 days, after more than 60 days away",
        "return_absence_days > 60",
    ),
    Rule("dormant", "Dormant", "have not come for more than 90 days", "recency_days > 90"),
    *(Rule(*defined) for defined in rfm.DEFINED),
)
LACKING = {
    "purchase_count": "no purchases",
    "revenue_total": "no revenue",
    "cart_count": "no carts",
    "support_session_share": "no support visits",
    "campaign_session_count": "no session came from a campaign",
    "search_count": "no searches",
}
"""By feature: what the data does not have where it is null or 0 for everybody."""
NO_LINES = "no segments were trained yet, which draws the lines of RFM"
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


class RuleSettings(Settings):
    """Define a rule, or switch a shipped one off."""

    enabled: bool = True
    condition: str | None = None
    title: str | None = Field(default=None, min_length=1, max_length=80)
    sentence: str | None = Field(default=None, min_length=1, max_length=300)


class RulesSettings(Settings):
    """Define rules, each in a section by its name, and say which are too small for a campaign or too broad.

    `users_min` and `share_min`, of all users, are the least that a rule has; `share_max` is the most.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, RuleSettings] = Field(init=False)

    users_min: int = Field(default=USERS_MIN, ge=0, le=COUNT_MAX)
    share_min: float = Field(default=SHARE_MIN, ge=0, le=1)
    share_max: float = Field(default=SHARE_MAX, ge=0, le=1)

    @model_validator(mode="after")
    def _rules_have_names_and_conditions(self) -> "RulesSettings":
        shipped = [rule.name for rule in SHIPPED]
        for name, section in self.__pydantic_extra__.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a rule: write small letters, digits and _, a letter first")
            if section.condition is None and name not in shipped:
                near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.5)
                meant = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"{name}: {meant}a rule of your own needs a condition")
        return self

    @property
    def rules(self) -> list[Rule]:
        """List the rules that are not switched off: the shipped ones, then those of one's own as they are given."""
        given = self.__pydantic_extra__
        rules = [_changed(rule, given.get(rule.name, RuleSettings())) for rule in SHIPPED]
        names = {rule.name for rule in SHIPPED}
        rules += [
            _changed(Rule(name, name.replace("_", " ").capitalize(), "", ""), section)
            for name, section in given.items()
            if name not in names
        ]
        return [rule for rule in rules if rule.name not in self.switched_off]

    @property
    def switched_off(self) -> list[str]:
        """List the names of rules that are switched off."""
        return [name for name, section in self.__pydantic_extra__.items() if not section.enabled]

    def check(self, columns: Mapping[str, Kind]) -> None:
        """Check the conditions given against the features there are, by name and kind.

        Raises ValueError that names the rule, the place in its condition, and what would be right.
        """
        for name, section in self.__pydantic_extra__.items():
            if section.condition is not None:
                try:
                    check(parse(section.condition), {**columns, **rfm.WORDS})
                    rfm.check(parse(section.condition))
                except ConditionError as error:
                    raise ValueError(f"rules.{name}.condition: {error}") from error

    def flag(self, users: int, everyone: int) -> str | None:
        """Say of a segment by its size why it is of no use; None if it may be of use."""
        if not users:
            return "nobody"
        if users < self.users_min:
            return f"too small: fewer than {self.users_min:,} users"
        if users < self.share_min * everyone:
            return f"too small: under {100 * self.share_min:g} % of users"
        if users > self.share_max * everyone:
            return f"too broad: over {100 * self.share_max:g} % of users"
        return None


def _changed(rule: Rule, section: RuleSettings) -> Rule:
    """Return a rule as a section redefines it; a condition of one's own is its own sentence, and needs nothing."""
    title = section.title or rule.title
    if section.condition is None:
        return Rule(rule.name, title, section.sentence or rule.sentence, rule.condition, rule.needs)
    return Rule(rule.name, title, section.sentence or section.condition, section.condition)


PERSONAL = "meet a condition on what is personal"
"""Stands for the sentence of a rule that has none but its condition, which not everybody may see."""


def needs(condition: str, features: Collection[str]) -> bool:
    """Tell whether a condition is on one of some features; of one in another language, whether it names one."""
    try:
        return not set(features).isdisjoint(features_of(parse(condition)))
    except ConditionError:
        return any(name in condition for name in features)


def without(rule: Rule, personal: Collection[str]) -> Rule:
    """Return a rule as those may know it who may not see some attributes: its condition is empty where it needs one."""
    if not needs(rule.condition, personal):
        return rule
    return replace(rule, sentence=PERSONAL if rule.sentence == rule.condition else rule.sentence, condition="")


@dataclass(frozen=True)
class ReadyRule:
    """Hold a rule whose condition has numbers in place of percentiles and grades, and what these are by feature.

    Null is the percentile of a feature that no user has, and a grade that nobody reached.
    """

    rule: Rule
    condition: Condition
    thresholds: Mapping[str, float | None]


def prepare(
    rules: Iterable[Rule], users: Any, lines: rfm.Lines | None = None
) -> tuple[list[ReadyRule], dict[str, str]]:
    """Make rules ready for a whole snapshot, a table or a frame; say of each that is off, by name, what is missing.

    What is asked of RFM is told by the `lines` of a training; without any, such rules are off.
    """
    asked = {rule: parse(rule.condition) for rule in rules}
    lacking = _lacking({name for rule in asked for name in rule.needs}, users)
    missing: dict[Rule, dict[str, None]] = {}
    resolved: dict[Rule, Condition] = {}
    for rule, condition in asked.items():
        found = [lacking[name] for name in rule.needs if name in lacking]
        if rfm.is_about(condition) and lines is None:
            found.append(NO_LINES)
        else:
            resolved[rule] = condition if lines is None else rfm.resolve(condition, lines)
            features = [*dict.fromkeys([*rule.needs, *features_of(resolved[rule])])]
            found += [_absent(name) for name in features if name not in users.columns]
        missing[rule] = dict.fromkeys(found)
    kept = {rule: condition for rule, condition in resolved.items() if not missing[rule]}
    values = thresholds(kept.values(), users)
    shown = {key: None if np.isnan(value) else value for key, value in values.items()}
    ready = [
        ReadyRule(
            rule,
            resolve(condition, values),
            {f"{name} p{rank:g}": shown[name, rank] for name, rank in percentiles([condition])}
            | (rfm.thresholds(asked[rule], lines) if lines else {}),
        )
        for rule, condition in kept.items()
    ]
    return ready, {rule.name: ", ".join(what) for rule, what in missing.items() if what}


def match(users: pd.DataFrame, ready: Sequence[ReadyRule]) -> pd.Series:
    """Return the sorted names of the rules that each user of a frame meets, as a list by user_id."""
    met: list[list[str]] = [[]]
    of_users = np.zeros(len(users), dtype=np.int64)
    for name, condition in sorted((one.rule.name, one.condition) for one in ready):
        # What users meet is told apart rule by rule, since few of all combinations occur.
        is_met = holds(condition, users).to_numpy(dtype=bool)
        of_users, found = pd.factorize(2 * of_users + is_met)
        met = [[*met[code // 2], name] if code % 2 else met[code // 2] for code in found]
    names = np.empty(len(users), dtype=object)
    names[:] = [met[code] for code in of_users]
    return pd.Series(names, index=pd.Index(users["user_id"], name="user_id"), name="rule_segments")


def _lacking(features: Iterable[str], users: Any) -> dict[str, str]:
    """Say by feature what is missing: those that are null or 0 for everybody."""
    found = {name: holds(parse(f"{name} != 0"), users).any() for name in sorted(features) if name in users.columns}
    if isinstance(users, ir.Table):
        [found] = users.agg(**found).to_pyarrow().to_pylist() if found else [{}]
    return {name: LACKING[name] for name, is_there in found.items() if not is_there}


def _absent(feature: str) -> str:
    window = re.search(r"_(\d+)d$", feature)
    return f"no {feature}" + (f": add {window[1]} to features.windows_days" if window else "")
