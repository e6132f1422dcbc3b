"""The transformers of M3AE and of CAV-MAE's audio branch once more, from their description in plain tensor algebra.

Everything works on the tensors of a checkpoint by their published names: no module, no fused attention. Pre-norm blocks
x + attention(norm(x)), then x + mlp(norm(x)); layer norms with eps 1e-5; softmax(q k / sqrt(d_head)) v per head; the
exact GELU.
"""

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(x: Tensor, state: State, qkv: str, out: str, heads: int, real: Tensor | None) -> Tensor:
    """x: (tokens, d), one sample; real: (tokens,) bool."""
    width = x.shape[1]
    each = width // heads
    queries, keys, values = linear(x, state, qkv).split(width, dim=1)
    found = []
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(each)  # (query, key)
        if real is not None:
            scores[:, ~real] = -math.inf
        weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        found.append(weights @ values[:, part])
    return linear(torch.cat(found, dim=1), state, out)


def mlp(x: Tensor, state: State, name: str) -> Tensor:
    hidden = linear(x, state, f"{name}.fc1")
    return linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), state, f"{name}.fc2")


def place(index: int, width: int) -> list[float]:
    """One place as sines, then cosines, of index / 10000 ** (k / (width / 2))."""
    angles = [index / 10000 ** (k / (width / 2)) for k in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def m3ae_tokens(x: Tensor, state: State, heads: int, real: Tensor | None) -> Tensor:
    """x: (tokens, d) embedded, without cls -> (1 + tokens, d) after the final norm."""
    x = torch.cat([state["cls_token"][0], x])
    real = None if real is None else torch.cat([torch.tensor([True]), real])
    depth = len({name.split(".")[2] for name in state if name.startswith("encoder.blocks.")})
    for number in range(depth):
        block = f"encoder.blocks.{number}"
        normed = layer_norm(x, state, f"{block}.layer_norm1")
        x = x + attention(normed, state, f"{block}.attention.qkv_linear", f"{block}.attention.fc", heads, real)
        x = x + mlp(layer_norm(x, state, f"{block}.layer_norm2"), state, f"{block}.transformer_mlp")
    return layer_norm(x, state, "encoder.layer_norm")


def patches(image: Tensor) -> list[list[Tensor]]:
    """(channel, H, W) -> rows of columns of flat 16 x 16 patches in the order channel, row, column."""
    return [
        [image[:, top : top + 16, left : left + 16].flatten() for left in range(0, image.shape[2], 16)]
        for top in range(0, image.shape[1], 16)
    ]


def m3ae_image(image: Tensor, state: State, heads: int) -> Tensor:
    """(3, H, W) -> (1 + patches, d)."""
    width, embedded = state["cls_token"].shape[2], []
    for row, line in enumerate(patches(image)):
        for column, patch in enumerate(line):
            position = torch.tensor(place(column, width // 2) + place(row, width // 2))
            embedded.append(linear(patch, state, "image_embedding") + position)
    return m3ae_tokens(torch.stack(embedded) + state["encoder_image_type_embedding"][0], state, heads, None)


def m3ae_text(tokens: list[int], state: State, heads: int) -> tuple[Tensor, Tensor]:
    """Token numbers, -1 = padding -> ((1 + tokens, d), which of them are real)."""
    width, real = state["cls_token"].shape[2], torch.tensor([token >= 0 for token in tokens])
    embedded = [
        state["text_embedding.weight"][max(token, 0)] + torch.tensor(place(i, width)) for i, token in enumerate(tokens)
    ]
    x = torch.stack(embedded) + state["encoder_text_type_embedding"][0]
    return m3ae_tokens(x, state, heads, real), torch.cat([torch.tensor([True]), real])


def cav_mae_audio(fbank: Tensor, state: State, heads: int) -> Tensor:
    """(frames, mels) -> (d,)."""
    kernel = state["patch_embed_a.proj.weight"].flatten(1)
    flat = torch.stack([patch for line in patches(fbank.T[None]) for patch in line])
    x = flat @ kernel.T + state["patch_embed_a.proj.bias"] + state["pos_embed_a"][0] + state["modality_a"][0]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks_a.")})
    for block, suffix in [*((f"blocks_a.{number}", "") for number in range(depth)), ("blocks_u.0", "_a")]:
        normed = layer_norm(x, state, f"{block}.norm1{suffix}")
        x = x + attention(normed, state, f"{block}.attn.qkv", f"{block}.attn.proj", heads, None)
        x = x + mlp(layer_norm(x, state, f"{block}.norm2{suffix}"), state, f"{block}.mlp")
    return layer_norm(x, state, "norm_a").mean(dim=0)
