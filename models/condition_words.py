"""A condition on features in words, for those who do not read the language."""

from features.snapshots import format_value, title
from models.conditions import (
    And,
    Comparison,
    Condition,
    ConditionError,
    Feature,
    Not,
    Or,
    Percentile,
    Value,
    parse,
)

SAID = {
    "=": "is {}",
    "!=": "is not {}",
    "<": "less than {}",
    "<=": "at most {}",
    ">": "more than {}",
    ">=": "at least {}",
    "between": "{} to {}",
    "not between": "not {} to {}",
    "is null": "not known",
    "is not null": "known",
}


def say(condition: Condition) -> str:
    """Say a condition in words.

    >>> from models.conditions import parse
    >>> say(parse("session_count_28d >= p90 and (recency_days <= 7 or device in ('iOS', 'iPad'))"))
    "sessions in the last 28 days: at least the 90th percentile, and (days since the last session: at most 7, or \
device: one of 'iOS', 'iPad')"
    """
    match condition:
        case Comparison(feature, operator, values):
            return f"{title(feature)}: {_compared(feature, operator, values)}"
        case Not(inner):
            return f"not ({say(inner)})"
        case And(parts):
            return ", and ".join(f"({say(one)})" if isinstance(one, Or) else say(one) for one in parts)
        case Or(parts):
            return ", or ".join(f"({say(one)})" if isinstance(one, And) else say(one) for one in parts)


def in_words(text: str) -> str:
    """Say the text of a condition in words; as it is where it is of another version of the language."""
    try:
        return say(parse(text))
    except ConditionError:
        return text


def _compared(feature: str, operator: str, values: tuple[Value, ...]) -> str:
    said = [_value(feature, value) for value in values]
    if operator in ("in", "not in"):
        return f"{'one' if operator == 'in' else 'none'} of {', '.join(said)}"
    return SAID[operator].format(*said)


def _value(feature: str, value: Value) -> str:
    match value:
        case Percentile(rank):
            return f"the {rank:g}th percentile"
        case Feature(name):
            return title(name)
        case str():
            return repr(value)
        case _:
            return format_value(feature, value)
