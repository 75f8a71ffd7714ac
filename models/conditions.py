"""Conditions on features: a small language of its own. What people write is parsed and checked, and never run as code.

    condition  := comparisons joined by `and`, `or` and `not`, in brackets where needed; `not` binds most, `or` least
    comparison := NAME (= | == | != | < | <= | > | >=) VALUE
                | NAME [not] between VALUE and VALUE        both ends included
                | NAME [not] in (VALUE, VALUE, ...)
                | NAME is [not] null
    VALUE      := a number | 'text' or "text", a quote within it doubled | the NAME of another feature
                | pNN, the NNth percentile of that feature over all users of a snapshot: p90, p99.5

Keywords are written in any case. A NAME of other characters than ASCII letters, digits and _ is put between backticks.
A comparison with a null is false, also `!=`, `not between` and `not in`; `not (...)` turns true and false around.
"""

import difflib
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import ibis.expr.types as ir
import numpy as np

Kind = Literal["number", "text"]

LENGTH_MAX = 4_000
DEPTH_MAX = 50
KEYWORDS = {"and", "or", "not", "between", "in", "is", "null"}
COMPARING: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OF_TEXTS = {"=", "!=", "in", "not in", "is null", "is not null"}
TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<percentile>[pP][0-9]+(\.[0-9]+)?(?![\w.]))
    |(?P<number>-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?(?![\w.]))
    |(?P<name>(?!__)[A-Za-z_]\w*)
    |(?P<quoted>`[^`]+`)
    |(?P<text>'([^']|'')*'|"([^"]|"")*")
    |(?P<symbol><=|>=|!=|==|[=<>(),])""",
    re.VERBOSE | re.ASCII,
)
PLAIN_NAME = re.compile(r"(?!__)(?![pP][0-9]+$)[A-Za-z_]\w*", re.ASCII)
TIE = 1e-12
"""By how much, relative to it, a percentile may miss the value that it is."""


class ConditionError(ValueError):
    """Say where a condition is wrong, as a column counted from 1, and what would be right."""

    def __init__(self, column: int, what: str) -> None:
        super().__init__(f"column {column}: {what}")
        self.column = column


@dataclass(frozen=True)
class Percentile:
    """The value of the compared feature below which a share of the users are: `rank` of 100."""

    rank: float


@dataclass(frozen=True)
class Feature:
    """The value of another feature; `column` is where its name is written."""

    name: str
    column: int = field(default=1, compare=False)


Value = float | str | Percentile | Feature


@dataclass(frozen=True)
class Comparison:
    """Compare a feature with values, as many as the operator takes; `column` is where it is written."""

    feature: str
    operator: str
    values: tuple[Value, ...] = ()
    column: int = field(default=1, compare=False)

    def to_text(self) -> str:
        """Write it in the language."""
        name, values = _write_name(self.feature), [_write(value) for value in self.values]
        match self.operator:
            case "between" | "not between":
                return f"{name} {self.operator} {' and '.join(values)}"
            case "in" | "not in":
                return f"{name} {self.operator} ({', '.join(values)})"
            case _:
                return " ".join([name, self.operator, *values])


@dataclass(frozen=True)
class Not:
    """Hold where a condition does not."""

    condition: "Condition"

    def to_text(self) -> str:
        """Write it in the language."""
        return f"not {_bracketed(self.condition, And, Or)}"


@dataclass(frozen=True)
class And:
    """Hold where all of two or more conditions do."""

    conditions: tuple["Condition", ...]

    def to_text(self) -> str:
        """Write it in the language."""
        return " and ".join(_bracketed(one, And, Or) for one in self.conditions)


@dataclass(frozen=True)
class Or:
    """Hold where any of two or more conditions does."""

    conditions: tuple["Condition", ...]

    def to_text(self) -> str:
        """Write it in the language."""
        return " or ".join(_bracketed(one, Or) for one in self.conditions)


Condition = Comparison | Not | And | Or


def parse(text: str) -> Condition:
    """Read a condition. Raises ConditionError where the text is none."""
    if len(text) > LENGTH_MAX:
        raise ConditionError(LENGTH_MAX + 1, f"is {len(text):,} characters long, and {LENGTH_MAX:,} are read at most")
    return _Parser(text).condition()


def comparisons(condition: Condition) -> Iterator[Comparison]:
    """List the comparisons of a condition in the order in which they are written."""
    match condition:
        case Comparison():
            yield condition
        case Not(inner):
            yield from comparisons(inner)
        case And(parts) | Or(parts):
            for part in parts:
                yield from comparisons(part)


def features_of(condition: Condition) -> list[str]:
    """List the features that a condition is about, each once."""
    names: dict[str, None] = {}
    for one in comparisons(condition):
        names |= dict.fromkeys([one.feature, *(value.name for value in one.values if isinstance(value, Feature))])
    return [*names]


def check(condition: Condition, columns: Mapping[str, Kind]) -> None:
    """Check a condition against the features there are.

    Raises ConditionError for a feature that is unknown, and for one that is compared with what it cannot be.
    """

    def kind_of(name: str, column: int, hint: str = "") -> Kind:
        if name in columns:
            return columns[name]
        near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]}?" if near else hint
        raise ConditionError(column, f"there is no feature {name}{meant}")

    for one in comparisons(condition):
        kind = kind_of(one.feature, one.column)
        if kind == "text" and one.operator not in OF_TEXTS:
            raise ConditionError(one.column, f"{one.feature} is a text: compare it with =, !=, in or is null")
        for value in one.values:
            match value:
                case Feature(name, column):
                    found = kind_of(name, column, hint=f"; a text is quoted: {_write(name)}")
                case Percentile():
                    found = "number"
                case _:
                    found = "text" if isinstance(value, str) else "number"
            if found != kind:
                raise ConditionError(one.column, f"{one.feature} is a {kind}, and {_write(value)} is a {found}")


def holds(condition: Condition, users: Any) -> Any:
    """Tell of users, a table or a frame, who meets a condition without percentiles: true or false, never null."""
    match condition:
        case Comparison():
            return _compare(condition, users)
        case Not(inner):
            return ~holds(inner, users)
        case And(parts):
            return _join(operator.and_, [holds(part, users) for part in parts])
        case Or(parts):
            return _join(operator.or_, [holds(part, users) for part in parts])


Thresholds = Mapping[tuple[str, float], float]
"""By feature and rank: the value of a percentile."""


def percentiles(conditions: Iterable[Condition]) -> list[tuple[str, float]]:
    """List the percentiles that conditions compare with, as feature and rank, each once."""
    found = {
        (one.feature, value.rank): None
        for condition in conditions
        for one in comparisons(condition)
        for value in one.values
        if isinstance(value, Percentile)
    }
    return [*found]


def thresholds(conditions: Iterable[Condition], users: Any) -> dict[tuple[str, float], float]:
    """Return the percentiles that conditions compare with, over users as a table or a frame.

    Between two users' values they are interpolated linearly; NaN where no user has a value.
    """
    asked = percentiles(conditions)
    if not isinstance(users, ir.Table):
        columns = [users[name].dropna().to_numpy(dtype=np.float64) for name, _ in asked]
        found = [
            float(np.quantile(known, rank / 100)) if len(known) else np.nan
            for known, (_, rank) in zip(columns, asked, strict=True)
        ]
        near = [
            float(known[known <= value + TIE * abs(value)].max(initial=-np.inf))
            for known, value in zip(columns, found, strict=True)
        ]
    else:
        quantiles = [users[name].quantile(rank / 100, where=_is_known(users[name])) for name, rank in asked]
        found = _aggregate(users, quantiles)
        near = _aggregate(
            users,
            [
                users[name].max(where=_is_known(users[name]) & (users[name] <= value + TIE * abs(value)))
                for (name, _), value in zip(asked, found, strict=True)
            ],
        )
    # Engines differ in the last bits of what they interpolate, also between equal values, and a user's own must match.
    return {
        key: own if abs(own - value) <= TIE * abs(value) else float(f"{value:.12g}")
        for key, value, own in zip(asked, found, near, strict=True)
    }


def resolve(condition: Condition, values: Thresholds) -> Condition:
    """Return a condition with numbers in place of its percentiles."""
    match condition:
        case Comparison(feature=name):
            numbers = tuple(
                values[name, value.rank] if isinstance(value, Percentile) else value for value in condition.values
            )
            return replace(condition, values=numbers)
        case Not(inner):
            return Not(resolve(inner, values))
        case And(parts):
            return And(tuple(resolve(part, values) for part in parts))
        case Or(parts):
            return Or(tuple(resolve(part, values) for part in parts))


# --- on tables and frames, by the operators that both have ---


def _compare(one: Comparison, users: Any) -> Any:
    column = users[one.feature]
    known = _is_known(column)
    values: list[Any] = []
    for value in one.values:
        if isinstance(value, Percentile):
            raise ValueError(f"{one.to_text()}: a percentile has no value yet; see thresholds")
        if isinstance(value, Feature):
            values.append(users[value.name])
            known = known & _is_known(values[-1])
        elif value != value:  # NaN, a percentile of nothing, which engines hold to be larger than all numbers
            return known & ~known
        else:
            values.append(value)
    match one.operator:
        case "is null":
            return ~known
        case "is not null":
            return known
        case "between":
            return (column >= values[0]) & (column <= values[1]) & known
        case "not between":
            return ((column < values[0]) | (column > values[1])) & known
        case "in":
            return _join(operator.or_, [column == value for value in values]) & known
        case "not in":
            return _join(operator.and_, [column != value for value in values]) & known
        case _:
            return COMPARING[one.operator](column, values[0]) & known


def _is_known(column: Any) -> Any:
    known = column.notnull()
    # To engines NaN is a number, the largest.
    return known & ~column.isnan() if isinstance(column, ir.FloatingValue) else known


def _join(join: Callable[[Any, Any], Any], parts: list[Any]) -> Any:
    """Join in halves, so that no expression is deep."""
    middle = len(parts) // 2
    return parts[0] if not middle else join(_join(join, parts[:middle]), _join(join, parts[middle:]))


def _aggregate(users: ir.Table, values: list[ir.Scalar]) -> list[float]:
    named = {str(number): value for number, value in enumerate(values)}
    [row] = users.agg(**named).to_pyarrow().to_pylist() if named else [{}]
    return [np.nan if value is None else float(value) for value in row.values()]


# --- text ---


def _bracketed(condition: Condition, *weaker: type) -> str:
    return f"({condition.to_text()})" if isinstance(condition, weaker) else condition.to_text()


def _write(value: Value) -> str:
    match value:
        case Feature(name):
            return _write_name(name)
        case Percentile(rank):
            return f"p{np.format_float_positional(rank, trim='-')}"
        case str():
            return "'" + value.replace("'", "''") + "'"
        case _:
            number = float(value)
            return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _write_name(name: str) -> str:
    return name if PLAIN_NAME.fullmatch(name) and name.lower() not in KEYWORDS else f"`{name}`"


class _Token(NamedTuple):
    """A piece of the text: of which kind (a keyword is its own), as it is written, and where it begins."""

    kind: str
    text: str
    column: int


class _Parser:
    """Read a text from left to right, by recursive descent."""

    def __init__(self, text: str) -> None:
        self.tokens = [*_tokens(text), _Token("end", "", len(text) + 1)]
        self.place = 0

    def condition(self) -> Condition:
        condition = self._either(0)
        self._expect("end", "and, or, or the end")
        return condition

    def _either(self, depth: int) -> Condition:
        parts = [self._all(depth)]
        while self._take("or"):
            parts.append(self._all(depth))
        return Or(tuple(parts)) if parts[1:] else parts[0]

    def _all(self, depth: int) -> Condition:
        parts = [self._one(depth)]
        while self._take("and"):
            parts.append(self._one(depth))
        return And(tuple(parts)) if parts[1:] else parts[0]

    def _one(self, depth: int) -> Condition:
        if depth > DEPTH_MAX:
            raise ConditionError(self.tokens[self.place].column, f"is nested more than {DEPTH_MAX} deep")
        if self._take("not"):
            return Not(self._one(depth + 1))
        if self._take("("):
            condition = self._either(depth + 1)
            self._expect(")", "and, or, or a closing bracket")
            return condition
        return self._comparison()

    def _comparison(self) -> Comparison:
        first = self._expect("name", "the name of a feature")
        name, column = first.text, first.column
        if self._take("is"):
            negated = self._take("not")
            self._expect("null", "null" if negated else "null or not null")
            return Comparison(name, "is not null" if negated else "is null", (), column)
        negation = "not " if self._take("not") else ""
        if self._take("between"):
            low = self._value()
            self._expect("and", "and, with the upper end")
            high = self._value()
            if isinstance(low, float) and isinstance(high, float) and low > high:
                raise ConditionError(
                    column, f"between {_write(low)} and {_write(high)} is nothing: the lower end first"
                )
            return Comparison(name, f"{negation}between", (low, high), column)
        if self._take("in"):
            self._expect("(", "an opening bracket")
            values = [self._value()]
            while self._take(","):
                values.append(self._value())
            self._expect(")", "a comma or a closing bracket")
            return Comparison(name, f"{negation}in", tuple(values), column)
        if negation:
            raise self._unexpected("between or in")
        sign = self._expect("comparing", "=, !=, <, <=, >, >=, between, in or is").text
        return Comparison(name, "=" if sign == "==" else sign, (self._value(),), column)

    def _value(self) -> Value:
        token = self.tokens[self.place]
        self.place += 1
        match token.kind:
            case "number":
                number = float(token.text)
                if np.isinf(number):
                    raise ConditionError(token.column, "is too large for a number")
                return number
            case "percentile":
                rank = float(token.text[1:])
                if rank > 100:
                    raise ConditionError(token.column, f"there is no percentile {token.text}: they go from p0 to p100")
                return Percentile(rank)
            case "text":
                return token.text
            case "name":
                return Feature(token.text, token.column)
        self.place -= 1
        raise self._unexpected("a number, a 'text', a percentile such as p90, or the name of a feature")

    def _take(self, kind: str) -> bool:
        taken = self.tokens[self.place].kind == kind
        self.place += taken
        return taken

    def _expect(self, kind: str, wanted: str) -> _Token:
        token = self.tokens[self.place]
        if not self._take(kind):
            raise self._unexpected(wanted)
        return token

    def _unexpected(self, wanted: str) -> ConditionError:
        token = self.tokens[self.place]
        found = "it ends" if token.kind == "end" else f"here is {token.text[:40]!a}"
        return ConditionError(token.column, f"{found} where one expects {wanted}")


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        column = place + 1
        found = TOKEN.match(text, place)
        if found is None:
            raise ConditionError(column, _explain(text[place:]))
        place = found.end()
        kind, written = str(found.lastgroup), found.group()
        match kind:
            case "space":
                continue
            case "name" if written.lower() in KEYWORDS:
                kind = written.lower()
            case "quoted":
                kind, written = "name", written[1:-1]
            case "text":
                quote = written[0]
                written = written[1:-1].replace(quote * 2, quote)
                if any(unicodedata.category(character) in ("Cc", "Cs") for character in written):
                    raise ConditionError(column, "a text holds no control characters")
            case "symbol":
                kind = "comparing" if written in COMPARING or written == "==" else written
        yield _Token(kind, written, column)


def _explain(rest: str) -> str:
    """Say what is wrong with a text that begins with no token."""
    first = rest[0]
    if first in "'\"`":
        return f"the quote {first} is not closed"
    if not first.isascii():
        name = unicodedata.name(first, "a character without a name")
        return f"{first!a} ({name}) means nothing here: write ASCII, or quote a text"
    if rest.startswith("__"):
        return "a name does not begin with two underscores"
    if first.isdigit() or first == "-":
        return "a number is written as 3, -2, 0.5 or 1e3"
    return f"{first!a} means nothing here"
