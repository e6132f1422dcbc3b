"""`present` tables: counts are exact, everybody keeps one, and what is called random is."""

from collections import Counter
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mla_cli.data.missing import Draw, draw_present, parse_rates, subset_present, subsets
from mla_cli.errors import MlaError

NAMES = ["visual", "audio", "text", "touch", "depth", "smell"]  # not sorted, so that column order is put to the test


def names_of(count: int, prefix: str = "s") -> list[str]:
    return [f"{prefix}{number:07d}" for number in range(count)]


def draw(available: np.ndarray, pattern: str, rate, seed: int = 0, split: str = "test") -> Draw:
    num_samples, num_modalities = available.shape
    return draw_present(
        available, names_of(num_samples), NAMES[:num_modalities], pattern=pattern, rate=rate, seed=seed, split=split
    )


def complete(num_samples: int, num_modalities: int) -> np.ndarray:
    return np.ones((num_samples, num_modalities), dtype=bool)


def with_gaps(num_samples: int, num_modalities: int, seed: int, density: float = 0.6) -> np.ndarray:
    """Natural absences, at least one modality per sample."""
    rng = np.random.default_rng(seed)
    available = rng.random((num_samples, num_modalities)) < density
    available[np.arange(num_samples), rng.integers(num_modalities, size=num_samples)] = True
    return available


def removed(available: np.ndarray, result: Draw) -> np.ndarray:
    """Absences per modality, after checking what holds for every draw."""
    assert result.present.dtype == bool and result.present.shape == available.shape
    assert not (result.present & ~available).any()
    assert result.present.any(axis=1).all()
    counts = (available & ~result.present).sum(axis=0)
    assert result.realised == counts.sum() / available.sum()
    assert result.natural_absence == pytest.approx((~available).mean())
    return counts


def spread(counts: np.ndarray) -> int:
    return int(counts.max() - counts.min())


def error_of(*args, **kwargs) -> tuple[str, str]:
    with pytest.raises(MlaError) as caught:
        draw(*args, **kwargs)
    return caught.value.message, caught.value.hint


# Mostly small tables, where remainders matter, and some of the full size.
sizes = st.one_of(st.integers(1, 30), st.integers(1, 30), st.integers(31, 2000))
widths = st.integers(2, 6)
seeds = st.integers(0, 2**32)


# kept_one


