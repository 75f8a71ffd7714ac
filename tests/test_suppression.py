"""A count under k is not shown, and cannot be worked out: the attacker knows all that is shown, and asks a solver."""

import numpy as np
import pytest
from attacker import bounds
from hypothesis import given
from hypothesis import strategies as st
from laws import law

from publish.report.suppression import hide_cells, hide_parts, is_small

K = 4
tables = st.integers(1, 5).flatmap(
    lambda columns: st.lists(
        st.lists(st.one_of(st.integers(0, 3), st.integers(0, 12)), min_size=columns, max_size=columns).filter(
            lambda row: sum(row) >= K
        ),
        min_size=1,
        max_size=5,
    )
).map(np.array)  # fmt: skip


def test_two_small_parts_that_are_small_together_hide_a_third() -> None:
    users = np.array([3, 2, 50, 40])

    assert hide_parts(users, users, 10).tolist() == [True, True, False, True]


@law(40)
@given(tables)
def test_no_small_cell_of_a_table_with_margins_can_be_worked_out(counts: np.ndarray) -> None:
    hidden = hide_cells(counts, counts, K, counts.sum(axis=0))
    shown = np.where(hidden.cells, np.nan, counts)
    sums = np.where(hidden.sums, np.nan, counts.sum(axis=0))
    for row, column in np.argwhere(is_small(counts, K)):
        assert hidden.cells[row, column]
        least, most = bounds(shown, counts.sum(axis=1), sums, int(row), int(column))
        assert least < most
    for column in np.flatnonzero(is_small(counts.sum(axis=0), K)):
        assert hidden.sums[column]
        least, most = bounds(shown, counts.sum(axis=1), sums, -1, int(column))
        assert least < most


@given(tables)
def test_what_is_hidden_of_a_row_or_a_column_is_together_not_small(counts: np.ndarray) -> None:
    hidden = hide_cells(counts, counts, K, counts.sum(axis=0))
    left = np.where(hidden.cells, counts, 0)
    assert not is_small(left.sum(axis=1), K).any()
    assert not is_small(left.sum(axis=0)[~hidden.sums], K).any()


@given(tables)
def test_what_no_small_count_needs_is_shown(counts: np.ndarray) -> None:
    hidden = hide_cells(counts, counts, K, counts.sum(axis=0))
    assert is_small(counts, K).any() or not hidden.cells.any()


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda parts: sum(parts) >= K).map(np.array))
def test_no_small_part_of_a_whole_can_be_worked_out(counts: np.ndarray) -> None:
    hidden = hide_parts(counts, counts, K)
    assert (hidden >= is_small(counts, K)).all()
    assert not hidden.any() or (hidden.sum() > 1 and counts[hidden].sum() >= K)


def test_the_smallest_other_part_is_hidden_too() -> None:
    assert hide_parts(np.array([50, 3, 0, 20]), np.array([50, 3, 0, 20]), 10).tolist() == [False, True, False, True]


def test_many_sessions_of_few_users_are_hidden() -> None:
    sessions, users = np.array([[90, 60], [80, 70]]), np.array([[2, 30], [40, 35]])
    assert hide_cells(sessions, users, 10, np.array([42, 60])).cells.all()


def test_the_rectangle_that_costs_least_is_hidden() -> None:
    counts = np.array([[5, 100, 20], [30, 200, 60], [70, 90, 80]])
    hidden = hide_cells(counts, counts, 10, counts.sum(axis=0)).cells
    assert hidden.tolist() == [[True, False, True], [True, False, True], [False, False, False]]


@pytest.mark.parametrize("k", [0, 1])
def test_nothing_is_hidden_where_every_count_may_be_shown(k: int) -> None:
    counts = np.array([[1, 0], [2, 5]])
    assert not hide_cells(counts, counts, k, counts.sum(axis=0)).cells.any()
