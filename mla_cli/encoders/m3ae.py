"""`m3ae`: the transformer of M3AE (Geng et al. 2022) for images and for text.

The paper's encoder for Food-101 and MVSA (size base). A cls token and the embedded patches or word pieces, with fixed
sin-cos positions and a type embedding, pass through pre-norm blocks and a last layer norm, and are pooled. Parameters
are named as in the released PyTorch port, so that its checkpoints fit: of one, an image encoder leaves
`text_embedding.weight` and `encoder_text_type_embedding` unused, a text encoder `image_embedding.*` and
`encoder_image_type_embedding`.
"""

import torch
from torch import Tensor, nn

from mla_cli.encoders._transformer import Mlp, attend, init_linear, positions_1d, positions_2d, run_blocks
from mla_cli.errors import MlaError

PATCH = 16  # pixels
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads
POOLS = ("mean_valid", "mean_all", "cls")


class Attention(nn.Module):
    """Self-attention under the port's names."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv_linear, self.fc = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        return attend(x, self.qkv_linear, self.fc, self.heads, real)


class Block(nn.Module):
    """(B, tokens, d) -> (B, tokens, d): attention, then the MLP, each after a layer norm and added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.layer_norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.layer_norm2, self.transformer_mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        x = x + self.attention(self.layer_norm1(x), real)
        found: Tensor = x + self.transformer_mlp(self.layer_norm2(x))
        return found


class Transformer(nn.Module):
    """The blocks and the last layer norm."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        self.checkpointing = False
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        found: Tensor = self.layer_norm(run_blocks(self.blocks, x, real, checkpointing=self.checkpointing))
        return found


class M3ae(nn.Module):
    """What image and text share: the cls token, the transformer, the pooling."""

    def __init__(self, width: int, depth: int, heads: int, pool: str):
        super().__init__()
        self.width, self.pool = width, pool
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Transformer(width, depth, heads)
        nn.init.normal_(self.cls_token, std=0.02)

    def pooled(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, tokens, d) embedded tokens -> (B, d). real: bool (B, tokens), False is padding; None: all are real."""
        cls = self.cls_token.expand(len(x), -1, -1)  # it takes no position and no type
        if real is not None:
            real = nn.functional.pad(real, (1, 0), value=True)
        x = self.encoder(torch.cat([cls, x], dim=1), real)
        if self.pool == "cls":
            return x[:, 0]
        if self.pool == "mean_all" or real is None:
            return x.mean(dim=1)
        valid = real.unsqueeze(2)
        # chosen, not multiplied: what padding computes must not reach a feature, whatever it is
        return x.where(valid, 0).sum(dim=1) / valid.sum(dim=1)


class M3aeImage(M3ae):
    """(B, 3, H, W) or (B, frames, 3, H, W) float -> (B, d); a clip's frame features are averaged over time."""

    positions: Tensor

    def __init__(self, rows: int, columns: int, width: int, depth: int, heads: int, pool: str):
        super().__init__(width, depth, heads, pool)
        self.image_embedding = nn.Linear(3 * PATCH * PATCH, width)
        self.encoder_image_type_embedding = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.encoder_image_type_embedding, std=0.02)
        init_linear(self)
        self.register_buffer("positions", positions_2d(rows, columns, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        images = x.flatten(0, 1) if x.dim() == 5 else x
        squares = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, rows, columns, 16, 16)
        patches = squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, patches, channel * row * column)
        tokens = self.image_embedding(patches) + self.positions + self.encoder_image_type_embedding
        features = self.pooled(tokens)
        return features.unflatten(0, x.shape[:2]).mean(dim=1) if x.dim() == 5 else features


class M3aeText(M3ae):
    """(B, length) token numbers, -1 = padding -> (B, d); under `mean_valid` and `cls` padding changes no feature."""

    positions: Tensor

    def __init__(self, token_count: int, length: int, width: int, depth: int, heads: int, pool: str):
        super().__init__(width, depth, heads, pool)
        self.text_embedding = nn.Embedding(token_count, width)
        self.encoder_text_type_embedding = nn.Parameter(torch.zeros(1, 1, width))
        init_linear(self)
        nn.init.normal_(self.text_embedding.weight, std=0.02)
        nn.init.normal_(self.encoder_text_type_embedding, std=0.02)
        self.register_buffer("positions", positions_1d(torch.arange(length), width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        # Padding embeds token 0, which is BERT's `[PAD]`; only `mean_all` lets it reach a feature.
        embedded = self.text_embedding(tokens.long().clamp(min=0))
        embedded = embedded + self.positions[: tokens.shape[1]] + self.encoder_text_type_embedding
        return self.pooled(embedded, tokens >= 0)


def build(
    input_shape: tuple[int, ...],
    width: int | None,
    *,
    token_count: int = 0,
    size: str = "base",
    depth: int | None = None,
    pool: str = "mean_valid",
    checkpointing: bool = False,
) -> nn.Module:
    """M3AE's encoder of one modality: `small` (384 wide, 12 blocks), `base` (768, 12) or `large` (1024, 24).

    input_shape: (3, H, W) or (frames, 3, H, W) with sides that are multiples of 16, or (length,) of text, whose
    token_count is set from the features (30,522 with bert-base-uncased). depth: fewer or more blocks than the size has.
    pool: the mean over the real tokens and cls (`mean_valid`), over all tokens, padding included, as the released
    classifier does (`mean_all`), or the cls token (`cls`). checkpointing: less memory for about a quarter more time,
    with the same numbers. Linear layers start Glorot-uniform with biases at 0, cls token, types and token embeddings
    normal with sd 0.02. Raises MlaError for another shape, size, pool or width.
    """
    if size not in SIZES:
        raise MlaError(f"encoder m3ae: no size `{size}`", "choose one of `small`, `base`, `large`")
    if pool not in POOLS:
        raise MlaError(f"encoder m3ae: no pool `{pool}`", "choose one of `mean_valid`, `mean_all`, `cls`")
    own, blocks, heads = SIZES[size]
    if width not in (None, own):
        hint = "leave it out; an adapter leads to `shared_width`"
        raise MlaError(f"encoder m3ae: `width` of size `{size}` is {own}, got `{width}`", hint)
    if depth is not None and depth < 1:
        raise MlaError(f"encoder m3ae: `depth` must be 1 or more, got `{depth}`", f"size `{size}` has {blocks} blocks")
    blocks = depth or blocks
    network: M3ae
    if len(input_shape) == 1 and token_count:
        network = M3aeText(token_count, input_shape[0], own, blocks, heads, pool)
        network.encoder.checkpointing = checkpointing
        return network
    if len(input_shape) not in (3, 4) or input_shape[-3] != 3:
        raise MlaError(
            f"encoder m3ae: inputs must be images or clips of 3 channels, or text, got shape `{input_shape}`",
            "use `cav_mae` or `resnet18` for spectrograms, `mlp` for vectors",
        )
    if input_shape[-2] % PATCH or input_shape[-1] % PATCH:
        raise MlaError(
            f"encoder m3ae: sides must be multiples of {PATCH} pixels, got `{input_shape}`",
            "prepare the images with another `size`, such as 256",
        )
    network = M3aeImage(input_shape[-2] // PATCH, input_shape[-1] // PATCH, own, blocks, heads, pool)
    network.encoder.checkpointing = checkpointing
    return network
