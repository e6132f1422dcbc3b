"""ReconBoost: its loss equals the value worked by hand, its agreement term has a gradient or none, its stages cycle."""

import math
from pathlib import Path

import pytest
import torch
from tiny import emoji_recipe, frozen_copy, make_session, mfeat_recipe, same_bits

from mla_cli.engine.session import Session
from mla_cli.errors import MlaError

VIEWS = ("mor", "fou", "zer")
SHORT = {"epochs_alone": 1, "epochs_joint": 1}


def session_of(data_dir: Path, views=("mor", "fou"), make=mfeat_recipe, order=None, **keys) -> Session:
    changes = {"method": {"name": "reconboost", "reconboost": keys, "order": order}}
    session = make_session(make(views, **changes) if make is mfeat_recipe else make(**changes), data_dir)
    session.method.train()
    return session


def by_hand(previous: bool) -> float:
    """Two samples of three classes, mor active, fou the others and the previous: see the logits in `hand_made`."""
    ln2 = math.log(2)
    # softmax of (ln 2, 0, 0) is (1/2, 1/4, 1/4); softmax of (0, 0, ln 2) is (1/4, 1/4, 1/2); labels 0 and 1
    first = (5 - 1 * 0.25) * ln2 / 3  # p_y = 1/4 by fou, own probability of the right class 1/2
    second = (5 - 1 * 0.25) * math.log(4) / 3  # p_y = 1/4, own 1/4
    apart = (0.25**2 + 0 + 0.25**2) / 3  # both samples: (1/2, 1/4, 1/4) against (1/4, 1/4, 1/2)
    return (first + second) / 2 + (0.5 * apart if previous else 0)


def hand_made() -> tuple[torch.Tensor, torch.Tensor]:
    ln2 = math.log(2)
    logits = torch.tensor([[[ln2, 0, 0], [0, 0, ln2]], [[ln2, 0, 0], [0, 0, ln2]]], requires_grad=True)
    return logits, torch.tensor([0, 1])


@pytest.mark.parametrize("agreement", ["live", "released"])
def test_the_loss_worked_by_hand_and_which_term_has_a_gradient(mfeat_store, data_dir: Path, agreement: str) -> None:
    method = session_of(data_dir, agreement=agreement).method
    slopes = []
    for previous in (None, "fou"):
        logits, labels = hand_made()
        loss = method.boosting_loss(logits, labels, None, "mor", previous)
        assert loss.item() == pytest.approx(by_hand(previous is not None))
        loss.backward()
        assert not logits.grad[:, 1].any()  # the others are detached
        slopes.append(logits.grad[:, 0])
    assert torch.equal(*slopes) == (agreement == "released")
    assert slopes[0].any()


def test_absent_samples_are_left_out_of_every_part(mfeat_store, data_dir: Path) -> None:
    method = session_of(data_dir, VIEWS).method
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 10), torch.tensor([1, 2, 3, 4])
    present = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 0, 0]]).bool()
    found = method.boosting_loss(logits, labels, present, "mor", "fou")
    boosted, apart = [], []
    for i in (0, 2, 3):
        rest = sum((logits[i, j] for j in (1, 2) if present[i, j]), torch.zeros(10))
        p = rest.softmax(0)[labels[i]]
        boosted.append(-(5 - p) * logits[i, 0].log_softmax(0)[labels[i]] / 10)
        if present[i, 1]:
            apart.append((logits[i, 0].softmax(0) - logits[i, 1].softmax(0)).square().mean())
    torch.testing.assert_close(found, torch.stack(boosted).mean() + 0.5 * torch.stack(apart).mean())


def test_stages_follow_from_the_epoch_alone(mfeat_store, data_dir: Path) -> None:
    method = session_of(data_dir, epochs_alone=2, epochs_joint=1).method
    assert [method.active(e) for e in range(1, 9)] == ["mor", "mor", None, "fou", "fou", None, "mor", "mor"]
    assert [method.previous(e) for e in (1, 3, 4, 7)] == [None, None, "mor", "fou"]
    method = session_of(data_dir).method
    assert [method.active(e) for e in (4, 5, 8, 9)] == ["mor", None, None, "fou"]
    assert session_of(data_dir, order=["fou", "mor"]).method.active(1) == "fou"


def test_an_epoch_alone_leaves_every_bit_of_the_others_and_a_joint_one_moves_all(emoji_store, data_dir: Path) -> None:
    session = session_of(data_dir, make=emoji_recipe, order=["text", "visual"], **SHORT)
    method = session.method
    before = frozen_copy(method)
    assert any("running_mean" in name for name in before)
    assert list(session.train_epoch()) == ["text"]
    after = frozen_copy(method)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.split(".")[1] == "text"}  # batch statistics included
    assert list(session.train_epoch()) == ["fused"]
    last = frozen_copy(method)
    assert not any(torch.equal(after[name], last[name]) for name in after)


def test_live_and_released_agreement_train_differently_from_the_second_stage_on(mfeat_store, data_dir: Path) -> None:
    one, other = (session_of(data_dir, agreement=a, **SHORT) for a in ("live", "released"))
    for epoch in range(1, 4):
        for session in (one, other):
            session.train_epoch()
        assert same_bits(frozen_copy(one.method), frozen_copy(other.method)) == (epoch < 3)


@pytest.mark.parametrize("keys", [{"agreement": "both"}, {"epochs_alone": 0, "epochs_joint": 0}])
def test_impossible_keys_are_refused(mfeat_store, data_dir: Path, keys: dict) -> None:
    with pytest.raises(MlaError, match="reconboost"):
        session_of(data_dir, **keys)
