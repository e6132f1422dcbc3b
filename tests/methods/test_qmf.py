"""QMF: the fused loss and the ranking loss equal values worked by hand; its history is part of the checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import make_session, mfeat_recipe, trained

from mla_cli.engine.evaluate import Evaluator
from mla_cli.engine.predictions import read_predictions
from mla_cli.methods.qmf import fuse, ranking_loss


def test_the_ranking_loss_worked_by_hand() -> None:
    # pairs (0, 1), (1, 2), (2, 3), (3, 0)
    history = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.4, 0.5], [0.4, 0.5]])
    confidence = torch.tensor([[0.9, 1.0], [0.2, 2.0], [0.1, 3.0], [2.0, 4.0]], requires_grad=True)
    # (0,1): t = -1, margin 1.0: -(0.9 - 0.2) - 1 < 0 -> 0;   (1,2): t = 1, margin .6: 0.1 - .6 < 0 -> 0
    # (2,3): t = 0, not counted;                               (3,0): t = 1, margin .4: 1.1 - .4 = .7
    found = ranking_loss(confidence, history, None)
    torch.testing.assert_close(found, torch.tensor([0.7 / 3, 0.0]))
    found.sum().backward()
    expected = torch.zeros(4, 2)
    expected[3, 0], expected[0, 0] = 1 / 3, -1 / 3  # the gradient goes through c
    torch.testing.assert_close(confidence.grad, expected)


def test_pairs_with_an_absent_member_are_left_out() -> None:
    history = torch.tensor([[0.0], [1.0], [0.4]])
    confidence = torch.tensor([[0.0], [3.0], [0.0]])
    # (0,1): -(0 - 3) - 1 = 2;   (1,2): (3 - 0) - .6 = 2.4;   (2,0): 0 - .4 -> 0
    assert ranking_loss(confidence, history, None).item() == pytest.approx(4.4 / 3)
    present = torch.tensor([[True], [True], [False]])
    assert ranking_loss(confidence, history, present).item() == pytest.approx(2.0)
    assert ranking_loss(confidence, history, torch.zeros(3, 1, dtype=torch.bool)).item() == 0


def first_step(data_dir: Path, **changes):
    session = make_session(mfeat_recipe(method={"name": "qmf"}, **changes), data_dir)
    session.method.train()
    batch = next(iter(session.train_loader.epoch(1)))
    logits = torch.stack([session.method.heads[m](session.method.encoders[m](batch.inputs[m])) for m in ("mor", "fou")])
    return session, batch, logits.detach(), session.method.step(batch)


def test_the_losses_and_the_history_of_a_step(mfeat_store, data_dir: Path) -> None:
    session, batch, logits, losses = first_step(data_dir)
    labels = batch.labels["mor"]
    fused = sum(torch.logsumexp(part, 1, keepdim=True) / 10 * part for part in logits)
    torch.testing.assert_close(losses["fused"], F.cross_entropy(fused, labels))
    history = session.method.history
    for i, m in enumerate(("mor", "fou")):
        own = F.cross_entropy(logits[i], labels, reduction="none")
        torch.testing.assert_close(losses[m], own.mean())
        torch.testing.assert_close(history[batch.positions[m], i], own)
    assert int((history != 0).any(1).sum()) == len(labels)
    assert len(history) == 96
    once = history.clone()
    session.method.step(batch)
    assert (session.method.history[batch.positions["mor"]] > once[batch.positions["mor"]]).all()  # it accumulates


def test_absent_modalities_add_nothing(mfeat_store, data_dir: Path) -> None:
    session, batch, logits, losses = first_step(data_dir, train={"missing_rate": 0.5}, impute="train_mean")
    labels, present = batch.labels["mor"], batch.present
    assert int((~present).sum()) > 0
    fused = sum(
        present[:, i, None] * torch.logsumexp(part, 1, keepdim=True) / 10 * part for i, part in enumerate(logits)
    )
    torch.testing.assert_close(losses["fused"], F.cross_entropy(fused, labels))
    for i, m in enumerate(("mor", "fou")):
        has = present[:, i]
        torch.testing.assert_close(losses[m], F.cross_entropy(logits[i][has], labels[has]))
        assert not session.method.history[batch.positions[m][~has], i].any()
        assert session.method.history[batch.positions[m][has], i].all()


def test_the_history_is_min_max_normalised_over_the_training_set(mfeat_store, data_dir: Path) -> None:
    method = make_session(mfeat_recipe(method={"name": "qmf"}), data_dir).method
    positions = torch.tensor([3, 0])
    assert method.normalised(positions).tolist() == [[0, 0], [0, 0]]  # all equal: the guard
    method.history[:, 0] = torch.arange(96.0) + 5
    torch.testing.assert_close(method.normalised(positions), torch.tensor([[3 / 95, 0], [0, 0]]))


def test_the_ranking_loss_takes_part_in_training(mfeat_store, data_dir: Path) -> None:
    heads = []
    for weight in (0.0, 1.0):
        session = make_session(mfeat_recipe(method={"name": "qmf", "qmf": {"weight": weight}}), data_dir)
        session.train_epoch()
        heads.append(session.method.heads["mor"].weight.detach().clone())
        session.train_epoch()  # the history differs between samples from the second epoch on
        heads.append(session.method.heads["mor"].weight.detach())
    assert not torch.equal(heads[1], heads[3])


def test_test_time_fusion_is_that_of_training(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    run = trained(mfeat_recipe(method={"name": "qmf"}), data_dir, tmp_path)
    p = read_predictions(run.predictions)
    present = p.present.copy()
    present[::2, 0] = False
    logits, here = torch.from_numpy(p.logits), torch.from_numpy(present)
    expected = fuse(logits, logits.logsumexp(-1) / 10, here)
    np.testing.assert_allclose(Evaluator(p, run.recipe(), {}).fused("native", present), expected, rtol=1e-4, atol=1e-6)
