"""Suppression: a count of fewer than k users is not shown, nor what would give it away by subtraction.

What is under k and not 0 is *small*. Of a table whose margins are shown, hiding small cells does not do, since one
that is alone in its row or column is what the others leave. So further cells are hidden, until for each small one there
is another table with the same margins and shown cells that has another number there: then nothing that is shown says
which it is. Together, too, the hidden cells of a row or a column are k users or more. A hidden cell may be 0, small, or
large.

The other table is found by a cycle of four hidden cells at the corners of a rectangle: one more user in two opposite
corners and one fewer in the other two changes no margin, and nothing becomes negative (Gusfield 1988, A graph theoretic
approach to statistical data security; here with whole numbers from 0 on). What is not protected is said in
docs/report.md.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Hidden:
    """Say which cells of a table are hidden, and which of the sums of its columns."""

    cells: Mask
    sums: Mask


def is_small(users: Counts, k: int) -> Mask:
    """Tell which counts are of fewer than k users, but not of nobody."""
    return (users > 0) & (users < k)


def hide_parts(counts: Counts, users: Counts, k: int) -> Mask:
    """Return which parts of a whole, whose count is shown, are to be hidden.

    `counts` are what is shown, and `users` those that are counted in it; they are the same where users are counted.
    Beside the small parts these are, where they do not suffice, the smallest others: hidden are two at least that are
    not 0, and together k users and more.
    """
    hidden = is_small(users, k)
    if not hidden.any():
        return hidden
    for part in np.lexsort((np.arange(len(counts)), counts)):
        if hidden.sum() > 1 and users[hidden].sum() >= k:
            break
        hidden[part] |= counts[part] > 0
    return hidden


def hide_cells(counts: Counts, users: Counts, k: int, sum_users: Counts) -> Hidden:
    """Return which cells of a table are to be hidden, whose sums of rows are shown, and those of columns not hidden.

    Rows part all users, and have k or more each, or none. `counts` are what is shown, `users` those who are counted in
    it, `sum_users` those of each column: fewer than the column's sum, where a user is counted in many rows. A column
    whose sum is hidden is hidden whole.
    """
    sums = hide_parts(counts.sum(axis=0), sum_users, k)
    small = is_small(users, k)
    hidden = small | sums
    for row, column in np.argwhere(small & ~sums):
        if not _is_ambiguous(counts, hidden, row, column):
            others = _cheapest(counts, users, hidden, row, column, k)
            if others is None:  # nothing else is in these rows or columns: only the margins may be shown
                hidden[:] = True
                break
            hidden[row, others[1]] = hidden[others[0], column] = hidden[others] = True
    # A column whose sum is hidden is hidden whole, and has nothing more to hide.
    while _hide_more(counts, users, hidden, k) or _hide_more(counts.T, users.T, hidden.T, k):
        pass
    return Hidden(hidden, sums)


def _hide_more(counts: Counts, users: Counts, hidden: Mask, k: int) -> bool:
    """Hide the smallest other cell of each row whose hidden cells are small together; tell whether there was one."""
    found = False
    for row in np.flatnonzero(is_small(np.where(hidden, users, 0).sum(axis=1), k)):
        others = np.flatnonzero(~hidden[row] & (counts[row] > 0))
        if len(others):
            hidden[row, others[counts[row, others].argmin()]] = found = True
    return found


def _rectangles(counts: Counts, row: int, column: int) -> Mask:
    """Tell with which opposite corners a cell can have another value.

    One user fewer in the cell and one fewer in the opposite corner, or one fewer in each of the two others.
    """
    opposite_has = counts > 0
    others_have = (counts[row] > 0)[None, :] & (counts[:, column] > 0)[:, None]
    possible: Mask = opposite_has | others_have
    possible[row] = possible[:, column] = False
    return possible


def _is_ambiguous(counts: Counts, hidden: Mask, row: int, column: int) -> bool:
    corners = hidden & hidden[row][None, :] & hidden[:, column][:, None]
    return bool((corners & _rectangles(counts, row, column)).any())


def _cheapest(counts: Counts, users: Counts, hidden: Mask, row: int, column: int, k: int) -> tuple[int, int] | None:
    """Return the opposite corner of the rectangle that hides least; first of those in which the cell could be large."""
    possible = _rectangles(counts, row, column)
    if not possible.any():
        return None
    shown = np.where(hidden, 0, counts).astype(np.float64)
    cost = shown + shown[row][None, :] + shown[:, column][:, None]
    large = (users[row] >= k)[None, :] & (users[:, column] >= k)[:, None]
    cost += np.where(large, 0, float(counts.sum()) + 1)
    cost[~possible] = np.inf
    found = np.unravel_index(int(cost.argmin()), cost.shape)
    return int(found[0]), int(found[1])
