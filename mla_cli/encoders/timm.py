"""`timm`: any image model of the package timm (Wightman et al.), for images, clips and one-channel spectrograms.

`model` is one of timm's names, with or without a tag for its weights (`vit_small_patch16_224.augreg_in1k`). Parameters
have timm's names, so that its checkpoints fit: their classifier stays unused, position embeddings are resampled to the
size of the features, and a first convolution for three channels is summed for one, all as timm itself does it.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mla_cli.data.hub import WEIGHTS, folder_of, library
from mla_cli.encoders._library import real_then_fake
from mla_cli.errors import MlaError
from mla_cli.registry import did_you_mean, nearest

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# what timm's models answer to a wrong size
REFUSALS = (AssertionError, ValueError, TypeError, RuntimeError, IndexError)
DROPS = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}  # timm's name -> ours


class Timm(nn.Module):
    """(B, C, H, W) or (B, frames, C, H, W) float -> (B, width); a clip's frame features are averaged over time."""

    model: Any

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.width = model, 0

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model(x.flatten(0, 1) if x.dim() == 5 else x)
        return features.unflatten(0, x.shape[:2]).mean(dim=1) if x.dim() == 5 else features


def known(model: str) -> Any:
    """timm's configuration of a model: its input size, the mean and sd of its pixels, where its weights lie."""
    timm = library("timm")
    architecture, _, tag = model.partition(".")
    hint = "`python -c \"import timm; print(*timm.list_models(), sep='\\n')\"` lists them"
    if ":" in model:
        raise MlaError(f"encoder timm: `{model}` is not one of timm's own models", f"name one of those; {hint}")
    renamed = timm.models.get_deprecated_models().get(model)
    if renamed or not timm.is_model(architecture):
        close = renamed or nearest(architecture, timm.list_models())
        raise MlaError(f"encoder timm: no model `{model}`", f"did you mean `{close}`?" if close else hint)
    try:
        return timm.get_pretrained_cfg(model)
    except RuntimeError:
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
        otherwise = f"leave the tag out: `{architecture}`"
        raise MlaError(
            f"encoder timm: `{architecture}` has no weights called `{tag}`",
            did_you_mean(tag, tags) if tags else otherwise,
        ) from None


