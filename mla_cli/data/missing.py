"""Seeded `present` tables: which sample has which modality when some are missing (method.md section 2).

Every draw is over the entries that are really present (an empty cell of a table stays absent), every sample keeps at
least one modality, and nothing is drawn by trial and error. A draw depends on the mask seed, the split, the sorted ids
and the modality names only: permuting rows or modalities permutes the table. Counts are rounded by Python's `round`
(half to even). Patterns, and the law each one draws from:

kept_one     (default; after CPM-Net.) Each sample keeps one of its modalities. Kept counts are balanced within one
             (with natural absence: as balanced as any choice allows) and, given the counts, uniform: a uniform choice
             per sample, from which just enough samples, drawn at random, move to less used modalities. Of the rest,
             K = round(rate x present entries) are removed: equal counts per modality within one, short of what a
             modality has left, and uniform within a modality. For one seed the absences at a lower rate are a subset
             of those at a higher rate, so rate curves share their noise.
bernoulli    Each entry absent with probability `rate` < 1, from the law conditional on one being left, drawn
             modality by modality with the conditional probability of each.
per_modality Exactly round(rate x present entries) absences per modality, drawn uniformly and independently. A
             sample left with nothing gets an entry back, at random in proportion to what the modalities can spare,
             and a random sample that has another modality loses that entry instead. So the law is uniform over all
             such tables when no sample can lose everything and when each keeps exactly one, and close to it between
             (total variation from it below 0.01 at N = 200,000, M = 3).
subset       Everybody loses all modalities outside a subset; takes no rate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations

import numpy as np

from mla_cli.data.assign import choose_kept, kinds_of, level_counts, one_hot, overload, reach_of, reassign, shift_counts
from mla_cli.data.rates import PATTERNS, check_modality, check_request, parse_rates, rate_text
from mla_cli.errors import MlaError
from mla_cli.seeding import generator

__all__ = ["PATTERNS", "Draw", "draw_present", "parse_rates", "subset_present", "subsets"]

Stream = Callable[..., np.random.Generator]  # purpose, modality name -> its own generator


@dataclass(frozen=True, eq=False)
class Draw:
    """One table of absences and how it came about.

    present: bool (sample, modality), rows and columns as they were given.
    requested: rate, or rate per modality; realised: removed entries / really present entries.
    expected: what `realised` averages to over seeds (`bernoulli` only).
    natural_absence: share of all (sample, modality) entries that were absent before the draw.
    """

    present: np.ndarray
    pattern: str
    requested: float | dict[str, float]
    realised: float
    expected: float | None
    natural_absence: float
    seed: int


def draw_present(
    available: np.ndarray,
    ids: Sequence[str] | np.ndarray,
    modalities: Sequence[str],
    *,
    pattern: str,
    rate: float | Mapping[str, float],
    seed: int,
    split: str,
) -> Draw:
    """Draw absences over the entries that are really present.

    available: bool (sample, modality), at least one True per row. `rate`: a fraction, or for `per_modality` fractions
    by modality name (a modality not named loses nothing). Raises MlaError for a rate that cannot be met.
    """
    available = np.asarray(available)
    if available.dtype != bool or available.shape != (len(ids), len(modalities)):
        raise ValueError(f"available is {available.dtype} {available.shape}, not bool {(len(ids), len(modalities))}")
    requested = check_request(pattern, rate, modalities)
    rows, columns = _order(tuple(ids), "ids"), _order(tuple(modalities), "modalities")
    table = available[np.ix_(rows, columns)]
    names = [modalities[column] for column in columns]
    bare = np.flatnonzero(~table.any(axis=1))
    if bare.size:
        raise MlaError(
            f"{bare.size} of {len(table)} samples of split `{split}` have none of the modalities "
            f"{', '.join(modalities)} (first: `{ids[rows[bare[0]]]}`)",
            "leave these samples out, or use a modality that they have",
        )
    stream = partial(generator, seed, "present", split, pattern)
    expected = None
    if isinstance(requested, dict):
        left = _per_modality(table, names, np.array([requested[name] for name in names]), stream, split)
    elif pattern == "kept_one":
        left = _kept_one(table, names, requested, stream, split)
    else:
        left, expected = _bernoulli(table, names, requested, stream), _expected_rate(table, requested)
    present = np.zeros_like(available)
    present[np.ix_(rows, columns)] = left
    entries = int(available.sum())
    return Draw(
        present=present,
        pattern=pattern,
        requested=requested,
        realised=(entries - int(present.sum())) / max(entries, 1),
        expected=expected,
        natural_absence=1 - entries / max(available.size, 1),
        seed=seed,
    )


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets, smallest first, in the given order of modalities.

    >>> subsets(["audio", "text"])
    [('audio',), ('text',), ('audio', 'text')]
    """
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def subset_present(available: np.ndarray, subset: Sequence[str], modalities: Sequence[str]) -> np.ndarray:
    """Leave only the modalities of `subset`: bool (sample, modality).

    A sample that naturally has none of them ends with an all-False row; the caller decides how such rows count.
    """
    if not subset:
        raise MlaError("a subset of modalities cannot be empty", f"choose from {', '.join(modalities)}")
    for name in subset:
        check_modality(name, modalities)
    return available & np.isin(np.array(modalities, dtype=str), np.array(subset, dtype=str))


