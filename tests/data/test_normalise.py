"""Mean and sd that do not come from the data: values, shapes, and what does not fit."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mla_cli import registry
from mla_cli.data.normalise import RULES_OF_KIND, fixed_normalisation
from mla_cli.errors import MlaError
from mla_cli.schema import EncoderSection
from mla_cli.specs import SPEC_OF_KIND


def section(rule: str, name: str = "resnet18", **keys: Any) -> EncoderSection:
    return EncoderSection.model_validate({"name": name, "normalise": rule, **keys})


def spec(kind: str, **keys: Any) -> Any:
    needed = {"model": "folder"} if kind == "extractor" else {}
    return SPEC_OF_KIND[kind].model_validate({"kind": kind, **needed, **keys})


@pytest.mark.parametrize("kind", sorted(SPEC_OF_KIND))
def test_train_leaves_it_to_the_training_rows(kind: str) -> None:
    assert fixed_normalisation("m", section("train"), spec(kind)) is None


@pytest.mark.parametrize("kind", ["image", "video"])
def test_imagenet_is_torchvisions(kind: str) -> None:
    """Stored bytes minus mean, by sd, equal torchvision's own preset on the same picture."""
    from torchvision.transforms.functional import normalize

    mean, sd = fixed_normalisation("m", section("imagenet"), spec(kind)) or ((), ())
    stored = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    expected = normalize(torch.from_numpy(stored).float() / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    np.testing.assert_allclose((stored - mean) / sd, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_imagenet_is_what_the_weights_of_torchvision_state() -> None:
    from torchvision.models import ResNet18_Weights

    stated = ResNet18_Weights.DEFAULT.transforms()
    mean, sd = fixed_normalisation("m", section("imagenet"), spec("image")) or ((), ())
    np.testing.assert_allclose(np.ravel(mean) / 255, stated.mean)
    np.testing.assert_allclose(np.ravel(sd) / 255, stated.std)


def test_audioset() -> None:
    mean, sd = fixed_normalisation("m", section("audioset"), spec("fbank")) or ((), ())
    assert (mean.tolist(), sd.tolist()) == ([-5.081], [4.4849])


@pytest.mark.parametrize(
    ("kind", "keys", "shape", "scale"),
    [
        ("image", {}, (3, 1, 1), 255.0),
        ("image", {"mode": "grey"}, (1, 1, 1), 255.0),
        ("video", {}, (3, 1, 1), 255.0),
        ("fbank", {}, (1,), 1.0),
        ("log_stft", {}, (1,), 1.0),
        ("vector", {"width": 4}, (1,), 1.0),
    ],
)
def test_none_scales_pixels_to_one_and_leaves_the_rest(kind: str, keys: dict, shape: tuple, scale: float) -> None:
    mean, sd = fixed_normalisation("m", section("none"), spec(kind, **keys)) or ((), ())
    assert mean.shape == sd.shape == shape
    assert not mean.any() and (sd == scale).all()


@pytest.mark.parametrize(
    ("rule", "kind"),
    [(r, k) for k in SPEC_OF_KIND for r in ("none", "imagenet", "audioset", "model")
     if r not in RULES_OF_KIND.get(k, ())],
)  # fmt: skip
def test_a_rule_that_does_not_fit_names_those_that_do(rule: str, kind: str) -> None:
    with pytest.raises(MlaError) as error:
        fixed_normalisation("sound", section(rule), spec(kind))
    assert error.value.message == f"`encoders.sound.normalise: {rule}` does not fit features of kind `{kind}`"
    assert error.value.hint.startswith("choose ") and "`train`" in error.value.hint
    for fitting in RULES_OF_KIND.get(kind, ("train",)):
        fixed_normalisation("sound", section(fitting), spec(kind)) if fitting != "model" else None
        assert f"`{fitting}`" in error.value.hint


def test_imagenet_of_grey_images_is_refused() -> None:
    with pytest.raises(MlaError, match="is for 3 channels, the features of `visual` have 1") as error:
        fixed_normalisation("visual", section("imagenet"), spec("image", mode="grey"))
    assert "features.visual.mode: rgb" in error.value.hint


def test_a_model_without_statistics_is_refused() -> None:
    with pytest.raises(MlaError, match="encoder `resnet18` has no statistics of its own") as error:
        fixed_normalisation("visual", section("model"), spec("image"))
    assert "`imagenet`" in error.value.hint


def test_a_model_is_asked_with_its_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def normalisation(**keys: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        asked.append(keys)
        return (0.5, 0.5, 0.5), (0.25, 0.5, 1.0)

    monkeypatch.setattr(registry, "load", lambda folder, name: SimpleNamespace(normalisation=normalisation))
    mean, sd = fixed_normalisation("visual", section("model", "x", model="tiny"), spec("video")) or ((), ())
    assert asked == [{"model": "tiny"}]
    assert mean.shape == (3, 1, 1)
    assert np.ravel(mean).tolist() == [127.5] * 3
    assert np.ravel(sd).tolist() == [63.75, 127.5, 255.0]


@pytest.mark.parametrize("given", [((0.5,), (0.5,)), ((0.5,) * 3, (0.5, 0.0, 0.5)), ((np.nan,) * 3, (1.0,) * 3)])
def test_a_model_whose_statistics_cannot_be_used_is_refused(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda *_: SimpleNamespace(normalisation=lambda: given))
    with pytest.raises(MlaError, match=r"encoders\.visual\.normalise"):
        fixed_normalisation("visual", section("model", "x"), spec("image"))
