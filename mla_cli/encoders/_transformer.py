"""What the transformer encoders share: attention over tokens, the MLP, fixed sin-cos positions, how layers start."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


def attend(x: Tensor, qkv: nn.Linear, out: nn.Linear, heads: int, real: Tensor | None = None) -> Tensor:
    """Multi-head self-attention: (B, tokens, d) -> (B, tokens, d).

    qkv gives queries, keys and values after each other, each of `heads` heads after each other. real: bool
    (B, tokens), the keys that may be looked at, at least one in each row; None: all.
    """
    batch, tokens, width = x.shape
    queries, keys, values = qkv(x).view(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mask = None if real is None else real[:, None, None, :]  # (B, 1, 1, tokens): the same for every head and query
    mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)  # (B, heads, tokens, d / heads)
    found: Tensor = out(mixed.transpose(1, 2).reshape(batch, tokens, width))
    return found


class Mlp(nn.Module):
    """Two layers, four times as wide between them, with the exact GELU."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return found


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *given: Tensor | None, checkpointing: bool) -> Tensor:
    """x through the blocks, each of which takes (x, *given).

    checkpointing: keep only the blocks' inputs for the backward pass and compute each block again there: less memory,
    a fifth to a third more time, the same gradients (the blocks draw no random numbers).
    """
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, *given)
    return x


def positions_1d(places: Tensor, width: int) -> Tensor:
    """Fixed positions (Vaswani et al. 2017, sines and cosines apart): (n,) -> (n, width), float32.

    Half of the width is sin(place * w_k), half cos(place * w_k), with w_k = 10000 ** (-k / (width / 2)).
    """
    half = width // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=places.device) / half)
    angles = places.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def positions_2d(rows: int, columns: int, width: int) -> Tensor:
    """Fixed positions of a grid, row by row: (rows * columns, width), half from the column index, half from the row."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([positions_1d(place.flatten(), width // 2) for place in (column, row)], dim=1)


def init_linear(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases for every linear layer, as ViT's and MAE's authors start theirs."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
