"""Batched augmentation of training inputs, on the batch's device. Evaluation never calls it.

Image changes follow the random resized crop of Szegedy et al. 2015, audio masks SpecAugment (Park et al. 2019, one time
and one frequency mask, no warping). Everything random comes from one generator on the CPU, in a fixed order, one draw
per sample, so that a batch is augmented alike on every device; only small tensors of parameters move.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from mla_cli.data.moving import moved
from mla_cli.errors import MlaError
from mla_cli.schema import AugmentSection

# Keys of `AugmentSection` that make sense for a feature kind; the others must be at their defaults.
KEYS_OF_KIND: dict[str, tuple[str, ...]] = {
    "image": ("crop", "flip", "shift", "noise"),
    "video": ("crop", "flip", "shift", "noise"),
    "fbank": ("shift", "time_mask", "frequency_mask", "noise"),
    "log_stft": ("shift", "time_mask", "frequency_mask", "noise"),
    "text": ("drop_tokens",),
    "extractor": (),  # padding is known by its exact zeros
    "vector": ("noise",),
}
TIME_AXIS = {"fbank": 2, "log_stft": 3}  # of (B, 1, frames, mels) and (B, 1, bins, frames)
ASPECT = 4 / 3  # a crop's width to height lies in [1 / ASPECT, ASPECT]


def check_augment(modality: str, kind: str, settings: AugmentSection) -> None:
    """Raise MlaError if a setting that is on does nothing for the modality's feature kind."""
    defaults = AugmentSection()
    for key in AugmentSection.model_fields:
        if key not in KEYS_OF_KIND[kind] and getattr(settings, key) != getattr(defaults, key):
            usable = ", ".join(f"`{name}`" for name in KEYS_OF_KIND[kind])
            raise MlaError(
                f"`augment.{modality}.{key}` does not apply to features of kind `{kind}`",
                f"use {usable}" if usable else f"leave `augment.{modality}` out",
            )


class Draws:
    """What a generator gives for a whole batch of `count` samples; of it the rows `mine`, those that are here."""

    def __init__(self, source: torch.Generator, count: int, mine: slice = slice(None)):
        self.source, self.count, self.mine = source, count, mine

    def rand(self, *axes: int) -> Tensor:
        """(*axes, sample), uniform in [0, 1)."""
        return torch.rand(*axes, self.count, generator=self.source)[..., self.mine]

    def rows(self, *axes: int) -> Tensor:
        """(sample, *axes), uniform in [0, 1)."""
        return torch.rand(self.count, *axes, generator=self.source)[self.mine]

    def normal(self, *axes: int) -> Tensor:
        """(sample, *axes), standard normal."""
        return torch.randn(self.count, *axes, generator=self.source)[self.mine]

    def steps(self, largest: int, axes: int) -> Tensor:
        """(sample, axes), whole numbers in [-largest, largest]."""
        return torch.randint(-largest, largest + 1, (self.count, axes), generator=self.source)[self.mine]


def augment(batch: Tensor, kind: str, settings: AugmentSection, generator: torch.Generator | Draws) -> Tensor:
    """An augmented copy of a batch of normalised inputs; with the default settings the batch itself.

    batch: (B, C, H, W) image, (B, frames, C, H, W) video, (B, 1, frames, mels) fbank, (B, 1, bins, frames) log_stft,
    (B, width) vector, all float or uint8 (which becomes float32); or (B, length) int tokens with -1 = padding.
    generator: on the CPU; `Draws`, where the batch is a part of one. Settings that do not apply to the kind are ignored
    here; `check_augment` refuses them.

    crop: an area share a uniform in [crop, 1] and a log-uniform aspect ratio in [3/4, 4/3] and [a, 1/a] (so that it
    fits), anywhere inside the picture, resized back (bilinear). flip: left to right, probability 1/2. shift: a whole
    number of pixels in [-shift, shift] per axis, for audio of frames in time; the edge is repeated. All frames of a
    clip get the same crop, flip and shift.
    time_mask, frequency_mask: one band per sample, its width uniform in 0..mask, set to 0 (the training mean).
    noise: normal with this sd. drop_tokens: each token is dropped with this probability; a text keeps at least one.
    The special tokens of a model's own tokenizer are tokens like others (with `pool: cls`, leave it off).
    """
    if not KEYS_OF_KIND[kind]:
        return batch
    generator = generator if isinstance(generator, Draws) else Draws(generator, len(batch))
    if kind == "text":
        return drop_tokens(batch, settings.drop_tokens, generator) if settings.drop_tokens > 0 else batch
    if batch.dtype == torch.uint8:
        batch = batch.float()
    if kind in ("image", "video"):
        if settings.crop < 1 or settings.shift > 0:
            batch = resample(batch, settings, generator)
        elif settings.flip:
            batch = flip(batch, generator)
    elif kind in TIME_AXIS:
        axis = TIME_AXIS[kind]
        if settings.shift > 0:
            batch = shift_axis(batch, axis, settings.shift, generator)
        if settings.time_mask > 0:
            batch = mask_band(batch, axis, settings.time_mask, generator)
        if settings.frequency_mask > 0:
            batch = mask_band(batch, 5 - axis, settings.frequency_mask, generator)
    if settings.noise > 0:
        noise = generator.normal(*batch.shape[1:])
        batch = batch + settings.noise * moved(noise, batch.device).to(batch.dtype)
    return batch


