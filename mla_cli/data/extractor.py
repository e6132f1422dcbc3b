"""Sound -> the inputs of a model of Hugging Face, by that model's own feature extractor (`AutoFeatureExtractor`).

An extractor with a fixed length of its own (AST: 1,024 frames, Whisper: 30 s) pads and cuts as it always does. Any
other one (Wav2Vec2, HuBERT: the waveform) gets sounds of `seconds`. Where it makes an attention mask, padding is stored
as exact zeros at the end and what is real never ends in exact zeros, so that the encoder finds the mask again.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mla_cli.data.audio import load_torchaudio
from mla_cli.data.hub import EXTRACTOR_FILES, EXTRACTOR_KEY, folder_of, needed, read_folder, stamp
from mla_cli.data.references import BadMedia
from mla_cli.errors import MlaError
from mla_cli.specs import ExtractorSpec

SHORTEST = 0.025  # seconds; one frame of every extractor's filter bank
NOT_ZERO = np.float32(1e-30)  # stands for a real 0 at the end of the last real frame


@dataclass(frozen=True)
class Extractor:
    """A folder's feature extractor, which pads and cuts to a length of its own or not."""

    library: Any
    has_length: bool

    @property
    def rate(self) -> int:
        """The sampling rate that it wants, in Hz."""
        return int(self.library.sampling_rate)


def extractor(source: str) -> Extractor:
    """The feature extractor of a folder or hub name. Raises MlaError for one that is not for sound."""
    return _extractor(source, stamp(source))


@lru_cache(maxsize=4)
def _extractor(source: str, _: tuple[tuple[str, int, int], ...]) -> Extractor:
    load_torchaudio()  # the library would import it, and fail where only the CUDA versions differ
    folder = folder_of(source, EXTRACTOR_KEY, *needed(EXTRACTOR_FILES))
    found = read_folder("feature extractor", "AutoFeatureExtractor", folder)
    if not hasattr(found, "sampling_rate"):
        raise MlaError(f"the extractor in `{source}` is not for sound", "give the folder of an audio model")
    if found.return_attention_mask and found.padding_value != 0:
        raise MlaError(
            f"the extractor in `{source}` pads with {found.padding_value:g}",
            "take another model: only padding with 0 can be told from sound",
        )
    shapes = {call(found, noise(seconds * found.sampling_rate))[0].shape for seconds in (0.2, 0.4)}
    return Extractor(found, len(shapes) == 1)


def extracted_shape(spec: ExtractorSpec) -> tuple[int, ...]:
    """Shape of one sound's array."""
    return _extracted_shape(spec.model, spec.seconds, stamp(spec.model))


@lru_cache(maxsize=16)
def _extracted_shape(model: str, seconds: float | None, _: tuple[tuple[str, int, int], ...]) -> tuple[int, ...]:
    own = extractor(model)
    if seconds is None and not own.has_length:
        hint = "set `seconds` in the feature's section, such as `seconds: 3.0`"
        raise MlaError(f"the extractor in `{model}` has no length of its own", hint)
    return extracted(noise((seconds or 0.4) * own.rate), ExtractorSpec(model=model, seconds=seconds))[0].shape


def extracted(waveform: np.ndarray, spec: ExtractorSpec) -> tuple[np.ndarray, int]:
    """The extractor's array of a waveform at its own rate, float32, and its valid length (1 without attention mask).

    Raises `BadMedia`: too_short, not_finite.
    """
    own = extractor(spec.model)
    samples = None if spec.seconds is None else round(spec.seconds * own.rate)
    waveform = waveform[:samples]
    if len(waveform) < SHORTEST * own.rate:
        reason = f"{len(waveform)} samples at {own.rate} Hz are less than one frame of 25 ms"
        raise BadMedia("too_short", reason)
    array, mask = call(own.library, waveform, None if own.has_length else samples)
    if not np.isfinite(array).all():
        raise BadMedia("not_finite", "the feature holds NaN or infinity")
    if mask is None:
        return array, 1
    valid = int(mask.sum())
    array[valid:] = 0
    if not array[valid - 1].any():
        array[valid - 1] = NOT_ZERO
    return array, valid


def call(library: Any, waveform: np.ndarray, samples: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """The extractor's input of its model, float32, and its attention mask. samples: what to pad the waveform to."""
    padding = {} if samples is None else {"padding": "max_length", "max_length": samples}
    found = library(waveform, sampling_rate=library.sampling_rate, return_tensors="np", **padding)
    array = np.array(found[library.model_input_names[0]][0], np.float32)
    has_mask = library.return_attention_mask and "attention_mask" in found
    return array, np.asarray(found["attention_mask"][0]) if has_mask else None


def noise(samples: float) -> np.ndarray:
    """A sound to try an extractor on."""
    return np.random.default_rng(0).normal(0, 0.1, round(samples)).astype(np.float32)
