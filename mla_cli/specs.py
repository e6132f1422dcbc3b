"""How each modality's raw data become arrays: the `features` section of a recipe, one class per kind of feature.

`data/features.py` computes them; the store's manifest keeps the spec it was made with.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Strict: text is never read as a number, unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class ImageSpec(Section):
    """Still images, stored as uint8 (channel, size, size)."""

    kind: Literal["image"] = "image"
    size: int = Field(224, ge=1, le=4096)
    mode: Literal["rgb", "grey"] = "rgb"
    fit: Literal["squash", "crop"] = "squash"  # resize both sides, or the shorter one and cut the middle


class FbankSpec(Section):
    """Kaldi filter banks, stored as (1, frames, mels); rate in Hz, lengths and shifts in milliseconds."""

    kind: Literal["fbank"] = "fbank"
    rate: int = Field(16000, ge=1000, le=192_000)
    mels: int = Field(128, ge=4, le=512)
    frames: int = Field(1024, ge=1, le=100_000)
    frame_length: float = Field(25.0, gt=0, le=1000)
    frame_shift: float = Field(10.0, gt=0, le=1000)
    dtype: Literal["float32", "float16"] = "float32"


class LogStftSpec(Section):
    """log(|STFT| + 1e-7) of the waveform tiled to `seconds`, stored as (1, n_fft // 2 + 1, frames)."""

    kind: Literal["log_stft"] = "log_stft"
    rate: int = Field(22050, ge=1000, le=192_000)
    seconds: float = Field(3.0, gt=0, le=3600)
    n_fft: int = Field(512, ge=16, le=65_536)
    hop: int = Field(353, ge=1, le=65_536)
    dtype: Literal["float32", "float16"] = "float32"


class VideoSpec(Section):
    """Frames at `fps` a second, `frames` of them at equal strides, stored as uint8 (frames, 3, size, size)."""

    kind: Literal["video"] = "video"
    fps: float = Field(1.0, gt=0, le=240)
    frames: int = Field(3, ge=1, le=1000)
    size: int = Field(224, ge=1, le=4096)
    fit: Literal["squash", "crop"] = "squash"


class TextSpec(Section):
    """Token numbers, stored as int32 (length,), padded with -1. `wordpiece` needs a vocabulary (a file or folder).

    `tokenizer` is that of a model, special tokens included: `vocabulary` is its folder, or its name on the Hugging Face
    hub. It decides about upper and lower case and everything else but the length.
    """

    kind: Literal["text"] = "text"
    tokens: Literal["bytes", "ngrams", "wordpiece", "tokenizer"] = "ngrams"
    length: int = Field(64, ge=1, le=65_536)
    ngram_min: int = Field(2, ge=1, le=16)
    ngram_max: int = Field(4, ge=1, le=16)
    words: bool = True  # whole words count as n-grams too
    buckets: int = Field(4096, ge=2, le=10_000_000)
    vocabulary: str | None = None
    lower: bool = True


class ExtractorSpec(Section):
    """What a model's own feature extractor makes of a sound, stored as float32 in the extractor's shape.

    model: its folder, or its name on the Hugging Face hub. seconds: sounds are cut to it, and padded to it where the
    extractor has no fixed length of its own.
    """

    kind: Literal["extractor"] = "extractor"
    model: str
    seconds: float | None = Field(None, gt=0, le=3600)


class VectorSpec(Section):
    """A vector of features, stored as float32 (width,); the width is read from the data where it is not given."""

    kind: Literal["vector"] = "vector"
    width: int | None = Field(None, ge=1)


FeatureSpec = Annotated[
    ImageSpec | FbankSpec | LogStftSpec | VideoSpec | TextSpec | ExtractorSpec | VectorSpec, Field(discriminator="kind")
]

# Which feature kinds a modality of a raw kind can have; the first is the default.
FEATURES_OF_KIND: dict[str, tuple[str, ...]] = {
    "image": ("image",),
    "audio": ("fbank", "log_stft", "extractor"),
    "video": ("video",),
    "text": ("text",),
    "text_file": ("text",),
    "vector": ("vector",),
}
SPEC_OF_KIND: dict[str, type[Section]] = {
    "image": ImageSpec,
    "fbank": FbankSpec,
    "log_stft": LogStftSpec,
    "video": VideoSpec,
    "text": TextSpec,
    "extractor": ExtractorSpec,
    "vector": VectorSpec,
}


def same_spec(wanted: Section, stored: Section) -> bool:
    """Equal, or differing only where the wanted one leaves a value to the data (a vector's width)."""
    have = stored.model_dump()
    return all(value is None or have.get(key) == value for key, value in wanted.model_dump().items()) and type(
        wanted
    ) is type(stored)
