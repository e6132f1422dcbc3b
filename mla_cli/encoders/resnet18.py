"""`resnet18`: ResNet-18 (He et al. 2016) of torchvision, for images, one-channel spectrograms and clips.

The paper's encoder for CREMA-D and Kinetics-Sounds. Its parameters are named as torchvision's, so that checkpoints of
theirs fit; nothing is ever downloaded.
"""

from torch import Tensor, nn

from mla_cli.errors import MlaError

WIDTH = 512  # channels of the last stage


class ResNet18(nn.Module):
    """(B, C, H, W) or (B, frames, C, H, W) float -> (B, 512); a clip's frame features are averaged over time."""

    def __init__(self, network: nn.Module, channels: int):
        """network: torchvision's, whose layers become ours; its classifier is left out."""
        super().__init__()
        self.width = WIDTH
        for name, part in network.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        images = x.flatten(0, 1) if x.dim() == 5 else x
        for part in self.children():
            images = part(images)
        features: Tensor = images.mean(dim=(2, 3))
        return features.unflatten(0, x.shape[:2]).mean(dim=1) if x.dim() == 5 else features


def convert(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Names and shapes of known layouts as ours.

    torchvision's (the ImageNet checkpoint as a file) has our names, and `fc`, which stays unused. For one input channel
    its three-channel `conv1` is summed over the channels: a grey image given three times would give the same features.
    The paper's released code has `audio_net.` (1 channel) and `visual_net.` (3): the one of our channels is taken.
    """
    own = network.get_parameter("conv1.weight")
    for prefix in ("audio_net.", "visual_net."):
        stem = tensors.get(f"{prefix}conv1.weight")
        if stem is not None and stem.shape == own.shape:
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    stem = tensors.get("conv1.weight")
    if stem is not None and own.shape[1] == 1 and stem.shape == (64, 3, 7, 7):
        tensors = tensors | {"conv1.weight": stem.sum(dim=1, keepdim=True)}
    return tensors


def build(input_shape: tuple[int, ...], width: int | None) -> nn.Module:
    """ResNet-18 up to its global average pooling, 512 wide.

    input_shape: (channel, H, W), (1, frames, mels) or (frames, channel, H, W), with 1 or 3 channels. Convolutions start
    He-normal (fan out), batch normalisation at scale 1 and shift 0, as torchvision's. Raises MlaError for another shape
    or width.
    """
    if len(input_shape) not in (3, 4) or input_shape[-3] not in (1, 3):
        raise MlaError(
            f"encoder resnet18: inputs must be images, clips or spectrograms of 1 or 3 channels, got `{input_shape}`",
            "use `mlp` for vectors, `convnet` for other numbers of channels, `text_conv` for text",
        )
    if width not in (None, WIDTH):
        raise MlaError(
            f"encoder resnet18: `width` is always {WIDTH}, got `{width}`",
            "leave it out; an adapter leads to `shared_width`",
        )
    from torchvision.models import resnet18  # slow to import, and only this encoder needs it

    return ResNet18(resnet18(weights=None), input_shape[-3])
