"""`cav_mae` against a reference in plain tensor algebra, and the published layout."""

from pathlib import Path

import pytest
import torch
from layouts import hollow, shapes_of
from torch import Tensor, nn
from transformer_reference import cav_mae_audio, place

from mla_cli.core.weights import Loaded, load_weights
from mla_cli.encoders import cav_mae
from mla_cli.errors import MlaError
from mla_cli.schema import EncoderSection

WIDTH, HEADS = 48, 4


def small_state(seed: int = 0) -> dict[str, Tensor]:
    """The layout of CAV-MAE, narrower: every tensor random, norms away from 1 and 0 too."""
    small = {768: WIDTH, 2304: 3 * WIDTH, 3072: 4 * WIDTH}
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes_of("cav_mae").items():
        sides = [small.get(side, side) for side in shape]
        scale = sides[-1] ** -0.5 if len(sides) == 2 else 0.5 if len(sides) < 4 else 1 / 16
        found[name] = torch.randn(sides, generator=generator) * scale
    return found


def filled(state: dict[str, Tensor], rows: int, columns: int, folder: Path) -> tuple[nn.Module, Loaded]:
    """A narrow network of 11 blocks filled from a file as the engine does it."""
    torch.save({f"module.{name}": value for name, value in state.items()}, folder / "x.pth")
    network = cav_mae.CavMae(rows, columns, WIDTH, 11, HEADS).eval()
    section = EncoderSection(name="cav_mae", weights=str(folder / "x.pth"))
    return network, load_weights("audio", section, network, cav_mae.convert)


def test_features_equal_the_reference(tmp_path: Path) -> None:
    state = small_state()
    network, report = filled(state, 8, 64, tmp_path)
    assert (report.share, report.complete) == (1.0, True)
    torch.manual_seed(1)
    audio = torch.randn(2, 1, 1024, 128)
    expected = torch.stack([cav_mae_audio(sample[0], state, HEADS) for sample in audio])
    with torch.no_grad():
        torch.testing.assert_close(network(audio), expected, rtol=1e-5, atol=1e-5)
        # the first patches of the sequence lie along time: a later frame moves only a later patch
        tokens = network.patch_embed_a(audio.transpose(2, 3))
        audio[:, :, 16:32, :16] += 1
        moved = (network.patch_embed_a(audio.transpose(2, 3)) != tokens).any(dim=2)
    assert moved.nonzero().tolist() == [[0, 1], [1, 1]]


def unused(name: str) -> bool:
    """The visual half, the audio blocks' norms for joint use, the joint block's plain norms."""
    visual = name.startswith("blocks_v.") or "_v." in name or name in ("modality_v", "pos_embed_v")
    joint = name.startswith("blocks_a.") and (".norm1_a." in name or ".norm2_a." in name)
    plain = name.startswith("blocks_u.") and (".norm1." in name or ".norm2." in name)
    return visual or joint or plain


@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_name_and_shape_of_the_layout_is_consumed_or_known_to_be_unused(prefix: str, tmp_path: Path) -> None:
    file = hollow("cav_mae", tmp_path, prefix)
    with torch.device("meta"):
        network = cav_mae.build((1, 1024, 128), None)
    section = EncoderSection(name="cav_mae", weights=str(file))
    report = load_weights("audio", section, network, cav_mae.convert)
    assert (report.share, report.complete, report.missing, report.other_shape) == (1.0, True, [], [])
    assert set(report.unexpected) == {name for name in shapes_of("cav_mae") if unused(name)}
    assert set(report.matched) == {name for name in shapes_of("cav_mae") if not unused(name)}
    assert len(report.matched) == 4 + 12 * 12 + 2  # inputs, 12 blocks of 12 tensors, the last norm


