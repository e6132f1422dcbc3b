"""Which samples keep which modality: balanced and random assignments under capacities, for `data/missing.py`.

A table is bool (sample, modality), what each sample has. `kept` is int (sample,), the one modality it certainly keeps.
Samples that have the same modalities are of one kind, and counts, int (kind, modality), say how many of a kind keep a
modality: moves between modalities are found on these few numbers and then made by random samples.
"""

from bisect import bisect_right
from collections.abc import Callable

import numpy as np


def level_counts(capacity: np.ndarray, total: int, order: np.ndarray) -> np.ndarray:
    """Split `total` into counts as equal as the capacities allow; ties go to the first in `order`.

    Kept counts balanced within one leave capacities balanced within one the other way round, so with complete data
    the counts stay within one of each other up to the very last entry.
    """
    level = bisect_right(range(int(capacity.max()) + 1), total, key=lambda height: np.minimum(capacity, height).sum())
    counts = np.minimum(capacity, level - 1)
    room = order[capacity[order] > counts[order]]
    counts[room[: total - counts.sum()]] += 1
    return counts


def choose_kept(allowed: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One allowed modality per row, in proportion to the weights: the first of competing exponential clocks."""
    clocks = rng.standard_exponential(allowed.shape) / weights
    clocks[~allowed] = np.inf
    return clocks.argmin(axis=1)


def one_hot(kept: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Bool (sample, modality): the kept entries alone."""
    return kept[:, None] == np.arange(table.shape[1])


def kinds_of(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of a table, bool (kind, modality), and each sample's kind."""
    codes = table @ (1 << np.arange(table.shape[1]))
    _, example, index = np.unique(codes, return_index=True, return_inverse=True)
    return table[example], index


def overload(capacity: np.ndarray, load: np.ndarray) -> np.ndarray:
    """How many samples should move from a modality above its capacity to one below."""
    return np.minimum((load - capacity)[:, None], capacity - load)


def reassign(
    kept: np.ndarray,
    table: np.ndarray,
    wanted: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Move random samples to other modalities they have until `wanted` (see `shift_counts`) asks for no more."""
    num_modalities = table.shape[1]
    kinds, index = kinds_of(table)
    group = index * num_modalities + kept
    before = np.bincount(group, minlength=kinds.size).reshape(kinds.shape)
    change = (shift_counts(before, kinds, wanted, rng) - before).ravel()
    order = rng.permutation(len(table))
    order = order[np.argsort(group[order], kind="stable")]
    rank = np.arange(len(table)) - (np.cumsum(before) - before.ravel())[group[order]]
    movers = order[rank < -change[group[order]]]  # by kind, as the places they move to are
    kept = kept.copy()
    kept[movers] = np.repeat(np.tile(np.arange(num_modalities), len(kinds)), np.maximum(change, 0))
    return kept


def shift_counts(
    counts: np.ndarray, kinds: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Augmenting paths on counts: (kind, modality) samples of a kind that keep a modality; never mind which samples.

    wanted(load) -> (from, to): how many samples should move between two modalities; a move may go through others.
    """
    counts = counts.copy()
    order = rng.permutation(counts.shape[1])  # who gives when several are equal; also keeps modalities exchangeable
    while True:
        moves = np.where(reach_of(counts, kinds), wanted(counts.sum(axis=0)), 0)[np.ix_(order, order)]
        giver, taker = (order[place] for place in np.unravel_index(moves.argmax(), moves.shape))
        if moves.max() <= 0:
            return counts
        room = counts.T @ kinds  # (from, to) samples that could change over directly
        path = shortest_path(room > 0, giver, taker)
        size = min(moves.max(), *(room[step] for step in path))
        for source, target in path:
            moved = rng.multivariate_hypergeometric(counts[:, source] * kinds[:, target], size)
            counts[:, source] -= moved
            counts[:, target] += moved


def reach_of(counts: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """(from, to): samples can move from one modality to the other, directly or by pushing others on."""
    reach = (counts.T @ kinds > 0) | np.eye(counts.shape[1], dtype=bool)
    for _ in range(counts.shape[1].bit_length()):
        reach = reach @ reach
    return reach


def shortest_path(edges: np.ndarray, start: int, end: int) -> list[tuple[int, int]]:
    """Steps (from, to) that lead from start to end; there is a path."""
    paths: dict[int, list[tuple[int, int]]] = {start: []}
    frontier = [start]
    while end not in paths:
        frontier = [
            paths.setdefault(target, [*paths[source], (source, target)])[-1][1]
            for source in frontier
            for target in np.flatnonzero(edges[source]).tolist()
            if target not in paths
        ]
    return paths[end]
