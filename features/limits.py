"""How small and how large given numbers and instants may be, so that nothing they lead to is out of range."""

from datetime import UTC, datetime

DAYS_MIN, DAYS_MAX = 0.01, 36_500
"""A quarter of an hour, and a hundred years: any instant and a few of these are within what calendars have."""
SECONDS_MAX = 86_400
FIRST_INSTANT, END_OF_INSTANTS = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Where instants begin, and where they are over: beyond are mistakes, and years that not every library knows."""
COUNT_MAX = 1_000_000_000
SEED_MAX = 2**31 - 1
"""What every library takes."""
