"""Head gradient modification against independent opinions: the closed form, hand-worked numbers, an `off` twin."""

import itertools
import json
import math

import pytest
import torch
from torch import nn

from mla_cli.core.head_schedule import HeadSchedule
from mla_cli.core.hgm import VARIANTS, HeadGradientModifier
from mla_cli.errors import MlaError


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wide(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=draws(seed), dtype=torch.float64)


# ---------------------------------------------------------------- P


@pytest.mark.parametrize(("dim", "steps", "batch"), [(1, 5, 3), (2, 40, 1), (16, 100, 8), (64, 200, 4), (512, 60, 4)])
def test_rls_equals_the_closed_form(dim, steps, batch):
    alphas = 10 ** (torch.rand(steps, generator=draws(1), dtype=torch.float64) * 3 - 2)  # 0.01 .. 10
    features = wide(steps, batch, dim, seed=dim)
    modifier = HeadGradientModifier(dim, "rls")
    for step in range(steps):
        modifier.absorb(features[step], float(alphas[step]))
    seen = features.mean(1)  # (step, dim)
    closed = torch.linalg.inv(torch.eye(dim, dtype=torch.float64) + seen.T @ (seen / alphas[:, None]))
    torch.testing.assert_close(modifier.matrix, closed, rtol=0, atol=1e-10)
    assert torch.equal(modifier.matrix, modifier.matrix.T)
    eigenvalues = torch.linalg.eigvalsh(modifier.matrix)
    assert eigenvalues.min() >= -1e-12
    assert eigenvalues.max() <= 1 + 1e-12
    assert eigenvalues.min() < 0.9  # something was absorbed


def test_eigenvalues_stay_in_range_with_huge_correlated_features():
    modifier, direction = HeadGradientModifier(32), wide(32) * 1e4
    for step in range(500):
        modifier.absorb_mean(direction + wide(32, seed=step), alpha=0.01)
    assert torch.equal(modifier.matrix, modifier.matrix.T)
    eigenvalues = torch.linalg.eigvalsh(modifier.matrix)
    assert eigenvalues.min() >= -1e-12
    assert eigenvalues.max() <= 1 + 1e-12


def test_a_rounded_matrix_cannot_turn_the_denominator_negative():
    modifier = HeadGradientModifier(2)
    modifier.load_state({"matrix": -1e-16 * torch.eye(2, dtype=torch.float64)})  # eigenvalues 0, rounded
    modifier.absorb_mean(torch.tensor([1e7, 1e7]), alpha=1e-3)  # h^T P h = -0.02
    assert torch.isfinite(modifier.matrix).all()


def test_absorbing_detaches_and_uses_the_batch_mean():
    features = wide(5, 8).requires_grad_()
    by_batch, by_mean = HeadGradientModifier(8), HeadGradientModifier(8)
    by_batch.absorb(features, 0.1)
    by_mean.absorb_mean(features.detach().mean(0), 0.1)
    assert not by_batch.matrix.requires_grad
    assert torch.equal(by_batch.matrix, by_mean.matrix)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_modify_returns_a_new_tensor_of_the_same_dtype(variant, dtype):
    modifier, grad = HeadGradientModifier(8, variant), wide(3, 8).to(dtype)
    untouched = modifier.modify(grad)
    assert torch.equal(untouched, grad)
    assert untouched.data_ptr() != grad.data_ptr()
    modifier.absorb(wide(5, 8, seed=1), 0.1)
    modified = modifier.modify(grad)
    assert modified.dtype == dtype
    assert modified.shape == grad.shape
    assert torch.equal(modified, grad) == (variant == "off")
    assert torch.equal(grad, wide(3, 8).to(dtype))


def test_rls_blocks_the_absorbed_direction():
    modifier, h, grad = HeadGradientModifier(8), wide(8, seed=1), wide(3, 8)
    modifier.absorb_mean(h, alpha=0.001)
    # Along h a gradient keeps alpha / (alpha + |h|^2) of its length, across h all of it.
    torch.testing.assert_close(modifier.modify(grad) @ h, (grad @ h) * 0.001 / (0.001 + h @ h), rtol=1e-9, atol=0)
    across = grad - torch.outer(grad @ h, h) / (h @ h)
    torch.testing.assert_close(modifier.modify(across), across)


