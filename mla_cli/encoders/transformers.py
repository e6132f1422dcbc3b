"""`transformers`: a text or audio model of Hugging Face (BERT, sentence encoders, AST, Wav2Vec2, HuBERT, Whisper, ...).

`model` is its folder, or its name on the Hugging Face hub. Its own tokenizer or feature extractor makes the features:
`{kind: text, tokens: tokenizer, vocabulary: FOLDER}` and `{kind: extractor, model: FOLDER}`.
Attention is torch's `scaled_dot_product_attention` wherever the library has it for the model. Of models with a decoder
the encoder is taken. Heads in a checkpoint stay unused.
"""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mla_cli.data.extractor import extractor
from mla_cli.data.hub import EXTRACTOR_FILES, SMALL_FILES, folder_of, library, quiet, read_folder, weights_in
from mla_cli.encoders._library import real_then_fake
from mla_cli.errors import MlaError

POOLS = ("mean_valid", "cls")
REFUSALS = (AssertionError, ValueError, TypeError, RuntimeError, IndexError, AttributeError)
KEY = "encoders.MODALITY.model"  # of a folder that `build` looks at; it does not know its modality


class Pretrained(nn.Module):
    """What text and sound share: the library's model, and how to make it again for reading a checkpoint."""

    def __init__(self, whole: nn.Module, config: Any, keys: dict[str, Any], pool: str):
        """whole: the library's model; of one with a decoder only the encoder is kept."""
        super().__init__()
        self.kind, self.config, self.keys, self.pool = type(whole), config, keys, pool
        self.width = 0
        self.model = encoder_of(whole, config)

    def pooled(self, hidden: Tensor, real: Tensor | None) -> Tensor:
        """(B, tokens, d) -> (B, d). real: bool (B, tokens), False is padding; None: all are real."""
        if self.pool == "cls":
            return hidden[:, 0]
        if real is None:
            return hidden.mean(dim=1)
        valid = real.unsqueeze(2)
        return hidden.where(valid, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


class Text(Pretrained):
    """(B, length) token numbers, -1 = padding -> (B, d); padding changes no feature."""

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens >= 0
        pad = getattr(self.config, "pad_token_id", None)
        ids = tokens.long().where(real, pad if isinstance(pad, int) and pad >= 0 else 0)
        # an absent text is padding only: it is read as one padding token, since attention to nothing is not a number
        first = torch.arange(tokens.shape[1], device=tokens.device) == 0
        real = real | (first & ~real.any(dim=1, keepdim=True))
        hidden = self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return self.pooled(hidden, real)


class Audio(Pretrained):
    """(B, *shape) of the model's own extractor -> (B, d).

    masked: the extractor makes attention masks: padding, the exact zeros at the end, is told to the model and left out
    of the mean. Else the model was trained without, and the mean is over all that it gives.
    """

    masked = False

    def forward(self, x: Tensor) -> Tensor:
        given = {str(self.model.main_input_name): x}
        if not self.masked:
            return self.pooled(self.model(**given).last_hidden_state, None)
        real = frames_before_zeros(x)
        hidden = self.model(**given, attention_mask=real.long()).last_hidden_state
        if hidden.shape[1] != real.shape[1]:
            real = self.model._get_feature_vector_attention_mask(hidden.shape[1], real.long()).bool()
        return self.pooled(hidden, real)


def frames_before_zeros(x: Tensor) -> Tensor:
    """bool (B, time): True up to the last entry of (B, time, ...) that is not exactly zero, for the first at least."""
    filled = (x != 0).reshape(*x.shape[:2], -1).any(dim=2)
    last = (filled * torch.arange(1, filled.shape[1] + 1, device=x.device)).amax(dim=1, keepdim=True).clamp(min=1)
    return torch.arange(filled.shape[1], device=x.device) < last


def encoder_of(whole: nn.Module, config: Any) -> Any:
    """The encoder of a model that has a decoder too; any other model itself."""
    return whole.get_encoder() if config.is_encoder_decoder else whole  # type: ignore[operator]


def pretrained_file(key: str, *, model: str = "", pretrained: bool = True, **_: object) -> Path:
    """The weights in the model's folder, or of its hub repository. key: where they are asked for, for errors."""
    return weights_in(named(model), key.rpartition(".")[0] + ".model")


def named(model: str) -> str:
    """The model's folder or name. Raises MlaError where there is none."""
    if not model:
        raise MlaError("encoder transformers: no `model` is named", "set `model` to its folder or its hub name")
    return model


def convert(tensors: dict[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """Names and shapes of a checkpoint as ours, by the library's own loading: prefixes, heads, older names."""
    assert isinstance(network, Pretrained)
    load: Any = network.kind.from_pretrained  # type: ignore[attr-defined]
    with quiet():
        whole, info = load(
            None,
            config=copy.deepcopy(network.config),
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            **network.keys,
        )
    part = encoder_of(whole, network.config)
    prefix = next(f"{name}." if name else "" for name, module in whole.named_modules() if module is part)
    wrong = {name: shape for name, shape, *_ in info["mismatched_keys"]}
    left = set(info["missing_keys"]) | set(wrong)
    found = {f"model.{name}": value for name, value in part.state_dict().items() if prefix + name not in left}
    # what the file has in another shape, and what it has beside: to be told, not loaded
    wrong = {name.removeprefix(prefix): shape for name, shape in wrong.items() if name.startswith(prefix)}
    found |= {f"model.{name}": torch.empty(shape) for name, shape in wrong.items()}
    beside = {n: value for n, value in tensors.items() if n in info["unexpected_keys"]}
    beside |= {n: v for n, v in whole.state_dict().items() if not n.startswith(prefix) and n not in left}  # a decoder
    return found | beside


@real_then_fake
def build(
    input_shape: tuple[int, ...],
    width: int | None,
    *,
    token_count: int = 0,
    model: str = "",
    pretrained: bool = True,
    pool: str = "mean_valid",
    dropout: float | None = None,
    checkpointing: bool = False,
) -> nn.Module:
    """A model of Hugging Face up to its last hidden states, pooled over tokens or frames; as wide as it is.

    input_shape: (length,) of text, whose token_count is set from the features, or what the extractor makes of sounds.
    model: a folder with `config.json`, or a hub name. pretrained: start from the weights there (read by `core.weights`,
    never here); `false`: from random ones, as the library starts them. pool: the mean over what is real (`mean_valid`),
    or the first token (`cls`). dropout: in place of the configuration's rates, all of them; whole layers are never
    skipped and nothing is masked at random. checkpointing: less memory for about a third more time.
    Raises MlaError for a model, shape or key that cannot work, and where transformers is not installed.
    """
    if pool not in POOLS:
        raise MlaError(f"encoder transformers: no pool `{pool}`", "choose one of `mean_valid`, `cls`")
    if dropout is not None and not 0 <= dropout < 1:
        raise MlaError(f"encoder transformers: `dropout` must be in [0, 1), got `{dropout}`", "0 switches it off")
    folder = folder_of(named(model), KEY, ("config.json",)) if Path(model).expanduser().is_dir() else hub_folder(model)
    config = read_folder("configuration", "AutoConfig", folder)
    settle(config, dropout)
    whole, keys = random_model(config, model)
    network: Pretrained
    reads = str(encoder_of(whole, config).main_input_name)
    if (reads == "input_ids") != bool(token_count) or reads == "pixel_values":
        given = "text" if token_count else f"of shape `{input_shape}`"
        raise MlaError(
            f"encoder transformers: `{model}` takes `{reads}`, the features are {given}",
            "text wants a text model and `tokens: tokenizer`, sound an audio model and `kind: extractor`; "
            "for images use the encoder `timm`",
        )
    if token_count:
        network = Text(whole, config, keys, pool)
        check_tokens(model, config, input_shape, token_count)
        probe = torch.full((1, *input_shape), 1 if getattr(config, "pad_token_id", 0) == 0 else 0, dtype=torch.int32)
    else:
        network = Audio(whole, config, keys, pool)
        network.masked = uses_masks(folder, network)
        if pool == "cls" and not any(name.endswith("cls_token") for name, _ in network.named_parameters()):
            raise MlaError(f"encoder transformers: `{model}` has no cls token", "choose `pool: mean_valid`")
        probe = torch.ones(1, *input_shape)
    network.eval()
    try:
        with torch.no_grad():
            network.width = network(probe).shape[1]
    except REFUSALS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        kind = "{kind: text, tokens: tokenizer, vocabulary: FOLDER}` or `{kind: extractor, model: FOLDER}"
        raise MlaError(
            f"encoder transformers: `{model}` cannot take inputs of shape `{input_shape}`: {reason}",
            f"prepare the features with the model's own tokenizer or extractor: `{kind}`; images: use `timm`",
        ) from error
    if width not in (None, network.width):
        hint = "leave it out; an adapter leads to `shared_width`"
        raise MlaError(f"encoder transformers: `width` of `{model}` is {network.width}, got `{width}`", hint)
    if checkpointing:
        if not getattr(network.model, "supports_gradient_checkpointing", False):
            raise MlaError(f"encoder transformers: `{model}` has no `checkpointing`", "leave it out")
        named_now = getattr(network.model, "activation_checkpointing_enable", None)  # its older name warns
        (named_now or network.model.gradient_checkpointing_enable)({"use_reentrant": False})
    return network.train()


def hub_folder(model: str) -> Path:
    """The small files of a hub model, in the cache."""
    folder = folder_of(model, KEY, SMALL_FILES)
    if not (folder / "config.json").is_file():
        raise MlaError(f"encoder transformers: `{model}` has no `config.json`", "it is no model of transformers")
    return folder


def settle(config: Any, dropout: float | None) -> None:
    """Set what a configuration leaves to chance, in place. Raises MlaError for quantised weights."""
    if getattr(config, "quantization_config", None):
        raise MlaError("encoder transformers: quantised models cannot be trained", "take the model as it was before")
    config.use_cache = False  # of decoders, for generating text
    config.apply_spec_augment = False  # drawn by NumPy's global generator, which no seed of ours reaches
    for name, value in config.to_dict().items():
        if name.endswith("layerdrop"):
            setattr(config, name, 0.0)
        elif dropout is not None and "drop" in name and isinstance(value, float):
            setattr(config, name, dropout)


def random_model(config: Any, model: str) -> tuple[nn.Module, dict[str, Any]]:
    """The library's model of a configuration, in float32, and the keys that it was built with."""
    library("transformers")
    from transformers import MODEL_MAPPING

    kind = MODEL_MAPPING.get(type(config), None)
    if isinstance(kind, tuple | list):
        kind = kind[0]
    if kind is None:
        raise MlaError(
            f"encoder transformers: the library has no plain model of type `{config.model_type}` (`{model}`)",
            "take a text or audio model",
        )
    # a pooler that nobody asks for would be parameters without a gradient
    keys = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind.__init__).parameters else {}
    with quiet():
        return kind._from_config(copy.deepcopy(config), dtype=torch.float32, **keys), keys


def check_tokens(model: str, config: Any, shape: tuple[int, ...], token_count: int) -> None:
    """Raise MlaError for token numbers or a length that the model has no embedding for."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    if size is not None and token_count > size:
        raise MlaError(
            f"encoder transformers: the text features have {token_count} token numbers, `{model}` knows {size}",
            f"prepare them with its own tokenizer: `tokens: tokenizer`, `vocabulary: {model}`",
        )
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < shape[0]:
        raise MlaError(
            f"encoder transformers: texts of {shape[0]} tokens are too long for `{model}`, which takes {most}",
            f"prepare them with `length: {most}` or less",
        )


def uses_masks(folder: Path, network: Audio) -> bool:
    """Whether a model's extractor makes attention masks that the model can follow."""
    if not any((folder / name).is_file() for name in EXTRACTOR_FILES):
        return False
    asked = bool(extractor(str(folder)).library.return_attention_mask)
    return asked and "attention_mask" in inspect.signature(network.model.forward).parameters
