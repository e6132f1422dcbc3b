"""95 % intervals over test samples: a bootstrap of what is independent, groups where the data name them.

The bootstrap resamples units with replacement (Efron & Tibshirani 1993): a unit is all samples of one group (speaker,
voice, dialogue), or one sample that has no group. The bounds are percentiles of the resampled values, with three
corrections. Few units vary too little when they are resampled: with m of them, the normal quantile 1.96 becomes
sqrt(m / (m - 1)) times that of Student's t with m - 1 degrees of freedom (Hesterberg 2015, expanded percentiles). Where
units differ in size, m is their effective number, (sum of sizes)^2 / (sum of squared sizes) (Kish 1965). Resampling
biases macro-F1, recall of rare classes and rankings: the percentiles move by twice the normal quantile of the share of
draws below the value (Efron 1981, bias-corrected). Acceleration (BCa) covered the truth less often in
simulations with unequal groups and is not used; figures: README, Statistics.
"""

import functools
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np

from mla_cli.seeding import generator

DRAWS = 2000  # a bound then wanders by less than 0.1 standard errors from seed to seed
LEVEL = 0.95
NORMAL = NormalDist()
FEWEST_UNITS = 10  # with fewer the spread between units is hardly known
MANY = 4096  # units; of more, equal ones are drawn together, where there are equal ones


def units_of(groups: Iterable[str], sources: Iterable[str] | None = None) -> np.ndarray:
    """The unit of every sample, numbered from 0: int (sample,).

    groups: names, empty where a sample has none. sources: of pairs that were drawn by class, their ids: the sources of
    a pair joined by `+`, as in its group. Pairs that share a source, or a part of their group, are one unit, and so are
    those between which others make a chain.
    """
    if sources is not None:
        return _linked(
            [[*_parts("s", source), *_parts("g", group)] for source, group in zip(sources, groups, strict=True)]
        )
    names = [f"g{group}" if group else f"s{i}" for i, group in enumerate(groups)]
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].reshape(-1)


def _parts(kind: str, name: str) -> list[str]:
    return [kind + part for part in name.split("+") if part]


def _linked(names: Sequence[Sequence[str]]) -> np.ndarray:
    """Number of the connected part of every row, where rows with a name in common are connected."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    column = {name: i for i, name in enumerate(dict.fromkeys(name for row in names for name in row))}
    rows = np.repeat(np.arange(len(names)), [len(row) for row in names])
    columns = np.array([column[name] for row in names for name in row], dtype=int) + len(names)
    size = len(names) + len(column)
    links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    return connected_components(links, directed=False)[1][: len(names)]


def per_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Sums of (sample, column) over the samples of each unit: float64 (unit, column)."""
    count = int(units.max()) + 1
    return np.stack([np.bincount(units, column, minlength=count) for column in np.transpose(values)], axis=1)


@functools.lru_cache(maxsize=4)
def draw_counts(units: int, draws: int = DRAWS) -> np.ndarray:
    """How often each unit is in each resample: uint8 (draw, unit), rows sum to the number of units.

    It depends on that number only, so all methods are resampled alike.
    """
    rng = generator(0, "bootstrap", units)
    counts = np.empty((draws, units), np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(units, size=units), minlength=units)
    return counts


def resampled(sums: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """Sums over the units of every resample: (unit, column) -> (draw, column)."""
    units = len(sums)
    if units > MANY:
        _, first, kind = np.unique(_as_bytes(sums), return_index=True, return_inverse=True)
        if len(first) < units / 4:
            kinds, again = np.unique(sums[first], axis=0, return_inverse=True)
            times = np.bincount(again.reshape(-1)[kind.reshape(-1)], minlength=len(kinds))
            counts = generator(0, "bootstrap", units).multinomial(units, times / units, size=draws)
            return counts @ kinds
    blocks = np.array_split(draw_counts(units, draws), max(1, units * draws // 10_000_000))
    return np.concatenate([block.astype(np.float64) @ sums for block in blocks])


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Every row (row, column) as one item (row,), compared by its bytes: comparing column by column is slow."""
    rows = np.ascontiguousarray(rows)
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).reshape(-1)


def effective(sizes: np.ndarray) -> float:
    """Effective number of units of these sizes (unit,); 0 where all are empty."""
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if (sizes > 0).any() else 0.0


def bounds(draws: np.ndarray, sizes: np.ndarray, value: float | None = None) -> tuple[float, float]:
    """The interval of resampled values (draw,), from units of these sizes (unit,).

    value: of the data themselves; without it the bias is not corrected, which a mean does not need. NaN where there are
    fewer than 10 units (those of size 0 do not count), and where all draws agree: resampling knows no bound then.
    Draws that are NaN, in which the measure is not defined, are left out.
    """
    draws = draws[~np.isnan(draws)]
    if (sizes > 0).sum() < FEWEST_UNITS or not len(draws) or np.ptp(draws) <= 1e-12:
        return float("nan"), float("nan")
    units = effective(sizes)
    far = np.sqrt(units / (units - 1)) * student_quantile(units - 1)
    bias = 0.0
    if value is not None:
        below = ((draws < value - 1e-12).mean() + (draws <= value + 1e-12).mean()) / 2
        bias = 2 * NORMAL.inv_cdf(np.clip(below, 1 / (len(draws) + 1), 1 - 1 / (len(draws) + 1)))
    low, high = np.quantile(draws, [NORMAL.cdf(bias - far), NORMAL.cdf(bias + far)])
    return float(low), float(high)


def student_quantile(df: float) -> float:
    """The t below which (1 + LEVEL) / 2 of Student's distribution lie.

    From 100 degrees of freedom on by its expansion around the normal one (Abramowitz & Stegun 1964, 26.7.5), which is
    exact to 1e-10 there: a quarter of the time of `mla eval` would go into importing scipy.
    """
    if df < 100:
        from scipy.special import stdtrit

        return float(stdtrit(df, (1 + LEVEL) / 2))
    x = NORMAL.inv_cdf((1 + LEVEL) / 2)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / df**power for power, term in enumerate(terms, 1))


def two_sided(draws: np.ndarray, sizes: np.ndarray) -> float:
    """p of a resampled mean difference (draw,) being 0: the level at which `bounds` just touch it; NaN for few units.

    From the smaller share of draws beyond 0, the data themselves counting as one draw, so never below about 2 / draws.
    """
    from scipy import special

    if (sizes > 0).sum() < FEWEST_UNITS:
        return float("nan")
    units = effective(sizes)
    below, above = (draws <= 1e-12).sum() + 1, (draws >= -1e-12).sum() + 1
    tail = min(1.0, 2 * min(below, above) / (len(draws) + 1)) / 2
    return float(2 * special.stdtr(units - 1, special.ndtri(tail) * np.sqrt((units - 1) / units)))