def test_released_variants_equal_the_case_worked_by_hand():
    # P = diag(1, 2), h = (1, 1), alpha = 1:  k = P h = (1, 2)
    # k k^T = [1 2; 2 4]   alpha + k h^T = [2 2; 3 3]   quotient = [1/2 1; 2/3 4/3]
    # P - quotient = [1/2 -1; -2/3 2/3], its Frobenius norm sqrt(1/4 + 1 + 4/9 + 4/9) = sqrt(77)/6
    # P = [3 -6; -4 4] / sqrt(77), and for g = (1, 2):  g P^T = (1*3 - 2*6, -1*4 + 2*4) / sqrt(77) = (-9, 4) / sqrt(77)
    root = math.sqrt(77)
    expected = {"released": [[-9 / root, 4 / root]], "released_add": [[1 - 9 / root, 2 + 4 / root]]}
    for variant, modified in expected.items():
        modifier = HeadGradientModifier(2, variant)
        modifier.load_state({"matrix": torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))})
        modifier.absorb(torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64), alpha=1.0)
        matrix = torch.tensor([[3.0, -6.0], [-4.0, 4.0]], dtype=torch.float64) / root
        torch.testing.assert_close(modifier.matrix, matrix)
        grad = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        torch.testing.assert_close(modifier.modify(grad), torch.tensor(modified, dtype=torch.float64))


def test_released_from_the_identity_worked_by_hand():
    # P = I, h = k = (1, 2), alpha = 1: quotient = [1/2 2/3; 2/3 4/5], P - quotient = [1/2 -2/3; -2/3 1/5]
    # times 30 = [15 -20; -20 6], Frobenius norm sqrt(225 + 800 + 36) = sqrt(1061)
    modifier = HeadGradientModifier(2, "released")
    modifier.absorb_mean(torch.tensor([1.0, 2.0]), alpha=1.0)
    matrix = torch.tensor([[15.0, -20.0], [-20.0, 6.0]], dtype=torch.float64) / math.sqrt(1061)
    torch.testing.assert_close(modifier.matrix, matrix)


def test_spectrum_and_reset():
    modifier = HeadGradientModifier(4)
    assert modifier.spectrum() == {"hgm_asymmetry": 0, "hgm_eigenvalue_min": 1, "hgm_eigenvalue_median": 1}
    modifier.absorb_mean(torch.tensor([3.0, 0, 0, 0]), alpha=1.0)  # eigenvalues 1/(1 + 9), 1, 1, 1
    facts = modifier.spectrum()
    assert facts["hgm_eigenvalue_min"] == pytest.approx(0.1)
    assert facts["hgm_eigenvalue_median"] == pytest.approx(1.0)
    modifier.reset()
    assert torch.equal(modifier.matrix, torch.eye(4, dtype=torch.float64))
    asymmetric = HeadGradientModifier(2, "released")
    asymmetric.load_state({"matrix": torch.tensor([[1.0, 2.0], [0.0, 1.0]])})  # |P - P^T| = sqrt 8, |P| = sqrt 6
    facts = asymmetric.spectrum()
    assert facts["hgm_asymmetry"] == pytest.approx(math.sqrt(8 / 6))
    assert facts["hgm_eigenvalue_min"] == pytest.approx(0.0, abs=1e-12)  # of [1 1; 1 1]
    asymmetric.load_state({"matrix": torch.full((2, 2), float("nan"))})
    assert math.isnan(asymmetric.spectrum()["hgm_eigenvalue_min"])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: HeadGradientModifier(4, "rsl"),
        lambda: HeadGradientModifier(4).absorb(torch.zeros(3, 5), 0.1),
        lambda: HeadGradientModifier(4).absorb(torch.zeros(0, 4), 0.1),
        lambda: HeadGradientModifier(4).absorb(torch.zeros(3, 4), 0.0),
        lambda: HeadGradientModifier(4).modify(torch.zeros(4, 3)),
        lambda: HeadGradientModifier(4).load_state({"matrix": torch.eye(3)}),
    ],
)
def test_errors_repeat_what_came_in(wrong):
    with pytest.raises(MlaError, match=r"rsl|\(5,\)|\(0, 4\)|0\.0|\(4, 3\)|\(3, 3\)"):
        wrong()


# ---------------------------------------------------------------- the schedule


DIM, CLASSES, ROUNDS = 64, 5, 20
# Modalities share a positive part, as features that left a ReLU do: without HGM one's step runs along another's mean.
CENTRES = {name: 1 + wide(DIM, seed=50 + place) for place, name in enumerate(("audio", "visual", "text"))}

TEACHER = {modality: wide(DIM, CLASSES, seed=60 + place).float() for place, modality in enumerate(CENTRES)}


