"""`text_conv`: convolutions over embedded bytes or other tokens, in the manner of Kim 2014 and Zhang et al. 2015."""

import torch
from torch import Tensor, nn

from mla_cli.errors import MlaError

POOLS = ("max", "mean")


class TextConv(nn.Module):
    """(B, length) token numbers, -1 = padding -> (B, width); padding changes no feature."""

    def __init__(
        self, token_count: int, width: int, embedding: int, layers: int, kernel: int, pool: str, dropout: float
    ):
        super().__init__()
        self.width, self.pool = width, pool
        self.embedding = nn.Embedding(token_count + 1, embedding, padding_idx=0)  # row 0, always zero, is padding
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        with torch.no_grad():
            self.embedding.weight[0].zero_()
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in range(layers):
            convolution = nn.Conv1d(width if layer else embedding, width, kernel, padding=kernel // 2)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(torch.as_tensor(convolution.bias))
            self.convolutions.append(convolution)
            self.norms.append(nn.LayerNorm(width))  # per position: statistics over a batch would count padding
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()
        real = (tokens >= 0).unsqueeze(2)  # (B, length, 1)
        x = self.embedding(tokens + 1)  # (B, length, embedding)
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(x.transpose(1, 2)).transpose(1, 2))
            y = torch.relu(y + x if layer else y)
            x = y * real  # zero again, as the convolution's own padding is
        # The maximum needs no mask: after ReLU real positions are >= 0, and padding is 0.
        pooled = x.amax(dim=1) if self.pool == "max" else x.sum(dim=1) / real.sum(dim=1).clamp(min=1)
        features: Tensor = self.dropout(pooled)
        return features


def build(
    input_shape: tuple[int, ...],
    width: int | None,
    *,
    token_count: int = 256,
    embedding: int = 32,
    layers: int = 2,
    kernel: int = 5,
    pool: str = "max",
    dropout: float = 0.0,
) -> nn.Module:
    """Embedding, then `layers` convolutions of odd `kernel` with layer norm and ReLU, `width` (default 64) channels.

    Layers after the first add their input. pool: `max` or `mean` over the real tokens; a text without any gives zeros.
    token_count is set from the text features (256 for bytes). dropout in [0, 1) acts on the pooled features.
    Embeddings start normal with sd 1 / sqrt(embedding), convolutions He-normal (fan out), biases 0.
    """
    if pool not in POOLS:
        raise MlaError(f"encoder text_conv: no pool `{pool}`", "choose `max` or `mean`")
    if kernel < 1 or kernel % 2 == 0:
        raise MlaError(f"encoder text_conv: `kernel` must be odd, got `{kernel}`", "try `5`")
    if layers < 1:
        raise MlaError(f"encoder text_conv: `layers` must be 1 or more, got `{layers}`", "try `2`")
    return TextConv(token_count, width or 64, embedding, layers, kernel, pool, dropout)
