"""Mean and standard deviation that do not come from the data: the recipe key `encoders.<modality>.normalise`.

`train` (the default) is not here: it is read from the training rows (`Store.normalisation`). The others are what
published weights were trained with, or nothing at all:

- `none`: audio and vectors as they are stored, pixels as fractions in [0, 1];
- `imagenet`: the mean and sd of ImageNet's pixels in [0, 1] that torchvision's, timm's and M3AE's weights expect;
- `audioset`: those of AudioSet's 128-bin filter banks (CAV-MAE, Gong et al. 2023, for fine-tuning);
- `model`: what `encoders/NAME.py` says of its own weights, with a function
  `normalisation(**own keys) -> (means, sds)`, one number per channel, of pixels in [0, 1].
"""

from collections.abc import Sequence

import numpy as np

from mla_cli import registry
from mla_cli.errors import MlaError
from mla_cli.schema import EncoderSection
from mla_cli.specs import Section

PIXEL = 255.0  # images and clips are stored as uint8
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUDIOSET = -5.081, 4.4849
# Which rules make sense for a feature kind; `train` does for all, and is the only one for kinds not named here.
RULES_OF_KIND = {
    "image": ("train", "none", "imagenet", "model"),
    "video": ("train", "none", "imagenet", "model"),
    "fbank": ("train", "none", "audioset"),
    "log_stft": ("train", "none"),
    "vector": ("train", "none"),
}


def fixed_normalisation(modality: str, section: EncoderSection, spec: Section) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and sd by a rule other than `train`, in the units of the store; None for `train`.

    float64, of the shapes that `Store.normalisation` gives: (channel, 1, 1) for images and clips, (1,) for the others.
    Raises MlaError for a rule that does not fit the features, and for an encoder that has no statistics of its own.
    """
    rule, kind = section.normalise, str(spec.kind)  # type: ignore[attr-defined]
    if rule == "train":
        return None
    key, fitting = f"encoders.{modality}.normalise", RULES_OF_KIND.get(kind, ("train",))
    if rule not in fitting:
        choices = ", ".join(f"`{name}`" for name in fitting)
        fits = f"choose {'one of ' if len(fitting) > 1 else ''}{choices}"
        raise MlaError(f"`{key}: {rule}` does not fit features of kind `{kind}`", fits)
    if rule == "audioset":
        return np.array([AUDIOSET[0]]), np.array([AUDIOSET[1]])
    if kind not in ("image", "video"):
        return np.zeros(1), np.ones(1)
    channels = 1 if getattr(spec, "mode", "rgb") == "grey" else 3
    if rule == "none":
        return pixels([0.0] * channels, [1.0] * channels)
    means, sds = IMAGENET if rule == "imagenet" else own_statistics(key, section)
    if len(means) != channels or len(sds) != channels:
        raise MlaError(
            f"`{key}: {rule}` is for {len(means)} channels, the features of `{modality}` have {channels}",
            f"set `{key}` to `train` or `none`, or prepare the data with `features.{modality}.mode: rgb`",
        )
    return pixels(means, sds)


def pixels(means: Sequence[float], sds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Statistics per channel of pixels in [0, 1] as those of the stored bytes: (channel, 1, 1) each."""
    return tuple(PIXEL * np.array(values, np.float64)[:, None, None] for values in (means, sds))  # type: ignore


def own_statistics(key: str, section: EncoderSection) -> tuple[Sequence[float], Sequence[float]]:
    """What the encoder's file says its weights expect. Raises MlaError where it says nothing usable."""
    module = registry.load("encoders", section.name)
    if not hasattr(module, "normalisation"):
        raise MlaError(
            f"`{key}: model`: encoder `{section.name}` has no statistics of its own",
            "choose `train`, `none`, or for images `imagenet`",
        )
    means, sds = module.normalisation(**section.options())
    if len(means) != len(sds) or not all(np.isfinite(means)) or not all(sd > 0 for sd in sds):
        raise MlaError(
            f"`{key}: model`: encoder `{section.name}` gives means {tuple(means)} and sds {tuple(sds)}",
            "choose `train`, `none` or `imagenet`",
        )
    return means, sds
