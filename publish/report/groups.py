"""Groups: who is in which segment, and which counts over them may be shown. All that a report counts is counted here.

A count over columns is shown for all users, for discovered segments, which part all users, and for named ones, which
overlap. Discovered segments are one table with margins; each named one is a table with everybody who is not in it, and
within each segment that holds all of its users, a table with the others in there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from publish.report.suppression import Counts, Mask, hide_cells, hide_parts, is_small

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Counted:
    """Hold counts by column, of all users and by segment, and which are hidden."""

    everyone: Counts
    everyone_hidden: Mask
    segments: Mapping[str, Counts]
    hidden: Mapping[str, Mask]


@dataclass(frozen=True)
class Groups:
    """Hold who is in which segment: by id a row of `members`, a column for each user; the discovered ones come first.

    Each user is in one discovered segment at most, and in any number of named ones. `k` is the smallest count shown.
    """

    discovered: Sequence[str]
    named: Sequence[str]
    members: Mask
    k: int

    @property
    def ids(self) -> list[str]:
        """List the segments, the discovered ones first."""
        return [*self.discovered, *self.named]

    @property
    def user_count(self) -> int:
        """Return the number of all users."""
        return int(self.members.shape[1])

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Return the number of users by segment."""
        return {name: int(row.sum()) for name, row in zip(self.ids, self.members, strict=True)}

    @cached_property
    def shown(self) -> list[str]:
        """List the segments of which numbers may be shown, and that have users."""
        discovered, named = ({name: self.sizes[name] for name in names} for names in (self.discovered, self.named))
        hidden = hide_segments(discovered, named, self.user_count, self.k)
        return [name for name in self.ids if self.sizes[name] and name not in hidden]

    @cached_property
    def _rows(self) -> dict[str, NDArray[np.intp]]:
        return {name: np.flatnonzero(row) for name, row in zip(self.ids, self.members, strict=True)}

    def rows(self, name: str) -> NDArray[np.intp]:
        """Return the positions of a segment's users."""
        return self._rows[name]

    @cached_property
    def _weights(self) -> csr_array:
        """Return a row for each segment that is shown, with 1 for each of its users."""
        return csr_array(self.members[[self.ids.index(name) for name in self.shown]].astype(np.float64))

    def sum(self, values: NDArray[np.number | np.bool_]) -> tuple[Values, dict[str, Values]]:
        """Return the sums of columns over all users, and by segment that is shown. A row of `values` is a user's."""
        sums = self._weights @ values.astype(np.float64)
        return values.sum(axis=0, dtype=np.float64), dict(zip(self.shown, sums, strict=True))

    def count(self, amounts: NDArray[np.integer | np.bool_]) -> Counted:
        """Count by column; a row of `amounts` is a user's, and has how often the user counts in each column."""
        everyone, counts = self.sum(amounts)
        everyone_users, users = self.sum(amounts > 0)
        return self._hide(
            _whole(everyone),
            _whole(everyone_users),
            {name: _whole(row) for name, row in counts.items()},
            {name: _whole(row) for name, row in users.items()},
        )

    def count_values(self, codes: NDArray[np.integer], count: int) -> Counted:
        """Count users by a value that each has, coded from 0 to below `count`."""
        everyone = np.bincount(codes, minlength=count)
        by_name = {name: np.bincount(codes[self.rows(name)], minlength=count) for name in self.shown}
        return self._hide(everyone, everyone, by_name, by_name)

    def _hide(
        self, everyone: Counts, everyone_users: Counts, by_name: Mapping[str, Counts], users_of: Mapping[str, Counts]
    ) -> Counted:
        """Say which counts are hidden, by how many users are counted in each."""
        parts = [name for name in self.shown if name in self.discovered]
        rest = everyone - sum((by_name[name] for name in parts), np.zeros_like(everyone))
        rest_users = everyone_users - sum((users_of[name] for name in parts), np.zeros_like(everyone))
        parted = hide_cells(
            np.array([*(by_name[name] for name in parts), rest]),
            np.array([*(users_of[name] for name in parts), rest_users]),
            self.k,
            everyone_users,
        )
        hidden = dict(zip(parts, parted.cells[:-1], strict=True))

        def hide(inner: str, outer: Counts, outer_users: Counts) -> Mask:
            """Return what is hidden of a segment within a larger whole."""
            both = np.array([by_name[inner], outer - by_name[inner]])
            both_users = np.array([users_of[inner], outer_users - users_of[inner]])
            cells: Mask = hide_cells(both, both_users, self.k, outer_users).cells[0]
            return cells

        for name in self.shown:
            if name in self.named:
                hidden[name] = hide(name, everyone, everyone_users)
        for inner, outer in self._nested:
            of = inner if inner in self.named else outer
            hidden[of] = hidden[of] | hide(inner, by_name[outer], users_of[outer])
        for one, other in self._twins:
            hidden[one] = hidden[other] = hidden[one] | hidden[other]
        return Counted(everyone, parted.sums, by_name, hidden)

    @cached_property
    def _overlap(self) -> Counts:
        return _whole((self._weights @ self._weights.T).toarray())

    @cached_property
    def _nested(self) -> list[tuple[str, str]]:
        """List the pairs of segments of which the second holds all users of the first, and more; one is named."""
        return [pair for pair in self._pairs() if self.sizes[pair[0]] < self.sizes[pair[1]]]

    @cached_property
    def _twins(self) -> list[tuple[str, str]]:
        """List the pairs of segments that have the same users."""
        return [pair for pair in self._pairs() if self.sizes[pair[0]] == self.sizes[pair[1]] and pair[0] < pair[1]]

    def _pairs(self) -> list[tuple[str, str]]:
        return [
            (inner, outer)
            for i, inner in enumerate(self.shown)
            for j, outer in enumerate(self.shown)
            if i != j and self._overlap[i, j] == self.sizes[inner] and {inner, outer} & set(self.named)
        ]


def hide_segments(discovered: Mapping[str, int], named: Mapping[str, int], user_count: int, k: int) -> set[str]:
    """Return the segments whose number of users, by id, may not be shown where that of all users is.

    Discovered ones, and users in none of them, part all users; a named one parts them into those in it and the others.
    """
    parts = np.array([*discovered.values(), user_count - sum(discovered.values())])
    hidden = {name for name, is_hidden in zip(discovered, hide_parts(parts, parts, k), strict=False) if is_hidden}
    return hidden | {name for name, size in named.items() if is_small(np.array([size, user_count - size]), k).any()}


def _whole(sums: NDArray[np.floating]) -> Counts:
    whole: Counts = np.rint(sums).astype(np.int64)
    return whole