def resample(batch: Tensor, settings: AugmentSection, generator: Draws) -> Tensor:
    """Crop, flip and shift (B, ..., H, W) images with one bilinear look-up: the three compose to one affine map."""
    count, (height, width) = len(batch), batch.shape[-2:]
    scale, centre = torch.ones(count, 2), torch.zeros(count, 2)  # (B, (x, y)); the picture spans [-1, 1]
    if settings.crop < 1:
        area, aspect, place_x, place_y = generator.rand(4)
        area = settings.crop + (1 - settings.crop) * area
        widest = (-area.log()).clamp(max=math.log(ASPECT))  # log of the aspect ratio: no side may pass the picture's
        ratio = torch.exp((2 * aspect - 1) * widest / 2)  # square root of the aspect ratio
        scale = torch.stack([area.sqrt() * ratio, area.sqrt() / ratio], dim=1)
        centre = (2 * torch.stack([place_x, place_y], dim=1) - 1) * (1 - scale)
    if settings.shift > 0:
        pixels = generator.steps(settings.shift, 2)
        centre = centre - 2 * pixels / torch.tensor([width, height])
    if settings.flip:
        mirrored = generator.rand() < 0.5
        scale = scale * torch.stack([1 - 2 * mirrored.float(), torch.ones(count)], dim=1)
    scale, centre = (moved(value, batch.device).to(batch.dtype) for value in (scale, centre))
    axes = []
    for axis, size in enumerate((width, height)):
        points = (2 * torch.arange(size, device=batch.device, dtype=batch.dtype) + 1) / size - 1  # pixel centres
        places = centre[:, axis, None] + scale[:, axis, None] * points  # (B, size)
        axes.append(places.clamp(1 / size - 1, 1 - 1 / size))  # repeats the edge (MPS lacks padding_mode="border")
    grid = torch.stack(
        [axes[0][:, None, :].expand(-1, height, -1), axes[1][:, :, None].expand(-1, -1, width)], dim=3
    )  # (B, H, W, (x, y))
    # The frames of a clip take part as further channels, so that they move together.
    flat = batch.reshape(count, -1, height, width)
    return grid_sample(flat, grid, mode="bilinear", align_corners=False).reshape(batch.shape)


def flip(batch: Tensor, generator: Draws) -> Tensor:
    """Mirror (B, ..., W) images left to right with probability 1/2 each: values move, and stay what they are."""
    mirrored = generator.rand() < 0.5
    return torch.where(moved(mirrored.reshape(-1, *[1] * (batch.dim() - 1)), batch.device), batch.flip(-1), batch)


def shift_axis(batch: Tensor, axis: int, largest: int, generator: Draws) -> Tensor:
    """Move each sample along an axis by a whole number in [-largest, largest]; the edge is repeated."""
    size = batch.shape[axis]
    steps = generator.steps(largest, 1)
    index = moved((torch.arange(size) - steps).clamp(0, size - 1), batch.device)  # (B, size)
    shape = [len(batch)] + [1] * (batch.dim() - 1)
    shape[axis] = size
    return batch.gather(axis, index.reshape(shape).expand(batch.shape))


def mask_band(batch: Tensor, axis: int, largest: int, generator: Draws) -> Tensor:
    """Set one band of each sample to 0 along an axis: width uniform in 0..largest, anywhere inside the axis."""
    size = batch.shape[axis]
    wide, place = generator.rand(2)[..., None]
    width = (wide * (min(largest, size) + 1)).floor()
    start = (place * (size - width + 1)).floor()
    index = torch.arange(size)
    kept = (index < start) | (index >= start + width)  # (B, size)
    shape = [len(batch)] + [1] * (batch.dim() - 1)
    shape[axis] = size
    return batch * moved(kept.reshape(shape), batch.device).to(batch.dtype)


def drop_tokens(tokens: Tensor, share: float, generator: Draws) -> Tensor:
    """Replace each token by -1 with probability `share`; a text that would lose all of them stays as it is."""
    dropped = moved(generator.rows(*tokens.shape[1:]) < share, tokens.device)
    thinned = torch.where(dropped, -torch.ones_like(tokens), tokens)
    return torch.where((thinned >= 0).any(dim=1, keepdim=True), thinned, tokens)
