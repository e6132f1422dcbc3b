"""`ngram_bag`: the pooled embeddings of a text's hashed n-grams, as in fastText (Joulin et al. 2016)."""

import torch
from torch import Tensor, nn

from mla_cli.errors import MlaError

# How the sum over a text's n tokens is scaled: n to the power of minus this.
POOLS = {"mean": 1.0, "sqrtn": 0.5, "sum": 0.0}


class NgramBag(nn.Module):
    """(B, length) token numbers, -1 = padding -> (B, width); the order of tokens and padding change nothing."""

    def __init__(self, token_count: int, width: int, pool: str, hidden: int, dropout: float, token_scale: float):
        super().__init__()
        self.width, self.exponent = width, POOLS[pool]
        # Row 0 stands for padding: it is zero and gets no gradient, so that a plain sum skips it.
        self.embedding = nn.Embedding(token_count + 1, hidden or width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=token_scale)
        with torch.no_grad():
            self.embedding.weight[0].zero_()
        self.dropout = nn.Dropout(dropout)
        self.hidden: nn.Module | None = None
        if hidden:
            linear = nn.Linear(hidden, width)
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            self.hidden = nn.Sequential(nn.ReLU(), linear, nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()
        counts = (tokens >= 0).sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1); a text without tokens gives zeros
        bag = self.embedding(tokens + 1).sum(dim=1) / counts**self.exponent
        features: Tensor = self.dropout(bag)
        return features if self.hidden is None else self.hidden(features)


def build(
    input_shape: tuple[int, ...],
    width: int | None,
    *,
    token_count: int = 256,
    pool: str = "sqrtn",
    hidden: int = 0,
    dropout: float = 0.0,
    token_scale: float = 0.1,
) -> nn.Module:
    """A bag of token embeddings, `width` (default 64) wide. token_count is set from the text features.

    pool: `mean`, `sqrtn` (sum divided by the square root of the number of tokens) or `sum`. hidden > 0: embeddings of
    that width, then ReLU, a linear layer to `width` and ReLU. dropout in [0, 1) acts on the pooled embedding.
    Embeddings start normal with sd `token_scale`, the linear layer He-uniform with biases 0.
    """
    if pool not in POOLS:
        raise MlaError(f"encoder ngram_bag: no pool `{pool}`", "choose one of `mean`, `sqrtn`, `sum`")
    return NgramBag(token_count, width or 64, pool, hidden, dropout, token_scale)
