"""Which tests take longest: `make test-times`."""

from collections import defaultdict
from collections.abc import Iterable

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
    total: dict[str, float] = defaultdict(float)
    of_fixtures: dict[str, float] = defaultdict(float)
    for test, phase, seconds in phases:
        total[test] += seconds
        of_fixtures[test] += seconds if phase != "call" else 0
    first = sorted(total.items(), key=lambda one: (-one[1], one[0]))[:count]
    shown = sum(seconds for _, seconds in first)
    return [
        f"The slowest {len(first)} of {len(total):,} tests take {shown:.1f} of {sum(total.values()):.1f} s",
        "seconds  of which fixtures  test",
        *(f"{seconds:7.2f}  {of_fixtures[test]:17.2f}  {test}" for test, seconds in first),
    ]