@given(num_samples=sizes, num_modalities=widths, share=st.floats(0, 1), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_kept_one_removes_exactly_what_was_asked_and_stays_balanced(num_samples, num_modalities, share, seed):
    rate = share * (num_modalities - 1) / num_modalities
    available = complete(num_samples, num_modalities)
    result = draw(available, "kept_one", rate, seed)
    counts = removed(available, result)
    assert counts.sum() == round(rate * available.size)
    assert spread(counts) <= 1
    assert result.requested == rate and result.expected is None and result.seed == seed


@pytest.mark.parametrize("num_modalities", [2, 3, 4, 5, 6])
def test_kept_one_meets_every_count_and_refuses_the_next(num_modalities):
    for num_samples in [1, 2, 3, 5, 7]:
        available = complete(num_samples, num_modalities)
        highest = num_samples * (num_modalities - 1)
        for count in range(highest + 1):
            counts = removed(available, draw(available, "kept_one", count / available.size))
            assert counts.sum() == count
            assert spread(counts) <= 1
        with pytest.raises(MlaError, match="cannot be met"):
            draw(available, "kept_one", (highest + 1) / available.size)


@given(num_samples=sizes, num_modalities=widths, data=st.data(), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_kept_one_meets_any_count_up_to_the_highest(num_samples, num_modalities, data, seed):
    available = complete(num_samples, num_modalities)
    highest = num_samples * (num_modalities - 1)
    count = data.draw(st.integers(0, highest))
    counts = removed(available, draw(available, "kept_one", count / available.size, seed))
    assert counts.sum() == count
    assert spread(counts) <= 1
    with pytest.raises(MlaError, match="cannot be met"):
        draw(available, "kept_one", (highest + 1) / available.size, seed)


@pytest.mark.parametrize("num_samples", [1999, 2000])
@pytest.mark.parametrize("num_modalities", [2, 3, 4, 5, 6])
def test_kept_one_meets_the_last_counts_of_a_large_table(num_samples, num_modalities):
    available = complete(num_samples, num_modalities)
    highest = num_samples * (num_modalities - 1)
    for count in range(highest - 2 * num_modalities, highest + 1):
        result = draw(available, "kept_one", count / available.size)
        counts = removed(available, result)
        assert counts.sum() == count
        assert spread(counts) <= 1
    assert (result.present.sum(axis=1) == 1).all()


@given(num_samples=sizes, num_modalities=widths, gaps=seeds, share=st.floats(0, 1), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_kept_one_counts_only_entries_that_are_really_present(num_samples, num_modalities, gaps, share, seed):
    available = with_gaps(num_samples, num_modalities, gaps)
    entries = int(available.sum())
    rate = share * (entries - num_samples) / entries
    counts = removed(available, draw(available, "kept_one", rate, seed))
    assert counts.sum() == round(rate * entries)
    # At the highest rate only the kept entries are left; the others are what a modality can lose.
    spare = removed(available, draw(available, "kept_one", (entries - num_samples) / entries, seed))
    for more, less in permutations(range(num_modalities), 2):
        assert counts[more] <= counts[less] + 1 or counts[less] == spare[less]


@given(num_samples=st.integers(1, 5), gaps=seeds, density=st.floats(0, 1), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_kept_counts_are_as_balanced_as_natural_absence_permits(num_samples, gaps, density, seed):
    available = with_gaps(num_samples, 3, gaps, density)
    entries = int(available.sum())
    result = draw(available, "kept_one", (entries - num_samples) / entries, seed)
    removed(available, result)
    choices = product(*(np.flatnonzero(row).tolist() for row in available))
    best = min((np.bincount(choice, minlength=3) ** 2).sum() for choice in choices)
    assert (result.present.sum(axis=0) ** 2).sum() == best


def test_balance_pushes_samples_through_a_third_modality():
    # visual is alone in six samples; audio can only be relieved by moving samples on to text.
    only_visual, visual_audio, audio_text = [True, False, False], [True, True, False], [False, True, True]
    available = np.array([only_visual] * 6 + [visual_audio] * 12 + [audio_text] * 9)
    result = draw(available, "kept_one", 21 / 48)
    assert result.present.sum(axis=0).tolist() == [9, 9, 9]


def test_absences_per_sample_are_close_to_a_binomial():
    # method.md section 2: Binomial(M - 1, rate M / (M - 1)); here Binomial(2, 0.6). Five sd of 20,000 draws are 0.018.
    result = draw(complete(20_000, 3), "kept_one", 0.4)
    shares = np.bincount(3 - result.present.sum(axis=1), minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0.16, 0.48, 0.36, 0], atol=0.02)


def test_kept_one_gives_every_table_the_same_chance():
    # Two samples, two modalities, one absence: 4 tables. And three samples that keep one each, 3 modalities: 6 tables.
    for size, rate, num_tables in [((2, 2), 1 / 4, 4), ((3, 3), 6 / 9, 6)]:
        tables = Counter(draw(complete(*size), "kept_one", rate, seed).present.tobytes() for seed in range(1200))
        assert len(tables) == num_tables
        expected = 1200 / num_tables
        assert max(abs(count - expected) for count in tables.values()) < 5 * expected**0.5


def test_the_modality_that_loses_one_more_is_drawn():
    counts = np.array([removed(complete(4, 3), draw(complete(4, 3), "kept_one", 4 / 12, seed)) for seed in range(600)])
    np.testing.assert_allclose((counts == 2).mean(axis=0), 1 / 3, atol=0.1)


def test_a_higher_rate_only_takes_more_away():
    available = with_gaps(50, 4, seed=3)
    tables = [draw(available, "kept_one", rate).present for rate in [0, 0.1, 0.2, 0.3, 0.4, 0.5]]
    for lower, higher in pairwise(tables):
        assert not (higher & ~lower).any()
        assert higher.sum() < lower.sum()


def test_kept_one_error_names_the_rate_the_highest_and_the_next_step():
    message, hint = error_of(complete(100, 3), "kept_one", 0.7)
    assert message == (
        "missing rate `0.7` cannot be met: it removes 210 of the 300 entries of split `test`, but each of its "
        "100 samples keeps one, so at most 200 can go (highest rate `0.6666`)"
    )
    assert hint == "use `0.6666` or less, or pattern `bernoulli`, which takes any rate below 1"
    assert draw(complete(100, 3), "kept_one", 0.6666).realised == 200 / 300


# bernoulli


def bernoulli_law(rate: float, num_modalities: int) -> dict[tuple[bool, ...], float]:
    """By definition: independent entries, given that one is present."""
    rows = list(product([False, True], repeat=num_modalities))[1:]
    weights = [float(np.prod([1 - rate if entry else rate for entry in row])) for row in rows]
    return {row: weight / sum(weights) for row, weight in zip(rows, weights, strict=True)}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_bernoulli_rows_follow_the_conditional_law(rate):
    num_samples = 20_000
    rows = Counter(map(tuple, draw(complete(num_samples, 3), "bernoulli", rate).present.tolist()))
    law = bernoulli_law(rate, 3)
    assert set(rows) <= set(law)
    for row, chance in law.items():
        assert abs(rows[row] / num_samples - chance) < 5 * (chance * (1 - chance) / num_samples) ** 0.5


@given(num_samples=sizes, num_modalities=widths, gaps=seeds, rate=st.floats(0, 1, exclude_max=True), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_bernoulli_ends_at_any_rate_and_meets_its_expectation(num_samples, num_modalities, gaps, rate, seed):
    available = with_gaps(num_samples, num_modalities, gaps)
    result = draw(available, "bernoulli", rate, seed)
    removed(available, result)
    have = available.sum(axis=1)
    # A sample's number of absences varies by at most `have` - 1; six sd (Popoviciu's bound), over all entries.
    bound = 6 * ((have - 1) ** 2 / 4).sum() ** 0.5 / have.sum()
    assert abs(result.realised - result.expected) <= bound + 1e-12


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_bernoulli_states_the_rate_to_expect(rate):
    result = draw(complete(20_000, 4), "bernoulli", rate)
    assert result.expected == pytest.approx((rate - rate**4) / (1 - rate**4))
    assert result.realised == pytest.approx(result.expected, abs=0.01)  # five sd are below 0.009
    # Half of the samples have two modalities: their own rate, weighted by the entries they have.
    available = complete(20_000, 4)
    available[::2, 2:] = False
    mixed = draw(available, "bernoulli", rate)
    alone = (rate - rate**2) / (1 - rate**2)
    assert mixed.expected == pytest.approx((2 * alone + 4 * result.expected) / 6)
    assert mixed.realised == pytest.approx(mixed.expected, abs=0.01)


def test_bernoulli_next_to_one_leaves_one_modality_chosen_evenly():
    for rate in [0.999999, np.nextafter(1.0, 0.0)]:
        result = draw(complete(9_000, 3), "bernoulli", rate)
        assert result.present.sum() <= 9_000 + 2
        np.testing.assert_allclose(result.present.mean(axis=0), 1 / 3, atol=0.03)
        assert result.expected == pytest.approx(2 / 3, abs=1e-5)


def test_bernoulli_refuses_one():
    message, hint = error_of(complete(5, 2), "bernoulli", 1)
    assert message == (
        "missing rate `1` cannot be met: each sample keeps one modality, so `bernoulli` takes rates below 1"
    )
    assert hint == "write for example `0.99`; the rate it is expected to realise is reported beside it"


# per_modality


@given(num_samples=sizes, num_modalities=widths, data=st.data(), seed=seeds)
@settings(max_examples=80, deadline=None)
def test_per_modality_counts_are_exact(num_samples, num_modalities, data, seed):
    names = NAMES[:num_modalities]
    entries = [data.draw(st.integers(0, num_samples), label=name) for name in names]
    assume(sum(entries) <= num_samples * (num_modalities - 1))
    available = complete(num_samples, num_modalities)
    rates = {name: count / num_samples for name, count in zip(names, entries, strict=True)}
    result = draw(available, "per_modality", rates, seed)
    assert removed(available, result).tolist() == entries
    assert result.requested == rates and result.expected is None


@pytest.mark.parametrize("num_modalities", [2, 3])
def test_per_modality_meets_every_combination_of_counts(num_modalities):
    num_samples = 4
    available = complete(num_samples, num_modalities)
    for entries in product(range(num_samples + 1), repeat=num_modalities):
        rates = {name: count / num_samples for name, count in zip(NAMES, entries, strict=False)}
        if sum(entries) <= num_samples * (num_modalities - 1):
            assert removed(available, draw(available, "per_modality", rates)).tolist() == list(entries)
        else:
            with pytest.raises(MlaError, match="the sum may be at most"):
                draw(available, "per_modality", rates)


def can_keep(available: np.ndarray, counts: list[int]) -> bool:
    """Brute force: can each sample keep one modality while `counts` entries go?"""
    capacity = available.sum(axis=0) - counts
    choices = product(*(np.flatnonzero(row).tolist() for row in available))
    return any((np.bincount(choice, minlength=len(capacity)) <= capacity).all() for choice in choices)


@given(
    num_samples=st.integers(1, 6),
    density=st.floats(0, 1),
    rates=st.lists(st.sampled_from([0, 0.25, 0.3, 0.5, 0.7, 1]), min_size=3, max_size=3),
    seed=seeds,
)
@settings(max_examples=150, deadline=None)
def test_per_modality_with_natural_absence_is_met_whenever_it_can_be(num_samples, density, rates, seed):
    assume(sum(rates) <= 2)
    available = with_gaps(num_samples, 3, seed, density)
    asked = available.sum(axis=0) * rates
    exact = [round(count) for count in asked.tolist()]
    by_name = dict(zip(NAMES, rates, strict=False))
    if can_keep(available, exact):
        assert removed(available, draw(available, "per_modality", by_name, seed)).tolist() == exact
    elif can_keep(available, np.minimum(exact, np.floor(asked)).astype(int).tolist()):
        # Only the rounding asks for too much: some counts are rounded down.
        counts = removed(available, draw(available, "per_modality", by_name, seed))
        assert (np.abs(counts - asked) < 1).all() and (counts <= exact).all()
    else:
        with pytest.raises(MlaError, match="cannot be met in split `test`"):
            draw(available, "per_modality", by_name, seed)


def test_per_modality_rounds_down_what_rounding_alone_makes_impossible():
    available = complete(3, 2)
    counts = removed(available, draw(available, "per_modality", {"audio": 0.5, "visual": 0.5}))
    assert sorted(counts.tolist()) == [1, 2]  # 1.5 each would round to 2 and 2, of 3 samples


def test_per_modality_does_not_take_a_float_s_last_digit_for_rounding():
    available = np.array([[True, False]] * 72 + [[True, True]] * 28)
    assert 0.29 * 100 < 29
    with pytest.raises(MlaError, match="they remove 29 of 100 entries of visual, but 72 samples have nothing else"):
        draw(available, "per_modality", {"visual": 0.29})


def test_per_modality_gives_every_table_the_same_chance():
    # Two modalities: all tables with the same counts are permutations of one another. 12 ordered pairs, 3 and 1 of 3.
    cases = [((4, 2), {"audio": 0.25, "visual": 0.25}, 12), ((3, 3), {"audio": 1, "visual": 2 / 3, "text": 1 / 3}, 3)]
    for size, rates, num_tables in cases:
        tables = Counter(draw(complete(*size), "per_modality", rates, seed).present.tobytes() for seed in range(1200))
        assert len(tables) == num_tables
        expected = 1200 / num_tables
        assert max(abs(count - expected) for count in tables.values()) < 5 * expected**0.5


def test_per_modality_is_independent_across_modalities_where_one_is_complete():
    present = draw(complete(20_000, 3), "per_modality", {"visual": 0.5, "audio": 0.8}).present
    both = (~present[:, 0] & ~present[:, 1]).mean()
    assert both == pytest.approx(0.4, abs=0.02)  # five sd are 0.007


def test_per_modality_is_close_to_uniform_where_samples_compete_for_entries():
    # Under the uniform law a large table's rows follow independent entries with tilted odds, given that one is present.
    rates, rows = np.array([0.8, 0.6, 0.3]), np.array(list(product([0, 1], repeat=3))[1:])
    tilt = np.zeros(3)
    for _ in range(500):
        weights = np.exp(rows @ tilt)
        tilt += 0.5 * np.log((1 - rates) / (weights / weights.sum() @ rows))
    law = weights / weights.sum()
    present = draw(complete(20_000, 3), "per_modality", dict(zip(NAMES, rates.tolist(), strict=False))).present
    shares = np.bincount(present @ [4, 2, 1], minlength=8)[1:] / 20_000
    assert abs(shares - law).sum() / 2 < 0.02  # 0.0075 at 200,000 samples


def test_per_modality_errors():
    available = complete(10, 2)
    assert error_of(available, "per_modality", {"audio": 0.9, "visual": 0.8}) == (
        "missing rates `audio=0.9,visual=0.8` sum to `1.7`; with 2 modalities the sum may be at most `1`, as each "
        "sample keeps one",
        "lower one of the rates",
    )
    assert error_of(available, "per_modality", {"audoi": 0.1}) == (
        "no modality named `audoi`",
        "did you mean `audio`?",
    )
    assert error_of(available, "per_modality", {"q": 0.1})[1] == "modalities: visual, audio"
    assert error_of(available, "per_modality", 0.3) == (
        "pattern `per_modality` takes a rate for each modality, got `0.3`",
        "write for example `visual=0.3`, or use pattern `kept_one`",
    )
    available[:6, 0] = False
    assert error_of(available, "per_modality", {"audio": 0.9}) == (
        "missing rates `audio=0.9,visual=0` cannot be met in split `test`: they remove 9 of 10 entries of audio, but "
        "6 samples have nothing else and keep one each",
        "lower the rates of audio: at most 4 of these entries can go",
    )
    assert removed(available, draw(available, "per_modality", {"audio": 0.4})).tolist() == [0, 4]


def test_a_sum_at_the_limit_is_not_refused_for_its_last_binary_digit():
    rates = [0.6, 1.0, 0.8, 0.6]
    assert sum(rates) > 3
    result = draw(complete(10, 4), "per_modality", dict(zip(NAMES, rates, strict=False)))
    assert removed(complete(10, 4), result).tolist() == [6, 10, 8, 6]


# every pattern

PATTERN_RATES = [("kept_one", 0.3), ("bernoulli", 0.5), ("per_modality", {"audio": 0.6, "visual": 0.2, "text": 0.5})]


@pytest.mark.parametrize(("pattern", "rate"), PATTERN_RATES)
def test_permuting_samples_or_modalities_permutes_the_table(pattern, rate):
    available, ids, names = with_gaps(60, 4, seed=1, density=0.8), names_of(60), NAMES[:4]
    settings_ = {"pattern": pattern, "rate": rate, "seed": 5, "split": "val"}
    table = draw_present(available, ids, names, **settings_).present
    rows, columns = np.random.default_rng(2).permutation(60), [2, 0, 3, 1]
    permuted = draw_present(
        available[np.ix_(rows, columns)], [ids[row] for row in rows], [names[column] for column in columns], **settings_
    )
    np.testing.assert_array_equal(permuted.present, table[np.ix_(rows, columns)])
    assert not np.array_equal(table[rows], table)


@pytest.mark.parametrize(("pattern", "rate"), PATTERN_RATES)
def test_equal_seeds_give_equal_tables_and_seed_and_split_change_them(pattern, rate):
    available = with_gaps(40, 3, seed=0, density=0.9)
    untouched = available.copy()
    table = draw(available, pattern, rate).present
    np.testing.assert_array_equal(available, untouched)
    np.testing.assert_array_equal(draw(available, pattern, rate).present, table)
    assert not np.array_equal(draw(available, pattern, rate, seed=1).present, table)
    assert not np.array_equal(draw(available, pattern, rate, split="val").present, table)


@pytest.mark.parametrize(
    ("pattern", "rate", "rows"),
    [
        ("kept_one", 0.5, ["x..", ".x.", "xxx", "..x"]),
        ("bernoulli", 0.5, ["xx.", "..x", "x..", "x.x"]),
        ("per_modality", {"audio": 0.5, "visual": 0.75, "text": 0.5}, [".xx", ".x.", "..x", "x.."]),
    ],
)
def test_tables_do_not_change_between_versions(pattern, rate, rows):
    # Stored runs are compared by mask seed; if this fails, published tables change: say so in the changelog.
    present = draw(complete(4, 3), pattern, rate).present
    assert ["".join("x" if entry else "." for entry in row) for row in present] == rows


@pytest.mark.parametrize(("pattern", "rate"), [("kept_one", 0.0), ("bernoulli", 0.0), ("per_modality", {})])
def test_rate_zero_removes_nothing(pattern, rate):
    available = with_gaps(20, 3, seed=4)
    result = draw(available, pattern, rate)
    np.testing.assert_array_equal(result.present, available)
    assert result.realised == 0
    assert draw(complete(0, 3), pattern, rate).realised == 0  # an empty split
    assert draw(complete(3, 1), pattern, rate).present.all()


@pytest.mark.parametrize("pattern", ["kept_one", "bernoulli"])
@pytest.mark.parametrize(
    ("rate", "message", "hint"),
    [
        (30, "missing rate `30` is not between 0 and 1", "rates are fractions: for 30 % write `0.3`"),
        (-0.1, "missing rate `-0.1` is not between 0 and 1", "write a fraction, for example `0.3`"),
        (float("nan"), "missing rate `nan` is not between 0 and 1", "write a fraction, for example `0.3`"),
        (101.0, "missing rate `101` is not between 0 and 1", "write a fraction, for example `0.3`"),
        ("0.3", "missing rate must be a number, got `'0.3'`", "write a fraction, for example `0.3`"),
        (True, "missing rate must be a number, got `True`", "write a fraction, for example `0.3`"),
    ],
)
def test_what_is_no_rate_is_refused(pattern, rate, message, hint):
    assert error_of(complete(5, 2), pattern, rate) == (message, hint)
    assert error_of(complete(5, 2), "per_modality", {"audio": rate}) == (message, hint)


def test_wrong_patterns_are_refused():
    available = complete(5, 2)
    assert error_of(available, "kept_two", 0.1) == (
        "no missing pattern named `kept_two`",
        "did you mean `kept_one`?",
    )
    assert error_of(available, "zzz", 0.1)[1] == "patterns: kept_one, bernoulli, per_modality, subset"
    assert error_of(available, "subset", 0.3) == (
        "pattern `subset` takes no rate, got `0.3`",
        "leave the missing rate out",
    )
    assert error_of(available, "kept_one", {"audio": 0.3}) == (
        "pattern `kept_one` takes one rate, got `audio=0.3`",
        "write one fraction, or use pattern `per_modality`",
    )


def test_samples_without_any_modality_are_counted_and_the_first_is_named():
    available = complete(10, 2)
    available[[3, 7]] = False
    ids = names_of(10)[::-1]
    with pytest.raises(MlaError) as caught:
        draw_present(available, ids, NAMES[:2], pattern="kept_one", rate=0.1, seed=0, split="val")
    assert caught.value.message == (
        "2 of 10 samples of split `val` have none of the modalities visual, audio (first: `s0000002`)"
    )
    assert caught.value.hint == "leave these samples out, or use a modality that they have"


def test_a_caller_s_mistakes_are_value_errors():
    rest = {"pattern": "kept_one", "rate": 0.1, "seed": 0, "split": "test"}
    with pytest.raises(ValueError, match="not bool"):
        draw_present(np.ones((2, 2)), ["a", "b"], NAMES[:2], **rest)
    with pytest.raises(ValueError, match=r"\(2, 2\), not bool \(3, 2\)"):
        draw_present(complete(2, 2), ["a", "b", "c"], NAMES[:2], **rest)
    with pytest.raises(ValueError, match="ids are not unique"):
        draw_present(complete(2, 2), ["a", "a"], NAMES[:2], **rest)


# subsets and the command line


def test_subsets_come_by_size_then_in_order():
    assert subsets(["b", "a", "c"]) == [
        ("b",),
        ("a",),
        ("c",),
        ("b", "a"),
        ("b", "c"),
        ("a", "c"),
        ("b", "a", "c"),
    ]
    assert len(set(subsets(NAMES))) == 2**6 - 1


def test_subset_present_keeps_what_a_sample_has_of_the_subset():
    available = np.array([[True, True, True], [True, False, True], [False, True, False]])
    present = subset_present(available, ("text", "visual"), NAMES[:3])
    assert present.tolist() == [[True, False, True], [True, False, True], [False, False, False]]
    with pytest.raises(MlaError, match="no modality named `txt`"):
        subset_present(available, ("txt",), NAMES[:3])
    with pytest.raises(MlaError, match="cannot be empty"):
        subset_present(available, (), NAMES[:3])


def test_parse_rates_reads_names_and_fractions():
    assert parse_rates("audio=0.5, text=0", NAMES) == {"audio": 0.5, "text": 0.0}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("audoi=0.5", "no modality named `audoi`", "did you mean `audio`?"),
        ("0.5", "`0.5` is not a rate of a modality", "write for example `visual=0.5`"),
        ("", "`` is not a rate of a modality", "write for example `visual=0.5`"),
        ("audio=0.5,", "`` is not a rate of a modality", "write for example `visual=0.5`"),
        ("audio=half", "rate `half` of `audio` is not a number", "write for example `audio=0.5`"),
        ("audio=30%", "rate `30%` of `audio` is a percentage", "write `audio=0.3`"),
        ("audio=30", "missing rate `30` is not between 0 and 1", "rates are fractions: for 30 % write `0.3`"),
        ("audio=nan", "missing rate `nan` is not between 0 and 1", "write a fraction, for example `0.3`"),
        ("audio=0.1,audio=0.2", "modality `audio` has two rates in `audio=0.1,audio=0.2`", "name each modality once"),
    ],
)
def test_parse_rates_errors(text, message, hint):
    with pytest.raises(MlaError) as caught:
        parse_rates(text, NAMES)
    assert (caught.value.message, caught.value.hint) == (message, hint)
