"""`cav_mae`: the audio branch of CAV-MAE (Gong et al. 2023) for filter banks.

The paper's audio encoder for IEMOCAP. A spectrogram is cut into 16 x 16 patches, which with learned positions and a
modality embedding pass through pre-norm audio blocks, the joint block with its audio norms, and a last norm; their mean
is the feature. Parameters are named as in the released checkpoints. Of one, this encoder leaves unused all names of the
visual half (`*_v`, `blocks_v.*`), the norms of the audio blocks for joint use (`blocks_a.*.norm1_a` and the like), the
joint block's plain norms (`blocks_u.0.norm1`, `norm2`), and any head.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mla_cli.encoders._transformer import Mlp, attend, init_linear, positions_2d, run_blocks
from mla_cli.errors import MlaError

PATCH = 16  # mel bins and frames
WIDTH, HEADS = 768, 12
ROWS, COLUMNS = 8, 64  # patches of the released checkpoints: 128 mels, 1024 frames


class Attention(nn.Module):
    """Self-attention under the checkpoint's names."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return attend(x, self.qkv, self.proj, self.heads)


class Block(nn.Module):
    """(B, tokens, d) -> (B, tokens, d); its norms are called `norm1SUFFIX` and `norm2SUFFIX`."""

    def __init__(self, width: int, heads: int, suffix: str = ""):
        super().__init__()
        self.suffix = suffix
        self.add_module(f"norm1{suffix}", nn.LayerNorm(width))
        self.attn = Attention(width, heads)
        self.add_module(f"norm2{suffix}", nn.LayerNorm(width))
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(f"norm{number}{self.suffix}") for number in (1, 2))
        x = x + self.attn(first(x))
        found: Tensor = x + self.mlp(second(x))
        return found


class Patches(nn.Module):
    """(B, 1, mels, frames) -> (B, patches, d): frequency by frequency, each from the first frame to the last."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel_size=PATCH, stride=PATCH)
        nn.init.xavier_uniform_(self.proj.weight.data.view(width, -1))  # it is a linear layer on patches
        nn.init.zeros_(torch.as_tensor(self.proj.bias))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return found


class CavMae(nn.Module):
    """(B, 1, frames, mels) float -> (B, d)."""

    def __init__(self, rows: int, columns: int, width: int, depth: int, heads: int, checkpointing: bool = False):
        """rows, columns: numbers of patches along mels and along frames."""
        super().__init__()
        self.width, self.grid, self.checkpointing = width, (rows, columns), checkpointing
        self.patch_embed_a = Patches(width)
        self.pos_embed_a = nn.Parameter(positions_2d(rows, columns, width)[None])
        self.modality_a = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks_a = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.blocks_u = nn.ModuleList([Block(width, heads, suffix="_a")])
        self.norm_a = nn.LayerNorm(width)
        nn.init.normal_(self.modality_a, std=0.02)
        init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed_a(x.transpose(2, 3)) + self.pos_embed_a + self.modality_a
        x = run_blocks((*self.blocks_a, *self.blocks_u), x, checkpointing=self.checkpointing)
        features: Tensor = self.norm_a(x).mean(dim=1)
        return features


def convert(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Fit a checkpoint's learned positions, made for 8 x 64 patches (128 mels, 1024 frames), to our number of frames.

    A shorter input takes the positions of its own frames, the first ones, so that padding a clip at its end and cutting
    it give its patches the same positions. A longer one has them interpolated linearly along time, row by row. Raises
    MlaError for another number of mels: positions along frequency do not carry over.
    """
    wanted, table = network.get_parameter("pos_embed_a").shape, tensors.get("pos_embed_a")
    rows, columns = cast(CavMae, network).grid
    if table is None or table.dim() != 3 or table.shape[::2] != wanted[::2]:
        return tensors  # not of this encoder: the loader says so
    if table.shape[1] != ROWS * COLUMNS and table.shape == wanted:
        return tensors  # a run's own, of our size
    if table.shape[1] != ROWS * COLUMNS or rows != ROWS:
        raise MlaError(
            f"encoder cav_mae: the file has {table.shape[1]} positions, which do not fit {rows} x {columns} patches",
            f"prepare the audio with `mels: 128`; a checkpoint of CAV-MAE has {ROWS} x {COLUMNS} positions",
        )
    grid = table.reshape(ROWS, COLUMNS, -1).float()
    if columns <= COLUMNS:
        grid = grid[:, :columns]
    else:
        grid = nn.functional.interpolate(grid.transpose(1, 2), size=columns, mode="linear").transpose(1, 2)
    return tensors | {"pos_embed_a": grid.reshape(wanted)}


def build(
    input_shape: tuple[int, ...], width: int | None, *, depth: int = 11, checkpointing: bool = False
) -> nn.Module:
    """CAV-MAE's audio branch, 768 wide: `depth` audio blocks and the joint block.

    input_shape: (1, frames, mels), both multiples of 16. checkpointing: less memory for about a quarter more time, with
    the same numbers. Linear layers and patches start Glorot-uniform, biases at 0, positions at the sin-cos table of the
    grid (they are learned), the modality embedding normal with sd 0.02. Raises MlaError for another shape, depth or
    width.
    """
    if len(input_shape) != 3 or input_shape[0] != 1:
        raise MlaError(
            f"encoder cav_mae: inputs must be filter banks (1, frames, mels), got shape `{input_shape}`",
            "use `m3ae` for images and text, `mlp` for vectors",
        )
    frames, mels = input_shape[1:]
    if frames % PATCH or mels % PATCH:
        near = max(PATCH, round(frames / PATCH) * PATCH)
        raise MlaError(
            f"encoder cav_mae: frames and mels must be multiples of {PATCH}, got {frames} x {mels}",
            f"prepare the audio with `frames: {near}` and `mels: 128`",
        )
    if width not in (None, WIDTH):
        hint = "leave it out; an adapter leads to `shared_width`"
        raise MlaError(f"encoder cav_mae: `width` is always {WIDTH}, got `{width}`", hint)
    if depth < 1:
        raise MlaError(f"encoder cav_mae: `depth` must be 1 or more, got `{depth}`", "the checkpoints have 11 blocks")
    return CavMae(mels // PATCH, frames // PATCH, WIDTH, depth, HEADS, checkpointing)
