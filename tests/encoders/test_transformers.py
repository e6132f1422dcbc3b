"""`transformers`: features equal those of the library's own model, and padding changes none."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest
import torch
from command_line import mla
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from mla_cli.core.model import build_encoder
from mla_cli.core.weights import load_weights
from mla_cli.data.extractor import extracted
from mla_cli.data.features import BadMedia, compute, row_dtype, row_shape, token_count
from mla_cli.data.store import Store
from mla_cli.data.text import tokenize
from mla_cli.encoders import transformers as encoder
from mla_cli.errors import MlaError
from mla_cli.schema import EncoderSection
from mla_cli.specs import ExtractorSpec, TextSpec

transformers = pytest.importorskip("transformers")
KINDS = ("bert", "ast", "wav2vec2", "wav2vec2 without masks", "whisper")
LENGTH = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for each kind."""
    root = tmp_path_factory.mktemp("models")
    make: dict[str, Callable[[Path], Path]] = {
        "bert": hf_models.bert,
        "ast": hf_models.ast,
        "wav2vec2": hf_models.wav2vec2,
        "wav2vec2 without masks": lambda folder: hf_models.wav2vec2(folder, masks=False),
        "whisper": hf_models.whisper,
    }
    return {kind: make[kind](root / kind.replace(" ", "_")) for kind in KINDS}


def spec_of(kind: str, folder: Path) -> Any:
    if kind == "bert":
        return TextSpec(tokens="tokenizer", vocabulary=str(folder), length=LENGTH)
    return ExtractorSpec(model=str(folder), seconds=1.0 if kind.startswith("wav2vec2") else None)


def section(folder: Path, **keys: Any) -> EncoderSection:
    return EncoderSection.model_validate({"name": "transformers", "model": str(folder), **keys})


def built(kind: str, folder: Path, load: bool = True, **keys: Any) -> Any:
    """The encoder with the folder's weights, in evaluation."""
    spec = spec_of(kind, folder)
    counted = {"token_count": token_count(spec)} if kind == "bert" else {}
    torch.manual_seed(0)
    network = encoder.build(row_shape(spec), None, model=str(folder), **counted, **keys)
    if load:
        loaded = load_weights("m", section(folder), network, encoder.convert)
        assert loaded.complete and loaded.share == 1, loaded.differences()
    return network.eval()


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * hf_models.RATE)).astype(np.float32)


def texts(folder: Path, *lines: str) -> Tensor:
    spec = spec_of("bert", folder)
    return torch.stack([torch.from_numpy(compute(spec, "text", Path(), line).array) for line in lines])


def direct(kind: str, folder: Path, **given: Any) -> tuple[Tensor, Any]:
    """Last hidden states by the library alone, loaded and called as its documentation shows."""
    model = transformers.AutoModel.from_pretrained(str(folder)).eval()
    model = model.get_encoder() if kind == "whisper" else model
    with torch.no_grad():
        return model(**given).last_hidden_state, model


# ---------------------------------------------------------------- text


def test_text_features_equal_the_library_on_each_text_alone(folders: dict[str, Path]) -> None:
    """So padding, which the library's call does not have, changes nothing."""
    lines = ["red heart", "cat face with a long tail of words and more words", "x"]
    network = built("bert", folders["bert"])
    with torch.no_grad():
        found = network(texts(folders["bert"], *lines))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folders["bert"]))
    for line, feature in zip(lines, found, strict=True):
        given = tokenizer(line, truncation=True, max_length=LENGTH, return_tensors="pt")
        hidden, _ = direct("bert", folders["bert"], **given)
        torch.testing.assert_close(feature, hidden.mean(1)[0], rtol=0, atol=1e-6)
    assert network.model.config._attn_implementation == "sdpa"
    assert network.width == 16 and network.model.pooler is None


@pytest.mark.parametrize("pool", ["mean_valid", "cls"])
def test_padding_changes_no_text_feature(folders: dict[str, Path], pool: str) -> None:
    network = built("bert", folders["bert"], pool=pool)
    tokens = texts(folders["bert"], "cat", "red heart")
    with torch.no_grad():
        longer = torch.nn.functional.pad(tokens, (0, 20), value=-1)
        torch.testing.assert_close(network(longer), network(tokens), rtol=0, atol=1e-6)
        absent = network(torch.full((2, LENGTH), -1, dtype=torch.int32))  # what stands for an absent text
    assert absent.isfinite().all() and torch.equal(absent[0], absent[1])


def test_cls_is_the_first_token(folders: dict[str, Path]) -> None:
    given = transformers.AutoTokenizer.from_pretrained(str(folders["bert"]))("cat", return_tensors="pt")
    hidden, _ = direct("bert", folders["bert"], **given)
    with torch.no_grad():
        found = built("bert", folders["bert"], pool="cls")(texts(folders["bert"], "cat"))
    torch.testing.assert_close(found, hidden[:, 0], rtol=0, atol=1e-6)


