"""How small and how large the numbers of a configuration may be, so that nothing they lead to is out of range."""

DAYS_MIN, DAYS_MAX = 0.01, 36_500
"""A quarter of an hour, and a hundred years: any instant and a few of these are within what calendars have."""
SECONDS_MAX = 86_400
COUNT_MAX = 1_000_000_000
SEED_MAX = 2**31 - 1
"""What every library takes."""
