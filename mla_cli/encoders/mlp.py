"""`mlp`: a multi-layer perceptron for vectors; inputs with more axes are flattened."""

import itertools
import math

from torch import Tensor, nn

from mla_cli.errors import MlaError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class Mlp(nn.Module):
    """(B, *input_shape) float -> (B, width); every layer is linear, activation, dropout, and so is the last."""

    def __init__(self, inputs: int, width: int, hidden: int, layers: int, activation: type[nn.Module], dropout: float):
        super().__init__()
        self.width = width
        sizes = [inputs, *[hidden] * (layers - 1), width]
        parts: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            parts += [linear, activation(), *([nn.Dropout(dropout)] if dropout else [])]
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x.flatten(1))
        return features


def build(
    input_shape: tuple[int, ...],
    width: int | None,
    *,
    hidden: int = 128,
    layers: int = 2,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """A perceptron of `layers` layers: `hidden` units in all but the last, `width` (default: `hidden`) in the last.

    Weights start He-uniform (fan in, gain of ReLU), biases 0. activation: `relu`, `gelu` or `tanh`. dropout in [0, 1)
    follows every layer. Raises MlaError for another activation or fewer than one layer.
    """
    if activation not in ACTIVATIONS:
        raise MlaError(f"encoder mlp: no activation `{activation}`", "choose one of `relu`, `gelu`, `tanh`")
    if layers < 1:
        raise MlaError(f"encoder mlp: `layers` must be 1 or more, got `{layers}`", "one layer is linear + activation")
    return Mlp(math.prod(input_shape), width or hidden, hidden, layers, ACTIVATIONS[activation], dropout)
