"""Layouts of published checkpoints: which tensors such a file holds, of which shapes, and what becomes of each.

`mla-released` is the audio-visual model of the paper's released code (two ResNet-18 and the shared head), `m3ae` the
encoder of M3AE (Geng et al. 2022), `cav-mae` that of CAV-MAE (Gong et al. 2023). Sides that may differ between lawful
files (classes, tokens, width, patches, blocks) are read from the file, and must agree within it.
`core/layout_files.py` compares.
"""

from dataclasses import dataclass, field
from typing import Any

from mla_cli import registry
from mla_cli.errors import MlaError

Shape = tuple[int | str, ...]  # a side is a number, or the name of a free one, with a factor: `d`, `3d`
Shapes = dict[str, Shape]  # a `*` in a name stands for the numbers of the blocks, from 0 on

NEEDED, OPTIONAL, UNUSED = "needed", "optional", "unused"
COUNTERS = ".num_batches_tracked"  # whole numbers; all else is floating point
PATCH = 16 * 16  # pixels, or mel bins times frames


@dataclass(frozen=True)
class Part:
    """Some of the tensors of a layout.

    use: `needed`; `optional`, where the file must hold one of those parts at least, each whole or not at all; `unused`:
    what no encoder of ours takes, there or not. modality: the one that an optional part is for. prefixes: what else is
    unused, of any shape, by the start of its name.
    """

    shapes: Shapes
    use: str = NEEDED
    modality: str | None = None
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Parts by name, and where they go.

    encoders: modality -> encoder. For whole models: becomes: start of a name -> start of its name in a run's model;
    recipe: what a recipe of one must say; datasets: those of which such models are known.
    """

    name: str
    what: str
    parts: dict[str, Part]
    encoders: dict[str, str]
    becomes: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()


# ------------------------------------------------------------ what the layouts hold


def linear(name: str, out: int | str, into: int | str) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int | str) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Shapes:
    more: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), name + COUNTERS: ()}
    return norm(name, width) | more


def resnet18(prefix: str, channels: int) -> Shapes:
    """ResNet-18 without its classifier, for inputs of so many channels."""
    shapes: Shapes = {f"{prefix}conv1.weight": (64, channels, 7, 7)} | batch_norm(f"{prefix}bn1", 64)
    into = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for number in (0, 1):
            block = f"{prefix}layer{stage}.{number}"
            for conv in (1, 2):
                shapes[f"{block}.conv{conv}.weight"] = (width, into, 3, 3)
                shapes |= batch_norm(f"{block}.bn{conv}", width)
                if conv == 1 and into != width:
                    shapes[f"{block}.downsample.0.weight"] = (width, into, 1, 1)
                    shapes |= batch_norm(f"{block}.downsample.1", width)
                into = width
    return shapes


def transformer(block: str, qkv: str, out: str, mlp: str) -> Shapes:
    """The linear layers of a pre-norm block of width d."""
    layers = (f"{block}.{qkv}", "3d", "d"), (f"{block}.{out}", "d", "d")
    mlps = (f"{block}.{mlp}.fc1", "4d", "d"), (f"{block}.{mlp}.fc2", "d", "4d")
    return {name: shape for layer in (*layers, *mlps) for name, shape in linear(*layer).items()}


def norms(block: str, *suffixes: str) -> Shapes:
    """The two norms of a block of CAV-MAE, once for each suffix."""
    every = [norm(f"{block}.norm{number}{suffix}", "d") for suffix in suffixes for number in (1, 2)]
    return {name: shape for shapes in every for name, shape in shapes.items()}


def norms_of_m3ae(block: str) -> Shapes:
    """The two norms of a block of M3AE."""
    return norm(f"{block}.layer_norm1", "d") | norm(f"{block}.layer_norm2", "d")


def cav_mae_inputs(suffix: str, channels: int, places: str) -> Shapes:
    """What turns patches of one modality into tokens, and its last norm."""
    shapes: Shapes = {f"modality_{suffix}": (1, 1, "d"), f"pos_embed_{suffix}": (1, places, "d")}
    shapes[f"patch_embed_{suffix}.proj.weight"] = ("d", channels, 16, 16)
    shapes[f"patch_embed_{suffix}.proj.bias"] = ("d",)
    return shapes | norm(f"norm_{suffix}", "d")


LATER = ("decoder", "mask_token", "mlp_head", "head.")  # of pretraining, and of classifiers
_BLOCK, _JOINT = "encoder.blocks.*", "blocks_u.0"
_ATTENTION = ("attn.qkv", "attn.proj", "mlp")

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "mla-released",
            "an audio-visual model of the paper's released code",
            {
                "audio encoder": Part(resnet18("audio_net.", 1)),
                "visual encoder": Part(resnet18("visual_net.", 3)),
                "shared head": Part(linear("fusion_module.fc_out", "classes", 512)),
            },
            {"audio": "resnet18", "visual": "resnet18"},
            {
                "audio_net.": "encoders.audio.network.",
                "visual_net.": "encoders.visual.network.",
                "fusion_module.fc_out.": "heads.shared.",
            },
            {
                "method.name": "mla",
                "method.hgm": "off",  # in effect: the released step looks for a parameter that is not there
                "shared_width": 512,
                "train.missing_rate": 0.0,
                "encoders.audio.name": "resnet18",
                "encoders.audio.normalise": "none",
                "encoders.audio.frozen": False,
                "encoders.audio.weights": None,
                "encoders.visual.name": "resnet18",
                "encoders.visual.normalise": "imagenet",
                "encoders.visual.frozen": False,
                "encoders.visual.weights": None,
            },
            ("cremad", "kinetics_sounds"),
        ),
        Layout(
            "m3ae",
            "M3AE's encoder of images and text",
            {
                "transformer": Part(
                    {"cls_token": (1, 1, "d")}
                    | norms_of_m3ae(_BLOCK)
                    | transformer(_BLOCK, "attention.qkv_linear", "attention.fc", "transformer_mlp")
                    | norm("encoder.layer_norm", "d")
                ),
                "image input": Part(
                    linear("image_embedding", "d", 3 * PATCH) | {"encoder_image_type_embedding": (1, 1, "d")},
                    OPTIONAL,
                    "visual",
                ),
                "text input": Part(
                    {"text_embedding.weight": ("tokens", "d"), "encoder_text_type_embedding": (1, 1, "d")},
                    OPTIONAL,
                    "text",
                ),
                "decoder and heads": Part({}, UNUSED, prefixes=LATER),
            },
            {"visual": "m3ae", "text": "m3ae"},
        ),
        Layout(
            "cav-mae",
            "CAV-MAE's encoders, of which the audio branch is used",
            {
                "audio branch": Part(
                    cav_mae_inputs("a", 1, "audio patches")
                    | transformer("blocks_a.*", *_ATTENTION)
                    | norms("blocks_a.*", "")
                ),
                "joint block": Part(transformer(_JOINT, *_ATTENTION) | norms(_JOINT, "_a")),
                "visual half": Part(
                    cav_mae_inputs("v", 3, "visual patches")
                    | transformer("blocks_v.*", *_ATTENTION)
                    | norms("blocks_v.*", "", "_a", "_v")
                    | norms("blocks_a.*", "_v")
                    | norms(_JOINT, "_v"),
                    UNUSED,
                ),
                "audio blocks' norms for joint use": Part(norms("blocks_a.*", "_a"), UNUSED),
                "joint block's norms for both modalities": Part(norms(_JOINT, ""), UNUSED),
                "decoder and heads": Part({}, UNUSED, prefixes=LATER),
            },
            {"audio": "cav_mae"},
        ),
    )
}


def find_layout(name: str) -> Layout:
    """A layout by its name. Raises MlaError for another."""
    if name not in LAYOUTS:
        raise MlaError(f"no layout named `{name}`", registry.did_you_mean(name, list(LAYOUTS)))
    return LAYOUTS[name]
