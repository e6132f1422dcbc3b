"""`bigated` equals its definition written by hand."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
from tiny import make_session, mfeat_recipe

VIEWS = ("mor", "fou", "zer", "kar")


def test_two_modalities_equal_the_two_line_reference(mfeat_store, data_dir: Path) -> None:
    method = make_session(mfeat_recipe(method={"name": "bigated"}), data_dir).method
    x1, x2, heads = torch.randn(6, 8), torch.randn(6, 8), method.heads
    first = heads["joint"](torch.sigmoid(heads["gate_mor"](x1)) * heads["gate_fou"](x2))
    reverse = heads["joint"](torch.sigmoid(heads["gate_fou"](x2)) * heads["gate_mor"](x1))
    torch.testing.assert_close(method.combine({"mor": x1, "fou": x2}), (first + reverse) / 2)


@pytest.mark.parametrize("count", [3, 4])
def test_more_average_over_every_ordered_pair(mfeat_store, data_dir: Path, count: int) -> None:
    views = VIEWS[:count]
    method = make_session(mfeat_recipe(views, method={"name": "bigated"}), data_dir).method
    x = {m: torch.randn(6, 8) for m in views}
    h = {m: method.heads[f"gate_{m}"](x[m]) for m in views}
    pairs = [method.heads["joint"](h[i].sigmoid() * h[j]) for i, j in permutations(views, 2)]
    torch.testing.assert_close(method.combine(x), torch.stack(pairs).mean(0))
