r"""Holdout: who is left alone, so that lift can be measured. The same users at each run and through each retraining.

A salted hash of ids says it, and nothing else: SHA-256 of the salt, the destination, the segment and the user, in UTF-8
and separated by \x1f, whose first 64 bits as an unsigned big-endian integer are below share * 2**64. So a share is
added to or taken from as it changes, never drawn again, and shares of other segments and destinations are independent.
"""

import functools
import hashlib
import math
from collections.abc import Mapping

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd

from publish.destination import DestinationSettings

SEPARATOR = "\x1f"


def hold_out(user_ids: pd.Series, share: float, salt: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Choose a share of users to be left alone at every destination: the hash is of the salt and the user only."""
    prefix, limit = salt + SEPARATOR, _limit(share)
    return np.array([_digest(prefix + user_id) < limit for user_id in user_ids], dtype=np.bool_)


def held_out_of(segments: pd.Series, destinations: Mapping[str, DestinationSettings], salt: str) -> pd.Series:
    """List by user what a user is held out of, as "destination/segment_id", sorted: empty lists for most.

    `segments` has a list of ids by user, or None. Nobody is held out of a segment that a destination never gets.
    """

    @functools.cache
    def draws(segment_id: str) -> list[tuple[str, str, bytes]]:
        """Return what goes before the user into the hash for each destination, and what the digest has to be below."""
        return [
            (f"{name}/{segment_id}", SEPARATOR.join((salt, name, segment_id, "")), _limit(share))
            for name, settings in destinations.items()
            if (share := _share(settings, segment_id))
        ]

    found = [
        sorted(
            label
            for segment_id in listed or ()
            for label, prefix, limit in draws(segment_id)
            if _digest(prefix + user_id) < limit
        )
        for user_id, listed in zip(segments.index, segments, strict=True)
    ]
    return pd.Series(found, index=segments.index, dtype=object)


def is_held_out(
    user_id: ir.StringValue, segment_id: ir.StringValue, destination: str, settings: DestinationSettings, salt: str
) -> ir.BooleanValue:
    """Tell of users in segments what `held_out_of` tells of them at this destination; never null."""
    limit = _limit_of(segment_id, settings)
    start = ibis.literal(salt + SEPARATOR + destination + SEPARATOR) + segment_id + SEPARATOR
    digest = (start + user_id).hexdigest("sha256")
    # Hexadecimal digits are in order as text; where there is no limit, nothing has to be hashed.
    return limit.isnull().ifelse(False, digest < limit).fill_null(False)


def _limit_of(segment_id: ir.StringValue, settings: DestinationSettings) -> ir.StringValue:
    """Return below which hexadecimal digits the digest has to be for this destination; null: nobody is held out."""
    if isinstance(settings.holdout_share, dict):
        ids = [one for one in settings.holdout_share if _share(settings, one)]
        cases = [(segment_id == one, _limit(_share(settings, one)).hex()) for one in ids]
        return ibis.cases(*cases, else_=None) if cases else ibis.null("string")
    limit = ibis.literal(_limit(settings.holdout_share).hex())
    if settings.segments is None:
        return limit
    return segment_id.isin(settings.segments).ifelse(limit, ibis.null("string"))


def _share(settings: DestinationSettings, segment_id: str) -> float:
    is_chosen = settings.segments is None or segment_id in settings.segments
    return settings.holdout_of(segment_id) if is_chosen else 0


def _limit(share: float) -> bytes:
    """Return the first 64 bits that a digest of those held out does not reach: bytes are in order as integers."""
    return math.ceil(share * 2**64).to_bytes(8)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
