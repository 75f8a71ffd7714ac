"""Segments keep their ids from one training to the next, and what became of them is on record.

A new model and the one that serves, the old one, are compared on users whom both of them score: those of the snapshot
that the old one was trained on (`before`) and those of the new one's (`now`). Both comparisons are tables of counts, a
row per new segment and a column per old one; everything here follows from these two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

HELD_MIN = 0.5  # of one of two segments that are the same one
STRAGGLERS_MAX = 0.1  # of the other: so few make no pair
POPULATED_MIN = 1 / 3  # of today's share: a place that held less was nearly empty
SOURCE_MIN = 0.25  # of a segment's users: who held so many of them is where it came from

Kind = Literal["kept", "split", "merged", "born", "retired"]


@dataclass(frozen=True)
class Event:
    """Say what became of a segment at a training, from which ids and to which."""

    segment_id: str
    name: str
    kind: Kind
    from_ids: tuple[str, ...] = ()
    to_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in words."""
        if self.kind not in ("split", "merged"):
            return self.kind
        is_old, is_new = self.segment_id in self.from_ids, self.segment_id in self.to_ids
        into = is_old if self.kind == "split" else not is_new
        return f"{self.kind} into {', '.join(self.to_ids)}" if into else f"{self.kind} from {', '.join(self.from_ids)}"


@dataclass(frozen=True)
class SizeChange:
    """Split the change of a segment's size, in users, into what the users did and what the new model did.

    before + behaviour is the size by the old model in the new snapshot; that + model = now, by the new one. The shares
    are of all users of the snapshot, and add up but for rounding.
    """

    segment_id: str
    name: str
    before: int
    behaviour: int
    model: int
    now: int
    before_share: float
    behaviour_share: float
    model_share: float
    now_share: float


