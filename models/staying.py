"""How long a user who does nothing goes on meeting a condition: definitions by which members leave as time passes."""

import math

from features.snapshots import is_age, window_of
from models.conditions import And, Comparison, Condition, Feature, Not, Or, Value

COMPLEMENTS = {"<": ">=", "<=": ">", "=": "!=", "between": "not between", "in": "not in"}
COMPLEMENTS |= {one: other for other, one in COMPLEMENTS.items()}


def staying_days(condition: Condition, *, negated: bool = False) -> float:
    """Return the most days for which a user without another event meets a condition; infinite where for ever.

    Ages such as `recency_days` grow by a day each day, counts of the last days fall to 0, and all else stays; so does
    what is compared with another feature, and an age that is compared with a percentile.

    >>> from models.conditions import parse
    >>> staying_days(parse("tenure_days <= 7")), staying_days(parse("recency_days between 28 and 90"))
    (7.0, 62.0)
    >>> staying_days(parse("support_visit_count_28d >= 2")), staying_days(parse("recency_days > 90"))
    (28.0, inf)
    """
    match condition:
        case Comparison():
            return _compared(condition, negated)
        case Not(inner):
            return staying_days(inner, negated=not negated)
        case And(parts) | Or(parts):
            days = [staying_days(part, negated=negated) for part in parts]
            return min(days) if isinstance(condition, And) != negated else max(days)


def _compared(one: Comparison, negated: bool) -> float:
    if any(isinstance(value, Feature) for value in one.values):
        return math.inf
    low, high = _bounds(COMPLEMENTS.get(one.operator, "") if negated else one.operator, one.values)
    window = window_of(one.feature)
    if is_age(one.feature) and high < math.inf:
        return max(high - max(low, 0.0), 0.0)
    if window and low > 0:
        return float(window)
    return math.inf


def _bounds(operator: str, values: tuple[Value, ...]) -> tuple[float, float]:
    """Return the least and the greatest number that a comparison allows, infinite where it sets none."""
    numbers = [value if isinstance(value, float) else math.inf for value in values]
    match operator:
        case "<" | "<=":
            return -math.inf, numbers[0]
        case ">":
            return math.nextafter(numbers[0], math.inf), math.inf
        case ">=":
            return numbers[0], math.inf
        case "=" | "between" | "in":
            return min(numbers), max(numbers)
        case _:
            return -math.inf, math.inf
