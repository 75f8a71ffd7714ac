"""Which tests take longest: `make test-times`."""

from collections import Counter
from collections.abc import Iterable, Sequence

Phase = tuple[str, str, float]
"""A test, what of it (setup, call or teardown), and the seconds."""


def slowest(phases: Iterable[Phase], count: int) -> list[str]:
    """Return the lines of a table of the tests that took longest, each with what its fixtures took of that.

    The first test to ask for a fixture that is shared pays for it.

    >>> print(*slowest([("a", "setup", 3.0), ("a", "call", 0.5), ("b", "call", 0.5), ("c", "call", 0.1)], 2), sep="\\n")
    The slowest 2 of 3 tests take 4.0 of 4.1 s
    seconds  of which fixtures  test
       3.50               3.00  a
       0.50               0.00  b
    """
    total: Counter[str] = Counter()
    of_fixtures: Counter[str] = Counter()
    for test, phase, seconds in phases:
        total[test] += seconds
        of_fixtures[test] += seconds if phase != "call" else 0
    return [*_head(total, count), *(f"{s:7.2f}  {of_fixtures[test]:17.2f}  {test}" for test, s in _first(total, count))]


def _head(total: Counter[str], count: int) -> Sequence[str]:
    shown = sum(seconds for _, seconds in _first(total, count))
    return (
        f"The slowest {min(count, len(total))} of {len(total):,} tests take {shown:.1f} of {sum(total.values()):.1f} s",
        "seconds  of which fixtures  test",
    )


def _first(total: Counter[str], count: int) -> list[tuple[str, float]]:
    return sorted(total.items(), key=lambda one: (-one[1], one[0]))[:count]