def normalisation(*, model: str = "vit_small_patch16_224", **_: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and sd per channel of the pixels, in [0, 1], that a model's weights were trained with; builds nothing."""
    found = known(model)
    if found is None:
        raise MlaError(f"encoder timm: `{model}` says nothing of its pixels", "choose another `normalise`")
    return tuple(found.mean), tuple(found.std)


def pretrained_file(
    key: str, *, model: str = "vit_small_patch16_224", pretrained: bool | str = False, **_: object
) -> Path:
    """The file that `pretrained` names: a path, or with `hub` that of the model's weights on the Hugging Face hub.

    key: where it is written, for errors. Raises MlaError where it is not there or cannot be fetched.
    """
    if pretrained is not True and pretrained != "hub":
        path = Path(str(pretrained)).expanduser()
        if not path.is_file():
            raise MlaError(f"`{key}`: no file `{pretrained}`", "give `hub`, `false`, or the path of a weights file")
        if path.suffix not in SUFFIXES:
            hint = f"a weights file ends in {', '.join(SUFFIXES)}"
            raise MlaError(f"`{key}`: cannot tell what `{path}` holds from its name", hint)
        return path
    if pretrained is True:
        raise MlaError(f"`{key}: true` does not say which weights", "write `hub`, or the path of a weights file")
    found = known(model)
    name = found and found.hf_hub_id
    if not name:
        raise MlaError(f"`{key}: hub`: timm knows no weights of `{model}` on the hub", f"write `{key}: PATH`")
    files = (found.hf_hub_filename,) if found.hf_hub_filename else WEIGHTS
    try:
        folder = folder_of(name, key, *((file,) for file in files))
    except MlaError as error:
        # the key takes a file, not a folder
        raise MlaError(
            error.message.replace(f"no folder `{name}`, and", f"`{model}`:", 1),
            error.hint.replace(f"`{key}: FOLDER`", f"`{key}: FOLDER/{files[0]}`"),
        ) from None
    return next(folder / file for file in files if (folder / file).is_file())


def convert(tensors: dict[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """Names and shapes of a checkpoint as ours, by the functions that timm's own loading uses."""
    library("timm")
    from timm.models import adapt_input_conv

    model: Any = network.get_submodule("model")
    change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        found = dict(tensors) if change is None else dict(change(dict(tensors), model))
    except (KeyError, *REFUSALS) as error:
        kind = type(model).__name__
        raise MlaError(
            f"timm cannot read these weights as those of its `{kind}` ({type(error).__name__}: {error})",
            "give a checkpoint of the model that `model` names",
        ) from error
    stems = model.pretrained_cfg.get("first_conv") or ()
    for name in (stems,) if isinstance(stems, str) else stems:
        given, own = found.get(f"{name}.weight"), model.get_submodule(name).weight
        if given is not None and given.dim() == 4 and given.shape[1] == 3 and own.shape[1] != 3:
            found[f"{name}.weight"] = adapt_input_conv(own.shape[1], given)
    return {f"model.{name}": tensor for name, tensor in found.items()}


@real_then_fake
def build(
    input_shape: tuple[int, ...],
    width: int | None,
    *,
    model: str = "vit_small_patch16_224",
    pretrained: bool | str = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    checkpointing: bool = False,
) -> nn.Module:
    """A model of timm up to its pooled features, as wide as timm makes it.

    input_shape: (channel, H, W), (1, frames, mels) or (frames, channel, H, W); the model is built for that size and
    number of channels. pretrained: `false`, `hub`, or the path of a checkpoint (`pretrained_file`; read by
    `core.weights`, never here). dropout (of the pooled features) and drop_path (of residual branches) in [0, 1).
    checkpointing: less memory for about a quarter more time, where the model can. Layers start as timm starts them.
    Raises MlaError for an unknown model, for a shape or key that it cannot take, and where timm is not installed.
    """
    timm = library("timm")
    found = known(model)
    if len(input_shape) not in (3, 4):
        raise MlaError(
            f"encoder timm: inputs must be images, clips or spectrograms, got shape `{input_shape}`",
            "use `mlp` for vectors, `transformers` or `text_conv` for text",
        )
    for key, value in {"dropout": dropout, "drop_path": drop_path}.items():
        if not 0 <= value < 1:
            raise MlaError(f"encoder timm: `{key}` must be in [0, 1), got `{value}`", "0 switches it off")
    channels, size = input_shape[-3], tuple(input_shape[-2:])
    keys: dict[str, Any] = {"drop_rate": dropout or None, "drop_path_rate": drop_path or None}
    if found is not None and found.fixed_input_size:
        keys["img_size"] = size
    try:
        network = Timm(timm.create_model(model, pretrained=False, num_classes=0, in_chans=channels, **keys))
    except REFUSALS as error:
        for name, ours in DROPS.items():
            if f"'{name}'" in str(error):
                raise MlaError(f"encoder timm: `{model}` has no `{ours}`", "leave it out") from error
        raise wrong_size(model, found, input_shape, error) from error
    patch = getattr(getattr(network.model, "patch_embed", None), "patch_size", None) or (1, 1)
    if any(side % step for side, step in zip(size, patch, strict=True)):  # timm would leave the last rows out
        raise wrong_size(model, found, input_shape, f"sides must be multiples of {patch[0]} x {patch[1]}")
    network.eval()
    try:
        with torch.no_grad():
            features = network(torch.zeros(1, channels, *size))
    except REFUSALS as error:
        raise wrong_size(model, found, input_shape, error) from error
    if features.dim() != 2:
        raise MlaError(f"encoder timm: `{model}` gives no pooled features", "choose another model")
    network.width = features.shape[1]
    if width not in (None, network.width):
        hint = "leave it out; an adapter leads to `shared_width`"
        raise MlaError(f"encoder timm: `width` of `{model}` is {network.width}, got `{width}`", hint)
    if checkpointing:
        try:
            network.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise MlaError(f"encoder timm: `{model}` has no `checkpointing`", "leave it out") from error
    return network.train()


def wrong_size(model: str, found: Any, shape: tuple[int, ...], error: object) -> MlaError:
    """What to prepare instead of inputs that a model cannot take."""
    _, rows, columns = found.input_size if found is not None else (3, 224, 224)
    reason = (str(error).splitlines() or [""])[0]
    hint = f"prepare images or clips with `features.MODALITY.size: {rows}`"
    if shape[-3] == 1:
        hint = f"prepare spectrograms of {rows} x {columns} (`frames` and `mels`), or images with `size: {rows}`"
    return MlaError(f"encoder timm: `{model}` cannot take inputs of shape `{shape}`: {reason}", hint)