def data(modality: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (32, DIM) around the modality's centre, and learnable labels."""
    features = CENTRES[modality].float() + 0.7 * torch.randn(32, DIM, generator=draws(step * 7 + len(modality)))
    return features, (features @ TEACHER[modality]).argmax(1)


class Toy:
    """A head trained on fixed features, a whole run: what `methods/mla.py` does, without encoders."""

    def __init__(self, hgm="rls", optimizer=torch.optim.SGD, order=("audio", "visual"), **keys):
        options = {name: keys.pop(name) for name in ("lr", "momentum", "weight_decay") if name in keys}
        torch.manual_seed(0)
        self.head, self.order = nn.Linear(DIM, CLASSES), order
        self.optimizer = optimizer(self.head.parameters(), **({"lr": 0.05} | options))
        self.schedule = HeadSchedule(DIM, hgm=hgm, **keys)

    def step(self, modality: str, round_index: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One step; returns the gradients of weight and bias as they came."""
        features, labels = data(modality, number)
        nn.functional.cross_entropy(self.head(features), labels).backward()
        raw = self.head.weight.grad.clone(), self.head.bias.grad.clone()
        self.schedule.before_step(modality, features, self.head.weight, round_index, ROUNDS)
        self.modified = self.head.weight.grad.clone(), self.head.bias.grad.clone()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.after_step(self.head.weight)
        return raw

    def epoch(self, epoch: int = 0, start: int = 0, stop: int = ROUNDS) -> "Toy":
        self.schedule.start_epoch(epoch)
        for round_index in range(start, stop):
            for place, modality in enumerate(self.order):
                self.step(modality, round_index, (epoch * ROUNDS + round_index) * len(self.order) + place)
        return self

    def facts(self, epochs: int = 2) -> dict[str, float]:
        for epoch in range(epochs):
            facts, _ = self.epoch(epoch).schedule.end_epoch()
        return facts


def test_first_step_is_unchanged_and_the_second_differs_from_its_off_twin():
    on, off = Toy("rls"), Toy("off")
    for toy in (on, off):
        toy.schedule.start_epoch(0)
        toy.step("audio", 0, 0)
    assert torch.equal(on.head.weight, off.head.weight)
    for toy in (on, off):
        toy.step("visual", 0, 1)
    assert not torch.allclose(on.head.weight, off.head.weight, atol=1e-4)
    assert torch.equal(on.head.bias, off.head.bias)


@pytest.mark.parametrize("hgm", ["rls", "released", "released_add"])
def test_only_the_weight_gradient_is_modified(hgm):
    toy = Toy(hgm)
    toy.schedule.start_epoch(0)
    raw = toy.step("audio", 0, 0)
    assert torch.equal(toy.modified[0], raw[0])
    raw = toy.step("visual", 0, 1)
    assert not torch.allclose(toy.modified[0], raw[0], atol=1e-4)
    assert torch.equal(toy.modified[1], raw[1])


def test_encoder_gradients_are_untouched():
    torch.manual_seed(0)
    encoder, head, schedule = nn.Linear(6, DIM), nn.Linear(DIM, CLASSES), HeadSchedule(DIM)
    schedule.start_epoch(0)
    for place, modality in enumerate(("audio", "visual")):
        features = encoder(torch.randn(8, 6))
        head(features).square().mean().backward()
        before, weight_before = encoder.weight.grad.clone(), head.weight.grad.clone()
        schedule.before_step(modality, features, head.weight, 0, 1)
        assert torch.equal(encoder.weight.grad, before)
        assert torch.equal(head.weight.grad, weight_before) == (place == 0)
        schedule.after_step(head.weight)
        assert schedule.previous_h is not None
        assert not schedule.previous_h.requires_grad


def test_rls_absorbs_the_previous_modality_with_the_alpha_of_the_round():
    toy = Toy(alpha_start=0.1, alpha_end=0.01).epoch(stop=2)  # steps: audio, visual, audio, visual
    expected = HeadGradientModifier(DIM)
    for number, modality, round_index in [(0, "audio", 0), (1, "visual", 1), (2, "audio", 1)]:
        expected.absorb(data(modality, number)[0], 0.1 * 0.1 ** (round_index / ROUNDS))
    assert torch.equal(toy.schedule.modifier.matrix, expected.matrix)
    assert toy.schedule.alpha(0, 7) == 0.1
    assert toy.schedule.alpha(7, 7) == pytest.approx(0.01)


def test_released_absorbs_the_current_modality_from_the_second_step_on():
    toy = Toy("released", order=("audio",)).epoch(stop=3)  # M = 1: it does not ask for another modality
    expected = HeadGradientModifier(DIM, "released")
    for number in (1, 2):
        expected.absorb(data("audio", number)[0], toy.schedule.alpha(number, ROUNDS))
    assert torch.equal(toy.schedule.modifier.matrix, expected.matrix)


def test_one_modality_or_a_repeated_entry_leaves_the_matrix():
    alone, off = Toy("rls", order=("audio",)), Toy("off", order=("audio",))
    assert "head_leak" not in alone.facts(1)
    off.facts(1)
    assert torch.equal(alone.head.weight, off.head.weight)
    assert torch.equal(alone.schedule.modifier.matrix, torch.eye(DIM, dtype=torch.float64))
    repeated = Toy("rls")
    repeated.schedule.start_epoch(0)
    repeated.step("audio", 0, 0)
    repeated.step("visual", 0, 1)
    matrix = repeated.schedule.modifier.matrix.clone()
    raw, _ = repeated.step("visual", 0, 2)
    assert torch.equal(repeated.schedule.modifier.matrix, matrix)
    assert not torch.allclose(repeated.modified[0], raw)  # the gradient still goes through P


def test_update_leaves_one_modality_bit_identical():
    keys = {"order": ("audio",), "momentum": 0.9, "weight_decay": 1e-2}
    on, off = Toy("rls", hgm_apply="update", **keys).epoch(), Toy("off", **keys).epoch()
    assert torch.equal(on.head.weight, off.head.weight)


def test_running_mean_restarts_each_epoch_and_is_over_samples():
    schedule, weight = HeadSchedule(2, hgm_mean="running"), nn.Parameter(torch.zeros(1, 2))

    def h(features):
        weight.grad = torch.zeros(1, 2)
        schedule.before_step("audio", torch.tensor(features), weight, 0, 1)
        schedule.after_step(weight)
        return schedule.previous_h.tolist()

    schedule.start_epoch(0)
    assert h([[1.0, 0.0]]) == [1.0, 0.0]
    assert h([[4.0, 3.0], [4.0, 3.0]]) == [3.0, 2.0]  # of three samples
    schedule.start_epoch(1)
    assert h([[5.0, 5.0]]) == [5.0, 5.0]


@pytest.mark.parametrize(("reset", "kept"), [("never", True), ("epoch", False)])
def test_reset_forgets_the_matrix_but_not_the_previous_step(reset, kept):
    toy = Toy(hgm_reset=reset).epoch(0)
    before = toy.schedule.modifier.matrix.clone()
    toy.schedule.start_epoch(1)
    assert torch.equal(toy.schedule.modifier.matrix, before) == kept
    assert toy.schedule.previous == "visual"


# ---------------------------------------------------------------- what the user is shown


def test_head_leak_under_plain_sgd_and_constant_alpha():
    keys = {"alpha_start": 0.01, "alpha_end": 0.01}
    on, off = Toy("rls", **keys).facts()["head_leak"], Toy("off", **keys).facts()["head_leak"]
    assert on < 0.02
    assert on * 10 < off


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_update_keeps_the_leak_small_where_the_gradient_does_not(optimizer):
    keys: dict = {"alpha_start": 0.01, "alpha_end": 0.01, "weight_decay": 1e-2, "optimizer": optimizer}
    keys |= {"momentum": 0.9} if optimizer is torch.optim.SGD else {"lr": 0.01}
    leak = {apply: Toy("rls", hgm_apply=apply, **keys).facts()["head_leak"] for apply in ("gradient", "update")}
    off = Toy("off", **keys).facts()["head_leak"]
    assert leak["update"] < 0.02
    assert leak["update"] * 10 < off
    assert leak["gradient"] > 2 * leak["update"]


def test_update_projects_the_whole_step():
    toy = Toy("rls", hgm_apply="update", momentum=0.9, weight_decay=0.1).epoch(stop=3)
    before = toy.head.weight.detach().double()
    seen: dict[str, torch.Tensor] = {}
    step = toy.optimizer.step
    toy.optimizer.step = lambda: (step(), seen.update(after=toy.head.weight.detach().double()))
    toy.step("audio", 3, 6)
    expected = before + (seen["after"] - before) @ toy.schedule.modifier.matrix
    torch.testing.assert_close(toy.head.weight.double(), expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(toy.head.weight.double(), seen["after"], atol=1e-4)


def test_diagnostics_equal_a_direct_computation():
    toy = Toy("rls")
    toy.schedule.start_epoch(0)
    toy.step("audio", 0, 0)
    before = toy.head.weight.detach().double()
    raw, _ = toy.step("visual", 0, 1)
    h = data("audio", 0)[0].double().mean(0)
    change = toy.head.weight.detach().double() - before
    facts, warning = toy.schedule.end_epoch()
    assert facts["head_leak"] == pytest.approx(float((change @ h).norm() / (change.norm() * h.norm())), rel=1e-6)
    assert facts["hgm_grad_ratio"] == pytest.approx(float(toy.modified[0].norm() / raw.norm()), rel=1e-6)
    assert facts["hgm_h_left"] == pytest.approx(0.1 / (0.1 + float(h @ h)))  # alpha / (alpha + |h|^2) after one h
    assert facts["hgm_eigenvalue_min"] == pytest.approx(0.1 / (0.1 + float(h @ h)))
    assert warning == ""


def test_off_has_the_same_facts():
    facts = Toy("off").facts(1)
    assert set(facts) == set(Toy("rls").facts(1))
    assert facts["hgm_grad_ratio"] == facts["hgm_h_left"] == facts["hgm_eigenvalue_min"] == 1.0
    assert 0.05 < facts["head_leak"] <= 1.0


def test_a_step_of_length_zero_is_left_out():
    toy = Toy("rls", lr=0.0)  # the first step of a warm-up
    facts = toy.facts(1)
    assert "head_leak" not in facts
    assert "hgm_grad_ratio" in facts


def test_last_round_is_always_sampled_and_few_others_are():
    toy = Toy("rls").epoch()  # 20 rounds of 2 steps: rounds 0, 4, 8, 12, 16 and 19; the run's first step has no h
    assert len(toy.schedule.norms) == 2 * 6 - 1


def test_warns_once_of_a_frozen_head():
    schedule, weight = HeadSchedule(2, alpha_start=1e-4, alpha_end=1e-4), nn.Parameter(torch.zeros(1, 2))
    warnings = []
    for epoch in range(3):
        schedule.start_epoch(epoch)
        for number in range(8):
            weight.grad = torch.ones(1, 2)
            features = torch.tensor([[1.0, 0.0]]) if number % 2 else torch.tensor([[0.0, 1.0]])
            schedule.before_step("av"[number % 2], features, weight, number // 2, 4)
            schedule.after_step(weight)
        warnings.append(schedule.end_epoch()[1])
    told = [w for w in warnings if w]
    assert len(told) == 1
    assert "hgm_reset" in told[0]
    assert "hgm_apply" in told[0]


def test_a_missing_gradient_is_not_silently_ignored():
    schedule = HeadSchedule(2)
    with pytest.raises(RuntimeError, match="after backward"):
        schedule.before_step("audio", torch.ones(1, 2), nn.Parameter(torch.zeros(1, 2)), 0, 1)


# ---------------------------------------------------------------- checkpoint


@pytest.mark.parametrize(
    ("hgm", "hgm_mean", "hgm_apply", "hgm_reset"),
    [
        *itertools.product(["rls", "released"], ["batch", "running"], ["gradient", "update"], ["epoch"]),
        ("off", "running", "gradient", "never"),
        ("released_add", "batch", "gradient", "never"),
    ],
)
def test_killed_mid_epoch_and_resumed_is_bit_identical(hgm, hgm_mean, hgm_apply, hgm_reset):
    order = ("audio", "visual", "text")

    def toy():
        return Toy(hgm, order=order, hgm_mean=hgm_mean, hgm_apply=hgm_apply, hgm_reset=hgm_reset)

    whole = toy().epoch(0).epoch(1)
    killed = toy().epoch(0).epoch(1, stop=7)
    tensors, values = killed.schedule.state()
    resumed = toy()
    resumed.head.load_state_dict({name: tensor.clone() for name, tensor in killed.head.state_dict().items()})
    killed.epoch(1, start=7)  # goes on after the checkpoint: the state must not share memory with it
    resumed.schedule.load_state(tensors, values)
    resumed.epoch(1, start=7)  # calls start_epoch(1) again, as the engine does
    for other in (killed, resumed):
        assert torch.equal(other.head.weight, whole.head.weight)
        assert torch.equal(other.schedule.modifier.matrix, whole.schedule.modifier.matrix)
        assert other.schedule.end_epoch() == whole.schedule.end_epoch()
    first, second = whole.schedule.state(), resumed.schedule.state()
    assert first[1] == second[1]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


def test_state_of_a_fresh_schedule_round_trips_through_json():
    tensors, values = HeadSchedule(3).state()
    fresh = HeadSchedule(3)
    fresh.load_state(tensors, json.loads(json.dumps(values)))
    assert fresh.modifier.untouched
    assert fresh.previous is None
