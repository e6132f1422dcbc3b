"""`convnet`: a small residual network for images, one-channel spectrograms and clips of any size.

Basic blocks of He et al. 2016: two 3x3 convolutions with batch normalisation, and a shortcut.
"""

import torch
from torch import Tensor, nn

from mla_cli.errors import MlaError


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, scale: float = 1.0) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    norm = nn.BatchNorm2d(outputs)
    nn.init.constant_(norm.weight, scale)
    return nn.Sequential(convolution, norm)


class Block(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.second = _convolution(outputs, outputs, 3, 1, scale=0.0)  # the block starts as its shortcut
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class Convnet(nn.Module):
    """(B, C, H, W) or (B, frames, C, H, W) float -> (B, width); a clip's frame features are averaged over time."""

    def __init__(self, inputs: int, width: int, channels: int, stages: int, blocks: int, stride: int, dropout: float):
        super().__init__()
        self.width = width
        kernel = 3 if stride < 4 else stride + 1  # a larger step looks at every pixel too
        self.stem = nn.Sequential(_convolution(inputs, channels, kernel, stride), nn.ReLU())
        sizes = [channels * 2**stage for stage in range(stages - 1)] + [width]
        parts, before = [], channels
        for stage, size in enumerate(sizes):
            for block in range(blocks):
                parts.append(Block(before, size, stride=2 if stage > 0 and block == 0 else 1))
                before = size
        self.stages = nn.Sequential(*parts)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        images = x.flatten(0, 1) if x.dim() == 5 else x
        features: Tensor = self.stages(self.stem(images)).mean(dim=(2, 3))
        if x.dim() == 5:
            features = features.unflatten(0, x.shape[:2]).mean(dim=1)
        return self.dropout(features)


def build(
    input_shape: tuple[int, ...],
    width: int | None,
    *,
    channels: int = 16,
    stages: int = 3,
    blocks: int = 1,
    stride: int = 1,
    dropout: float = 0.0,
) -> nn.Module:
    """A residual network: a stem with `stride`, then `stages` stages of `blocks` blocks, then the mean over space.

    input_shape: (channel, H, W), (1, frames, mels) or (frames, channel, H, W). The first stage has `channels`
    channels, each further one twice as many at half the resolution; the last has `width` (default: that doubling).
    dropout in [0, 1) acts on the pooled features. Convolutions start He-normal (fan out), batch normalisation at scale
    1 and shift 0, except that the last one of each block starts at scale 0. Raises MlaError for another shape.
    """
    if len(input_shape) not in (3, 4):
        hint = "use `mlp` for vectors and `ngram_bag` or `text_conv` for text"
        raise MlaError(f"encoder convnet: inputs must be images or spectrograms, got shape `{input_shape}`", hint)
    for key, value in {"channels": channels, "stages": stages, "blocks": blocks, "stride": stride}.items():
        if value < 1:
            raise MlaError(f"encoder convnet: `{key}` must be 1 or more, got `{value}`", "the default is a good start")
    return Convnet(input_shape[-3], width or channels * 2 ** (stages - 1), channels, stages, blocks, stride, dropout)
