"""Who entered and left segments since the last version, as far as it may be told."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from publish.report.content import SUPPRESSED, Change, Changes, Count
from publish.report.groups import Groups
from publish.report.suppression import Mask, hide_cells, hide_parts, is_small

Moved = Mapping[str, Mapping[tuple[bool, str], int]]
"""By segment: users by whether they entered (or left) and why."""


def count_changes(
    moved: Moved, groups: Groups, reasons: Mapping[str, str], version: int, as_of: datetime
) -> tuple[Changes, dict[str, Changes]]:
    """Return the changes since a version over all discovered segments, and of each segment that is shown.

    Sizes before and after are known, and so is the difference of who entered and who left: of a segment both are shown
    or none. What is hidden of discovered segments is hidden for two at least, and where that does not do, for all.
    """
    names = [reason for reason in reasons if any(key[1] == reason for one in moved.values() for key in one)]
    tables = {
        entered: {
            name: np.array([moved.get(name, {}).get((entered, reason), 0) for reason in names], dtype=np.int64)
            for name in {*moved, *groups.ids}
        }
        for entered in (True, False)
    }
    parts = sorted({*moved, *groups.discovered} - set(groups.named))
    entered_of, left_of = (
        np.array([tables[entered][name].sum() for name in parts], dtype=np.int64) for entered in (True, False)
    )
    unshown = np.array([name not in groups.shown for name in parts], dtype=bool)
    hidden, is_total_hidden = _hide_rows(entered_of, left_of, unshown, groups.k)
    kept = [name for name, is_hidden in zip(parts, hidden, strict=True) if not is_hidden]
    cells = {
        entered: _hide_reasons({name: tables[entered][name] for name in parts}, kept, is_total_hidden, groups.k)
        for entered in (True, False)
    }

    def tell(entered: NDArray[np.int64], left: NDArray[np.int64], masks: tuple[Mask, Mask], hide: bool) -> Changes:
        counts = [
            [SUPPRESSED if hide or mask[i] else int(row[i]) for i in range(len(names))]
            for row, mask in zip((entered, left), masks, strict=True)
        ]
        totals: list[Count] = [SUPPRESSED if hide else int(row.sum()) for row in (entered, left)]
        changes = [
            Change(reason=reason, words=reasons[reason], entered=counts[0][i], left=counts[1][i])
            for i, reason in enumerate(names)
            if entered[i] or left[i]
        ]
        return Changes(version=version, as_of=as_of, entered=totals[0], left=totals[1], reasons=changes)

    nothing = np.zeros(len(names), dtype=bool)
    found = {}
    for name in groups.shown:
        rows = tables[True][name], tables[False][name]
        if name in groups.named:
            is_hidden = bool(is_small(np.array([row.sum() for row in rows]), groups.k).any())
            found[name] = tell(
                *rows, (hide_parts(rows[0], rows[0], groups.k), hide_parts(rows[1], rows[1], groups.k)), is_hidden
            )
        else:
            masks = cells[True][0].get(name, nothing), cells[False][0].get(name, nothing)
            found[name] = tell(*rows, masks, name not in kept)
    sums = [
        sum((tables[entered][name] for name in parts), np.zeros(len(names), dtype=np.int64))
        for entered in (True, False)
    ]
    return tell(sums[0], sums[1], (cells[True][1], cells[False][1]), is_total_hidden), found


def _hide_rows(entered: NDArray[np.int64], left: NDArray[np.int64], hidden: Mask, k: int) -> tuple[Mask, bool]:
    """Return of which discovered segments who entered and left is hidden, and whether it is in all, too."""
    small = is_small(entered, k) | is_small(left, k)
    hidden = hidden | hide_parts(entered, entered, k) | hide_parts(left, left, k) | small
    if not hidden.any():
        return hidden, False
    both = (entered > 0) & (left > 0)
    for part in np.argsort(entered + left, kind="stable"):
        if not small.any() or (hidden & both).sum() > 1:
            break
        hidden[part] |= both[part]
    totals = np.array([entered.sum(), left.sum(), entered[hidden].sum(), left[hidden].sum()])
    enough = (not small.any() or (hidden & both).sum() > 1) and not is_small(totals, k).any()
    return hidden, not enough


def _hide_reasons(
    rows: Mapping[str, NDArray[np.int64]], kept: list[str], is_total_hidden: bool, k: int
) -> tuple[dict[str, Mask], Mask]:
    """Return which reasons are hidden, of each segment that is kept and in all."""
    everyone = sum(rows.values(), np.zeros_like(next(iter(rows.values()), np.zeros(0, dtype=np.int64))))
    if is_total_hidden:
        return {name: hide_parts(rows[name], rows[name], k) for name in kept}, np.ones(len(everyone), dtype=bool)
    counts = np.array(
        [*(rows[name] for name in kept), everyone - sum((rows[name] for name in kept), np.zeros_like(everyone))]
    )
    if not counts.size:
        return {}, np.zeros(len(everyone), dtype=bool)
    found = hide_cells(counts, counts, k, everyone)
    return dict(zip(kept, found.cells[:-1], strict=True)), found.sums
