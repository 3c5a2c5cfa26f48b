"""The best one-to-one matching of rows with columns."""

import numpy as np


def matching(gain):
    """Rows and columns, each in at most one pair, such that the gain's sum over pairs is largest.

    All of the fewer of rows and columns are matched. Shortest augmenting paths: O(R^2 C).

    gain: (R, C)    returns: pairs of a row and a column, min(R, C) of them, by row
    Raises ValueError for another shape and what is not finite.
    Kuhn 1955, The Hungarian Method for the Assignment Problem; Jonker and Volgenant 1987, A
    Shortest Augmenting Path Algorithm for Dense and Sparse Linear Assignment Problems.
    """
    if gain.dim() != 2 or not gain.isfinite().all():
        raise ValueError(f"matching: expected finite (R, C), got {tuple(gain.shape)}")
    R, C = gain.shape
    if R > C:
        return sorted((r, c) for c, r in matching(gain.T))
    cost = -gain.double().cpu().numpy()
    u, v = np.zeros(R), np.zeros(C + 1)  # prices: cost - u - v >= 0, and 0 of pairs
    owner = np.full(C + 1, -1)  # the row of each column; the last is where a path begins
    for row in range(R):
        owner[C], column = row, C
        least, before, done = np.full(C, np.inf), np.full(C, C), np.zeros(C + 1, bool)
        while owner[column] >= 0:
            done[column], r = True, owner[column]
            over = cost[r] - u[r] - v[:C]
            nearer = ~done[:C] & (over < least)
            least[nearer], before[nearer] = over[nearer], column
            column = np.where(done[:C], np.inf, least).argmin()
            step = least[column]
            u[owner[done]] += step
            v[done] -= step
            least[~done[:C]] -= step
        while column != C:
            owner[column] = owner[before[column]]
            column = before[column]
    return sorted((int(r), c) for c, r in enumerate(owner[:C]) if r >= 0)
