"""Augmentation: off means untouched, draws come from the generator alone, ranges are those of the docstring."""

import pytest
import torch
from torch import Tensor

from mla_cli.data.augment import KEYS_OF_KIND, Draws, augment, check_augment, mask_band
from mla_cli.errors import MlaError
from mla_cli.schema import AugmentSection

SHAPES = {
    "image": (3, 12, 10),
    "video": (4, 3, 12, 10),
    "fbank": (1, 20, 8),
    "log_stft": (1, 8, 20),
    "extractor": (9,),
    "vector": (7,),
}
ALL_ON = {
    "crop": 0.5,
    "flip": True,
    "shift": 2,
    "time_mask": 5,
    "frequency_mask": 3,
    "noise": 0.5,
    "drop_tokens": 0.4,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(kind: str, count: int = 6) -> Tensor:
    if kind == "text":
        return torch.arange(12).repeat(count, 1).masked_fill(torch.arange(12) >= 9, -1).int()
    return torch.randn(count, *SHAPES[kind], generator=seeded(1))


def settings_for(kind: str, **only: object) -> AugmentSection:
    return AugmentSection(**(only or {key: ALL_ON[key] for key in KEYS_OF_KIND[kind]}))  # type: ignore[arg-type]


def test_what_an_extractor_made_is_never_changed() -> None:
    batch = sample("extractor")
    assert augment(batch, "extractor", AugmentSection(**ALL_ON), seeded()) is batch  # type: ignore[arg-type]
    with pytest.raises(MlaError, match="does not apply to features of kind `extractor`") as caught:
        check_augment("audio", "extractor", settings_for("extractor", noise=0.1))
    assert "leave `augment.audio` out" in caught.value.hint


@pytest.mark.parametrize("kind", [kind for kind, keys in KEYS_OF_KIND.items() if keys])
def test_off_changes_nothing_and_on_is_seeded(kind: str) -> None:
    batch = sample(kind)
    kept = batch.clone()
    assert augment(batch, kind, AugmentSection(), seeded()) is batch
    settings = settings_for(kind)
    check_augment("modality", kind, settings)
    first, again, other = (augment(batch, kind, settings, seeded(seed)) for seed in (0, 0, 1))
    assert first.shape == batch.shape
    assert first.dtype == batch.dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, batch)
    assert torch.equal(batch, kept)  # the batch itself is not written to


@pytest.mark.parametrize("kind", KEYS_OF_KIND)
def test_settings_of_another_kind_are_refused(kind: str) -> None:
    for key in set(ALL_ON) - set(KEYS_OF_KIND[kind]):
        with pytest.raises(MlaError, match=rf"`augment\.sound\.{key}` does not apply to features of kind `{kind}`"):
            check_augment("sound", kind, AugmentSection(**{key: ALL_ON[key]}))  # type: ignore[arg-type]


