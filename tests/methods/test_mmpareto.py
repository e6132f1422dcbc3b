"""MMPareto: the direction before the rescaling harms neither loss, and the rescaling gives the stated norms."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import make_session, mfeat_recipe
from torch import Tensor

from mla_cli.core.method import BaseMethod
from mla_cli.methods.mmpareto import integrate, pareto_direction


def pairs() -> list[tuple[Tensor, Tensor]]:
    """Gradients at every angle, up to 100 times longer than one another."""
    source = torch.Generator().manual_seed(1)
    found = []
    for length in (0.01, 0.3, 1.0, 3.0, 100.0):
        for lean in (-5.0, -0.9, -0.3, 0.0, 0.3, 5.0):
            one, other = torch.randn(2, 40, generator=source, dtype=torch.float64)
            found.append((one, length * (other + lean * one)))
    return found


@pytest.mark.parametrize("case", range(30))
def test_the_direction_has_non_negative_products_with_both_gradients(case: int) -> None:
    one, other = pairs()[case]
    d = pareto_direction(one, other)
    floor = -1e-9 * d.norm()
    assert d @ one >= floor * one.norm() and d @ other >= floor * other.norm()
    if one @ other > 0:
        torch.testing.assert_close(d, one + other)
    else:  # the shortest of all mixtures: none of a fine grid is shorter
        weights = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[:, None]
        shortest = 2 * (weights * one + (1 - weights) * other).norm(dim=1).min()
        assert d.norm() <= shortest * (1 + 1e-9)


def test_the_min_norm_weights_worked_by_hand() -> None:
    one, other = torch.tensor([3.0, 0.0]), torch.tensor([-1.0, 1.0])
    # w1 = (g_u.g_u - g_mm.g_u) / |g_mm - g_u|^2 = (2 + 3) / (16 + 1) = 5/17
    torch.testing.assert_close(pareto_direction(one, other), 2 * (5 / 17 * one + 12 / 17 * other))
    far = torch.tensor([-0.01, 0.0])  # opposed: w1 = .01 / 3.01, and clipped where that is below .001
    torch.testing.assert_close(pareto_direction(one, far), torch.zeros(2), atol=1e-6, rtol=0)
    clipped = pareto_direction(torch.tensor([3000.0, 0.0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(clipped, torch.tensor([6.0, 1.998]))


def test_the_rescaling_gives_each_tensor_the_stated_norm() -> None:
    torch.manual_seed(0)
    one = [torch.randn(4, 3), torch.randn(4), torch.zeros(2)]
    for lean in (-0.8, 0.8):
        other = [lean * g + 0.3 * torch.randn_like(g) if g.any() else g for g in one]
        flat_one, flat_other = (torch.cat([g.flatten() for g in part]) for part in (one, other))
        direction = pareto_direction(flat_one, flat_other).split([12, 4, 2])
        for g, a, b, d in zip(integrate(one, other, 1.5), one, other, direction, strict=True):
            assert g.shape == a.shape
            expected = 1.5 * max(float(d.norm()), float((a + b).norm()))
            torch.testing.assert_close(g.norm(), torch.tensor(expected))
            torch.testing.assert_close(F.cosine_similarity(g.flatten(), d, 0).item(), 1.0 if d.any() else 0.0)


def test_nothing_stays_nothing() -> None:
    zero = [torch.zeros(3, 2), torch.zeros(2)]
    assert not any(g.any() for g in integrate(zero, zero, 1.5))
    one = [torch.ones(2), torch.ones(2)]
    assert not any(g.any() for g in integrate(one, [-g for g in one], 1.5))  # opposed and equal: d = 0


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_step_hands_on_these_gradients(mfeat_store, data_dir: Path, monkeypatch, rate: float) -> None:
    """Against the two losses written out and differentiated apart."""
    session = make_session(mfeat_recipe(method={"name": "mmpareto"}, train={"missing_rate": rate}), data_dir)
    method, batch = session.method, next(iter(session.train_loader.epoch(1)))
    method.train()
    labels = batch.labels["mor"]
    x = {m: method.encoders[m](batch.inputs[m]) for m in ("mor", "fou")}
    multimodal = F.cross_entropy(method.heads["joint"](torch.cat(list(x.values()), 1)), labels)
    assert (batch.present is None) == (rate == 0)
    present = torch.ones(len(labels), 2, dtype=torch.bool) if batch.present is None else batch.present
    own = {
        m: F.cross_entropy(method.heads[f"own_{m}"](x[m])[present[:, i]], labels[present[:, i]])
        for i, m in enumerate(x)
    }
    expected = {}
    for m in x:
        names, parameters = zip(*method.encoders[m].named_parameters(), strict=True)
        g_mm = torch.autograd.grad(multimodal, parameters, retain_graph=True)
        g_u = torch.autograd.grad(own[m], parameters, retain_graph=True)
        mixed = integrate(g_mm, g_u, 1.5)
        expected |= {f"encoders.{m}.{name}": g for name, g in zip(names, mixed, strict=True)}
    (multimodal + sum(own.values())).backward()
    expected |= {name: p.grad.clone() for name, p in method.named_parameters() if name.startswith("heads.")}
    method.zero_grad(set_to_none=True)
    found: dict[str, Tensor] = {}
    monkeypatch.setattr(
        BaseMethod, "update", lambda self, *_: found.update({n: p.grad for n, p in self.named_parameters()})
    )
    losses = method.step(batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)
    assert list(losses) == ["fused", "mor", "fou"]
    torch.testing.assert_close(torch.stack(list(losses.values())), torch.stack([multimodal, *own.values()]).detach())
