"""Turnover: how many users entered and left each audience from version to version, by what made them do so."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import ibis.expr.types as ir
import pandas as pd

from publish.changes import DECIDED, ENTERED, MADE

STEPS = 10
"""So many versions back are looked at."""
AUDIENCE = ["destination", "segment_id"]
COUNTS = ["entered", "left", "made"]


def last_steps(versions: Sequence[tuple[int, datetime]]) -> Sequence[tuple[int, datetime]]:
    """Return the last of these versions, numbers and instants, from as many instants back as are looked at."""
    first = sorted({as_of for _, as_of in versions})[-STEPS - 1 :][0]
    return versions[[as_of >= first for _, as_of in versions].index(True) :]


def count_turnover(changes: ir.Table) -> pd.DataFrame:
    """Count CHANGES by version, destination and segment: entered, left and made, and how many more members there are.

    Only `gained`, entered less left, counts all reasons. `entered` and `left` are without what a person decided, and
    without audiences held back for their size; `made` are those of them that another model or rule moved.
    """
    is_judged = changes.reason.notin([*DECIDED, "audience_size"])
    is_entered = changes.change == ENTERED
    counts = changes.group_by(["version", *AUDIENCE]).agg(
        gained=is_entered.ifelse(1, -1).sum(),
        entered=(is_judged & is_entered).sum(),
        left=(is_judged & ~is_entered).sum(),
        made=changes.reason.isin(MADE).sum(),
    )
    frame: pd.DataFrame = counts.order_by(["version", *AUDIENCE]).to_pandas()
    return frame


def count_members(audiences: ir.Table) -> pd.DataFrame:
    """Return destination, segment_id and members of AUDIENCES."""
    members = audiences.select("destination", segment_id=audiences.segments.unnest())
    frame: pd.DataFrame = members.group_by(AUDIENCE).agg(members=lambda t: t.count()).to_pandas()
    return frame


def steps(turnover: pd.DataFrame, members: pd.DataFrame, versions: Sequence[tuple[int, datetime]]) -> pd.DataFrame:
    """Return what each audience did at each of the last steps: days, members_before, entered, left and made of them.

    `turnover` is that of `versions`, numbers and instants, without gaps up to the present one, whose `members` these
    are; of the first of them only the instant counts. A step is one to a later instant, and audiences that had no
    members before it have none.
    """
    audiences = members.set_index(AUDIENCE)["members"]
    by_version = turnover.set_index(["version", *AUDIENCE])
    ever = pd.MultiIndex.from_frame(turnover[AUDIENCE].drop_duplicates())
    audiences = audiences.reindex(audiences.index.union(ever), fill_value=0)
    found = []
    for (_, since), (number, as_of) in reversed([*pairwise(versions)]):
        if number in by_version.index:
            moved = by_version.loc[number].reindex(audiences.index, fill_value=0)
        else:
            moved = pd.DataFrame(0, index=audiences.index, columns=["gained", *COUNTS])
        audiences = audiences - moved["gained"]
        if as_of > since:
            step = moved[COUNTS].assign(days=(as_of - since) / timedelta(days=1), members_before=audiences)
            found.append(step[step["members_before"] > 0].reset_index())
    columns = [*AUDIENCE, "days", "members_before", *COUNTS]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)
