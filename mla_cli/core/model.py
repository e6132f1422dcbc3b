"""Encoders with their adapters, and heads: the parts that every method is made of.

Initialisation is derived from (seed, "init", part), so that one modality starts equal whatever else the model holds:
encoders as their files state; adapters and heads uniform in +-1/sqrt(fan_in), weight and bias (PyTorch's default).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mla_cli import registry
from mla_cli.core.weights import Loaded, has_weights, load_weights
from mla_cli.errors import MlaError
from mla_cli.schema import EncoderSection
from mla_cli.seeding import derive


class Encoder(nn.Module):
    """One modality's network and the adapter to the shared width: (batch, *input) -> (batch, d).

    frozen: the network never changes: no gradient, and always as in evaluation, whatever `train()` says, so that batch
    normalisation keeps its statistics. Once `ready` is set, inputs are what the network would give, (batch, width).
    """

    def __init__(self, network: nn.Module, width: int, frozen: bool = False):
        super().__init__()
        self.network, self.frozen, self.ready = network, frozen, False
        if frozen:
            network.requires_grad_(False)
            network.eval()
        self.same = network.width == width
        self.adapter: nn.Module = nn.Identity() if self.same else nn.Linear(int(network.width), width)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "Encoder":
        if not self.frozen:
            return super().train(mode)
        self.training = mode
        self.adapter.train(mode)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        features = inputs if self.ready else self.features(inputs)
        return features if self.same else self.adapter(features)  # calling a module that does nothing costs too

    def features(self, inputs: Tensor) -> Tensor:
        """What the network gives, (batch, width)."""
        if not self.frozen:
            return self.network(inputs)
        with torch.no_grad():
            return self.network(inputs)


def seeded_init(seed: int, *parts: str) -> None:
    """Seed torch's generator for the initialisation of one part."""
    torch.manual_seed(derive(seed, "init", *parts))


def build_encoder(
    modality: str, section: EncoderSection, input_shape: tuple[int, ...], token_count: int | None, width: int, seed: int
) -> Encoder:
    """Build `encoders/NAME.py` for one modality. token_count: number of token ids, for text only."""
    module = registry.load("encoders", section.name)
    keys = section.options()
    if token_count is not None and "token_count" in registry.options("encoders", section.name):
        keys["token_count"] = token_count
    seeded_init(seed, "encoder", modality)
    try:
        network = module.build(input_shape, section.width, **keys)
    except MlaError as error:  # an encoder's file does not know its modality
        raise error.of(modality) from error
    except ValueError as error:
        raise MlaError(
            f"`encoders.{modality}`: `{section.name}` cannot take input of shape {input_shape}: {error}",
            "choose another encoder or another feature kind; `mla recipes` lists them",
        ) from error
    return Encoder(network, width, section.frozen)


def build_head(width: int, num_classes: int, seed: int, *parts: str) -> nn.Linear:
    """A linear head (class, d) with its own initialisation key."""
    seeded_init(seed, "head", *parts)
    return nn.Linear(width, num_classes)


def build_encoders(
    sections: Mapping[str, EncoderSection],
    shapes: Mapping[str, tuple[int, ...]],
    token_counts: Mapping[str, int],
    width: int,
    seed: int,
) -> nn.ModuleDict:
    """All encoders, in the order of `shapes`."""
    return nn.ModuleDict(
        {m: build_encoder(m, sections[m], shapes[m], token_counts.get(m), width, seed) for m in shapes}
    )


def load_pretrained(encoders: nn.ModuleDict, sections: Mapping[str, EncoderSection]) -> list[Loaded]:
    """Fill every encoder that names its weights, in place; its adapter stays as initialised."""
    found = []
    for m, section in sections.items():
        if has_weights(section):
            convert = getattr(registry.load("encoders", section.name), "convert", None)
            found.append(load_weights(m, section, encoders.get_submodule(f"{m}.network"), convert))
    return found


def needs_two(encoder: Encoder) -> bool:
    """Whether a training batch of one sample would fail or mean nothing: batch normalisation that is not frozen."""
    parts = () if encoder.frozen else encoder.modules()
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in parts)
