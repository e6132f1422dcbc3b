"""Synthetic checkpoints in the layouts of published ones.

`encoders/checkpoint_layouts.json` holds names and shapes only: name -> [count, shape], where `*` in a name stands for
the numbers below count. The names of `mla_released` carry a leading `module.` in the file itself.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

FILE = Path(__file__).parent / "encoders" / "checkpoint_layouts.json"


def shapes_of(layout: str) -> dict[str, tuple[int, ...]]:
    """Every name of a layout and its shape."""
    listed = json.loads(FILE.read_text("utf-8"))[layout]
    return {
        name.replace("*", str(number)): tuple(shape)
        for name, (count, shape) in listed.items()
        for number in range(count)
    }


def synthetic(layout: str, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of a layout; variances are positive, counters whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes_of(layout).items():
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            found[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            found[name] = torch.randn(shape, generator=generator) * 0.02
    return found


def hollow(layout: str, folder: Path, prefix: str = "") -> Path:
    """A file in a layout at its full size that takes little room: each tensor is one zero, repeated."""
    content = {prefix + name: torch.zeros(()).expand(shape) for name, shape in shapes_of(layout).items()}
    torch.save({"model": content}, folder / f"{layout}.pt")
    return folder / f"{layout}.pt"