def test_tokens_are_the_tokenizers_with_its_special_ones(folders: dict[str, Path]) -> None:
    spec = spec_of("bert", folders["bert"])
    own = transformers.AutoTokenizer.from_pretrained(str(folders["bert"]))
    for line in ("red heart", "a very long line of many words that must be cut", "\u00e9 \U0001f600"):
        assert tokenize(spec, line) == own(line, truncation=True, max_length=LENGTH)["input_ids"]
    feature = compute(spec, "text", Path(), "cat face")
    assert feature.valid == 4 and feature.array.dtype == np.int32 and (feature.array[4:] == -1).all()
    assert feature.array[0] == own.cls_token_id and feature.array[3] == own.sep_token_id
    assert token_count(spec) == len(hf_models.VOCABULARY)
    with pytest.raises(MlaError, match="leaves no token between the 2 special ones"):
        tokenize(TextSpec(tokens="tokenizer", vocabulary=str(folders["bert"]), length=2), "cat")
    with pytest.raises(MlaError, match="needs a tokenizer"):
        tokenize(TextSpec(tokens="tokenizer"), "cat")


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize("kind", KINDS[1:])
def test_sound_features_equal_the_library(folders: dict[str, Path], kind: str) -> None:
    spec = spec_of(kind, folders[kind])
    own = transformers.AutoFeatureExtractor.from_pretrained(str(folders[kind]))
    padding = {} if spec.seconds is None else {"padding": "max_length", "max_length": own.sampling_rate}
    network = built(kind, folders[kind])
    for wave in (sound(0.5), sound(0.9, seed=1)):
        array, valid = extracted(wave, spec)
        assert array.shape == row_shape(spec) and array.dtype == row_dtype(spec) == np.float32
        given = own(wave, sampling_rate=own.sampling_rate, return_tensors="pt", **padding)
        np.testing.assert_array_equal(array, given[own.model_input_names[0]][0].numpy())
        hidden, model = direct(kind, folders[kind], **given)
        if "attention_mask" in given:
            assert valid == len(wave) == int(given["attention_mask"].sum())
            frames = int(model._get_feat_extract_output_lengths(valid))
            assert 0 < frames < hidden.shape[1]
            hidden = hidden[:, :frames]
        with torch.no_grad():
            found = network(torch.from_numpy(array)[None])
        torch.testing.assert_close(found, hidden.mean(1), rtol=0, atol=1e-6)
    assert network.masked == (kind == "wav2vec2")
    assert network(torch.zeros(2, *row_shape(spec))).isfinite().all()  # what stands for an absent sound


def test_padding_changes_no_sound_feature_where_there_are_masks(folders: dict[str, Path]) -> None:
    folder = folders["wav2vec2"]
    network = built("wav2vec2", folder)
    with torch.no_grad():
        short, long = (
            network(torch.from_numpy(extracted(sound(0.4), ExtractorSpec(model=str(folder), seconds=s))[0])[None])
            for s in (0.5, 1.5)
        )
    torch.testing.assert_close(short, long, rtol=0, atol=1e-5)


def test_a_sound_that_ends_in_zeros_keeps_its_length(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = hf_models.wav2vec2(tmp_path)
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(content | {"do_normalize": False}))
    wave = sound(0.5)
    wave[-100:] = 0
    array, valid = extracted(wave, ExtractorSpec(model=str(folder), seconds=1.0))
    assert valid == len(wave)
    assert encoder.frames_before_zeros(torch.from_numpy(array)[None]).sum() == valid
    np.testing.assert_array_equal(array[: valid - 1], wave[:-1])
    assert array[valid - 1] == np.float32(1e-30)