@dataclass(frozen=True)
class Lineage:
    """What became of the segments at a training: an event and a change of size per id, old or new, in their order.

    `since` says of each segment that there is now from which instant on it has been there, as far as that is known.
    `overlap_now` and `overlap_before` count users by new id and old one, in the new snapshot and in the old model's. At
    the first training every segment is born, and nothing has changed its size.
    """

    events: tuple[Event, ...]
    size_changes: tuple[SizeChange, ...]
    since: dict[str, str]
    overlap_now: dict[str, dict[str, int]] = field(default_factory=dict)
    overlap_before: dict[str, dict[str, int]] | None = None

    def count(self) -> dict[Kind, int]:
        """Count the events of each kind."""
        kinds = [event.kind for event in self.events]
        return {kind: kinds.count(kind) for kind in get_args(Kind)}

    @property
    def kept_share(self) -> float:
        """Return the share of today's users whom both models put into the segment of the same id."""
        kept = sum(row.get(segment_id, 0) for segment_id, row in self.overlap_now.items())
        return kept / max(sum(sum(row.values()) for row in self.overlap_now.values()), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Lineage":
        """Return the lineage that `to_dict` described."""
        events = (
            Event(**(event | {"from_ids": tuple(event["from_ids"]), "to_ids": tuple(event["to_ids"])}))
            for event in given["events"]
        )
        changes = (SizeChange(**one) for one in given["size_changes"])
        return cls(**{**given, "events": tuple(events), "size_changes": tuple(changes)})


def overlap(new: pd.Series, old: pd.Series, new_ids: Sequence[str], old_ids: Sequence[str]) -> pd.DataFrame:
    """Count users by the segments that two models put them in: a row per new id, a column per old one."""
    counts = np.zeros((len(new_ids), len(old_ids)), dtype=np.int64)
    np.add.at(counts, (pd.Index(new_ids).get_indexer(pd.Index(new)), pd.Index(old_ids).get_indexer(pd.Index(old))), 1)
    return pd.DataFrame(counts, index=list(new_ids), columns=list(old_ids))


def as_dict(counts: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return counts ready for JSON, by row and column."""
    return {str(new): {str(old): int(count) for old, count in row.items()} for new, row in counts.iterrows()}


def match(before: pd.DataFrame, now: pd.DataFrame) -> dict[str, str]:
    """Return which old segment each new one is; a new one without its equal is left out.

    Two segments agree by the share of the old one's users, `before`, who are in the new one, times the share of the
    new one's users, `now`, who are in the old one. Each is so judged by the users among whom it was found: many who
    came to an empty place, or left one for good, would otherwise decide who is who. A pair holds at least half of one
    of the two, and more than stragglers of the other; the pairs are those that agree most in all (Kuhn 1955).
    """
    kept = before.to_numpy() / np.maximum(before.to_numpy().sum(axis=0), 1)
    known = now.to_numpy() / np.maximum(now.to_numpy().sum(axis=1, keepdims=True), 1)
    is_pair = (np.maximum(kept, known) >= HELD_MIN) & (np.minimum(kept, known) > STRAGGLERS_MAX)
    agreement = np.where(is_pair, kept * known, 0.0)
    rows, columns = linear_sum_assignment(agreement, maximize=True)
    return {str(now.index[i]): str(now.columns[j]) for i, j in zip(rows, columns, strict=True) if agreement[i, j] > 0}


def explain(
    before: pd.DataFrame | None, now: pd.DataFrame, sizes_before: pd.Series, names: Mapping[str, str]
) -> tuple[Event, ...]:
    """Say of each segment what became of it, by id; what has the same id in rows and columns is the same one.

    A new segment is *split* from the old ones that held its users before (a quarter of them or more, at least the one
    that held most), and *born* where its place was nearly empty then: its share of the users was less than a third
    of today's. An old one has *merged* into the new one that most of its users are in now, and is *retired* where its
    place is nearly empty now, or where they scatter. A segment that keeps its id in a split or a merger has that event,
    too, in both at once that of the merger, and `to_ids` say the rest. All others are *kept*. `sizes_before` has the
    size of each old segment in its own snapshot.

    Limits. Without `before` nothing tells whether a place was empty: none is born then. A group that comes up close to
    a much larger segment finds the fringe of that one in its place, and counts as split from it; a piece of a segment
    that has grown threefold since counts as born, and one that has shrunk to less than a third and is swallowed by
    another as retired. Where all users of a segment turn to something new together, that is born and the segment
    retired; but what is close to the place that they left is taken for the segment itself.
    """
    then = now if before is None else before
    born, left = _nearly_empty(before, now, sizes_before)
    ways = []
    for new in now.index.difference(now.columns).difference(born):
        users = then.loc[new].drop(left).sort_values(ascending=False, kind="stable")
        large = users[(users > 0) & (users >= SOURCE_MIN * users.sum())]
        ways += [(old, new) for old in (large.index if len(large) else users.index[: int(users.sum() > 0)])]
    for old in now.columns.difference(now.index).difference(left):
        users = now[old].drop(born)
        if users.sum() and users.max() >= HELD_MIN * users.sum():
            ways.append((old, users.idxmax()))
    events = []
    for segment in now.index.union(now.columns):
        came = [old for old, new in ways if new == segment]
        went = [new for old, new in ways if old == segment]
        kind: Kind
        if segment not in now.index:
            kind = "merged" if went else "retired"
        elif segment not in now.columns:
            kind = "split" if came else "born"
        else:
            kind = "merged" if came else "split" if went else "kept"
        from_ids = (segment, *came) if segment in now.columns else (*came,)
        to_ids = (segment, *went) if segment in now.index else (*went,)
        events.append(Event(segment, names[segment], kind, from_ids, to_ids))
    return tuple(events)


def _nearly_empty(
    before: pd.DataFrame | None, now: pd.DataFrame, sizes_before: pd.Series
) -> tuple[list[str], list[str]]:
    """Return the new segments whose place was nearly empty before, and the old ones whose place is so now.

    The users of a place that is empty for the other model are counted elsewhere by it, and have to be left out there:
    so a place may be found empty after another one is.
    """
    olds, news = now.columns.difference(now.index), now.index.difference(now.columns)
    total, total_before = (max(int(counts.to_numpy().sum()), 1) for counts in (now, sizes_before))
    born: list[str] = []
    while True:
        there = now.drop(born).sum(axis=0) / total
        left = [old for old in olds if there[old] < POPULATED_MIN * sizes_before[old] / total_before]
        if before is None:
            return born, left
        then = before.drop(columns=left).sum(axis=1) / total_before
        found = [new for new in news if then[new] < POPULATED_MIN * now.loc[new].sum() / total]
        if found == born:
            return born, left
        born = found


def change_sizes(now: pd.DataFrame, sizes_before: pd.Series, names: Mapping[str, str]) -> tuple[SizeChange, ...]:
    """Split the change of each segment's size, by id, into behaviour and model.

    `sizes_before` has the size of each old segment in its own snapshot; of the new snapshot, the old model's sizes are
    the sums of the columns of `now`, and the new model's those of its rows.
    """
    old, new = now.sum(axis=0), now.sum(axis=1)
    count_before, count_now = max(int(sizes_before.sum()), 1), max(int(now.to_numpy().sum()), 1)
    changes = []
    for segment in sorted({*old.index, *new.index}):
        before, between, after = (int(sizes.get(segment, 0)) for sizes in (sizes_before, old, new))
        shares = before / count_before, between / count_now, after / count_now
        changes.append(
            SizeChange(
                segment,
                names[segment],
                before,
                behaviour=between - before,
                model=after - between,
                now=after,
                before_share=shares[0],
                behaviour_share=shares[1] - shares[0],
                model_share=shares[2] - shares[1],
                now_share=shares[2],
            )
        )
    return tuple(changes)
