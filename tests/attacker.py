"""Whoever wants to know what a table with margins hides: all that is shown is known, and a solver is asked."""

import numpy as np
from scipy.optimize import linprog


def bounds(shown: np.ndarray, row_sums: np.ndarray, sums: np.ndarray, row: int, column: int) -> tuple[int, int]:
    """Return the least and the most that a cell, or (row -1) the sum of a column, can be; hidden is NaN."""
    rows, columns = shown.shape
    is_known = np.isfinite(sums)
    left = np.vstack([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))[is_known]])
    right = np.concatenate([row_sums, sums[is_known]])
    limits = [(0, None) if np.isnan(cell) else (cell, cell) for cell in shown.ravel()]
    aim = np.zeros(rows * columns)
    aim[[column + columns * i for i in (range(rows) if row < 0 else [row])]] = 1
    least, most = (linprog(sign * aim, A_eq=left, b_eq=right, bounds=limits, method="highs") for sign in (1, -1))
    return round(least.fun), round(-most.fun)
