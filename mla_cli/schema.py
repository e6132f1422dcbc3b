"""Every key a recipe may hold, its type, its default and its range. The one place to add a key.

Sections of `Recipe` are validated as a whole before anything starts; `recipe.py` loads, merges and explains errors.
Equations and the meaning of the method's keys: the paper (arXiv 2311.10707) and the docstrings of `core/hgm.py`,
`core/fusion.py` and `data/missing.py`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mla_cli.specs import FeatureSpec, Section

Rate = Annotated[float, Field(ge=0, le=1)]
SECONDS = {"s": 1, "min": 60, "h": 3600}
DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?) ?(s|min|h)", re.ASCII)


class OpenSection(Section):
    """A section whose further keys belong to a plug-in; `registry.check_options` validates them by its signature."""

    model_config = ConfigDict(extra="allow", strict=True, validate_default=True, allow_inf_nan=False)

    def options(self) -> dict[str, Any]:
        """The plug-in's own keys."""
        return dict(self.__pydantic_extra__ or {})


class DatasetSection(Section):
    """Which samples: data set, protocol, fold; `store` is the folder below --data-dir (default: the name)."""

    name: str = "emoji"
    store: str | None = None
    modalities: list[str] | None = None  # None: all of the data set's, in its order
    protocol: str | None = None  # None: the data set's first
    fold: int = Field(0, ge=0)
    split_seed: int = 0
    split_file: str | None = None
    pair_seed: int = 0
    limit: int | None = Field(None, ge=1)  # at most so many samples of each split


class EncoderSection(OpenSection):
    """One modality's network; further keys are those of `encoders/NAME.py`."""

    name: str
    width: int | None = Field(None, ge=1, le=65_536)
    weights: str | None = None  # a .safetensors, .pt or .pth file to start from
    sha256: str | None = None  # what that file must be
    strict: bool = True  # the file must fill 90 % of the parameters
    frozen: bool = False  # the network stays as it starts, its features are computed once; the adapter trains
    # mean and sd of the inputs: of the training rows, or what published weights expect (`data/normalise.py`)
    normalise: Literal["train", "none", "imagenet", "audioset", "model"] = "train"

    @field_validator("weights", mode="before")
    @classmethod
    def none_is_no_file(cls, value: object) -> object:
        return None if value == "none" else value

    @field_validator("sha256")
    @classmethod
    def sha256_is_a_digest(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-fA-F]{64}", value):
            raise ValueError(f"must be 64 hexadecimal digits, got {value!r}; `sha256sum FILE` prints them")
        return value and value.lower()

    @model_validator(mode="after")
    def sha256_is_of_a_file(self) -> "EncoderSection":
        if self.sha256 is not None and self.weights is None and not self.options().get("pretrained"):
            raise ValueError("`sha256` is given without `weights` (or `pretrained`); name the file, or leave it out")
        return self