def test_sounds_are_cut_and_too_short_ones_refused(folders: dict[str, Path]) -> None:
    for kind in ("ast", "whisper"):  # of a fixed length, so only cut
        spec = ExtractorSpec(model=str(folders[kind]), seconds=0.25)
        rate = 16_000 if kind == "whisper" else hf_models.RATE
        wave = np.resize(sound(1.0), rate)
        cut, _ = extracted(wave, spec)
        np.testing.assert_array_equal(cut, extracted(wave[: rate // 4], spec)[0])
        assert cut.shape == row_shape(spec) == row_shape(spec_of(kind, folders[kind]))
    with pytest.raises(BadMedia, match="less than one frame"):
        extracted(sound(0.02), spec)
    with pytest.raises(MlaError, match="has no length of its own") as caught:
        row_shape(ExtractorSpec(model=str(folders["wav2vec2"])))
    assert "seconds: 3.0" in caught.value.hint


# ---------------------------------------------------------------- weights


def test_what_a_file_has_beside_the_encoder_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    network = built("bert", folders["bert"], load=False)
    loaded = load_weights("m", section(folders["bert"]), network, encoder.convert)
    heads = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert loaded.unexpected == heads  # in one order, though safetensors has none
    whole = load_weights("m", section(folders["whisper"]), built("whisper", folders["whisper"], False), encoder.convert)
    assert any(name.startswith("decoder.") for name in whole.unexpected) and whole.share == 1
    tensors = load_file(folders["bert"] / "model.safetensors")
    for form in (
        {name.replace("weight", "gamma") if "LayerNorm" in name else name: t for name, t in tensors.items()},
        {name.removeprefix("bert."): t for name, t in tensors.items() if name.startswith("bert.")},
    ):  # as older versions named them, and as saved without a head
        torch.save(form, tmp_path / "pytorch_model.bin")
        own = section(folders["bert"], pretrained=False, weights=str(tmp_path / "pytorch_model.bin"))
        assert load_weights("m", own, network, encoder.convert).complete


def test_a_file_of_another_size_is_refused_with_its_shapes(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["bert"] / "model.safetensors")
    for name in ("bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"):
        tensors[name] = tensors[name][:30].clone()
    save_file(tensors, tmp_path / "x.safetensors")
    own = section(folders["bert"], pretrained=False, weights=str(tmp_path / "x.safetensors"))
    with pytest.raises(MlaError, match=r"2 other shape: model.embeddings.word_embeddings.weight \(30, 16\)"):
        load_weights("m", own, built("bert", folders["bert"], load=False), encoder.convert)


def test_random_weights_follow_the_seed_and_nothing_is_left_to_chance(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        one, two = (built(kind, folders[kind], load=False).state_dict() for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one)
    network = built(
        "wav2vec2", folders["wav2vec2"], dropout=0.0
    ).train()  # layerdrop and SpecAugment are on in the file
    x = torch.from_numpy(extracted(sound(0.7), spec_of("wav2vec2", folders["wav2vec2"]))[0])[None].expand(4, -1)
    assert torch.equal(network(x), network(x))
    noisy = built("bert", folders["bert"], dropout=0.5).train()
    tokens = texts(folders["bert"], "cat face")
    assert not torch.equal(noisy(tokens), noisy(tokens))


@pytest.mark.parametrize("kind", [*KINDS[:3], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[3:])])
def test_checkpointing_and_bf16(folders: dict[str, Path], kind: str) -> None:
    spec = spec_of(kind, folders[kind])
    x = texts(folders[kind], "cat", "red heart") if kind == "bert" else torch.randn(2, *row_shape(spec))
    found = []
    for checkpointing in (False, True):
        network = built(kind, folders[kind], dropout=0.0, checkpointing=checkpointing).train()
        network(x).square().sum().backward()
        found.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        with torch.autocast("cpu", torch.bfloat16):
            assert network(x).isfinite().all()
    assert found[0].keys() == found[1].keys()
    idle = {name for name, _ in network.named_parameters()} - found[0].keys()
    assert idle <= {
        "model.masked_spec_embed",
        "model.embed_positions.weight",
    }  # SpecAugment's, and Whisper's fixed ones
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_costs_can_be_counted_with_fake_tensors(folders: dict[str, Path], kind: str) -> None:
    real = built(kind, folders[kind], load=False)
    with FakeTensorMode():
        fake = built(kind, folders[kind], load=False)
        shape = row_shape(spec_of(kind, folders[kind]))
        x = torch.ones(2, *shape, dtype=torch.int32 if kind == "bert" else torch.float32)
        fake(x).sum().backward()
    same = [(n, p.shape, p.requires_grad) for n, p in real.named_parameters()]
    assert [(n, p.shape, p.requires_grad) for n, p in fake.named_parameters()] == same
    assert all(isinstance(p, FakeTensor) for p in fake.state_dict().values())


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("shape", "keys", "message", "hint"),
    [
        ((LENGTH,), {"model": ""}, "no `model` is named", "set `model`"),
        ((LENGTH,), {"token_count": 72, "pool": "max"}, "no pool `max`", "mean_valid"),
        ((LENGTH,), {"token_count": 72, "dropout": 1.0}, "`dropout` must be in", "0 switches"),
        ((LENGTH,), {"token_count": 72, "width": 5}, "`width` of .* is 16, got `5`", "adapter"),
        ((LENGTH,), {"token_count": 5000}, "5000 token numbers, .* knows 72", "own tokenizer"),
        ((50,), {"token_count": 72}, "50 tokens are too long .* takes 40", "length: 40"),
        ((3, 32, 32), {}, "takes `input_ids`", "encoder `timm`"),
        ((LENGTH,), {"kind": "ast", "token_count": 72}, "takes `input_values`, the features are text", "text model"),
        ((64, 40), {"kind": "ast"}, r"cannot take inputs of shape `\(64, 40\)`", "own tokenizer or extractor"),
        ((8000,), {"kind": "wav2vec2", "pool": "cls"}, "has no cls token", "mean_valid"),
        ((16, 90), {"kind": "whisper"}, r"cannot take inputs of shape `\(16, 90\)`", "extractor"),
    ],
)
def test_errors_say_what_to_do(
    folders: dict[str, Path], shape: tuple[int, ...], keys: dict[str, Any], message: str, hint: str
) -> None:
    given = {"model": str(folders[keys.get("kind", "bert")])} | {
        k: v for k, v in keys.items() if k not in ("kind", "width")
    }
    with pytest.raises(MlaError, match=message) as caught:
        encoder.build(shape, keys.get("width"), **given)
    assert hint in caught.value.hint


def test_an_error_names_the_modality_whose_model_it_is() -> None:
    with pytest.raises(MlaError, match=r"^`encoders\.text\.model`: no folder `not/in/here`"):
        build_encoder("text", section(Path("not/in/here")), (LENGTH,), 72, 16, 0)


def test_damaged_folders_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text('{"feature_extractor_type": "Nothing"}')
    with pytest.raises(MlaError, match="cannot read the configuration"):
        encoder.build((LENGTH,), None, model=str(tmp_path), token_count=9)
    with pytest.raises(MlaError, match="cannot read the tokenizer"):
        token_count(TextSpec(tokens="tokenizer", vocabulary=str(tmp_path)))
    with pytest.raises(MlaError, match="cannot read the feature extractor"):
        row_shape(ExtractorSpec(model=str(tmp_path)))


def test_without_transformers_one_error_names_the_extra(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MlaError, match="`transformers` is not installed") as caught:
        encoder.build((LENGTH,), None, model=str(folders["bert"]), token_count=9)
    assert "mla-cli[hf]" in caught.value.hint


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_a_pickle_in_a_folder_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = hf_models.bert(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Touch(str(tmp_path / "ran"))}, folder / "pytorch_model.bin")
    with pytest.raises(MlaError, match="holds more than tensors"):
        load_weights("m", section(folder), built("bert", folder, load=False), encoder.convert)
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- the command line


RECIPE = """dataset: {{name: {name}, modalities: [{modality}], limit: 40}}
features: {{{modality}: {spec}, visual: {{kind: image, size: 8}}}}
encoders: {{{modality}: {{name: transformers, model: {folder}}}}}
train: {{epochs: 1, batch_size: 20, threads: 1}}
"""


@pytest.mark.slow  # prepares twice, in worker processes that import transformers
@pytest.mark.parametrize(
    ("name", "modality", "kind"),
    [("emoji", "text", "bert"), ("digits", "audio", "ast")],
)
def test_prepared_and_trained_by_the_command_line(
    tmp_path: Path, name: str, modality: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tokenizer or extractor under the same path is noticed; other weights are another run."""
    monkeypatch.chdir(tmp_path)
    make = {"bert": hf_models.bert, "ast": hf_models.ast}[kind]
    make(tmp_path / "model")
    spec = {"bert": "{kind: text, tokens: tokenizer, vocabulary: model, length: 16}"}
    spec["ast"] = "{kind: extractor, model: model}"
    recipe = RECIPE.format(name=name, modality=modality, spec=spec[kind], folder="model")
    (tmp_path / "own.yaml").write_text(recipe)
    made, trained = mla("prepare", name, "--recipe", "own.yaml"), mla("train", "--recipe", "own.yaml")
    assert made.code == trained.code == 0, made.stderr + trained.stderr
    assert f"weights of {modality}: " in trained.stderr and "100.0% of its parameters" in trained.stderr
    manifest = json.loads((tmp_path / "data" / name / "manifest.json").read_text())
    assert len(manifest["modalities"][modality]["made_by"]) == 64
    assert mla("eval", "--missing-rate", "0").code == 0
    if kind == "bert":
        hf_models.tokenizer_of(tmp_path / "model", extra=["smiling"])
    else:
        file = tmp_path / "model" / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"mean": 0.0}))
    refused = mla("train", "--recipe", "own.yaml", "--seed", "1")
    assert refused.code == 1 and "is not the one that made the stored features" in refused.stderr
    again = mla("prepare", name, "--recipe", "own.yaml")
    assert again.code == 0 and "building it again" in again.stderr, again.stderr
    other = mla("eval", "--dataset", name)
    assert other.code == 1 and "made by another tokenizer or extractor" in other.stderr, other.stderr
    if kind == "bert":  # a word that was taken apart is one token now
        tokens = Store.open(tmp_path / "data" / name).modality("text").take(np.arange(1636))
        assert (tokens == len(hf_models.VOCABULARY)).any()