@lru_cache(maxsize=8)  # a table draws from the same names a hundred times
def _order(names: tuple[str, ...], what: str) -> tuple[int, ...]:
    """Positions that sort the names; sorting makes a draw independent of the order they came in."""
    if len(set(names)) < len(names):
        raise ValueError(f"{what} are not unique, so a draw would depend on their order")
    return tuple(sorted(range(len(names)), key=names.__getitem__))


def _kept_one(table: np.ndarray, names: list[str], rate: float, stream: Stream, split: str) -> np.ndarray:
    entries, num_samples = int(table.sum()), len(table)
    count, highest = round(rate * entries), entries - num_samples
    if count > highest:
        # Rounded down to four digits: the printed rate can be typed and met.
        reachable = f"{highest * 10_000 // entries / 10_000:.12g}"
        raise MlaError(
            f"missing rate `{rate_text(rate)}` cannot be met: it removes {count} of the {entries} entries of split "
            f"`{split}`, but each of its {num_samples} samples keeps one, so at most {highest} can go "
            f"(highest rate `{reachable}`)",
            f"use `{reachable}` or less, or pattern `bernoulli`, which takes any rate below 1",
        )
    rng = stream("keep")
    kept = choose_kept(table, np.ones(len(names)), rng)
    # The kept counts are as balanced as they can be when no move from a modality to one with two fewer is left.
    kept = reassign(kept, table, lambda load: (load[:, None] - load) // 2, rng)
    spare = table & ~one_hot(kept, table)
    counts = level_counts(spare.sum(axis=0), count, rng.permutation(len(names)))
    return table & ~_draw_columns(spare, counts, names, partial(stream, "remove"))


def _bernoulli(table: np.ndarray, names: list[str], rate: float, stream: Stream) -> np.ndarray:
    series = _series(rate, len(names))
    left = table.sum(axis=1)  # entries still to be decided, this modality included
    present = np.zeros_like(table)
    for column, name in enumerate(names):
        # P(absent | one of the `left` entries is present) = rate (1 - rate^(left-1)) / (1 - rate^left); 0 for the last
        last_chance = rate * series[np.maximum(left - 1, 0)] / series[np.maximum(left, 1)]
        absent = np.where(present.any(axis=1), rate, last_chance)
        present[:, column] = table[:, column] & (stream("absent", name).random(len(table)) >= absent)
        left -= table[:, column]
    return present


def _expected_rate(table: np.ndarray, rate: float) -> float:
    """(rate - rate^M) / (1 - rate^M), M the number of modalities a sample has, averaged over present entries."""
    series = _series(rate, table.shape[1])
    have = table.sum(axis=1)
    return float((have * rate * series[have - 1] / series[have]).sum() / max(have.sum(), 1))


def _series(rate: float, num_modalities: int) -> np.ndarray:
    """(1 - rate^n) / (1 - rate) for n = 0..M, as the sum 1 + rate + ... that stays exact next to rate = 1."""
    return np.concatenate([[0.0], np.cumsum(rate ** np.arange(num_modalities))])


def _per_modality(table: np.ndarray, names: list[str], rates: np.ndarray, stream: Stream, split: str) -> np.ndarray:
    counts = _exact_counts(table, names, rates, stream("fit"), split)
    present = table & ~_draw_columns(table, counts, names, partial(stream, "remove"))
    bare = ~present.any(axis=1)
    if not bare.any():
        return present
    rng = stream("keep")
    capacity = present.sum(axis=0)
    kept = choose_kept(present, np.ones(len(names)), rng)
    spare = capacity - np.bincount(kept[~bare], minlength=len(names))
    kept[bare] = choose_kept(table[bare], np.maximum(spare, 1e-9), rng)  # not 0, if the sample has nothing else
    kept = reassign(kept, table, partial(overload, capacity), rng)
    returned = one_hot(kept, table) & ~present
    lost = _draw_columns(present & ~one_hot(kept, table), returned.sum(axis=0), names, partial(stream, "return"))
    return (present | returned) & ~lost


def _exact_counts(
    table: np.ndarray, names: list[str], rates: np.ndarray, rng: np.random.Generator, split: str
) -> np.ndarray:
    """Entries to remove per modality: round(rate x present entries).

    Where the rounding alone asks for too much (0.5 and 0.5 of three samples), the count rounded up by most is rounded
    down instead. Raises MlaError when some samples would lose everything they have.
    """
    have, (kinds, index) = table.sum(axis=0), kinds_of(table)
    asked = rates * have
    counts = np.array([round(entries) for entries in asked.tolist()])
    start = np.zeros(kinds.shape, dtype=np.int64)  # every sample keeps its first modality, then they move on
    start[np.arange(len(kinds)), kinds.argmax(axis=1)] = np.bincount(index, minlength=len(kinds))
    while True:
        settled = shift_counts(start, kinds, partial(overload, have - counts), rng)
        over = np.flatnonzero(settled.sum(axis=0) > have - counts)
        if not over.size:
            return counts
        # Samples kept by these modalities have no other: more of them than entries that would be left.
        short = reach_of(settled, kinds)[over[0]]
        rounded_up = np.where(short, counts - asked, 0)
        if rounded_up.max() < 1e-6:  # 0.29 * 100 falls short of 29 by 4e-15 and is not rounded up
            break
        counts[rounded_up.argmax()] -= 1
    who = ", ".join(name for name, is_short in zip(names, short, strict=True) if is_short)
    confined = int((~table[:, ~short].any(axis=1)).sum())
    entries, gone = int(have[short].sum()), int(counts[short].sum())
    raise MlaError(
        f"missing rates `{rate_text(dict(zip(names, rates.tolist(), strict=True)))}` cannot be met in split `{split}`: "
        f"they remove {gone} of {entries} entries of {who}, but {confined} samples have nothing else and keep one each",
        f"lower the rates of {who}: at most {entries - confined} of these entries can go",
    )


def _draw_columns(
    candidates: np.ndarray, counts: np.ndarray, names: list[str], stream: Callable[[str], np.random.Generator]
) -> np.ndarray:
    """Mark counts[m] of the candidates of each modality, uniformly; a smaller count marks a subset."""
    drawn = np.zeros_like(candidates)
    for column, (name, count) in enumerate(zip(names, counts, strict=True)):
        drawn[stream(name).permutation(np.flatnonzero(candidates[:, column]))[:count], column] = True
    return drawn
