"""`resnet18` against torchvision's own network, and its weights from files."""

from pathlib import Path

import pytest
import torch
from layouts import synthetic
from torch import Tensor, nn
from torchvision.models import resnet18 as theirs

from mla_cli.core.weights import Loaded, load_weights
from mla_cli.encoders import resnet18
from mla_cli.errors import MlaError
from mla_cli.schema import EncoderSection


def pair(channels: int) -> tuple[nn.Module, nn.Module]:
    """Ours and torchvision's with equal weights and lively batch statistics, in evaluation."""
    torch.manual_seed(0)
    reference = theirs(weights=None)
    if channels != 3:
        reference.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    reference.fc = nn.Identity()
    for part in reference.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    ours = resnet18.build((channels, 64, 64), None)
    ours.load_state_dict(reference.state_dict())  # equal names and shapes, or this fails
    return ours.eval(), reference.eval()


@pytest.mark.parametrize(("channels", "size"), [(3, (64, 64)), (1, (121, 40)), (3, (17, 23))])
def test_features_equal_torchvisions(channels: int, size: tuple[int, int]) -> None:
    ours, reference = pair(channels)
    x = torch.randn(2, channels, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x), rtol=1e-6, atol=1e-6)
        ours.train(), reference.train()
        torch.testing.assert_close(ours(x), reference(x), rtol=1e-6, atol=1e-6)
    assert ours.width == ours(x).shape[1] == 512


def test_a_clip_is_the_mean_of_its_frames_in_any_order() -> None:
    ours, reference = pair(3)
    clip = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        frames = torch.stack([reference(clip[:, frame]) for frame in range(3)]).mean(dim=0)
        torch.testing.assert_close(ours(clip), frames, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours(clip.flip(1)), frames, rtol=1e-6, atol=1e-5)


def test_the_frames_of_a_clip_are_one_batch_of_normalisation() -> None:
    ours, reference = pair(3)
    clip = torch.randn(2, 3, 3, 32, 32)
    ours.train()(clip), reference.train()(clip.flatten(0, 1))
    torch.testing.assert_close(ours.state_dict(), reference.state_dict())


@pytest.mark.parametrize("channels", [1, 3])
def test_it_starts_he_normal_by_fan_out_and_trains(channels: int) -> None:
    torch.manual_seed(0)
    network = resnet18.build((channels, 32, 32), 512)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.out_channels * part.kernel_size[0] ** 2
            assert float(part.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    network(torch.randn(2, channels, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("shape", [(64,), (2, 32, 32), (4, 2, 32, 32), (1, 2, 3, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MlaError, match="1 or 3 channels") as caught:
        resnet18.build(shape, None)
    assert str(shape) in caught.value.message


def test_another_width_is_refused() -> None:
    with pytest.raises(MlaError, match="always 512, got `64`"):
        resnet18.build((3, 32, 32), 64)


# ------------------------------------------------------------ weights from files


def loaded(content: dict[str, Tensor], channels: int, folder: Path) -> tuple[nn.Module, Loaded]:
    """A network filled as the engine does it."""
    torch.save(content, folder / "x.pth")
    section = EncoderSection(name="resnet18", weights=str(folder / "x.pth"))
    network = resnet18.build((channels, 64, 64), None)
    return network.eval(), load_weights("visual", section, network, resnet18.convert)


def test_an_imagenet_file_of_torchvision_loads_without_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference = theirs(weights=None).eval()
    ours, report = loaded(reference.state_dict(), 3, tmp_path)
    assert report.complete
    assert (report.share, report.unexpected) == (1.0, ["fc.weight", "fc.bias"])
    reference.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x), rtol=1e-6, atol=1e-6)


def test_an_imagenet_file_sees_one_channel_as_a_grey_image(tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference = theirs(weights=None).eval()
    ours, report = loaded(reference.state_dict(), 1, tmp_path)
    assert report.complete
    assert (report.share, report.unexpected) == (1.0, ["fc.weight", "fc.bias"])
    reference.fc = nn.Identity()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "net", "other"), [(1, "audio_net.", "visual_net."), (3, "visual_net.", "audio_net.")]
)
def test_the_released_layout_gives_the_net_of_our_channels(channels: int, net: str, other: str, tmp_path: Path) -> None:
    content = synthetic("mla_released")
    network, report = loaded({f"module.{name}": value for name, value in content.items()}, channels, tmp_path)
    assert report.complete
    own = network.state_dict()
    assert set(own) == {name.removeprefix(net) for name in content if name.startswith(net)}
    for name, value in own.items():
        torch.testing.assert_close(value, content[net + name], rtol=0, atol=0)
    # all else is deliberately unused: the other modality's net, and the shared head
    assert set(report.unexpected) == {name for name in content if name.startswith((other, "fusion_module."))}
