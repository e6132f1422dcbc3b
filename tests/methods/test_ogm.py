"""OGM scales the encoders' gradients by k, and OGM-GE adds noise of the stated size: checked on the gradients."""

from pathlib import Path

import pytest
import torch
from tiny import emoji_recipe, frozen_copy, make_session, mfeat_recipe, same_bits
from torch import Tensor

from mla_cli.core.method import BaseMethod
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError

VIEWS = ("mor", "fou", "zer")


def session_of(data_dir: Path, name: str, views=("mor", "fou"), **keys) -> Session:
    session = make_session(mfeat_recipe(views, method={"name": name, name: keys} if keys else {"name": name}), data_dir)
    session.method.train()
    return session


def gradients(session: Session, monkeypatch: pytest.MonkeyPatch, epoch: int = 1) -> dict[str, Tensor]:
    """Every gradient of the first round just before the optimisers step; the weights stay as they are."""
    found: dict[str, Tensor] = {}

    def update(self, *names: str) -> None:
        found.update({n: p.grad.clone() for n, p in self.named_parameters()})
        self.zero_grad(set_to_none=True)

    with monkeypatch.context() as patch:
        patch.setattr(BaseMethod, "update", update)
        session.method.step(next(iter(session.train_loader.epoch(epoch))))
    return found


def ratios_by_hand(session: Session) -> dict[str, float]:
    """rho of the first round, sample by sample."""
    method, batch = session.method, next(iter(session.train_loader.epoch(1)))
    head, scores = method.heads["joint"], {}
    for i, m in enumerate(method.modalities):
        logits = method.encoders[m](batch.inputs[m]) @ head.weight[:, 8 * i : 8 * i + 8].T
        p = torch.softmax(logits + head.bias / len(method.modalities), 1)
        scores[m] = sum(p[n, label].item() for n, label in enumerate(batch.labels[m].tolist()))
    rest = {m: [s for other, s in scores.items() if other != m] for m in scores}
    return {m: scores[m] / (sum(rest[m]) / len(rest[m])) for m in scores}


@pytest.mark.parametrize("views", [("mor", "fou"), VIEWS])
def test_scaled_gradients_are_k_times_the_raw_ones(mfeat_store, data_dir: Path, monkeypatch, views) -> None:
    session = session_of(data_dir, "ogm", views, alpha=0.7)
    raw = gradients(session_of(data_dir, "concat", views), monkeypatch)
    scaled = gradients(session, monkeypatch)
    rho = ratios_by_hand(session)
    k = {m: 1 - float(torch.tanh(torch.tensor(0.7 * r))) if r > 1 else 1.0 for m, r in rho.items()}
    assert min(k.values()) < 0.9 and max(k.values()) == 1.0
    assert raw.keys() == scaled.keys()
    for name, gradient in raw.items():
        part, m = name.split(".")[:2]
        factor = k[m] if part == "encoders" and gradient.dim() >= 2 else 1.0
        torch.testing.assert_close(scaled[name], factor * gradient, rtol=1e-4, atol=1e-9)
        assert gradient.abs().max() > 0
    facts = session.method.end_epoch()
    assert facts == pytest.approx({f"ogm_rho.{m}": r for m, r in rho.items()} | {f"ogm_k.{m}": v for m, v in k.items()})


def test_a_step_differs_from_that_of_concat_though_there_is_no_convolution(mfeat_store, data_dir: Path) -> None:
    sessions = {name: session_of(data_dir, name) for name in ("concat", "ogm")}
    for session in sessions.values():
        session.method.step(next(iter(session.train_loader.epoch(1))))
    one, other = (frozen_copy(session.method) for session in sessions.values())
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    slowed = [m for m, k in sessions["ogm"].method.end_epoch().items() if m.startswith("ogm_k.") and k < 1]
    assert len(slowed) == 1
    m = slowed[0].removeprefix("ogm_k.")
    assert changed == {n for n, v in one.items() if n.startswith(f"encoders.{m}.") and v.dim() >= 2}


def test_outside_its_epochs_it_is_concat(mfeat_store, data_dir: Path, monkeypatch) -> None:
    raw = gradients(session_of(data_dir, "concat"), monkeypatch)
    for name in ("ogm", "ogm_ge"):
        assert same_bits(raw, gradients(session_of(data_dir, name, start_epoch=2), monkeypatch))
        late = gradients(session_of(data_dir, name, end_epoch=1), monkeypatch, epoch=2)
        assert same_bits(gradients(session_of(data_dir, "concat"), monkeypatch, epoch=2), late)
        assert not same_bits(raw, gradients(session_of(data_dir, name, end_epoch=1), monkeypatch))


def test_the_released_choice_scales_convolutions_only(mfeat_store, emoji_store, data_dir: Path, monkeypatch) -> None:
    session = session_of(data_dir, "ogm", parameters="conv4d")
    assert same_bits(gradients(session_of(data_dir, "concat"), monkeypatch), gradients(session, monkeypatch))
    assert session.method.context.warnings == [
        f"`ogm.parameters: conv4d` finds nothing to scale in the encoder of {m}" for m in ("mor", "fou")
    ]
    scaled = make_session(emoji_recipe(method={"name": "ogm", "ogm": {"parameters": "conv4d"}}), data_dir).method.scaled
    assert {p.dim() for _, p in scaled["visual"]} == {4}
    assert scaled["text"] == []


def test_others_may_be_summed(mfeat_store, data_dir: Path) -> None:
    ratios = {}
    for others in ("mean", "sum"):
        session = session_of(data_dir, "ogm", VIEWS, others=others)
        session.method.step(next(iter(session.train_loader.epoch(1))))
        ratios[others] = session.method.end_epoch()["ogm_rho.mor"]
    assert ratios["mean"] == pytest.approx(2 * ratios["sum"])


def test_the_noise_has_the_unscaled_gradients_sd_and_reaches_every_encoder(
    mfeat_store, data_dir: Path, monkeypatch
) -> None:
    raw = gradients(session_of(data_dir, "concat"), monkeypatch)
    scaled = gradients(session_of(data_dir, "ogm"), monkeypatch)
    noisy = gradients(session_of(data_dir, "ogm_ge"), monkeypatch)
    assert same_bits(noisy, gradients(session_of(data_dir, "ogm_ge"), monkeypatch))  # keyed, not drawn from a stream
    draws = []
    for name, gradient in raw.items():
        noise = noisy[name] - scaled[name]
        if not name.startswith("encoders.") or gradient.dim() < 2:
            assert not noise.any()
            continue
        draws.append((noise / (gradient.std() + 1e-8)).flatten())
        count = noise.numel()
        assert draws[-1].std() == pytest.approx(1, abs=5 / (2 * count) ** 0.5), name
        assert draws[-1].mean() == pytest.approx(0, abs=5 / count**0.5), name
    assert len(draws) >= 4
    assert len({round(float(draw[0]), 5) for draw in draws}) == len(draws)  # each parameter its own noise
    session = session_of(data_dir, "ogm_ge")
    other = next(name for name, g in raw.items() if name.startswith("encoders.") and g.dim() >= 2)
    assert not torch.equal(noisy[other], gradients(session, monkeypatch, epoch=2)[other])


@pytest.mark.parametrize("keys", [{"others": "median"}, {"parameters": "all"}])
@pytest.mark.parametrize("name", ["ogm", "ogm_ge"])
def test_unknown_choices_are_refused(mfeat_store, data_dir: Path, name: str, keys: dict) -> None:
    with pytest.raises(MlaError, match=f"`method.{name}.{next(iter(keys))}` must be one of"):
        session_of(data_dir, name, **keys)
