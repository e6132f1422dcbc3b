"""Every built-in encoder: shapes, padding, order, initialisation and its options as the registry reads them."""

import pytest
import torch
from torch import Tensor, nn

from mla_cli import registry
from mla_cli.encoders import convnet, mlp, ngram_bag, text_conv
from mla_cli.errors import MlaError

TOKENS = torch.tensor([[3, 7, 1, 7, -1, -1], [5, -1, -1, -1, -1, -1]], dtype=torch.int32)
TEXT = {"ngram_bag": ngram_bag, "text_conv": text_conv}


def start(module: object, *args: object, **keys: object) -> nn.Module:
    """Build an encoder as the engine does: from a seed."""
    torch.manual_seed(0)
    return module.build(*args, **keys).eval()  # type: ignore[attr-defined]


def assert_trains(network: nn.Module, inputs: Tensor) -> None:
    """Every parameter gets a gradient from some feature."""
    network.train()
    features = network(inputs)
    (features * torch.linspace(-1, 1, features.numel()).reshape(features.shape)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ((3, 32, 32), {}),
        ((1, 28, 28), {"stages": 2, "stride": 2}),
        ((1, 121, 40), {"channels": 8, "stride": 4}),
        ((1, 257, 188), {"channels": 4, "stages": 1}),
        ((3, 3, 17, 23), {"channels": 4, "blocks": 2}),
        ((3, 1, 1), {"channels": 4}),
    ],
)
@pytest.mark.parametrize("width", [None, 24])
def test_convnet_takes_images_spectrograms_and_clips(
    shape: tuple[int, ...], keys: dict[str, int], width: int | None
) -> None:
    network = start(convnet, shape, width, **keys)
    features = network(torch.randn(2, *shape))
    natural = keys.get("channels", 16) * 2 ** (keys.get("stages", 3) - 1)
    assert network.width == (width or natural)
    assert features.shape == (2, network.width)
    assert_trains(network, torch.randn(2, *shape))


def test_a_clip_is_the_mean_of_its_frames_in_any_order() -> None:
    network, clip = start(convnet, (4, 3, 16, 16), None, channels=4), torch.randn(2, 4, 3, 16, 16)
    frames = torch.stack([network(clip[:, frame]) for frame in range(4)])
    torch.testing.assert_close(network(clip), frames.mean(dim=0))
    torch.testing.assert_close(network(clip.flip(1)), network(clip))


def test_convnet_blocks_start_as_their_shortcut() -> None:
    block, x = convnet.Block(6, 6, stride=1), torch.rand(2, 6, 5, 5)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_mlp_flattens_and_ends_in_its_width(activation: str) -> None:
    network = start(mlp, (3, 4), 10, hidden=16, layers=3, activation=activation, dropout=0.5)
    x = torch.randn(5, 3, 4)
    assert network.width == 10
    assert network(x).shape == (5, 10)
    torch.testing.assert_close(network(x), network(x.flatten(1)))  # and no dropout in evaluation
    assert not torch.equal(network.train()(x), network(x))
    assert start(mlp, (6,), None, hidden=20).width == 20
    assert_trains(start(mlp, (3, 4), 10), x)


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("keys", [{}, {"pool": "mean"}, {"dropout": 0.5}])
def test_padding_and_neighbours_change_no_text_feature(name: str, keys: dict[str, object]) -> None:
    network = start(TEXT[name], (6,), 8, token_count=9, **keys)
    padded = torch.cat([TOKENS, torch.full((2, 20), -1, dtype=torch.int32)], dim=1)
    torch.testing.assert_close(network(padded), network(TOKENS))
    torch.testing.assert_close(network(TOKENS[1:]), network(TOKENS)[1:])
    torch.testing.assert_close(network(TOKENS[:1, :4]), network(TOKENS)[:1])
    assert_trains(start(TEXT[name], (6,), 8, token_count=9), TOKENS)


@pytest.mark.parametrize("name", TEXT)
def test_a_text_without_tokens_has_a_finite_feature_and_padding_stays_zero(name: str) -> None:
    network = start(TEXT[name], (6,), 8, token_count=9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    network(torch.full((3, 6), -1)).square().sum().backward()
    network(TOKENS).sum().backward()
    optimizer.step()
    assert network(torch.full((3, 6), -1)).isfinite().all()
    assert network.state_dict()["embedding.weight"][0].eq(0).all()


def test_ngram_bag_ignores_order_and_scales_by_pool() -> None:
    bags = {pool: start(ngram_bag, (6,), 8, token_count=9, pool=pool) for pool in ("sum", "mean", "sqrtn")}
    torch.testing.assert_close(bags["sum"](TOKENS.flip(1)), bags["sum"](TOKENS))
    counts = torch.tensor([[4.0], [1.0]])
    torch.testing.assert_close(bags["mean"](TOKENS) * counts, bags["sum"](TOKENS))
    torch.testing.assert_close(bags["sqrtn"](TOKENS) * counts.sqrt(), bags["sum"](TOKENS))
    by_hand = bags["sum"].state_dict()["embedding.weight"][TOKENS[0, :4].long() + 1].sum(dim=0)
    torch.testing.assert_close(bags["sum"](TOKENS)[0], by_hand)
    hidden = start(ngram_bag, (6,), 8, token_count=9, hidden=5)
    assert hidden(TOKENS).shape == (2, 8)
    assert_trains(hidden, TOKENS)


def test_text_conv_sees_order() -> None:
    network = start(text_conv, (6,), 8, token_count=9)
    assert not torch.allclose(network(TOKENS[:1, [1, 0, 2, 3]]), network(TOKENS[:1, :4]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp.build((4,), 8, activation="relo"), "no activation `relo`"),
        (lambda: mlp.build((4,), 8, layers=0), "`layers` must be 1 or more, got `0`"),
        (lambda: ngram_bag.build((4,), 8, pool="max"), "no pool `max`"),
        (lambda: text_conv.build((4,), 8, pool="sum"), "no pool `sum`"),
        (lambda: text_conv.build((4,), 8, kernel=4), "`kernel` must be odd, got `4`"),
        (lambda: text_conv.build((4,), 8, layers=0), "`layers` must be 1 or more, got `0`"),
        (lambda: convnet.build((64,), 8), r"must be images or spectrograms, got shape `\(64,\)`"),
        (lambda: convnet.build((3, 8, 8), 8, stride=0), "`stride` must be 1 or more, got `0`"),
    ],
)
def test_wrong_options_are_named(build: object, message: str) -> None:
    with pytest.raises(MlaError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["convnet", "mlp", "ngram_bag", "text_conv"])
def test_the_registry_reads_every_option_and_start_is_seeded(name: str) -> None:
    keys = registry.options("encoders", name)
    assert keys
    assert all(annotation in ("int", "float", "bool", "str") for annotation, _ in keys.values())
    module = registry.load("encoders", name)
    shape = {"convnet": (3, 8, 8), "mlp": (8,)}.get(name, (8,))
    first, second = start(module, shape, 16), start(module, shape, 16)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
