"""`timm`: features equal those of timm's own model with the same weights, and errors say what to do."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import mla
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from mla_cli.core.model import Encoder, needs_two
from mla_cli.core.weights import load_weights, weights_digest
from mla_cli.encoders import timm as encoder
from mla_cli.engine.data import open_store, run_fingerprint
from mla_cli.errors import MlaError
from mla_cli.files import sha256
from mla_cli.recipe import load_recipe
from mla_cli.schema import EncoderSection

timm = pytest.importorskip("timm")
# timm's own models for tests: a transformer of fixed size, a network with batch normalisation, one with layer norms
MODELS = ("test_vit", "test_resnet", "test_convnext")
SHAPES = {"image": (3, 48, 32), "spectrogram": (1, 64, 32), "clip": (2, 3, 32, 32), "two channels": (2, 32, 32)}


def inputs(shape: tuple[int, ...], count: int = 2) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def reference(model: str, tmp_path: Path, **keys: Any) -> tuple[Any, Path]:
    """timm's model with its classifier, and its weights as a file."""
    torch.manual_seed(7)
    theirs = timm.create_model(model, num_classes=5, **keys).eval()
    for name, value in theirs.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(0.3)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    return theirs, tmp_path / "weights.safetensors"


def section(file: Path | str, model: str, **keys: Any) -> EncoderSection:
    return EncoderSection.model_validate({"name": "timm", "model": model, "pretrained": str(file), **keys})


def pooled(theirs: Any, x: Tensor) -> Tensor:
    """timm's documented way to the features before the classifier."""
    return theirs.forward_head(theirs.forward_features(x), pre_logits=True)


@pytest.mark.parametrize("model", MODELS)
def test_features_equal_those_of_timm(model: str, tmp_path: Path) -> None:
    size = {"img_size": (48, 32)} if "vit" in model else {}
    theirs, file = reference(model, tmp_path, **size)
    ours = encoder.build((3, 48, 32), None, model=model, pretrained=str(file)).eval()
    loaded = load_weights("visual", section(file, model), ours, encoder.convert)
    assert loaded.complete and loaded.share == 1
    assert {name.split(".")[1] for name in loaded.unexpected} <= {"head", "fc"}  # the classifier: said, not used
    assert len(loaded.unexpected) == 2
    x = inputs((3, 48, 32))
    with torch.no_grad():
        found, wanted = ours(x), pooled(theirs, x)
    assert found.shape == (2, ours.width)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert weights_digest("visual", section(file, model)) == loaded.sha256 == sha256(file)


@pytest.mark.parametrize("model", MODELS[:2])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_trains_and_the_seed_decides(model: str, kind: str) -> None:
    def build() -> Any:
        torch.manual_seed(1)
        return encoder.build(SHAPES[kind], None, model=model)

    one, two = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    features = one(inputs(SHAPES[kind], 3))
    assert features.shape == (3, one.width)
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        # torch 2.14's convolution in bfloat16 on the CPU gives NaN now and then for maps as small as the last ones here
        assert "resnet" in model or one(inputs(SHAPES[kind], 3)).isfinite().all()


def test_a_clip_is_the_mean_of_its_frames() -> None:
    clip = encoder.build((4, 3, 32, 32), None, model="test_vit").eval()
    x = inputs((4, 3, 32, 32))
    with torch.no_grad():
        apart = torch.stack([clip.model(x[:, i]) for i in range(4)]).mean(0)
        torch.testing.assert_close(clip(x), apart, rtol=0, atol=1e-6)


def test_weights_for_three_channels_serve_one_and_positions_are_resampled(tmp_path: Path) -> None:
    theirs, file = reference("test_vit", tmp_path, img_size=32)
    grey = encoder.build((1, 32, 32), None, model="test_vit", pretrained=str(file)).eval()
    assert load_weights("visual", section(file, "test_vit"), grey, encoder.convert).complete
    x = inputs((1, 32, 32))
    with torch.no_grad():  # a grey image given three times
        torch.testing.assert_close(grey(x), pooled(theirs, x.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)
    large = encoder.build((3, 64, 64), None, model="test_vit", pretrained=str(file))
    assert load_weights("visual", section(file, "test_vit"), large, encoder.convert).complete
    assert large.model.pos_embed.shape[1] == theirs.pos_embed.shape[1] - 4 + 16


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    _, file = reference("test_resnet", tmp_path)
    ours = encoder.build((3, 32, 32), None, model="test_vit")
    with pytest.raises(MlaError, match=r"`encoders.visual.pretrained`: .* fills 0.0% of the parameters"):
        load_weights("visual", section(file, "test_vit"), ours, encoder.convert)
    with pytest.raises(MlaError, match="the sha256 of"):
        weights_digest("visual", section(file, "test_vit", sha256="0" * 64))


@pytest.mark.parametrize("model", MODELS[:2])
def test_checkpointing_gives_the_same_gradients(model: str) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        network = encoder.build((3, 32, 32), None, model=model, checkpointing=checkpointing)
        network(inputs((3, 32, 32))).square().sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_costs_can_be_counted_with_fake_tensors() -> None:
    """timm looks at numbers while it builds a transformer, which fake tensors do not have."""
    with FakeTensorMode():
        fake = encoder.build((3, 32, 32), None, model="test_vit", drop_path=0.1)
        fake(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert all(isinstance(p, nn.Parameter) and isinstance(p.grad, FakeTensor) for p in fake.parameters())


def test_drop_path_and_dropout_draw_in_training_only() -> None:
    torch.manual_seed(0)
    network = encoder.build((3, 32, 32), None, model="test_vit", drop_path=0.5, dropout=0.5)
    x = inputs((3, 32, 32), 4)
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))
    assert needs_two(Encoder(encoder.build((3, 32, 32), None, model="test_resnet"), 8))


