"""`m3ae` against a reference in plain tensor algebra, and the published layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import hollow, shapes_of
from torch import Tensor, nn
from transformer_reference import m3ae_image, m3ae_text, place

from mla_cli.core.weights import load_weights
from mla_cli.encoders import m3ae
from mla_cli.encoders._transformer import positions_1d, positions_2d
from mla_cli.errors import MlaError
from mla_cli.schema import EncoderSection

WIDTH, HEADS, TOKENS = 48, 4, 30
TEXTS = [[3, 7, 1, 7, -1, -1], [5, -1, -1, -1, -1, -1], [-1] * 6, [1, 2, 3, 4, 5, 29]]


def small_state(seed: int = 0) -> dict[str, Tensor]:
    """The layout of M3AE base, narrower: every tensor random, norms away from 1 and 0 too."""
    small = {768: WIDTH, 2304: 3 * WIDTH, 3072: 4 * WIDTH, 30522: TOKENS}
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes_of("m3ae_base").items():
        sides = [small.get(side, side) for side in shape]
        if name == "image_embedding.weight":
            sides[1] = 768  # 16 x 16 x 3 pixels, whatever the width
        scale = 0.5 if "norm" in name or len(sides) != 2 else sides[-1] ** -0.5
        found[name] = torch.randn(sides, generator=generator) * scale
    return found


def image_network(pool: str = "mean_valid", rows: int = 2, columns: int = 3) -> m3ae.M3aeImage:
    network = m3ae.M3aeImage(rows, columns, WIDTH, 12, HEADS, pool)
    network.load_state_dict({n: small_state()[n] for n in network.state_dict()})
    return network.eval()


def text_network(pool: str = "mean_valid", length: int = 40) -> m3ae.M3aeText:
    network = m3ae.M3aeText(TOKENS, length, WIDTH, 12, HEADS, pool)
    network.load_state_dict({n: small_state()[n] for n in network.state_dict()})
    return network.eval()


def pooled(tokens: Tensor, real: Tensor, pool: str) -> Tensor:
    return {"cls": tokens[0], "mean_all": tokens.mean(0), "mean_valid": tokens[real].mean(0)}[pool]


@pytest.mark.parametrize("pool", m3ae.POOLS)
def test_image_features_equal_the_reference(pool: str) -> None:
    torch.manual_seed(1)
    images = torch.randn(2, 3, 32, 48)
    tokens = [m3ae_image(image, small_state(), HEADS) for image in images]
    expected = torch.stack([pooled(t, torch.ones(len(t), dtype=torch.bool), pool) for t in tokens])
    with torch.no_grad():
        torch.testing.assert_close(image_network(pool)(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", m3ae.POOLS)
def test_text_features_equal_the_reference(pool: str) -> None:
    expected = torch.stack([pooled(*m3ae_text(text, small_state(), HEADS), pool) for text in TEXTS])
    with torch.no_grad():
        found = text_network(pool)(torch.tensor(TEXTS, dtype=torch.int32))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean_valid", "cls"])
def test_padding_and_neighbours_change_no_text_feature(pool: str) -> None:
    network, texts = text_network(pool), torch.tensor(TEXTS)
    padded = torch.cat([texts, torch.full((len(texts), 20), -1)], dim=1)
    with torch.no_grad():
        features = network(texts)
        torch.testing.assert_close(network(padded), features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network(texts[:1, :4]), features[:1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network(texts[1:2]), features[1:2], rtol=1e-5, atol=1e-5)
        # not even what padding embeds: token 0 stands in no text here
        network.text_embedding.weight[0] = 1e4
        torch.testing.assert_close(network(padded), features, rtol=1e-5, atol=1e-5)
        network.pool = "mean_all"
        assert not torch.allclose(network(padded), network(texts), atol=1e-2)


def test_a_text_without_tokens_is_its_cls_token() -> None:
    empty = torch.full((1, 6), -1)
    with torch.no_grad():
        torch.testing.assert_close(text_network("mean_valid")(empty), text_network("cls")(empty))


def test_order_of_words_and_places_of_patches_matter() -> None:
    texts, images = torch.tensor(TEXTS[:1]), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        network = text_network()
        assert not torch.allclose(network(texts[:, [1, 0, 2, 3]]), network(texts[:, :4]), atol=1e-3)
        sight = image_network(rows=2, columns=2)
        assert not torch.allclose(sight(images.transpose(2, 3)), sight(images), atol=1e-3)
        assert not torch.allclose(sight(images.roll(16, dims=3)), sight(images), atol=1e-3)


def test_a_clip_is_the_mean_of_its_frames() -> None:
    network, clip = image_network(), torch.randn(2, 4, 3, 32, 48)
    with torch.no_grad():
        frames = torch.stack([network(clip[:, frame]) for frame in range(4)]).mean(dim=0)
        torch.testing.assert_close(network(clip), frames, rtol=1e-5, atol=1e-5)


def test_positions_are_sines_then_cosines_of_the_column_then_of_the_row() -> None:
    line = positions_1d(torch.arange(50), 16)
    torch.testing.assert_close(line, torch.tensor([place(i, 16) for i in range(50)]))
    assert line[0].tolist() == [0.0] * 8 + [1.0] * 8
    grid = positions_2d(3, 5, 16)
    assert grid.shape == (15, 16)
    torch.testing.assert_close(grid[7], torch.tensor(place(2, 8) + place(1, 8)))  # row 1, column 2
    assert grid.dtype == line.dtype == torch.float32


# ------------------------------------------------------------ the published layout

UNUSED = {
    "image": {"text_embedding.weight", "encoder_text_type_embedding"},
    "text": {"image_embedding.weight", "image_embedding.bias", "encoder_image_type_embedding"},
}
INPUTS: dict[str, dict[str, Any]] = {
    "image": {"input_shape": (3, 256, 256)},
    "text": {"input_shape": (256,), "token_count": 30522},
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_name_and_shape_of_the_layout_is_consumed_or_known_to_be_unused(
    kind: str, prefix: str, tmp_path: Path
) -> None:
    file = hollow("m3ae_base", tmp_path, prefix)
    with torch.device("meta"):
        network = m3ae.build(width=None, **INPUTS[kind])
    report = load_weights(kind, EncoderSection(name="m3ae", weights=str(file)), network)
    assert (report.share, report.complete, report.missing, report.other_shape) == (1.0, True, [], [])
    assert set(report.unexpected) == UNUSED[kind]
    assert set(report.matched) | UNUSED[kind] == set(shapes_of("m3ae_base"))


@pytest.mark.parametrize("kind", INPUTS)
def test_a_checkpoint_gives_the_features_of_its_tensors(kind: str, tmp_path: Path) -> None:
    torch.save({"model": small_state(3)}, tmp_path / "x.pt")
    torch.manual_seed(2)
    network: nn.Module
    if kind == "image":
        network = m3ae.M3aeImage(2, 2, WIDTH, 12, HEADS, "mean_all")
        inputs = torch.randn(1, 3, 32, 32)
        expected = m3ae_image(inputs[0], small_state(3), HEADS).mean(0)
    else:
        network = m3ae.M3aeText(TOKENS, 6, WIDTH, 12, HEADS, "mean_all")
        inputs = torch.tensor(TEXTS[:1])
        expected = m3ae_text(TEXTS[0], small_state(3), HEADS)[0].mean(0)
    load_weights(kind, EncoderSection(name="m3ae", weights=str(tmp_path / "x.pt")), network)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(inputs)[0], expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------ building


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads"), [("small", 384, 12, 6), ("base", 768, 12, 12), ("large", 1024, 24, 16)]
)
def test_sizes(size: str, width: int, depth: int, heads: int) -> None:
    with torch.device("meta"):
        network = m3ae.build((3, 224, 224), width, size=size)
        shallow = m3ae.build((64,), None, token_count=100, size=size, depth=2)
    assert (network.width, len(network.encoder.blocks), network.encoder.blocks[0].attention.heads) == (
        width,
        depth,
        heads,
    )
    assert network.positions.shape == (196, width)
    assert (shallow.width, len(shallow.encoder.blocks)) == (width, 2)
    assert shallow.text_embedding.weight.shape == (100, width)


@pytest.mark.parametrize("inputs", [torch.randn(2, 3, 32, 32), torch.tensor(TEXTS, dtype=torch.int32)])
def test_every_parameter_trains_from_a_seeded_start(inputs: Tensor) -> None:
    keys = {"size": "small", "depth": 1, "token_count": 30 if inputs.dim() == 2 else 0}
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(m3ae.build(tuple(inputs.shape[1:]), None, **keys))
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)
    features = networks[0](inputs)
    assert features.shape == (len(inputs), 384)
    (features * torch.linspace(-1, 1, features.numel()).reshape(features.shape)).sum().backward()
    for name, parameter in networks[0].named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()) and bool(parameter.grad.any()), name
        if name.endswith("bias"):
            assert not parameter.detach().any(), name
    weight = networks[0].encoder.blocks[0].transformer_mlp.fc1.weight.detach()
    assert float(weight.abs().max()) == pytest.approx((6 / (384 + 1536)) ** 0.5, rel=1e-3)  # Glorot's bound


@pytest.mark.parametrize(
    ("shape", "keys", "message"),
    [
        ((64,), {}, r"must be images or clips of 3 channels, or text, got shape `\(64,\)`"),
        ((1, 128, 1024), {}, "must be images or clips of 3 channels"),
        ((3, 250, 256), {}, r"multiples of 16 pixels, got `\(3, 250, 256\)`"),
        ((3, 32, 32), {"size": "huge"}, "no size `huge`"),
        ((3, 32, 32), {"pool": "max"}, "no pool `max`"),
        ((3, 32, 32), {"depth": 0}, "`depth` must be 1 or more, got `0`"),
        ((3, 32, 32), {"width": 512}, "`width` of size `base` is 768, got `512`"),
    ],
)
def test_what_cannot_be_built_is_named(shape: tuple[int, ...], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(MlaError, match=message) as caught:
        m3ae.build(shape, **({"width": None} | keys))
    assert caught.value.hint