def test_a_shorter_input_takes_the_positions_of_its_own_frames(tmp_path: Path) -> None:
    state = small_state()
    network, report = filled(state, 8, 20, tmp_path)
    assert report.share == 1.0
    table = state["pos_embed_a"].reshape(8, 64, WIDTH)
    torch.testing.assert_close(network.pos_embed_a.detach().reshape(8, 20, WIDTH), table[:, :20], rtol=0, atol=0)
    audio = torch.randn(1, 1, 320, 128)
    own = state | {"pos_embed_a": table[:, :20].reshape(1, 160, WIDTH)}
    with torch.no_grad():
        torch.testing.assert_close(network(audio)[0], cav_mae_audio(audio[0, 0], own, HEADS), rtol=1e-5, atol=1e-5)


def test_a_longer_input_has_positions_interpolated_along_time(tmp_path: Path) -> None:
    state = small_state()
    ramp = torch.arange(64.0)[None, :, None] + 100 * torch.arange(8.0)[:, None, None]
    state["pos_embed_a"] = ramp.expand(8, 64, WIDTH).reshape(1, 512, WIDTH)
    network, _ = filled(state, 8, 128, tmp_path)
    found = network.pos_embed_a.detach().reshape(8, 128, WIDTH)
    steps = (torch.arange(128) * 0.5 - 0.25).clamp(0, 63)  # middles of patches half as long
    torch.testing.assert_close(found[3, :, 5], 300 + steps, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[7, :, 0], 700 + steps, rtol=1e-5, atol=1e-4)


def test_a_runs_own_positions_need_no_change(tmp_path: Path) -> None:
    trained = cav_mae.CavMae(4, 10, WIDTH, 11, HEADS).state_dict()
    network, report = filled(trained, 4, 10, tmp_path)
    assert report.complete
    torch.testing.assert_close(network.state_dict(), trained, rtol=0, atol=0)


@pytest.mark.parametrize(("rows", "columns"), [(4, 64), (16, 32)])
def test_positions_of_other_mels_are_refused(rows: int, columns: int, tmp_path: Path) -> None:
    with pytest.raises(MlaError, match=f"512 positions, which do not fit {rows} x {columns} patches"):
        filled(small_state(), rows, columns, tmp_path)


def test_a_file_without_positions_of_ours_is_left_to_the_loader() -> None:
    network = cav_mae.CavMae(8, 64, WIDTH, 1, HEADS)
    for tensors in ({}, {"pos_embed_a": torch.zeros(3)}, {"pos_embed_a": torch.zeros(1, 512, 7)}):
        assert cav_mae.convert(tensors, network) is tensors


def test_it_starts_seeded_with_sin_cos_positions_and_every_parameter_trains() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(cav_mae.build((1, 48, 32), None, depth=1))
    network = networks[0]
    torch.testing.assert_close(network.state_dict(), networks[1].state_dict(), rtol=0, atol=0)
    assert (network.width, len(network.blocks_a), len(network.blocks_u)) == (768, 1, 1)
    # two rows (mels) of three columns (frames): number 4 is row 1, column 1
    torch.testing.assert_close(network.pos_embed_a.detach()[0, 4], torch.tensor(place(1, 384) + place(1, 384)))
    torch.testing.assert_close(network.pos_embed_a.detach()[0, 2], torch.tensor(place(2, 384) + place(0, 384)))
    features = network(torch.randn(2, 1, 48, 32))
    assert features.shape == (2, 768)
    (features * torch.linspace(-1, 1, features.numel()).reshape(features.shape)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()) and bool(parameter.grad.any()), name


@pytest.mark.parametrize(
    ("shape", "width", "depth", "message"),
    [
        ((64,), None, 11, r"must be filter banks \(1, frames, mels\), got shape `\(64,\)`"),
        ((3, 64, 64), None, 11, "must be filter banks"),
        ((1, 250, 128), None, 11, "multiples of 16, got 250 x 128"),
        ((1, 1024, 40), None, 11, "multiples of 16, got 1024 x 40"),
        ((1, 1024, 128), 512, 11, "`width` is always 768, got `512`"),
        ((1, 1024, 128), None, 0, "`depth` must be 1 or more, got `0`"),
    ],
)
def test_what_cannot_be_built_is_named(shape: tuple[int, ...], width: int | None, depth: int, message: str) -> None:
    with pytest.raises(MlaError, match=message) as caught:
        cav_mae.build(shape, width, depth=depth)
    assert caught.value.hint
