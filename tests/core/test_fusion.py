"""Fusion against hand-worked numbers, SciPy, and the properties that make a late-fused score trustworthy."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import entropy as scipy_entropy

from mla_cli.core import fusion
from mla_cli.core.fusion import Fuser, entropy, entropy_weights, fuse, released_weights
from mla_cli.errors import MlaError

INDEPENDENT = [rule for rule in fusion.RULES if rule != "entropy_batch"]
NORMALISED = [rule for rule in fusion.RULES if rule != "energy"]


@st.composite
def tables(draw, min_samples=1, min_modalities=1):
    """Logits (sample, modality, class), a `present` table with at least one True per row, and fixed weights."""
    samples = draw(st.integers(min_samples, 150))
    modalities = draw(st.sampled_from([m for m in (1, 2, 3, 6) if m >= min_modalities]))
    classes = draw(st.sampled_from([1, 2, 3, 8, 9, 17, 100, 131]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.1, 3.0, 60.0, 1000.0]))
    logits = generator.normal(0, scale, (samples, modalities, classes))
    present = generator.random((samples, modalities)) < draw(st.sampled_from([0.2, 0.6, 1.0]))
    present[np.arange(samples), generator.integers(0, modalities, samples)] = True
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return logits.astype(dtype), present, generator.random(modalities) + 0.1


def both(rule: str) -> tuple[str, ...]:
    return ("logits",) if rule == "energy" else ("logits", "probabilities")


# ---------------------------------------------------------------- second opinions


def test_softmax_and_entropy_agree_with_scipy():
    logits = np.random.default_rng(0).normal(0, 5, (40, 3, 7))
    p = np.exp(logits - logsumexp(logits, axis=-1, keepdims=True))
    np.testing.assert_allclose(fusion.softmax(logits), p, rtol=1e-12)
    np.testing.assert_allclose(np.exp(fusion.log_softmax(logits)), p, rtol=1e-12)
    np.testing.assert_allclose(entropy(logits), scipy_entropy(p, axis=-1), rtol=1e-10)
    np.testing.assert_allclose(entropy(np.zeros((1, 1, 8))), [[math.log(8)]])  # nats


def test_entropy_weights_worked_by_hand():
    # Entropies log 2 (two equal classes) and 0 (certain): weights 2^-1 / (2^-1 + 1) = 1/3 and 2/3.
    logits = np.array([[[0.0, 0.0], [1000.0, 0.0]], [[0.0, 0.0], [1000.0, 0.0]]])
    present = np.array([[True, True], [True, False]])
    np.testing.assert_allclose(entropy_weights(logits, present), [[1 / 3, 2 / 3], [1, 0]], rtol=1e-12)
    np.testing.assert_allclose(fuse(logits, present, "entropy"), [[2000 / 3, 0], [0, 0]], rtol=1e-12)


def test_fused_logits_of_each_rule():
    logits = np.array([[[1.0, 2.0, 0.0], [4.0, 0.0, 1.0], [3.0, 3.0, 9.0]]])
    present, a, b = np.array([[True, True, False]]), logits[0, 0], logits[0, 1]
    np.testing.assert_allclose(fuse(logits, present, "uniform")[0], (a + b) / 2)
    np.testing.assert_allclose(fuse(logits, present, "fixed", weights=[0.35, 0.25, 0.40])[0], (35 * a + 25 * b) / 60)
    np.testing.assert_allclose(
        fuse(logits, present, "energy")[0], (logsumexp(a) * a + logsumexp(b) * b) / 10, rtol=1e-12
    )
    mixture = (fusion.softmax(a) + fusion.softmax(b)) / 2
    np.testing.assert_allclose(fuse(logits, present, "uniform", of="probabilities")[0], np.log(mixture), rtol=1e-12)


@pytest.mark.parametrize("scale", [2.0, 400.0])  # below and above the logits whose exponentials fit as they are
def test_entropy_batch_is_the_released_entropy(scale):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, scale, (11, 2, 5))
    logits[:4, 1] /= 100  # a batch of 4 in which no modality drowns the other
    logits[:4, 0] = logits[:4, 1] + generator.normal(0, 0.01, (4, 5))
    present = np.ones((11, 2), bool)
    present[1, 0] = present[8:, 1] = False
    weights = Fuser(logits, present).weights(present, "entropy_batch", batch_size=4)
    for start in range(0, 11, 4):
        rows = slice(start, start + 4)
        scores = []
        for m in (0, 1):
            x = logits[rows, m][present[rows, m]]
            p = np.exp(x - logsumexp(x, axis=0)) if len(x) else np.ones((1, 5))
            scores.append(scipy_entropy(p, axis=0).sum() if len(x) else np.inf)
        expected = np.exp(min(scores) - np.array(scores)) * present[rows]
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(weights[rows], expected, rtol=1e-6, atol=1e-9)
    assert 0.01 < weights[0, 0] < 0.99


def test_released_weights():
    assert released_weights(["visual", "audio"]) == {"visual": 0.45, "audio": 0.55}
    assert released_weights(["text", "visual"]) == {"text": 0.55, "visual": 0.45}
    assert released_weights(["audio", "visual", "text"]) == {"audio": 0.35, "visual": 0.25, "text": 0.40}
    for other in (["audio", "text"], ["audio"], ["mor", "fou"], ["audio", "audio", "visual"]):
        with pytest.raises(MlaError, match=other[0]) as caught:
            released_weights(other)
        assert "fusion.weights" in caught.value.hint


# ---------------------------------------------------------------- properties


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(fusion.RULES))
def test_weights_sum_to_one_and_absent_is_exactly_zero(table, rule):
    logits, present, fixed = table
    weights = Fuser(logits).weights(present, rule, fixed)
    assert weights.shape == present.shape
    assert (weights[~present] == 0).all()
    if rule in NORMALISED:
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    else:
        np.testing.assert_allclose(weights, np.where(present, logsumexp(logits, axis=-1) / 10, 0), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(tables(min_modalities=2), st.sampled_from(fusion.RULES), st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
def test_logits_of_the_absent_influence_nothing(table, rule, rubbish):
    logits, present, fixed = table
    spoiled = np.where(present[..., None], logits, np.asarray(rubbish, logits.dtype))
    for of in both(rule):
        clean = fuse(logits, present, rule, of, fixed)
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(fuse(spoiled, present, rule, of, fixed), clean)
        # The same through a table of which more is available than this draw leaves present.
        if rule != "entropy_batch":
            np.testing.assert_array_equal(Fuser(spoiled).fuse(present, rule, of, fixed), clean)


@settings(max_examples=40, deadline=None)
@given(tables(min_samples=2), st.sampled_from(INDEPENDENT), st.data())
def test_a_sample_scores_the_same_alone_and_in_any_batch(table, rule, data):
    logits, present, fixed = table
    rows = np.array(data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=20)))
    for of in both(rule):
        whole = fuse(logits, present, rule, of, fixed)
        some = fuse(logits[rows], present[rows], rule, of, fixed)
        assert some.tobytes() == whole[rows].tobytes()
        first = rows[:1]
        assert fuse(logits[first], present[first], rule, of, fixed).tobytes() == whole[first].tobytes()
        strided = fuse(np.asfortranarray(logits), np.asfortranarray(present), rule, of, fixed)
        assert strided.tobytes() == whole.tobytes()


def test_blocks_of_rows_change_no_bit(monkeypatch):
    generator = np.random.default_rng(0)
    logits, present = generator.normal(size=(50, 3, 10)), np.ones((50, 3), bool)
    whole = fuse(logits, present, "entropy")
    monkeypatch.setattr(fusion, "BLOCK", 70)  # 7 rows
    assert fuse(logits, present, "entropy").tobytes() == whole.tobytes()


def test_entropy_batch_depends_on_neighbours():
    logits = np.random.default_rng(0).normal(0, 0.3, (64, 2, 4))
    present = np.ones((64, 2), bool)
    whole = fuse(logits, present, "entropy_batch")
    halves = fuse(logits, present, "entropy_batch", batch_size=32)
    assert np.abs(fuse(logits[:1], present[:1], "entropy_batch") - whole[:1]).max() > 1e-3
    assert np.abs(halves - whole).max() > 1e-3
    np.testing.assert_allclose(fuse(logits[:32], present[:32], "entropy_batch"), halves[:32], rtol=1e-9)
    assert "entropy" in fusion.NEIGHBOUR_WARNING


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(fusion.RULES), st.randoms(use_true_random=False))
def test_permuting_modalities_permutes_weights(table, rule, random):
    logits, present, fixed = table
    order = list(range(logits.shape[1]))
    random.shuffle(order)
    weights = Fuser(logits).weights(present, rule, fixed)
    permuted = Fuser(logits[:, order]).weights(present[:, order], rule, fixed[order])
    np.testing.assert_allclose(permuted, weights[:, order], rtol=1e-12, atol=1e-300)
    fused = fuse(logits, present, rule, weights=fixed)
    atol = 1e-5 * float(np.abs(logits).max()) * max(1.0, float(np.abs(weights).max()))
    np.testing.assert_allclose(
        fuse(logits[:, order], present[:, order], rule, weights=fixed[order]), fused, rtol=1e-4, atol=atol
    )


@pytest.mark.parametrize("rule", NORMALISED)
def test_one_modality_is_its_own_fusion(rule):
    logits = np.random.default_rng(0).normal(0, 3, (30, 1, 6)).astype(np.float32)
    present = np.ones((30, 1), bool)
    fused = fuse(logits, present, rule, weights=[0.3])
    assert fused.dtype == np.float32
    np.testing.assert_array_equal(fused, logits[:, 0])
    mixture = fuse(logits, present, rule, "probabilities", weights=[0.3])
    np.testing.assert_allclose(mixture, fusion.log_softmax(logits[:, 0]), rtol=1e-5, atol=1e-5)


def test_probabilities_stay_finite_for_certain_modalities():
    logits = np.array([[[5000.0, 0.0], [4000.0, 0.0]]])
    fused = fuse(logits, np.ones((1, 2), bool), "entropy", of="probabilities")
    assert fused[0, 0] == 0
    assert -710 < fused[0, 1] < -700  # the stated floor


def test_no_samples():
    assert fuse(np.zeros((0, 2, 3)), np.zeros((0, 2), bool), "entropy").shape == (0, 3)


# ---------------------------------------------------------------- errors, speed, imports


GOOD, BOTH = np.zeros((4, 2, 3)), np.ones((4, 2), bool)
PARTLY = np.array([[True, True], [False, False], [True, False], [False, False]])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: fuse(GOOD, PARTLY, "entropy"), "2 of 4 samples"),
        (lambda: fuse(GOOD[0], BOTH, "entropy"), r"\(2, 3\)"),
        (lambda: fuse(GOOD, BOTH[:3], "entropy"), r"\(3, 2\)"),
        (lambda: fuse(GOOD, BOTH.astype(float), "entropy"), "float64"),
        (lambda: fuse(GOOD, BOTH, "entrpy"), "`entrpy`"),
        (lambda: fuse(GOOD, BOTH, "native"), "`native`"),
        (lambda: fuse(GOOD, BOTH, "entropy", of="logit"), "logit"),
        (lambda: fuse(GOOD, BOTH, "energy", of="probabilities"), "energy"),
        (lambda: fuse(GOOD, BOTH, "fixed"), "needs weights"),
        (lambda: fuse(GOOD, BOTH, "fixed", weights=[1.0]), r"\[1\.0\]"),
        (lambda: fuse(GOOD, BOTH, "fixed", weights=[1.0, -1.0]), r"-1\.0"),
        (lambda: fuse(GOOD, ~PARTLY | [[True, False]], "fixed", weights=[0.0, 1.0]), "1 of 4 samples"),
        (lambda: fuse(GOOD, BOTH, "entropy_batch", batch_size=0), "0"),
        (lambda: fuse(np.where(PARTLY[..., None], GOOD, np.nan), BOTH, "uniform"), "3 of 4 samples"),
        (lambda: Fuser(GOOD, PARTLY).fuse(BOTH, "uniform"), "3 of 4 samples"),
    ],
)
def test_errors_say_what_and_how_many(wrong, says):
    with pytest.raises(MlaError, match=says):
        wrong()


def test_many_draws_cost_little():
    """A tenth of the promised load (10 rates x 10 seeds x 4 rules in under 3 s), with a margin for slow machines."""
    generator = np.random.default_rng(0)
    fuser = Fuser(generator.normal(size=(10_000, 3, 100)).astype(np.float32))
    draws = generator.random((10, 10_000, 3)) < 0.7
    draws[..., 0] |= ~draws.any(axis=-1)
    start = time.process_time()
    for present in draws:
        for rule in ("entropy", "uniform", "fixed", "entropy_batch"):
            fuser.fuse(present, rule, weights=[0.35, 0.25, 0.40])
    assert time.process_time() - start < 1.5


def test_import_needs_neither_torch_nor_pandas():
    code = "import sys, mla_cli.core.fusion; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [1e30, 3.4e38, -3.4e38])
def test_huge_logits_fuse_to_finite_ones_or_are_an_error(size: float) -> None:
    """`energy` multiplies logits by weights that are as large as they: float32 ends there, and that is said."""
    logits = np.full((2, 2, 3), size, np.float32)
    logits[:, :, 0] = 0
    present = np.ones((2, 2), bool)
    for rule in ("entropy", "entropy_batch", "uniform"):
        for of in ("logits", "probabilities"):
            assert np.isfinite(fusion.fuse(logits, present, rule, of=of)).all()
    if size > 0:
        with pytest.raises(MlaError, match=r"`fusion\.rule: energy`: fused logits of 2 of 2 samples leave float32"):
            fusion.fuse(logits, present, "energy")
