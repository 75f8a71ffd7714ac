"""AUDIENCES: which user each destination may know of, and in which segments. Everything that leaves goes through here."""

import ibis

from features.table import Table

AUDIENCES = Table(
    name="audiences",
    schema=ibis.schema(
        {
            "destination": "!string",
            "user_id": "!string",
            "refused": "string",
            "segments": "!array<string>",
            "held_out": "!array<string>",
            "held_back": "!array<string>",
        }
    ),
    key=("destination", "user_id"),
)
"""What the present version is at each destination: a row for each of its users, all of them.

`refused` says why a destination must not know of a user (consent, holdout), null where it may: then `segments` are those
that it knows the user to be in, without those whose users it is `held_out` of, and whose audience is `held_back`.
"""
