"""Layouts of published checkpoints: equal to the recorded names and shapes, and what counts as a difference."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import hollow, shapes_of
from torch import Tensor

from mla_cli.core.layout_files import Found, compare, nearest, read_layout
from mla_cli.core.layouts import LAYOUTS, NEEDED, OPTIONAL, UNUSED, find_layout
from mla_cli.errors import MlaError

RECORDED = {"mla-released": "mla_released", "m3ae": "m3ae_base", "cav-mae": "cav_mae"}
UNUSED_COUNTS = {
    "mla-released": {},
    "m3ae": {},
    "cav-mae": {
        "visual half": 274,
        "audio blocks' norms for joint use": 44,
        "joint block's norms for both modalities": 4,
    },
}


def meta(layout: str) -> dict[str, Tensor]:
    """The recorded layout without memory."""
    shapes = shapes_of(RECORDED[layout])
    kinds = {name: torch.int64 if name.endswith("num_batches_tracked") else torch.float32 for name in shapes}
    return {name: torch.empty(shape, dtype=kinds[name], device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_recorded_name_and_shape_is_used_or_deliberately_unused(name: str) -> None:
    found = compare(LAYOUTS[name], meta(name))
    assert found.fits, found
    used, unused = found.names(NEEDED, OPTIONAL), found.names(UNUSED)
    assert sorted(used + unused) == sorted(shapes_of(RECORDED[name]))  # each once, and no other
    counts = {part: len(names) for part, names in found.parts.items() if LAYOUTS[name].parts[part].use == UNUSED}
    assert {part: count for part, count in counts.items() if count} == UNUSED_COUNTS[name]


def test_free_sides_and_blocks_are_read_from_the_file() -> None:
    assert compare(LAYOUTS["mla-released"], meta("mla-released")).sides == {"classes": 6}
    found = compare(LAYOUTS["m3ae"], meta("m3ae"))
    assert (found.sides, found.depths) == ({"d": 768, "tokens": 30522}, {"encoder.blocks.": 12})
    found = compare(LAYOUTS["cav-mae"], meta("cav-mae"))
    assert found.sides == {"d": 768, "audio patches": 512, "visual patches": 196}
    assert found.depths == {"blocks_a.": 11, "blocks_v.": 11}


def changed(layout: str, change: dict[str, tuple[int, ...] | None]) -> Found:
    """The recorded layout with tensors of other shapes, or without some."""
    tensors = meta(layout)
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = torch.empty(shape, device="meta")
    return compare(LAYOUTS[layout], tensors)


def test_lawful_differences_are_no_differences() -> None:
    head = {"fusion_module.fc_out.weight": (31, 512), "fusion_module.fc_out.bias": (31,)}
    found = changed("mla-released", head)  # type: ignore[arg-type]
    assert found.fits and found.sides == {"classes": 31}
    found = changed("m3ae", {"text_embedding.weight": (50, 768)})
    assert found.fits and found.sides["tokens"] == 50
    last = dict.fromkeys(name for name in shapes_of("m3ae_base") if name.startswith("encoder.blocks.11."))
    found = changed("m3ae", last)  # type: ignore[arg-type]
    assert found.fits and found.depths == {"encoder.blocks.": 11}
    images = changed("m3ae", {"text_embedding.weight": None, "encoder_text_type_embedding": None})
    assert images.fits and not images.parts["text input"]
    half = dict.fromkeys(compare(LAYOUTS["cav-mae"], meta("cav-mae")).names(UNUSED))
    assert changed("cav-mae", half).fits  # type: ignore[arg-type]
    more = changed("cav-mae", {"decoder_pred.weight": (3, 4), "mask_token": (1, 1, 512), "mlp_head.0.bias": (7,)})
    assert more.fits and len(more.parts["decoder and heads"]) == 3


@pytest.mark.parametrize(
    ("layout", "change", "missing", "unexpected", "other_shape"),
    [
        ("mla-released", {"audio_net.bn1.bias": None, "fc.bias": (6,)}, ["audio_net.bn1.bias"], ["fc.bias"], []),
        (  # the head must agree with itself
            "mla-released",
            {"fusion_module.fc_out.weight": (31, 512), "fusion_module.fc_out.bias": (6,)},
            [],
            [],
            ["fusion_module.fc_out.bias float32 (6,) for float (31,)"],
        ),
        (
            "mla-released",
            {"visual_net.conv1.weight": (64, 1, 7, 7), "audio_net.bn1.num_batches_tracked": ()},
            [],
            [],
            [
                "audio_net.bn1.num_batches_tracked float32 () for int64 ()",
                "visual_net.conv1.weight float32 (64, 1, 7, 7) for float (64, 3, 7, 7)",
            ],
        ),
        (  # one tensor does not outvote the others
            "m3ae",
            {"cls_token": (1, 1, 512)},
            [],
            [],
            ["cls_token float32 (1, 1, 512) for float (1, 1, 768)"],
        ),
        ("m3ae", {"encoder_text_type_embedding": None}, ["encoder_text_type_embedding"], [], []),
        (  # a block in the middle
            "m3ae",
            {f"encoder.blocks.5.{n}": None for n in ("layer_norm1.weight", "attention.fc.bias")},
            ["encoder.blocks.5.layer_norm1.weight", "encoder.blocks.5.attention.fc.bias"],
            [],
            [],
        ),
        (
            "cav-mae",
            {"pos_embed_a": (512, 768), "blocks_v.0.mlp.fc1.bias": (5,)},  # unused ones are looked at too
            [],
            [],
            [
                "pos_embed_a float32 (512, 768) for float (1, audio patches, 768)",
                "blocks_v.0.mlp.fc1.bias float32 (5,) for float (3072,)",
            ],
        ),
    ],
)
def test_what_differs_is_named(
    layout: str, change: dict, missing: list[str], unexpected: list[str], other_shape: list[str]
) -> None:
    found = changed(layout, change)
    assert not found.fits
    assert (found.missing, found.unexpected, found.other_shape) == (missing, unexpected, other_shape)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_no_needed_name_can_go_and_no_name_can_come(name: str, data: st.DataObject) -> None:
    tensors, layout = meta(name), LAYOUTS[name]
    gone = data.draw(st.sampled_from([n for n in compare(layout, tensors).names(NEEDED) if "blocks" not in n]))
    came = data.draw(
        st.text().filter(lambda n: n not in tensors and not n.startswith(("decoder", "mlp_head", "head.")))
    )
    del tensors[gone]
    tensors[came] = torch.empty(1, device="meta")
    found = compare(layout, tensors)
    assert gone in found.missing and came in found.unexpected


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_nearest_layout(name: str) -> None:
    tensors = meta(name)
    assert nearest(tensors) is LAYOUTS[name]
    assert nearest(dict(list(tensors.items())[: len(tensors) * 4 // 5])) is LAYOUTS[name]
    assert nearest({"conv1.weight": torch.zeros(1)}) is None


def refused(file: Path, layout: str) -> MlaError:
    with pytest.raises(MlaError) as caught:
        read_layout(file, LAYOUTS[layout])
    return caught.value


def test_a_file_of_another_layout_is_recognised(tmp_path: Path) -> None:
    file = hollow("m3ae_base", tmp_path)
    error = refused(file, "cav-mae")
    head, missing, unexpected = error.message.split("\n")
    assert head.startswith(f"`{file}` is not in layout `cav-mae` (CAV-MAE's")
    assert head.endswith("Tensors: 30 missing, 152 unexpected")
    assert missing.startswith("  missing: modality_a, pos_embed_a, ") and missing.endswith(", ...")
    assert missing.count(",") == unexpected.count(",") == 10
    assert error.hint == f"it looks like layout `m3ae`: run `mla import {file} --layout m3ae`"
    file = hollow("mla_released", tmp_path, "module.")
    assert refused(file, "m3ae").hint.endswith("--layout mla-released --dataset cremad`")


def test_a_changed_copy_and_a_file_of_no_layout(tmp_path: Path) -> None:
    torch.save({"a\x1b[31m\n" * 30: torch.zeros(1)}, tmp_path / "x.pt")
    error = refused(tmp_path / "x.pt", "m3ae")
    assert error.hint == "it looks like none of the layouts mla-released, m3ae, cav-mae"
    assert "\x1b" not in error.message and "a\\x1b[31m\\n" in error.message
    assert error.message.count("\n") == 2  # a name cannot start a line
    content = {n: torch.zeros(()).expand(s) for n, s in shapes_of("m3ae_base").items()}
    torch.save(content | {"cls_token": torch.zeros(1, 768)}, tmp_path / "y.pt")
    assert "changed copy" in refused(tmp_path / "y.pt", "m3ae").hint
    torch.save(content | {"cls_token": torch.full((1, 1, 768), float("nan"))}, tmp_path / "z.pt")
    assert "values in `cls_token` that are not finite" in refused(tmp_path / "z.pt", "m3ae").message


def test_an_unknown_layout() -> None:
    with pytest.raises(MlaError, match="no layout named `m3ea`") as caught:
        find_layout("m3ea")
    assert caught.value.hint == "did you mean `m3ae`?"