def test_global_torch_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    augment(sample("image"), "image", settings_for("image"), seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_flip_mirrors_about_half_exactly() -> None:
    batch = sample("image", 200)
    out = augment(batch, "image", settings_for("image", flip=True), seeded())
    mirrored = (out - batch.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    same = (out - batch).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (mirrored ^ same).all()
    assert 70 <= int(mirrored.sum()) <= 130


def test_flip_alone_moves_values_and_changes_none() -> None:
    for kind in ("image", "video"):
        batch = sample(kind, 50)
        out = augment(batch, kind, settings_for(kind, flip=True), seeded())
        same = (out == batch).flatten(1).all(1)
        assert ((out == batch.flip(-1)).flatten(1).all(1) ^ same).all()
        assert 10 <= int(same.sum()) <= 40
        # a crop that changes nothing draws other numbers; the mirrored ones alone are those of the first draw
        assert torch.equal(~same, torch.rand(50, generator=seeded()) < 0.5)


def test_image_shift_moves_whole_pixels_and_repeats_the_edge() -> None:
    batch, limit = sample("image", 100), 2
    out = augment(batch, "image", settings_for("image", shift=limit), seeded())
    padded = torch.nn.functional.pad(batch, (limit,) * 4, mode="replicate")
    seen = set()
    for picture, wide in zip(out, padded, strict=True):
        found = [
            (y, x)
            for y in range(2 * limit + 1)
            for x in range(2 * limit + 1)
            if torch.allclose(picture, wide[:, y : y + 12, x : x + 10], atol=1e-4)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(2 * limit + 1))


def test_crop_stays_inside_and_takes_at_least_its_share() -> None:
    """The image holds its own coordinates, so the crop's corners can be read off the result."""
    size, share, count = 64, 0.3, 500
    ramp = torch.arange(size, dtype=torch.float32)
    picture = torch.stack([ramp[None, :].expand(size, size), ramp[:, None].expand(size, size)])  # x, y
    out = augment(picture.repeat(count, 1, 1, 1), "image", settings_for("image", crop=share), seeded())
    assert out.min() >= -1e-3
    assert out.max() <= size - 1 + 1e-3
    middle, step = size // 2, size // 4
    width = (out[:, 0, middle, middle + step] - out[:, 0, middle, middle]) / step  # share of each side
    height = (out[:, 1, middle + step, middle] - out[:, 1, middle, middle]) / step
    assert (width <= 1 + 1e-4).all()
    assert (height <= 1 + 1e-4).all()
    assert (width * height >= share * 0.999).all()
    assert (width * height).max() > 0.97
    assert (width * height).min() < share + 0.1
    assert (width / height).min() >= 3 / 4 - 1e-3
    assert (width / height).max() <= 4 / 3 + 1e-3


def test_frames_of_a_clip_move_together() -> None:
    clip = sample("image")[:, None].expand(-1, 4, -1, -1, -1)
    out = augment(clip, "video", settings_for("video", crop=0.5, flip=True, shift=2), seeded())
    assert torch.equal(out, out[:, :1].expand_as(out))


@pytest.mark.parametrize(("kind", "time_axis"), [("fbank", 2), ("log_stft", 3)])
def test_audio_masks_and_shift_act_on_their_axis(kind: str, time_axis: int) -> None:
    batch = torch.ones(300, *SHAPES[kind])
    for key, axis, limit in (("time_mask", time_axis, 5), ("frequency_mask", 5 - time_axis, 3)):
        hidden = augment(batch, kind, settings_for(kind, **{key: limit}), seeded()) == 0
        along = hidden.any(dim=5 - axis).squeeze(1)  # (B, length of the axis)
        assert torch.equal(hidden, hidden.any(dim=5 - axis, keepdim=True).expand_as(hidden))  # whole bands
        widths = along.sum(dim=1)
        assert set(widths.tolist()) == set(range(limit + 1))
        assert (along.int().diff(dim=1).abs().sum(dim=1) <= 2).all()  # one band each
        assert along[:, 0].any()
        assert along[:, -1].any()
    ramp = torch.arange(20.0).reshape([20 if axis == time_axis else 1 for axis in range(4)]).expand_as(batch)
    moved = augment(ramp, kind, settings_for(kind, shift=3), seeded()).transpose(time_axis, 3)[:, 0, 0]
    steps = 10 - moved[:, 10]
    assert set(steps.tolist()) == set(range(-3, 4))
    torch.testing.assert_close(moved, (torch.arange(20.0) - steps[:, None]).clamp(0, 19))


def test_a_mask_wider_than_the_axis_hides_at_most_all() -> None:
    out = mask_band(torch.ones(50, 1, 4, 3), 2, 100, Draws(seeded(), 50))
    assert set(out[:, 0, :, 0].sum(dim=1).int().tolist()) == set(range(5))


def test_noise_has_its_sd_and_uint8_becomes_float() -> None:
    batch = torch.full((20, 1, 30, 30), 7, dtype=torch.uint8)
    out = augment(batch, "image", settings_for("image", noise=0.5), seeded())
    assert out.dtype == torch.float32
    assert abs(float(out.mean()) - 7) < 0.02
    assert abs(float(out.std()) - 0.5) < 0.02


def test_dropped_tokens_become_padding_and_never_all_of_them() -> None:
    tokens = torch.cat(
        [torch.arange(500, dtype=torch.int32).repeat(8, 1), torch.full((8, 20), -1, dtype=torch.int32)], 1
    )
    out = augment(tokens, "text", settings_for("text", drop_tokens=0.3), seeded())
    assert out.dtype == tokens.dtype
    assert ((out == tokens) | (out == -1)).all()
    assert abs(float((out[:, :500] == -1).float().mean()) - 0.3) < 0.03
    single = torch.tensor([[4, -1, -1]] * 50)
    assert torch.equal(augment(single, "text", settings_for("text", drop_tokens=0.9), seeded()), single)
