"""What methods share: seeded dropout, cleared gradients, heads and groups, and predictions for present modalities."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import frozen_copy, make_session, mfeat_recipe, one_modality, same_bits
from torch import nn

from mla_cli.core.method import BaseMethod, Batch, Context, option_error
from mla_cli.schema import MethodSection


class Tiny(nn.Module):
    """(B, 3) -> (B, 4), with dropout."""

    width = 4

    def __init__(self, dropout: float):
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 4), nn.Dropout(dropout)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(inputs))


def made(dropout: float = 0.5, **context) -> BaseMethod:
    torch.manual_seed(0)
    names = ["a", "b"]
    settings = {
        "modalities": names,
        "encoders": nn.ModuleDict({m: Tiny(dropout) for m in names}),
        "num_classes": 5,
        "width": 4,
        "seed": 0,
        "section": MethodSection(),
        "device": torch.device("cpu"),
    }
    return BaseMethod(Context(**{**settings, **context}))


def batch(epoch: int = 1, number: int = 0) -> Batch:
    inputs = {m: torch.ones(6, 3) for m in "ab"}
    return Batch(epoch, number, 3, inputs, {m: torch.arange(6) % 5 for m in "ab"})


def test_dropout_depends_on_seed_epoch_round_and_modality_alone() -> None:
    method = made()
    drawn = {}
    for key in ((1, 0, "a"), (1, 1, "a"), (2, 0, "a"), (1, 0, "b")):
        drawn[key] = method.features(key[2], batch(*key[:2])) == 0
    masks = [tuple(mask.flatten().tolist()) for mask in drawn.values()]
    assert len(set(masks)) == 4
    torch.manual_seed(123)  # whatever was drawn before
    torch.rand(7)
    assert torch.equal(method.features("a", batch(1, 0)) == 0, drawn[1, 0, "a"])
    other = made(seed=1)
    assert not torch.equal(other.features("a", batch(1, 0)) == 0, drawn[1, 0, "a"])


def test_without_dropout_nothing_is_seeded() -> None:
    """Seeding costs time, and `Dropout(0)` draws nothing."""
    assert made(0.5).random_parts
    method = made(0.0)
    assert not method.random_parts
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    method.features("a", batch())
    assert torch.equal(torch.rand(3), expected)


def test_update_steps_the_named_optimisers_and_clears_their_gradients() -> None:
    method = made(0.0)
    method.optimizers = {n: torch.optim.SGD(p, lr=0.1) for n, p in method.groups().items()}
    assert list(method.groups()) == ["encoder.a", "encoder.b", "head.a", "head.b"]
    before = frozen_copy(method)
    sum(parameter.sum() for parameter in method.parameters()).backward()
    method.update("encoder.a", "head.b")
    moved = {name for name, value in frozen_copy(method).items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] + name.split(".")[0] for name in moved} == {"aencoders", "bheads"}
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == (name in moved)


def test_loss_is_cross_entropy_in_float32_with_label_smoothing() -> None:
    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    plain, smooth = made(), made(label_smoothing=0.3)
    log_p = torch.log_softmax(logits, 1)
    by_hand = -log_p[torch.arange(6), labels].mean()
    torch.testing.assert_close(plain.loss(logits, labels), by_hand)
    torch.testing.assert_close(smooth.loss(logits, labels), 0.7 * by_hand - 0.3 * log_p.mean())
    assert plain.loss(logits.bfloat16(), labels).dtype == torch.float32


def test_predictions_are_nan_where_a_modality_is_absent_and_unmoved_elsewhere() -> None:
    method = made(0.0).eval()
    inputs = {m: torch.randn(4, 3) for m in "ab"}
    present = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    with torch.no_grad():
        logits = method.predict(inputs, present)
        inputs["b"][1] = float("nan")  # whatever stands where a modality is absent
        again = method.predict(inputs, present)
    assert logits.shape == (4, 2, 5)
    np.testing.assert_array_equal(torch.isnan(logits).all(-1).numpy(), ~present.numpy())
    np.testing.assert_array_equal(logits.numpy(), again.numpy())


def test_bf16_features_leave_as_float32() -> None:
    method = made(0.0, autocast=torch.bfloat16)
    exact = made(0.0)
    features = method.encode("a", torch.randn(4, 3))
    assert features.dtype == torch.float32
    inputs = torch.randn(4, 3)
    with torch.no_grad():
        gap = (method.encode("a", inputs) - exact.encode("a", inputs)).abs().max()
    assert 0 < gap < 0.05


def test_label_smoothing_reaches_training(mfeat_store, data_dir: Path) -> None:
    losses = []
    for smoothing in (0.0, 0.2):
        session = make_session(mfeat_recipe(train={"label_smoothing": smoothing}), data_dir)
        losses.append(float(session.method.step(next(iter(session.train_loader.epoch(1))))["mor"]))
    assert losses[0] != losses[1]


def test_the_gradient_does_not_depend_on_what_another_modality_did_before(mfeat_store, data_dir: Path) -> None:
    """`late`: a part's step is the same whether the other part was trained in this round or not."""
    both, alone = (make_session(mfeat_recipe(dropout=0.4, method={"name": "late"}), data_dir) for _ in range(2))
    rounds = next(iter(both.train_loader.epoch(1)))
    both.method.step(rounds)
    alone.method.step(one_modality(rounds, "fou"))
    assert same_bits(frozen_copy(both.method.encoders["fou"]), frozen_copy(alone.method.encoders["fou"]))


def test_option_errors_name_the_choices() -> None:
    error = option_error("hgm_mean", "weekly", ["batch", "running"])
    assert error.message == "`method.hgm_mean` must be one of batch, running, got 'weekly'"
    assert error.hint


def test_a_method_that_does_not_say_how_it_trains_is_refused() -> None:
    with pytest.raises(NotImplementedError):
        made().step(batch())
