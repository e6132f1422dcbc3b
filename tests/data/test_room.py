"""Memory of batches is used again, and never while somebody holds it."""

import numpy as np
import torch

from mla_cli.data import room
from mla_cli.data.room import KEPT, Room

SHAPE, FLOAT = (4, 3), np.dtype(np.float32)


def place(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_an_array_comes_back_once_nobody_holds_it() -> None:
    kept = Room()
    tensor = torch.from_numpy(kept.array(SHAPE, FLOAT))
    first = tensor.data_ptr()
    view = tensor[1:]
    del tensor
    assert place(kept.array(SHAPE, FLOAT)) != first  # the view still holds it
    del view
    assert place(kept.array(SHAPE, FLOAT)) == first


def test_the_graph_of_a_step_holds_its_batch() -> None:
    kept, weight = Room(), torch.ones(3, requires_grad=True)
    loss = (torch.from_numpy(kept.array(SHAPE, FLOAT)) * weight).sum()
    kept.kept[0][:] = 2.0
    again = kept.array(SHAPE, FLOAT)
    again[:] = -1.0  # must not be the one that the gradient is computed from
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [8.0] * 3


def test_what_is_kept_is_bounded_and_of_the_shape_asked_for(monkeypatch) -> None:
    kept = Room()
    held = [kept.array((n, 3), FLOAT) for n in range(1, 9)]
    assert len(kept.kept) == KEPT
    assert [array.shape for array in held] == [(n, 3) for n in range(1, 9)]
    del held
    assert kept.array((8, 3), np.dtype(np.int32)).dtype == np.int32
    monkeypatch.setattr(room, "LARGEST", 10)
    large = Room()
    large.array(SHAPE, FLOAT)
    assert large.kept == []