def test_normalisation_is_that_of_timm_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", None)
    half = (0.5, 0.5, 0.5)
    assert encoder.normalisation(model="vit_small_patch16_224", pretrained="hub", width=None) == (half, half)
    config = timm.get_pretrained_cfg("resnet18")
    assert encoder.normalisation(model="resnet18") == (config.mean, config.std)


@pytest.mark.parametrize(
    ("shape", "keys", "message", "hint"),
    [
        ((3, 32, 32), {"model": "vit_smal_patch16_224"}, "no model `vit_smal_patch16_224`", "`vit_small_patch16_224`"),
        ((3, 32, 32), {"model": "hf-hub:a/b"}, "not one of timm's own", "list_models"),
        ((3, 32, 32), {"model": "resnet18.a1_in2k"}, "no weights called `a1_in2k`", "`a1_in1k`"),
        ((3, 50, 32), {"model": "test_vit"}, "multiples of 16 x 16", "features.MODALITY.size: 160"),
        ((1, 50, 32), {"model": "test_vit"}, "multiples of 16 x 16", "`frames` and `mels`"),
        ((9,), {}, r"got shape `\(9,\)`", "`mlp` for vectors"),
        ((3, 32, 32), {"model": "test_vit", "width": 5}, "`width` of `test_vit` is 64, got `5`", "adapter"),
        ((3, 32, 32), {"drop_path": 1.0}, r"`drop_path` must be in \[0, 1\), got `1.0`", "0 switches"),
        ((3, 64, 64), {"model": "vgg11", "drop_path": 0.1}, "`vgg11` has no `drop_path`", "leave it out"),
        ((3, 32, 32), {"model": "dla46_c", "checkpointing": True}, "has no `checkpointing`", "leave it out"),
    ],
)
def test_errors_say_what_to_do(shape: tuple[int, ...], keys: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(MlaError, match=message) as caught:
        encoder.build(shape, keys.pop("width", None), **keys)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("pretrained", "message", "hint"),
    [
        (True, "does not say which weights", "write `hub`"),
        ("no.pth", "no file `no.pth`", "give `hub`"),
        ("README.md", "cannot tell what", ".safetensors"),
        ("hub", "the Hugging Face hub did not give it", "`encoders.visual.pretrained: FOLDER/model.safetensors`"),
    ],
)
def test_pretrained_names_a_file(
    pretrained: bool | str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("x")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    named = EncoderSection.model_validate({"name": "timm", "model": "test_vit", "pretrained": pretrained})
    with pytest.raises(MlaError, match=message) as caught:
        weights_digest("visual", named)
    assert hint in caught.value.hint


def test_weights_of_the_hub_come_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = reference("test_vit", tmp_path)
    repository = tmp_path / ("models--" + timm.get_pretrained_cfg("test_vit").hf_hub_id.replace("/", "--"))
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    file.rename(snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    ours = encoder.build((3, 160, 160), None, model="test_vit", pretrained="hub")
    hub = section("hub", "test_vit")
    assert load_weights("visual", hub, ours, encoder.convert).complete
    assert weights_digest("visual", hub) == sha256(snapshot / "model.safetensors")


def test_both_keys_for_weights_are_one_too_many(tmp_path: Path) -> None:
    both = EncoderSection.model_validate({"name": "timm", "pretrained": "hub", "weights": str(tmp_path / "x.pth")})
    with pytest.raises(MlaError, match="both name weights"):
        weights_digest("visual", both)


def test_without_timm_one_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MlaError, match="`timm` is not installed") as caught:
        encoder.build((3, 32, 32), None)
    assert "mla-cli[hf]" in caught.value.hint


def test_trained_by_the_command_line(data_dir: Path, emoji_store: Any, tmp_path: Path) -> None:
    """From a file; the run's hash covers what it holds."""
    recipe = tmp_path / "tiny.yaml"
    _, file = reference("test_vit", tmp_path, img_size=16)
    recipe.write_text(
        f"""dataset: {{name: emoji, modalities: [visual], limit: 32}}
encoders: {{visual: {{name: timm, model: test_vit, pretrained: {file}}}}}
train: {{epochs: 1, batch_size: 16, threads: 1}}
"""
    )
    words = ("train", "--recipe", recipe, "--data-dir", data_dir, "--run-dir", tmp_path / "runs")
    first = mla(*words)
    assert first.code == 0, first.stderr
    assert "weights of visual: " in first.stderr and "unexpected: model.head.bias" in first.stderr
    info = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())
    assert info["weights"]["visual"]["sha256"] == sha256(file)
    own, store = load_recipe(str(recipe)), open_store(load_recipe(str(recipe)), data_dir)
    before = run_fingerprint(own, store)
    save_file({n: v + 1 for n, v in timm.create_model("test_vit", img_size=16).state_dict().items()}, file)
    assert run_fingerprint(own, store) != before