class HeadSection(Section):
    """The head's optimiser where it differs from the encoders'."""

    optimizer: Literal["sgd", "adamw"] | None = None
    lr: float | None = Field(None, gt=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    weight_decay: float | None = Field(None, ge=0)


HgmVariant = Literal["off", "rls", "released", "released_add"]


class MethodSection(OpenSection):
    """The training method; a method's own keys stand under its name, such as `method.unimodal.modality`."""

    name: str = "mla"
    hgm: HgmVariant = "rls"
    alpha_start: float = Field(0.1, gt=0)
    alpha_end: float = Field(0.01, gt=0)
    hgm_reset: Literal["never", "epoch"] = "never"
    hgm_mean: Literal["batch", "running"] = "batch"
    hgm_apply: Literal["gradient", "update"] = "gradient"
    order: list[str] | None = None
    batching: Literal["shared", "independent"] = "shared"
    rounds: Literal["max", "min", "mean"] = "max"

    @field_validator("hgm", mode="before")
    @classmethod
    def off_is_false_in_yaml(cls, value: object) -> object:
        if value is True:
            raise ValueError("`true` does not say which variant; write `rls`, `released`, `released_add` or `off`")
        return "off" if value is False else value  # YAML reads a bare `off` as false


class TrainSection(Section):
    """The optimisation and its budget."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.001, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0001, ge=0)
    schedule: Literal["constant", "step", "cosine"] = "constant"
    step_epochs: int = Field(70, ge=1)  # `step`: the rate falls to step_factor of itself every so many epochs
    step_factor: float = Field(0.1, gt=0, le=1)
    warmup: float = Field(0.0, ge=0)  # epochs in which the rate rises linearly from 0
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    precision: Literal["32", "bf16", "16"] = "32"  # 16: float16 with a loss scale
    sync_batchnorm: bool = False  # with several processes on CUDA: batch statistics of the whole batch
    compile: bool = False  # the encoders' training steps by torch.compile; needs a C++ compiler, on CUDA Triton
    threads: int | None = Field(None, ge=1, le=4096)  # None: all cores (one in the workers of `mla ablate`)
    checkpoint_every: int | str | None = None  # between checkpoints inside an epoch: rounds, or a time such as 10min
    select_on: Literal["val", "last", "test"] = "val"
    diagnostics: bool = True  # imbalance between modalities, every epoch in history.jsonl; changes no weight
    shuffle: Literal["full", "blocks"] = "full"  # `blocks`: for data larger than memory, see `data/order.py`
    block_rows: int = Field(16, ge=1)  # neighbouring samples that are read in one piece
    mixed_blocks: int = Field(64, ge=1)  # blocks whose samples are mixed with each other
    max_rounds: int | None = Field(None, ge=1)  # cut every epoch short (smoke runs)
    missing_rate: float | dict[str, float] = 0.0  # by modality with `per_modality`: {audio: 0.5, text: 0}
    missing_pattern: Literal["kept_one", "bernoulli", "per_modality"] = "kept_one"
    missing_seed: int = 0
    absent: Literal["skip", "zeros"] = "skip"
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("missing_rate", mode="before")
    @classmethod
    def missing_rates_are_fractions(cls, value: object) -> object:
        hint = "write a fraction such as 0.3, or with `missing_pattern: per_modality` one per modality: {audio: 0.5}"
        for rate in value.values() if isinstance(value, dict) else [value]:
            if isinstance(rate, bool) or not isinstance(rate, int | float):
                raise ValueError(f"must be a fraction, got {rate!r}; {hint}")
            if not (0 <= rate < 1 or (rate == 1 and isinstance(value, dict))):
                raise ValueError(f"must be a fraction from 0 to below 1, got {rate!r}; {hint}")
        return value

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def checkpoints_come_after_rounds_or_time(cls, value: object) -> object:
        rounds = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        time = isinstance(value, str) and DURATION.fullmatch(value)
        if value is None or rounds or (time and float(time[1]) > 0):
            return value
        raise ValueError(f"must be rounds or a time, got {value!r}; write 500, or with a unit 90s, 10min or 1.5h")

    @property
    def checkpoint_seconds(self) -> float | None:
        """`checkpoint_every` where it is a time."""
        time = DURATION.fullmatch(str(self.checkpoint_every))
        return float(time[1]) * SECONDS[time[2]] if time else None

    @field_validator("precision", mode="before")
    @classmethod
    def precision_is_text(cls, value: object) -> object:
        return str(value) if value in (16, 32) and not isinstance(value, bool) else value


FusionRule = Literal["entropy", "entropy_batch", "uniform", "fixed", "energy", "native"]


class FusionSection(Section):
    """How modalities are fused at test time; `rule: null` is the method's default."""

    rule: FusionRule | None = None
    of: Literal["logits", "probabilities"] = "logits"
    weights: dict[str, float] | None = None
    batch_size: int = Field(64, ge=1)


class AugmentSection(Section):
    """Batched augmentation of one modality's training inputs; everything is off by default."""

    crop: Annotated[float, Field(gt=0, le=1)] = 1.0  # random resized crop: smallest share of the area
    flip: bool = False
    shift: int = Field(0, ge=0)  # pixels or frames, in each direction
    time_mask: int = Field(0, ge=0)  # frames
    frequency_mask: int = Field(0, ge=0)  # bins
    noise: float = Field(0.0, ge=0)  # sd, in units of the normalised input
    drop_tokens: Annotated[float, Field(ge=0, lt=1)] = 0.0  # text: share of tokens removed


class Recipe(Section):
    """One experiment, complete: two runs of equal recipes on equal data give equal bytes."""

    name: str = "recipe"
    dataset: DatasetSection = DatasetSection()
    features: dict[str, FeatureSpec] = {}
    encoders: dict[str, EncoderSection] = {}
    shared_width: int = Field(128, ge=1, le=65_536)
    head: HeadSection = HeadSection()
    method: MethodSection = MethodSection()
    train: TrainSection = TrainSection()
    fusion: FusionSection = FusionSection()
    augment: dict[str, AugmentSection] = {}
    impute: Literal["zeros", "train_mean"] = "zeros"
    # subsets of modalities that a method which mixes them is scored on; None: all of them, for at most six modalities
    subsets: list[list[str]] | None = None
    seed: int = Field(0, ge=0)

    @property
    def store(self) -> str:
        """Folder of the prepared data below --data-dir."""
        return self.dataset.store or self.dataset.name
